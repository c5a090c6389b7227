"""Reinforcement learning with verifiable rewards: GRPO, strictly on-policy.

Group-relative policy optimisation (Shao et al. 2024, DeepSeekMath, section 4) in the form that later
work settled on: one update per batch, so that the importance ratio is 1 and clipping is idle; token
sums over one constant (Dr. GRPO, Liu et al. 2025); advantages scaled by the batch's deviation, not the
group's; groups with equal rewards dropped and refilled (DAPO, Yu et al. 2025); no KL term, but a small
SFT batch in every step as an anchor. Other losses are in policy.py, several updates per batch in updates.py.

Rollouts come from the project's own engine over the live weights. The trainer learns on exactly the
token ids that were sampled; nothing is decoded and encoded again.

Hours are not wasted silently: some problems are tried before the first update (preflight.py), what can't work
any more is stopped with the reason, and answers that grow without end are told of.
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
from ayllu.reason.loop import Answer
from ayllu.reason.practice import TASKS, check_families, check_named_once, check_rows, toolbox_for
from ayllu.reason.rollout import answer_problems
from ayllu.reason.task import Problem
from ayllu.reason.transcript import Chat, Transcript
from ayllu.stage import StageContext, bounded, free, further, one_of
from ayllu.text.tokenizer import Tokenizer
from ayllu.tools.tool import Toolbox
from ayllu.train.loop import Loop
from ayllu.train.optim import Optimizer
from ayllu.train.packing import Practice
from ayllu.train.policy import POLICY_LOSSES, Clip
from ayllu.train.preflight import nothing_to_learn, preflight
from ayllu.train.sft import SftSettings, check_room, read_given, save_into, trainable
from ayllu.train.step import StepResult
from ayllu.train.updates import Group, Updates

CODE_VERSION = 7  # of updates.py too; 7: an answer is all that was said
_VERIFIABLE = ("arithmetic", "calculator", "countdown3")
_PATIENCE = 10  # steps without any informative group (or with collapsed entropy) before giving up
_CURVE = 24  # rewards that the line on the terminal shows
_CUT_OFF = 0.1  # share of answers cut off below which nothing is said about them


@dataclass(frozen=True)
class RlSettings:
    """How many rollouts, on what, how fast."""

    steps: int = bounded(50, 1, 10**6, "updates")
    groups: int = bounded(32, 1, 4096, "informative groups wanted for an update")
    size: int = bounded(8, 2, 256, "answers of a group")
    rounds: int = bounded(3, 1, 20, "times that a step samples, at the most, to fill its groups")
    max_tokens: int = bounded(160, 16, 32768, "sampled tokens of an answer")
    temperature: float = bounded(1.0, 0.1, 2.0, "of the answers; learnt is the distribution at it")
    lr: float = bounded(0.0004, 1e-7, 1.0, "peak rate of AdamW")
    anchor: float = bounded(0.3, 0.0, 10.0, "weight of the SFT batch beside the policy gradient")
    anchor_rows: int = bounded(8, 1, 1024, "rows of the SFT batch")
    anchor_without: tuple[str, ...] = free((), "families left out of the SFT batch, to outgrow their teacher")
    length: int = bounded(256, 64, 32768, "tokens of a packed row")
    arithmetic: float = bounded(0.15, 0.0, 1.0, "share of problems")
    calculator: float = bounded(0.0, 0.0, 1.0, "share of problems")
    countdown3: float = bounded(0.85, 0.0, 1.0, "share of problems")
    families: dict[str, float] = further("shares of problems of further families, by name")
    loss: str = one_of("grpo", tuple(POLICY_LOSSES), "the policy loss (train/policy.py has their papers)")
    updates: int = bounded(1, 1, 64, "updates from the rollouts of a step; above 1 is off-policy")
    clip_low: float = bounded(0.0, 0.0, 1.0, "how far ratios may fall; 0 takes the bound of the loss's paper")
    clip_high: float = bounded(0.0, 0.0, 100.0, "how far ratios may rise; 0 takes the paper's bound")
    cut_off: float = bounded(0.0, 0.0, 1.0, "taken off an answer's reward when the limit cut it off")
    wrong: float = bounded(
        0.0, 0.0, 1.0, "taken off for a wrong answer where the family has a way to give up"
    )
    invalid_call: float = bounded(0.0, 0.0, 1.0, "taken off an answer's reward for a call that isn't valid")
    retire: int = bounded(0, 0, 1000, "visits at 90 % in a row after which a level rests; 0: none does")
    replay: float = bounded(0.15, 0.01, 1.0, "share of problems from levels that rest")
    entropy_floor: float = bounded(0.0, 0.0, 10.0, "nats a token below which training is stopped; 0: never")
    max_grad_norm: float = bounded(0.0, 0.0, 1e6, "longer gradients are shortened to this length; 0: never")
    preflight: int = bounded(8, 0, 10_000, "problems of a family tried before the first update; 0: none")

    def check(self, tables: Mapping[str, Any]) -> None:
        """RecipeValueError for a family that doesn't exist, has a setting of its own or lacks its rows,
        without any share, for an anchor without any, or for answers that fill the context."""
        check_families(self.families, "rl.families")
        check_named_once(self, self.families, "rl")
        check_rows((name for name, share in self.shares().items() if share), "rl.families", tables)
        check_room(self.max_tokens, "rl", tables)
        check_families(self.anchor_without, "rl.anchor_without")
        if self.temperature != 1.0 and self.updates > 1:
            raise RecipeValueError(
                "rl.updates above 1 needs temperature = 1", why="ratios are those of probabilities at 1"
            )
        practised = {family for family, share in tables["sft"].shares().items() if share}
        if self.anchor and practised <= set(self.anchor_without):
            raise RecipeValueError(
                "rl.anchor_without: nothing is left for the anchor",
                fix="leave a family in it, or set anchor = 0",
            )

    def shares(self) -> dict[str, float]:
        """Family -> share. RecipeValueError when all are zero."""
        shares = {family: getattr(self, family) for family in _VERIFIABLE} | self.families
        if not sum(shares.values()):
            raise RecipeValueError("rl: every share is 0", fix="give at least one family a share above 0")
        return shares

    def clip(self) -> Clip:
        """The loss's bounds, or those that were given."""
        usual = POLICY_LOSSES[self.loss].clip
        return Clip(self.clip_low or usual.low, self.clip_high or usual.high)


