"""Pretraining: predict the next token of public text."""

from __future__ import annotations

import json
import lzma
import math
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ayllu import machine
from ayllu.files import make_folder
from ayllu.model.config import ModelConfig, ModelSettings
from ayllu.model.counts import matrices, parameters, train_flops_per_token
from ayllu.model.decoder import Decoder
from ayllu.model.weights import save_model
from ayllu.stage import StageContext, bounded
from ayllu.text.shards import Shard, open_shard, write_shard
from ayllu.text.tokenizer import Tokenizer
from ayllu.train.loop import Loop
from ayllu.train.losses import head_loss
from ayllu.train.optim import Optimizer
from ayllu.train.precision import compute_type
from ayllu.train.schedule import lr_scale
from ayllu.train.step import Batch, train_step

# After some four epochs repeated text is worth ever less than new text, and after 16 to 40 next to nothing
# (Muennighoff et al. 2023, "Scaling data-constrained language models").
MANY_EPOCHS = 20


@dataclass(frozen=True)
class PretrainSettings:
    """How long, in which pieces, how fast."""

    tokens: int = bounded(3_000_000, 1_000, 10**12, "training tokens, over as many epochs as it takes")
    rows: int = bounded(16, 1, 4096, "rows of a batch")
    length: int = bounded(256, 16, 32768, "tokens of a row")
    muon_lr: float = bounded(0.02, 1e-5, 1.0, "peak rate of Muon (matrices)")
    adam_lr: float = bounded(0.004, 1e-6, 1.0, "peak rate of AdamW (embedding, norms)")
    weight_decay: float = bounded(0.1, 0.0, 10.0, "cautious decay of the matrices")


