"""On-policy distillation: the student writes, the teacher says at every token how it would have gone on.

Agarwal et al. 2023 (arXiv 2306.13649, "GKD") and Gu et al. 2023 (2306.08543, "MiniLLM"): trained on the
teacher's texts, a student never sees the places that its own mistakes lead to; trained on its own texts
with the teacher's distribution as the target, it does, and the reverse divergence KL(student || teacher)
asks it to leave out what it can't do rather than to spread over everything. Dense supervision on the small
model, the sparse reward on the large one: RL the teacher, then distil.

The divergence is summed over the whole vocabulary at each sampled token in float32, heads included, so that
its gradient has no sampling noise but that of the texts.

Only recipes with a table [distill] have this stage. The student begins at random, practises as the teacher
did (the run's own SFT, shorter), and then writes for the teacher, which is the model after RL. Teacher,
student after practice and student after distillation answer the same held-out problems.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ayllu.engine.engine import Engine
from ayllu.engine.request import SamplingParams
from ayllu.errors import RecipeValueError, TrainingStoppedError
from ayllu.evals.runner import evaluate
from ayllu.files import make_folder, read_json, write_json
from ayllu.model.config import ModelSettings
from ayllu.model.decoder import Decoder
from ayllu.model.weights import load_model
from ayllu.reason.practice import (
    TASKS,
    check_rows,
    check_shares,
    draw_problems,
    problem_shares,
    read_rows,
    toolbox_for,
)
from ayllu.reason.rollout import answer_problems
from ayllu.reason.task import Problem, hardest
from ayllu.reason.transcript import Chat, Transcript
from ayllu.stage import StageContext, bounded, further
from ayllu.text.tokenizer import Tokenizer
from ayllu.tools.tool import Toolbox
from ayllu.train.loop import Loop
from ayllu.train.optim import Optimizer
from ayllu.train.packing import pack_rows, pack_whole
from ayllu.train.precision import compute_type
from ayllu.train.schedule import lr_scale
from ayllu.train.sft import SftSettings, check_room, save_into, sft, trainable
from ayllu.train.step import Batch

CODE_VERSION = 2  # 2: logits in float32 where the rest computes in bfloat16
MEASURED = ("n", "correct", "low", "high", "mean_tokens", "truncated")
_ROWS = 8  # rows of one forward and backward


@dataclass(frozen=True)
class DistillSettings:
    """What the student looks like, how long it practises, how many texts it writes, what is measured."""

    width: int = bounded(96, 32, 4096, "channels of the student's residual stream; a multiple of 32")
    layers: int = bounded(4, 1, 64, "blocks of the student")
    head_dim: int = bounded(32, 8, 128, "channels of one attention head; divides the width")
    sft_steps: int = bounded(1000, 1, 10**7, "updates of its practice, of the size that sft says")
    steps: int = bounded(200, 1, 10**6, "updates")
    answers: int = bounded(64, 1, 65_536, "answers that the student writes for an update")
    max_tokens: int = bounded(160, 16, 32768, "sampled tokens of an answer")
    length: int = bounded(256, 64, 32768, "tokens of a packed row")
    lr: float = bounded(0.001, 1e-7, 1.0, "peak rate of AdamW")
    limit: int = bounded(512, 16, 32768, "sampled tokens of an answer when teacher and student are measured")
    heldout: int = bounded(200, 10, 100_000, "problems of each family on which it is measured")
    families: dict[str, float] = further("shares of problems by family; empty: those of SFT but dialogue")

    def check(self, tables: Mapping[str, Any]) -> None:
        """RecipeValueError for a family that doesn't exist or whose rows aren't named, or for sizes that
        don't fit together."""
        check_shares(self.families, "distill")
        self.shape(64)
        check_rows((name for name, share in self.families.items() if share), "distill.families", tables)
        check_room(self.max_tokens, "distill", tables)

    def shape(self, context: int) -> ModelSettings:
        """The student's shape. RecipeValueError, naming the table, where sizes don't divide."""
        if self.width % 32 or self.width % self.head_dim:
            raise RecipeValueError(
                f"distill.width = {self.width} doesn't fit head_dim = {self.head_dim}",
                fix="choose a width that is a multiple of 32 and of head_dim",
            )
        return ModelSettings(self.width, self.layers, self.head_dim, context)


def reverse_kl(student_NV: Tensor, teacher_NV: Tensor) -> Tensor:
    """KL(student || teacher) in nats of each row of logits (N, V) -> (N,), in float32."""
    log_s, log_t = student_NV.float().log_softmax(-1), teacher_NV.float().log_softmax(-1)
    return (log_s.exp() * (log_s - log_t)).sum(-1)


def student_rows(
    engine: Engine,
    chat: Chat,
    settings: DistillSettings,
    shares: dict[str, float],
    toolbox: Toolbox,
    seed: int,
    number: int,
) -> tuple[list[list[Transcript]], int]:
    """Packed answers of the student for step `number`, and the length of their rows: a function of the seed,
    the number, its weights."""
    rng = np.random.default_rng([seed, 11, number])
    problems = draw_problems(rng, shares, settings.answers)
    params = SamplingParams(max_tokens=settings.max_tokens, temperature=1.0, seed=int(rng.integers(2**62)))
    answers = answer_problems(engine, chat, problems, toolbox, params)
    return pack_whole([answer.transcript for answer in answers if answer.tokens], settings.length)


