"""From groups of answers to updates: packed rows, a weight for each sampled token, one or several updates of
a step's rollouts, each with an SFT batch as an anchor.

The losses themselves are a table in policy.py; rl.py samples the groups.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from ayllu.model.decoder import Decoder
from ayllu.reason.curriculum import informative
from ayllu.reason.loop import Answer
from ayllu.reason.task import Problem
from ayllu.train.optim import Optimizer
from ayllu.train.packing import Practice, pack_rows, pack_whole
from ayllu.train.policy import POLICY_LOSSES, Tokens, log_probabilities, scaled_advantages, token_weights
from ayllu.train.precision import compute_type
from ayllu.train.schedule import lr_scale
from ayllu.train.step import Batch, StepResult, backward, train_step

if TYPE_CHECKING:
    from ayllu.train.rl import RlSettings

_TYPICAL_TOKENS = 50  # the constant that token sums are divided by, times the answers of a batch


@dataclass(frozen=True)
class Group:
    """The answers to one problem and their rewards."""

    problem: Problem
    answers: list[Answer]
    rewards: list[float]

    @property
    def informative(self) -> bool:
        """Whether it is learnt from (`curriculum.informative`); equal rewards have no gradient."""
        return informative(self.rewards)


def advantages(groups: list[Group], deviation: str = "batch") -> list[list[float]]:
    """Reward minus the group's mean, over the deviation of all these differences (or as told)."""
    return scaled_advantages([g.rewards for g in groups], deviation)


def pack_answers(
    groups: list[Group], values: list[list[float]], settings: RlSettings, device: str
) -> tuple[list[Batch], Tokens]:
    """Packed rows of all answers with weight 1 on what was sampled, and these tokens one after another
    with their advantages (`values`). New and old log-probabilities are those that the engine reported, so
    that every ratio is 1.

    The scale has the number of answers times a fixed length, so that a token's weight depends neither on
    its answer's length nor on how many tokens the batch happens to have.
    """
    about = {
        id(answer.transcript): (answer, value)
        for group, group_values in zip(groups, values, strict=True)
        for answer, value in zip(group.answers, group_values, strict=True)
    }
    rows, length = pack_whole(
        [answer.transcript for group in groups for answer in group.answers], settings.length
    )
    ones = dict.fromkeys(about, 1.0)
    batches = [
        replace(pack_rows(rows[i : i + 16], length, device, ones), temperature=settings.temperature)
        for i in range(0, len(rows), 16)
    ]
    packed = [about[id(transcript)] for content in rows for transcript in content]
    lengths = [sum(answer.transcript.sampled()) for answer, _ in packed]
    old = [answer.logprobs or (0.0,) * n for (answer, _), n in zip(packed, lengths, strict=True)]
    old_N = torch.tensor([p for each in old for p in each], dtype=torch.float64)
    tokens = Tokens(
        new_N=old_N,
        old_N=old_N,
        advantage_N=torch.tensor(np.repeat([value for _, value in packed], lengths), dtype=torch.float64),
        answer_N=torch.from_numpy(np.repeat(np.arange(len(packed)), lengths)),
        scale=settings.updates / (settings.groups * settings.size * _TYPICAL_TOKENS),
    )
    return batches, tokens


def weighted(batches: list[Batch], weights_N: torch.Tensor) -> list[Batch]:
    """`batches` with `weights_N` where their weights are 1."""
    found, at = [], 0
    for batch in batches:
        mask_BT = batch.weights_BT != 0
        count = int(mask_BT.sum())
        weights_BT = torch.zeros_like(batch.weights_BT)
        weights_BT[mask_BT] = weights_N[at : at + count].to(weights_BT.device, weights_BT.dtype)
        found.append(replace(batch, weights_BT=weights_BT))
        at += count
    return found


def policy_batches(groups: list[Group], settings: RlSettings, device: str) -> list[Batch]:
    """Packed rows of all answers of the informative groups, weighted for the first update (on-policy)."""
    loss = POLICY_LOSSES[settings.loss]
    batches, tokens = pack_answers(groups, advantages(groups, loss.deviation), settings, device)
    return weighted(batches, token_weights(loss, tokens, settings.clip()))


class Updates:
    """The updates of one step: the informative groups in `updates` parts, each with an SFT batch.

    From the second part on the weights have moved, and ratios are those of the new log-probabilities to
    those before the first."""

    def __init__(
        self, model: Decoder, optimizer: Optimizer, anchor: Practice, settings: RlSettings, device: str
    ) -> None:
        self.model, self.optimizer, self.anchor = model, optimizer, anchor
        self.settings, self.device, self.dtype = settings, device, compute_type(device)

    def run(self, number: int, useful: list[Group]) -> list[StepResult]:
        """Change the weights; the results of the batches of answers."""
        settings, found = self.settings, list[StepResult]()
        scale = lr_scale(number, settings.steps, decay=0.5)
        if settings.updates == 1:
            batches = policy_batches(useful, settings, self.device) if useful else []
            return self._update(batches, number, scale)
        loss = POLICY_LOSSES[settings.loss]
        values = advantages(useful, loss.deviation) if useful else []
        mine = [slice(part, None, settings.updates) for part in range(settings.updates)]
        parts = [pack_answers(useful[m], values[m], settings, self.device) for m in mine if useful[m]]
        # Before anything moves, and not the engine's: its weights are rounded to eight bits, and the bounds
        # of GSPO are ratios of 3e-4.
        olds = [self._log_probabilities(batches) for batches, _ in parts[1:]]
        for part in range(settings.updates):
            batches = list[Batch]()
            if part < len(parts):
                batches, tokens = parts[part]
                if part:
                    new_N = self._log_probabilities(batches)
                    tokens = replace(tokens, new_N=new_N, old_N=olds[part - 1])
                batches = weighted(batches, token_weights(loss, tokens, settings.clip()))
            found += self._update(batches, number * settings.updates + part, scale)
        return found

    def _log_probabilities(self, batches: list[Batch]) -> torch.Tensor:
        """Of the sampled tokens, one after another, under the weights as they are."""
        found = [log_probabilities(self.model, b, self.dtype)[b.weights_BT != 0] for b in batches]
        return torch.cat(found).double().cpu()

    def seconds(self, useful: list[Group]) -> float:
        """How long forward and backward of these groups take; the weights stay as they are."""
        batches = [b for b in policy_batches(useful, self.settings, self.device) if b.weights_BT.any()]
        began = time.monotonic()
        for batch in batches:
            backward(self.model, batch, self.dtype, exact_logits=True)
        for weight in self.model.parameters():
            weight.grad = None
        return time.monotonic() - began

    def _update(self, batches: list[Batch], number: int, scale: float) -> list[StepResult]:
        batches = [batch for batch in batches if batch.weights_BT.any()]  # clipped, the whole batch may be 0
        policy = len(batches)
        if self.settings.anchor:
            batch = self.anchor.batch(number, self.device)
            batches = [*batches, replace(batch, weights_BT=batch.weights_BT * self.settings.anchor)]
        results = train_step(
            self.model,
            self.optimizer,
            batches,
            scale,
            self.dtype,
            exact_logits=True,
            max_grad_norm=self.settings.max_grad_norm or math.inf,
        )
        return results[:policy]
