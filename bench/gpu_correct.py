"""Parts `correct` and `tests` of bench/gpu.py: is the cuda executor right?"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_models import config_of, free, random_model

from ayllu.engine.batch import BLOCK, Batch
from ayllu.engine.executors.cuda import CudaExecutor

ROOT = Path(__file__).resolve().parents[1]
GPU_TESTS = ("test_cuda", "test_cuda_kernels")


def correct(wish: argparse.Namespace) -> dict[str, Any]:
    """Largest difference of a logit, over the largest logit, of the kernels and of torch operations on the
    same weights; in float32 the latter are the torch executor."""
    limits = {"float32": 1e-4, "bfloat16": 0.05, "int8": 0.05, "fp8": 0.05, "int4": 0.05}
    rows, faults, counts = [], list[str](), (1, 3) if wish.tiny else (1, 2, 5, 16, 40, 200)
    for name in ("qwen3-0.6b",) if wish.tiny else ("qwen3-0.6b", "llama-3.2-1b", "qwen3-30b-a3b"):
        config = config_of(name, wish, layers=2)
        model = random_model(config, wish.device, torch.float32)
        length = 40 if wish.tiny else 300
        prompt_T = np.random.default_rng(0).integers(config.vocab_size, size=length).astype(np.int32)
        width = length // BLOCK + 2
        for weights in limits:
            executor = CudaExecutor(model, weights)
            executor.reserve(max(counts) * width)
            kernels_missing = executor.without_kernels
            for count in counts:
                order_SW = np.random.default_rng(1).permutation(count * width).reshape(count, width)
                tables_SW = order_SW.astype(np.int32)
                # Texts of different lengths, read one by one, then one step that decodes.
                lengths = np.array([max(1, length - 7 * (row % 30)) for row in range(count)], np.int32)
                for row, n in enumerate(lengths):
                    order_T, at_T = np.arange(n, dtype=np.int32), np.full(n, row, np.int32)
                    executor.step(Batch(prompt_T[:n], order_T, at_T, tables_SW, order_T[-1:]))
                order = np.arange(count, dtype=np.int32)
                batch = Batch(np.full(count, 5, np.int32), lengths, order, tables_SW, order)
                steps = {"alone": batch}
                if count > 1:  # the last text is read again, beside the others' single tokens
                    steps["beside a prompt"] = beside_a_prompt(batch, prompt_T, int(lengths[-1]))
                for kind, one in steps.items():
                    executor.without_kernels = "torch operations, to compare with"
                    want_SV = executor.step(one)
                    executor.without_kernels = kernels_missing
                    got_SV = executor.step(one)
                    where = f"{name}, {weights}, {count} sequences {kind}"
                    if not torch.equal(got_SV, executor.step(one)):
                        faults.append(f"{where}: the same step twice gives other numbers")
                    if executor.without_kernels:
                        faults.append(f"{where}: {executor.without_kernels}")
                    relative = float((got_SV - want_SV).abs().max() / want_SV.abs().max())
                    row = {"model": name, "weights": weights, "sequences": count, "step": kind}
                    rows.append({**row, "relative": relative})
                    print(f"  {name:14} {weights:9} {count:4} sequences {kind:16} {relative:.6f}", flush=True)
            if wish.device.startswith("cuda") and not (executor.graphs.usable and executor.graphs._recorded):
                faults.append(f"{name}, {weights}: no CUDA graph was recorded")
            del executor
            free()
        del model
        free()
    # Experts of a rounded model may be others where the router is nearly undecided.
    wrong = [r for r in rows if not r["relative"] <= limits[r["weights"]]]
    wrong = [r for r in wrong if r["model"] != "qwen3-30b-a3b" or r["weights"] == "float32"]
    return {"ok": not wrong and not faults, "limits": limits, "faults": faults, "wrong": wrong, "rows": rows}


def beside_a_prompt(batch: Batch, prompt_T: np.ndarray, length: int) -> Batch:
    """The step with the last text's `length` tokens in place of its next one."""
    count = len(batch.tokens_T)
    order_T, at_T = np.arange(length, dtype=np.int32), np.full(length, count - 1, np.int32)
    return Batch(
        np.r_[batch.tokens_T[:-1], prompt_T[:length]],
        np.r_[batch.positions_T[:-1], order_T],
        np.r_[batch.sequence_T[:-1], at_T],
        batch.tables_SW,
        np.r_[np.arange(count - 1, dtype=np.int32), np.int32(count + length - 2)],
    )


def tests(wish: argparse.Namespace) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *(f"tests/engine/{name}.py" for name in GPU_TESTS), "-q", "-rs"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=520,
    )
    return {"ok": done.returncode == 0, "output": done.stdout[-4000:]}
