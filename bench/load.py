"""How fast a model folder loads, and how much memory that takes. `python bench/load.py`, or with --json.

Makes a folder of the shape of Llama 3.2 1B (2.5 GB in bfloat16, random weights) and loads it several
times, each time in a new process. The first load is not counted: it brings the files into the page cache.
Memory is the process's peak, the interpreter and torch included, as a multiple of the weights' bytes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from ayllu import machine
from ayllu.model.config import ModelConfig, dense_layer
from ayllu.model.weights import save_model, shell_of

# meta-llama/Llama-3.2-1B, config.json
SHAPE = ModelConfig(
    2048,
    128_256,
    (dense_layer(32, 8, 64, 8192, theta=500_000.0, qk_norm=False),) * 16,
    131_072,
    norm_eps=1e-5,
    family="llama",
)
SMALL = ModelConfig(256, 4096, (dense_layer(4, 2, 64, 512, qk_norm=False),) * 2, 512, family="llama")

ONE_LOAD = """
import json, sys, time
from ayllu.model.weights import load_model

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key + ":"))

before = status("VmRSS")
began, worked = time.perf_counter(), time.process_time()
model = load_model(sys.argv[1], dtype=sys.argv[2])
seconds, worked = time.perf_counter() - began, time.process_time() - worked
weights = sum(weight.numel() * weight.itemsize for weight in model.state_dict().values())
peak = status("VmHWM")
print(json.dumps(dict(seconds=seconds, worked=worked, weights=weights, before=before, peak=peak)))
"""


def make_folder(folder: Path, config: ModelConfig, shard_bytes: int) -> None:
    """A folder with random bfloat16 weights: one block of them, repeated, since making is not measured."""
    model = shell_of(config)
    block = (0.02 * torch.randn(1 << 20, generator=torch.Generator().manual_seed(0))).bfloat16()
    state = {}
    for name, shell in model.state_dict().items():
        repeats = -(-shell.numel() // len(block))
        state[name] = block.repeat(repeats)[: shell.numel()].view(shell.shape)
    model.load_state_dict(state, assign=True)
    save_model(model, folder, bos=0, eos=1, pad=2, shard_bytes=shard_bytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="loads that count (default 5)")
    parser.add_argument("--dtype", default="bfloat16", help="float32, bfloat16, float16 or auto")
    parser.add_argument("--shard-bytes", type=int, default=1_000_000_000, help="size of a file")
    parser.add_argument("--folder", type=Path, help="load this model folder instead of making one")
    parser.add_argument("--small", action="store_true", help="a folder of a few megabytes")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    wish = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="ayllu-load-") as temporary:
        folder = wish.folder
        if folder is None:
            folder = Path(temporary)
            make_folder(folder, SMALL if wish.small else SHAPE, wish.shard_bytes)
        runs = []
        for _ in range(wish.runs + 1):
            command = [sys.executable, "-c", ONE_LOAD, str(folder), wish.dtype]
            runs.append(
                json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            )
        stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        files = len(list(folder.glob("*.safetensors")))
    runs = runs[1:]
    seconds = statistics.median(run["seconds"] for run in runs)
    weights = runs[0]["weights"]
    peak = max(run["peak"] for run in runs)
    growth = max(run["peak"] - run["before"] for run in runs)
    result = {
        "bytes": stored,
        "files": files,
        "dtype": wish.dtype,
        "seconds": seconds,
        "core_seconds": statistics.median(run["worked"] for run in runs),
        "seconds_all": [run["seconds"] for run in runs],
        "gigabytes_per_second": stored / seconds / 1e9,
        "peak_per_weights": peak / weights,
        "growth_per_weights": growth / weights,
        "machine": machine.describe(),
    }
    if wish.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{stored / 1e9:.2f} GB in {files} files, loaded as {wish.dtype}, median of {wish.runs}")
    print(f"load    {seconds:.2f} s  ({stored / seconds / 1e9:.2f} GB/s)")
    print(f"work    {result['core_seconds']:.2f} s of a core, in all threads together")
    print(f"memory  {peak / weights:.3f} x the weights at the peak, {growth / weights:.3f} x but for torch")


if __name__ == "__main__":
    main()
