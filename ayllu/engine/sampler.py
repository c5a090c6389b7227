"""From logits to the next token of each sequence in a batch.

The random number of a sequence's n-th token depends on its seed and n alone (a counter-based
generator), so that what else is in the batch can't change it.

Plain rows (a temperature, nothing else) go through one fused kernel. The others are taken out
of the batch and go the long way, in the order that vLLM and transformers have too: penalties and biases,
what is forbidden (grammar, thinking budget, minimum length), temperature, top-k, top-p of what that
leaves, min-p; then the draw. Log-probabilities are always those of the unmodified model, which RL needs.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import numpy as np
import torch
from torch import Tensor

from ayllu.engine.cuts import cut, is_cut, kept
from ayllu.engine.request import Row, Sampled, Sequence
from ayllu.engine.steering import Steering
from ayllu.native import ops
from ayllu.text.tokenizer import Tokenizer

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


def begin(sequence: Sequence, tokenizer: Tokenizer | None, vocab_size: int) -> Steering | None:
    """What sampling will keep of `sequence` (its `state`); None where there is nothing to keep.

    Checks what only shows here, before any work is done: ids outside the vocabulary, too many stop strings,
    grammars that can't be compiled. Raises RequestError.
    """
    return Steering.begin(sequence, tokenizer, vocab_size)


def sample(logits_LV: Tensor, rows: Rows[Row]) -> list[Sampled]:
    """The next token for each row of logits. No state changes: `Sequence.append` takes what is accepted.

    Where a steered sequence can't go on, its `state.error` is set: the engine ends that sequence with the
    error and drops the token. The other rows are untouched by that.
    """
    logits_LV = logits_LV.float()
    held = [_held_back(row) for row in rows]
    if None not in held:
        return _plain(logits_LV, rows, held)
    sampled: dict[int, Sampled] = {}
    plain = [i for i, tokens in enumerate(held) if tokens is not None]
    special = [i for i, tokens in enumerate(held) if tokens is None]
    if plain:
        done = _plain(logits_LV[plain], [rows[i] for i in plain], [held[i] for i in plain])
        sampled |= zip(plain, done, strict=True)
    sampled |= zip(special, _special(logits_LV[special], [rows[i] for i in special]), strict=True)
    return [sampled[i] for i in range(len(rows))]


def probabilities(logits_LV: Tensor, rows: Rows[Row]) -> Tensor:
    """p_LV (float32): what `sample` draws from in each row; 1 at a single token where nothing is drawn."""
    x_LV, forced = _steer(logits_LV.float(), rows)
    p_LV = _chances(x_LV, rows)
    for i, row in enumerate(rows):
        if (only := forced[i]) is None and _temperature(row) == 0:
            only = int(_greedy(x_LV[i : i + 1])[0])
        if only is not None:
            p_LV[i] = 0
            p_LV[i, only] = 1
    return p_LV


def mean_logprob(sequence: Sequence) -> float:
    """What `best_of` ranks by: the log-probability a token, so that long answers aren't put last."""
    return sum(sequence.logprobs) / max(len(sequence.logprobs), 1)


def best(sequences: list[Sequence], n: int) -> list[Sequence]:
    """The `n` likeliest by `mean_logprob`, falling; equals in the order given; failed ones last."""
    failed = ("error", "cancelled")
    return sorted(sequences, key=lambda s: (s.finish_reason in failed, -mean_logprob(s)))[:n]


def _held_back(row: Row) -> tuple[int, ...] | None:
    """The tokens that a plain row may not have; None for a row that isn't plain."""
    params, state = row.sequence.params, row.sequence.state
    if params.top_logprobs or is_cut(params):
        return None
    return state.held_back(row.drafts) if isinstance(state, Steering) else ()


def _temperature(row: Row) -> float:
    """0 for greedy."""
    temperature = row.sequence.params.temperature
    return temperature if temperature >= _COLDEST else 0.0


def _uniform(rows: Rows[Row]) -> Tensor:
    seeds = np.array([row.sequence.seed for row in rows], np.uint64)
    return torch.from_numpy(uniform(seeds, np.array([row.position for row in rows], np.uint64)))


