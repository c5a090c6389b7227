"""Causal attention with multi-head, grouped and multi-query heads, and where tokens stand for it.

Vaswani et al. 2017; grouped queries: Ainslie et al. 2023; windows: Beltagy et al. 2020, Jiang et al. 2023.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ayllu.model.config import AttentionSpec, LatentSpec, ModelConfig, RopeSpec, Temperature
from ayllu.model.mlp import linear
from ayllu.model.norm import RMSNorm, l2_norm
from ayllu.model.rope import rope_tables, rotate
from ayllu.native import ops


class LayerCache(Protocol):
    """What the engine puts in place of the plain causal attention while it decodes."""

    def attend(self, q_BTHD: Tensor, k_BTGD: Tensor, v_BTGE: Tensor | None) -> Tensor:
        """Store the new keys and values, attend to all stored ones -> (B, T, H, E).

        Without values, the first channels of the keys are the values (`CacheShape.shared`)."""


class Place:
    """Where the tokens of a batch stand: their positions, and which earlier ones each may attend to.

    Rotary tables and masks are made once for each distinct layer pattern. `positions_BT` may have one row
    for all. `document_BT`: tokens attend only to earlier tokens with the same number (packed rows).
    """

    def __init__(self, positions_BT: Tensor, document_BT: Tensor | None, starts_BT: Tensor | None) -> None:
        self.positions_BT, self.document_BT = positions_BT, document_BT
        self.starts_BT = starts_BT  # int32, first visible position: set when the fused kernel may be used
        self._tables: dict[RopeSpec, tuple[Tensor, Tensor]] = {}
        self._masks: dict[tuple[int | None, int | None], Tensor | None] = {}

    def rope(self, spec: RopeSpec) -> tuple[Tensor, Tensor]:
        """cos_BTD and sin_BTD, float32."""
        if spec not in self._tables:
            self._tables[spec] = rope_tables(spec, self.positions_BT)
        return self._tables[spec]

    def mask(self, window: int | None, chunk: int | None) -> Tensor | None:
        """mask_B1TT (True: may attend), or None for plain causality."""
        t = self.positions_BT.shape[1]
        window = None if window is not None and window >= t else window
        chunk = None if chunk is not None and self.document_BT is None and chunk >= t else chunk
        if (window, chunk) not in self._masks:
            self._masks[window, chunk] = self._mask(window, chunk)
        return self._masks[window, chunk]

    def _mask(self, window: int | None, chunk: int | None) -> Tensor | None:
        if window is None and chunk is None and self.document_BT is None:
            return None
        index_T = torch.arange(self.positions_BT.shape[1], device=self.positions_BT.device)
        visible_BTT = visible(index_T[None, :, None], index_T[None, None, :], window, None)
        if chunk is not None:
            own_BT = self.positions_BT // chunk
            visible_BTT = visible_BTT & (own_BT[:, :, None] == own_BT[:, None, :])
        if self.document_BT is not None:
            visible_BTT = visible_BTT & (self.document_BT[:, :, None] == self.document_BT[:, None, :])
        return visible_BTT[:, None]


def visible(query: Tensor, key: Tensor, window: int | None, chunk: int | None) -> Tensor:
    """Whether a query at one position may see a key at another (broadcast together)."""
    seen = key <= query
    if window is not None:
        seen = seen & (query - key < window)
    if chunk is not None:
        seen = seen & (query // chunk == key // chunk)
    return seen


class Attention(nn.Module):
    """Queries, keys and values come from one matrix product; `out` mixes the heads."""

    def __init__(self, config: ModelConfig, spec: AttentionSpec) -> None:
        super().__init__()
        self.spec, self.eps = spec, config.norm_eps
        joint = (spec.heads + 2 * spec.kv_heads) * spec.head_dim
        self.qkv = nn.Linear(config.width, joint, bias=spec.bias)
        self.out = nn.Linear(spec.out_channels, config.width, bias=spec.out_bias)
        learned = spec.qk_norm == "rms"
        self.q_norm = RMSNorm(spec.head_dim, config.norm_eps) if learned else None
        self.k_norm = RMSNorm(spec.head_dim, config.norm_eps) if learned else None

    def forward(self, x_BTC: Tensor, place: Place, cache: LayerCache | None) -> Tensor:
        """x_BTC -> the same shape."""
        spec = self.spec
        b, t, _ = x_BTC.shape
        qkv_BTX = linear(x_BTC, self.qkv)
        if cache is None and place.starts_BT is not None and fusable(spec):
            assert spec.rope is not None
            cos_BTD, sin_BTD = place.rope(spec.rope)
            y_BTX = ops.attention(
                qkv_BTX,
                self.q_norm.weight if self.q_norm is not None else None,
                self.k_norm.weight if self.k_norm is not None else None,
                cos_BTD[0],
                sin_BTD[0],
                place.starts_BT,
                heads=spec.heads,
                kv_heads=spec.kv_heads,
                eps=self.eps,
            )
            return linear(y_BTX, self.out)
        q_BTHD, k_BTGD, v_BTGD = qkv_BTX.view(b, t, -1, spec.head_dim).split(
            [spec.heads, spec.kv_heads, spec.kv_heads], 2
        )
        if self.q_norm is not None and self.k_norm is not None:
            q_BTHD, k_BTGD = self.q_norm(q_BTHD), self.k_norm(k_BTGD)
        if spec.rope is not None:
            cos_BT1D, sin_BT1D = (table[:, :, None].to(x_BTC.dtype) for table in place.rope(spec.rope))
            pairs = spec.rope.interleaved
            q_BTHD = rotate(q_BTHD, cos_BT1D, sin_BT1D, pairs)
            k_BTGD = rotate(k_BTGD, cos_BT1D, sin_BT1D, pairs)
        if spec.qk_norm == "l2":
            q_BTHD, k_BTGD = l2_norm(q_BTHD, self.eps), l2_norm(k_BTGD, self.eps)
        if spec.temperature is not None:
            growth_BT = query_growth(place.positions_BT, spec.temperature)
            q_BTHD = (q_BTHD * growth_BT[:, :, None, None]).to(x_BTC.dtype)
        if cache is not None:
            y_BTHD = cache.attend(q_BTHD, k_BTGD, v_BTGD)
        else:
            y_BTHD = attend(q_BTHD, k_BTGD, v_BTGD, spec, place)
        return linear(y_BTHD.reshape(b, t, -1), self.out)


def fusable(spec: AttentionSpec) -> bool:
    """Whether the fused training kernel computes this attention: rotate-half over whole heads, plain
    causality, the usual scale."""
    return (
        spec.rope is not None
        and not spec.rope.interleaved
        and spec.rope.dim == spec.head_dim
        and spec.qk_norm in ("", "rms")
        and (spec.window, spec.chunk, spec.scale, spec.softcap, spec.temperature) == (None,) * 5
    )


def query_growth(positions_BT: Tensor, temperature: Temperature) -> Tensor:
    """What queries are multiplied by at each position (float32), so that attention over very long texts
    stays sharp (Llama 4; Nakanishi 2025, 2501.19399)."""
    steps_BT = torch.floor((positions_BT.float() + 1.0) / temperature.floor)
    return torch.log1p(steps_BT) * temperature.scale + 1.0


def attend(
    q_BTHD: Tensor, k_BTGD: Tensor, v_BTGE: Tensor, spec: AttentionSpec | LatentSpec, place: Place
) -> Tensor:
    """Attention inside one batch, without a cache -> (B, T, H, E)."""
    mask_B1TT = place.mask(spec.window, spec.chunk)
    return scaled_attention(q_BTHD, k_BTGD, v_BTGE, mask_B1TT, spec.score_scale, spec.softcap)


def scaled_attention(
    q_BTHD: Tensor,
    k_BSGD: Tensor,
    v_BSGE: Tensor,
    mask_B1TS: Tensor | None,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """softmax(q k^T * scale) v over grouped heads -> (B, T, H, E); without a mask, causal (T = S).

    `softcap` bounds the scores before the mask (Gemma 2, 2408.00118, section 2)."""
    q_BHTD, k_BGSD, v_BGSE = (x.transpose(1, 2) for x in (q_BTHD, k_BSGD, v_BSGE))
    group = q_BHTD.shape[1] // k_BGSD.shape[1]
    if q_BTHD.is_cuda and mask_B1TS is not None and group > 1:
        # On a GPU only torch's way in float32 takes a mask and grouped heads, and keeps T x T scores for the
        # gradient; with as many keys as queries one that works in tiles takes the mask.
        k_BGSD, v_BGSE = k_BGSD.repeat_interleave(group, 1), v_BGSE.repeat_interleave(group, 1)
        group = 1
    if softcap is None:
        y_BHTE = F.scaled_dot_product_attention(
            q_BHTD,
            k_BGSD,
            v_BGSE,
            attn_mask=mask_B1TS,
            is_causal=mask_B1TS is None,
            scale=scale,
            enable_gqa=group > 1,
        )
        return y_BHTE.transpose(1, 2)
    k_BHSD, v_BHSE = k_BGSD.repeat_interleave(group, 1), v_BGSE.repeat_interleave(group, 1)
    scores_BHTS = softcap * torch.tanh(q_BHTD @ k_BHSD.transpose(2, 3) * scale / softcap)
    if mask_B1TS is None:
        t = q_BHTD.shape[2]
        mask_B1TS = torch.ones(t, t, dtype=torch.bool, device=q_BHTD.device).tril()[None, None]
    weights_BHTS = scores_BHTS.float().masked_fill(~mask_B1TS, -torch.inf).softmax(-1).to(v_BHSE.dtype)
    return (weights_BHTS @ v_BHSE).transpose(1, 2)
