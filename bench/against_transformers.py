"""Decoding beside transformers: its eager `generate` and ours on one small Llama of the same shape, in turns.

Tokens after the first: reading the prompt and what `generate` sets up are taken off by a run that writes a
single one. Ratios are to the faster of transformers' two types on this machine.

python bench/against_transformers.py --quick
python bench/against_transformers.py --shape 1b --json results.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from against_llama_cpp import shape

from ayllu import machine
from ayllu.bench import random_packed, workload
from ayllu.engine.executors import make_executor
from ayllu.files import write_json
from ayllu.model.families import family

CONTEXT, STEPS = 64, 32


def theirs(name: str, dtype: torch.dtype) -> Callable[[int], float]:
    """transformers' generate, greedy, with its own cache; gives seconds of `steps` tokens after the first."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = shape(name)
    values = family(config.family).config_to_hf(config)
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        model = AutoModelForCausalLM.from_config(LlamaConfig(**values)).eval()
    finally:
        torch.set_default_dtype(previous)
    prompt_BT = torch.randint(1000, (1, CONTEXT), generator=torch.Generator().manual_seed(0))

    def write(tokens: int) -> float:
        began = time.perf_counter()
        with torch.no_grad():
            model.generate(
                prompt_BT,
                attention_mask=torch.ones_like(prompt_BT),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )
        return time.perf_counter() - began

    return lambda steps: write(steps + 1) - write(1)


def ours(work: Callable[[int], None]) -> Callable[[int], float]:
    """Seconds for `steps` tokens."""

    def timed(steps: int) -> float:
        began = time.perf_counter()
        work(steps)
        return time.perf_counter() - began

    return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the small shape, three runs")
    parser.add_argument("--shape", default="30m", choices=("30m", "1b"))
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0, help="0: the physical cores")
    parser.add_argument("--json", type=Path, help="write the results there")
    wish = parser.parse_args()
    name, runs = ("30m", 3) if wish.quick else (wish.shape, wish.runs)
    threads = wish.threads or machine.physical_cores()
    torch.set_num_threads(threads)
    config = shape(name)

    sides: dict[str, Callable[[int], float]] = {}
    for weights in ("int8", "bfloat16"):
        executor = make_executor(random_packed(config, weights), weights, "cpu")
        sides[f"ours, {weights}"] = ours(workload("decode", executor, config, 1, 1, CONTEXT, 256))
    for dtype in (torch.bfloat16, torch.float32):
        kind = str(dtype).removeprefix("torch.")
        sides[f"transformers, {kind}"] = theirs(name, dtype)
    found: dict[str, list[float]] = {side: [] for side in sides}
    for run in range(runs + 1):
        for side, work in sides.items():
            seconds = work(STEPS)
            if run:  # the first one warms up
                found[side].append(STEPS / seconds)
    medians = {side: statistics.median(speeds) for side, speeds in found.items()}
    print(f"{name}, {machine.chip_name()}, {threads} threads; tokens/s, medians of {runs} runs in turns")
    best = max(speed for side, speed in medians.items() if side.startswith("transformers"))
    for side, speed in medians.items():
        print(f"{side:24}{speed:10,.1f}  {speed / best:6.1f} x")
    if wish.json:
        said = {"shape": name, "medians": medians, "runs": found, "machine": machine.describe(threads)}
        write_json(wish.json, json.loads(json.dumps(said)))


if __name__ == "__main__":
    main()
