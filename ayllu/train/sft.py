"""Supervised fine-tuning: learn to write the expert's part of worked conversations.

The loss looks at sampled tokens only (what the model has to write; never a question, never a tool's
result). Conversations are packed whole into rows, and attention never crosses from one to another.
Every conversation is new: the generators don't run out.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.random import Generator

from ayllu.errors import RecipeValueError
from ayllu.files import make_folder
from ayllu.model.decoder import Decoder
from ayllu.model.weights import load_model, save_model
from ayllu.progress import Progress
from ayllu.reason.practice import BASIC, check_families, check_named_once, check_rows, draw, read_rows
from ayllu.reason.thinking import mark_taught
from ayllu.reason.transcript import Chat, Transcript
from ayllu.stage import StageContext, bounded, free, further
from ayllu.text.tokenizer import Tokenizer
from ayllu.train.loop import Loop
from ayllu.train.optim import Optimizer
from ayllu.train.precision import compute_type
from ayllu.train.schedule import lr_scale
from ayllu.train.step import Batch, train_step

CODE_VERSION = 17  # 17: rows of a product have the zeros of their place
_CHUNK = 16  # batches that are drawn and packed together
_LOOK = 400  # conversations that are measured before practice begins


@dataclass(frozen=True)
class SftSettings:
    """What is practised, how long, how fast."""

    steps: int = bounded(1500, 1, 10**7, "updates")
    rows: int = bounded(16, 1, 4096, "rows of a batch")
    length: int = bounded(256, 64, 32768, "tokens of a row")
    muon_lr: float = bounded(0.02, 1e-5, 1.0, "peak rate of Muon (matrices)")
    adam_lr: float = bounded(0.004, 1e-6, 1.0, "peak rate of AdamW (embedding, norms)")
    weight_decay: float = bounded(0.1, 0.0, 10.0, "cautious decay of the matrices")
    arithmetic: float = bounded(0.4, 0.0, 1.0, "share of conversations")
    calculator: float = bounded(0.2, 0.0, 1.0, "share of conversations")
    countdown3: float = bounded(0.32, 0.0, 1.0, "share of conversations")
    dialogue: float = bounded(0.08, 0.0, 1.0, "share of conversations")
    families: dict[str, float] = further("shares of conversations of further families, by name")
    gsm8k: tuple[str, ...] = free((), "folders with GSM8K's training rows, for gsm8k_resampled")
    budgets: float = bounded(0.0, 0.0, 1.0, "share of conversations that say how long to think")

    def check(self, tables: Mapping[str, Any]) -> None:
        """RecipeValueError for a family that doesn't exist or has a setting of its own, without any share, or
        where a family's rows aren't named."""
        check_families(self.families, "sft.families", worked=True)
        check_named_once(self, self.families, "sft")
        check_rows((name for name, share in self.shares().items() if share), "sft.families", {"sft": self})

    def shares(self) -> dict[str, float]:
        """Family -> share. RecipeValueError when all are zero."""
        shares = {task.family: getattr(self, task.family) for task in BASIC} | self.families
        if not sum(shares.values()):
            raise RecipeValueError("sft: every share is 0", fix="give at least one family a share above 0")
        return shares


def sft(context: StageContext, settings: SftSettings) -> dict[str, Any]:
    """Fine-tune the pretrained model; writes `model/`."""
    tokenizer = Tokenizer.load(context.inputs["tokenizer"])
    chat = Chat(tokenizer)
    decoder = trainable(load_model(context.inputs["pretrain"] / "model", device=context.device))
    optimizer = Optimizer(
        decoder, muon_lr=settings.muon_lr, adam_lr=settings.adam_lr, weight_decay=settings.weight_decay
    )
    dtype = compute_type(context.device)
    read_given(context, settings)
    source = Practice(
        chat, settings.shares(), settings.rows, settings.length, context.seed, budgets=settings.budgets
    )

    source.look(context.progress, "sft")

    def step(number: int) -> dict[str, Any]:
        scale = lr_scale(number, settings.steps, decay=0.7)
        batch = source.batch(number, context.device)
        (result,) = train_step(decoder, optimizer, [batch], scale, dtype)
        return {"tokens": (number + 1) * result.tokens, "loss": result.nats, "lr": scale}

    Loop(context, "sft", decoder, optimizer, settings.steps).run(
        step, note=lambda row: f"loss {row['loss']:.3f}"
    )
    save_into(context, decoder, tokenizer, practice=settings)
    context.progress.finish(
        f"{settings.steps * settings.rows * settings.length:,} tokens of worked conversations"
    )
    return {"steps": settings.steps, "tokens": settings.steps * settings.rows * settings.length}


def check_room(max_tokens: int, table: str, tables: Mapping[str, Any]) -> None:
    """RecipeValueError when answers of the recipe's `table` would fill the model's whole context."""
    model = tables.get("model")
    if model and max_tokens >= model.context:
        raise RecipeValueError(
            f"{table}.max_tokens = {max_tokens} leaves no room for a question in {model.context} tokens",
            fix="lower it, or raise model.context",
        )


def read_given(context: StageContext, settings: SftSettings) -> None:
    """Read the user's own rows."""
    if outcome := read_rows(context.root, settings.gsm8k):
        context.progress.say(
            f"GSM8K: {outcome['templates']:,} of {sum(outcome.values()):,} rows are templates"
        )


def trainable(model: Decoder) -> Decoder:
    """With gradients on."""
    return model.requires_grad_(True).train()


