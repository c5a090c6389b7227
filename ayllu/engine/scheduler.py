"""Who runs in a step, and on what: continuous batching with prompts in pieces.

Every running sequence that has been read takes its next token first; what is left of the step's tokens
goes to prompts, in pieces (chunked prefill, Sarathi-Serve, Agrawal et al. 2024), so that a long prompt
doesn't keep others waiting. When blocks run out the sequence that came last among the least urgent gives its
own back and is computed again later (preemption by recomputation, Kwon et al. 2023).
"""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass, field

from ayllu.engine.batch import BLOCK
from ayllu.engine.blocks import BlockPool, OutOfBlocksError, blocks_for
from ayllu.engine.prefix import PrefixCache
from ayllu.engine.request import Sequence
from ayllu.engine.speculate import Speculation
from ayllu.errors import QueueFullError


@dataclass
class Work:
    """Tokens `start` to `end` of a sequence, then `drafts` that may follow."""

    sequence: Sequence
    start: int
    end: int
    drafts: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens of the step."""
        return self.end - self.start + len(self.drafts)

    @property
    def samples(self) -> bool:
        """Whether they are the sequence's last, so that it gets a new one."""
        return self.end == self.sequence.length


def rank(sequence: Sequence) -> tuple[int, int]:
    """Order of service: higher priority first, then who came first."""
    return -sequence.params.priority, sequence.id


