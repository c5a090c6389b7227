"""Reinforcement learning with verifiable rewards: GRPO, strictly on-policy.

Group-relative policy optimisation (Shao et al. 2024, DeepSeekMath, section 4) in the form that later
work settled on: one update per batch, so that the importance ratio is 1 and clipping is idle; token
sums over one constant (Dr. GRPO, Liu et al. 2025); advantages scaled by the batch's deviation, not the
group's; groups with equal rewards dropped and refilled (DAPO, Yu et al. 2025); no KL term, but a small
SFT batch in every step as an anchor.

Rollouts come from the project's own engine over the live weights. The trainer learns on exactly the
token ids that were sampled; nothing is decoded and encoded again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ayllu.engine.engine import Engine
from ayllu.engine.request import SamplingParams
from ayllu.errors import RecipeValueError, TrainingStoppedError
from ayllu.model.weights import load_model
from ayllu.reason.curriculum import Curriculum
from ayllu.reason.loop import Answer, answer_batch
from ayllu.reason.practice import TASKS, check_families, toolbox_of
from ayllu.reason.task import Problem
from ayllu.reason.transcript import Chat, Transcript
from ayllu.stage import StageContext, bounded, further
from ayllu.text.tokenizer import Tokenizer
from ayllu.tools.calculator import CALCULATOR
from ayllu.tools.tool import Toolbox
from ayllu.train.loop import Loop
from ayllu.train.optim import Optimizer
from ayllu.train.schedule import lr_scale
from ayllu.train.sft import Packer, Practice, SftSettings, pack_rows, read_given, save_into, trainable
from ayllu.train.step import Batch, compute_type, train_step

_VERIFIABLE = ("arithmetic", "calculator", "countdown3")
_TYPICAL_TOKENS = 50  # the constant that token sums are divided by, times the answers of a batch
_PATIENCE = 10  # steps without any informative group before giving up


@dataclass(frozen=True)
class RlSettings:
    """How many rollouts, on what, how fast."""

    steps: int = bounded(50, 1, 10**6, "updates")
    groups: int = bounded(32, 1, 4096, "informative groups wanted for an update")
    size: int = bounded(8, 2, 256, "answers of a group")
    rounds: int = bounded(3, 1, 20, "times that a step samples, at the most, to fill its groups")
    max_tokens: int = bounded(160, 16, 32768, "sampled tokens of an answer")
    lr: float = bounded(0.0004, 1e-7, 1.0, "peak rate of AdamW")
    anchor: float = bounded(0.3, 0.0, 10.0, "weight of the SFT batch beside the policy gradient")
    anchor_rows: int = bounded(8, 1, 1024, "rows of the SFT batch")
    length: int = bounded(256, 64, 32768, "tokens of a packed row")
    arithmetic: float = bounded(0.15, 0.0, 1.0, "share of problems")
    calculator: float = bounded(0.0, 0.0, 1.0, "share of problems")
    countdown3: float = bounded(0.85, 0.0, 1.0, "share of problems")
    families: dict[str, float] = further("shares of problems of further families, by name")

    def check(self, tables: Mapping[str, Any]) -> None:
        """RecipeValueError for a family that doesn't exist."""
        check_families(self.families, "rl.families")

    def shares(self) -> dict[str, float]:
        """Family -> share. RecipeValueError when all are zero."""
        shares = {family: getattr(self, family) for family in _VERIFIABLE} | self.families
        if not sum(shares.values()):
            raise RecipeValueError("rl: every share is 0", fix="give at least one family a share above 0")
        return shares


@dataclass(frozen=True)
class Group:
    """The answers to one problem and their rewards."""

    problem: Problem
    answers: list[Answer]
    rewards: list[float]

    @property
    def informative(self) -> bool:
        """Whether the rewards differ; equal rewards have no gradient."""
        return min(self.rewards) != max(self.rewards)


def reward(problem: Problem, transcript: Transcript, answer: Answer, chat: Chat) -> float:
    """1 for a right answer in the asked form, else 0 (also when the limit cut it off). Cut-off answers
    cost nothing extra: a penalty kept the model from searching longer than its teacher (lab log)."""
    if answer.finish_reason != "stop":
        return 0.0
    return float(TASKS[problem.family].verify(problem, chat.answer(transcript)).strict)


def advantages(groups: list[Group]) -> list[list[float]]:
    """Reward minus the group's mean, over the deviation of all rewards in the batch."""
    centred = [np.array(g.rewards) - np.mean(g.rewards) for g in groups]
    deviation = float(np.concatenate(centred).std()) or 1.0
    return [(c / deviation).tolist() for c in centred]


