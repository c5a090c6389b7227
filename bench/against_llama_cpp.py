"""Decoding and reading prompts beside llama.cpp: one file of random weights for both, in turns.

Needs llama-cpp-python (`pip install -e '.[bench]'`). Each side lives in a process of its own with its model
loaded; a run is asked of one and then of the other, so that clock and neighbours are the same for both, and
only one computes at a time. Medians are compared, and every single run is in the JSON.

    python bench/against_llama_cpp.py --quick
    python bench/against_llama_cpp.py --json results.json
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
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

CONTEXT = 9216
PAIRS = {"Q8_0": "int8", "Q4_0": "int4", "F16": "bfloat16"}


def shape(name: str) -> ModelConfig:
    """1b: Llama 3.2 1B's. 30m: a small one. moe: like Qwen3 MoE, 8 of 64 experts, about 1 B active."""
    if name == "1b":
        layers = (dense_layer(32, 8, 64, 8192, theta=5e5, qk_norm=False),) * 16
        return ModelConfig(2048, 128_256, layers, CONTEXT, family="llama")
    if name == "30m":
        layers = (dense_layer(8, 4, 64, 1408, qk_norm=False),) * 8
        return ModelConfig(512, 16_384, layers, CONTEXT, family="llama")
    attention = AttentionSpec(32, 4, 128, RopeSpec(128, 1e6), qk_norm="rms")
    return ModelConfig(
        2048, 65_536, (LayerSpec(attention, MoESpec(64, 8, 768)),) * 16, CONTEXT, family="qwen3_moe"
    )


# shape, kind of llama.cpp, what is done, cache of llama.cpp, cache of ours
CASES = [
    *(("1b", kind, "decode", "f16", "bfloat16") for kind in PAIRS),
    *(("1b", kind, "prefill", "f16", "bfloat16") for kind in ("Q8_0", "Q4_0")),
    ("1b", "Q8_0", "decode at 8k", "q8_0", "int8"),
    ("1b", "Q8_0", "8 streams", "f16", "bfloat16"),
    ("30m", "Q8_0", "decode", "f16", "bfloat16"),
    ("30m", "Q8_0", "prefill", "f16", "bfloat16"),
    ("moe", "Q8_0", "decode", "f16", "bfloat16"),
    ("moe", "Q4_0", "decode", "f16", "bfloat16"),
]
QUICK = [case for case in CASES if case[0] == "30m"]


