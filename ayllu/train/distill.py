"""On-policy distillation: the student writes, the teacher says at every token how it would have gone on.

Agarwal et al. 2023 (arXiv 2306.13649, "GKD") and Gu et al. 2023 (2306.08543, "MiniLLM"): trained on the
teacher's texts, a student never sees the places that its own mistakes lead to; trained on its own texts
with the teacher's distribution as the target, it does, and the reverse divergence KL(student || teacher)
asks it to leave out what it can't do rather than to spread over everything. Dense supervision on the small
model, the sparse reward on the large one: RL the teacher, then distil.

The divergence is summed over the whole vocabulary at each sampled token in float32, so that its gradient
has no sampling noise but that of the texts. Both models must have the same tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ayllu.engine.engine import Engine
from ayllu.engine.request import SamplingParams
from ayllu.errors import RecipeValueError
from ayllu.model.decoder import Decoder
from ayllu.model.weights import load_model
from ayllu.reason.loop import answer_batch
from ayllu.reason.practice import check_families, draw_problems, toolbox_of
from ayllu.reason.transcript import Chat, Transcript
from ayllu.stage import StageContext, bounded, further
from ayllu.text.tokenizer import Tokenizer
from ayllu.tools.calculator import CALCULATOR
from ayllu.tools.tool import Toolbox
from ayllu.train.loop import Loop
from ayllu.train.optim import Optimizer
from ayllu.train.schedule import lr_scale
from ayllu.train.sft import Packer, pack_rows, save_into, trainable
from ayllu.train.step import Batch, compute_type

_ROWS = 8  # rows of one forward and backward


@dataclass(frozen=True)
class DistillSettings:
    """How many texts, on what, how fast."""

    steps: int = bounded(200, 1, 10**6, "updates")
    answers: int = bounded(64, 1, 65_536, "answers that the student writes for an update")
    max_tokens: int = bounded(160, 16, 32768, "sampled tokens of an answer")
    length: int = bounded(256, 64, 32768, "tokens of a packed row")
    lr: float = bounded(0.001, 1e-7, 1.0, "peak rate of AdamW")
    families: dict[str, float] = further("shares of problems by family")

    def check(self, tables: Mapping[str, Any]) -> None:
        """RecipeValueError for a family that doesn't exist, or without any."""
        check_families(self.families, "distill.families")
        if not sum(self.families.values()):
            raise RecipeValueError(
                "distill: every share is 0", fix="give at least one family a share above 0"
            )


def reverse_kl(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """KL(student || teacher) in nats of each row of logits (N, V) -> (N,), in float32."""
    log_s, log_t = student_NV.float().log_softmax(-1), teacher_NV.float().log_softmax(-1)
    return (log_s.exp() * (log_s - log_t)).sum(-1)


def student_rows(
    engine: Engine, chat: Chat, settings: DistillSettings, seed: int, number: int
) -> list[list[Transcript]]:
    """Packed answers of the student for step `number`: a function of the seed, the number, its weights."""
    rng = np.random.default_rng([seed, 11, number])
    problems = draw_problems(rng, settings.families, settings.answers)
    params = SamplingParams(max_tokens=settings.max_tokens, temperature=1.0, seed=int(rng.integers(2**62)))
    shared, packer = Toolbox([CALCULATOR]), Packer(settings.length)
    prompts = [chat.start(p.prompt, tools=p.tools) for p in problems]
    for answer in answer_batch(engine, chat, prompts, [toolbox_of(p, shared) for p in problems], params):
        packer.add(answer.transcript)
    return packer.finish()


def backward_kl(
    student: Decoder, teacher: Decoder, batches: list[Batch], dtype: torch.dtype
) -> tuple[float, int]:
    """Add the gradient of the mean reverse KL over all weighted places -> (mean KL in nats, places)."""
    places = sum(int((batch.weights_BT != 0).sum()) for batch in batches)
    total = 0.0
    for batch in batches:
        mask_N = (batch.weights_BT != 0).flatten()
        with torch.no_grad():
            known = teacher.states(batch.tokens_BT, document_BT=batch.document_BT, dtype=dtype)
            teacher_NV = teacher.logits(known.flatten(0, 1)[mask_N])
        states = student.states(batch.tokens_BT, document_BT=batch.document_BT, dtype=dtype)
        loss = reverse_kl(student.logits(states.flatten(0, 1)[mask_N]), teacher_NV).sum() / places
        loss.backward()
        total += float(loss.detach())
    return total, places


def distill(context: StageContext, settings: DistillSettings) -> dict[str, Any]:
    """Distil `inputs["teacher"]/model` into `inputs["student"]/model`; writes `model/`, resumable.

    RecipeValueError when the two don't share their vocabulary.
    """
    tokenizer = Tokenizer.load(context.inputs["tokenizer"])
    chat = Chat(tokenizer)
    teacher = load_model(context.inputs["teacher"] / "model", device=context.device)
    student = trainable(load_model(context.inputs["student"] / "model", device=context.device))
    if teacher.config.vocab_size != student.config.vocab_size:
        raise RecipeValueError(
            f"the teacher has {teacher.config.vocab_size} pieces of vocabulary, the student "
            f"{student.config.vocab_size}",
            fix="distil between models of one tokenizer",
        )
    teacher.requires_grad_(False)
    dtype = compute_type(context.device)
    optimizer = Optimizer(student, muon_lr=0.0, adam_lr=settings.lr)
    engine = Engine(
        student, device=context.device, weights="bfloat16", max_sequences=512, tokenizer=tokenizer
    )

    def step(number: int) -> dict[str, Any]:
        engine.refresh()
        rows = student_rows(engine, chat, settings, context.seed, number)
        ones = {id(transcript): 1.0 for content in rows for transcript in content}
        batches = [
            pack_rows(rows[n : n + _ROWS], settings.length, context.device, ones)
            for n in range(0, len(rows), _ROWS)
        ]
        kl, places = backward_kl(student, teacher, batches, dtype)
        optimizer.step(lr_scale(number, settings.steps, decay=0.7))
        return {"kl": kl, "tokens": places}

    Loop(context, "distill", student, optimizer, settings.steps).run(
        step, note=lambda row: f"reverse KL {row['kl']:.4f} nats a token"
    )
    engine.close()
    save_into(context, student, tokenizer)
    context.progress.finish(f"{settings.steps} updates")
    return {"steps": settings.steps}
