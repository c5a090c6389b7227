"""Cuts of the tail: top-k (Fan et al. 2018), top-p (Holtzman et al. 2020), min-p (Nguyen et al. 2024).

All three keep the likeliest tokens down to some rank, so the whole question is that rank. Sorting a
vocabulary of 150,000 for it is dear, and the answer is nearly always among the first few. So `cut`, for
many rows on any device, looks at the first thousand, and `kept`, for one row on the CPU, at the tokens
within a distance of the likeliest; only a row whose rank lies deeper is sorted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ayllu.engine.request import SamplingParams

# A constant: if it depended on the batch, so would the rounding of a row's sums.
_FIRST = 1024
# In nats below the likeliest token, at temperature 1: tokens 20,000 times less likely are seldom needed.
_REACHES = (10.0, 30.0, np.inf)


def is_cut(params: SamplingParams) -> bool:
    """Whether anything is cut at all."""
    return bool(params.top_k or params.top_p < 1 or params.min_p)


def cut(logits_BV: Tensor, params: Sequence[SamplingParams]) -> None:
    """Put -inf, in place, where a row's top-k, top-p or min-p excludes a token.

    `logits_BV` float32, after temperature. top-p is the mass within what top-k leaves, as in vLLM and
    transformers; the token that crosses the border stays. Equals at the border: the lowest ids stay.
    """
    vocab, device = logits_BV.shape[1], logits_BV.device
    first = min(vocab, _FIRST)
    ranked_BK = logits_BV.topk(first).values
    top_B = ranked_BK[:, :1]
    mass_B = (logits_BV - top_B).exp().sum(-1, dtype=torch.float64)
    count_B = _ranks(ranked_BK, mass_B, params)
    border_B = ranked_BK.gather(1, (count_B - 1)[:, None])
    free_B = torch.tensor([not is_cut(p) for p in params], device=device)
    # top-p within a top-k beyond what was ranked: the mass that top-k leaves isn't known yet.
    wide_B = torch.tensor([p.top_p < 1 and first < p.top_k < vocab for p in params], device=device)
    if first < vocab:
        for i in (((count_B == first) & ~free_B) | wide_B).nonzero()[:, 0].tolist():
            row_1V = logits_BV[i : i + 1].sort(descending=True).values
            count_B[i : i + 1] = _ranks(row_1V, mass_B[i : i + 1], params[i : i + 1])
            border_B[i] = row_1V[0, count_B[i] - 1]
    above_BV, equal_BV = logits_BV > border_B, logits_BV == border_B
    room_B = count_B - above_BV.sum(-1)
    if bool((equal_BV.sum(-1) > room_B).any()):
        equal_BV &= equal_BV.cumsum(-1, dtype=torch.int32) <= room_B[:, None]
    logits_BV.masked_fill_(~(above_BV | equal_BV | free_B[:, None]), -torch.inf)


def _ranks(ranked_BK: Tensor, mass_B: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """How many of the ranked tokens (falling) stay, at least 1; K where it may be more than are there.

    `mass_B`: the sum of exp(logit - largest logit) over the whole vocabulary.
    """
    width, device = ranked_BK.shape[1], ranked_BK.device
    top_k = [min(p.top_k, 2**31) or 2**31 for p in params]
    top_k_B = torch.tensor(top_k, dtype=torch.int64, device=device)[:, None]
    top_p_B = torch.tensor([p.top_p for p in params], dtype=torch.float64, device=device)[:, None]
    min_p_B = torch.tensor([p.min_p for p in params], dtype=torch.float64, device=device)[:, None]
    within_BK = torch.arange(width, device=device) < top_k_B
    p_BK = (ranked_BK - ranked_BK[:, :1]).exp().double() * within_BK
    total_B = torch.where(top_k_B <= width, p_BK.sum(-1, keepdim=True), mass_B[:, None])
    before_BK = p_BK.cumsum(-1) - p_BK
    stays_BK = within_BK & (p_BK >= min_p_B) & ((before_BK < top_p_B * total_B) | (top_p_B >= 1))
    return stays_BK.sum(-1).clamp_(min=1)


def kept(logits_V: np.ndarray, params: SamplingParams, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of one row that stay, by rising id, and their weights (float64, the largest 1).

    `logits_V` float32 before temperature. What stays is what `cut` leaves.
    """
    top_k = params.top_k if params.top_k < len(logits_V) else 0
    top, whole = logits_V.max(), 0.0
    if params.top_p < 1 and not top_k:
        whole = float(np.exp((logits_V - top) / np.float32(temperature)).sum(dtype=np.float64))
    for reach in _REACHES:
        ids_C = np.flatnonzero(logits_V >= top - np.float32(reach * temperature))
        weights_C = np.exp((logits_V[ids_C] - top).astype(np.float64) / temperature)
        if (
            reach == np.inf
            or (top_k and len(ids_C) >= top_k)
            or (whole and weights_C.sum() >= params.top_p * whole)
            or (params.min_p > np.exp(-reach) and params.top_p == 1)
        ):
            break
    ranked_C = np.argsort(-logits_V[ids_C], kind="stable")[: top_k or None]
    ranked = weights_C[ranked_C]
    stays = ranked >= params.min_p
    if params.top_p < 1:
        stays &= ranked.cumsum() - ranked < params.top_p * (whole or ranked.sum())
    stays[0] = True
    chosen = np.sort(ranked_C[stays])
    return ids_C[chosen], weights_C[chosen]
