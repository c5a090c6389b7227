"""Decoding and reading prompts beside llama.cpp: the same random weights for both, in turns.

Each side lives in a process of its own with its model loaded; a run is asked of one and then of the next, so
that clock and neighbours are the same for all, and only one computes at a time. Medians are compared, and
every single run is in the JSON.

    python bench/against_llama_cpp.py --list
    python bench/against_llama_cpp.py int8 int4 --json results.json

Needs llama-cpp-python. `pip install -e '.[bench]'` builds it for this machine. Where its AMX kernels crash
(some virtual machines), build it without them and with the rest, so that it keeps its repacked weights:

    CFLAGS="-march=native -mno-amx-tile -mno-amx-int8 -mno-amx-bf16" CXXFLAGS="$CFLAGS" \\
    CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX_VNNI=ON -DGGML_AVX512=ON -DGGML_AVX512_VBMI=ON \\
        -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON" pip install --no-cache-dir llama-cpp-python
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from ayllu import machine
from ayllu.bench import workload
from ayllu.files import write_json
from ayllu.gguf import KINDS, header_bytes, padding
from ayllu.model.config import AttentionSpec, LayerSpec, ModelConfig, MoESpec, RopeSpec, dense_layer
from ayllu.model.formats import blocks
from ayllu.model.formats.llamacpp_export import metadata_of, tensors_of
from ayllu.model.weights import shell_of

LONGEST = 9216
CHUNK = 512  # prompt tokens of one call of llama.cpp
PAIRS = {"int8": "Q8_0", "int4": "Q4_0", "bfloat16": "BF16"}  # which file of the peer's our weights come from


@dataclass(frozen=True)
class Side:
    """Who runs: "ours" with packed weights, or "llama.cpp" with a kind of its own."""

    who: str
    weights: str
    streams: int = 1

    @property
    def kind(self) -> str:
        return PAIRS[self.weights] if self.who == "ours" else self.weights

    @property
    def label(self) -> str:
        return f"{self.who} {self.weights}" + (f" x {self.streams}" if self.streams > 1 else "")


@dataclass(frozen=True)
class Row:
    """One comparison. `prompt` > 0: so many tokens are read at once; else `steps` decoded after `context`."""

    shape: str
    sides: tuple[Side, ...]
    steps: int = 24
    context: int = 64
    prompt: int = 0
    small_cache: bool = False  # int8 beside q8_0, else bfloat16 beside f16


def _beside(shape: str, ours: str, *theirs: str, **more: Any) -> Row:
    return Row(shape, (Side("ours", ours), *(Side("llama.cpp", kind) for kind in theirs)), **more)


ROWS = {
    "int8": _beside("1b", "int8", "Q8_0"),
    "int4": _beside("1b", "int4", "Q4_0"),
    "bf16": _beside("1b", "bfloat16", "F16", "BF16", steps=12),
    "prefill": Row(
        "1b",
        (
            Side("ours", "int8"),
            Side("ours", "int4"),
            Side("llama.cpp", "Q8_0"),
            Side("llama.cpp", "Q4_0"),
        ),
        prompt=512,
    ),
    "8k": _beside("1b", "int8", "Q8_0", steps=8, context=8192, small_cache=True),
    "8-streams": Row("1b", (Side("ours", "int8"), Side("ours", "int8", 8), Side("llama.cpp", "Q8_0", 8)), 8),
    "30m": _beside("30m", "int8", "Q8_0", steps=200),
    "30m-prefill": _beside("30m", "int8", "Q8_0", "Q4_0", prompt=512),
    "moe-int8": _beside("moe", "int8", "Q8_0", steps=16),
    "moe-int4": _beside("moe", "int4", "Q4_0", steps=16),
}


def shape(name: str) -> ModelConfig:
    """1b: Llama 3.2 1B's. 30m: a small one. moe: like Qwen3 MoE, 8 of 64 experts, about 1 B active."""
    if name == "1b":
        layers = (dense_layer(32, 8, 64, 8192, theta=5e5, qk_norm=False),) * 16
        return ModelConfig(2048, 128_256, layers, LONGEST, family="llama")
    if name == "30m":
        layers = (dense_layer(8, 4, 64, 1408, qk_norm=False),) * 8
        return ModelConfig(512, 16_384, layers, LONGEST, family="llama")
    attention = AttentionSpec(32, 4, 128, RopeSpec(128, 1e6), qk_norm="rms")
    return ModelConfig(
        2048, 65_536, (LayerSpec(attention, MoESpec(64, 8, 768)),) * 16, LONGEST, family="qwen3_moe"
    )


