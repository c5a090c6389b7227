"""The block codecs of GGUF: a row of weights as blocks of small integers with a scale each.

From ggml. Legacy kinds (Qn_0, Qn_1) have 32 numbers a block: Qn_0 is scale * q, Qn_1 is scale * q + minimum.
K kinds have 256: sub-blocks whose scales (and minima) are small integers themselves, under one or two
half-precision factors (llama.cpp pull request 1684). Everything here is vectorised over blocks and computes
in float32, in the order of ggml's reference, so that the numbers are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ayllu.errors import ModelFileDamagedError, RequestError
from ayllu.gguf import KINDS

PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


def unpack(kind: str, raw_RN: Tensor) -> Tensor:
    """Rows of stored bytes, uint8 (R, bytes), -> their numbers (R, columns): plain kinds in their own type,
    packed ones in float32. Raises ModelFileDamagedError for a kind that isn't read."""
    require(kind)
    if kind in PLAIN:
        return raw_RN.contiguous().view(PLAIN[kind])
    return _DECODERS[kind](raw_RN.reshape(-1, KINDS[kind].size)).reshape(len(raw_RN), -1)


def require(kind: str) -> None:
    """ModelFileDamagedError for a kind that isn't read."""
    if kind not in PLAIN and kind not in _DECODERS:
        raise ModelFileDamagedError(
            f"weights of the kind {kind} can't be read",
            why=f"known are {', '.join([*PLAIN, *_DECODERS])}",
            fix="take another file of the model (Q8_0, Q4_K or F16), or convert it with llama-quantize",
        )


def pack(kind: str, x_RK: Tensor) -> Tensor:
    """Numbers (R, columns) -> stored bytes, uint8 (R, bytes), in F32, F16, BF16, Q8_0 or Q4_0.

    Raises RequestError where a number (or a block's scale) is too large for the kind, or not finite.
    """
    x_RK = x_RK.float()
    if kind in PLAIN:
        stored = x_RK.to(PLAIN[kind]).contiguous()
        finite, packed = stored, stored.view(torch.uint8)
    else:
        blocks = x_RK.reshape(-1, KINDS[kind].numbers)
        finite, packed = _ENCODERS[kind](blocks)
    if not torch.isfinite(finite).all():
        raise RequestError(
            f"a weight is too large for {kind}, or not a number",
            why=f"the largest is {x_RK.abs().max().item():g}",
            fix="export as BF16",
        )
    return packed.reshape(len(x_RK), -1)


# ---- 32 numbers a block
def _half(raw: Tensor, at: int) -> Tensor:
    """The half-precision number at byte `at` of every block, float32 (N, 1)."""
    return raw[:, at : at + 2].contiguous().view(torch.float16).float()


def _nibbles(raw: Tensor) -> Tensor:
    """Bytes (N, n) -> (N, 2n): all low halves, then all high halves."""
    return torch.cat([raw & 15, raw >> 4], 1)


def _fifth_bits(raw: Tensor) -> Tensor:
    """Four bytes (N, 4) -> their 32 bits, lowest first, each as 16 or 0."""
    shifts = torch.arange(8, dtype=torch.uint8)
    return (raw[:, :, None] >> shifts & 1).reshape(len(raw), 32) << 4


def _q8_0(raw: Tensor) -> Tensor:
    return raw[:, 2:].contiguous().view(torch.int8).float() * _half(raw, 0)


def _q4_0(raw: Tensor) -> Tensor:
    return (_nibbles(raw[:, 2:]).float() - 8) * _half(raw, 0)


def _q4_1(raw: Tensor) -> Tensor:
    return _half(raw, 0) * _nibbles(raw[:, 4:]).float() + _half(raw, 2)


def _q5_0(raw: Tensor) -> Tensor:
    q = _nibbles(raw[:, 6:]) | _fifth_bits(raw[:, 2:6])
    return (q.float() - 16) * _half(raw, 0)


def _q5_1(raw: Tensor) -> Tensor:
    q = _nibbles(raw[:, 8:]) | _fifth_bits(raw[:, 4:8])
    return _half(raw, 0) * q.float() + _half(raw, 2)


