"""Matrices in few bits whose activations stay as they are (weight-only quantisation).

int8, int4: groups of 32 columns with one bfloat16 scale, 8.5 and 4.5 bits a weight. For int4 the scale is
searched: the one of a few that loses least (the largest number of a group need not be met exactly). fp8:
E4M3 (Micikevicius et al. 2022, 2209.05433) with one float32 scale a row.

A tile of 64 columns is 16 (int8) or 8 (int4) words of 32 bits; field f of word i holds column
f * words + i: neighbouring words meet neighbouring activations, and each half of the fields has one scale.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TILE = 64  # columns whose fields lie together
KINDS = {"int8": 8, "int4": 4, "fp8": 8}  # bits
_GROUP = 32
_LARGEST_FP8 = 448.0
_ROWS = 4096  # quantised at once: of temporary tensors in float32 only so much
# What the number of a group with the largest magnitude becomes, tried in turn.
_INT4_ENDS = (-8.0, -7.75, -7.5, -7.25, -7.0, -6.5, 7.0)


class WeightOnly(nn.Module):
    """A matrix (rows, columns), or several (count, rows, columns). `weight` makes it `dtype` again, which is
    what code reads that takes this for an nn.Linear."""

    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, kind: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.kind, self.dtype, self.shape = kind, dtype, weight.shape
        *_, self.rows, self.columns = weight.shape
        rows, tiles = weight.numel() // self.columns, -(-self.columns // TILE)
        if kind == "fp8":
            data = weight.new_empty(rows, self.columns, dtype=torch.float8_e4m3fn)
            scale = weight.new_empty(rows, dtype=torch.float32)
        else:
            data = weight.new_empty(rows, tiles * TILE * KINDS[kind] // 32, dtype=torch.int32)
            scale = weight.new_empty(rows, 2 * tiles, dtype=torch.bfloat16)
        self.register_buffer("data", data)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if bias is None else bias.detach().to(dtype, copy=True))
        self.update(weight, bias)

    @torch.no_grad()
    def update(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Quantise other values into the same memory."""
        for data, scale, part in zip(
            self.data.split(_ROWS),
            self.scale.split(_ROWS),
            weight.detach().reshape(-1, self.columns).split(_ROWS),
            strict=True,
        ):
            if self.kind == "fp8":
                scale.copy_(part.float().abs().amax(1).clamp_min(1e-30) / _LARGEST_FP8)
                data.copy_((part.float() / scale[:, None]).clamp(-_LARGEST_FP8, _LARGEST_FP8))
            else:
                _pack(part.float(), KINDS[self.kind], data, scale)
        if bias is not None and self.bias is not None:
            self.bias.copy_(bias)

    @property
    def weight(self) -> Tensor:
        """All of it in `dtype`."""
        if self.kind == "fp8":
            return (self.data.to(self.dtype) * self.scale[:, None].to(self.dtype)).view(self.shape)
        bits, rows = KINDS[self.kind], len(self.data)
        shift_F1 = torch.arange(0, 32, bits, device=self.data.device, dtype=torch.int32)[:, None]
        word_RT1W = self.data.view(rows, -1, 1, TILE * bits // 32)
        code_RTFW = (word_RT1W >> shift_F1) & (2**bits - 1)
        value_RGX = (code_RTFW.to(self.dtype) - 2 ** (bits - 1)).view(rows, -1, _GROUP)
        value_RC = (value_RGX * self.scale[:, :, None].to(self.dtype)).view(rows, -1)
        return value_RC[:, : self.columns].reshape(self.shape)


def _pack(weight_RC: Tensor, bits: int, data: Tensor, scale: Tensor) -> None:
    rows, columns = weight_RC.shape
    groups_RGX = F.pad(weight_RC, (0, -columns % TILE)).view(rows, -1, _GROUP)
    place_RG1 = groups_RGX.abs().argmax(-1, keepdim=True)
    largest_RG1 = groups_RGX.gather(-1, place_RG1)
    half = 2 ** (bits - 1)
    ends = _INT4_ENDS if bits == 4 else (float(1 - half),)
    code_RGX, best_RG1 = torch.empty(0), None
    for end in ends:
        scale_RG1 = (largest_RG1 / end).to(scale.dtype)
        divisor_RG1 = scale_RG1.float().where(scale_RG1 != 0, 1.0)
        tried_RGX = (groups_RGX / divisor_RG1).round_().clamp_(-half, half - 1)
        loss_RG1 = (tried_RGX * scale_RG1 - groups_RGX).square().sum(-1, keepdim=True)
        if best_RG1 is None:
            code_RGX, best_RG1, chosen_RG1 = tried_RGX, loss_RG1, scale_RG1
            continue
        better_RG1 = loss_RG1 < best_RG1
        best_RG1 = torch.minimum(loss_RG1, best_RG1)
        code_RGX = torch.where(better_RG1, tried_RGX, code_RGX)
        chosen_RG1 = torch.where(better_RG1, scale_RG1, chosen_RG1)
    fields = 32 // bits
    code_RTFW = (code_RGX.to(torch.int32) + half).view(rows, -1, fields, TILE // fields)
    word_RTW = code_RTFW[:, :, 0].clone()
    for field in range(1, fields):
        word_RTW |= code_RTFW[:, :, field] << (field * bits)
    data.copy_(word_RTW.view(data.shape))
    scale.copy_(chosen_RG1[..., 0])
