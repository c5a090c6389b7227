"""From logits to the next token of each sequence in a batch.

The random number of a sequence's n-th token depends on its seed and n alone (a counter-based
generator), so that what else is in the batch can't change it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ayllu.engine.request import Sequence

_MASK = np.uint64(0xFFFFFFFFFFFFFFFF)


def uniform(seeds: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """float64 in [0, 1) from two uint64 arrays: SplitMix64 (Steele et al. 2014) over seed and counter."""
    with np.errstate(over="ignore"):
        z = seeds * np.uint64(0xD1342543DE82EF95) + (counters + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) / 2.0**53


def sample(logits_BV: Tensor, sequences: list[Sequence]) -> tuple[list[int], list[float]]:
    """Next token and its log-probability (of the model itself, in nats) for each sequence."""
    logits_BV = logits_BV.float()
    log_z_B = logits_BV.logsumexp(-1)
    # argmax returns the lowest index among equals on the CPU, but not by contract everywhere.
    greedy_B = (logits_BV == logits_BV.amax(-1, keepdim=True)).to(torch.uint8).argmax(-1)
    token_B = greedy_B
    hot = [i for i, s in enumerate(sequences) if s.params.temperature > 0]
    if hot:
        rows = torch.tensor(hot, device=logits_BV.device)
        drawn = _draw(logits_BV if len(hot) == len(sequences) else logits_BV[rows], [sequences[i] for i in hot])
        token_B = greedy_B.index_copy(0, rows, drawn)
    logprob_B = logits_BV.gather(-1, token_B[:, None])[:, 0] - log_z_B
    return token_B.tolist(), logprob_B.tolist()


def _draw(logits_BV: Tensor, sequences: list[Sequence]) -> Tensor:
    device = logits_BV.device
    temperature_B = torch.tensor([s.params.temperature for s in sequences], device=device)
    p_BV = (logits_BV / temperature_B[:, None]).softmax(-1)
    if any(s.params.top_k or s.params.top_p < 1 or s.params.min_p for s in sequences):
        p_BV = _cut(p_BV, sequences)
    counters = np.array([len(s.token_ids) for s in sequences], np.uint64)
    u_B = torch.from_numpy(uniform(np.array([s.seed for s in sequences], np.uint64), counters)).to(device)
    # Inverse of the cumulative distribution, in float64 so that the tail is not rounded away.
    c_BV = p_BV.double().cumsum(-1)
    return torch.searchsorted(c_BV, (u_B * c_BV[:, -1])[:, None], right=True)[:, 0].clamp_(max=p_BV.shape[1] - 1)


def _cut(p_BV: Tensor, sequences: list[Sequence]) -> Tensor:
    """Zero what top-k, top-p (Holtzman et al. 2020) and min-p (Nguyen et al. 2024) exclude."""
    sorted_BV, order_BV = p_BV.sort(-1, descending=True, stable=True)
    rank_V = torch.arange(p_BV.shape[1], device=p_BV.device)
    keep_BV = torch.ones_like(sorted_BV, dtype=torch.bool)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    for row, sequence in enumerate(sequences):
        params = sequence.params
        if params.top_k:
            keep_BV[row] &= rank_V < params.top_k
        if params.top_p < 1:
            keep_BV[row] &= before_BV[row] < params.top_p
        if params.min_p:
            keep_BV[row] &= sorted_BV[row] >= params.min_p * sorted_BV[row, 0]
    return torch.zeros_like(p_BV).scatter(-1, order_BV, sorted_BV * keep_BV)
