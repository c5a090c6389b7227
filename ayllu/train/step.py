"""The one training step: forward, loss, backward, update."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ayllu.errors import TrainingStoppedError
from ayllu.model.decoder import Decoder
from ayllu.train.losses import head_loss
from ayllu.train.optim import Optimizer

_BLOCK = 128  # rows of the head


@dataclass(frozen=True)
class Batch:
    """Rows of tokens. `targets` are the next tokens; `weights` the loss mask (or advantages);
    `document` numbers the document of each position: attention never crosses it. Logits are divided by
    `temperature` before the softmax: what was sampled at another than 1 is learnt as it was sampled."""

    tokens_BT: Tensor
    targets_BT: Tensor
    weights_BT: Tensor
    document_BT: Tensor | None = None
    temperature: float = 1.0


@dataclass(frozen=True)
class StepResult:
    """`loss`: sum(weights * losses); `nats`: plain mean over weighted positions; `entropy` likewise;
    `grad_norm`: length of the whole update's gradient, where it was asked for."""

    loss: float
    nats: float
    entropy: float
    tokens: int  # positions of the batch
    trained: int  # positions with a weight
    grad_norm: float = math.nan


def backward(model: Decoder, batch: Batch, dtype: torch.dtype, *, exact_logits: bool = False) -> StepResult:
    """Add the gradient of sum(weights * losses) to the weights' gradients.

    `exact_logits`: logits and softmax in float32 whatever `dtype` is, so that no probability is rounded to
    eight bits beside those that the engine sampled with (what RL needs: MiniMax-M1, arXiv 2506.13585).
    """
    states_BTC = model.states(batch.tokens_BT, document_BT=batch.document_BT, dtype=dtype)
    weights_N = batch.weights_BT.flatten()
    states_NC, targets_N = states_BTC.flatten(0, 1), batch.targets_BT.flatten()
    rows = weights_N.nonzero()[:, 0]  # the head is only computed where the loss looks
    trained = len(rows)
    if trained < len(weights_N):
        rows = _whole_blocks(rows, weights_N)
        states_NC, targets_N, weights_N = (x.index_select(0, rows) for x in (states_NC, targets_N, weights_N))
    if exact_logits:
        states_NC = states_NC.float()
    loss, losses_N, entropy_N = head_loss(
        states_NC, model.head_weight, targets_N, weights_N, model.config.logit_softcap, batch.temperature
    )
    loss.backward()
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingStoppedError(
            "the loss is not a number any more", fix="lower the learning rate of this stage in the recipe"
        )
    nats, entropy = (float(x[:trained].mean()) for x in (losses_N, entropy_N))
    return StepResult(value, nats, entropy, batch.weights_BT.numel(), trained)


def _whole_blocks(rows: Tensor, weights_N: Tensor) -> Tensor:
    """`rows` and behind them as many without a weight as make their number one of a few: for every new size
    oneDNN makes and keeps kernels, and buffers of ever different sizes leave the heap in fragments."""
    missing = -len(rows) % _BLOCK
    return torch.cat([rows, (weights_N == 0).nonzero()[:missing, 0]])


def train_step(
    model: Decoder,
    optimizer: Optimizer,
    batches: list[Batch],
    lr_scale: float,
    dtype: torch.dtype,
    *,
    exact_logits: bool = False,
    max_grad_norm: float | None = None,
) -> list[StepResult]:
    """One update from the summed gradients of `batches`. With `max_grad_norm` their length is measured, and a
    longer one shortened to it (Pascanu et al. 2013); infinity only measures."""
    results = [backward(model, batch, dtype, exact_logits=exact_logits) for batch in batches]
    if results and max_grad_norm is not None:
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm))
        results = [replace(result, grad_norm=norm) for result in results]
    if results:  # without a gradient old momentum would still move the weights
        optimizer.step(lr_scale)
    return results
