"""Speculation: tokens are guessed, and one step checks several (Leviathan et al. 2023; Chen et al. 2023).

Checking is exact and simple here, because every random number belongs to a place in the text and not to a
step: at each guessed place the token is sampled that would have been sampled there anyway, and guesses count
as far as they are that token. So for the same seed the text is the same with speculation and without, greedy
or not, where an executor's sums don't depend on how many tokens a step has (the native one's don't); the
distribution is unchanged because nothing is. (The papers' rule of acceptance keeps the distribution only. A
guess without randomness of its own is accepted with probability p(x) by both.)

A guess pays when its chance is worth more than its share of the step (section 3.3 there): reading the weights
costs the same for one token and for several, computing doesn't. Both are measured while the engine runs,
so that guessing grows where it succeeds, and ends where it doesn't or where a batch is full of work already.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence as Many
from typing import Protocol

from ayllu.engine.request import Sampled, Sequence
from ayllu.errors import AylluWarning

MOST_GUESSES = 31  # of one sequence in one step
MOST_SEQUENCES = 16  # more at once fill the chip by themselves; then guesses aren't even looked for
_MEMORY = 0.9  # how much of what was seen still counts after one more look
_FADING = 0.985  # the same for luck while nothing is guessed, so that it is tried again
_RECENT = 0.97  # the same for steps and what they took


class Drafter(Protocol):
    """Guesses how sequences go on. Its guesses may be anything: they cost time, never the text."""

    seconds: float  # what one more guessed place takes to guess; 0 for next to nothing

    def kind(self, sequence: Sequence) -> int | None:
        """Which sort of guess there is now (their success is counted apart); None for none."""
        ...

    def draft(self, wanted: list[tuple[Sequence, int]]) -> list[list[int]]:
        """So many token ids for each sequence that has a `kind`, or fewer."""
        ...

    def forget(self, sequence: Sequence) -> None:
        """It is done."""
        ...


def accepted(drafts: Many[int], sampled: Many[Sampled]) -> list[Sampled]:
    """The new tokens: `sampled[i]` was chosen after `drafts[:i]`, which holds as long as all before it were
    chosen, too. There is always at least one."""
    count = 0
    while count < len(drafts) and sampled[count].token == drafts[count]:
        count += 1
    return list(sampled[: count + 1])


class Costs:
    """Seconds of a step as a line over its tokens: a base, and `slope` for each token.

    Fitted to recent steps, each weighing `_RECENT` of the next; while they tell little (all of the same
    size) the fit leans towards a token's costing an eighth of a step for one.
    """

    def __init__(self) -> None:
        self._weight, self._rows, self._seconds = 0.0, 1.0, 1.0
        self._spread = self._joint = 0.0

    def measure(self, rows: int, seconds: float) -> None:
        """A step with so many tokens took so long."""
        if self._weight:  # an interruption says nothing about tokens
            seconds = min(seconds, 4 * self(rows))
        self._weight = _RECENT * self._weight + 1
        away, late = rows - self._rows, seconds - self._seconds
        if self._weight == 1:
            self._rows, self._seconds = float(rows), seconds
            return
        self._rows += away / self._weight
        self._seconds += late / self._weight
        self._spread = _RECENT * self._spread + (1 - 1 / self._weight) * away * away
        self._joint = _RECENT * self._joint + (1 - 1 / self._weight) * away * late

    @property
    def slope(self) -> float:
        """Seconds that one more token takes."""
        expected = self._seconds / (7 + self._rows)
        fitted = (self._joint + 4 * expected) / (self._spread + 4)
        return min(max(fitted, self._seconds / (200 + self._rows)), self._seconds / self._rows)

    def __call__(self, rows: int) -> float:
        return max(self._seconds + self.slope * (rows - self._rows), self.slope)


class Record:
    """How guesses of one sort have fared in one sequence; `chance` is that of the next."""

    def __init__(self) -> None:
        self.hits = self.misses = 0.0

    @property
    def chance(self) -> float:
        """By Laplace's rule of succession: 1/2 to begin with."""
        return (self.hits + 1) / (self.hits + self.misses + 2)

    def add(self, hits: int, missed: bool) -> None:
        """So many guesses in a row were right, and then one was wrong, or they ended."""
        self.hits = _MEMORY * self.hits + hits
        self.misses = _MEMORY * self.misses + missed

    def fade(self) -> None:
        """Nothing was guessed."""
        self.hits, self.misses = _FADING * self.hits, _FADING * self.misses


