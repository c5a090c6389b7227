"""RMSNorm (Zhang & Sennrich 2019): scale by the root mean square, no mean, no bias."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ayllu.native import ops


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * weight over the last dimension, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., width), any float type -> the same shape and type."""
        if ops.usable(x):
            return ops.rms_norm(x, self.weight, self.eps)
        x32 = x.float()
        scale = torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return (x32 * scale * self.weight.float()).to(x.dtype)
