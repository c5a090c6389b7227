"""Which level to practise: the one where success is least certain.

A group of answers teaches something only when some are right and some wrong, and with a pass rate p
that is most likely where p(1-p) is largest. So each family keeps a rolling pass rate a level, and
levels are drawn in proportion to p(1-p), with a floor that keeps the others from being forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.random import Generator

from ayllu.reason.task import Task

_FLOOR = 0.02
_MEMORY = 0.8  # share of the old value that a step keeps


@dataclass
class Curriculum:
    """Rolling values; plain JSON through dataclasses.asdict, so that a run can find them again."""

    passes: dict[str, float] = field(default_factory=dict)  # "family/level" -> pass rate
    informative: float = 0.5  # share of groups whose rewards differ
    empty: int = 0  # steps in a row without any such group

    def draw_level(self, rng: Generator, task: Task) -> int:
        """A level of the family; unknown levels count as even chances."""
        known = [self.passes.get(f"{task.family}/{n}", 0.5) for n in range(1, task.levels + 1)]
        rates = np.clip(known, 0.0, 1.0)  # rewards may be below 0 (an answer that was cut off)
        weights = rates * (1 - rates) + _FLOOR
        return 1 + int(rng.choice(task.levels, p=weights / weights.sum()))

    def observe(self, groups: list[tuple[str, int, list[float]]]) -> None:
        """Take in a step's groups: (family, level, rewards)."""
        seen: dict[str, list[float]] = {}
        for family, level, rewards in groups:
            seen.setdefault(f"{family}/{level}", []).extend(rewards)
        for key, rewards in seen.items():
            mean = float(np.mean(rewards))
            self.passes[key] = _MEMORY * self.passes.get(key, mean) + (1 - _MEMORY) * mean
        useful = sum(min(r) != max(r) for _, _, r in groups)
        self.informative = _MEMORY * self.informative + (1 - _MEMORY) * useful / len(groups)
        self.empty = 0 if useful else self.empty + 1

    def restore(self, values: dict[str, Any]) -> None:
        """Set all values from what `asdict` gave."""
        self.passes = dict(values["passes"])
        self.informative, self.empty = values["informative"], values["empty"]
