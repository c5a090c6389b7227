"""Rotary positions (Su et al. 2021): rotate pairs of channels by an angle that grows with position.

Pairs are (i, i + D/2), the convention of the Hugging Face weights ("rotate half"), or neighbours
(2i, 2i + 1), that of the original paper and of Meta's weights. The scalings stretch the wavelengths so that
a model reads texts longer than those of its training.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from ayllu.model.config import RopeScaling, RopeSpec

# Kinds whose frequencies depend on how long the text is.
DEPENDS_ON_LENGTH = frozenset({"dynamic", "longrope"})


def rope_tables(spec: RopeSpec, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
    """cos_BTD and sin_BTD in float32 for the first D = spec.dim channels of a head.

    For "rotate half" each half repeats the angles, for neighbours each pair does.
    """
    length = 0
    if spec.scaling is not None and spec.scaling.kind in DEPENDS_ON_LENGTH:
        length = int(positions_BT.max()) + 1
    frequency_D2, factor = frequencies(spec, length, positions_BT.device)
    angle_BTD2 = positions_BT[..., None].float() * frequency_D2
    if spec.interleaved:
        angle_BTD = angle_BTD2.repeat_interleave(2, -1)
    else:
        angle_BTD = torch.cat([angle_BTD2, angle_BTD2], -1)
    cos_BTD, sin_BTD = angle_BTD.cos(), angle_BTD.sin()
    return (cos_BTD, sin_BTD) if factor == 1.0 else (cos_BTD * factor, sin_BTD * factor)


def rotate(x_BTHD: Tensor, cos_BT1D: Tensor, sin_BT1D: Tensor, interleaved: bool = False) -> Tensor:
    """Apply the rotation to the first channels; those beyond the tables' width pass unchanged."""
    dim = cos_BT1D.shape[-1]
    if dim < x_BTHD.shape[-1]:
        turned_BTHD = rotate(x_BTHD[..., :dim], cos_BT1D, sin_BT1D, interleaved)
        return torch.cat([turned_BTHD, x_BTHD[..., dim:]], -1)
    if interleaved:
        even, odd = x_BTHD[..., 0::2], x_BTHD[..., 1::2]
        crossed_BTHD = torch.stack([-odd, even], -1).flatten(-2)
    else:
        left, right = x_BTHD.chunk(2, -1)
        crossed_BTHD = torch.cat([-right, left], -1)
    return x_BTHD * cos_BT1D + crossed_BTHD * sin_BT1D


@lru_cache(maxsize=64)
def frequencies(spec: RopeSpec, length: int, device: torch.device) -> tuple[Tensor, float]:
    """Angles per position (float32, dim/2) and the factor on cosine and sine for a text of `length`."""
    plain = spec.theta ** (-torch.arange(0, spec.dim, 2, dtype=torch.float32, device="cpu") / spec.dim)
    factor = 1.0
    if (scaling := spec.scaling) is not None:
        plain, factor = _SCALINGS[scaling.kind](spec, scaling, plain, length)
    return plain.to(device), factor


def _linear(_: RopeSpec, scaling: RopeScaling, plain: Tensor, __: int) -> tuple[Tensor, float]:
    return plain / scaling.factor, _given(scaling, 1.0)


def _dynamic(spec: RopeSpec, scaling: RopeScaling, _: Tensor, length: int) -> tuple[Tensor, float]:
    """The base grows with the text, so that the longest wavelength just fits it."""
    ratio = max(length, scaling.original_context) / scaling.original_context
    theta = spec.theta * (scaling.factor * ratio - (scaling.factor - 1)) ** (spec.dim / (spec.dim - 2))
    grown = theta ** (-torch.arange(0, spec.dim, 2, dtype=torch.float32, device="cpu") / spec.dim)
    return grown, _given(scaling, 1.0)


def _llama3(_: RopeSpec, scaling: RopeScaling, plain: Tensor, __: int) -> tuple[Tensor, float]:
    """Short waves stay, long ones are stretched, those between are blended."""
    turns = scaling.original_context * plain / (2 * math.pi)  # within the original context
    if scaling.high_freq > scaling.low_freq:
        blend = ((turns - scaling.low_freq) / (scaling.high_freq - scaling.low_freq)).clamp(0, 1)
    else:  # Llama 4 Scout: nothing lies between
        blend = (turns >= scaling.low_freq).float()
    return plain * (blend + (1 - blend) / scaling.factor), _given(scaling, 1.0)


def _yarn(spec: RopeSpec, scaling: RopeScaling, plain: Tensor, _: int) -> tuple[Tensor, float]:
    """Channels that turn often keep their angles, those that turn less than once are interpolated."""

    def channel(turns: float) -> float:
        span = scaling.original_context / (turns * 2 * math.pi)
        return spec.dim * math.log(span) / (2 * math.log(spec.theta))

    low, high = channel(scaling.beta_fast), channel(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, spec.dim - 1)
    high += 0.001 * (low == high)
    ramp = ((torch.arange(spec.dim // 2, dtype=torch.float32, device="cpu") - low) / (high - low)).clamp(0, 1)
    frequency = plain / scaling.factor * ramp + plain * (1 - ramp)
    if scaling.mscale and scaling.mscale_all_dim:
        factor = yarn_mscale(scaling.factor, scaling.mscale) / yarn_mscale(
            scaling.factor, scaling.mscale_all_dim
        )
    else:
        factor = yarn_mscale(scaling.factor, 1.0)
    return frequency, _given(scaling, factor)


def _longrope(_: RopeSpec, scaling: RopeScaling, plain: Tensor, length: int) -> tuple[Tensor, float]:
    """A searched stretch for each channel, one list for texts beyond the original context, one within."""
    stretch = scaling.long if length > scaling.original_context else scaling.short
    factor = 1.0
    if scaling.factor > 1.0:
        factor = math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_context))
    return plain / torch.tensor(stretch, dtype=torch.float32, device="cpu"), _given(scaling, factor)


_SCALINGS = {"linear": _linear, "dynamic": _dynamic, "llama3": _llama3, "yarn": _yarn, "longrope": _longrope}


def yarn_mscale(factor: float, mscale: float) -> float:
    """YaRN's attention temperature for a stretch by `factor` (2309.00071, section 3.4)."""
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0


def _given(scaling: RopeScaling, otherwise: float) -> float:
    return otherwise if scaling.attention_factor is None else scaling.attention_factor
