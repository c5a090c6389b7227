"""Penalties on repetition, and biases: changes of single logits before anything is drawn.

Repetition penalty (Keskar et al. 2019, "CTRL", section 4.1): the logit of every token that the prompt or
the text has is divided by the penalty where it is positive and multiplied where it is negative. Presence
and frequency penalty (OpenAI's API): subtracted once, and once for each occurrence, in the generated text
only. Biases are added to what that leaves.
"""

from __future__ import annotations

from collections.abc import Sequence as Ids

import torch
from torch import Tensor

from ayllu.engine.request import SamplingParams


class Penalties:
    """The tokens that a sequence has, counted, and what they cost."""

    def __init__(self, params: SamplingParams, prompt_ids: list[int]) -> None:
        self.params = params
        self.prompt = frozenset(prompt_ids) if params.repetition_penalty != 1 else frozenset()
        self.counts: dict[int, int] = {}  # of generated tokens

    @staticmethod
    def needed(params: SamplingParams) -> bool:
        """Whether these parameters change any logit."""
        penalty = params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty
        return bool(penalty or params.logit_bias)

    def add(self, token: int) -> None:
        """Count a generated token."""
        self.counts[token] = self.counts.get(token, 0) + 1

    def apply(self, logits_V: Tensor, drafts: Ids[int] = ()) -> None:
        """Change `logits_V` in place; `drafts` count as generated."""
        params, device = self.params, logits_V.device
        counts = dict(self.counts) if drafts else self.counts
        for token in drafts:
            counts[token] = counts.get(token, 0) + 1
        if params.repetition_penalty != 1:
            ids = torch.tensor(sorted(self.prompt | counts.keys()), dtype=torch.int64, device=device)
            seen = logits_V[ids]
            factor = params.repetition_penalty
            logits_V[ids] = torch.where(seen > 0, seen / factor, seen * factor)
        if counts and (params.presence_penalty or params.frequency_penalty):
            ids = torch.tensor(list(counts), dtype=torch.int64, device=device)
            number = torch.tensor(list(counts.values()), dtype=torch.float32, device=device)
            logits_V[ids] -= params.presence_penalty + params.frequency_penalty * number
        if params.logit_bias:
            ids = torch.tensor([token for token, _ in params.logit_bias], dtype=torch.int64, device=device)
            bias = torch.tensor([b for _, b in params.logit_bias], dtype=torch.float32, device=device)
            logits_V.index_add_(0, ids, bias)  # an id that is named twice gets both