class Rollouts:
    """Samples groups with the live weights. What step n samples follows from the seed and n (and the
    weights), so that a resumed run continues identically."""

    def __init__(self, engine: Engine, chat: Chat, settings: RlSettings, seed: int) -> None:
        self.engine, self.chat, self.settings, self.seed = engine, chat, settings, seed
        self.toolbox = Toolbox([CALCULATOR])

    def sample(self, step: int, curriculum: Curriculum) -> list[Group]:
        """Groups of a step: rounds of problems until enough groups are informative."""
        settings, share_informative = self.settings, curriculum.informative
        groups: list[Group] = []
        for number in range(settings.rounds):
            missing = settings.groups - sum(g.informative for g in groups)
            if missing <= 0:
                break
            count = min(4 * settings.groups, int(np.ceil(missing / max(share_informative, 0.25))))
            groups += self._round([self.seed, 5, step, number], count, curriculum)
        return groups

    def _round(self, key: list[int], count: int, curriculum: Curriculum) -> list[Group]:
        rng = np.random.default_rng(key)
        shares = self.settings.shares()
        families = list(shares)
        chances = np.array(list(shares.values())) / sum(shares.values())
        problems = []
        for _ in range(count):
            task = TASKS[families[rng.choice(len(families), p=chances)]]
            problems.append(task.problem(rng, curriculum.draw_level(rng, task), "train"))
        prompts = [
            self.chat.start(p.prompt, tools=p.tools) for p in problems for _ in range(self.settings.size)
        ]
        params = SamplingParams(
            max_tokens=self.settings.max_tokens,
            temperature=1.0,  # the loss is that of the model's own distribution
            seed=int(rng.integers(2**62)),
        )
        boxes = [toolbox_of(p, self.toolbox) for p in problems for _ in range(self.settings.size)]
        answers = answer_batch(self.engine, self.chat, prompts, boxes, params)
        groups = []
        for index, problem in enumerate(problems):
            mine = answers[index * self.settings.size : (index + 1) * self.settings.size]
            groups.append(Group(problem, mine, [reward(problem, a.transcript, a, self.chat) for a in mine]))
        return groups


def policy_batches(groups: list[Group], settings: RlSettings, device: str) -> list[Batch]:
    """Packed rows of all answers of the informative groups, weighted by advantage over a constant.

    The constant is the number of answers times a fixed length, so that a token's weight depends
    neither on its answer's length nor on how many tokens the batch happens to have.
    """
    values: dict[int, float] = {}
    packer = Packer(settings.length)
    scale = 1.0 / (settings.groups * settings.size * _TYPICAL_TOKENS)
    for group, group_values in zip(groups, advantages(groups), strict=True):
        for answer, value in zip(group.answers, group_values, strict=True):
            values[id(answer.transcript)] = value * scale
            packer.add(answer.transcript)
    rows = packer.finish()
    return [pack_rows(rows[i : i + 16], settings.length, device, values) for i in range(0, len(rows), 16)]


def rl(context: StageContext, settings: RlSettings, practice: SftSettings) -> dict[str, Any]:
    """GRPO from the SFT model; writes `model/`. TrainingStoppedError when no group is informative."""
    tokenizer = Tokenizer.load(context.inputs["tokenizer"])
    chat = Chat(tokenizer)
    model = trainable(load_model(context.inputs["sft"] / "model", device=context.device))
    optimizer = Optimizer(model, muon_lr=0.0, adam_lr=settings.lr)
    dtype = compute_type(context.device)
    engine = Engine(model, device=context.device, weights="bfloat16", max_sequences=512, tokenizer=tokenizer)
    rollouts = Rollouts(engine, chat, settings, context.seed)
    read_given(context, practice)
    anchor = Practice(chat, practice.shares(), settings.anchor_rows, settings.length, context.seed + 1)
    curriculum = Curriculum()
    loop = Loop(context, "rl", model, optimizer, settings.steps)
    loop.on_resume = lambda state: curriculum.restore(state["curriculum"])

    def step(number: int) -> dict[str, Any]:
        engine.refresh()
        groups = rollouts.sample(number, curriculum)
        curriculum.observe([(g.problem.family, g.problem.level, g.rewards) for g in groups])
        loop.state["curriculum"] = asdict(curriculum)
        useful = [g for g in groups if g.informative][: settings.groups]
        if curriculum.empty >= _PATIENCE:
            raise TrainingStoppedError(*_explain(groups))
        batches = policy_batches(useful, settings, context.device) if useful else []
        if settings.anchor:
            batch = anchor.batch(number, context.device)
            weights_BT = batch.weights_BT * settings.anchor
            batches.append(Batch(batch.tokens_BT, batch.targets_BT, weights_BT, batch.document_BT))
        results = train_step(model, optimizer, batches, lr_scale(number, settings.steps, decay=0.5), dtype)
        return _row(groups, [r.entropy for r in results[: len(batches) - bool(settings.anchor)]])

    loop.run(step, note=lambda row: f"reward {row['reward']:.3f}  informative {row['informative']:.2f}")
    engine.close()
    save_into(context, model, tokenizer)
    context.progress.finish(f"{settings.steps} updates")
    return {"steps": settings.steps}


def _row(groups: list[Group], entropies: list[float]) -> dict[str, Any]:
    answers = [a for g in groups for a in g.answers]
    rewards = [r for g in groups for r in g.rewards]
    by_family = {
        f"reward_{family}": float(
            np.mean([r for g in groups if g.problem.family == family for r in g.rewards])
        )
        for family in sorted({g.problem.family for g in groups})
    }
    return {
        "reward": float(np.mean(rewards)),
        "pass_rate": float(np.mean([max(g.rewards) for g in groups])),
        "informative": sum(g.informative for g in groups) / len(groups),
        "length": float(np.mean([a.tokens for a in answers])),
        "truncated": float(np.mean([a.finish_reason == "length" for a in answers])),
        "entropy": float(np.mean(entropies)) if entropies else 0.0,
        "rollouts": len(answers),
        **by_family,
    }


def _explain(groups: list[Group]) -> tuple[str]:
    mean = float(np.mean([r for g in groups for r in g.rewards]))
    if mean > 0.5:
        return (
            "every group is all right: there is nothing left to learn at this level; stop here or raise it",
        )
    return ("every group is all wrong: the model needs more SFT (or easier problems) before RL can help",)
