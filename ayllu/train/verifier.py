"""The verifier stage: every token of a sampled solution learns whether the whole was right.

Cobbe et al. 2021 (arXiv 2110.14168), section 4.2: solutions are sampled from the generator at several
temperatures, so that right and wrong ones both occur and the wrong ones are the generator's own mistakes; the
head's loss is the binary cross-entropy of each sampled token. Problems whose solutions are all right or all
wrong teach the verifier to know hard problems, not good solutions; they are kept to a bounded share.

Only recipes with a table [verifier] have this stage. It begins from the model after RL, and the release
carries what it makes. Sampling goes on after a kill with the first portion of problems that isn't on disk;
the training resumes like every other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ayllu.engine.engine import Engine
from ayllu.engine.request import SamplingParams
from ayllu.errors import BadFileError, RecipeValueError, TrainingStoppedError
from ayllu.files import make_folder, read_json, write_json
from ayllu.model.decoder import Decoder
from ayllu.model.weights import load_model
from ayllu.reason.loop import Answer
from ayllu.reason.practice import check_rows, check_shares, draw_problems, problem_shares, toolbox_for
from ayllu.reason.rollout import answer_problems
from ayllu.reason.task import Problem
from ayllu.reason.transcript import Chat, Kind, Span, Transcript
from ayllu.reason.verify import Verifier, highest, save_head
from ayllu.reason.vote import canonical, winner
from ayllu.stage import StageContext, bounded, free, further
from ayllu.text.tokenizer import Tokenizer
from ayllu.tools.tool import Toolbox
from ayllu.train.expert import is_right
from ayllu.train.loop import Loop
from ayllu.train.optim import Optimizer
from ayllu.train.packing import pack_rows
from ayllu.train.schedule import lr_scale
from ayllu.train.sft import SftSettings, read_given, save_into
from ayllu.train.step import Batch

CODE_VERSION = 5  # 5: an answer is all that was said
SOLUTIONS = ".solutions"  # working memory, as checkpoints are
_PORTION = 64  # problems sampled together
_MEASURED_AT = 0.7  # the temperature of the held-out problems' samples (Wang et al. 2022, section 3.1)
_UNIFORM = 0.3  # largest share of problems whose solutions are all right or all wrong
_UNDECIDED = Span(Kind.SAY, (0,), False)  # a place for the last token, which rows of a batch leave out


@dataclass(frozen=True)
class VerifierSettings:
    """How many solutions are sampled, how they are learnt, how many are kept to measure."""

    problems: int = bounded(2000, 1, 10**7, "training problems")
    samples: int = bounded(8, 2, 1024, "solutions sampled of each")
    temperatures: tuple[float, ...] = free((0.7, 1.0, 1.3), "of the samples, in turn")
    heldout: int = bounded(200, 1, 10**6, "problems of the test split, on which it is measured")
    max_tokens: int = bounded(160, 16, 32768, "sampled tokens of a solution")
    steps: int = bounded(400, 1, 10**7, "updates")
    rows: int = bounded(16, 1, 4096, "rows of a batch")
    length: int = bounded(256, 64, 32768, "tokens of a row")
    lr: float = bounded(0.001, 1e-7, 1.0, "peak rate of AdamW")
    families: dict[str, float] = further("shares of problems by family; empty: those of SFT but dialogue")

    def check(self, tables: Mapping[str, Any]) -> None:
        """RecipeValueError for a family that doesn't exist, or temperatures at which nothing is drawn."""
        check_shares(self.families, "verifier")
        check_rows((n for n, share in self.families.items() if share), "verifier.families", tables)
        if not self.temperatures or not all(0.05 <= t <= 5 for t in self.temperatures):
            raise RecipeValueError(
                f"verifier.temperatures = {list(self.temperatures)} is not possible",
                why="at 0 every sample of a problem would be the same",
                fix="give some from 0.05 to 5",
            )


@dataclass(frozen=True)
class Solution:
    """A sampled solution, whether it was right, and whether it came to its end."""

    transcript: Transcript
    right: bool
    whole: bool = True


@dataclass(frozen=True)
class Solved:
    """A problem, by its canonical key, with its solutions."""

    key: str
    solutions: tuple[Solution, ...]

    @property
    def mixed(self) -> bool:
        """Whether some are right and some wrong."""
        return len({solution.right for solution in self.solutions}) == 2


