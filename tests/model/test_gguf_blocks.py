"""The block codecs of GGUF against the `gguf` package, to the bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch

from ayllu.errors import RequestError
from ayllu.gguf import KINDS
from ayllu.model.formats import blocks
from ayllu.model.formats.gguf import EXPORTED

PACKED = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")


def test_the_kinds_are_those_of_the_format() -> None:
    for code, (numbers, size) in gguf.GGML_QUANT_SIZES.items():
        if code.name in ("Q8_1", "Q8_K"):  # of computations, never in files
            continue
        kind = KINDS[code.name]
        assert (kind.code, kind.numbers, kind.size) == (int(code), numbers, size)


@pytest.mark.parametrize("kind", [*PACKED, "F32", "F16", "BF16"])
def test_unpacking_equals_the_judges_on_any_bytes(kind: str) -> None:
    """Random bytes have every scale there is: zero, subnormal, infinite and NaN ones, too."""
    raw = np.random.default_rng(0).integers(0, 256, (257, 3 * KINDS[kind].size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        theirs = gguf.dequantize(raw, gguf.GGMLQuantizationType[kind])
    ours = blocks.unpack(kind, torch.from_numpy(raw)).float().numpy()
    assert ours.shape == theirs.shape
    assert np.array_equal(ours, theirs, equal_nan=True)
    assert np.isfinite(ours).mean() > 0.9


@pytest.mark.parametrize("kind", EXPORTED)
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 3e4])
def test_packing_equals_the_judges(kind: str, scale: float) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (64, 256)).astype(np.float32) * np.float32(scale)
    x[0] = 0
    with np.errstate(all="ignore"):
        theirs = gguf.quantize(x, gguf.GGMLQuantizationType[kind]).view(np.uint8).reshape(64, -1)
    ours = blocks.pack(kind, torch.from_numpy(x))
    assert np.array_equal(ours.numpy(), theirs)
    if kind.startswith("Q") and scale >= 1:  # no number is further off than half a step, and a little
        back = blocks.unpack(kind, ours)
        step = {"Q8_0": 1 / 127, "Q4_0": 1 / 8}[kind] * scale
        assert (back - torch.from_numpy(x)).abs().max() < (0.6 if kind == "Q8_0" else 1.1) * step


@pytest.mark.parametrize(("kind", "value"), [("F16", 1e5), ("Q8_0", 1e8), ("Q4_0", 1e6), ("BF16", torch.nan)])
def test_numbers_that_a_kind_cant_hold(kind: str, value: float) -> None:
    with pytest.raises(RequestError, match=r"too large|not a number"):
        blocks.pack(kind, torch.full((1, 32), value))
