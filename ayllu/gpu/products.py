"""Matrix products that read weights in few bits, as Triton kernels: where decoding on a GPU spends its time.

A row of whole numbers is a row of 32-bit words with 4 (int8) or 8 (int4) fields (see weight_only.py). A field
becomes a float without a conversion, which GPUs do at a quarter of their speed: its bits are put into the
mantissa of 2^23, and 2^23 is taken away. One row of activations goes by multiplying and adding over the
whole width, several by tensor cores, for which the weights are rounded to the activations' type.
"""

# mypy: disable-error-code="no-untyped-def, import-not-found, import-untyped"
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ayllu.gpu.weight_only import TILE

ROWS = (
    4,
    8,
)  # of the result that a program computes when it has one row of activations: small, large matrices
# Triton's interpreter multiplies the bits of bfloat16 numbers as if they were whole ones.
WIDEN = tl.constexpr(bool(triton.knobs.runtime.interpret))


@triton.jit
def dot(a, b):
    """a @ b in float32, float32 inputs without rounding."""
    if WIDEN:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _field(word, at: tl.constexpr, FIELDS: tl.constexpr):
    """The values, in float32, of field `at` of words; words of one field are the values."""
    if FIELDS == 1:
        value = word.to(tl.float32)
    else:
        BITS: tl.constexpr = 32 // FIELDS
        code = ((word >> (at * BITS)) & ((1 << BITS) - 1)) | 0x4B000000
        value = code.to(tl.float32, bitcast=True) - (8388608.0 + (1 << (BITS - 1)))
    return value


@triton.jit
def _half(pair, at: tl.constexpr):
    """The first or second of two bfloat16 numbers in a word, as float32."""
    word = (pair << 16) if at == 0 else (pair & -65536)
    return word.to(tl.float32, bitcast=True)


@triton.jit
def _one_row(
    x, w, scale, bias, which, y, R, C, W, T, repeats,
    RB: tl.constexpr, WB: tl.constexpr, FIELDS: tl.constexpr,
    ROW_SCALE: tl.constexpr, BIAS: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    """y_R = matrix @ x_C for row m of x, by the matrix of expert which[m]."""
    m = tl.program_id(1)
    r = tl.program_id(0) * RB + tl.arange(0, RB)
    x += (m // repeats) * C
    row = r.to(tl.int64)
    if EXPERTS:
        row += tl.load(which + m).to(tl.int64) * R
    PER: tl.constexpr = 64 // FIELDS
    total = tl.zeros([RB, WB], tl.float32)
    for start in range(0, W, WB):
        c = start + tl.arange(0, WB)
        there = (r < R)[:, None] & (c < W)[None, :]
        word = tl.load(w + row[:, None] * W + c[None, :], mask=there, other=0.0)
        if FIELDS == 1:
            value_x = tl.load(x + c, mask=c < C, other=0.0).to(tl.float32)
            total += _field(word, 0, 1) * value_x[None, :]
        else:
            pair = tl.load(scale + row[:, None] * T + (c // PER)[None, :], mask=there, other=0)
            for half in tl.static_range(2):
                part = tl.zeros([RB, WB], tl.float32)
                for f in tl.static_range(FIELDS // 2):
                    column = (c // PER) * 64 + (half * (FIELDS // 2) + f) * PER + c % PER
                    value_x = tl.load(x + column, mask=column < C, other=0.0).to(tl.float32)
                    part += _field(word, half * (FIELDS // 2) + f, FIELDS) * value_x[None, :]
                total += part * _half(pair, half)
    out = tl.sum(total, 1)
    if ROW_SCALE:
        out *= tl.load(scale + row, mask=r < R, other=0.0)
    if BIAS:
        out += tl.load(bias + row, mask=r < R, other=0.0).to(tl.float32)
    tl.store(y + m * R + r, out.to(y.dtype.element_ty), mask=r < R)


@triton.jit
def _rows(
    x, w, scale, bias, y, M, R, C, W, T,
    MB: tl.constexpr, RB: tl.constexpr, WB: tl.constexpr,
    FIELDS: tl.constexpr, ROW_SCALE: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """y_MR = x_MC @ matrix.T on tensor cores."""
    r = tl.program_id(0) * RB + tl.arange(0, RB)
    m = tl.program_id(1) * MB + tl.arange(0, MB)
    row = r.to(tl.int64)
    PER: tl.constexpr = 64 // FIELDS
    total = tl.zeros([MB, RB], tl.float32)
    for start in range(0, W, WB):
        c = start + tl.arange(0, WB)
        there = (c < W)[:, None] & (r < R)[None, :]
        word = tl.load(w + row[None, :] * W + c[:, None], mask=there, other=0.0)
        if FIELDS > 1:
            pair = tl.load(scale + row[None, :] * T + (c // PER)[:, None], mask=there, other=0)
        for f in tl.static_range(FIELDS):
            value = _field(word, f, FIELDS)
            if FIELDS > 1:
                value *= _half(pair, (2 * f) // FIELDS)
            column = (c // PER) * 64 + f * PER + c % PER
            there_x = (m < M)[:, None] & (column < C)[None, :]
            value_x = tl.load(x + m[:, None] * C + column[None, :], mask=there_x, other=0.0)
            total += dot(value_x, value.to(value_x.dtype))
    if ROW_SCALE:
        total *= tl.load(scale + r, mask=r < R, other=0.0)[None, :]
    if BIAS:
        total += tl.load(bias + r, mask=r < R, other=0.0).to(tl.float32)[None, :]
    tl.store(y + m[:, None] * R + r[None, :], total.to(y.dtype.element_ty), mask=(m < M)[:, None] & (r < R))


def product(
    x_MC: Tensor,
    data: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    rows: int,
    *,
    out: torch.dtype,
    which_M: Tensor | None = None,
    repeats: int = 1,
) -> Tensor:
    """y_MR of `data` (rows, width): float numbers, or int32 words with two bfloat16 scales a tile in a word.

    With `which_M`, row m of the result is by matrix which_M[m] of several, and of row m // repeats of x.
    """
    x_MC = x_MC.contiguous()
    m = len(x_MC) if which_M is None else len(which_M)
    y_MR = x_MC.new_empty(m, rows, dtype=out)
    words = data.dtype == torch.int32
    columns, width = x_MC.shape[1], data.shape[-1]
    tiles = -(-columns // TILE)
    fields = TILE * tiles // width if words else 1
    scaled = {"ROW_SCALE": scale is not None and not words, "BIAS": bias is not None, "FIELDS": fields}
    scales = data if scale is None else scale.view(torch.int32) if words else scale
    given = (x_MC, data, scales, data if bias is None else bias)
    size = (rows, columns, width, tiles)
    if which_M is not None or m == 1:
        # A kilobyte of each row at a time: that keeps enough of memory's answers under way.
        rb = ROWS[rows * m >= 8192]
        wb = min(1024 // data.element_size(), max(16, triton.next_power_of_2(width)))
        grid = (triton.cdiv(rows, rb), m)
        which, experts = (x_MC, False) if which_M is None else (which_M, True)
        _one_row[grid](*given, which, y_MR, *size, repeats, RB=rb, WB=wb, EXPERTS=experts, **scaled)
        return y_MR
    mb = min(64, max(16, triton.next_power_of_2(m)))
    rb, wb = (32 if rows < 8192 else 64), (32 if words else 64)
    grid = (triton.cdiv(rows, rb), triton.cdiv(m, mb))
    _rows[grid](*given, y_MR, m, *size, MB=mb, RB=rb, WB=wb, **scaled)
    return y_MR