def reward(problem: Problem, transcript: Transcript, answer: Answer, chat: Chat) -> float:
    """1 for a right answer in the asked form, else 0 (also when the limit cut it off)."""
    if answer.finish_reason != "stop":
        return 0.0
    return float(TASKS[problem.family].verify(problem, chat.answer(transcript)).strict)


class Rollouts:
    """Samples groups with the live weights. What step n samples follows from the seed and n (and the
    weights), so that a resumed run continues identically."""

    def __init__(self, engine: Engine, chat: Chat, settings: RlSettings, seed: int, toolbox: Toolbox) -> None:
        self.engine, self.chat, self.settings, self.seed = engine, chat, settings, seed
        self.toolbox = toolbox

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
        shares = {f: share * curriculum.share(TASKS[f]) for f, share in self.settings.shares().items()}
        families = list(shares)
        chances = np.array(list(shares.values())) / sum(shares.values())
        problems = []
        for _ in range(count):
            task = TASKS[families[rng.choice(len(families), p=chances)]]
            problems.append(task.problem(rng, curriculum.draw_level(rng, task), "train"))
        return self.answer(problems, self.settings.size, int(rng.integers(2**62)))

    def answer(self, problems: list[Problem], size: int, seed: int) -> list[Group]:
        """`size` answers to each problem, with their rewards."""
        params = SamplingParams(
            max_tokens=self.settings.max_tokens,
            temperature=self.settings.temperature,
            seed=seed,
        )
        every = [problem for problem in problems for _ in range(size)]
        answers = answer_problems(self.engine, self.chat, every, self.toolbox, params)
        groups = []
        for index, problem in enumerate(problems):
            mine = answers[index * size : (index + 1) * size]
            groups.append(Group(problem, mine, [self._reward(problem, a) for a in mine]))
        return groups

    def _reward(self, problem: Problem, answer: Answer) -> float:
        value = reward(problem, answer.transcript, answer, self.chat)
        right = value > 0
        if self.settings.invalid_call and answer.valid_calls < answer.calls:
            value -= self.settings.invalid_call
        if answer.finish_reason == "length":
            value -= self.settings.cut_off
        elif self.settings.wrong and not right and self._pretends(problem, answer):
            value -= self.settings.wrong
        return value

    def _pretends(self, problem: Problem, answer: Answer) -> bool:
        """Whether something else was said where "no" would have been honest."""
        honest = TASKS[problem.family].gives_up
        return bool(honest) and (self.chat.answer(answer.transcript) or "").strip() != honest


