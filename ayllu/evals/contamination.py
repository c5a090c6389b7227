"""The guard against contamination: no run starts whose practice is found in an official test set.

Of families that make their problems 300 each are looked at, by a seed of their own; of those that live on
given rows all of them.

Two kinds of evidence. The first is that of `text/decontaminate`: thirteen words in a row, or a whole short
problem. It misses a test question whose numbers were changed, which is just what resampling and the
templates of others do (of the 99 templates of one public generator 66 overlap GSM8K's test questions). So
the second looks at texts with every number replaced by one sign, whole and in any spelling of the
space between: equal skeletons of at least eight words are refused.

Test sets are given as folders. Files with the word `train` in their name are left out; of JSON lines, TSV and
CSV every text is taken, however deep it lies. Data in a form that isn't read is refused, or a test set in it
would count as compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ayllu.errors import BadFileError, ContaminationError, InputNotFoundError
from ayllu.evals.rows import KINDS, kind_of, read_rows
from ayllu.reason.practice import TASKS
from ayllu.reason.tasks.gsm8k import TRAINING_FILE
from ayllu.text.clean import normalise
from ayllu.text.decontaminate import index_evaluations, one_form

LEAST_WORDS = 8  # of a skeleton
SAMPLE = 300  # problems of each family that are looked at
_OTHER = (".parquet", ".arrow", ".feather", ".gz", ".bz2", ".zst", ".zip", ".tar", ".7z", ".xlsx", ".db")
_NUMBER = re.compile(r"\d[\d,.]*")


def skeleton(text: str) -> str:
    """Words in lower case without signs, every number as `#`. "" when fewer than LEAST_WORDS."""
    words = re.findall(r"[^\W\d_]+|#", _NUMBER.sub(" # ", one_form(normalise(text))))
    return " ".join(words) if len(words) >= LEAST_WORDS else ""


def official_texts(folders: Sequence[Path]) -> Iterator[str]:
    """Every text of every test file. InputNotFoundError for a folder without any, BadFileError for damage and
    for data that can't be read here."""
    for folder in folders:
        every = [
            p for p in sorted(folder.rglob("*")) if p.is_file() and not TRAINING_FILE.search(p.name.lower())
        ]
        for path in every:
            if kind_of(path) in _OTHER:  # data, in a form that isn't read
                raise BadFileError(
                    f"{path} can't be compared: {kind_of(path)} isn't read here",
                    fix="unpack or convert it to .jsonl, .csv, .tsv or .txt, or move it elsewhere",
                )
        files = [p for p in every if kind_of(p) in KINDS]
        if not files:
            raise InputNotFoundError(
                f"{folder} holds no test set",
                fix="give a folder with .jsonl, .json, .tsv, .csv or .txt files",
            )
        for file in files:
            for _, value in read_rows(file):
                yield from _strings(value)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def practised_texts(shares: dict[str, float], seed: int) -> Iterator[tuple[str, str]]:
    """(family, prompt) of problems that practice may draw, all levels of every family with a share."""
    for family, share in shares.items():
        if share:
            task, rng = TASKS[family], np.random.default_rng([seed, 7, *family.encode()])
            for i in range(SAMPLE):
                yield family, task.problem(rng, 1 + i % task.levels, "train").prompt
            yield from ((family, text) for text in task.texts("train"))


def refuse_overlap(practised: Iterable[tuple[str, str]], folders: Sequence[Path]) -> int:
    """The number of official texts that were compared; ContaminationError when one is practised."""
    texts = list(dict.fromkeys(official_texts(folders)))
    index = index_evaluations(texts)
    skeletons = {found: text for text in texts if (found := skeleton(text))}
    for family, prompt in practised:
        hit = index.find(prompt)
        twin = hit.evaluation if hit else skeletons.get(skeleton(prompt)) if skeleton(prompt) else None
        if twin is not None:
            raise ContaminationError(
                f"{family}: a training problem stands in a test set: {prompt[:150]!r}",
                why=(
                    f"{hit.tokens} words in a row: {hit.passage[:150]!r}"
                    if hit
                    else "the same but for its numbers"
                )
                + f", in {twin[:150]!r}",
                fix="leave the family out, or remove the row from its data",
            )
    return len(texts)