class Speculation:
    """Decides who gets how many guesses. `failure`: why the drafter isn't asked any more, if it failed."""

    def __init__(
        self, drafter: Drafter, costs: Costs | None = None, *, vocab_size: int | None = None
    ) -> None:
        self.drafter, self.costs, self.vocab_size = drafter, costs or Costs(), vocab_size
        self.failure: Exception | None = None
        self._records: dict[int, dict[int, Record]] = {}
        self._used: dict[int, Record] = {}

    def propose(self, ready: list[Sequence]) -> dict[int, list[int]]:
        """Guesses for sequences that take one token each in the coming step, by their id."""
        if self.failure is not None or not 0 < len(ready) <= MOST_SEQUENCES:
            return {}
        try:
            return self._propose(ready)
        except Exception as error:  # a guess that can't be made costs speed and nothing else
            self.failure = error
            why = f"{type(error).__name__}: {error}"[:300]
            warnings.warn(f"speculation is off from now on: {why}", AylluWarning, stacklevel=2)
            return {}

    def learn(self, sequence: Sequence, drafts: list[int], right: int) -> None:
        """So many of the guesses were right."""
        if drafts and sequence.id in self._used:
            self._used[sequence.id].add(right, missed=right < len(drafts))

    def forget(self, sequence: Sequence) -> None:
        """It is done."""
        self._records.pop(sequence.id, None)
        self._used.pop(sequence.id, None)
        self.drafter.forget(sequence)

    def _propose(self, ready: list[Sequence]) -> dict[int, list[int]]:
        asked: list[tuple[Sequence, Record, int]] = []
        for sequence in ready:
            most = min(MOST_GUESSES, sequence.limit - len(sequence.token_ids) - 1)
            if most < 1 or not sequence.token_ids or not sequence.params.speculate:
                continue
            kind = self.drafter.kind(sequence)
            if kind is not None:
                record = self._records.setdefault(sequence.id, {}).setdefault(kind, Record())
                asked.append((sequence, record, most))
        depths = self.depths([(record.chance, most) for _, record, most in asked], len(ready))
        wanted = []
        for (sequence, record, _), depth in zip(asked, depths, strict=True):
            if depth:
                wanted.append((sequence, depth))
                self._used[sequence.id] = record
            else:
                record.fade()
        drafts = self.drafter.draft(wanted) if wanted else []
        return {s.id: self._known(ids[:depth]) for (s, depth), ids in zip(wanted, drafts, strict=True)}

    def _known(self, ids: list[int]) -> list[int]:
        """The guesses up to the first that is no token of this vocabulary."""
        most = self.vocab_size
        return list(itertools.takewhile(lambda i: i >= 0 and (most is None or i < most), ids))

    def depths(self, chances: list[tuple[float, int]], running: int) -> list[int]:
        """How many guesses pay: the likeliest first, as long as they raise tokens a second.

        `chances`: for each sequence that of one guess, and how many it may have; `running` tokens are in
        the step anyway.
        """
        depths = [0] * len(chances)
        gains = [chance for chance, _ in chances]  # of each one's next guess: all before it must be right
        tokens, seconds = float(running), self.costs(running)
        price = self.costs.slope + self.drafter.seconds / max(len(chances), 1)
        while gains and (gain := max(gains)) * seconds > price * tokens:
            at = gains.index(gain)
            depths[at] += 1
            tokens, seconds = tokens + gain, seconds + price
            gains[at] = gain * chances[at][0] if depths[at] < chances[at][1] else 0.0
        return depths
