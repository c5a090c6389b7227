"""In a model's place: one that knows every answer, one that chooses by lot, one that is always wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ayllu.evals.items import Choice
from ayllu.evals.subject import Said, Way


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
        return [[Said(self.reply(one.key), "stop", 3)] * sampling.samples for one in asked]

    def nats(self, texts, on_item):
        return [len(text.encode()) * np.log(2) for text in texts], {"window": 8, "stride": 4}


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


def by_lot(seed: int, *, continues: bool = True) -> StandIn:
    """Chooses by lot; in words it says a number drawn from a million."""
    rng = np.random.default_rng(seed)

    def prefer(item: Choice) -> list[float]:
        chosen = rng.integers(len(item.pairs))
        return [-0.001 if i == chosen else -500.0 for i in range(len(item.pairs))]

    return StandIn(prefer, lambda _key: str(rng.integers(10**6, 10**7)), continues=continues)
