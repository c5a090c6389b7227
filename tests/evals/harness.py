"""In lm-eval's place: multiple choice as its own tasks have it, from a model's log-likelihoods.

A request is a context and a choice behind a space. `acc` is the share of rows whose right choice has the
largest log-likelihood, `acc_norm` the share where it has the largest per character of the choice; the first
of equals counts (lm_eval/api/task.py, `process_results` of a task of output type multiple_choice).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from ayllu.evals.items import Choice


@dataclass(frozen=True)
class Request:
    """As `lm_eval.api.instance.Instance`: what is asked stands in `args`."""

    args: tuple[str, str]


def module() -> ModuleType:
    """What stands for `lm_eval.api.model`: the base of every model there."""
    made = ModuleType("lm_eval.api.model")
    made.LM = type("LM", (), {})
    return made


def likelihoods(model: Any, rows: Sequence[Choice]) -> list[list[float]]:
    """Of each row the log-likelihood of each choice, all asked for together."""
    asked = [Request((row.pairs[0][0], f" {option}")) for row in rows for option in row.options]
    found = iter(model.loglikelihood(asked))
    return [[next(found)[0] for _ in row.options] for row in rows]


def simple_evaluate(model: Any, rows: Sequence[Choice]) -> dict[str, float]:
    """`acc` and `acc_norm`."""
    acc, acc_norm = [], []
    for row, nats in zip(rows, likelihoods(model, rows), strict=True):
        characters = np.array([float(len(option)) for option in row.options])
        acc.append(np.argmax(nats) == row.gold[0])
        acc_norm.append(np.argmax(np.array(nats) / characters) == row.gold[0])
    return {"acc": float(np.mean(acc)), "acc_norm": float(np.mean(acc_norm))}
