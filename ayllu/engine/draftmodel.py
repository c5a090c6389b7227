"""Guesses from a smaller model of the same vocabulary (Leviathan et al. 2023; Chen et al. 2023).

It follows each text in a paged cache of its own and writes ahead. It draws with the very random numbers that
the large model will use at those places, by the same inverse of the cumulative distribution: where both
models think alike, both draw the same token, at any temperature (a coupling of the two distributions).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from ayllu.engine import sampler
from ayllu.engine.assembly import Assembler
from ayllu.engine.batch import BLOCK
from ayllu.engine.blocks import BlockPool, OutOfBlocksError
from ayllu.engine.executors import Executor, make_executor
from ayllu.engine.lookup import Lookup
from ayllu.engine.memory import cache_blocks
from ayllu.engine.prefix import PrefixCache
from ayllu.engine.quantize import open_model, packed_kinds
from ayllu.engine.request import Sequence
from ayllu.engine.scheduler import Work
from ayllu.engine.speculate import MOST_GUESSES, MOST_SEQUENCES, Drafter
from ayllu.errors import RequestError
from ayllu.text.tokenizer import Tokenizer

_STRETCH = 512  # tokens that it reads in one go, so that nobody waits long for a text it doesn't know yet


@dataclass
class _Copy:
    """A sequence as the small model sees it: its tokens, then the guesses. `known` of its generated tokens
    are the sequence's own; the blocks of the first `settled` tokens have their names."""

    sequence: Sequence
    known: int = 0
    settled: int = 0


class DraftModel:
    """The drafter with a model. See `Drafter`. `context`: the longest text it can read."""

    def __init__(self, executor: Executor, context: int, *, device: str = "cpu") -> None:
        self.executor, self.context, self.seconds = executor, context, 0.0
        blocks, _ = cache_blocks(
            executor.block_bytes, context, MOST_SEQUENCES, device, blocks=None, size=None
        )
        self.pool = BlockPool(blocks, executor.reserve)
        self.prefix = PrefixCache(self.pool, executor, disk=None, salt="", enabled=True)
        self._copies: dict[int, _Copy] = {}  # who was served longest ago comes first
        self._assembler = Assembler()

    @classmethod
    def open(
        cls, folder: Path, weights: str, device: str, vocab_size: int, tokenizer: Tokenizer | None
    ) -> DraftModel:
        """From a model folder. RequestError where its vocabulary isn't that of the large model."""
        own = Tokenizer.load(folder)
        model = open_model(folder, "auto" if packed_kinds(folder) else weights, device)
        same = tokenizer is None or tokenizer.inner.get_vocab() == own.inner.get_vocab()
        if not same or model.config.vocab_size != vocab_size:
            raise RequestError(
                f"{folder.name} can't guess for this model: its vocabulary is another",
                fix="use a smaller model of the same line, or speculate='ngram', which needs none",
            )
        return cls(make_executor(model, weights, device), model.config.context, device=device)

    def kind(self, sequence: Sequence) -> int | None:
        """One sort of guess, as long as the text isn't too long for the small model."""
        return 0 if sequence.length + MOST_GUESSES <= self.context else None

    def draft(self, wanted: list[tuple[Sequence, int]]) -> list[list[int]]:
        """What the small model would write; nothing while it still reads."""
        begun, rounds = time.perf_counter(), 0
        copies = [self._follow(sequence) for sequence, _ in wanted]
        goal = {sequence.id: len(sequence.token_ids) + depth for sequence, depth in wanted}
        for copy in copies:
            self.prefix.reuse(copy.sequence)
        todo = [copy.sequence for copy in copies]
        while todo:
            works = [Work(s, s.computed, min(s.length, s.computed + _STRETCH)) for s in todo]
            works = [work for work in works if self._make_room(work, goal)]
            todo = self._step(works) if works else []
            if not rounds:  # after that blocks hold guesses
                for copy in copies:
                    self.prefix.settle(copy.sequence, copy.settled)
                    copy.settled = copy.sequence.computed
            todo = [s for s in todo if len(s.token_ids) < goal[s.id]]
            rounds += 1
        if rounds > 1:
            measured = (time.perf_counter() - begun) / rounds
            self.seconds = 0.9 * self.seconds + 0.1 * measured if self.seconds else measured
        return [copy.sequence.token_ids[copy.known :] for copy in copies]

    def forget(self, sequence: Sequence) -> None:
        """Free what it holds."""
        if (copy := self._copies.pop(sequence.id, None)) is not None:
            self._release(copy)

    def _follow(self, sequence: Sequence) -> _Copy:
        """Its copy, with the tokens that have come and without the guesses that were wrong."""
        copy = self._copies.pop(sequence.id, None)
        if copy is None:
            params = replace(sequence.params, top_logprobs=0, prompt_logprobs=False)
            copy = _Copy(Sequence(sequence.id, sequence.prompt_ids, params, sequence.limit, sequence.seed))
        self._copies[sequence.id] = copy
        guessed, real, same = copy.sequence.token_ids, sequence.token_ids, copy.known
        while same < min(len(guessed), len(real)) and guessed[same] == real[same]:
            same += 1
        guessed[same:] = real[same:]
        copy.known = len(real)
        # The last token once more if need be: its logits are wanted.
        right = min(len(sequence.prompt_ids) + same, sequence.length - 1)
        copy.sequence.computed = min(copy.sequence.computed, right)
        return copy

    def _step(self, works: list[Work]) -> list[Sequence]:
        """One step of the small model -> the sequences that got a guess."""
        step = self._assembler.assemble(works)
        logits_LV = self.executor.step(step.batch)
        sampled = sampler.sample(logits_LV, step.rows) if step.rows else []
        for work in works:
            work.sequence.computed = work.end
        for row, one in zip(step.rows, sampled, strict=True):
            row.sequence.token_ids.append(one.token)
        return [row.sequence for row in step.rows]

    def _make_room(self, work: Work, busy: dict[int, int]) -> bool:
        """Blocks up to the work's end; if need be of those who were served longest ago."""
        table = work.sequence.table
        while len(table) * BLOCK < work.end:
            try:
                table.append(self.pool.take())
            except OutOfBlocksError:
                idle = next((copy for id, copy in self._copies.items() if id not in busy), None)
                if idle is None:
                    return False
                self._release(self._copies.pop(idle.sequence.id))
        return True

    def _release(self, copy: _Copy) -> None:
        while copy.sequence.table:
            self.pool.release(copy.sequence.table.pop())
        self._assembler.forget(copy.sequence)


def open_drafter(
    named: Drafter | Path | str, weights: str, device: str, vocab_size: int, tokenizer: Tokenizer | None
) -> Drafter:
    """What `speculate` of an engine means: "ngram", a small model's folder, or a drafter. RequestError."""
    if named == "ngram":
        return Lookup()
    if isinstance(named, Path | str):
        return DraftModel.open(Path(named), weights, device, vocab_size, tokenizer)
    return named
