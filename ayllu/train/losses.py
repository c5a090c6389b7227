"""Weighted cross-entropy of the next token: the one loss of pretraining, SFT and RL.

With weights that sum to one over the batch it is the mean negative log-likelihood; with advantages
as weights its gradient is the policy gradient (Williams 1992), since d(-A log p) is what both need.

On the CPU the logits never exist as a whole: rows go through head, softmax, gradient and back in pieces
that stay in the cache (the idea of fused linear cross-entropy kernels). Elsewhere they do up to a gigabyte.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from ayllu.native import ops

_LOGITS = 1 << 28  # of a piece in float32: 1 GB
_ROWS = {torch.bfloat16: 2048, torch.float32: 1024}  # of a piece: 16 MB of logits with a vocabulary of 4,096


@functools.cache
def _logits_buffer(vocab: int, dtype: torch.dtype) -> Tensor:
    """One piece of logits, used again by every step: pieces of ever different sizes would leave the
    heap in fragments."""
    return torch.empty(_ROWS[dtype], vocab, dtype=dtype)


class _FusedHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states_NC: Tensor, head_VC: Tensor, targets_N: Tensor, weights_N: Tensor) -> Any:
        head = head_VC.to(states_NC.dtype)
        d_states = torch.empty_like(states_NC)
        d_head = torch.empty_like(head_VC) if len(states_NC) else torch.zeros_like(head_VC)
        losses, entropies = [], []
        rows = _ROWS[head.dtype]
        for first in range(0, states_NC.shape[0], rows):
            piece = slice(first, first + rows)
            x = states_NC[piece]
            logits = torch.mm(x, head.T, out=_logits_buffer(len(head), head.dtype)[: len(x)])
            loss, entropy = ops.cross_entropy_(
                logits, targets_N[piece].contiguous(), weights_N[piece].contiguous()
            )
            losses.append(loss)
            entropies.append(entropy)
            torch.mm(logits, head, out=d_states[piece])
            gradient_VC = logits.T @ x
            if first:
                d_head += gradient_VC
            else:
                d_head.copy_(gradient_VC)
        loss_N = torch.cat(losses) if losses else weights_N.new_zeros(0)
        ctx.save_for_backward(d_states, d_head)
        entropy_N = torch.cat(entropies) if entropies else weights_N.new_zeros(0)
        ctx.mark_non_differentiable(loss_N, entropy_N)
        return (loss_N * weights_N).sum(), loss_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, None, None]:
        d_states, d_head = ctx.saved_tensors
        if float(scale) == 1.0:  # as in every training step: spare two passes over memory
            return d_states, d_head, None, None
        return d_states * scale.to(d_states.dtype), d_head * scale, None, None


def head_loss(
    states_NC: Tensor,
    head_VC: Tensor,
    targets_N: Tensor,
    weights_N: Tensor,
    softcap: float | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """(sum of weights * losses with gradient; losses_N; entropies_N in nats, both detached, float32).

    `softcap`: the model's `logit_softcap`. `temperature`: what logits are divided by before the softmax."""
    if softcap is None and temperature != 1.0:
        # The head is linear: dividing its input is dividing the logits.
        states_NC, temperature = states_NC / temperature, 1.0
    if softcap is None and ops.usable(states_NC):
        return _FusedHeadLoss.apply(states_NC, head_VC, targets_N, weights_N)
    most = max(1, _LOGITS // len(head_VC))
    if len(states_NC) <= most:
        return _plain_head_loss(states_NC, head_VC, targets_N, weights_N, softcap, temperature)
    # Beyond a gigabyte of them logits are made anew for the gradient, a piece at a time.
    pieces = [
        checkpoint(_plain_head_loss, x, head_VC, y, w, softcap, temperature, use_reentrant=False)
        for x, y, w in zip(states_NC.split(most), targets_N.split(most), weights_N.split(most), strict=True)
    ]
    loss, losses, entropies = zip(*pieces, strict=True)
    return torch.stack(loss).sum(), torch.cat(losses), torch.cat(entropies)


def _plain_head_loss(
    states_NC: Tensor,
    head_VC: Tensor,
    targets_N: Tensor,
    weights_N: Tensor,
    softcap: float | None,
    temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    logits_NV = F.linear(states_NC, head_VC.to(states_NC.dtype)).float()
    if softcap is not None:
        logits_NV = softcap * torch.tanh(logits_NV / softcap) / temperature
    log_p_NV = logits_NV.log_softmax(-1)
    loss_N = -log_p_NV.gather(-1, targets_N[:, None])[:, 0]
    with torch.no_grad():
        entropy_N = -(log_p_NV.exp() * log_p_NV).sum(-1)
    return (loss_N * weights_N).sum(), loss_N.detach(), entropy_N
