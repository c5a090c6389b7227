"""Practice as batches: conversations drawn from the generators, whole ones packed into rows.

Batch n is a function of the seed and n alone, so that a run can go on anywhere and other processes can draw
ahead (ahead.py).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.random import Generator

from ayllu.errors import RecipeValueError
from ayllu.progress import Progress
from ayllu.reason.practice import draw
from ayllu.reason.transcript import Chat, Transcript
from ayllu.train.step import Batch

CHUNK = 16  # batches that are drawn and packed together
_LOOK = 400  # conversations that are measured before practice begins


class Practice:
    """Batches of packed practice conversations; batch n is a function of the seed and n alone.

    A share `kept_share` of the conversations is drawn from `kept` ones instead of from the generators.
    """

    def __init__(
        self,
        chat: Chat,
        shares: dict[str, float],
        rows: int,
        length: int,
        seed: int,
        *,
        budgets: float = 0.0,
        kept: Sequence[Transcript] = (),
        kept_share: float = 0.0,
    ) -> None:
        self.chat, self.shares, self.rows, self.length, self.seed = chat, shares, rows, length, seed
        self.budgets, self.kept, self.kept_share = budgets, kept, kept_share
        self._chunk = functools.lru_cache(maxsize=2)(self.chunk)

    def batch(self, number: int, device: str) -> Batch:
        """Batch `number`, its weights summing to one."""
        chunk = self._chunk(number // CHUNK)
        first = number % CHUNK * self.rows
        return pack_rows(chunk[first : first + self.rows], self.length, device)

    def look(self, progress: Progress, table: str) -> None:
        """Say how many conversations are longer than a row and therefore left out; RecipeValueError, naming
        the recipe's `table`, when that is more than half of them."""
        rng, long = np.random.default_rng([self.seed, 8]), 0
        for _ in range(_LOOK):
            long += len(self._draw(rng).ids()) - 1 > self.length
        if 2 * long > _LOOK:
            raise RecipeValueError(
                f"{table}.length: {long} of {_LOOK} conversations don't fit a row of {self.length} tokens",
                fix=f"raise {table}.length, or leave out the families with long solutions",
            )
        if long:
            progress.say(f"{long} of {_LOOK} conversations don't fit a row of {self.length} tokens: left out")

    def chunk(self, number: int) -> list[list[Transcript]]:
        """The rows of CHUNK batches, one batch after the other."""
        rng = np.random.default_rng([self.seed, 4, number])
        wanted = self.rows * CHUNK
        packer = Packer(self.length)
        while len(packer.full) < wanted:
            packer.add(self._draw(rng))
        order = rng.permutation(wanted)
        return [packer.full[i] for i in order]

    def _draw(self, rng: Generator) -> Transcript:
        if self.kept and rng.random() < self.kept_share:
            return self.kept[int(rng.integers(len(self.kept)))]
        return draw(rng, self.chat, self.shares, self.budgets)


class Packer:
    """Whole conversations into rows of `length`, best fit first (Ding et al. 2024, arXiv 2404.10830)."""

    def __init__(self, length: int, open_rows: int = 32) -> None:
        self.length, self.open_rows = length, open_rows
        self.open: list[tuple[int, list[Transcript]]] = []  # room left, content
        self.full: list[list[Transcript]] = []

    def add(self, transcript: Transcript) -> None:
        """Put a conversation into the fullest row that has room; one longer than a row is left out."""
        size = len(transcript.ids()) - 1
        if size > self.length:
            return
        fits = [(room, i) for i, (room, _) in enumerate(self.open) if room >= size]
        if fits:
            room, i = min(fits)
            self.open[i][1].append(transcript)
            self.open[i] = (room - size, self.open[i][1])
        else:
            self.open.append((self.length - size, [transcript]))
            i = len(self.open) - 1
        if self.open[i][0] < 16:
            self.full.append(self.open.pop(i)[1])
        elif len(self.open) > self.open_rows:
            self.full.append(self.open.pop(min(range(len(self.open)), key=lambda j: self.open[j][0]))[1])

    def finish(self) -> list[list[Transcript]]:
        """All rows, the unfinished ones too."""
        self.full += [content for _, content in self.open]
        self.open = []
        return self.full


def pack_whole(transcripts: Sequence[Transcript], length: int) -> tuple[list[list[Transcript]], int]:
    """Rows that hold every one of `transcripts`, and their length: as much more than `length` as the longest
    needs. For sampled answers: leaving the long ones out would teach to be short."""
    length = max([length, *(len(transcript.ids()) - 1 for transcript in transcripts)])
    packer = Packer(length)
    for transcript in transcripts:
        packer.add(transcript)
    return packer.finish(), length


def pack_rows(
    rows: list[list[Transcript]], length: int, device: str, advantages: dict[int, float] | None = None
) -> Batch:
    """A batch from packed conversations. Weights: 1/n for each of the n sampled tokens, or the
    advantage of their conversation (by `id`). Padding is a document of its own without weight."""
    shape = (len(rows), length)
    tokens, targets, document = (np.zeros(shape, np.int64) for _ in range(3))
    weights = np.zeros(shape, np.float32)
    for row, content in enumerate(rows):
        at = 0
        for number, transcript in enumerate(content):
            ids, sampled = transcript.ids(), transcript.sampled()
            here = slice(at, at + len(ids) - 1)
            tokens[row, here], targets[row, here] = ids[:-1], ids[1:]
            value = 1.0 if advantages is None else advantages[id(transcript)]
            weights[row, here] = np.array(sampled[1:], np.float32) * value
            document[row, here] = number + 1
            at += len(ids) - 1
    if advantages is None:
        weights /= max(1.0, weights.sum())
    return Batch(*(torch.from_numpy(x).to(device) for x in (tokens, targets, weights, document)))