# ---- plain rows
def _plain(logits_BV: Tensor, rows: Rows[Row], held: Rows[tuple[int, ...] | None]) -> list[Sampled]:
    """`held`: tokens of each row that may not come. They are taken out while tokens are drawn, all at once,
    and put back: log-probabilities are those of the whole row."""
    rows_S = [i for i, tokens in enumerate(held) for _ in tokens or ()]
    tokens_S = [token for tokens in held for token in tokens or ()]
    at = tuple(torch.tensor([rows_S, tokens_S], device=logits_BV.device)) if rows_S else None
    kept_S = logits_BV[at] if at else None
    if at:
        logits_BV[at] = -torch.inf
    if ops.usable(logits_BV):
        token_B, logprob_B = _fused(logits_BV, rows)
        if at and kept_S is not None:
            token_B, logprob_B = _of_the_whole(logits_BV, rows, token_B, logprob_B, at[0], kept_S)
    else:
        token_B = _draw(logits_BV, rows)
        logprob_B = None
    if at:
        logits_BV[at] = kept_S
    if logprob_B is None:
        logprob_B = _logprobs(logits_BV, token_B)
    return [Sampled(*pair) for pair in zip(token_B.tolist(), logprob_B.tolist(), strict=True)]


def _of_the_whole(
    x_BV: Tensor, rows: Rows[Row], token_B: Tensor, logprob_B: Tensor, row_S: Tensor, kept_S: Tensor
) -> tuple[Tensor, Tensor]:
    """What the kernel drew from rows without their `kept_S` (logits of the rows `row_S`), with the
    log-probabilities that the tokens have with them."""
    drawn_B = x_BV.gather(-1, token_B[:, None])[:, 0]
    if bool((drawn_B == -torch.inf).any()):  # the kernel's exponential of -inf is small, not 0
        again = (drawn_B == -torch.inf).nonzero()[:, 0]
        token_B[again] = _draw(x_BV[again], [rows[i] for i in again.tolist()])
        drawn_B = x_BV.gather(-1, token_B[:, None])[:, 0]
        logprob_B[again] = _logprobs(x_BV[again], token_B[again])
    # The logarithm of the sum of exponentials: of the rest, and what the kept add to it.
    rest_B = drawn_B.double() - logprob_B
    more_S = (kept_S.double() - rest_B[row_S]).clamp(max=700.0).exp()
    more_B = torch.zeros_like(rest_B).index_add(0, row_S, more_S).log1p()
    return token_B, (logprob_B - more_B).float()


def _fused(x_BV: Tensor, rows: Rows[Row]) -> tuple[Tensor, Tensor]:
    temperature_B = torch.tensor([_temperature(row) for row in rows], dtype=torch.float32)
    return ops.sample(x_BV, temperature_B, _uniform(rows))


def _draw(x_BV: Tensor, rows: Rows[Row]) -> Tensor:
    """Tokens from logits that are final but for temperature and cuts."""
    greedy_B = _greedy(x_BV)
    hot_B = torch.tensor([_temperature(row) > 0 for row in rows]).to(x_BV.device)
    if not any(_temperature(row) for row in rows):
        return greedy_B
    # Inverse of the cumulative distribution, in float64 so that the tail is not rounded away.
    c_BV = _chances(x_BV, rows).double().cumsum(-1)
    total_B = c_BV[:, -1]
    # Kept below the total, where rounding would go past the last token that has a chance.
    below_B = torch.nextafter(total_B, torch.zeros_like(total_B))
    wanted_B = torch.minimum(_uniform(rows).to(x_BV.device) * total_B, below_B)
    drawn_B = torch.searchsorted(c_BV, wanted_B[:, None], right=True)[:, 0]
    return torch.where(hot_B, drawn_B.clamp_(max=x_BV.shape[1] - 1), greedy_B)


def _greedy(x_BV: Tensor) -> Tensor:
    """The lowest id among equals: argmax doesn't promise which one it takes."""
    vocab = x_BV.shape[1]
    tops_BV = x_BV == x_BV.amax(-1, keepdim=True)
    return torch.where(tops_BV, torch.arange(vocab, device=x_BV.device), vocab - 1).amin(-1)


def _chances(x_BV: Tensor, rows: Rows[Row]) -> Tensor:
    """p_BV after temperature and cuts; greedy rows at temperature 1."""
    divisors = [_temperature(row) or 1.0 for row in rows]
    scaled_BV = x_BV / torch.tensor(divisors, dtype=torch.float32, device=x_BV.device)[:, None]
    if any(is_cut(row.sequence.params) for row in rows):
        cut(scaled_BV, [row.sequence.params for row in rows])
    return scaled_BV.softmax(-1)