def backward_kl(
    student: Decoder, teacher: Decoder, batches: list[Batch], dtype: torch.dtype
) -> tuple[float, int]:
    """Add the gradient of the mean reverse KL over all weighted places -> (mean KL in nats, places).

    Blocks compute in `dtype`, heads in float32: in bfloat16 a logit of 16 is known to an eighth, which is
    more than student and teacher differ by in the end.
    """
    places = sum(int((batch.weights_BT != 0).sum()) for batch in batches)
    total = 0.0
    for batch in batches:
        mask_N = (batch.weights_BT != 0).flatten()
        with torch.no_grad():
            known = teacher.states(batch.tokens_BT, document_BT=batch.document_BT, dtype=dtype)
            teacher_NV = teacher.logits(known.flatten(0, 1)[mask_N].float())
        states = student.states(batch.tokens_BT, document_BT=batch.document_BT, dtype=dtype)
        student_NV = student.logits(states.flatten(0, 1)[mask_N].float())
        loss = reverse_kl(student_NV, teacher_NV).sum() / places
        loss.backward()
        total += float(loss.detach())
    if not math.isfinite(total):
        raise TrainingStoppedError("the divergence is not a number any more", fix="lower distill.lr")
    return total, places


def distill(context: StageContext, settings: DistillSettings, practice: SftSettings) -> dict[str, Any]:
    """Make the student from `inputs["rl"]/model`, its teacher; writes `model/`, resumable.

    Result: `parameters` of both, and `evals`: family -> teacher, sft (the student after practice), student
    -> n, correct, low, high, mean_tokens.
    """
    tokenizer = Tokenizer.load(context.inputs["tokenizer"])
    chat = Chat(tokenizer)
    shares = problem_shares(settings.families, practice, "distill")
    read_rows(context.root, practice.gsm8k)
    teacher = load_model(context.inputs["rl"] / "model", device=context.device).requires_grad_(False)
    for family in shares:  # what can't be examined (GSM8K without rows of its level) is said before the work
        TASKS[family].problem(np.random.default_rng(0), TASKS[family].levels, "test")
    start = practised(context, settings, practice, teacher, tokenizer)
    student = trainable(load_model(start, device=context.device))
    dtype = compute_type(context.device)
    optimizer = Optimizer(student, muon_lr=0.0, adam_lr=settings.lr)
    engine = Engine(
        student, device=context.device, weights="bfloat16", max_sequences=512, tokenizer=tokenizer
    )

    def step(number: int) -> dict[str, Any]:
        engine.refresh()
        rows, length = student_rows(engine, chat, settings, shares, toolbox, context.seed, number)
        ones = {id(transcript): 1.0 for content in rows for transcript in content}
        batches = [
            pack_rows(rows[n : n + _ROWS], length, context.device, ones) for n in range(0, len(rows), _ROWS)
        ]
        kl, places = backward_kl(student, teacher, batches, dtype)
        optimizer.step(lr_scale(number, settings.steps, decay=0.7))
        return {"kl": kl, "tokens": places}

    with engine, toolbox_for(shares) as toolbox:
        Loop(context, "distill", student, optimizer, settings.steps).run(
            step, note=lambda row: f"reverse KL {row['kl']:.4f} nats a token"
        )
    save_into(context, student, tokenizer, practice=practice)
    folders = {
        "teacher": context.inputs["rl"] / "model",
        "sft": start,
        "student": context.folder / "model",
    }
    evals = measured(context, settings, list(shares), folders)
    for family, rows in evals.items():
        right = (f"{100 * row['correct'] / max(row['n'], 1):.1f} %" for row in rows.values())
        context.progress.say(f"{family}: teacher, student after SFT, distilled: {', '.join(right)}")
    context.progress.finish(f"{settings.steps} updates")
    sizes = {"teacher": teacher, "student": student}
    return {
        "steps": settings.steps,
        "parameters": {name: sum(w.numel() for w in model.parameters()) for name, model in sizes.items()},
        "evals": evals,
    }


def practised(
    context: StageContext,
    settings: DistillSettings,
    practice: SftSettings,
    teacher: Decoder,
    tokenizer: Tokenizer,
) -> Path:
    """The folder of the student after its practice: the stage `sft`, in a hidden folder of this one."""
    home = make_folder(context.folder / ".student")
    start = make_folder(home / "start")
    shape = settings.shape(teacher.config.context).config(teacher.config.vocab_size)
    save_into(replace(context, folder=start), Decoder(shape).initialise(context.seed), tokenizer)
    inner = replace(
        context, folder=home, inputs=context.inputs | {"pretrain": start}, metrics=home / "metrics.jsonl"
    )
    sft(inner, replace(practice, steps=settings.sft_steps))
    return home / "model"


def measured(
    context: StageContext, settings: DistillSettings, families: Sequence[str], folders: Mapping[str, Path]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Family -> name of the model -> what the same held-out problems of the hardest level say of it.

    What is measured is kept at once: a killed stage goes on with the next."""
    found: dict[str, dict[str, dict[str, Any]]] = {family: {} for family in families}
    kept = make_folder(context.folder / ".student" / "measured")
    params = SamplingParams(max_tokens=settings.limit, temperature=0.0, seed=context.seed)
    context.progress.start(len(folders) * len(families), "measurements")
    drawn: dict[str, list[Problem]] = {}  # for all models the same
    for name, folder in folders.items():
        with (
            Engine(folder, device=context.device, max_sequences=64) as engine,
            toolbox_for(families) as toolbox,
        ):
            for family in families:
                path = kept / f"{name}-{family}.json"
                if not path.is_file():
                    task, chat = TASKS[family], Chat(Tokenizer.load(folder))
                    if family not in drawn:
                        drawn[family] = hardest(task, settings.heldout, context.seed)
                    result = evaluate(engine, chat, task, drawn[family], params=params, toolbox=toolbox)
                    write_json(path, {key: result.to_dict()[key] for key in MEASURED})
                found[family][name] = read_json(path)
                done = sum(len(rows) for rows in found.values())
                context.progress.update(done, f"{family}, {name}")
    return found
