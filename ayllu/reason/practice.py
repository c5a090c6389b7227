"""What is practised and what is examined: worked solutions for SFT, prompts that must stay unseen.

Practice is drawn from the train split of every family only; examination prompts come from the test
split. Everything is a function of the seed and a counter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.random import Generator

from ayllu.reason.task import Task, conversation
from ayllu.reason.tasks import dialogue
from ayllu.reason.tasks.arithmetic import Arithmetic
from ayllu.reason.tasks.calculator import Calculator
from ayllu.reason.tasks.countdown import Countdown
from ayllu.reason.tasks.dialogue import Dialogue
from ayllu.reason.transcript import Chat, Transcript

CODE_VERSION = 1


class Examination(Protocol):
    """What is needed to know of an evaluation's settings."""

    @property
    def families(self) -> tuple[str, ...]: ...
    @property
    def n(self) -> int: ...


TASKS: dict[str, Task] = {
    task.family: task for task in (Arithmetic(), Calculator(), Countdown(), Dialogue())
}


def draw(rng: Generator, chat: Chat, shares: dict[str, float]) -> Transcript:
    """One worked conversation from the train split; families by their shares, levels evenly but the
    highest twice as often."""
    families = list(shares)
    total = sum(shares.values())
    family = families[rng.choice(len(families), p=[shares[f] / total for f in families])]
    if family == "dialogue":
        return dialogue.transcript(chat, dialogue.turns(rng, "train"))
    task = TASKS[family]
    problem = task.problem(rng, draw_level(rng, task), "train")
    return conversation(chat, problem, task.trace(problem, rng))


def draw_level(rng: Generator, task: Task) -> int:
    """1 .. levels, the highest with double weight."""
    return min(int(rng.integers(1, task.levels + 2)), task.levels)


def practice_texts(seed: int) -> Iterator[str]:
    """Plain text of some dialogue turns, so that their words become pieces of the tokenizer."""
    rng = np.random.default_rng([seed, 2])
    for _ in range(2000):
        for asked, answer in dialogue.turns(rng, "train"):
            yield asked
            yield answer


def evaluation_prompts(settings: Examination, seed: int) -> list[str]:
    """Prompts of the test split, for the search for leaks in the text."""
    prompts = []
    for family in settings.families:
        rng = np.random.default_rng([seed, 3])
        if family in TASKS:
            task = TASKS[family]
            prompts += [task.problem(rng, task.levels, "test").prompt for _ in range(settings.n)]
    return sorted(set(prompts))