def save_into(
    context: StageContext, model: Decoder, tokenizer: Tokenizer, *, practice: SftSettings | None = None
) -> None:
    """Write the stage's `model/` folder, tokenizer included, so that an engine can open it. What `practice`
    has taught about budgets of thinking is noted in it."""
    folder = make_folder(context.folder / "model")
    tokenizer.save(folder)
    control = tokenizer.control
    save_model(model, folder, bos=control["<|bos|>"], eos=control["<|end|>"], pad=control["<|pad|>"])
    if practice is not None and practice.budgets:
        mark_taught(folder)


class Practice:
    """Batches of packed practice conversations; batch n is a function of the seed and n alone.

    A share `kept_share` of the conversations is drawn from `kept` ones instead of from the generators.
    """

    def __init__(
        self,
        chat: Chat,
        shares: dict[str, float],
        rows: int,
        length: int,
        seed: int,
        *,
        budgets: float = 0.0,
        kept: Sequence[Transcript] = (),
        kept_share: float = 0.0,
    ) -> None:
        self.chat, self.shares, self.rows, self.length, self.seed = chat, shares, rows, length, seed
        self.budgets, self.kept, self.kept_share = budgets, kept, kept_share
        self._chunk = functools.lru_cache(maxsize=2)(self._make_chunk)

    def batch(self, number: int, device: str) -> Batch:
        """Batch `number`, its weights summing to one."""
        chunk = self._chunk(number // _CHUNK)
        first = number % _CHUNK * self.rows
        return pack_rows(chunk[first : first + self.rows], self.length, device)

    def look(self, progress: Progress, table: str) -> None:
        """Say how many conversations are longer than a row and therefore left out; RecipeValueError, naming
        the recipe's `table`, when that is more than half of them."""
        rng, long = np.random.default_rng([self.seed, 8]), 0
        for _ in range(_LOOK):
            long += len(self._draw(rng).ids()) - 1 > self.length
        if 2 * long > _LOOK:
            raise RecipeValueError(
                f"{table}.length: {long} of {_LOOK} conversations don't fit a row of {self.length} tokens",
                fix=f"raise {table}.length, or leave out the families with long solutions",
            )
        if long:
            progress.say(f"{long} of {_LOOK} conversations don't fit a row of {self.length} tokens: left out")

    def _make_chunk(self, number: int) -> list[list[Transcript]]:
        rng = np.random.default_rng([self.seed, 4, number])
        wanted = self.rows * _CHUNK
        packer = Packer(self.length)
        while len(packer.full) < wanted:
            packer.add(self._draw(rng))
        order = rng.permutation(wanted)
        return [packer.full[i] for i in order]

    def _draw(self, rng: Generator) -> Transcript:
        if self.kept and rng.random() < self.kept_share:
            return self.kept[int(rng.integers(len(self.kept)))]
        return draw(rng, self.chat, self.shares, self.budgets)


class Packer:
    """Whole conversations into rows of `length`, best fit first (Ding et al. 2024, arXiv 2404.10830)."""

    def __init__(self, length: int, open_rows: int = 32) -> None:
        self.length, self.open_rows = length, open_rows
        self.open: list[tuple[int, list[Transcript]]] = []  # room left, content
        self.full: list[list[Transcript]] = []

    def add(self, transcript: Transcript) -> None:
        """Put a conversation into the fullest row that has room; one longer than a row is left out."""
        size = len(transcript.ids()) - 1
        if size > self.length:
            return
        fits = [(room, i) for i, (room, _) in enumerate(self.open) if room >= size]
        if fits:
            room, i = min(fits)
            self.open[i][1].append(transcript)
            self.open[i] = (room - size, self.open[i][1])
        else:
            self.open.append((self.length - size, [transcript]))
            i = len(self.open) - 1
        if self.open[i][0] < 16:
            self.full.append(self.open.pop(i)[1])
        elif len(self.open) > self.open_rows:
            self.full.append(self.open.pop(min(range(len(self.open)), key=lambda j: self.open[j][0]))[1])

    def finish(self) -> list[list[Transcript]]:
        """All rows, the unfinished ones too."""
        self.full += [content for _, content in self.open]
        self.open = []
        return self.full


def pack_whole(transcripts: Sequence[Transcript], length: int) -> tuple[list[list[Transcript]], int]:
    """Rows that hold every one of `transcripts`, and their length: as much more than `length` as the longest
    needs. For sampled answers: leaving the long ones out would teach to be short."""
    length = max([length, *(len(transcript.ids()) - 1 for transcript in transcripts)])
    packer = Packer(length)
    for transcript in transcripts:
        packer.add(transcript)
    return packer.finish(), length


def pack_rows(
    rows: list[list[Transcript]], length: int, device: str, advantages: dict[int, float] | None = None
) -> Batch:
    """A batch from packed conversations. Weights: 1/n for each of the n sampled tokens, or the
    advantage of their conversation (by `id`). Padding is a document of its own without weight."""
    shape = (len(rows), length)
    tokens, targets, document = (np.zeros(shape, np.int64) for _ in range(3))
    weights = np.zeros(shape, np.float32)
    for row, content in enumerate(rows):
        at = 0
        for number, transcript in enumerate(content):
            ids, sampled = transcript.ids(), transcript.sampled()
            here = slice(at, at + len(ids) - 1)
            tokens[row, here], targets[row, here] = ids[:-1], ids[1:]
            value = 1.0 if advantages is None else advantages[id(transcript)]
            weights[row, here] = np.array(sampled[1:], np.float32) * value
            document[row, here] = number + 1
            at += len(ids) - 1
    if advantages is None:
        weights /= max(1.0, weights.sum())
    return Batch(*(torch.from_numpy(x).to(device) for x in (tokens, targets, weights, document)))