def write_random_gguf(config: ModelConfig, kind: str, path: Path) -> None:
    """A GGUF file of the shape: 128 random rows packed once for each width, and repeated."""
    import torch

    tensors = tensors_of(config, shell_of(config).state_dict())
    shapes = {name: tuple(tensor.shape) for name, (tensor, _) in tensors.items()}
    plain = {name for name, size in shapes.items() if len(size) == 1 or "ffn_gate_inp" in name}
    kinds = {name: "F32" if name in plain else kind for name in shapes}
    values = metadata_of(config) | {"tokenizer.ggml.model": "none", "general.quantization_version": 2}
    head = header_bytes(values, {name: (KINDS[kinds[name]], size) for name, size in shapes.items()})
    patterns: dict[tuple[int, str], bytes] = {}
    with open(path, "wb") as file:
        file.write(head)
        for name, size in shapes.items():
            rows = int(np.prod(size[:-1]))
            if len(size) == 1:
                data = np.ones(size, np.float32).tobytes()
                file.write(data + bytes(padding(len(data))))
                continue
            key = (size[-1], kinds[name])
            if key not in patterns:
                generator = torch.Generator().manual_seed(0)
                rows_RK = torch.randn(128, size[-1], generator=generator) * 0.02
                patterns[key] = blocks.pack(kinds[name], rows_RK).numpy().tobytes()
            pattern = patterns[key]
            total = len(pattern) // 128 * rows
            for _ in range(total // len(pattern)):
                file.write(pattern)
            file.write(pattern[: total % len(pattern)] + bytes(padding(total)))


# ---- the sides: each is told a number of steps and answers with tokens a second
def ours(pipe: Connection, row: Row, side: Side, threads: int, path: str, _: bool) -> None:
    """Our process."""
    import torch

    from ayllu.engine.executors import make_executor
    from ayllu.engine.quantize import pack_files

    torch.set_num_threads(threads)
    cache = "int8" if row.small_cache else "bfloat16"
    executor = make_executor(pack_files(path, side.weights), side.weights, "cpu", cache)
    mode = "prefill" if row.prompt else "decode"
    work = workload(mode, executor, shape(row.shape), side.streams, row.prompt or 1, row.context, 256)
    pipe.send(executor.name)
    while steps := pipe.recv():
        began = time.perf_counter()
        work(1 if row.prompt else steps)
        pipe.send((row.prompt or steps * side.streams) / (time.perf_counter() - began))


def theirs(pipe: Connection, row: Row, side: Side, threads: int, path: str, repack: bool) -> None:
    """llama.cpp's process, through its C interface."""
    import llama_cpp as llama

    streams = side.streams
    llama.llama_backend_init()
    llama.llama_log_set(_SILENT, None)
    loading = llama.llama_model_default_params()
    loading.use_extra_bufts = repack
    model = llama.llama_model_load_from_file(path.encode(), loading)
    params = llama.llama_context_default_params()
    params.n_ctx = streams * (row.context + row.prompt + 600)
    params.n_batch, params.n_ubatch = 2048, CHUNK
    params.n_seq_max = max(streams, -(-row.context // CHUNK))
    params.kv_unified = streams == 1
    params.n_threads = params.n_threads_batch = threads
    params.type_k = params.type_v = llama.GGML_TYPE_Q8_0 if row.small_cache else llama.GGML_TYPE_F16
    params.flash_attn_type = 1 if row.small_cache else -1  # a quantised cache of values needs it
    running = llama.llama_init_from_model(model, params)
    memory = llama.llama_get_memory(running)
    batch = llama.llama_batch_init(2048, 0, 1)
    ids = np.random.default_rng(0).integers(1000, size=LONGEST)

    def step(rows: list[tuple[int, int, int, bool]]) -> None:
        """(token, position, sequence, logits wanted)"""
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.n_seq_id[i] = token, 1
            batch.pos[i], batch.seq_id[i][0], batch.logits[i] = position, sequence, wanted
        if llama.llama_decode(running, batch) != 0:
            raise RuntimeError("llama_decode failed")

    def read(sequence: int, start: int, end: int) -> None:
        step([(int(ids[i]), i, sequence, i == end - 1) for i in range(start, end)])

    read(0, 0, 64)  # whether it can at all
    llama.llama_memory_clear(memory, True)
    if not row.prompt and streams == 1:
        # A long context in chunks that don't see each other, put together afterwards: what is in the cache
        # doesn't matter for speed, and reading 8,192 tokens behind each other would take minutes.
        for number, start in enumerate(range(0, row.context, CHUNK)):
            read(number, start, min(start + CHUNK, row.context))
            if number:
                llama.llama_memory_seq_cp(memory, number, 0, -1, -1)
                llama.llama_memory_seq_rm(memory, number, -1, -1)
    for sequence in range(streams if streams > 1 else 0):
        read(sequence, 0, row.context)
    pipe.send(llama.llama_print_system_info().decode())
    while steps := pipe.recv():
        if row.prompt:
            llama.llama_memory_clear(memory, True)
        for sequence in range(0 if row.prompt else streams):  # as long as at first
            llama.llama_memory_seq_rm(memory, sequence, row.context, -1)
        began = time.perf_counter()
        if row.prompt:
            read(0, 0, row.prompt)
        for at in range(row.context, row.context + (0 if row.prompt else steps)):
            step([(int(ids[at - row.context + 7 * s]), at, s, True) for s in range(streams)])
        pipe.send((row.prompt or steps * streams) / (time.perf_counter() - began))


def _silent() -> Any:
    try:
        import llama_cpp
    except ImportError:
        return None
    return llama_cpp.llama_log_callback(lambda level, text, data: None)


_SILENT = _silent()  # kept alive: llama.cpp calls it


# ---- in turns
def measured(
    name: str, paths: dict[str, Path], threads: int, runs: int, *, repack: bool = True
) -> dict[str, Any]:
    """Runs in turns -> medians, ratios, all runs. `repack`: llama.cpp may repack weights for this machine;
    some of its kernels for that (AMX) crash on some virtual machines: it is then measured without, and the
    JSON says so."""
    row = ROWS[name]
    context = multiprocessing.get_context("spawn")
    pipes: list[Connection] = []
    processes: list[Any] = []
    said: list[str] = []
    try:
        for side in row.sides:
            here, there = context.Pipe()
            process = context.Process(
                target=ours if side.who == "ours" else theirs,
                args=(there, row, side, threads, str(paths[side.kind]), repack),
                daemon=True,
            )
            process.start()
            there.close()
            pipes.append(here)
            processes.append(process)
            try:
                said.append(here.recv())
            except EOFError:
                if side.who == "ours" or not repack:
                    raise RuntimeError(f"{side.label} ended before its first token") from None
                return measured(name, paths, threads, runs, repack=False)
        found: list[list[float]] = [[] for _ in row.sides]
        roofs = []
        for run in range(runs + 1):
            for speeds, pipe in zip(found, pipes, strict=True):
                time.sleep(0.05)  # the threads of the last one have gone to sleep
                pipe.send(row.steps if run else max(1, row.steps // 4))
                speed = pipe.recv()
                if run:  # the first one warms up
                    speeds.append(speed)
            if run:
                roofs.append(machine.measure_read_bandwidth(1000, seconds=0.1))
        for pipe in pipes:
            pipe.send(0)
    finally:
        for process in processes:
            process.join(5)
            process.terminate()
    medians = [statistics.median(speeds) for speeds in found]
    best = max(speed for side, speed in zip(row.sides, medians, strict=True) if side.who != "ours")
    return {
        "row": name,
        **{key: value for key, value in asdict(row).items() if key != "sides"},
        "sides": [
            {
                **asdict(side),
                "label": side.label,
                "tokens_per_second": speed,
                "times_best_of_theirs": speed / best,
                "runs": speeds,
                "says": says,
            }
            for side, speed, speeds, says in zip(row.sides, medians, found, said, strict=True)
        ],
        "read_bandwidth_gb": statistics.median(roofs) / 1e9,
        "theirs_repacked": repack,
    }


def results(names: list[str], threads: int, runs: int, folder: Path) -> Iterator[dict[str, Any]]:
    """One row after the other; files of random weights are kept while the next row needs them."""
    for name in names:
        row = ROWS[name]
        paths = {side.kind: folder / f"{row.shape}-{side.kind}.gguf" for side in row.sides}
        for old in set(folder.glob("*.gguf")) - set(paths.values()):
            old.unlink()
        for kind, path in paths.items():
            if not path.exists():
                write_random_gguf(shape(row.shape), kind, path)
        yield measured(name, paths, threads, runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("rows", nargs="*", help="what to compare (default: all)")
    parser.add_argument("--list", action="store_true", help="name the rows")
    parser.add_argument("--runs", type=int, default=5, help="runs of each side (default 5)")
    parser.add_argument("--threads", type=int, default=0, help="0: the physical cores")
    parser.add_argument("--json", type=Path, help="write the results there")
    wish = parser.parse_args()
    if wish.list or set(wish.rows) - set(ROWS):
        parser.exit(0 if wish.list else 2, f"rows: {' '.join(ROWS)}\n")
    if _SILENT is None:
        parser.exit(4, "llama-cpp-python is not here; what to do: pip install -e '.[bench]'\n")
    threads = wish.threads or machine.physical_cores()
    import torch

    torch.set_num_threads(threads)
    found = []
    print(f"{machine.chip_name()}, {threads} threads; tokens/s, medians of {wish.runs} runs in turns")
    with tempfile.TemporaryDirectory() as folder:
        for result in results(wish.rows or list(ROWS), threads, wish.runs, Path(folder)):
            found.append(result)
            print(f"{result['row']}  (memory read at {result['read_bandwidth_gb']:.1f} GB/s)")
            for side in result["sides"]:
                ratio = f"{side['times_best_of_theirs']:8.2f} x" if side["who"] == "ours" else ""
                print(f"    {side['label']:20}{side['tokens_per_second']:10,.1f}{ratio}", flush=True)
            if not result["theirs_repacked"]:
                print("    llama.cpp crashed with its repacked kernels and was measured without them")
    if wish.json:
        from importlib import metadata

        said = {"results": found, "machine": machine.describe(threads)}
        write_json(wish.json, said | {"llama_cpp_python": metadata.version("llama-cpp-python")})


if __name__ == "__main__":
    main()
