"""What stands between the matrix products of a decode step, as Triton kernels, one for each gap: the sum and
its norm; norms and rotation of queries and keys with the storing of keys and values; the gate."""

# mypy: disable-error-code="no-untyped-def, import-not-found, import-untyped"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _add_norm(x, added, weight, y, C, eps, ADD: tl.constexpr, CB: tl.constexpr):
    c = tl.arange(0, CB)
    at = tl.program_id(0) * C + c
    x_C = tl.load(x + at, mask=c < C, other=0.0).to(tl.float32)
    if ADD:
        x_C = (x_C + tl.load(added + at, mask=c < C, other=0.0).to(tl.float32)).to(x.dtype.element_ty)
        tl.store(x + at, x_C, mask=c < C)
        x_C = x_C.to(tl.float32)
    factor = 1.0 / tl.sqrt(tl.sum(x_C * x_C, 0) / C + eps)
    y_C = x_C * factor * tl.load(weight + c, mask=c < C, other=0.0).to(tl.float32)
    tl.store(y + at, y_C.to(y.dtype.element_ty), mask=c < C)


def add_norm(x_SC: Tensor, added_SC: Tensor | None, weight_C: Tensor, eps: float) -> Tensor:
    """x += added, in place -> RMSNorm of x."""
    s, c = x_SC.shape
    y_SC = torch.empty_like(x_SC)
    added = x_SC if added_SC is None else added_SC
    _add_norm[s,](x_SC, added, weight_C, y_SC, c, eps, ADD=added_SC is not None, CB=triton.next_power_of_2(c))
    return y_SC


@triton.jit
def _place(
    qkv, q, k, v, q_norm, k_norm, cosine, sine, plan, stride, H, G, D, eps,
    ROTARY: tl.constexpr, PAIRS: tl.constexpr, NORM: tl.constexpr, DB: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    s, h = tl.program_id(0), tl.program_id(1)
    d = tl.arange(0, DB)
    inside = d < D
    at = (s * (H + 2 * G) + h) * D
    x_D = tl.load(qkv + at + d, mask=inside, other=0.0).to(tl.float32)
    if h < H + G:
        if PAIRS:
            other, sign = d ^ 1, tl.where(d % 2 == 0, -1.0, 1.0)
        else:
            left = d < ROTARY // 2
            other, sign = tl.where(left, d + ROTARY // 2, d - ROTARY // 2), tl.where(left, -1.0, 1.0)
        turned = d < ROTARY
        other_D = tl.load(qkv + at + other, mask=turned, other=0.0).to(tl.float32)
        if NORM:
            factor = 1.0 / tl.sqrt(tl.sum(x_D * x_D, 0) / D + eps)
            if h < H:
                x_D *= factor * tl.load(q_norm + d, mask=inside, other=0.0).to(tl.float32)
                other_D *= factor * tl.load(q_norm + other, mask=turned, other=0.0).to(tl.float32)
            else:
                x_D *= factor * tl.load(k_norm + d, mask=inside, other=0.0).to(tl.float32)
                other_D *= factor * tl.load(k_norm + other, mask=turned, other=0.0).to(tl.float32)
        if ROTARY > 0:
            cos_D = tl.load(cosine + s * ROTARY + d, mask=turned, other=1.0)
            sin_D = tl.load(sine + s * ROTARY + d, mask=turned, other=0.0)
            x_D = x_D * cos_D + sign * other_D * sin_D
    position = tl.load(plan + s * stride + 1)
    there = d < tl.where(position >= 0, D, 0)
    from_zero = tl.maximum(position, 0)
    block = tl.load(plan + s * stride + 2 + from_zero // BLOCK).to(tl.int64)
    slot = (block * BLOCK + from_zero % BLOCK) * G
    if h < H:
        tl.store(q + (s * H + h) * D + d, x_D.to(q.dtype.element_ty), mask=inside)
    elif h < H + G:
        tl.store(k + (slot + h - H) * D + d, x_D.to(k.dtype.element_ty), mask=there)
    else:
        tl.store(v + (slot + h - H - G) * D + d, x_D.to(v.dtype.element_ty), mask=there)


def place(
    qkv_SX: Tensor,
    k_NBGD: Tensor,
    v_NBGD: Tensor,
    plan_SX: Tensor,
    *,
    heads: int,
    norms: tuple[Tensor, Tensor] | None,
    tables: tuple[Tensor, Tensor] | None,
    interleaved: bool,
    eps: float,
) -> Tensor:
    """Norm, rotate and store the new keys, store the values -> q_SHD. `tables`: cosines and sines (S, D) of
    the positions; `plan_SX` as in attention.py."""
    s, (g, d) = len(qkv_SX), k_NBGD.shape[2:]
    q_SHD = qkv_SX.new_empty(s, heads, d)
    q_norm, k_norm = norms or (qkv_SX, qkv_SX)
    cosine, sine = tables or (qkv_SX, qkv_SX)
    _place[s, heads + 2 * g](
        qkv_SX, q_SHD, k_NBGD, v_NBGD, q_norm, k_norm, cosine, sine, plan_SX, plan_SX.stride(0),
        heads, g, d, eps, ROTARY=tables[0].shape[-1] if tables else 0, PAIRS=interleaved,
        NORM=norms is not None, DB=max(16, triton.next_power_of_2(d)), BLOCK=k_NBGD.shape[1],
    )  # fmt: skip
    return q_SHD


@triton.jit
def _gate(x, y, C, CB: tl.constexpr):
    s, c = tl.program_id(0), tl.program_id(1) * CB + tl.arange(0, CB)
    gate_C = tl.load(x + s * 2 * C + c, mask=c < C, other=0.0).to(tl.float32)
    up_C = tl.load(x + s * 2 * C + C + c, mask=c < C, other=0.0).to(tl.float32)
    y_C = gate_C / (1.0 + tl.exp(-gate_C)) * up_C
    tl.store(y + s * C + c, y_C.to(y.dtype.element_ty), mask=c < C)


def gate(gate_up_SX: Tensor) -> Tensor:
    """silu(gate) * up of a joint projection (S, 2 * hidden) -> (S, hidden)."""
    s, c = len(gate_up_SX), gate_up_SX.shape[1] // 2
    y_SC = gate_up_SX.new_empty(s, c)
    _gate[s, triton.cdiv(c, 1024)](gate_up_SX, y_SC, c, CB=1024)
    return y_SC
