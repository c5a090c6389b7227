"""A family of verifiable problems: generator, solver with a visible trace, verifier, levels, splits.

Splits are by construction: a problem's canonical key (the same for 3+5 and 5+3) is hashed, and the
hash decides for ever whether the problem may be generated for training, development or test. Families whose
problems come from templates or are asked in several wordings hold some of these out as well: those make up
a fourth split, `templates`, and `NewTemplates` turns it into a family of its own that can be examined and
never practised.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.random import Generator

from ayllu.reason.transcript import Chat, Kind, Transcript

SPLITS = ("train", "dev", "test")
TEMPLATES = "templates"  # problems of templates that no other split has


@dataclass(frozen=True)
class Problem:
    """One problem. `key` is canonical; `answer` is the right one, or what a right one comes to where many are
    (Countdown's target); `tools` are the tools that the conversation offers."""

    family: str
    level: int
    key: str
    prompt: str
    answer: str
    data: dict[str, Any] = field(default_factory=dict)
    tools: tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """A part of a worked solution. `given`: nobody learns to write it. A tool's result always is; a call that
    went wrong may be, for the sake of what follows."""

    kind: Kind
    text: str
    given: bool = False

    @property
    def sampled(self) -> bool:
        """Whether the model is to write it."""
        return not self.given and self.kind != Kind.RESULT


@dataclass(frozen=True)
class Verdict:
    """What the checker says. `strict`: right and in the asked form; `lenient`: right somewhere in it."""

    strict: bool
    lenient: bool
    why: str = ""


class Task(ABC):
    """One family: its name, its levels (1 .. `levels`), whether it has the split `templates`, and whether
    there are worked solutions to imitate."""

    family: str
    levels: int
    templates: bool
    gives_up: str = ""  # the answer that says honestly that nothing was found; it is never right
    worked: bool = True

    @abstractmethod
    def problem(self, rng: Generator, level: int, split: str) -> Problem:
        """One problem at random, from that split alone."""

    @abstractmethod
    def trace(self, problem: Problem, rng: Generator) -> list[Piece]:
        """The expert's worked solution: the whole turn of the assistant."""

    @abstractmethod
    def verify(self, problem: Problem, answer: str | None) -> Verdict:
        """What an answer is worth; None stands for a turn that ended without one."""

    def texts(self, split: str) -> Sequence[str]:
        """All the questions of a family that has only so many, for the search for leaks; none of one whose
        questions are made as they are drawn."""
        return ()


def split_of(key: str) -> str:
    """The split that owns a canonical key: 10 % test, 5 % dev, the rest train."""
    bucket = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big") % 100
    return "test" if bucket < 10 else "dev" if bucket < 15 else "train"


def owns(split: str, key: str) -> bool:
    """Whether a problem of this key may be generated for the split. Where `templates` are new wordings, their
    numbers are those of `test`."""
    return split_of(key) == ("test" if split == TEMPLATES else split)


def wording(rng: Generator, forms: Sequence[str], split: str) -> str:
    """One of the wordings of a question. Those that begin with `~` are for `templates`, and only for it."""
    kept = [form.removeprefix("~") for form in forms if form.startswith("~") == (split == TEMPLATES)]
    return kept[rng.integers(len(kept))]


def held_out(name: str, share: float) -> bool:
    """Whether a template (or a word, a schema) is kept out of all splits but `templates`."""
    bucket = int.from_bytes(hashlib.blake2b(b"held out " + name.encode(), digest_size=4).digest(), "big")
    return bucket < share * 2**32


class NewTemplates(Task):
    """A family's problems of held-out templates, as a family of its own. They are for examination only."""

    templates = False

    def __init__(self, task: Task) -> None:
        self.task, self.family, self.levels = task, f"{task.family}_templates", task.levels
        self.worked = task.worked

    def problem(self, rng: Generator, level: int, split: str) -> Problem:
        """The same problems whichever held-out split is asked for."""
        assert split != "train", f"{self.family} is never practised"
        return replace(self.task.problem(rng, level, TEMPLATES), family=self.family)

    def trace(self, problem: Problem, rng: Generator) -> list[Piece]:
        """As the family itself."""
        return self.task.trace(problem, rng)

    def verify(self, problem: Problem, answer: str | None) -> Verdict:
        """As the family itself."""
        return self.task.verify(problem, answer)

    def texts(self, split: str) -> Sequence[str]:
        """Those of the held-out templates."""
        return self.task.texts(TEMPLATES)


def distinct_problems(task: Task, n: int, levels: Sequence[int], split: str, seed: int) -> list[Problem]:
    """Up to `n` problems of different keys, the levels in turn; the same for the same arguments.

    Fewer than `n` when the split seems to hold no more: 200 + 20 n draws in a row (2,200 at the most) brought
    no new key.
    """
    rng = np.random.default_rng([seed, *task.family.encode()])
    found: dict[str, Problem] = {}
    dry = draws = 0
    while len(found) < n and dry < 200 + 20 * min(n, 100):
        problem = task.problem(rng, levels[draws % len(levels)], split)
        draws += 1
        dry = dry + 1 if problem.key in found else 0
        found.setdefault(problem.key, problem)
    return list(found.values())


def hardest(task: Task, n: int, seed: int) -> list[Problem]:
    """What is examined: up to `n` distinct test problems of the highest level, which has the easy lengths
    too."""
    return distinct_problems(task, n, (task.levels,), "test", seed)


def conversation(chat: Chat, problem: Problem, trace: list[Piece]) -> Transcript:
    """A worked solution as a transcript; what the model has to write is marked as sampled."""
    return worked(chat, chat.start(problem.prompt, tools=problem.tools), trace)


def worked(chat: Chat, transcript: Transcript, trace: list[Piece]) -> Transcript:
    """`transcript` with the expert's turn appended."""
    for piece in trace:
        transcript = chat.add(transcript, piece.kind, piece.text, sampled=piece.sampled)
    return transcript
