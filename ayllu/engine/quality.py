"""What packing costs: the packed model beside the exact one, token by token on the same text.

Perplexity (Jelinek et al. 1977) says how well a text is foretold; the Kullback-Leibler divergence of the next
token's distribution, how far the packed model is from the exact one whether that was right or wrong; and the
agreement of the likeliest tokens, how often greedy text would go another way. The change of perplexity comes
from paired differences, so that its interval is that of the change and not of the text.

What a model was trained to foretell is near a minimum of its loss: rounding costs little there, and always
something. Elsewhere (what a user types, after SFT; plain text, for a model that unlearned it) the loss has
a slope, and rounding goes up or down it by chance: a change of perplexity there, of either sign, is no cost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ayllu.engine.batch import BLOCK, Batch
from ayllu.engine.executors.native import NativeExecutor
from ayllu.engine.packed import PackedModel

Z_95 = 1.96  # the normal quantile of a 95 % interval
STEP = 128  # tokens a step: the logits of so many stand side by side, in float32
WINDOW = 512  # tokens of a text at once


@dataclass(frozen=True)
class Text:
    """Token ids, and which of them the model is to foretell (None: all; of a conversation, what it says)."""

    ids: Sequence[int]
    counted: Sequence[bool] | None = None


def windows(texts: Sequence[Text], context: int, most: int) -> Iterator[Text]:
    """Pieces of texts, none longer than the context, about `most` tokens in all, from all texts alike."""
    length = min(context, WINDOW)
    pieces = [
        Text(t.ids[i : i + length], None if t.counted is None else t.counted[i : i + length])
        for t in texts
        for i in range(0, len(t.ids), length)
    ]
    pieces = [p for p in pieces if len(p.ids) > 1 and (p.counted is None or any(p.counted[1:]))]
    total = sum(len(piece.ids) for piece in pieces)
    step = max(1.0, total / most)
    for index in range(int(len(pieces) / step) or len(pieces[:1])):
        yield pieces[int(index * step)]


def compare(
    exact: PackedModel, packed: PackedModel, texts: Sequence[Text], *, most: int = 16_384
) -> dict[str, Any]:
    """The quality report of `packed` against `exact` over texts, none of which is empty.

    `kl_mean`, `kl_p99`: nats a token. `perplexity_change`: relative, with its 95 % interval; it says nothing
    where the exact model itself is `worse_than_chance`.
    """
    context = packed.config.context
    # The exact model keeps an exact cache; the packed one that which it runs with.
    both = [NativeExecutor(exact, cache="float32"), NativeExecutor(packed)]
    for executor in both:
        executor.reserve(-(-min(context, WINDOW) // BLOCK))
    losses: list[Tensor] = []
    divergences: list[Tensor] = []
    agreed = 0
    for text in windows(texts, context, most):
        piece, counted = list(text.ids), text.counted or [True] * len(text.ids)
        for start in range(0, len(piece) - 1, STEP):
            end = min(start + STEP, len(piece) - 1)
            wanted = [i - start for i in range(start, end) if counted[i + 1]]
            batch = _batch(piece, start, end, wanted)
            next_L = torch.tensor([piece[start + i + 1] for i in wanted], dtype=torch.int64)[:, None]
            exact_LV, packed_LV = (e.step(batch).double().log_softmax(-1) for e in both)
            losses.append(-torch.cat([exact_LV.gather(1, next_L), packed_LV.gather(1, next_L)], 1))
            divergences.append((exact_LV.exp() * (exact_LV - packed_LV)).sum(-1))
            agreed += int((exact_LV.argmax(-1) == packed_LV.argmax(-1)).sum())
    loss_T2, kl_T = torch.cat(losses), torch.cat(divergences)
    tokens = len(kl_T)
    difference_T = loss_T2[:, 1] - loss_T2[:, 0]
    mean = float(difference_T.mean())
    spread = Z_95 * float(difference_T.std()) / math.sqrt(tokens) if tokens > 1 else math.inf
    return {
        "tokens": tokens,
        "perplexity_float32": math.exp(float(loss_T2[:, 0].mean())),
        "perplexity": math.exp(float(loss_T2[:, 1].mean())),
        "perplexity_change": math.expm1(mean),
        "worse_than_chance": float(loss_T2[:, 0].mean()) > math.log(packed.config.vocab_size),
        "perplexity_change_95": [math.expm1(mean - spread), math.expm1(mean + spread)],
        "kl_mean": float(kl_T.mean()),
        "kl_p99": float(np.quantile(kl_T.numpy(), 0.99)),
        "top1_agreement": agreed / tokens,
    }


def _batch(piece: list[int], start: int, end: int, wanted: list[int]) -> Batch:
    """Tokens start to end of one text, whose blocks are the first ones."""
    count = end - start
    return Batch(
        np.array(piece[start:end], dtype=np.int32),
        np.arange(start, end, dtype=np.int32),
        np.zeros(count, dtype=np.int32),
        np.arange(-(-len(piece) // BLOCK), dtype=np.int32)[None],
        np.array(wanted, dtype=np.int32),
    )