# ---- the stage
def rl(context: StageContext, settings: RlSettings, practice: SftSettings) -> dict[str, Any]:
    """GRPO from the SFT model (or that of expert iteration, where the run has it); writes `model/`.

    TrainingStoppedError when the pre-flight shows that it can't work, when no group is informative any
    more, or when the entropy has collapsed.
    """
    tokenizer = Tokenizer.load(context.inputs["tokenizer"])
    chat = Chat(tokenizer)
    before = context.inputs.get("expert", context.inputs["sft"])
    model = trainable(load_model(before / "model", device=context.device))
    optimizer = Optimizer(model, muon_lr=0.0, adam_lr=settings.lr)
    engine = Engine(model, device=context.device, weights="bfloat16", max_sequences=512, tokenizer=tokenizer)
    read_given(context, practice)
    kept = {f: share for f, share in practice.shares().items() if f not in settings.anchor_without}
    anchor = Practice(
        chat, kept, settings.anchor_rows, settings.length, context.seed + 1, budgets=practice.budgets
    )
    if settings.anchor:
        anchor.look(context.progress, "rl")
    updates = Updates(model, optimizer, anchor, settings, context.device)
    curriculum = Curriculum(retire=settings.retire, replay=settings.replay)
    loop = Loop(context, "rl", model, optimizer, settings.steps)
    loop.on_resume = lambda state: curriculum.restore(state["curriculum"])
    loop.state |= {"rewards": [], "collapsed": 0, "cut_off": [], "told": False}

    def step(number: int) -> dict[str, Any]:
        engine.refresh()
        groups = rollouts.sample(number, curriculum)
        curriculum.observe([(g.problem.family, g.problem.level, g.rewards) for g in groups])
        loop.state["curriculum"] = asdict(curriculum)
        useful = [g for g in groups if g.informative][: settings.groups]
        if curriculum.empty >= _PATIENCE:
            raise nothing_to_learn(groups)
        row = _row(groups, updates.run(number, useful))
        if not loop.state["told"] and (why := more_cut_off(loop.state, row["truncated"], flight)):
            loop.state["told"] = True
            context.progress.say(why)
        loop.state["rewards"] = [*loop.state["rewards"], row["reward"]][-_CURVE:]
        low = row.get("entropy", settings.entropy_floor) < settings.entropy_floor
        loop.state["collapsed"] = loop.state["collapsed"] + 1 if low else 0
        if loop.state["collapsed"] >= _PATIENCE:
            raise TrainingStoppedError(
                f"entropy has collapsed to {row['entropy']:.3f} nats a token: all answers have become alike",
                why=f"{_PATIENCE} steps in a row were below entropy_floor = {settings.entropy_floor:g}",
                fix="lower lr, raise anchor, or take the last checkpoint's model as it is",
            )
        return row

    def note(row: dict[str, Any]) -> str:
        return (
            f"reward {row['reward']:.3f} {curve(loop.state['rewards'])}  informative {row['informative']:.2f}"
        )

    practised = [family for family, share in settings.shares().items() if share]
    with engine, toolbox_for(practised) as toolbox:
        rollouts = Rollouts(engine, chat, settings, context.seed, toolbox)
        flight = preflight(context, rollouts, updates.seconds) if settings.preflight else None
        loop.run(step, note=note)
    save_into(context, model, tokenizer, practice=practice)
    context.progress.finish(f"{settings.steps} updates")
    return {"steps": settings.steps} | ({"preflight": flight} if flight else {})


def more_cut_off(state: dict[str, Any], share: float, flight: dict[str, Any] | None) -> str:
    """What to say when the limit cuts off twice the answers that it did before the first update; "" for
    nothing. `share` of this step joins those that `state` keeps: a single step says little."""
    state["cut_off"] = [*state["cut_off"], share][-_PATIENCE:]
    now = float(np.mean(state["cut_off"]))
    if flight is None or len(state["cut_off"]) < _PATIENCE or now < _CUT_OFF:
        return ""
    before = flight["truncated"]
    if now < 2 * before:
        return ""
    return (
        f"{100 * now:.0f} % of the answers run out of tokens now, {100 * before:.0f} % did before the first "
        "update: answers grow that lead nowhere (rl.cut_off gives that a price, rl.max_tokens gives it room)"
    )


def curve(values: list[float]) -> str:
    """Values as a line of small bars, the lowest to the highest over the whole height."""
    low, span = min(values, default=0.0), (max(values, default=0.0) - min(values, default=0.0)) or 1.0
    return "".join("▁▂▃▄▅▆▇█"[min(7, int(8 * (value - low) / span))] for value in values)


def _row(groups: list[Group], results: list[StepResult]) -> dict[str, Any]:
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
        "pass_rate": float(np.mean([max(g.rewards) > 0 for g in groups])),
        "informative": sum(g.informative for g in groups) / len(groups),
        "length": float(np.mean([a.tokens for a in answers])),
        "truncated": float(np.mean([a.finish_reason == "length" for a in answers])),
        **_means(results),
        "rollouts": len(answers),
        **by_family,
    }


def _means(results: list[StepResult]) -> dict[str, float]:
    """Nothing where nothing was learnt: then nothing was measured."""
    names = ("entropy", "grad_norm") if results else ()
    return {name: float(np.mean([getattr(result, name) for result in results])) for name in names}
