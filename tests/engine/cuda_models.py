# ruff: noqa: E402
"""Decoders that the kernels of the cuda executor run, and one decode step of each."""

import os
from dataclasses import replace

import torch

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
if not GPU:
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read where kernels are defined

from test_native_executor import ATTENTION, CONFIGS, YARN, batch, random_model

from ayllu.engine.executors.cuda import CudaExecutor
from ayllu.model.config import LayerSpec, MLPSpec, ModelConfig

DECODERS = {
    **CONFIGS,
    "rotation of neighbours and of a part, many heads to one": ModelConfig(
        72,
        100,
        (LayerSpec(replace(ATTENTION, heads=20, kv_heads=1, rope=YARN, qk_norm="rms"), MLPSpec(70)),),
        200,
    ),
}


def randoms(*shape: int, seed: int = 0, spread: float = 1.0) -> torch.Tensor:
    return (spread * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(DEVICE)


def decode_some(names: list[str], kinds: list[str]) -> None:
    """Decoders in kinds of weights, one sequence and three, then the sizes of large models."""
    for name in names:
        for weights in kinds:
            executor = CudaExecutor(random_model(DECODERS[name]), weights)
            executor.reserve(10)
            executor.step(batch([(0, 30, [1])]))
            executor.step(batch([(row, 30 + row, [row]) for row in range(3)]))
            assert not executor.without_kernels, executor.without_kernels
    large_shapes()


def large_shapes() -> None:
    """The kernels alone, at the sizes of Llama 3.1 8B and Qwen3 0.6B; nothing is read or written."""
    from ayllu.gpu import attention, products

    bits = {torch.int32: 8, torch.float8_e4m3fn: 1, torch.bfloat16: 1}
    for rows, columns in ((6144, 4096), (128_256, 4096)):
        for kind, per in bits.items():
            for count in (1, 16):
                data = torch.empty(rows, columns // per, dtype=kind)
                scale = {torch.int32: torch.empty(rows, columns // 32, dtype=torch.bfloat16)}.get(kind)
                scale = torch.empty(rows) if kind == torch.float8_e4m3fn else scale
                x = torch.empty(count, columns, dtype=torch.bfloat16)
                products.product(x, data, scale, None, rows, out=torch.bfloat16)
    for count, heads, kv_heads, dim in ((1, 32, 8, 128), (256, 16, 8, 128)):
        cache = torch.empty(10, 16, kv_heads, dim, dtype=torch.bfloat16)
        q = torch.empty(count, heads, dim, dtype=torch.bfloat16)
        plan = torch.empty(count, 514, dtype=torch.int32)
        attention.attend(q, cache, cache, plan, scale=0.1)