class Scheduler:
    """`waiting` sequences in order of service, `running` ones by their id.

    `prefill_tokens`: tokens of one step, decoding included; prompts get a quarter of them at least.
    `whole`: prompts can't be read in pieces (rope scalings that depend on the length).
    """

    def __init__(
        self,
        pool: BlockPool,
        prefix: PrefixCache,
        copy_block: Callable[[int, int], None],
        *,
        max_sequences: int,
        max_waiting: int,
        prefill_tokens: int,
        whole: bool = False,
        speculation: Speculation | None = None,
    ) -> None:
        self.pool, self.prefix, self._copy_block = pool, prefix, copy_block
        self.max_sequences, self.max_waiting, self.prefill_tokens = max_sequences, max_waiting, prefill_tokens
        self.whole, self.speculation = whole, speculation
        self.waiting: list[Sequence] = []
        self.running: dict[int, Sequence] = {}
        self.preemptions = 0
        self._works: dict[int, Work] = {}
        self._coming: set[bytes] = set()  # names of blocks that this step computes

    def add(self, sequences: list[Sequence]) -> None:
        """Queue sequences, all or none. Raises QueueFullError."""
        if len(self.waiting) + len(sequences) > self.max_waiting:
            raise QueueFullError(f"{len(self.waiting)} requests wait already", fix="try again in a moment")
        for sequence in sequences:
            bisect.insort(self.waiting, sequence, key=rank)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out and free its blocks at once."""
        if self.running.pop(sequence.id, None) is None:
            at = bisect.bisect_left(self.waiting, rank(sequence), key=rank)
            if at < len(self.waiting) and self.waiting[at] is sequence:
                self.waiting.pop(at)
        self._release(sequence)

    def plan(self) -> list[Work]:
        """What the next step computes; empty when there is nothing to do or all wait for the disk."""
        self._works, self._coming = {}, set()
        self.prefix.begin_step()
        in_order = sorted(self.running.values(), key=rank)
        ready = [sequence for sequence in in_order if sequence.length - sequence.computed == 1]
        drafts = self.speculation.propose(ready) if self.speculation is not None else {}
        for sequence in ready:
            if sequence.id in self.running:
                self._decode(sequence, drafts.get(sequence.id, []))
        tokens = sum(work.tokens for work in self._works.values())
        room = max(self.prefill_tokens - tokens, self.prefill_tokens // 4, 1)
        for sequence in in_order:
            if room > 0 and sequence.id in self.running and sequence.id not in self._works:
                room -= self._read(sequence, room)
        self._admit(room)
        return list(self._works.values())

    # ---- one sequence
    def _decode(self, sequence: Sequence, drafts: list[int]) -> None:
        end = sequence.length
        if drafts and self._missing(sequence, end + len(drafts)) > self.pool.available:
            drafts = []
        if self._make_room(sequence, end + len(drafts), worse_than=rank(sequence)):
            self._works[sequence.id] = Work(sequence, sequence.computed, end, drafts)
        else:
            self.preempt(sequence)  # it is the least urgent itself

    def _read(self, sequence: Sequence, room: int) -> int:
        """Plan a stretch of at most `room` tokens -> its tokens, 0 when it has to wait."""
        if not self.prefix.reuse(sequence) or self._someone_computes(sequence):
            return 0
        end = sequence.length if self.whole else min(sequence.length, sequence.computed + room)
        if not self._make_room(sequence, end, worse_than=rank(sequence)):
            if len(self.running) == 1:
                self.preempt(sequence)  # nobody will give it room for a copy, but it can do without
            return 0
        work = self._works[sequence.id] = Work(sequence, sequence.computed, end)
        if self.prefix.usable(sequence):
            self._coming.update(self.prefix.names(sequence, end // BLOCK)[work.start // BLOCK :])
        return end - work.start

    def _someone_computes(self, sequence: Sequence) -> bool:
        """Whether its next block is computed by another in this very step: then waiting saves the work."""
        whole_blocks = (sequence.length - 1) // BLOCK
        at = sequence.computed // BLOCK
        if not self._coming or at >= whole_blocks or not self.prefix.usable(sequence):
            return False
        return self.prefix.names(sequence, at + 1)[-1] in self._coming

    # ---- newcomers
    def _admit(self, room: int) -> None:
        for sequence in self.waiting[: self.max_sequences]:
            if room <= 0:
                return
            victim = None
            if len(self.running) >= self.max_sequences:
                victim = self._victim((-sequence.params.priority, float("inf")))
                if victim is None:
                    return
            if self._is_early(sequence) or self._someone_computes(sequence):
                continue
            if victim is not None:
                self.preempt(victim)
            if not self._seat(sequence):
                return
            room -= self._read(sequence, room)

    def _is_early(self, sequence: Sequence) -> bool:
        """Whether it waits for its twin to read their prompt. A twin that left has left its blocks."""
        twin = sequence.twin
        return twin is not None and not twin.finished and not twin.token_ids

    def _seat(self, sequence: Sequence) -> bool:
        """Make a waiting sequence a running one, if there will be room for all it has so far."""
        twin, prompt = sequence.twin, len(sequence.prompt_ids)
        if twin is not None and twin.id in self.running and twin.computed >= prompt:
            for block in twin.table[: blocks_for(prompt)]:
                self.pool.share(block)
                sequence.table.append(block)
            # The last token once more: its logits are wanted. The block is copied before it is written.
            sequence.computed = sequence.cached_tokens = prompt - 1
            sequence.prompt_logprobs = list(twin.prompt_logprobs)
        else:
            self.prefix.reuse(sequence, disk=False)
        while self._missing(sequence, sequence.length) > self.pool.available:
            victim = self._victim((-sequence.params.priority, float("inf")))
            if victim is None:
                if not self.running:
                    break  # alone: it is given what there is
                self._release(sequence)
                return False
            self.preempt(victim)
        sequence.twin = None
        self.waiting.remove(sequence)
        self.running[sequence.id] = sequence
        return True

    # ---- blocks
    def _missing(self, sequence: Sequence, end: int) -> int:
        """Blocks to take before tokens up to `end` can be written."""
        table = sequence.table
        copies = sum(self.pool.shared(block) for block in table[sequence.computed // BLOCK :])
        return max(0, blocks_for(end) - len(table)) + copies

    def _make_room(self, sequence: Sequence, end: int, worse_than: tuple[float, float]) -> bool:
        """Blocks of its own for everything from `computed` to `end`, others' if need be."""
        pool, table = self.pool, sequence.table
        while True:
            try:
                for index in range(sequence.computed // BLOCK, len(table)):
                    if pool.shared(table[index]):  # copy on write
                        block = pool.take()
                        self._copy_block(table[index], block)
                        pool.release(table[index])
                        table[index] = block
                        sequence.version += 1
                while len(table) * BLOCK < end:
                    table.append(pool.take())
                return True
            except OutOfBlocksError:
                victim = self._victim(worse_than, but=sequence)
                if victim is None:
                    self._trim(sequence)
                    return False
                self.preempt(victim)

    def _victim(self, worse_than: tuple[float, float], but: Sequence | None = None) -> Sequence | None:
        """The running sequence that comes last in order, if it comes after `worse_than`."""
        others = [s for s in self.running.values() if s is not but]
        last = max(others, key=rank, default=None)
        return last if last is not None and rank(last) > worse_than else None

    def preempt(self, sequence: Sequence) -> None:
        """Back to the queue without its blocks; it is computed again when there is room."""
        self._works.pop(sequence.id, None)
        del self.running[sequence.id]
        self._release(sequence)
        bisect.insort(self.waiting, sequence, key=rank)
        self.preemptions += 1

    def _trim(self, sequence: Sequence) -> None:
        while len(sequence.table) > blocks_for(sequence.computed):
            self.pool.release(sequence.table.pop())
        sequence.version += 1

    def _release(self, sequence: Sequence) -> None:
        while sequence.table:
            self.pool.release(sequence.table.pop())
        sequence.computed = 0
        sequence.version += 1
        if not sequence.token_ids and not sequence.finished:
            sequence.cached_tokens = 0
