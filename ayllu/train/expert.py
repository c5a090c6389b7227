"""Expert iteration: the model's own verified solutions as further practice.

Sample several solutions of each training problem, keep those that the checker accepts and that differ
from each other, and fine-tune on them beside the generators' practice (Anthony et al. 2017; STaR, Zelikman
et al. 2022; rejection sampling, Yuan et al. 2023, arXiv 2308.01825: distinct paths count for more than
many). It is the step between SFT and RL: it needs no gradient of the policy, and it turns what a model
does now and then into what it does often, where the reward of RL would still be too rare.

Only recipes with a table [expert] have this stage. Sampling goes on after a kill with the first portion of
problems that isn't on disk; the fine-tuning resumes like every other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ayllu.engine.engine import Engine
from ayllu.engine.request import SamplingParams
from ayllu.errors import BadFileError, TrainingStoppedError
from ayllu.files import make_folder, read_json, write_json
from ayllu.model.weights import load_model
from ayllu.reason.loop import Answer
from ayllu.reason.practice import TASKS, check_rows, check_shares, draw_problems, problem_shares, toolbox_for
from ayllu.reason.rollout import answer_problems
from ayllu.reason.task import Problem
from ayllu.reason.transcript import Chat, Kind, Span, Transcript
from ayllu.stage import StageContext, bounded, further
from ayllu.text.tokenizer import Tokenizer
from ayllu.tools.tool import Toolbox
from ayllu.train.loop import Loop
from ayllu.train.optim import Optimizer
from ayllu.train.packing import Practice
from ayllu.train.precision import compute_type
from ayllu.train.schedule import lr_scale
from ayllu.train.sft import SftSettings, read_given, save_into, trainable
from ayllu.train.step import train_step

SOLUTIONS = ".solutions"  # working memory, as checkpoints are
_PORTION = 64  # problems sampled together


@dataclass(frozen=True)
class ExpertSettings:
    """How much is sampled, what is kept, how it is learnt."""

    problems: int = bounded(2000, 1, 10**7, "training problems")
    samples: int = bounded(8, 1, 1024, "solutions sampled of each")
    kept: int = bounded(4, 1, 1024, "distinct right solutions kept of each, at the most")
    temperature: float = bounded(1.0, 0.05, 5.0, "of the sampling")
    max_tokens: int = bounded(160, 16, 32768, "sampled tokens of a solution")
    steps: int = bounded(300, 1, 10**7, "updates")
    rows: int = bounded(16, 1, 4096, "rows of a batch")
    length: int = bounded(256, 64, 32768, "tokens of a row")
    muon_lr: float = bounded(0.005, 1e-5, 1.0, "peak rate of Muon (matrices)")
    adam_lr: float = bounded(0.001, 1e-6, 1.0, "peak rate of AdamW (embedding, norms)")
    weight_decay: float = bounded(0.1, 0.0, 10.0, "cautious decay of the matrices")
    share: float = bounded(0.5, 0.0, 1.0, "share of kept solutions; the rest is the practice of SFT")
    families: dict[str, float] = further("shares of problems by family; empty: those of SFT but dialogue")

    def check(self, tables: Mapping[str, Any]) -> None:
        """RecipeValueError for a family that doesn't exist, or when all shares are 0."""
        check_shares(self.families, "expert")
        check_rows((n for n, share in self.families.items() if share), "expert.families", tables)


def expert(context: StageContext, settings: ExpertSettings, practice: SftSettings) -> dict[str, Any]:
    """Sample from the SFT model, keep what is right, learn it; writes `model/`.

    Solutions longer than a row are left out. TrainingStoppedError when no solution is left.
    """
    tokenizer = Tokenizer.load(context.inputs["tokenizer"])
    chat = Chat(tokenizer)
    model = trainable(load_model(context.inputs["sft"] / "model", device=context.device))
    read_given(context, practice)
    source = Practice(
        chat,
        practice.shares(),
        settings.rows,
        settings.length,
        context.seed + 2,
        budgets=practice.budgets,
        kept_share=settings.share,
    )
    source.look(context.progress, "expert")  # before minutes of sampling
    kept, counts = solutions(context, settings, practice, chat)
    fitting = [transcript for transcript in kept if len(transcript.ids()) - 1 <= settings.length]
    if left_out := len(kept) - len(fitting):
        context.progress.say(f"{left_out} solutions don't fit a row of {settings.length} tokens: left out")
    if not fitting:
        raise TrainingStoppedError(
            f"none of the sampled solutions was right and fits into {settings.length} tokens: "
            "there is nothing to learn from",
            fix="give the model more SFT, or choose easier families for [expert]",
        )
    optimizer = Optimizer(
        model, muon_lr=settings.muon_lr, adam_lr=settings.adam_lr, weight_decay=settings.weight_decay
    )
    dtype = compute_type(context.device)
    source.kept = fitting

    def step(number: int) -> dict[str, Any]:
        scale = lr_scale(number, settings.steps, decay=0.7)
        (result,) = train_step(model, optimizer, [source.batch(number, context.device)], scale, dtype)
        return {"tokens": (number + 1) * result.tokens, "loss": result.nats, "lr": scale}

    Loop(context, "expert", model, optimizer, settings.steps).run(
        step, note=lambda row: f"loss {row['loss']:.3f}"
    )
    save_into(context, model, tokenizer, practice=practice)
    context.progress.finish(f"{len(fitting):,} solutions of its own, {settings.steps} updates")
    return {"steps": settings.steps, "kept": len(fitting), "too_long": left_out, "families": counts}


