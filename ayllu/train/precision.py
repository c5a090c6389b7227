"""The number format of training's matrix products."""

from __future__ import annotations

import torch

from ayllu import machine


def compute_type(device: str) -> torch.dtype:
    """bfloat16 where the machine multiplies it (every GPU we train on; CPUs with AVX-512 BF16); else float32,
    which other CPUs multiply ten times as fast (docs/lab-log.md, 2026-11-29)."""
    return torch.float32 if device == "cpu" and machine.product_type() == "float32" else torch.bfloat16
