"""What is practised and what is examined: worked solutions for SFT, prompts that must stay unseen.

Practice is drawn from the train split of every family only; examination prompts come from the test
split. Everything is a function of the seed and a counter.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.random import Generator

from ayllu.errors import RecipeValueError
from ayllu.reason.task import NewTemplates, Piece, Problem, Task, conversation, hardest, worked
from ayllu.reason.tasks import dialogue
from ayllu.reason.tasks.arithmetic import Arithmetic
from ayllu.reason.tasks.bases import Bases
from ayllu.reason.tasks.calculator import Calculator
from ayllu.reason.tasks.countdown import Countdown
from ayllu.reason.tasks.countdown4 import Countdown4
from ayllu.reason.tasks.countdown_patient import PatientCountdown
from ayllu.reason.tasks.dates import Dates
from ayllu.reason.tasks.dialogue import Dialogue
from ayllu.reason.tasks.expressions import Expressions
from ayllu.reason.tasks.gsm8k import Resampled
from ayllu.reason.tasks.gym import PREFIX, Gym
from ayllu.reason.tasks.knights import Knights
from ayllu.reason.tasks.lists import Lists
from ayllu.reason.tasks.long_arithmetic import LONGEST, LongArithmetic
from ayllu.reason.tasks.number_theory import NumberTheory
from ayllu.reason.tasks.paths import Paths
from ayllu.reason.tasks.programs import Programs
from ayllu.reason.tasks.stories import Stories
from ayllu.reason.tasks.story_words import LANGUAGES
from ayllu.reason.tasks.tables import Tables
from ayllu.reason.tasks.tool_choice import ToolChoice
from ayllu.reason.tasks.zebra import Zebra
from ayllu.reason.thinking import budget_words
from ayllu.reason.transcript import Chat, Kind, Span, Transcript, system_text
from ayllu.tools.calculator import CALCULATOR
from ayllu.tools.python import python_tool
from ayllu.tools.sandbox import Limits, Sandbox
from ayllu.tools.tool import Toolbox

CODE_VERSION = 1
_TURNS = (0.8, 0.13, 0.07)  # chances of one, two, three turns
PROGRAM_SECONDS = 3.0  # of one program: those of practice need less than one, and a batch waits for each
BUDGETS = (0, 16, 32, 64, 128, 256, 512)  # tokens of thinking that practice allows


class Examination(Protocol):
    """What is needed to know of an evaluation's settings."""

    @property
    def families(self) -> tuple[str, ...]: ...
    @property
    def n(self) -> int: ...


class Shares(Protocol):
    """What is needed to know of the settings of practice."""

    def shares(self) -> dict[str, float]: ...


TABLES, RESAMPLED = Tables(), Resampled()
STORIES = tuple(Stories(language) for language in LANGUAGES)
BASIC: tuple[Task, ...] = (Arithmetic(), Calculator(), Countdown(), Dialogue())  # those of the demo
LADDER: tuple[Task, ...] = (
    LongArithmetic(),
    Expressions(),
    PatientCountdown(),
    Countdown4(),
    NumberTheory(),
    Bases(),
    Lists(),
    Dates(),
    Knights(),
    Zebra(),
    Paths(),
    *STORIES,
    TABLES,
    ToolChoice(),
    Programs(),
    RESAMPLED,
)


class Families(dict[str, Task]):
    """Families by name; those of reasoning-gym, `gym_NAME`, are made when they are asked for."""

    def __missing__(self, name: str) -> Task:
        if not name.startswith(PREFIX):
            raise KeyError(name)
        return self.setdefault(name, Gym(name))

    def __contains__(self, name: object) -> bool:
        """RecipeValueError for a family of reasoning-gym that isn't taken, ResourceError without the
        package."""
        if isinstance(name, str) and name.startswith(PREFIX):
            return bool(self[name])
        return super().__contains__(name)


# Everything that can be practised, and everything that can be examined, by name.
TASKS = Families({task.family: task for task in (*BASIC, *LADDER)})
_NEW_TEMPLATES = (NewTemplates(task) for task in TASKS.values() if task.templates)
EXAMS = Families(TASKS | {task.family: task for task in _NEW_TEMPLATES})

# Families whose turns need the calculator, and families whose problems say themselves which tools are on
# offer, so that they can't share a conversation with others.
_CALCULATING = frozenset({"calculator", "expressions", RESAMPLED.family})
_ALONE = frozenset({"tables", "programs", "tool_choice"})
_EVERYDAY = frozenset({"dialogue", "tool_choice", "tool_choice_templates"})


def check_families(
    names: Iterable[str], where: str, known: Collection[str] = TASKS, *, worked: bool = False
) -> None:
    """RecipeValueError for a name that isn't known, or for a family without worked solutions where there
    have to be some."""
    for name in names:
        if name not in known:
            raise RecipeValueError(
                f"{where}: there is no family {name!r}",
                fix=f"choose from {', '.join(known)} (or {PREFIX}NAME, with the extra gym)",
            )
        if worked and not TASKS[name].worked:
            raise RecipeValueError(
                f"{where}: {name} has no worked solutions to imitate",
                fix="use it in rl, expert, distill or eval",
            )


