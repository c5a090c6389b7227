"""Causal grouped-query attention with rotary positions and optional query-key norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from ayllu.model.config import LayerSpec, ModelConfig
from ayllu.model.norm import RMSNorm
from ayllu.model.rope import rotate
from ayllu.native import ops


class LayerCache(Protocol):
    """What the engine puts in place of the plain causal attention while it decodes."""

    def attend(self, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGD: Tensor) -> Tensor:
        """Store the new keys and values, attend to all stored ones -> (B, T, H, D)."""


@dataclass(frozen=True)
class Place:
    """Where the tokens stand: rotary tables, and which earlier tokens each one may attend to.

    `starts_BT` (int32, for the fused kernel) or `mask_B1TT` (True = may attend, for torch's) hold
    the document borders; with neither, plain causality.
    """

    cos_BTD: Tensor
    sin_BTD: Tensor
    mask_B1TT: Tensor | None = None
    starts_BT: Tensor | None = None


class Attention(nn.Module):
    """Queries, keys and values come from one matrix product; `out` mixes the heads."""

    def __init__(self, config: ModelConfig, spec: LayerSpec) -> None:
        super().__init__()
        self.spec, self.eps = spec, config.norm_eps
        self.qkv = nn.Linear(config.width, (spec.heads + 2 * spec.kv_heads) * spec.head_dim, bias=False)
        self.out = nn.Linear(spec.heads * spec.head_dim, config.width, bias=False)
        self.q_norm = RMSNorm(spec.head_dim, config.norm_eps) if spec.qk_norm else None
        self.k_norm = RMSNorm(spec.head_dim, config.norm_eps) if spec.qk_norm else None

    def forward(self, x_BTC: Tensor, place: Place, cache: LayerCache | None) -> Tensor:
        """x_BTC -> the same shape."""
        spec = self.spec
        b, t, _ = x_BTC.shape
        qkv_BTX = F.linear(x_BTC, self.qkv.weight.to(x_BTC.dtype))
        if cache is None and place.starts_BT is not None:
            y_BTX = ops.attention(
                qkv_BTX,
                self.q_norm.weight if self.q_norm is not None else None,
                self.k_norm.weight if self.k_norm is not None else None,
                place.cos_BTD[0],
                place.sin_BTD[0],
                place.starts_BT,
                heads=spec.heads,
                kv_heads=spec.kv_heads,
                eps=self.eps,
            )
            return F.linear(y_BTX, self.out.weight.to(x_BTC.dtype))
        q_BTHD, k_BTGD, v_BTGD = qkv_BTX.view(b, t, -1, spec.head_dim).split(
            [spec.heads, spec.kv_heads, spec.kv_heads], 2
        )
        if self.q_norm is not None and self.k_norm is not None:
            q_BTHD, k_BTGD = self.q_norm(q_BTHD), self.k_norm(k_BTGD)
        cos_BT1D, sin_BT1D = (table[:, :, None].to(x_BTC.dtype) for table in (place.cos_BTD, place.sin_BTD))
        q_BTHD, k_BTGD = rotate(q_BTHD, cos_BT1D, sin_BT1D), rotate(k_BTGD, cos_BT1D, sin_BT1D)
        if cache is not None:
            y_BTHD = cache.attend(q_BTHD, k_BTGD, v_BTGD)
        else:
            y_BTHD = F.scaled_dot_product_attention(
                q_BTHD.transpose(1, 2),
                k_BTGD.transpose(1, 2),
                v_BTGD.transpose(1, 2),
                attn_mask=place.mask_B1TT,
                is_causal=place.mask_B1TT is None,
                enable_gqa=spec.heads != spec.kv_heads,
            ).transpose(1, 2)
        return F.linear(y_BTHD.reshape(b, t, -1), self.out.weight.to(x_BTC.dtype))
