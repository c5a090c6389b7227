"""Guesses from the text itself: what followed the last time it said the same (prompt lookup, Saxena 2023).

Answers copy: quotations, code with one line changed, names, tables. The longest end of the text that stood
somewhere before is found, and what came after it is the guess; it runs on into itself, as in LZ77 (Ziv and
Lempel 1977), so that a text that repeats itself is guessed for as far as one likes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ayllu.engine.batch import Int32
from ayllu.engine.request import Sequence

SHORTEST, LONGEST = 2, 24  # tokens that must have stood before; no more are compared


@dataclass
class _Text:
    """A sequence's tokens so far, in an array with room to grow; `found`: where the guess begins."""

    ids: Int32 = field(default_factory=lambda: np.zeros(256, np.int32))
    count: int = 0
    found: int = 0

    def follow(self, sequence: Sequence) -> None:
        new = sequence.ids(self.count, sequence.length)
        end = self.count + len(new)
        if end > len(self.ids):
            self.ids = np.concatenate([self.ids[: self.count], np.zeros(end, np.int32)])
        self.ids[self.count : end] = new
        self.count = end


class Lookup:
    """The drafter that needs no model. See `Drafter`."""

    seconds = 0.0

    def __init__(self) -> None:
        self._texts: dict[int, _Text] = {}

    def kind(self, sequence: Sequence) -> int | None:
        """How long the stretch is that stood before, by doublings: long ones are right more often."""
        text = self._texts.setdefault(sequence.id, _Text())
        text.follow(sequence)
        text.found, length = longest_match(text.ids[: text.count])
        return length.bit_length() if length >= SHORTEST else None

    def draft(self, wanted: list[tuple[Sequence, int]]) -> list[list[int]]:
        """What followed."""
        return [self._continue(self._texts[sequence.id], depth) for sequence, depth in wanted]

    def forget(self, sequence: Sequence) -> None:
        """It is done."""
        self._texts.pop(sequence.id, None)

    def _continue(self, text: _Text, depth: int) -> list[int]:
        period = text.ids[text.found : min(text.found + depth, text.count)].tolist()
        return (period * -(-depth // len(period)))[:depth]


def longest_match(ids_T: Int32) -> tuple[int, int]:
    """(where it went on, its length) of the longest end of `ids_T` that stood before, the latest of equals;
    lengths above LONGEST count as LONGEST. (0, 0) if not even the last token did."""
    ends = np.flatnonzero(ids_T[:-1] == ids_T[-1]) if len(ids_T) else ids_T
    if not len(ends):
        return 0, 0
    for length in range(1, LONGEST):
        longer = ends[ends >= length]
        longer = longer[ids_T[longer - length] == ids_T[-1 - length]]
        if not len(longer):
            return int(ends[-1]) + 1, length
        ends = longer
    return int(ends[-1]) + 1, LONGEST