def solutions(
    context: StageContext, settings: ExpertSettings, practice: SftSettings, chat: Chat
) -> tuple[list[Transcript], dict[str, dict[str, int]]]:
    """The kept solutions, in the order of the problems, and counts by family (problems, solved, right,
    sampled, kept). A portion that is on disk already isn't sampled again."""
    folder = make_folder(context.folder / SOLUTIONS)
    portions = -(-settings.problems // _PORTION)
    found: dict[int, dict[str, Any]] = {}
    for number in range(portions):
        path = folder / f"{number:06d}.json"
        try:
            found[number] = read_json(path) if path.is_file() else {}
        except BadFileError:
            found[number] = {}  # damaged: it is sampled again
    missing = [number for number, portion in found.items() if not portion]
    if missing:
        context.progress.start(portions, "portions of problems", portions - len(missing))
        weights = "bfloat16"
        shares = problem_shares(settings.families, practice, "expert")
        with (
            Engine(
                context.inputs["sft"] / "model", device=context.device, weights=weights, max_sequences=512
            ) as engine,
            toolbox_for(shares) as toolbox,
        ):
            for done, number in enumerate(missing):
                found[number] = _portion(engine, chat, settings, shares, toolbox, context.seed, number)
                write_json(folder / f"{number:06d}.json", found[number])
                context.progress.update(portions - len(missing) + done + 1)
    counts: dict[str, dict[str, int]] = {}
    for portion in found.values():
        for family, each in portion["counts"].items():
            mine = counts.setdefault(family, dict.fromkeys(each, 0))
            for name, count in each.items():
                mine[name] += count
    for family, each in counts.items():
        context.progress.say(
            f"{family}: {each['solved']} of {each['problems']} problems solved in {settings.samples} tries, "
            f"{each['kept']} solutions kept"
        )
    return [_thaw(row) for portion in found.values() for row in portion["kept"]], counts


def _portion(
    engine: Engine,
    chat: Chat,
    settings: ExpertSettings,
    shares: dict[str, float],
    toolbox: Toolbox,
    seed: int,
    number: int,
) -> dict[str, Any]:
    """Sample the problems of one portion; a function of the seed, its number and the model."""
    rng = np.random.default_rng([seed, 8, number])
    size = min(_PORTION, settings.problems - number * _PORTION)
    problems = draw_problems(rng, shares, size)
    every = [problem for problem in problems for _ in range(settings.samples)]
    params = SamplingParams(
        max_tokens=settings.max_tokens, temperature=settings.temperature, seed=int(rng.integers(2**62))
    )
    answers = answer_problems(engine, chat, every, toolbox, params)
    counts: dict[str, dict[str, int]] = {}
    kept: list[Any] = []
    for index, problem in enumerate(problems):
        mine = answers[index * settings.samples : (index + 1) * settings.samples]
        right = [answer for answer in mine if is_right(chat, problem, answer)]
        chosen = distinct(chat, right)[: settings.kept]
        kept += [_freeze(answer.transcript) for answer in chosen]
        names = ("problems", "solved", "right", "sampled", "kept")
        values = (1, int(bool(right)), len(right), len(mine), len(chosen))
        count = counts.setdefault(problem.family, dict.fromkeys(names, 0))
        for name, value in zip(names, values, strict=True):
            count[name] += value
    return {"kept": kept, "counts": counts}


def is_right(chat: Chat, problem: Problem, answer: Answer) -> bool:
    """Finished, right in the asked form, and without a call that wasn't valid."""
    if answer.finish_reason != "stop" or answer.valid_calls < answer.calls:
        return False
    return TASKS[problem.family].verify(problem, chat.answer(answer.transcript)).strict


def distinct(chat: Chat, answers: list[Answer]) -> list[Answer]:
    """Those whose working differs, whatever the order of its lines: the first of each kind."""
    found: dict[tuple[str, ...], Answer] = {}
    for answer in answers:
        working = [
            line.strip()
            for span in answer.transcript.spans
            if span.sampled and span.kind != Kind.SAY
            for line in chat.text(span).splitlines()
        ]
        found.setdefault(tuple(sorted(working)), answer)
    return list(found.values())


def _freeze(transcript: Transcript) -> list[Any]:
    return [[str(span.kind), list(span.ids), span.sampled] for span in transcript.spans]


def _thaw(row: list[Any]) -> Transcript:
    return Transcript(tuple(Span(Kind(kind), tuple(ids), sampled) for kind, ids, sampled in row))
