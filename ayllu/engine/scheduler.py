"""Who runs, who waits: first come, first served, up to a number of sequences at a time."""

from __future__ import annotations

from collections import deque

from ayllu.engine.request import Sequence
from ayllu.errors import QueueFullError


class Scheduler:
    """`waiting` and `running` sequences; `running[i]` owns slot i of the executor."""

    def __init__(self, *, max_sequences: int, max_waiting: int, prefill_tokens: int) -> None:
        self.max_sequences, self.max_waiting, self.prefill_tokens = max_sequences, max_waiting, prefill_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence. Raises QueueFullError."""
        if len(self.waiting) >= self.max_waiting:
            raise QueueFullError(f"{len(self.waiting)} requests wait already", fix="try again in a moment")
        self.waiting.append(sequence)

    def admit(self) -> list[Sequence]:
        """Sequences to prefill now: those that fit beside the running ones, as long as the padded
        batch stays below `prefill_tokens` (one always may)."""
        batch: list[Sequence] = []
        longest = 0
        while self.waiting and len(self.running) + len(batch) < self.max_sequences:
            longest = max(longest, len(self.waiting[0].prompt_ids))
            if batch and longest * (len(batch) + 1) > self.prefill_tokens:
                break
            batch.append(self.waiting.popleft())
        return batch

    def remove(self, slot: int) -> None:
        """Take a running sequence out; the last one takes its slot (as in the executor)."""
        last = self.running.pop()
        if slot < len(self.running):
            self.running[slot] = last
