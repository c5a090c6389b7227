"""Families of another's making: those of reasoning-gym (Stojanovski et al. 2025, arXiv 2505.24760), by the
name `gym_NAME`; the extra `gym` installs it.

They have problems and answers but no working, so that they can be what RL, expert iteration and distillation
sample and what is examined, and never what SFT imitates. Taken are the families with one right answer,
which is compared as text. Not taken are those with a scorer of their own: some of these evaluate what the
model wrote (sympy's parser runs it as Python), which nothing here does outside the sandbox. Nor is
`gsm_symbolic`, whose templates are those of GSM8K's test set.
"""

from __future__ import annotations

import importlib.util

from numpy.random import Generator

from ayllu.errors import RecipeValueError, ResourceError
from ayllu.reason.task import Piece, Problem, Task, Verdict, split_of
from ayllu.reason.vote import canonical

PREFIX = "gym_"
REFUSED = {"gsm_symbolic": "its templates are those of GSM8K's test set"}
_TRIES = 2000  # draws until one belongs to the split


def gym_names() -> tuple[str, ...]:
    """The families that are taken, without the prefix. ResourceError without the package."""
    if importlib.util.find_spec("reasoning_gym") is None:
        raise ResourceError(
            f"what begins with {PREFIX} comes from the package reasoning-gym, which is not installed",
            fix="install it: pip install -e '.[gym]'",
        )
    from reasoning_gym.dataset import ProceduralDataset
    from reasoning_gym.factory import DATASETS

    usual = ProceduralDataset.score_answer
    return tuple(
        sorted(n for n, (made, _) in DATASETS.items() if made.score_answer is usual and n not in REFUSED)
    )


class Gym(Task):
    """One family, as reasoning-gym has it unless told otherwise. It has one level."""

    levels = 1
    templates = False
    worked = False  # there is nothing to imitate

    def __init__(self, family: str) -> None:
        """RecipeValueError for a name that isn't taken, ResourceError without the package."""
        self.family, self.name = family, family.removeprefix(PREFIX)
        if why := REFUSED.get(self.name):
            raise RecipeValueError(f"{family} is not taken", why=why, fix="choose another family")
        if self.name not in (known := gym_names()):
            raise RecipeValueError(
                f"{family} is not taken: no family of reasoning-gym, or one with a scorer of its own",
                fix=f"choose from {', '.join(PREFIX + name for name in known)}",
            )

    def problem(self, rng: Generator, level: int, split: str) -> Problem:
        """One of its problems at random; the split goes by the question. RecipeValueError when none turns up
        for it (a family with very few questions)."""
        import reasoning_gym

        for _ in range(_TRIES):
            # A set for each problem: some families make all of a set's problems before the first is seen.
            seed = int(rng.integers(2**31))
            entry = reasoning_gym.create_dataset(self.name, seed=seed, size=1)[0]
            key = f"{self.family} {entry['question']}"
            if split_of(key) == split:
                return Problem(self.family, level, key, entry["question"], str(entry["answer"]))
        raise RecipeValueError(f"{self.family} has no problem for {split}", fix="choose another family")

    def trace(self, problem: Problem, rng: Generator) -> list[Piece]:
        """RecipeValueError: there is no worked solution."""
        raise RecipeValueError(
            f"{self.family} has no worked solutions to imitate",
            fix="use it in rl, expert, distill or eval, not in sft",
        )

    def verify(self, problem: Problem, answer: str | None) -> Verdict:
        """Strict: the answer and nothing else. Lenient: the same number, or apart from case."""
        if answer is None:
            return Verdict(False, False, "no answer")
        if answer.strip() == problem.answer.strip():
            return Verdict(True, True)
        lenient = canonical(answer) == canonical(problem.answer)
        return Verdict(False, lenient, f"{answer[:60]!r} is not {problem.answer[:60]!r}")
