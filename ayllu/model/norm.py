"""RMSNorm (Zhang & Sennrich 2019): scale by the root mean square, no mean, no bias. LayerNorm (Ba et al.
2016): also subtract the mean."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ayllu.model.config import ModelConfig
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
        return (l2_norm(x.float(), self.eps) * self.weight.float()).to(x.dtype)


class LayerNorm(nn.Module):
    """y = (x - mean(x)) / sqrt(var(x) + eps) * weight [+ bias], computed in float32."""

    def __init__(self, width: int, eps: float, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., width), any float type -> the same shape and type."""
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(x.float(), x.shape[-1:], self.weight.float(), bias, self.eps).to(x.dtype)


def block_norm(config: ModelConfig) -> RMSNorm | LayerNorm:
    """The norm of the residual stream."""
    if config.norm == "rms":
        return RMSNorm(config.width, config.norm_eps)
    return LayerNorm(config.width, config.norm_eps, bias=config.norm_bias)


def l2_norm(x: Tensor, eps: float) -> Tensor:
    """RMSNorm without weights; float32 in between."""
    x32 = x.float()
    return (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
