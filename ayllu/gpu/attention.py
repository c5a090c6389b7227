"""Decode attention over the paged cache, as Triton kernels: one new token a sequence.

The heads that share keys form one small matrix, so that keys are read once (grouped queries, Ainslie et al.
2023), and a text is cut into stretches that are attended side by side and put together by their sums of
exponentials (Flash-Decoding, Dao et al. 2023), so that one long text keeps the whole chip busy. The grid
depends on the number of sequences alone: how long each is stands in memory, as a captured graph needs it.

A plan (int32, one row a sequence) holds its token, its position and its blocks; position -1: nobody.
"""

# mypy: disable-error-code="no-untyped-def, import-not-found, import-untyped"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ayllu.gpu.products import dot

PROGRAMS = 264  # twice the processors of an H100 or H200


@triton.jit
def _stretch(
    q, k, v, y, part, peak, plan, stride, scale, H, G, D,
    WINDOW: tl.constexpr, CHUNK: tl.constexpr, SPLITS: tl.constexpr,
    HB: tl.constexpr, KB: tl.constexpr, DB: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The heads of one key-value head of one sequence, over one stretch of its keys."""
    s, g, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    position = tl.load(plan + s * stride + 1)
    h, d = tl.arange(0, HB), tl.arange(0, DB)
    repeats = H // G
    mine = (h < repeats)[:, None] & (d < D)[None, :]
    head = s * H + g * repeats + h
    q_HD = tl.load(q + head[:, None] * D + d[None, :], mask=mine, other=0.0)
    first = 0
    if WINDOW > 0:
        first = tl.maximum(position - WINDOW + 1, 0)
    if CHUNK > 0:
        first = tl.maximum(first, (tl.maximum(position, 0) // CHUNK) * CHUNK)
    tile, end = first // KB, (position + KB) // KB
    each = (end - tile + SPLITS - 1) // SPLITS
    top = tl.full([HB], float("-inf"), tl.float32)
    total = tl.zeros([HB], tl.float32)
    sum_HD = tl.zeros([HB, DB], tl.float32)
    for t in range(tile + split * each, tl.minimum(tile + (split + 1) * each, end)):
        at = t * KB + tl.arange(0, KB)
        seen = (at >= first) & (at <= position)
        block = tl.load(plan + s * stride + 2 + at // BLOCK, mask=seen, other=0).to(tl.int64)
        place = ((block * BLOCK + at % BLOCK) * G + g) * D
        there = (d < D)[:, None] & seen[None, :]
        k_DK = tl.load(k + place[None, :] + d[:, None], mask=there, other=0.0)
        x_HK = dot(q_HD, k_DK) * scale
        x_HK = tl.where(seen[None, :], x_HK, float("-inf"))
        higher = tl.maximum(top, tl.max(x_HK, 1))  # every tile has a key that is seen
        keep = tl.exp(top - higher)
        p_HK = tl.exp(x_HK - higher[:, None])
        v_KD = tl.load(v + place[:, None] + d[None, :], mask=seen[:, None] & (d < D)[None, :], other=0.0)
        sum_HD = sum_HD * keep[:, None] + dot(p_HK.to(v_KD.dtype), v_KD)
        total = total * keep + tl.sum(p_HK, 1)
        top = higher
    if SPLITS == 1:
        y_HD = sum_HD / tl.maximum(total, 1e-30)[:, None]
        tl.store(y + head[:, None] * D + d[None, :], y_HD.to(y.dtype.element_ty), mask=mine)
    else:
        out = head * SPLITS + split
        tl.store(part + out[:, None] * D + d[None, :], sum_HD, mask=mine)
        tl.store(peak + out * 2, top, mask=h < repeats)
        tl.store(peak + out * 2 + 1, total, mask=h < repeats)


@triton.jit
def _together(part, peak, y, D, SPLITS: tl.constexpr, DB: tl.constexpr):
    """One head of one sequence from its stretches."""
    head = tl.program_id(0)
    split, d = tl.arange(0, SPLITS), tl.arange(0, DB)
    out = head * SPLITS + split
    top_S, total_S = tl.load(peak + out * 2), tl.load(peak + out * 2 + 1)
    top = tl.max(top_S, 0)
    weight_S = tl.where(top_S > float("-inf"), tl.exp(top_S - tl.where(top > float("-inf"), top, 0.0)), 0.0)
    part_SD = tl.load(part + out[:, None] * D + d[None, :], mask=(d < D)[None, :], other=0.0)
    y_D = tl.sum(part_SD * weight_S[:, None], 0) / tl.maximum(tl.sum(total_S * weight_S, 0), 1e-30)
    tl.store(y + head * D + d, y_D.to(y.dtype.element_ty), mask=d < D)


def splits_for(sequences: int, kv_heads: int) -> int:
    """Stretches of a text: a power of two, so many that there is work for all of a large chip."""
    return min(32, max(1, triton.next_power_of_2(PROGRAMS // (sequences * kv_heads) + 1) // 2))


def attend(
    q_SHD: Tensor,
    k_NBGD: Tensor,
    v_NBGD: Tensor,
    plan_SX: Tensor,
    *,
    scale: float,
    window: int | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Each sequence's new token, whose key and value are stored already, attends to its text -> (S, H, D)."""
    (s, h, d), g = q_SHD.shape, k_NBGD.shape[2]
    splits = splits_for(s, g)
    y_SHD = torch.empty_like(q_SHD)
    part = q_SHD.new_empty((s * h * splits, d) if splits > 1 else (1, 1), dtype=torch.float32)
    peak = q_SHD.new_empty((s * h * splits, 2) if splits > 1 else (1, 2), dtype=torch.float32)
    db = max(16, triton.next_power_of_2(d))
    _stretch[s, g, splits](
        q_SHD, k_NBGD, v_NBGD, y_SHD, part, peak, plan_SX, plan_SX.stride(0), scale, h, g, d,
        WINDOW=window or 0, CHUNK=chunk or 0, SPLITS=splits, HB=max(16, triton.next_power_of_2(h // g)),
        KB=64 if db <= 128 else 32, DB=db, BLOCK=k_NBGD.shape[1],
    )  # fmt: skip
    if splits > 1:
        _together[s * h,](part, peak, y_SHD, d, SPLITS=splits, DB=db)
    return y_SHD