def check_rows(names: Iterable[str], where: str, tables: Mapping[str, Any]) -> None:
    """RecipeValueError for a family that is made from the user's own rows when `tables` names none: now, and
    not when all that comes before its stage has been trained."""
    practice = tables.get("sft")
    if RESAMPLED.family in names and practice is not None and not practice.gsm8k:
        raise RecipeValueError(
            f"{where}: {RESAMPLED.family} needs GSM8K's training problems",
            fix='name the folder that holds them: gsm8k = ["FOLDER"] in [sft]',
        )


def check_named_once(settings: object, families: Iterable[str], table: str) -> None:
    """RecipeValueError for a name in `table`.families that is a key of the table too: which would count?"""
    for name in families:
        if hasattr(settings, name):
            raise RecipeValueError(
                f"{table}.families.{name} can't be used", fix=f"give its share as {name} = ... in [{table}]"
            )


@contextlib.contextmanager
def toolbox_for(families: Iterable[str]) -> Iterator[Toolbox]:
    """The tools that problems of these families share: the calculator, and where there are programs to write
    python in a sandbox (RefusedError where that has no walls)."""
    with contextlib.ExitStack() as stack:
        tools = [CALCULATOR]
        if any(family.removesuffix("_templates") == Programs.family for family in families):
            tools.append(python_tool(stack.enter_context(Sandbox(limits=Limits(seconds=PROGRAM_SECONDS)))))
        yield Toolbox(tools)


def read_rows(root: Path, folders: Sequence[str]) -> dict[str, int]:
    """Read GSM8K's train rows in `folders` of `root`, which problems of that family are made from -> how many
    became templates, and how many did not, by the reason why. Nothing to do without folders."""
    return RESAMPLED.read([root / folder for folder in folders]) if folders else {}


def toolbox_of(problem: Problem, shared: Toolbox) -> Toolbox:
    """Of the shared toolbox what the problem has on offer; for one about a table also what can ask this very
    table. A tool that isn't on offer must not work: a rollout would be paid for calling it."""
    own = TABLES.tools_of(problem) if problem.family.removesuffix("_templates") == TABLES.family else []
    kept = [tool for tool in shared.tools if tool.name not in {t.name for t in own}]
    box = Toolbox([*kept, *own], result_limit=shared.result_limit, confirm=shared.confirm)
    return box.only(problem.tools)


def draw(rng: Generator, chat: Chat, shares: dict[str, float], budgets: float = 0.0) -> Transcript:
    """One worked conversation from the train split: one to three turns, families by their shares.

    The calculator is on offer where a turn needs it and in half of the other conversations, so that
    having it doesn't mean using it. A family that brings its own tools has a conversation for itself.
    A share `budgets` of the conversations has one turn and says how long it may think (`budgeted`).
    """
    if budgets and rng.random() < budgets:
        return _draw_budgeted(rng, chat, shares)
    families = [name for name in shares if shares[name]]
    chances = np.array([shares[name] for name in families])
    turns = 1 + int(rng.choice(3, p=_TURNS))
    drawn = [families[i] for i in rng.choice(len(families), turns, p=chances / chances.sum())]
    if drawn[0] in _ALONE:
        task = TASKS[drawn[0]]
        problem = task.problem(rng, draw_level(rng, task), "train")
        return conversation(chat, problem, task.trace(problem, rng))
    drawn = [family for family in drawn if family not in _ALONE]
    offered = not _CALCULATING.isdisjoint(drawn) or bool(rng.integers(2))
    transcript = Transcript()
    if offered:
        transcript = chat.add(transcript, Kind.SYSTEM, system_text("", ("calculator",)))
    for family in drawn:
        task = TASKS[family]
        problem = task.problem(rng, draw_level(rng, task), "train")
        while _can_be_done(problem, offered, shares):
            problem = task.problem(rng, 1, "train")
        transcript = chat.add(transcript, Kind.USER, problem.prompt)
        transcript = worked(chat, transcript, task.trace(problem, rng))
    return transcript


def _can_be_done(problem: Problem, offered: bool, shares: Mapping[str, float]) -> bool:
    """Whether the dialogue calls numbers too large that aren't: with a calculator on offer none are, and
    whoever practises long sums would be taught the opposite for the same question."""
    if problem.data.get("intent") != "too_large":
        return False
    return offered or (
        bool(shares.get(LongArithmetic.family)) and dialogue.works_by_hand(problem, LONGEST[-1])
    )


def _draw_budgeted(rng: Generator, chat: Chat, shares: dict[str, float]) -> Transcript:
    families = [name for name in shares if shares[name]]
    chances = np.array([shares[name] for name in families])
    task = TASKS[families[rng.choice(len(families), p=chances / chances.sum())]]
    problem = task.problem(rng, draw_level(rng, task), "train")
    while _can_be_done(problem, False, shares):
        problem = task.problem(rng, 1, "train")
    budget = BUDGETS[int(rng.integers(len(BUDGETS)))]
    return budgeted(chat, problem, task.trace(problem, rng), budget)


