"""Multi-head latent attention (MLA): DeepSeek-V2, 2405.04434, section 2.1.

Keys and values of all heads are made from one latent of `kv_rank` channels per token. A rotary position
would come between the latent and the keys, so that it goes into `rope_dim` channels of their own: one
rotary key per token for all heads. Latent and rotary key are all that a cache stores.

There are two ways to compute the same scores. Without a cache (training, parity tests) keys and values
are expanded, which is cheapest where many queries share them. With a cache the key matrix is moved to
the queries' side, q . (W latent) = (W^T q) . latent, and the value matrix behind the attention: the
cached latents are used as they are, as the one key-value head of a multi-query attention.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ayllu.model.attention import LayerCache, Place, attend
from ayllu.model.config import LatentSpec, ModelConfig
from ayllu.model.mlp import linear
from ayllu.model.norm import RMSNorm
from ayllu.model.rope import rotate

# The norms of the latents keep this constant whatever the config says of the others; so do DeepSeek's
# published code and transformers.
_EPS = 1e-6


class LatentAttention(nn.Module):
    """State names: q or q_down, q_norm, q_up; kv_down, kv_norm, kv_up; out."""

    def __init__(self, config: ModelConfig, spec: LatentSpec) -> None:
        super().__init__()
        self.spec = spec
        q_channels = spec.heads * (spec.nope_dim + spec.rope_dim)
        if spec.q_rank is None:
            self.q = nn.Linear(config.width, q_channels, bias=False)
        else:
            self.q_down = nn.Linear(config.width, spec.q_rank, bias=spec.bias)
            self.q_norm = RMSNorm(spec.q_rank, _EPS)
            self.q_up = nn.Linear(spec.q_rank, q_channels, bias=False)
        self.kv_down = nn.Linear(config.width, spec.kv_rank + spec.rope_dim, bias=spec.bias)
        self.kv_norm = RMSNorm(spec.kv_rank, _EPS)
        self.kv_up = nn.Linear(spec.kv_rank, spec.heads * (spec.nope_dim + spec.v_dim), bias=False)
        self.out = nn.Linear(spec.out_channels, config.width, bias=spec.bias)

    def forward(self, x_BTC: Tensor, place: Place, cache: LayerCache | None) -> Tensor:
        """x_BTC -> the same shape."""
        spec = self.spec
        cos_BT1D, sin_BT1D = (table[:, :, None].to(x_BTC.dtype) for table in place.rope(spec.rope))
        q_nope_BTHN, q_rope_BTHD = (
            self.queries(x_BTC).unflatten(-1, (spec.heads, -1)).split([spec.nope_dim, spec.rope_dim], -1)
        )
        latent_BTL, k_rope_BTD = linear(x_BTC, self.kv_down).split([spec.kv_rank, spec.rope_dim], -1)
        latent_BTL = self.kv_norm(latent_BTL)
        pairs = spec.rope.interleaved
        q_rope_BTHD = rotate(q_rope_BTHD, cos_BT1D, sin_BT1D, interleaved=pairs)
        k_rope_BT1D = rotate(k_rope_BTD[:, :, None], cos_BT1D, sin_BT1D, interleaved=pairs)
        if cache is None:
            k_nope_BTHN, v_BTHV = (
                linear(latent_BTL, self.kv_up)
                .unflatten(-1, (spec.heads, -1))
                .split([spec.nope_dim, spec.v_dim], -1)
            )
            q_BTHD = torch.cat([q_nope_BTHN, q_rope_BTHD], -1)
            k_BTHD = torch.cat([k_nope_BTHN, k_rope_BT1D.expand(-1, -1, spec.heads, -1)], -1)
            y_BTHV = attend(q_BTHD, k_BTHD, v_BTHV, spec, place)
        else:
            up_HXL = self.kv_up.weight.to(x_BTC.dtype).unflatten(0, (spec.heads, -1))
            key_HNL, value_HVL = up_HXL.split([spec.nope_dim, spec.v_dim], 1)
            q_latent_BTHL = torch.einsum("bthn,hnl->bthl", q_nope_BTHN, key_HNL)
            q_BTHX = torch.cat([q_latent_BTHL, q_rope_BTHD], -1)
            k_BT1X = torch.cat([latent_BTL[:, :, None], k_rope_BT1D], -1)
            y_BTHL = cache.attend(q_BTHX, k_BT1X, None)
            y_BTHV = torch.einsum("bthl,hvl->bthv", y_BTHL, value_HVL)
        return linear(y_BTHV.flatten(-2), self.out)

    def queries(self, x_BTC: Tensor) -> Tensor:
        """x_BTC -> (B, T, heads * (nope_dim + rope_dim)), before positions."""
        if self.spec.q_rank is None:
            return linear(x_BTC, self.q)
        return linear(self.q_norm(linear(x_BTC, self.q_down)), self.q_up)
