"""From logits to the next token of each sequence in a batch.

The random number of a sequence's n-th token depends on its seed and n alone (a counter-based
generator), so that what else is in the batch can't change it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ayllu.engine.request import Sequence
from ayllu.native import ops

# Below this a temperature is greedy: dividing float32 logits by less loses them to infinity.
_COLDEST = 1e-5


def uniform(seeds: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """float64 in (0, 1) from two uint64 arrays: SplitMix64 (Steele et al. 2014) over seed and counter."""
    with np.errstate(over="ignore"):
        z = seeds * np.uint64(0xD1342543DE82EF95) + (counters + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
        z ^= z >> np.uint64(31)
    # Never 0: there even a token without any chance would be drawn.
    return np.maximum((z >> np.uint64(11)).astype(np.float64), 1.0) / 2.0**53


def sample(logits_BV: Tensor, sequences: list[Sequence]) -> tuple[list[int], list[float]]:
    """Next token and its log-probability (of the model itself, in nats) for each sequence."""
    logits_BV = logits_BV.float()
    counters = np.array([len(s.token_ids) for s in sequences], np.uint64)
    uniform_B = torch.from_numpy(uniform(np.array([s.seed for s in sequences], np.uint64), counters))
    temperatures = [s.params.temperature if s.params.temperature >= _COLDEST else 0.0 for s in sequences]
    temperature_B = torch.tensor(temperatures, dtype=torch.float32)
    cut = any(s.params.top_k or s.params.top_p < 1 or s.params.min_p for s in sequences)
    if not cut and ops.decoding_usable(logits_BV):
        token_B, logprob_B = ops.sample(logits_BV, temperature_B, uniform_B)
        return token_B.tolist(), logprob_B.tolist()
    device = logits_BV.device
    # The lowest id among equals: argmax doesn't promise which one it takes.
    vocab = logits_BV.shape[1]
    tops_BV = logits_BV == logits_BV.amax(-1, keepdim=True)
    greedy_B = torch.where(tops_BV, torch.arange(vocab, device=device), vocab - 1).amin(-1)
    hot_B = (temperature_B > 0).to(device)
    divisor_B = torch.where(hot_B, temperature_B.to(device), 1.0)
    p_BV = (logits_BV / divisor_B[:, None]).softmax(-1)
    if cut:
        p_BV = _cut(p_BV, sequences)
    # Inverse of the cumulative distribution, in float64 so that the tail is not rounded away.
    c_BV = p_BV.double().cumsum(-1)
    total_B = c_BV[:, -1]
    # Kept below the total, where rounding would go past the last token that has a chance.
    wanted_B = torch.minimum(
        uniform_B.to(device) * total_B, torch.nextafter(total_B, torch.zeros_like(total_B))
    )
    drawn_B = torch.searchsorted(c_BV, wanted_B[:, None], right=True)[:, 0]
    token_B = torch.where(hot_B, drawn_B.clamp_(max=vocab - 1), greedy_B)
    logprob_B = logits_BV.gather(-1, token_B[:, None])[:, 0] - logits_BV.logsumexp(-1)
    return token_B.tolist(), logprob_B.tolist()


def _cut(p_BV: Tensor, sequences: list[Sequence]) -> Tensor:
    """Zero what top-k, top-p (Holtzman et al. 2020) and min-p (Nguyen et al. 2024) exclude."""
    sorted_BV, order_BV = p_BV.sort(dim=-1, descending=True, stable=True)
    rank_V = torch.arange(p_BV.shape[1], device=p_BV.device)
    keep_BV = torch.ones_like(sorted_BV, dtype=torch.bool)
    before_BV = sorted_BV.cumsum(-1) - sorted_BV
    for row, sequence in enumerate(sequences):
        params = sequence.params
        if params.top_k:
            keep_BV[row] &= rank_V < min(params.top_k, len(rank_V))
        if params.top_p < 1:
            keep_BV[row] &= before_BV[row] < params.top_p
        if params.min_p:
            keep_BV[row] &= sorted_BV[row] >= params.min_p * sorted_BV[row, 0]
    return torch.zeros_like(p_BV).scatter(-1, order_BV, sorted_BV * keep_BV)
