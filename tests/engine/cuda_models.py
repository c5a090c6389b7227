"""Decoders that the kernels of the cuda executor run, and one decode step of each."""

import torch
from test_native_executor import ATTENTION, CONFIGS, GROUPED, YARN, batch, random_model

from ayllu.engine.executors.cuda import WEIGHTS, CudaExecutor
from ayllu.model.config import LayerSpec, MLPSpec, ModelConfig

DECODERS = {
    **CONFIGS,
    "rotation of neighbours and of a part, many heads to one": ModelConfig(
        72,
        100,
        (
            LayerSpec(
                ATTENTION.__class__(20, 1, 24, YARN, qk_norm="rms"),
                MLPSpec(70),
            ),
        ),
        200,
    ),
}
FEW_BITS = ("int8", "int4", "fp8")
assert set(FEW_BITS) < set(WEIGHTS) and GROUPED.experts


def decode_everything() -> None:
    """Every decoder in every kind of weights, one sequence and three, and the sizes of large models."""
    for config in DECODERS.values():
        for weights in WEIGHTS:
            executor = CudaExecutor(random_model(config), weights)
            executor.reserve(10)
            executor.step(batch([(0, 30, [1])]))
            executor.step(batch([(row, 30 + row, [row]) for row in range(3)]))
            assert not executor.without_kernels, executor.without_kernels
    large_shapes()


def large_shapes() -> None:
    """The kernels alone, at the sizes of Llama 3.1 8B and Qwen3 0.6B; nothing is read or written."""
    from ayllu.model.gpu import attention, products

    bits = {torch.int32: 8, torch.float8_e4m3fn: 1, torch.bfloat16: 1}
    for rows, columns in ((6144, 4096), (4096, 14336), (128_256, 4096), (1024, 3072)):
        for kind, per in bits.items():
            for count in (1, 16, 64):
                data = torch.empty(rows, columns // per, dtype=kind)
                scale = {torch.int32: torch.empty(rows, columns // 32, dtype=torch.bfloat16)}.get(kind)
                scale = torch.empty(rows) if kind == torch.float8_e4m3fn else scale
                x = torch.empty(count, columns, dtype=torch.bfloat16)
                products.product(x, data, scale, None, rows, out=torch.bfloat16)
    for count, heads, kv_heads, dim in ((1, 32, 8, 128), (256, 16, 8, 128), (16, 64, 8, 64)):
        cache = torch.empty(10, 16, kv_heads, dim, dtype=torch.bfloat16)
        q = torch.empty(count, heads, dim, dtype=torch.bfloat16)
        plan = torch.empty(count, 514, dtype=torch.int32)
        attention.attend(q, cache, cache, plan, scale=0.1)
