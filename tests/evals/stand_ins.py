"""In a model's place: one that knows every answer, some that choose by lot, one that is always wrong."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np

from ayllu.evals.items import Choice, Item, Program, Question
from ayllu.evals.subject import Said, Way
from ayllu.reason.task import Problem, Task


class StandIn:
    """An Examinee. `prefer(item, places)` gives the log-probability of each way, `reply(asked)` a text."""

    def __init__(
        self,
        prefer: Callable[[Choice], Sequence[float]],
        reply: Callable[[str], str | None],
        *,
        continues: bool = True,
        ours: bool = True,
    ) -> None:
        self.prefer, self.reply, self.continues, self.ours = prefer, reply, continues, ours
        self.seen: list[str] = []
        self.drawn: list[tuple[str, str]] = []

    def ways(self, items, shots, on_item):
        self.seen += [before.before(item.pairs[0][0]) for item, before in zip(items, shots, strict=True)]
        alone = (-1.0,) if self.continues else None
        return [
            [
                Way((nats,), alone, len(way.strip()))
                for nats, (_, way) in zip(self.prefer(item), item.pairs, strict=True)
            ]
            for item in items
        ]

    def say(self, asked, sampling, stop, on_item):
        self.seen += [one.shots.before(one.text) for one in asked]
        self.asked = [one.question for one in asked]
        self.most = sampling.max_tokens
        return [[Said(self.reply(one.key), "stop", 3) for _ in range(sampling.samples)] for one in asked]

    def nats(self, texts, on_item):
        return [len(text.encode()) * np.log(2) for text in texts], {"window": 8, "stride": 4}


def replies(rows: Sequence[Item], continues: bool) -> dict[str, str]:
    """What a model that knows would say, by the row's place."""
    found = {}
    for row in rows:
        if isinstance(row, Question):
            found[row.place] = row.worked if continues else row.answers[0]
        if isinstance(row, Program):
            found[row.place] = row.solution if continues else row.text + row.solution
    return found


def solved(task: Task, problem: Problem) -> str:
    """The answer of the family's own worked solution. Where its expert searches by lot and may give up
    (Countdown), of one that found something; some 1 % of those deals are out of his reach altogether."""
    gives_up = getattr(task, "task", task).gives_up
    for seed in range(200):
        said = task.trace(problem, np.random.default_rng(seed))[-1].text
        if not gives_up or said != gives_up:
            return said
    found = reach([(Fraction(n), str(n)) for n in problem.data["numbers"]], problem.data["target"])
    assert found is not None, f"nobody reaches that: {problem.prompt}"
    return found


def reach(values: Sequence[tuple[Fraction, str]], target: int) -> str | None:
    """An expression of all the values that comes to the target, by trying everything."""
    if len(values) == 1:
        return values[0][1] if values[0][0] == target else None
    for i, j in itertools.permutations(range(len(values)), 2):
        (x, left), (y, right) = values[i], values[j]
        rest = [value for k, value in enumerate(values) if k not in (i, j)]
        made = {"+": x + y, "-": x - y, "*": x * y} | ({"/": x / y} if y else {})
        for sign, value in made.items():
            if found := reach([*rest, (value, f"({left}{sign}{right})")], target):
                return found
    return None


def oracle(replies: dict[str, str], *, continues: bool = True) -> StandIn:
    """Knows the gold, whatever the rule: the wrong ways are hundreds of nats worse."""

    def prefer(item: Choice) -> list[float]:
        return [-0.001 if i in item.gold else -500.0 for i in range(len(item.pairs))]

    return StandIn(prefer, replies.get, continues=continues)


def wrong(*, continues: bool = True) -> StandIn:
    """Never right."""

    def prefer(item: Choice) -> list[float]:
        return [-500.0 if i in item.gold else -0.001 for i in range(len(item.pairs))]

    return StandIn(prefer, lambda _key: "I had rather not say.", continues=continues)


def by_lot_of(replies: dict[str, str], seed: int, *, others: bool = True, continues: bool = True) -> StandIn:
    """Says what the right reply to a question drawn by lot is; with `others` never the own one. Whose it was
    stands in `drawn`: pairs of what was asked and what was drawn."""
    rng, keys = np.random.default_rng(seed), list(replies)

    def reply(key: str) -> str:
        other = keys[rng.integers(len(keys))]
        while others and other == key:
            other = keys[rng.integers(len(keys))]
        made.drawn.append((key, other))
        return replies[other]

    made = StandIn(lambda _item: [], reply, continues=continues)
    return made


def by_lot(seed: int, *, continues: bool = True) -> StandIn:
    """Chooses by lot; in words it says a number drawn from a million."""
    rng = np.random.default_rng(seed)

    def prefer(item: Choice) -> list[float]:
        chosen = rng.integers(len(item.pairs))
        return [-0.001 if i == chosen else -500.0 for i in range(len(item.pairs))]

    return StandIn(prefer, lambda _key: str(rng.integers(10**6, 10**7)), continues=continues)
