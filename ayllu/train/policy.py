"""Policy losses as a table: what makes GRPO, DAPO, Dr. GRPO, CISPO and GSPO differ, and nothing else.

All of them raise the probability of answers that did better than their group. They differ in three
places: what an advantage is divided by, how the ratio r = p_new / p_old of a token (or of a whole
answer) is bounded, and over what the tokens are averaged.

    grpo     Shao et al. 2024 (arXiv 2402.03300): min(r A, clip(r, 1 - low, 1 + high) A). Here as later
             work settled on it: over a constant, advantages over the batch's deviation.
    dr_grpo  Liu et al. 2025 (2503.20783): the same over a constant, advantages over nothing, because
             both divisions of the original favour some problems and some lengths.
    dapo     Yu et al. 2025 (2503.14476): a higher upper bound (0.28), over the number of tokens,
             advantages over the group's deviation.
    cispo    MiniMax 2025 (2506.13585): sg(min(r, 1 + high)) A log p: the weight is bounded, but no
             token loses its gradient; over the number of tokens.
    gspo     Zheng et al. 2025 (2507.18071): the answer's ratio s = exp(mean log r) with bounds of a few
             10^-4; min(s A, clip(s) A), averaged over answers.

The gradient of any of them is a sum over tokens of a weight times the gradient of -log p, with the weight
-d loss / d log p. So a loss is used as the weights of the one training step (losses.py), exactly: first
the weights from log-probabilities that are known, then one forward and backward with these weights. In
the first update of a batch new and old probabilities are the same and every ratio is 1; in later ones
(off-policy) the new log-probabilities come from a forward pass without gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ayllu.model.decoder import Decoder
from ayllu.train.step import Batch

_ROWS = 4096  # logits of a piece: 64 MB at 4,096 pieces of vocabulary


@dataclass(frozen=True)
class Tokens:
    """Sampled tokens of some answers, one after another, with log-probabilities in nats.

    `answer_N`: the number of each token's answer, from 0; `scale`: what sums are multiplied with where the
    loss doesn't count tokens: one over (answers of a whole minibatch times a usual length).
    """

    new_N: Tensor
    old_N: Tensor
    advantage_N: Tensor
    answer_N: Tensor
    scale: float


@dataclass(frozen=True)
class Clip:
    """Ratios may go down to 1 - low and up to 1 + high."""

    low: float
    high: float


@dataclass(frozen=True)
class PolicyLoss:
    """A row of the table: the loss, what advantages are divided by, and its paper's bounds."""

    loss: Callable[[Tokens, Clip], Tensor]
    deviation: str  # "batch", "group" or "none"
    clip: Clip


def _ratio(tokens: Tokens) -> Tensor:
    return (tokens.new_N - tokens.old_N).exp()


def _pessimistic(ratio: Tensor, advantage: Tensor, clip: Clip) -> Tensor:
    """min(r A, clip(r) A): PPO's objective (Schulman et al. 2017, eq. 7)."""
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip.low, 1 + clip.high) * advantage)


def _over_constant(tokens: Tokens, clip: Clip) -> Tensor:
    return -_pessimistic(_ratio(tokens), tokens.advantage_N, clip).sum() * tokens.scale


def _over_tokens(tokens: Tokens, clip: Clip) -> Tensor:
    return -_pessimistic(_ratio(tokens), tokens.advantage_N, clip).mean()


def _cispo(tokens: Tokens, clip: Clip) -> Tensor:
    weight_N = _ratio(tokens).detach().clamp(max=1 + clip.high)
    return -(weight_N * tokens.advantage_N * tokens.new_N).mean()


def _gspo(tokens: Tokens, clip: Clip) -> Tensor:
    answers, length_A = torch.unique(tokens.answer_N, return_counts=True)
    zeros_A = tokens.new_N.new_zeros(int(answers[-1]) + 1)
    lengths_A = zeros_A.index_copy(0, answers, length_A.to(zeros_A.dtype)).clamp(min=1)
    log_A = zeros_A.index_add(0, tokens.answer_N, tokens.new_N - tokens.old_N) / lengths_A
    advantage_A = zeros_A.index_copy(0, tokens.answer_N, tokens.advantage_N)  # the same at all its tokens
    return -_pessimistic(log_A.exp(), advantage_A, clip)[answers].mean()


POLICY_LOSSES: dict[str, PolicyLoss] = {
    "grpo": PolicyLoss(_over_constant, "batch", Clip(0.2, 0.2)),
    "dr_grpo": PolicyLoss(_over_constant, "none", Clip(0.2, 0.2)),
    "dapo": PolicyLoss(_over_tokens, "group", Clip(0.2, 0.28)),
    "cispo": PolicyLoss(_cispo, "group", Clip(1.0, 4.0)),  # no lower bound; ratios up to 5
    "gspo": PolicyLoss(_gspo, "group", Clip(3e-4, 4e-4)),
}


def scaled_advantages(rewards: list[list[float]], deviation: str = "batch") -> list[list[float]]:
    """Rewards of each group minus the group's mean, over the deviation of the whole batch, of the group,
    or over nothing. A deviation of 0 divides by 1."""
    centred = [np.array(group) - np.mean(group) for group in rewards]
    batch = float(np.concatenate(centred).std()) or 1.0
    by = {"batch": lambda c: batch, "group": lambda c: float(c.std()) or 1.0, "none": lambda c: 1.0}
    return [(c / by[deviation](c)).tolist() for c in centred]


def token_weights(loss: PolicyLoss, tokens: Tokens, clip: Clip | None = None) -> Tensor:
    """-d loss / d log p of each token: what its -log p is to be multiplied with, float64 in, float64 out."""
    new_N = tokens.new_N.detach().clone().requires_grad_(True)
    moved = Tokens(new_N, tokens.old_N, tokens.advantage_N, tokens.answer_N, tokens.scale)
    (gradient_N,) = torch.autograd.grad(loss.loss(moved, clip or loss.clip), new_N)
    return -gradient_N


@torch.no_grad()
def log_probabilities(model: Decoder, batch: Batch, dtype: torch.dtype) -> Tensor:
    """log p of the targets (B, T) under the model as it is, 0 where a position has no weight.

    Logits are float32 and over the whole vocabulary, as those that the engine samples from.
    """
    states_NC = model.states(batch.tokens_BT, document_BT=batch.document_BT, dtype=dtype).flatten(0, 1)
    rows = batch.weights_BT.flatten().nonzero()[:, 0]
    targets_N = batch.targets_BT.flatten()
    found = torch.zeros(targets_N.shape, dtype=torch.float32, device=targets_N.device)
    head_VC, cap = model.head_weight.float(), model.config.logit_softcap
    for piece in rows.split(_ROWS):
        logits = F.linear(states_NC[piece].float(), head_VC)
        if cap is not None:
            logits = cap * torch.tanh(logits / cap)
        found[piece] = logits.log_softmax(-1).gather(-1, targets_N[piece, None])[:, 0]
    return found.view(batch.targets_BT.shape)
