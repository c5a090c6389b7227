"""SwiGLU (Shazeer 2020): down(silu(gate(x)) * up(x))."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ayllu.model.config import LayerSpec, ModelConfig
from ayllu.native import ops


class SwiGLU(nn.Module):
    """Gate and up come from one matrix product."""

    def __init__(self, config: ModelConfig, spec: LayerSpec) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.width, 2 * spec.hidden, bias=False)
        self.down = nn.Linear(spec.hidden, config.width, bias=False)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """x_BTC -> the same shape."""
        gate_up = F.linear(x_BTC, self.gate_up.weight.to(x_BTC.dtype))
        if ops.usable(gate_up):
            y = ops.swiglu(gate_up)
        else:
            gate, up = gate_up.chunk(2, -1)
            y = F.silu(gate) * up
        return F.linear(y, self.down.weight.to(x_BTC.dtype))