def pretrain(context: StageContext, settings: PretrainSettings, model: ModelSettings) -> dict[str, Any]:
    """Train from random weights; measure bits per byte on the held-out documents.

    Writes `model/` (config, weights) and the token shards. TooLittleTextError when the text doesn't
    fill one batch.
    """
    tokenizer = Tokenizer.load(context.inputs["tokenizer"])
    shard, heldout = _shards(context, tokenizer, settings)
    config = model.config(tokenizer.vocab_size)
    decoder = Decoder(config).initialise(context.seed).to(context.device)
    optimizer = Optimizer(
        decoder, muon_lr=settings.muon_lr, adam_lr=settings.adam_lr, weight_decay=settings.weight_decay
    )
    dtype = compute_type(context.device)
    steps = max(1, settings.tokens // (settings.rows * settings.length))
    epochs = steps * settings.rows / shard.rows(settings.length)
    if epochs > MANY_EPOCHS:
        context.progress.say(
            f"the text is read {epochs:,.0f} times over: a model learns little more from it after a few; "
            "give more text, or fewer tokens"
        )

    def step(number: int) -> dict[str, Any]:
        began = time.perf_counter()
        batch = _batch(shard, number, settings, context)
        scale = lr_scale(number, steps, decay=0.7)
        (result,) = train_step(decoder, optimizer, [batch], scale, dtype)
        seconds = time.perf_counter() - began
        return {"tokens": (number + 1) * result.tokens, "loss": result.nats, "lr": scale, "seconds": seconds}

    Loop(context, "pretrain", decoder, optimizer, steps).run(step, note=lambda row: f"loss {row['loss']:.3f}")
    control = tokenizer.control
    folder = make_folder(context.folder / "model")
    save_model(decoder, folder, bos=control["<|bos|>"], eos=control["<|end|>"], pad=control["<|pad|>"])
    bits = bits_per_byte(decoder, tokenizer, heldout, context.device)
    xz = xz_bits_per_byte(heldout)
    seconds = sorted(_step_seconds(context.metrics))
    rate = settings.rows * settings.length / seconds[len(seconds) // 2]
    speed = throughput(config, settings.rows, settings.length, rate, dtype) if context.device == "cpu" else {}
    context.progress.finish(
        f"{parameters(config):,} parameters, {bits:.3f} bits per byte on held-out text (xz -9e: {xz:.3f}), "
        f"{rate:,.0f} tokens/s"
    )
    return {
        "parameters": parameters(config),
        "tokens": steps * settings.rows * settings.length,
        "epochs": epochs,
        "bits_per_byte": bits,
        "xz_bits_per_byte": xz,
        "heldout_documents": len(heldout),
        "heldout_bytes": sum(len(text.encode()) for text in heldout),
        "tokens_per_second": rate,
        **speed,
    }


def _shards(
    context: StageContext, tokenizer: Tokenizer, settings: PretrainSettings
) -> tuple[Shard, list[str]]:
    """The training shard (written on the first call) and the held-out texts."""
    texts: dict[str, list[str]] = {"train": [], "heldout": []}
    with open(context.inputs["text"] / "documents.jsonl", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            texts[row["split"]].append(row["text"])
    path = context.folder / "train.bin"
    if not path.with_suffix(".json").exists():
        write_shard(path, texts["train"], tokenizer)
    return open_shard(path, rows=settings.rows, length=settings.length), texts["heldout"]


def _batch(shard: Shard, number: int, settings: PretrainSettings, context: StageContext) -> Batch:
    """The rows of a step: every epoch is one permutation drawn from (seed, epoch)."""
    per_epoch = shard.rows(settings.length)
    wanted = np.arange(number * settings.rows, (number + 1) * settings.rows)
    orders = {
        int(e): np.random.default_rng([context.seed, 1, int(e)]).permutation(per_epoch)
        for e in np.unique(wanted // per_epoch)
    }
    rows = np.array([orders[int(w // per_epoch)][w % per_epoch] for w in wanted])
    tokens, targets, document = (
        torch.from_numpy(x).to(context.device) for x in shard.batch(rows, settings.length)
    )
    weights = torch.full(tokens.shape, 1.0 / tokens.numel(), device=context.device)
    return Batch(tokens, targets, weights, document)


def _step_seconds(metrics: Path) -> list[float]:
    rows = (json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines())
    return [row["seconds"] for row in rows if row["stage"] == "pretrain"]


@torch.no_grad()
def bits_per_byte(model: Decoder, tokenizer: Tokenizer, texts: list[str], device: str) -> float:
    """-log2 p(text) / bytes over all texts, in float32.

    Each text starts from `<|bos|>`; windows of the model's context overlap by half, and a token is
    scored once, in the first window where it appears.
    """
    context = model.config.context
    bos, nats, size = tokenizer.control["<|bos|>"], 0.0, 0
    windows: list[tuple[list[int], int]] = []  # ids, first scored target
    for text in texts:
        ids = [bos, *tokenizer.encode(text)]
        size += len(text.encode())
        for first in range(0, max(1, len(ids) - 1), context // 2):
            window = ids[first : first + context + 1]
            scored = 0 if first == 0 else context - context // 2
            if len(window) - 1 > scored:
                windows.append((window, scored))
            if first + context + 1 >= len(ids):
                break
    windows.sort(key=lambda w: len(w[0]))
    for begin in range(0, len(windows), 16):
        group = windows[begin : begin + 16]
        longest = max(len(ids) for ids, _ in group) - 1
        tokens = torch.zeros(len(group), longest, dtype=torch.long)
        targets, weights = tokens.clone(), torch.zeros(len(group), longest)
        for row, (ids, scored) in enumerate(group):
            tokens[row, : len(ids) - 1] = torch.tensor(ids[:-1])
            targets[row, : len(ids) - 1] = torch.tensor(ids[1:])
            weights[row, scored : len(ids) - 1] = 1.0
        tokens, targets, weights = tokens.to(device), targets.to(device), weights.to(device)
        states = model.states(tokens).flatten(0, 1)
        total, _, _ = head_loss(
            states, model.head_weight, targets.flatten(), weights.flatten(), model.config.logit_softcap
        )
        nats += float(total)
    return nats / math.log(2) / size


def xz_bits_per_byte(texts: list[str]) -> float:
    """What `xz -9e` makes of the texts, joined by line ends, in bits per byte."""
    data = "\n".join(texts).encode()
    return 8 * len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) / len(data)


def throughput(
    config: ModelConfig, rows: int, length: int, rate: float, dtype: torch.dtype
) -> dict[str, float]:
    """The training rate against what the machine's matrix products reach at this model's own sizes.

    The yardstick is the time that the step's matrix products alone would take, one after the other,
    each at its own measured rate: forward, and the two of the backward pass.
    """
    n = rows * length
    flops = seconds = 0.0
    found = Counter((m.inputs, m.outputs) for m in matrices(config) for _ in range(m.used))
    for (inputs, outputs), count in found.items():
        for m, k, o in ((n, inputs, outputs), (n, outputs, inputs), (inputs, n, outputs)):
            work = count * 2.0 * m * k * o
            seconds += work / machine.measure_matmul(m, k, o, str(dtype).removeprefix("torch."))
            flops += work
    reached = train_flops_per_token(config, length) * rate
    matmul = flops / seconds
    return {"flops_per_second": reached, "matmul_flops_per_second": matmul, "fraction": reached / matmul}
