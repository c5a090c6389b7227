"""The number format of training's matrix products."""

from __future__ import annotations

import functools

import torch

from ayllu.machine import cpu_features


def compute_type(device: str) -> torch.dtype:
    """bfloat16 where the machine multiplies it fast (every GPU we train on; CPUs with AVX-512 BF16); else
    float32, which other CPUs multiply ten times as fast as bfloat16 (docs/lab-log.md, 2026-11-29)."""
    return torch.bfloat16 if device != "cpu" or _cpu_has_bf16() else torch.float32


@functools.cache
def _cpu_has_bf16() -> bool:
    return "avx512_bf16" in cpu_features()
