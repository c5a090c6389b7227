"""The feed-forward half of a block: gated (GLU variants, Shazeer 2020) or plain."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from ayllu.model.config import MLPSpec
from ayllu.native import ops


def _relu2(x: Tensor) -> Tensor:
    """Squared ReLU (Primer, So et al. 2021)."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu2": _relu2,
}


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """x @ weight.T + bias, the weights cast to x's type where they are used."""
    bias = None if layer.bias is None else layer.bias.to(x.dtype)
    return F.linear(x, layer.weight.to(x.dtype), bias)


def gated(gate_up: Tensor, activation: str) -> Tensor:
    """f(gate) * up of a joint projection (..., 2 * hidden) -> (..., hidden)."""
    if activation == "silu" and ops.usable(gate_up):
        return ops.swiglu(gate_up)
    gate, up = gate_up.chunk(2, -1)
    return ACTIVATIONS[activation](gate) * up


class MLP(nn.Module):
    """Gate and up come from one matrix product."""

    def __init__(self, width: int, spec: MLPSpec) -> None:
        super().__init__()
        self.spec = spec
        if spec.gated:
            self.gate_up = nn.Linear(width, 2 * spec.hidden, bias=spec.bias)
        else:
            self.up = nn.Linear(width, spec.hidden, bias=spec.bias)
        self.down = nn.Linear(spec.hidden, width, bias=spec.bias)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """x_BTC -> the same shape."""
        if self.spec.gated:
            return linear(gated(linear(x_BTC, self.gate_up), self.spec.activation), self.down)
        return linear(ACTIVATIONS[self.spec.activation](linear(x_BTC, self.up)), self.down)