def budgeted(chat: Chat, problem: Problem, trace: list[Piece], budget: int) -> Transcript:
    """A worked solution under a budget of thinking that the system turn names.

    Thinking that is longer is broken off at the budget and the answer follows all the same, so that the
    number has a meaning and a model has seen what to do when its thinking was ended for it (what s1,
    Muennighoff et al. 2025, forces on a model that has not). Solutions with calls keep all of their
    thinking, and are told a budget that holds it.
    """
    spans = [chat.span(piece.kind, piece.text, sampled=piece.sampled) for piece in trace]
    needed = sum(len(span.ids) - 2 for span in spans if span.kind == Kind.THINK)
    if any(piece.kind == Kind.CALL for piece in trace):
        budget = max(budget, min((b for b in BUDGETS if b >= needed), default=needed))
    transcript = chat.start(problem.prompt, system=budget_words(budget), tools=problem.tools)
    left = budget
    for span in spans:
        if span.kind == Kind.THINK:
            if not left:
                continue
            thought = span.ids[1:-1][:left]
            span = Span(span.kind, (span.ids[0], *thought, span.ids[-1]), span.sampled)
            left -= len(thought)
        transcript = transcript.plus(span)
    return transcript


def problem_shares(wanted: Mapping[str, float], practice: Shares, table: str) -> dict[str, float]:
    """Family -> share above 0 of problems that are sampled: `wanted`, or when it is empty those of practice
    but dialogue. RecipeValueError, naming the recipe's `table`, when there is none."""
    usual = {family: share for family, share in practice.shares().items() if family != "dialogue"}
    found = {family: share for family, share in (wanted or usual).items() if share}
    if not found:
        raise _no_share(table)
    return found


def check_shares(wanted: Mapping[str, float], table: str) -> None:
    """RecipeValueError for a family in `table`.families that doesn't exist, or when all are 0."""
    check_families(wanted, f"{table}.families")
    if wanted and not any(wanted.values()):
        raise _no_share(table)


def _no_share(table: str) -> RecipeValueError:
    return RecipeValueError(
        f"{table}: every share is 0", fix=f"give at least one of {table}.families a share above 0"
    )


def draw_problems(
    rng: Generator, shares: dict[str, float], count: int, split: str = "train"
) -> list[Problem]:
    """`count` problems of a split, families by their shares; of "test" the highest level, as in exams."""
    families = [family for family, share in shares.items() if share]
    chances = np.array([shares[family] for family in families])
    problems = []
    for _ in range(count):
        task = TASKS[families[rng.choice(len(families), p=chances / chances.sum())]]
        level = draw_level(rng, task) if split == "train" else task.levels
        problems.append(task.problem(rng, level, split))
    return problems


def draw_level(rng: Generator, task: Task) -> int:
    """1 .. levels, the highest half of the time: it holds what others ask for, and is examined."""
    if task.levels == 1 or rng.integers(2):
        return task.levels
    return int(rng.integers(1, task.levels))


def practice_texts(seed: int) -> Iterator[str]:
    """Plain text of some dialogue turns, so that their words become pieces of the tokenizer."""
    rng = np.random.default_rng([seed, 2])
    for _ in range(2000):
        for asked, answer in dialogue.turns(rng, "train"):
            yield asked
            yield answer


def tokenizer_texts(settings: Shares, seed: int) -> Iterator[str]:
    """`practice_texts`, then problems and answers of the further families that have a share (be it 0), one of
    each in turn: where only so many are taken, none is left out."""
    yield from practice_texts(seed)
    families = sorted(set(settings.shares()) & {task.family for task in LADDER} - {RESAMPLED.family})
    for problems in zip(*(_worked_texts(TASKS[family], seed) for family in families), strict=True):
        yield from itertools.chain.from_iterable(problems)


def _worked_texts(task: Task, seed: int) -> Iterator[list[str]]:
    """Question and worked solution of 300 problems, levels in turn."""
    rng = np.random.default_rng([seed, 6, *task.family.encode()])
    for level in itertools.islice(itertools.cycle(range(1, task.levels + 1)), 300):
        problem = task.problem(rng, level, "train")
        yield [problem.prompt, *(piece.text for piece in task.trace(problem, rng))]


def evaluation_prompts(settings: Examination, seed: int) -> list[str]:
    """The prompts that the run will be evaluated on, for the search for leaks in the text. Dialogue and the
    choice of tools are left out: an everyday question in a novel ("Do you know me?") gives nothing away."""
    prompts = set[str]()
    for family in settings.families:
        if family in EXAMS and family not in _EVERYDAY and family != RESAMPLED.family:
            task = EXAMS[family]
            problems = hardest(task, settings.n, seed)
            prompts.update(problem.prompt for problem in problems)
    return sorted(prompts)