def verifier(context: StageContext, settings: VerifierSettings, practice: SftSettings) -> dict[str, Any]:
    """Sample solutions from the RL model, train its copy with a head on them; writes `model/`.

    Result: `accuracy` of held-out solutions told right or wrong, and what each way of choosing one of the
    `samples` gets (`heldout`): on problems that nobody has practised, of the test split and the highest
    level, as in an examination. TrainingStoppedError as `train_verifier`.
    """
    tokenizer = Tokenizer.load(context.inputs["tokenizer"])
    chat = Chat(tokenizer)
    read_given(context, practice)
    trained, heldout = sampled(context, settings, practice, chat)
    made = Verifier(load_model(context.inputs["rl"] / "model", device=context.device))
    chosen = balanced(trained)
    fitting = that_fit(chosen, settings.length)
    if left_out := len(chosen) - len(fitting):
        context.progress.say(f"{left_out} solutions don't fit a row of {settings.length} tokens: left out")
    train_verifier(context, made, fitting, settings)
    found = judged(chat, made, heldout)
    save_into(context, made.decoder, tokenizer)
    save_head(made, context.folder / "model")
    context.progress.finish(
        f"{100 * found['accuracy']:.1f} % of held-out solutions told apart; of {settings.samples} answers to "
        f"{found['problems']} problems {100 * found['one']:.1f} % are right, the majority's "
        f"{100 * found['majority']:.1f} %, the verifier's best {100 * found['best_of']:.1f} %"
        if found["problems"]
        else f"{settings.steps} updates"
    )
    return {
        "steps": settings.steps,
        "samples": settings.samples,
        "temperature": _MEASURED_AT,
        "solutions": len(fitting),
        "right": sum(solution.right for solution in fitting),
        "too_long": left_out,
        "accuracy": found["accuracy"],
        "heldout": found,
    }


# ---- solutions
@dataclass(frozen=True)
class Portion:
    """Problems that are sampled together."""

    split: str
    number: int
    size: int

    @property
    def file(self) -> str:
        """The file's name."""
        return f"{self.split}-{self.number:06d}.json"


def sampled(
    context: StageContext, settings: VerifierSettings, practice: SftSettings, chat: Chat
) -> tuple[list[Solved], list[Solved]]:
    """Problems with their solutions, to learn from and held out. A portion on disk isn't sampled again."""
    folder = make_folder(context.folder / SOLUTIONS)
    found: dict[Portion, list[Any]] = {}
    for split, count in (("train", settings.problems), ("test", settings.heldout)):
        for number, start in enumerate(range(0, count, _PORTION)):
            found[Portion(split, number, min(_PORTION, count - start))] = []
    for portion in found:
        path = folder / portion.file
        try:
            found[portion] = read_json(path) if path.is_file() else []
        except BadFileError:
            found[portion] = []  # damaged: it is sampled again
    if missing := [portion for portion, rows in found.items() if not rows]:
        done = len(found) - len(missing)
        context.progress.start(len(found), "portions of problems", done)
        shares = problem_shares(settings.families, practice, "verifier")
        with (
            Engine(
                context.inputs["rl"] / "model", device=context.device, weights="bfloat16", max_sequences=512
            ) as engine,
            toolbox_for(shares) as toolbox,
        ):
            for place, portion in enumerate(missing, 1):
                found[portion] = _sample(engine, chat, settings, shares, toolbox, context.seed, portion)
                write_json(folder / portion.file, found[portion])
                context.progress.update(done + place)

    def solved(split: str) -> list[Solved]:
        return [_thaw(row) for portion, rows in found.items() if portion.split == split for row in rows]

    return solved("train"), list({each.key: each for each in solved("test")}.values())


def _sample(
    engine: Engine,
    chat: Chat,
    settings: VerifierSettings,
    shares: dict[str, float],
    toolbox: Toolbox,
    seed: int,
    portion: Portion,
) -> list[Any]:
    """Sample a portion's problems; a function of the seed, the portion and the model."""
    rng = np.random.default_rng([seed, 9, *portion.split.encode(), portion.number])
    problems = draw_problems(rng, shares, portion.size, portion.split)
    k = settings.samples
    every = [problem for problem in problems for _ in range(k)]
    base = SamplingParams(max_tokens=settings.max_tokens, seed=int(rng.integers(2**62)))
    heats = settings.temperatures if portion.split == "train" else (_MEASURED_AT,)
    hot = [replace(base, temperature=heats[n % k % len(heats)]) for n in range(len(every))]
    answers = answer_problems(engine, chat, every, toolbox, hot)
    return [_freeze(chat, problem, answers[n * k : (n + 1) * k]) for n, problem in enumerate(problems)]


def _freeze(chat: Chat, problem: Problem, answers: Sequence[Answer]) -> list[Any]:
    rows = []
    for answer in answers:
        spans = [[str(span.kind), list(span.ids), span.sampled] for span in answer.transcript.spans]
        rows.append([spans, is_right(chat, problem, answer), answer.finish_reason == "stop"])
    return [problem.key, rows]


def _thaw(row: list[Any]) -> Solved:
    key, rows = row
    solutions = tuple(
        Solution(
            Transcript(tuple(Span(Kind(kind), tuple(ids), sampled) for kind, ids, sampled in spans)),
            right,
            whole,
        )
        for spans, right, whole in rows
    )
    return Solved(key, solutions)


def balanced(solved: Sequence[Solved]) -> list[Solution]:
    """All solutions of mixed problems, and of uniform ones as many as their share allows."""
    mixed = [each for each in solved if each.mixed]
    uniform = [each for each in solved if not each.mixed]
    room = int(len(mixed) * _UNIFORM / (1 - _UNIFORM))
    return [solution for each in mixed + uniform[:room] for solution in each.solutions]


