"""Everything that wants a GPU, in one script: is the cuda executor right, does a run go on, then how fast.

    python bench/gpu.py --out results                     all parts
    python bench/gpu.py --out results --parts correct tests recipe      before a run that takes hours
    TRITON_INTERPRET=1 python bench/gpu.py --out /tmp/x --tiny     a dry run on a CPU, of tiny models

Parts: `correct` (the kernels beside torch operations on the same weights, every kind of them, several
numbers of sequences, some beside a prompt; on a GPU graphs must have been recorded; where it fails nothing
else is run), `tests` (tests/engine/test_cuda.py and test_cuda_kernels.py), `recipe` (recipes/miniature.toml,
all its stages, stopped in SFT and in RL and gone on with), `kernels` (each product alone), `decode` (one
text, Llama 3.1 8B shape, random weights made on the device), `batch` (nano-vllm's benchmark: Qwen3 0.6B
shape, 256 requests, prompts and answers of 100 to 1,024 tokens), `train` (forward and backward of the Llama
3.2 1B shape beside transformers, in turns), `parity` (the table of docs/parity.md in bfloat16).

Each part writes PART.json into --out, and the exit code says whether one that checks something has failed.
GB/s are bytes of weights and cache that a step has to read, over its time; `roof` is a copy of 4 GB measured
here and now, bytes read and written.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_correct import correct, tests
from gpu_models import config_of, free, random_model
from gpu_recipe import recipe
from torch import Tensor

from ayllu import machine
from ayllu.engine.batch import BLOCK, Batch
from ayllu.engine.engine import Engine
from ayllu.engine.executors.cuda import CudaExecutor
from ayllu.engine.request import SamplingParams
from ayllu.files import write_json
from ayllu.gpu.weight_only import WeightOnly
from ayllu.model.config import dense_layer
from ayllu.train.step import Batch as TrainBatch
from ayllu.train.step import backward

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ("bfloat16", "fp8", "int8", "int4")
# GB/s of memory as the maker gives them; the measured roof stands beside.
SPEC = {"H200": 4800, "H100": 3350, "A100": 2039, "B200": 8000}


def for_each(work: Callable[[Tensor], Any], inputs: list[Tensor]) -> None:
    for one in inputs:
        work(one)


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], Any], device: str, runs: int) -> float:
    """Median of `runs`, each of as many calls as take a hundredth of a second, after three to warm up."""
    for _ in range(3):
        work()
    synchronise(device)
    found, calls = [], 1
    while len(found) < runs:
        began = time.perf_counter()
        for _ in range(calls):
            work()
        synchronise(device)
        spent = time.perf_counter() - began
        if spent < 0.01 and calls < 1000:
            calls *= 2
            continue
        found.append(spent / calls)
    return statistics.median(found)


def roof(wish: argparse.Namespace) -> dict[str, Any]:
    """Bytes a second of a copy."""
    numbers = 10**5 if wish.tiny else 10**9
    source = torch.zeros(numbers, dtype=torch.float32, device=wish.device)
    target = torch.empty_like(source)
    measured = 8 * numbers / seconds_of(lambda: target.copy_(source), wish.device, 5) / 1e9
    name = torch.cuda.get_device_name() if wish.device.startswith("cuda") else machine.chip_name()
    spec = next((speed for part, speed in SPEC.items() if part in name), None)
    return {"device": name, "roof_gbs": measured, "spec_gbs": spec}


def one_token_each(tables_SW: np.ndarray, position: int) -> Batch:
    count = len(tables_SW)
    order = np.arange(count, dtype=np.int32)
    return Batch(order % 7, np.full(count, position, np.int32), order, tables_SW, order)


# ---- how fast?
def kernels(wish: argparse.Namespace) -> dict[str, Any]:
    """Products of Llama 3.1 8B's sizes alone, rotating over enough copies that no cache holds them."""
    from ayllu.gpu import products

    found = []
    shapes = ((40, 128),) if wish.tiny else ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
    for rows, columns in shapes:
        plain = torch.randn(rows, columns, device=wish.device).to(torch.bfloat16)
        for kind in ("cublas", *WEIGHTS):
            few = kind not in ("cublas", "bfloat16")
            packed = WeightOnly(plain, None, kind, torch.bfloat16) if few else None
            data, scale = (plain, None) if packed is None else (packed.data, packed.scale)
            given = {"scale": scale, "bias": None, "rows": rows, "out": torch.bfloat16}
            size = data.nbytes + (0 if scale is None else scale.nbytes)
            copies = [data.clone() for _ in range(2 if wish.tiny else max(2, 400_000_000 // size))]
            for count in (1, 2, 16, 64):
                x = torch.randn(count, columns, device=wish.device).to(torch.bfloat16)
                if kind == "cublas":
                    one: Callable[[Tensor], Tensor] = partial(torch.nn.functional.linear, x)
                else:
                    one = partial(products.product, x, **given)
                seconds = seconds_of(partial(for_each, one, copies), wish.device, 3) / len(copies)
                entry = {"rows": rows, "columns": columns, "kind": kind, "count": count}
                found.append({**entry, "microseconds": seconds * 1e6, "gbs": size / seconds / 1e9})
                speed = f"{found[-1]['gbs']:8.1f} GB/s"
                print(f"  {rows:6} x {columns:6} {kind:9} {count:3}: {speed}", flush=True)
            del copies, packed, data
            free()
    return {"products": found, **roof(wish)}


def weight_bytes(executor: CudaExecutor) -> int:
    """What one decode step of one text reads: all matrices but the embedding, unless it is the head."""
    model, total = executor.model, 0
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name != "embedding.weight" or model.head is None:
            total += tensor.nbytes
    return total


def decode(wish: argparse.Namespace) -> dict[str, Any]:
    """One text, greedy, token by token behind `context` tokens."""
    config, limits = config_of("llama-3.1-8b", wish), roof(wish)
    model, context = random_model(config, wish.device), 40 if wish.tiny else 256
    steps, runs, found = (3, 2, {}) if wish.tiny else (100, 5, {})
    for weights in WEIGHTS:
        began = time.perf_counter()
        executor = CudaExecutor(model, weights)
        width = (context + steps) // BLOCK + 2
        executor.reserve(width)
        table = np.arange(width, dtype=np.int32)[None]
        ids = [1]
        began_steps = time.perf_counter()
        executor.step(one_token_each(table, context))
        synchronise(wish.device)
        first = time.perf_counter() - began_steps

        def text(executor: CudaExecutor = executor, table: np.ndarray = table, ids: list[int] = ids) -> None:
            for ahead in range(steps):
                batch = one_token_each(table, context + ahead)
                batch = replace(batch, tokens_T=np.array(ids, np.int32))
                ids[0] = int(executor.step(batch).argmax(-1)[0])

        rates = []
        text()
        for _ in range(runs):
            start = time.perf_counter()
            text()
            rates.append(steps / (time.perf_counter() - start))
        size = weight_bytes(executor) + context * executor.block_bytes / BLOCK
        rate = statistics.median(rates)
        found[weights] = {
            "tokens_per_second": rate,
            "runs": rates,
            "bytes_a_step": size,
            "gbs": rate * size / 1e9,
            "of_roof": rate * size / 1e9 / limits["roof_gbs"],
            "of_spec": rate * size / 1e9 / limits["spec_gbs"] if limits["spec_gbs"] else None,
            "first_step_seconds": first,
            "open_seconds": began_steps - began,
            "executor": executor.name,
            "graphs": executor.graphs.usable,
        }
        if (
            executor.graphs.usable and 1 in executor.graphs._recorded
        ):  # the graph alone, without what the host does
            graph = executor.graphs._recorded[1].graph
            alone = seconds_of(graph.replay, wish.device, 5)
            found[weights]["graph_tokens_per_second"] = 1 / alone
        print(f"  {weights:9} {rate:8.1f} tokens/s  {found[weights]['gbs']:8.1f} GB/s", flush=True)
        del executor, text
        free()
    return {"model": "tiny" if wish.tiny else "llama-3.1-8b", "context": context, **limits, "weights": found}


def batch(wish: argparse.Namespace) -> dict[str, Any]:
    """All requests at once, sampled at temperature 0.6, no stops."""
    config = config_of("qwen3-0.6b", wish)
    model, rng = random_model(config, wish.device), np.random.default_rng(0)
    count, low, high = (3, 4, 9) if wish.tiny else (256, 100, 1024)
    prompts = [
        rng.integers(config.vocab_size, size=rng.integers(low, high + 1)).tolist() for _ in range(count)
    ]
    params = [
        SamplingParams(max_tokens=int(rng.integers(low, high + 1)), temperature=0.6, seed=i)
        for i in range(count)
    ]
    found = {}
    for weights in ("bfloat16",) if wish.tiny else ("bfloat16", "int8"):
        executor = CudaExecutor(model, weights)
        longest = -(-(2 * high + 1) // BLOCK)
        options = {"max_sequences": 256, "cache_blocks": count * longest, "prefix_cache": False}
        with Engine(model, device=wish.device, executor=executor, **options) as engine:
            engine.generate([[1, 2, 3]] * 2, max_tokens=4, temperature=0.6)  # compiles
            runs = []
            for _ in range(1 if wish.tiny else 2):  # the first one records the graphs
                before, began = engine.stats(), time.perf_counter()
                done = engine.generate(prompts, params)
                seconds = time.perf_counter() - began
                after = engine.stats()
                made = sum(len(one.token_ids) for one in done)
                assert made == sum(one.max_tokens or 0 for one in params)
                parts = ("prefill_seconds", "decode_seconds", "plan_seconds", "sample_seconds", "preemptions")
                spent = {name: getattr(after, name) - getattr(before, name) for name in parts}
                runs.append(
                    {"tokens_per_second": made / seconds, "seconds": seconds, "tokens": made, **spent}
                )
                print(f"  {weights:9} {made / seconds:10,.0f} tokens/s {spent}", flush=True)
        found[weights] = runs
        del executor, engine
        free()
    return {"requests": count, "prompt_tokens": sum(map(len, prompts)), **roof(wish), "weights": found}


def train(wish: argparse.Namespace) -> dict[str, Any]:
    """Forward and backward, weights in bfloat16 on both sides, in turns; transformers with its SDPA."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    from ayllu.model.families import family

    config = config_of("llama-3.2-1b", wish)
    if wish.tiny:
        config = replace(config, layers=(dense_layer(4, 2, 16, 96, qk_norm=False),) * 2, family="llama")
    rows, length = (2, 32) if wish.tiny else (4, 2048)
    ours = random_model(config, wish.device).requires_grad_(True)
    with torch.device(wish.device):
        values = family(config.family).config_to_hf(config)
        theirs = AutoModelForCausalLM.from_config(LlamaConfig(**values), dtype=torch.bfloat16)
    tokens_BT = torch.randint(config.vocab_size, (rows, length + 1), device=wish.device)
    weights_BT = torch.full((rows, length), 1.0 / (rows * length), device=wish.device)
    given = TrainBatch(tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous(), weights_BT)

    def our_work() -> None:
        ours.zero_grad(set_to_none=True)
        backward(ours, given, torch.bfloat16)

    def their_work() -> None:
        theirs.zero_grad(set_to_none=True)
        ids = given.tokens_BT
        float(theirs(input_ids=ids, labels=ids).loss.backward() or 0)

    found: dict[str, list[float]] = {"ours": [], "transformers": []}
    for _ in range(2 if wish.tiny else 5):
        for name, work in (("ours", our_work), ("transformers", their_work)):
            found[name].append(rows * length / seconds_of(work, wish.device, 1 if wish.tiny else 3))
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    print(f"  {medians}", flush=True)
    return {"rows": rows, "length": length, "tokens_per_second": medians, "runs": found, **roof(wish)}


def parity(wish: argparse.Namespace) -> dict[str, Any]:
    page = wish.out / f"parity-{wish.device.split(':')[0]}-bfloat16.md"
    command = [sys.executable, "tests/parity/report.py", "--dtype", "bfloat16", "--device", wish.device]
    done = subprocess.run([*command, "--out", page], cwd=ROOT, capture_output=True, text=True, timeout=530)
    return {"ok": done.returncode == 0, "page": page.name, "errors": done.stderr[-2000:]}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    part.__name__: part for part in (correct, tests, recipe, kernels, decode, batch, train, parity)
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, help="default: all but tests and parity when tiny"
    )
    parser.add_argument("--tiny", action="store_true", help="tiny models: does the script run?")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    wish = parser.parse_args()
    wish.out = wish.out.resolve()
    if wish.device == "cpu" and not wish.tiny:
        parser.error("there is no CUDA device here; --tiny is a dry run on the CPU")
    wish.out.mkdir(parents=True, exist_ok=True)
    quick, failed = [name for name in PARTS if name not in ("tests", "parity")], list[str]()
    for name in wish.parts or (quick if wish.tiny else list(PARTS)):
        print(name, flush=True)
        began = time.perf_counter()
        found = PARTS[name](wish)
        found |= {"seconds": time.perf_counter() - began, "torch": torch.__version__, "tiny": wish.tiny}
        write_json(wish.out / f"{name}.json", found)
        if name == "correct" and not found["ok"]:
            sys.exit(f"the cuda executor is wrong: {found['faults'] or found['wrong']}")
        failed += [] if found.get("ok", True) else [name]
        free()
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; {wish.out} has what was found")


if __name__ == "__main__":
    main()
