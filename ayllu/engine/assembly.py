"""From a step's plan to an executor's batch, and its logits back to those who asked for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ayllu.engine.batch import Batch, Int32
from ayllu.engine.blocks import blocks_for
from ayllu.engine.request import Row, Sequence
from ayllu.engine.scheduler import Work


@dataclass(frozen=True)
class Assembled:
    """`rows` are sampled from the wanted logits `sampled_L`; `read` are the works whose prompt's
    log-probabilities are wanted, with the first and last place of the tokens that they are of."""

    batch: Batch
    rows: list[Row]
    sampled_L: list[int]
    read: list[tuple[Work, int, int]]
    read_L: list[int]

    def choosing(self, logits_LV: Tensor) -> Tensor:
        """The logits of `rows`."""
        return logits_LV if not self.read_L else logits_LV[self.sampled_L]

    def prompt_logprobs(self, logits_LV: Tensor) -> list[tuple[Sequence, list[float]]]:
        """Log-probabilities of prompt tokens that this step has read the logits for."""
        found, at = [], 0
        for work, first, last in self.read:
            ids = work.sequence.prompt_ids[first:last]
            log_p_TV = logits_LV[self.read_L[at : at + len(ids)]].log_softmax(-1)
            found.append((work.sequence, log_p_TV[range(len(ids)), ids].tolist()))
            at += len(ids)
        return found


class Assembler:
    """Keeps each sequence's table as an array, which changes once in 16 tokens."""

    def __init__(self) -> None:
        self._tables: dict[int, tuple[int, int, Int32]] = {}

    def forget(self, sequence: Sequence) -> None:
        """The sequence is done."""
        self._tables.pop(sequence.id, None)

    def assemble(self, works: list[Work]) -> Assembled:
        """The works side by side."""
        tokens: list[int] = []
        rows: list[Row] = []
        wanted: list[int] = []
        sampled_L: list[int] = []
        read: list[tuple[Work, int, int]] = []
        read_L: list[int] = []
        start_S = np.array([work.start for work in works])
        count_S = np.array([work.tokens for work in works])
        tables_SW = np.zeros((len(works), max(blocks_for(w.start + w.tokens) for w in works)), np.int32)
        for index, work in enumerate(works):
            sequence, at = work.sequence, len(tokens) - work.start
            tokens += sequence.ids(work.start, work.end)
            tokens += work.drafts
            table = self._table(sequence)[: tables_SW.shape[1]]
            tables_SW[index, : len(table)] = table
            if sequence.reads_prompt:
                # The logits of one place are about the next token.
                first, last = max(work.start + 1, sequence.read), min(work.end + 1, len(sequence.prompt_ids))
                if first < last:
                    read.append((work, first, last))
                    read_L += range(len(wanted), len(wanted) + last - first)
                    wanted += range(at + first - 1, at + last - 1)
            if work.samples:
                for ahead in range(len(work.drafts) + 1):
                    rows.append(Row(sequence, tuple(work.drafts[:ahead])))
                    sampled_L.append(len(wanted))
                    wanted.append(at + work.end - 1 + ahead)
        offset_T = np.repeat(start_S - np.r_[0, np.cumsum(count_S)[:-1]], count_S)
        batch = Batch(
            np.array(tokens, np.int32),
            (np.arange(len(tokens)) + offset_T).astype(np.int32),
            np.repeat(np.arange(len(works)), count_S).astype(np.int32),
            tables_SW,
            np.array(wanted, np.int32),
        )
        return Assembled(batch, rows, sampled_L, read, read_L)

    def _table(self, sequence: Sequence) -> Int32:
        key = (sequence.version, len(sequence.table))
        known = self._tables.get(sequence.id)
        if known is None or known[:2] != key:
            known = self._tables[sequence.id] = (*key, np.array(sequence.table, np.int32))
        return known[2]