# ---- 256 numbers a block
def _six_bit_scales(raw: Tensor) -> tuple[Tensor, Tensor]:
    """Twelve bytes (N, 12) -> eight scales and eight minima of six bits, (N, 8) each.

    The first four of each are the low six bits of bytes 0-3 and 4-7; the last four have their low four bits
    in the halves of bytes 8-11 and their high two bits on top of bytes 0-3 and 4-7.
    """
    first, second, third = raw[:, :4], raw[:, 4:8], raw[:, 8:]
    scale = torch.cat([first & 63, third & 15 | (first >> 6) << 4], 1)
    least = torch.cat([second & 63, third >> 4 | (second >> 6) << 4], 1)
    return scale.float(), least.float()


def _with_minima(raw: Tensor, q: Tensor) -> Tensor:
    """Q4_K and Q5_K: factor * scale * q - factor of the minima * minimum, for q (N, 8, 32)."""
    scale, least = _six_bit_scales(raw[:, 4:16])
    d, m = (_half(raw, 0) * scale)[:, :, None], (_half(raw, 2) * least)[:, :, None]
    return d * q.float() - m


def _four_bits(raw: Tensor) -> Tensor:
    """128 bytes -> (N, 8, 32): of every 32 bytes the low halves, then the high halves."""
    pairs = raw.reshape(len(raw), 4, 32)
    return torch.stack([pairs & 15, pairs >> 4], 2).reshape(len(raw), 8, 32)


def _q4_k(raw: Tensor) -> Tensor:
    return _with_minima(raw, _four_bits(raw[:, 16:]))


def _q5_k(raw: Tensor) -> Tensor:
    # Bit i of byte j is the fifth bit of number j of sub-block i.
    shifts = torch.arange(8, dtype=torch.uint8)[:, None]
    fifth = (raw[:, None, 16:48] >> shifts & 1) << 4
    return _with_minima(raw, _four_bits(raw[:, 48:]) | fifth)


def _q6_k(raw: Tensor) -> Tensor:
    # Two halves of 128 numbers: four runs of 32, whose low four bits are the halves of 64 bytes and whose
    # high two bits lie together in 32 bytes. A scale for every 16 numbers.
    count = len(raw)
    low = raw[:, :128].reshape(count, 2, 64)
    low = torch.cat([low & 15, low >> 4], 2).reshape(count, 2, 4, 32)
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8)[:, None]
    high = raw[:, 128:192].reshape(count, 2, 1, 32) >> shifts & 3
    q = (low | high << 4).float() - 32
    scale = raw[:, 192:208].contiguous().view(torch.int8).float()
    d = _half(raw, 208) * scale
    return d[:, :, None] * q.reshape(count, 16, 16)


_DECODERS: dict[str, Callable[[Tensor], Tensor]] = {
    "Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1,
    "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k,
}  # fmt: skip


# ---- packing
def _inverse(scale: Tensor) -> Tensor:
    # Below 1e-38 the inverse would overflow; the half-precision scale is zero there anyway.
    return torch.where(scale.abs() < 1e-38, 0.0, 1 / scale)


def _to_q8_0(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scales (to be checked) and blocks: the largest number becomes +-127; halves round away from zero."""
    scale = x.abs().amax(1, keepdim=True) / 127
    y = x * _inverse(scale)
    q = (torch.sign(y) * torch.floor(y.abs() + 0.5)).to(torch.int8)
    half = scale.half()
    return half, torch.cat([half.view(torch.uint8), q.view(torch.uint8)], 1)


def _to_q4_0(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scales (to be checked) and blocks: the number furthest from zero, whatever its sign, becomes -8."""
    furthest = x.gather(1, x.abs().argmax(1, keepdim=True))
    scale = furthest / -8
    q = (x * _inverse(scale) + 8.5).clamp(0, 15.5).to(torch.uint8)
    half = scale.half()
    return half, torch.cat([half.view(torch.uint8), q[:, :16] | q[:, 16:] << 4], 1)


_ENCODERS = {"Q8_0": _to_q8_0, "Q4_0": _to_q4_0}