def that_fit(solutions: Sequence[Solution], length: int) -> list[Solution]:
    """Those that a row of `length` tokens has room for."""
    return [solution for solution in solutions if len(solution.transcript.ids()) <= length]


# ---- training
def train_verifier(
    context: StageContext, made: Verifier, solutions: Sequence[Solution], settings: VerifierSettings
) -> None:
    """Fine-tune backbone and head in place with AdamW; metrics rows have loss and accuracy (of tokens).

    Every solution fits a row. TrainingStoppedError when they are all right or all wrong.
    """
    by_kind = [[s for s in solutions if s.right], [s for s in solutions if not s.right]]
    if not all(by_kind):
        raise TrainingStoppedError(
            "the sampled solutions are all right or all wrong: there is nothing to tell apart",
            why=f"{len(solutions)} solutions of problems that aren't always solved alike fit into a row of "
            f"{settings.length} tokens",
            fix="sample at higher temperatures, choose families that the model solves now and then, or take "
            "longer rows",
        )
    made.requires_grad_(True).train()
    # Both read a model's parameters by name and its config; a verifier has them as a decoder does.
    model = cast(Decoder, made)
    optimizer = Optimizer(model, muon_lr=0.0, adam_lr=settings.lr)

    def step(number: int) -> dict[str, Any]:
        rng = np.random.default_rng([context.seed, 10, number])
        batch, wanted_BT = batch_of(rng, by_kind, settings.rows, settings.length, context.device)
        logits_BT = made(batch.tokens_BT, document_BT=batch.document_BT)
        loss_BT = F.binary_cross_entropy_with_logits(logits_BT, wanted_BT, reduction="none")
        weights_BT = batch.weights_BT / batch.weights_BT.sum()
        loss = (loss_BT * weights_BT).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        optimizer.step(lr_scale(number, settings.steps, decay=0.7))
        told = ((logits_BT.detach() > 0) == (wanted_BT > 0.5)).float()
        return {"loss": float(loss.detach()), "accuracy": float((told * weights_BT).sum())}

    Loop(context, "verifier", model, optimizer, settings.steps).run(
        step, note=lambda row: f"loss {row['loss']:.3f}, {100 * row['accuracy']:.0f} % of tokens told apart"
    )
    made.requires_grad_(False).eval()


def batch_of(
    rng: np.random.Generator, by_kind: list[list[Solution]], rows: int, length: int, device: str
) -> tuple[Batch, Tensor]:
    """Packed rows with as many right as wrong solutions -> (batch, 1 for each token of a right one).

    Each solution is read whole, from its first token to its last, as `Verifier.score` reads it. Weights are
    1 on sampled tokens. A batch of the language model leaves out each conversation's last token and weighs
    the place before a sampled one; so every conversation gets a token more, and weights go one place on.
    """
    content, room = [list[Transcript]() for _ in range(rows)], [length] * rows
    signs = dict[int, float]()
    # In the order in which they are drawn, until one doesn't fit. Taking the rows that are full first would
    # be taking what is long: solutions that were cut off, and so are wrong.
    while True:
        kind = by_kind[int(rng.integers(2))]
        solution = kind[int(rng.integers(len(kind)))]
        copy = solution.transcript.plus(_UNDECIDED)
        size = len(copy.ids()) - 1
        fits = [(left, row) for row, left in enumerate(room) if left >= size]
        if not fits:
            break
        row = min(fits)[1]
        content[row].append(copy)
        room[row] -= size
        signs[id(copy)] = 1.0 if solution.right else -1.0
    batch = pack_rows(content, length, device, signs)
    signs_BT = batch.weights_BT.roll(1, dims=1)  # a row's last place never has a weight
    return replace(batch, weights_BT=signs_BT.abs()), (signs_BT > 0).float()


# ---- what it is good for
def judged(chat: Chat, made: Verifier, solved: Sequence[Solved]) -> dict[str, Any]:
    """Shares of held-out problems whose chosen answer is right, by the way of choosing; `one`: without a
    choice, `any`: if the best were always known. `accuracy`: of single solutions, right being a score
    above 1/2."""
    every = [solution for each in solved for solution in each.solutions]
    scores = made.score([solution.transcript for solution in every])
    told = sum((score > 0.5) == s.right for score, s in zip(scores, every, strict=True))
    ways = dict.fromkeys(("one", "majority", "weighted", "best_of", "any"), 0.0)
    at = 0
    for each in solved:
        k = len(each.solutions)
        mine, at = scores[at : at + k], at + k
        texts = [chat.answer(s.transcript) if s.whole else None for s in each.solutions]
        answers = [None if text is None else canonical(text) for text in texts]
        places = {
            "majority": winner(answers),
            "weighted": winner(answers, mine),
            "best_of": highest(mine, [s.whole for s in each.solutions]),
        }
        for way, place in places.items():
            ways[way] += place is not None and each.solutions[place].right
        ways["one"] += sum(s.right for s in each.solutions) / k
        ways["any"] += any(s.right for s in each.solutions)
    shares = {way: count / max(len(solved), 1) for way, count in ways.items()}
    return {"problems": len(solved), "accuracy": told / max(len(every), 1), **shares}
