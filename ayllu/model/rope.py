"""Rotary positions (Su et al. 2021): rotate pairs of channels by an angle that grows with position.

Pairs are (i, i + D/2), the convention of the Hugging Face weights ("rotate half").
"""

from __future__ import annotations

import torch
from torch import Tensor


def rope_tables(context: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos_PD and sin_PD in float32 for positions 0..context-1, each half repeated twice."""
    frequency_D2 = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim)
    angle_PD2 = torch.arange(context, dtype=torch.float32, device="cpu")[:, None] * frequency_D2
    angle_PD = torch.cat([angle_PD2, angle_PD2], -1)
    return angle_PD.cos(), angle_PD.sin()


def rotate(x_BTHD: Tensor, cos_BT1D: Tensor, sin_BT1D: Tensor) -> Tensor:
    """Apply the rotation; the tables broadcast over heads."""
    left, right = x_BTHD.chunk(2, -1)
    return x_BTHD * cos_BT1D + torch.cat([-right, left], -1) * sin_BT1D
