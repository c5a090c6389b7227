"""Every Triton kernel against plain torch; without a GPU in Triton's interpreter, on the CPU and in full."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cuda_models import DEVICE, GPU, randoms  # first: it chooses the interpreter before Triton is imported

pytest.importorskip("triton", reason="Triton, which the kernels are written in, isn't installed")

from ayllu.gpu import attention, products, rows
from ayllu.gpu.weight_only import KINDS, WeightOnly
from ayllu.model.mlp import gated


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """The interpreter runs programs one after the other: as many as a small chip would want."""
    if not GPU:
        monkeypatch.setattr(attention, "PROGRAMS", 16)
        monkeypatch.setattr(products, "ROWS", (64, 64))


@pytest.mark.parametrize("count", [1, 2, 19])
@pytest.mark.parametrize("shape", [(40, 130), (5, 17)])
@pytest.mark.parametrize("kind", [*KINDS, None])
def test_products(kind, shape, count, monkeypatch):
    monkeypatch.setattr(products, "ROWS", (4, 8))
    weight, bias = randoms(*shape), randoms(shape[0], seed=1)
    weight[3], weight[:, 5], weight[1, 2] = 0.0, 1e-6, 1e4
    x = randoms(count, shape[1], seed=2)
    if kind is None:
        data, scale, exact = weight, None, weight
    else:
        packed = WeightOnly(weight, bias, kind, torch.float32)
        data, scale, exact = packed.data, packed.scale, packed.weight
    got = products.product(x, data, scale, bias, shape[0], out=torch.float32)
    want = F.linear(x.double(), exact.double(), bias.double())
    assert (got - want).abs().max() <= 2e-6 * want.abs().max()


@pytest.mark.parametrize("kind", [*KINDS, None])
def test_products_of_many_matrices(kind):
    weight, x = randoms(4, 21, 70), randoms(3, 70, seed=1)
    packed = WeightOnly(weight, None, kind, torch.float32) if kind else None
    exact = weight if packed is None else packed.weight
    data, scale = (weight, None) if packed is None else (packed.data, packed.scale)
    which = torch.tensor([3, 0, 1, 1, 2, 3], dtype=torch.int32, device=DEVICE)
    got = products.product(x, data, scale, None, 21, out=torch.float32, which_M=which, repeats=2)
    want = torch.einsum("mc,mrc->mr", x.repeat_interleave(2, 0), exact[which.long()])
    assert torch.allclose(got, want, atol=2e-5)


@pytest.mark.parametrize(("kind", "most"), [("int8", 0.006), ("int4", 0.09), ("fp8", 0.03)])
def test_few_bits_are_close(kind, most):
    weight = randoms(64, 200, spread=0.1)
    error = WeightOnly(weight, None, kind, torch.float32).weight - weight
    assert error.norm() <= most * weight.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_few_bits_of_nothing_and_of_odd_numbers(kind):
    assert not WeightOnly(torch.zeros(3, 70), None, kind, torch.float32).weight.any()
    large = torch.tensor([[3e38, -2e38, 1.0, 0.0]])
    assert torch.allclose(WeightOnly(large, None, kind, torch.float32).weight, large, atol=3e37)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "window", "chunk"),
    [(4, 2, 12, None, None), (20, 1, 24, 30, None), (2, 2, 16, None, 48)],
)
def test_attention(heads, kv_heads, dim, window, chunk, dtype):
    k, v = (randoms(9, 16, kv_heads, dim, seed=s).to(dtype) for s in (1, 2))
    q = randoms(4, heads, dim, seed=3).to(dtype)
    positions, order = [97, 0, -1, 64], np.random.default_rng(0).permutation(9)
    plan = torch.tensor([[0, p, *order] for p in positions], dtype=torch.int32, device=DEVICE)
    plan[1, 3:] = 10**6  # never looked at
    plan[2, 2:] = 10**6
    got = attention.attend(q, k, v, plan, scale=0.3, window=window, chunk=chunk)
    for row, position in enumerate(positions):
        first = max(0, position - window + 1 if window else 0, position // chunk * chunk if chunk else 0)
        if position < 0:
            assert not got[row].any()
            continue
        blocks = torch.from_numpy(order[: position // 16 + 1]).to(DEVICE)
        keys, values = (
            t[blocks].flatten(0, 1)[first : position + 1].float().repeat_interleave(heads // kv_heads, 1)
            for t in (k, v)
        )
        p = (torch.einsum("hd,khd->hk", q[row].float(), keys) * 0.3).softmax(-1)
        want = torch.einsum("hk,khd->hd", p, values)
        assert torch.allclose(got[row].float(), want, atol=1e-5 if dtype == torch.float32 else 0.02)


def test_stretches(monkeypatch):
    k, v, q = randoms(9, 16, 2, 8), randoms(9, 16, 2, 8, seed=1), randoms(9, 2, 8, seed=2)
    plan = torch.tensor([[0, i, i] for i in range(9)], dtype=torch.int32, device=DEVICE)
    mask = torch.arange(16, device=DEVICE) <= plan[:, 1:2]
    p = torch.einsum("shd,skhd->shk", q, k).masked_fill(~mask[:, None], -torch.inf).softmax(-1)
    want = torch.einsum("shk,skhd->shd", p, v)
    for programs, sequences, splits in ((16, 9, 1), (150, 9, 8), (264, 1, 32)):
        monkeypatch.setattr(attention, "PROGRAMS", programs)
        assert attention.splits_for(sequences, 2) == splits
        got = attention.attend(q[-sequences:], k, v, plan[-sequences:], scale=1.0)
        assert torch.allclose(got, want[-sequences:], atol=1e-5)


def test_what_stands_between_products():
    x, added, weight = randoms(3, 37, spread=5.0), randoms(3, 37, seed=1), randoms(37, seed=2)
    total = x + added
    want = total * torch.rsqrt(total.square().mean(-1, keepdim=True) + 1e-5) * weight
    assert torch.allclose(rows.add_norm(x, added, weight, 1e-5), want, atol=1e-5)
    assert torch.equal(x, total)
    assert torch.allclose(rows.add_norm(x, None, weight, 1e-5), want, atol=1e-5)
    extreme = torch.cat([randoms(2, 2100), torch.full((2, 100), -300.0, device=DEVICE)], 1).contiguous()
    assert torch.allclose(rows.gate(extreme), gated(extreme, "silu"), atol=1e-5)


def test_nobody_stores_nothing():
    cache = torch.zeros(2, 16, 1, 16, device=DEVICE)
    plan = torch.tensor([[0, -1, 0], [0, 3, 1]], dtype=torch.int32, device=DEVICE)
    options = {"heads": 1, "norms": None, "tables": None, "interleaved": False, "eps": 1e-6}
    qkv = randoms(2, 48)
    values = torch.zeros_like(cache)
    q = rows.place(qkv, cache, values, plan, **options)
    assert torch.equal(q[:, 0], qkv[:, :16])
    assert torch.equal(cache[1, 3, 0], qkv[1, 16:32]) and torch.equal(values[1, 3, 0], qkv[1, 32:])
    assert cache.count_nonzero() == values.count_nonzero() == 16


@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles on Linux")
def test_every_kernel_compiles_for_hopper():
    here = Path(__file__).parent
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "0",
        "PYTHONPATH": os.pathsep.join([str(here), *sys.path]),
    }
    done = subprocess.run(
        [sys.executable, here / "compile_kernels.py", "90"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    compiled = {line.split()[0] for line in done.stdout.splitlines()}
    assert compiled == {"_one_row", "_rows", "_stretch", "_together", "_add_norm", "_place", "_gate"}
