"""How fast pretraining is, against this machine's own matrix products. `make bench`, or with --json.

The yardstick is what `throughput` in ayllu/train/pretrain.py reports of every run: the rate that the
matrix products of a training step would reach alone, each at its own size, measured here and now. The
clock of a machine in use wanders, so that training and yardstick alternate and medians are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from ayllu import machine
from ayllu.model.counts import parameters
from ayllu.model.decoder import Decoder
from ayllu.recipe import compose, read_recipe
from ayllu.stages import use_threads
from ayllu.train.optim import Optimizer
from ayllu.train.precision import compute_type
from ayllu.train.pretrain import throughput
from ayllu.train.step import Batch, train_step


def batch(rows: int, length: int, vocabulary: int, seed: int) -> Batch:
    """Random tokens in four documents a row: the work depends on the sizes alone."""
    tokens_BT = torch.randint(vocabulary, (rows, length + 1), generator=torch.Generator().manual_seed(seed))
    document_BT = (torch.arange(length) * 4 // length).expand(rows, length)
    weights_BT = torch.full((rows, length), 1.0 / (rows * length))
    return Batch(tokens_BT[:, :-1].contiguous(), tokens_BT[:, 1:].contiguous(), weights_BT, document_BT)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", nargs="?", default="recipes/demo.toml", help="whose model and batches")
    parser.add_argument("--runs", type=int, default=5, help="pairs of training and yardstick (default 5)")
    parser.add_argument("--steps", type=int, default=10, help="training steps of a run (default 10)")
    parser.add_argument("--threads", type=int, default=0, help="0: the physical cores")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    wish = parser.parse_args()

    threads = wish.threads or machine.physical_cores()
    use_threads(threads)
    machine.keep_memory()
    tables = compose(read_recipe(Path(wish.recipe))).tables
    settings, config = tables["pretrain"], tables["model"].config(tables["tokenizer"].vocabulary)
    dtype = compute_type("cpu")
    model = Decoder(config).initialise(0)
    optimizer = Optimizer(
        model, muon_lr=settings.muon_lr, adam_lr=settings.adam_lr, weight_decay=settings.weight_decay
    )
    data = batch(settings.rows, settings.length, config.vocab_size, 0)
    train_step(model, optimizer, [data], 1.0, dtype)  # warm-up

    runs = []
    for _ in range(wish.runs):
        seconds = []
        for _ in range(wish.steps):
            began = time.perf_counter()
            train_step(model, optimizer, [data], 1.0, dtype)
            seconds.append(time.perf_counter() - began)
        rate = settings.rows * settings.length / statistics.median(seconds)
        found = throughput(config, settings.rows, settings.length, rate, dtype)
        runs.append({"tokens_per_second": rate, **found})

    medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    result = {
        "recipe": wish.recipe,
        "parameters": parameters(config),
        "rows": settings.rows,
        "length": settings.length,
        "dtype": str(dtype).removeprefix("torch."),
        **medians,
        "runs": runs,
        "machine": machine.describe(threads),
    }
    if wish.json:
        print(json.dumps(result, indent=2))
        return
    low, high = (100 * pick(run["fraction"] for run in runs) for pick in (min, max))
    sizes = f"batches of {settings.rows} x {settings.length}, {result['dtype']}, {threads} threads"
    print(f"{wish.recipe}: {parameters(config):,} parameters, {sizes}, {machine.chip_name()}")
    print(f"training         {medians['tokens_per_second']:12,.0f} tokens/s")
    print(f"                 {medians['flops_per_second'] / 1e9:12,.1f} GFLOP/s")
    print(
        f"matrix products  {medians['matmul_flops_per_second'] / 1e9:12,.1f} GFLOP/s at the model's own sizes"
    )
    print(
        f"fraction         {100 * medians['fraction']:12.1f} % ({low:.1f} to {high:.1f} in {len(runs)} runs)"
    )


if __name__ == "__main__":
    main()
