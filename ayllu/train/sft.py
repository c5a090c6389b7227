"""Supervised fine-tuning: learn to write the expert's part of worked conversations.

The loss looks at sampled tokens only (what the model has to write; never a question, never a tool's
result). Conversations are packed whole into rows, and attention never crosses from one to another.
Every conversation is new: the generators don't run out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ayllu.errors import RecipeValueError
from ayllu.files import make_folder
from ayllu.model.decoder import Decoder
from ayllu.model.weights import load_model, save_model
from ayllu.reason.practice import BASIC, check_families, check_named_once, check_rows, read_rows
from ayllu.reason.thinking import mark_taught
from ayllu.reason.transcript import Chat
from ayllu.stage import StageContext, bounded, free, further
from ayllu.text.tokenizer import Tokenizer
from ayllu.train.ahead import ahead
from ayllu.train.loop import Loop
from ayllu.train.optim import Optimizer
from ayllu.train.packing import Practice
from ayllu.train.precision import compute_type
from ayllu.train.schedule import lr_scale
from ayllu.train.step import train_step

CODE_VERSION = 18  # 18: what the clock is for isn't "none" beside python; other variants of GSM8K


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
        """RecipeValueError for a family that doesn't exist or has a setting of its own, without any share,
        where a family's rows aren't named, or where rows are compared with no test set."""
        check_families(self.families, "sft.families", worked=True)
        check_named_once(self, self.families, "sft")
        check_rows((name for name, share in self.shares().items() if share), "sft.families", {"sft": self})
        if self.gsm8k and not getattr(tables.get("guard"), "examined", ()):  # optional: it may be absent
            raise RecipeValueError(
                "sft.gsm8k: these rows are practised, and no test set is named to compare them with",
                fix='name the folder of GSM8K\'s test set: [guard] with examined = ["FOLDER"]',
            )

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
    practice = Practice(
        chat, settings.shares(), settings.rows, settings.length, context.seed, budgets=settings.budgets
    )
    practice.look(context.progress, "sft")
    given = {"root": str(context.root.resolve()), "gsm8k": list(settings.gsm8k)}
    how: dict[str, Any] = {"device": context.device, "steps": settings.steps}
    with ahead(practice, context.inputs["tokenizer"], given, **how) as source:

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
