"""Packed matrices against float64 products, at every machine level that this machine runs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ayllu import native
from ayllu.engine.packed import FORMATS, LANES, Packed, core, pack_matrix

pytestmark = pytest.mark.skipif(not native.available(), reason="no native extension on this machine")
LEVELS = ("AVX-512", "AVX2", "portable")


def as_multiplied(x: torch.Tensor, fmt: int) -> torch.Tensor:
    """The activations as the kernels see them: for whole-number weights 8 bits per group of 32."""
    if fmt in (FORMATS["float32"], FORMATS["bfloat16"]):
        return x
    groups = torch.zeros(len(x), -(-x.shape[1] // 32) * 32)
    groups[:, : x.shape[1]] = x
    groups = groups.view(len(x), -1, 32)
    scale = groups.abs().amax(-1, keepdim=True) / 127
    return (torch.round(groups / scale.clamp_min(1e-30)) * scale).flatten(1)[:, : x.shape[1]]


def multiply(packed: Packed, x: torch.Tensor, level: str) -> torch.Tensor | None:
    """x @ w.T at a level, None where this machine lacks it."""
    y = torch.full((len(x), -(-packed.rows // LANES) * LANES), float("nan"))
    if not core().matmul_at_level(level, packed.describe(), x.data_ptr(), len(x), y.data_ptr()):
        return None
    return y[:, : packed.rows]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 70),
    columns=st.integers(1, 200),
    batch=st.integers(1, 40),
    fmt=st.sampled_from(list(FORMATS.values())),
    magnitude=st.sampled_from([1e-4, 1.0, 300.0]),
    seed=st.integers(0, 1000),
)
def test_products_equal_float64(rows, columns, batch, fmt, magnitude, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = magnitude * torch.randn(rows, columns, generator=generator)
    x = torch.randn(batch, columns, generator=generator)
    packed = pack_matrix(weight, fmt)
    want = as_multiplied(x, fmt).double() @ packed.dequantised().double().T
    # A product may cancel; what rounding may cost is bounded by the sum of the magnitudes.
    bound = 1e-5 * (x.abs().double() @ packed.dequantised().abs().double().T).max() + 1e-30
    ran = 0
    for level in LEVELS:
        got = multiply(packed, x, level)
        if got is not None:
            assert (got.double() - want).abs().max() <= bound, level
            ran += 1
    assert ran >= 1


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
def test_a_row_is_the_same_alone_and_in_a_long_prompt(fmt):
    """Bit for bit, through every tile and over the borders of panels; an odd number of blocks."""
    generator = torch.Generator().manual_seed(0)
    columns = 25_000  # panels of four to six rows in float32, of eighteen to twenty in whole numbers
    packed = pack_matrix(torch.randn(40, columns, generator=generator), fmt)
    x = torch.randn(41, columns, generator=generator)
    for level in LEVELS:
        together = multiply(packed, x, level)
        if together is None:
            continue
        for row in (0, 3, 4, 5, 6, 17, 18, 19, 20, 35, 36, 39, 40):
            alone = multiply(packed, x[row : row + 1].contiguous(), level)
            assert alone is not None and torch.equal(alone[0], together[row]), (level, row)


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("level", LEVELS)
def test_a_row_is_the_same_bits_in_any_batch(fmt, level):
    packed, x = pack_matrix(torch.randn(40, 650), fmt), torch.randn(43, 650)
    together = multiply(packed, x, level)
    if together is None:
        pytest.skip(f"this machine doesn't run {level}")
    for row in range(len(x)):
        alone = multiply(packed, x[row : row + 1], level)
        assert torch.equal(alone[0], together[row])
    for count in range(2, 14):  # a few rows have ways of their own, and so has what is left beside tiles
        assert torch.equal(multiply(packed, x[:count], level), together[:count]), count


@pytest.mark.parametrize(
    ("name", "most"), [("float32", 0), ("bfloat16", 2**-8), ("int8", 0.006), ("int4", 0.09)]
)
def test_what_packing_loses(name, most):
    weight = torch.randn(64, 256)
    back = pack_matrix(weight, FORMATS[name]).dequantised()
    assert (back - weight).norm() <= most * weight.norm()
    if name == "int4":  # better than the plain rounding to the largest magnitude
        groups = weight.view(64, -1, 32)
        scale = groups.abs().amax(-1, keepdim=True) / 7
        plain = (groups / scale).round().clamp(-8, 7) * scale
        assert (back.view_as(groups) - groups).norm() < 0.95 * (plain - groups).norm()


def test_extreme_values():
    weight = torch.zeros(16, 64)
    weight[0, 0], weight[1, 1], weight[2, 2], weight[3, 40] = 1e30, -1e-30, float("inf"), -65000.0
    for fmt in (FORMATS["int8"], FORMATS["int4"]):
        back = pack_matrix(weight, fmt).dequantised()
        assert torch.isfinite(back).all()
        assert back[3, 40] == pytest.approx(-65000.0, rel=0.01)
        assert not back[4:].any()


def test_experts_lie_one_after_the_other():
    weight = torch.randn(3, 20, 70)
    packed = pack_matrix(weight, FORMATS["float32"])
    assert packed.count == 3 and torch.equal(packed.dequantised(), weight)


@pytest.mark.parametrize(("name", "size"), [("int8", 34), ("int4", 18)])
def test_llama_cpp_blocks_are_taken_over_exactly(name, size):
    """Q8_0: half scale, 32 signed bytes. Q4_0: half scale, 16 bytes, low nibbles first, minus 8."""
    rows, columns = 21, 96
    blocks = torch.randint(0, 256, (rows, columns // 32, size), dtype=torch.uint8)
    scales = (torch.rand(rows, columns // 32, 1) * 0.1).half()
    blocks[:, :, :2] = scales.view(torch.uint8).view(rows, columns // 32, 2)
    stored = blocks[:, :, 2:]
    if name == "int8":
        q = stored.view(torch.int8).float()
    else:
        q = torch.cat([stored & 15, stored >> 4], -1).float() - 8
    want = (q * scales.float()).flatten(1)
    packed = pack_matrix(torch.zeros(rows, columns), FORMATS[name])
    blocks = blocks.contiguous()
    core().pack_blocks(blocks.data_ptr(), rows, columns, FORMATS[name], packed.data.data_ptr())
    assert torch.equal(packed.dequantised(), want)


@pytest.mark.parametrize(("name", "size"), [("int8", 34), ("int4", 18)])
@pytest.mark.parametrize("byte", [0x00, 0x7F, 0x80, 0xFF])
@pytest.mark.parametrize("batch", [1, 4, 9])
def test_numbers_at_their_ends_do_not_saturate(name, size, byte, batch):
    """AVX2 adds pairs of products in sixteen bits: none may come out cut off, of -128 neither."""
    blocks = torch.full((16, 3, size), byte, dtype=torch.uint8)
    blocks[:, :, :2] = torch.ones(16, 3, 1).half().view(torch.uint8)
    packed = pack_matrix(torch.zeros(16, 96), FORMATS[name])
    core().pack_blocks(blocks.data_ptr(), 16, 96, FORMATS[name], packed.data.data_ptr())
    x = torch.ones(batch, 96)  # 127 of 127 after rounding
    x[::2] *= -1
    for level in LEVELS:
        got = multiply(packed, x, level)
        if got is not None:
            torch.testing.assert_close(got, x @ packed.dequantised().T, rtol=1e-6, atol=0)