def write_random_gguf(config: ModelConfig, kind: str, path: Path) -> None:
    """A GGUF file of the shape: 128 random rows packed once for each width, and repeated."""
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
                import torch

                generator = torch.Generator().manual_seed(0)
                rows_RK = torch.randn(128, size[-1], generator=generator) * 0.02
                patterns[key] = blocks.pack(kinds[name], rows_RK).numpy().tobytes()
            pattern = patterns[key]
            total = len(pattern) // 128 * rows
            for _ in range(total // len(pattern)):
                file.write(pattern)
            file.write(pattern[: total % len(pattern)] + bytes(padding(total)))


# ---- the two sides: each takes (steps) and answers with tokens a second
def ours(pipe: Connection, case: tuple[str, ...], threads: int, path: str, _: bool) -> None:
    """Our process."""
    import torch

    from ayllu.engine.executors import make_executor
    from ayllu.engine.quantize import pack_files

    torch.set_num_threads(threads)
    name, kind, what, _, cache = case
    config = shape(name)
    executor = make_executor(pack_files(path, PAIRS[kind]), PAIRS[kind], "cpu", cache)
    context, many, prompt = sizes(what)
    mode = "prefill" if prompt else "decode"
    work = workload(mode, executor, config, many, prompt or 1, context, 256)
    pipe.send(executor.name)
    while steps := pipe.recv():
        began = time.perf_counter()
        work(1 if prompt else steps)
        pipe.send((prompt or steps * many) / (time.perf_counter() - began))


def theirs(pipe: Connection, case: tuple[str, ...], threads: int, path: str, repack: bool) -> None:
    """llama.cpp's process, through its C interface."""
    import llama_cpp as llama

    _, _, what, cache, _ = case
    context, many, prompt = sizes(what)
    llama.llama_backend_init()
    llama.llama_log_set(_SILENT, None)
    loading = llama.llama_model_default_params()
    loading.use_extra_bufts = repack
    model = llama.llama_model_load_from_file(path.encode(), loading)
    params = llama.llama_context_default_params()
    params.n_ctx = many * (context + prompt + 600)
    params.n_batch, params.n_ubatch, params.n_seq_max = 2048, 512, many
    params.n_threads = params.n_threads_batch = threads
    params.type_k = params.type_v = {"f16": llama.GGML_TYPE_F16, "q8_0": llama.GGML_TYPE_Q8_0}[cache]
    if hasattr(params, "flash_attn_type"):  # a quantised cache of values needs it
        params.flash_attn_type = 1 if cache != "f16" else -1
    elif hasattr(params, "flash_attn"):
        params.flash_attn = cache != "f16"
    running = llama.llama_init_from_model(model, params)
    memory = llama.llama_get_memory(running)
    batch = llama.llama_batch_init(2048, 0, 1)
    ids = np.random.default_rng(0).integers(1000, size=CONTEXT)

    def step(rows: list[tuple[int, int, int, bool]]) -> None:
        """(token, position, sequence, logits wanted)"""
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.n_seq_id[i] = token, 1
            batch.pos[i], batch.seq_id[i][0], batch.logits[i] = position, sequence, wanted
        if llama.llama_decode(running, batch) != 0:
            raise RuntimeError("llama_decode failed")

    def read(sequence: int, count: int) -> None:
        for start in range(0, count, 512):
            end = min(start + 512, count)
            step([(int(ids[i]), i, sequence, i == count - 1) for i in range(start, end)])

    read(0, 64)  # whether it can at all
    llama.llama_memory_clear(memory, True)
    for sequence in range(many if context else 0):
        read(sequence, context)
    pipe.send(llama.llama_print_system_info().decode())
    while steps := pipe.recv():
        began = time.perf_counter()
        if prompt:
            llama.llama_memory_clear(memory, True)
            began = time.perf_counter()
            read(0, prompt)
        else:
            for sequence in range(many):  # as long as at first
                llama.llama_memory_seq_rm(memory, sequence, context, -1)
            began = time.perf_counter()
            for at in range(context, context + steps):
                step([(int(ids[at - context + 7 * s]), at, s, True) for s in range(many)])
        pipe.send((prompt or steps * many) / (time.perf_counter() - began))


def _silent() -> Any:
    try:
        import llama_cpp
    except ImportError:
        return None
    return llama_cpp.llama_log_callback(lambda level, text, data: None)


_SILENT = _silent()  # kept alive: llama.cpp calls it


def sizes(what: str) -> tuple[int, int, int]:
    """Context before the first step, texts at once, tokens of a prompt."""
    return {
        "decode": (64, 1, 0),
        "decode at 8k": (8192, 1, 0),
        "8 streams": (64, 8, 0),
        "prefill": (0, 1, 512),
    }[what]


def measured(
    case: tuple[str, ...], path: Path, threads: int, runs: int, *, repack: bool = True
) -> dict[str, Any]:
    """Runs in turns -> medians, ratio, all runs. `repack`: llama.cpp may repack weights for this machine; its
    kernels for that (AMX) crash on some virtual machines, and then it is measured without."""
    name, kind, what, *_ = case
    steps = {"30m": 200, "1b": 24, "moe": 24}[name] // (3 if "streams" in what else 1)
    context = multiprocessing.get_context("spawn")
    sides: list[tuple[Connection, Any]] = []
    try:
        for target in (ours, theirs):
            here, there = context.Pipe()
            process = context.Process(
                target=target, args=(there, case, threads, str(path), repack), daemon=True
            )
            process.start()
            there.close()
            sides.append((here, process))
        said = [sides[0][0].recv()]
        try:
            said.append(sides[1][0].recv())
        except EOFError:
            if not repack:
                raise RuntimeError("llama.cpp ended before its first token") from None
            sides[0][0].send(0)
            return measured(case, path, threads, runs, repack=False)
        found: list[list[float]] = [[], []]
        for run in range(runs + 1):
            for side, (pipe, _) in enumerate(sides):
                pipe.send(max(1, steps if run else steps // 4))
                speed = pipe.recv()
                if run:  # the first one warms up
                    found[side].append(speed)
        for pipe, _ in sides:
            pipe.send(0)
    finally:
        for _, process in sides:
            process.join(5)
            process.terminate()
    medians = [statistics.median(runs) for runs in found]
    return {
        "shape": name,
        "what": what,
        "ours": PAIRS[kind],
        "theirs": kind,
        "ours_tokens_per_second": medians[0],
        "theirs_tokens_per_second": medians[1],
        "ratio": medians[0] / medians[1],
        "ours_runs": found[0],
        "theirs_runs": found[1],
        "executor": said[0],
        "system_info": said[1],
        "theirs_repacked": repack,
    }


def results(cases: list[tuple[str, ...]], threads: int, runs: int, folder: Path) -> Iterator[dict[str, Any]]:
    for case in cases:
        path = folder / f"{case[0]}-{case[1]}.gguf"
        if not path.exists():
            for old in folder.glob("*.gguf"):  # one at a time on the disk
                old.unlink()
            write_random_gguf(shape(case[0]), case[1], path)
        yield measured(case, path, threads, runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the small shape only")
    parser.add_argument("--only", default="", help="cases whose words contain this, such as '1b Q4_0'")
    parser.add_argument("--runs", type=int, default=7, help="runs of each side (default 7)")
    parser.add_argument("--threads", type=int, default=0, help="0: the physical cores")
    parser.add_argument("--json", type=Path, help="write the results there")
    wish = parser.parse_args()
    if _SILENT is None:
        parser.exit(4, "llama-cpp-python is not here; what to do: pip install -e '.[bench]'\n")
    threads = wish.threads or machine.physical_cores()
    cases = [case for case in (QUICK if wish.quick else CASES) if wish.only in " ".join(case)]
    cases.sort(key=lambda case: case[:2])
    found = []
    print(f"{machine.chip_name()}, {threads} threads; tokens/s, medians of {wish.runs} runs in turns")
    print(f"{'shape':6}{'':14}{'ours':>10}{'':10}{'llama.cpp':>12}{'':6}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for row in results(cases, threads, wish.runs, Path(folder)):
            found.append(row)
            print(
                f"{row['shape']:6}{row['what']:14}{row['ours_tokens_per_second']:10,.1f} {row['ours']:9}"
                f"{row['theirs_tokens_per_second']:12,.1f} {row['theirs']:5}{row['ratio']:8.2f}"
                + ("" if row["theirs_repacked"] else "   (llama.cpp crashed with its repacked kernels)"),
                flush=True,
            )
    if wish.json:
        from importlib import metadata

        version = metadata.version("llama-cpp-python")
        write_json(
            wish.json,
            {"results": found, "machine": machine.describe(threads), "llama_cpp_python": version},
        )


if __name__ == "__main__":
    main()
