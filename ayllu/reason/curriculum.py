"""Which level to practise: the one where success is least certain.

A group of answers teaches something only when some are right and some wrong, and with a pass rate p
that is most likely where p(1-p) is largest. So each family keeps a rolling pass rate a level, and
levels are drawn in proportion to p(1-p), with a floor that keeps the others from being forgotten.

A level that is mastered costs rollouts and teaches nothing (ScaleRL, Khatri et al. 2025, drops prompts at
a pass rate of 0.9). With `retire` set, a level that stood at 0.9 or more on so many visits in a row rests:
it comes only with the share `replay` of its family's problems. A visit below 0.9 wakes it again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.random import Generator

from ayllu.reason.task import Task

_FLOOR = 0.02
_MEMORY = 0.8  # share of the old value that a step keeps
MASTERED = 0.9  # mean reward of a visit


def informative(rewards: list[float]) -> bool:
    """Whether a group teaches: some answer was right, and not all are worth the same. Among wrong answers
    only prices differ (`rl.cut_off`, `rl.wrong`), and learning from these alone teaches to give up."""
    return max(rewards) > 0 and min(rewards) != max(rewards)


@dataclass
class Curriculum:
    """Rolling values; plain JSON through dataclasses.asdict, so that a run can find them again."""

    passes: dict[str, float] = field(default_factory=dict)  # "family/level" -> pass rate
    informative: float = 0.5  # share of groups that teach something
    empty: int = 0  # steps in a row without any such group
    retire: int = 0  # mastered visits in a row after which a level rests; 0: none does
    replay: float = 0.15  # share of a family's problems that come from resting levels
    visits: dict[str, int] = field(default_factory=dict)  # "family/level" -> mastered visits in a row

    def rests(self, family: str, level: int) -> bool:
        """Whether the level is mastered and practised only now and then."""
        return self.retire > 0 and self.visits.get(f"{family}/{level}", 0) >= self.retire

    def share(self, task: Task) -> float:
        """What is left of a family's share of problems: all of it while one of its levels is awake."""
        return self.replay if all(self.rests(task.family, n + 1) for n in range(task.levels)) else 1.0

    def draw_level(self, rng: Generator, task: Task) -> int:
        """A level of the family; unknown levels count as even chances."""
        resting = [n for n in range(1, task.levels + 1) if self.rests(task.family, n)]
        if resting and (len(resting) == task.levels or rng.random() < self.replay):
            return resting[int(rng.integers(len(resting)))]
        known = [self.passes.get(f"{task.family}/{n}", 0.5) for n in range(1, task.levels + 1)]
        rates = np.clip(known, 0.0, 1.0)  # prices can bring rewards below 0
        weights = rates * (1 - rates) + _FLOOR
        weights[[n - 1 for n in resting]] = 0.0
        return 1 + int(rng.choice(task.levels, p=weights / weights.sum()))

    def observe(self, groups: list[tuple[str, int, list[float]]]) -> None:
        """Take in a step's groups: (family, level, rewards)."""
        seen: dict[str, list[float]] = {}
        for family, level, rewards in groups:
            seen.setdefault(f"{family}/{level}", []).extend(rewards)
        for key, rewards in seen.items():
            mean = float(np.mean(rewards))
            self.passes[key] = _MEMORY * self.passes.get(key, mean) + (1 - _MEMORY) * mean
            self.visits[key] = self.visits.get(key, 0) + 1 if mean >= MASTERED else 0
        useful = sum(informative(rewards) for _, _, rewards in groups)
        self.informative = _MEMORY * self.informative + (1 - _MEMORY) * useful / len(groups)
        self.empty = 0 if useful else self.empty + 1

    def restore(self, values: dict[str, Any]) -> None:
        """Set what was seen from what `asdict` gave; `retire` and `replay` stay those of the recipe."""
        self.passes, self.visits = dict(values["passes"]), dict(values["visits"])
        self.informative, self.empty = values["informative"], values["empty"]
