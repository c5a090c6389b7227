"""Learning-rate shape: short warm-up, flat, long linear decay (WSD; Hu et al. 2024, nanochat)."""

from __future__ import annotations


def lr_scale(step: int, steps: int, *, warmup: float = 0.02, decay: float = 0.6, final: float = 0.0) -> float:
    """Factor on the peak rate for `step` (0-based) of `steps`; warm-up and decay are shares of the run."""
    rising = (step + 1) / max(1.0, warmup * steps)
    falling = final + (1 - final) * (steps - step) / max(1.0, decay * steps)
    return min(1.0, rising, falling)
