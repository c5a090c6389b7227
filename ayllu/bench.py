"""`ayllu bench`: how fast a model decodes, reads prompts and serves many texts at once on this machine.

Decoding reads every active weight once a step and the cache of every text, so that its roof is the speed of
reading memory; reading a prompt is bound by arithmetic (machine.py). Both roofs are measured here and now,
in turns with the runs, because the clock and the neighbours of a machine in use wander: the fraction is the
median of each run over the roof measured next to it. Random weights are made in packed form by repeating one
packed pattern, so that a model of any size starts in seconds; speed doesn't depend on their values.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ayllu import machine
from ayllu.errors import UsageError

if TYPE_CHECKING:
    from ayllu.engine.executors.executor import Executor
    from ayllu.engine.packed import PackedModel
    from ayllu.model.config import ModelConfig

MODES = ("decode", "prefill", "batch")
_BLOCK = 16
_STEP = 512  # prompt tokens of one step, as the engine takes them on a CPU
_WARM_UP = 2
# Two bytes 0x3c are a hundredth as bfloat16, one as half precision: a cache of ordinary numbers. Untouched
# memory would be one page of zeros, read from the nearest cache.
_FILLING = 0x3C


def bench(
    mode: str,
    model: str | None = None,
    *,
    preset: str | None = None,
    weights: str = "auto",
    cache: str = "auto",
    prompt_tokens: int = 512,
    tokens: int = 64,
    sequences: int = 8,
    context: int = 128,
    threads: int = 0,
    runs: int = 5,
    through_engine: bool = False,
) -> dict[str, Any]:
    """One measurement, ready for JSON: medians with the lowest and highest of `runs` runs.

    mode: "decode", one text token by token behind `context` tokens; "prefill", a prompt of `prompt_tokens`;
    "batch", `sequences` texts at once. `tokens`: steps of a run. `model`: a folder; or `preset` with random
    weights. `through_engine`: scheduling and sampling included.
    Errors: UsageError; InputNotFoundError; those of `open_model` and `make_executor`.
    """
    numbers = {
        "--prompt-tokens": prompt_tokens,
        "--tokens": tokens,
        "--sequences": sequences,
        "--context": context,
        "--runs": runs,
    }
    if mode not in MODES:
        raise UsageError(f"there is no bench {mode}", fix=f"choose {', '.join(MODES)}")
    if bad := [name for name, value in numbers.items() if not 1 <= value <= 10_000_000]:
        raise UsageError(f"{bad[0]} {numbers[bad[0]]} is not possible", fix="give a number from 1 on")
    if (model is None) == (preset is None):
        raise UsageError("what is to be measured?", fix="name a model folder, or --preset NAME --random")
    import torch

    threads = threads or machine.physical_cores()
    if not 1 <= threads <= machine.logical_processors():
        raise UsageError(
            f"--threads {threads} is not possible", fix=f"give 1 to {machine.logical_processors()}"
        )
    torch.set_num_threads(threads)
    began = time.perf_counter()
    packed, executor = _opened(model, preset, weights, cache)
    opened = time.perf_counter() - began
    # Through the engine a text begins with one token.
    longest = prompt_tokens if mode == "prefill" else tokens + 1 + (0 if through_engine else context)
    many = sequences if mode == "batch" else 1
    if longest > packed.config.context:
        raise UsageError(
            f"{longest:,} tokens are more than the model's context of {packed.config.context:,}",
            fix="ask for fewer",
        )
    if through_engine:
        work = _through_engine(executor, packed.config, mode, many, prompt_tokens, tokens)
    else:
        work = workload(mode, executor, packed.config, many, prompt_tokens, context, tokens)
    # Half of what is written stands before a token.
    behind = (1 + tokens) / 2 if through_engine else context
    step_bytes = read_bytes(packed, many) + many * behind * executor.block_bytes / _BLOCK
    for _ in range(_WARM_UP if mode == "decode" else 1):
        work(1)
    measured = [_run(mode, work, packed.config, many, prompt_tokens, tokens, step_bytes) for _ in range(runs)]
    return {
        "mode": mode,
        "model": model or preset,
        "random": preset is not None,
        "weights": packed.weights,
        "executor": executor.name,
        "through_engine": through_engine,
        "weight_bytes": packed.nbytes,
        "open_seconds": opened,
        "sequences": many,
        **(
            {"prompt_tokens": prompt_tokens}
            if mode == "prefill"
            else {"context": 1 if through_engine else context, "tokens": tokens}
        ),
        **{key: _spread([run[key] for run in measured]) for key in measured[0]},
        **({"product_type": str(machine.product_type()).removeprefix("torch.")} if mode == "prefill" else {}),
        "peak_memory_mb": machine.peak_memory_mb(),  # the measurement of the roof, some 256 MB, included
        "machine": machine.describe(threads),
    }


# ---- what is measured
def _opened(model: str | None, preset: str | None, weights: str, cache: str) -> tuple[PackedModel, Executor]:
    from ayllu.engine.executors import make_executor
    from ayllu.engine.packed import PackedModel
    from ayllu.engine.quantize import open_model, pack_files

    if preset is not None:
        from ayllu.model.presets import preset as find_preset

        packed = random_packed(find_preset(preset).config(), "int8" if weights == "auto" else weights)
    else:
        from ayllu.exchange import find

        path = find(str(model))
        opened = open_model(path, weights)
        packed = (
            opened
            if isinstance(opened, PackedModel)
            else pack_files(path, "float32" if weights == "auto" else weights)
        )
    return packed, make_executor(packed, packed.weights, "cpu", cache)


def random_packed(config: ModelConfig, weights: str) -> PackedModel:
    """A decoder's packed weights without a float copy of them: 128 random rows packed once for each width and
    repeated. Errors: those of `layout_of`."""
    import torch

    from ayllu.engine.packed import aligned, pack_matrix
    from ayllu.engine.quantize import layout_of, over

    layout = layout_of(config, weights)
    packed = over(layout, aligned(layout.size))
    generator = torch.Generator().manual_seed(0)
    patterns: dict[tuple[int, int], Any] = {}
    for matrix in packed.matrices.values():
        key = (matrix.columns, matrix.format)
        if key not in patterns:
            rows_RK = torch.randn(128, matrix.columns, generator=generator) * 0.02
            patterns[key] = pack_matrix(rows_RK, matrix.format).data
        pattern, left = patterns[key], matrix.data
        whole = len(left) // len(pattern)
        left[: whole * len(pattern)].view(whole, len(pattern)).copy_(pattern.expand(whole, -1))
        left[whole * len(pattern) :].copy_(pattern[: len(left) - whole * len(pattern)])
    for vector in packed.vectors.values():
        vector.fill_(1.0)
    return packed


def read_bytes(packed: PackedModel, sequences: int) -> float:
    """Bytes of weights that one decode step reads: an embedding that is the head too, once; of experts those
    that `sequences` tokens are expected to choose when all are chosen equally often."""
    from ayllu.model.config import MoESpec

    experts = {
        f"blocks.{i}.mlp.{part}": (spec.mlp.active, spec.mlp.experts)
        for i, spec in enumerate(packed.config.layers)
        if isinstance(spec.mlp, MoESpec)
        for part in ("gate_up", "down")
    }
    total = 4.0 * sum(v.numel() for v in packed.vectors.values())
    for name, matrix in packed.matrices.items():
        if name == "embedding" and not packed.config.tied:
            continue
        active, held = experts.get(name, (1, 1))
        total += matrix.data.numel() * (1 - (1 - active / held) ** sequences if held > 1 else 1)
    return total


# ---- how it is measured
def workload(
    mode: str,
    executor: Executor,
    config: ModelConfig,
    sequences: int,
    prompt_tokens: int,
    context: int,
    tokens: int,
) -> Callable[[int], None]:
    """What does a number of steps (decode, batch) or of prompts (prefill)."""
    from ayllu.engine.batch import Batch

    longest = prompt_tokens if mode == "prefill" else context + tokens + 1
    width = -(-longest // _BLOCK)
    executor.reserve(sequences * width)
    if (memory := getattr(executor, "cache_BX", None)) is not None:
        memory.fill_(_FILLING)
    tables_SW = np.arange(sequences * width, dtype=np.int32).reshape(sequences, width)
    ids = np.random.default_rng(0).integers(config.vocab_size, size=longest).astype(np.int32)
    rows = np.arange(sequences, dtype=np.int32)

    def decode(steps: int) -> None:
        for step in range(steps):
            position = context + step % tokens
            token = ids[(position + 7 * rows) % longest]  # each text its own, or all would choose one expert
            executor.step(Batch(token, np.full_like(rows, position), rows, tables_SW, rows))

    def prefill(prompts: int) -> None:
        for _ in range(prompts):
            for start in range(0, prompt_tokens, _STEP):
                at = np.arange(start, min(start + _STEP, prompt_tokens), dtype=np.int32)
                last = at[-1] == prompt_tokens - 1
                wanted = np.array([len(at) - 1] if last else [], dtype=np.int32)
                executor.step(Batch(ids[at], at, np.zeros_like(at), tables_SW, wanted))

    return prefill if mode == "prefill" else decode


def _through_engine(
    executor: Executor, config: ModelConfig, mode: str, sequences: int, prompt_tokens: int, tokens: int
) -> Callable[[int], None]:
    """The same through submit, schedule, sample: greedy, no stops, no reuse of what was read before."""
    from ayllu.engine.engine import Engine
    from ayllu.engine.request import SamplingParams
    from ayllu.model.weights import shell_of

    longest = prompt_tokens + 2 if mode == "prefill" else tokens + 2
    blocks = sequences * -(-longest // _BLOCK) + 1
    engine = Engine(
        shell_of(config), executor=executor, cache_blocks=blocks, max_sequences=sequences, prefix_cache=False
    )
    ids = np.random.default_rng(0).integers(config.vocab_size, size=longest).tolist()

    def work(steps: int) -> None:
        for _ in range(steps if mode == "prefill" else 1):
            prompt, more = (ids[:prompt_tokens], 1) if mode == "prefill" else (ids[:1], max(1, steps))
            params = SamplingParams(max_tokens=more, temperature=0.0)
            waiting = [engine.submit([*prompt[:-1], number], params) for number in range(sequences)]
            while not all(sequence.finished for sequence in waiting):
                engine.step()

    return work


def _run(
    mode: str,
    work: Callable[[int], None],
    config: ModelConfig,
    sequences: int,
    prompt_tokens: int,
    tokens: int,
    step_bytes: float,
) -> dict[str, float]:
    from ayllu.model.counts import active_parameters, embedding_parameters

    steps = 1 if mode == "prefill" else tokens
    began = time.perf_counter()
    work(steps)
    seconds = time.perf_counter() - began
    if mode == "prefill":
        inner = active_parameters(config) - embedding_parameters(config)
        flops = 2.0 * inner * prompt_tokens / seconds
        roof = machine.measure_matmul(2048, 2048, 2048, machine.product_type(), seconds=0.3)
        return {
            "tokens_per_second": prompt_tokens / seconds,
            "gflops": flops / 1e9,
            "roof_gflops": roof / 1e9,
            "fraction": flops / roof,
        }
    rate = step_bytes * steps / seconds
    roof = machine.measure_read_bandwidth()
    return {
        "tokens_per_second": sequences * steps / seconds,
        "gb_per_second": rate / 1e9,
        "roof_gb_per_second": roof / 1e9,
        "fraction": rate / roof,
    }


def _spread(values: list[float]) -> dict[str, Any]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values), "runs": values}


def page(said: Mapping[str, Any]) -> str:
    """For people."""
    size = f"{said['weight_bytes'] / 1e9:,.2f} GB of {said['weights']} weights"
    kind = ", random" if said["random"] else ""
    lines = [
        f"{Path(said['model']).name}{kind}: {size}, {said['machine']['threads']} threads, "
        f"{said['machine']['chip']}",
        f"{said['executor']}" + (", through the engine" if said["through_engine"] else ""),
    ]
    names = {
        "tokens_per_second": "tokens/s",
        "gb_per_second": "GB/s read",
        "roof_gb_per_second": "GB/s roof",
        "gflops": "GFLOP/s",
        "roof_gflops": f"GFLOP/s of {said.get('product_type', '')} products in torch",
        "fraction": "of the roof",
    }
    for key, unit in names.items():
        if key not in said:
            continue
        factor, sign = (100, " %") if key == "fraction" else (1, "")
        middle, low, high = (said[key][part] * factor for part in ("median", "low", "high"))
        first = said["mode"] if key == "tokens_per_second" else ""
        lines.append(f"{first:8}{middle:10,.1f}{sign} {unit} ({low:,.1f} to {high:,.1f})")
    return "\n".join(lines)
