"""What is practised and what is examined: worked solutions for SFT, prompts that must stay unseen.

Practice is drawn from the train split of every family only; examination prompts come from the test
split. Everything is a function of the seed and a counter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.random import Generator

from ayllu.reason.task import Task, worked
from ayllu.reason.tasks import dialogue
from ayllu.reason.tasks.arithmetic import Arithmetic
from ayllu.reason.tasks.calculator import Calculator
from ayllu.reason.tasks.countdown import Countdown
from ayllu.reason.tasks.dialogue import Dialogue
from ayllu.reason.transcript import Chat, Kind, Transcript, system_text

CODE_VERSION = 1
_TURNS = (0.8, 0.13, 0.07)  # chances of one, two, three turns


class Examination(Protocol):
    """What is needed to know of an evaluation's settings."""

    @property
    def families(self) -> tuple[str, ...]: ...
    @property
    def n(self) -> int: ...


TASKS: dict[str, Task] = {task.family: task for task in (Arithmetic(), Calculator(), Countdown(), Dialogue())}


def draw(rng: Generator, chat: Chat, shares: dict[str, float]) -> Transcript:
    """One worked conversation from the train split: one to three turns, families by their shares.

    The calculator is on offer where a turn needs it and in half of the other conversations, so that
    having it doesn't mean using it.
    """
    families = [name for name in shares if shares[name]]
    chances = np.array([shares[name] for name in families])
    turns = 1 + int(rng.choice(3, p=_TURNS))
    drawn = [families[i] for i in rng.choice(len(families), turns, p=chances / chances.sum())]
    offered = "calculator" in drawn or bool(rng.integers(2))
    transcript = Transcript()
    if offered:
        transcript = chat.add(transcript, Kind.SYSTEM, system_text("", ("calculator",)))
    for family in drawn:
        task = TASKS[family]
        problem = task.problem(rng, draw_level(rng, task), "train")
        while offered and problem.data.get("intent") == "too_large":  # with a calculator nothing is
            problem = task.problem(rng, 1, "train")
        transcript = chat.add(transcript, Kind.USER, problem.prompt)
        transcript = worked(chat, transcript, task.trace(problem, rng))
    return transcript


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
    """Prompts of the test split, for the search for leaks in the text. Dialogue is left out: an everyday
    question in a novel ("Do you know me?") gives nothing away."""
    prompts = []
    for family in settings.families:
        rng = np.random.default_rng([seed, 3])
        if family in TASKS and family != Dialogue.family:
            task = TASKS[family]
            prompts += [task.problem(rng, task.levels, "test").prompt for _ in range(settings.n)]
    return sorted(set(prompts))