def _logprobs(logits_BV: Tensor, token_B: Tensor) -> Tensor:
    return logits_BV.gather(-1, token_B[:, None])[:, 0] - logits_BV.logsumexp(-1)


# ---- the others
def _special(logits_SV: Tensor, rows: Rows[Row]) -> list[Sampled]:
    x_SV, forced = _steer(logits_SV, rows)
    fused = ops.usable(logits_SV)
    token_S = _draw_fused(x_SV, rows) if fused else _draw(x_SV, rows)
    if any(token is not None for token in forced):
        drawn = token_S.tolist()
        chosen = [d if f is None else f for d, f in zip(drawn, forced, strict=True)]
        token_S = torch.tensor(chosen, device=logits_SV.device)
    if fused:  # from the kernel's log-probability of the likeliest token
        cold_S = torch.zeros(len(rows))
        top_S, top_logprob_S = ops.sample(logits_SV, cold_S, cold_S.double())
        rise_S = logits_SV.gather(1, torch.stack([token_S, top_S], 1)).double()
        logprob_S = (top_logprob_S + (rise_S[:, 0] - rise_S[:, 1])).float()
    else:
        logprob_S = _logprobs(logits_SV, token_S)
    tokens, logprobs = token_S.tolist(), logprob_S.tolist()
    tops = [
        top_logprobs(logits_V, k) if (k := row.sequence.params.top_logprobs) else []
        for logits_V, row in zip(logits_SV, rows, strict=True)
    ]
    return [Sampled(*each) for each in zip(tokens, logprobs, tops, strict=True)]


def _draw_fused(x_SV: Tensor, rows: Rows[Row]) -> Tensor:
    """`_draw` on the CPU: the kernel where nothing is cut, else the few tokens that are left."""
    token_S = torch.zeros(len(rows), dtype=torch.int64)
    cut_off = [is_cut(row.sequence.params) and _temperature(row) > 0 for row in rows]
    if uncut := [i for i, yes in enumerate(cut_off) if not yes]:
        token_S[uncut] = _fused(x_SV[uncut], [rows[i] for i in uncut])[0]
        for i in uncut:  # the kernel's exponential of -inf is small, not 0
            if x_SV[i, token_S[i]] == -torch.inf:
                token_S[i] = _draw(x_SV[i : i + 1], rows[i : i + 1])[0]
    uniform_S = _uniform(rows).numpy()
    for i in (i for i, yes in enumerate(cut_off) if yes):
        ids_C, weights_C = kept(x_SV[i].numpy(), rows[i].sequence.params, _temperature(rows[i]))
        upto_C = weights_C.cumsum()
        at = np.searchsorted(upto_C, uniform_S[i] * upto_C[-1], side="right")
        token_S[i] = int(ids_C[min(at, len(ids_C) - 1)])
    return token_S


def _steer(logits_SV: Tensor, rows: Rows[Row]) -> tuple[Tensor, list[int | None]]:
    """Logits after penalties, biases and what is forbidden; and the tokens that have to come."""
    steered = any(row.sequence.state is not None for row in rows)
    x_SV, forced = logits_SV.clone() if steered else logits_SV, list[int | None]()
    held = list[tuple[int, int]]()  # (row, token) where that is all there is to do: one write for all of them
    for i, row in enumerate(rows):
        state, only = row.sequence.state, None
        if isinstance(state, Steering):
            held_back = state.held_back(row.drafts)
            held += [(i, token) for token in held_back or ()]
            only = state.steer(x_SV[i], row.drafts) if held_back is None else None
        forced.append(only)
    if held:
        at_S, token_S = torch.tensor(held, device=x_SV.device).T
        x_SV[at_S, token_S] = -torch.inf
    return x_SV, forced


def top_logprobs(logits_V: Tensor, k: int) -> list[tuple[int, float]]:
    """The `k` likeliest tokens with their log-probabilities, falling; equals by lowest id."""
    k = min(k, len(logits_V))
    border = logits_V.topk(k).values[-1]
    ids = (logits_V >= border).nonzero()[:, 0]  # rising; more than k where the border is shared
    order = logits_V[ids].sort(descending=True, stable=True).indices[:k]
    chosen = ids[order]
    logprobs = logits_V[chosen] - logits_V.logsumexp(-1)
    return list(zip(chosen.tolist(), logprobs.tolist(), strict=True))
