"""Prefix reuse: what two texts have in common at their beginning is computed once.

A full block's name is SHA-256 over the name before it and its own 16 token ids, so that a name stands for
the whole text up to there (vLLM's hash chain; Merkle 1987). The chain begins with the executor's fingerprint
and a salt: texts of different salts never meet, so that nobody learns from the time of an answer what
somebody else has asked (CVE-2025-46570).
"""

from __future__ import annotations

import hashlib
import secrets

import numpy as np

from ayllu.engine.batch import BLOCK
from ayllu.engine.blocks import BlockPool, OutOfBlocksError
from ayllu.engine.diskcache import DiskCache
from ayllu.engine.executors.executor import Executor
from ayllu.engine.request import Sequence

# Blocks read from the disk in one step of the engine, so that others are not kept waiting.
_RESTORED = 64


def chain(previous: bytes, ids: list[int]) -> bytes:
    """The name of the block that holds `ids` after the text named `previous`."""
    return hashlib.sha256(previous + np.array(ids, "<i4").tobytes()).digest()


class PrefixCache:
    """Names blocks as they fill and finds them again, in memory and, with `disk`, after a restart."""

    def __init__(
        self, pool: BlockPool, executor: Executor, *, disk: DiskCache | None, salt: str, enabled: bool
    ) -> None:
        self.pool, self.executor, self.disk, self.salt, self.enabled = pool, executor, disk, salt, enabled
        self._unsaved: dict[bytes, int] = {}
        self._fingerprint = b""
        self._allowance = 0
        self.forget()

    def forget(self) -> None:
        """The weights have changed: nothing that is stored holds any more."""
        self.pool.forget_all()
        self._unsaved.clear()
        # Only what outlives the process must be told apart by the weights, whose hash takes a while.
        if self.disk is not None:
            self._fingerprint = hashlib.sha256(self.executor.fingerprint.encode()).digest()
            self.disk.open(self._fingerprint)
        else:
            self._fingerprint = secrets.token_bytes(32)

    def usable(self, sequence: Sequence) -> bool:
        """Whether blocks may be taken from the cache: log-probabilities of a prompt need all its logits."""
        return self.enabled and not sequence.reads_prompt

    def names(self, sequence: Sequence, count: int) -> list[bytes]:
        """The names of the first `count` full blocks."""
        hashes = sequence.hashes
        if not hashes:
            # A salt may be any string, lone surrogates too: it is only hashed.
            salts = (
                salt.encode("utf-8", "surrogatepass") for salt in (self.salt, sequence.params.cache_salt)
            )
            salt = hashlib.sha256(b"\0".join(salts)).digest()
            hashes.append(hashlib.sha256(b"ayllu prefix" + self._fingerprint + salt).digest())
        while len(hashes) <= count:
            start = (len(hashes) - 1) * BLOCK
            hashes.append(chain(hashes[-1], sequence.ids(start, start + BLOCK)))
        return hashes[1 : count + 1]

    def begin_step(self) -> None:
        """A new step: so many blocks may be read from the disk again."""
        self._allowance = _RESTORED

    def reuse(self, sequence: Sequence, *, disk: bool = True) -> bool:
        """Take known blocks for a sequence that stands at the end of a block, all but its last token's at
        most -> False when more lie on the disk than may be read in this step."""
        wanted = (sequence.length - 1) // BLOCK
        if not self.usable(sequence) or len(sequence.table) * BLOCK != sequence.computed:
            return True
        while len(sequence.table) < wanted:
            name = self.names(sequence, len(sequence.table) + 1)[-1]
            block = self.pool.find(name)
            if block is not None:
                self.pool.share(block)
            elif self.disk is None or not disk or not self.disk.has(name):
                return True
            elif self._allowance == 0:
                return False
            else:
                block = self._restore(name)
                if block is None:
                    return True
            sequence.table.append(block)
            sequence.computed += BLOCK
            if not sequence.token_ids:
                sequence.cached_tokens += BLOCK
        return True

    def settle(self, sequence: Sequence, before: int) -> None:
        """Name the blocks that became full since `before` tokens were computed."""
        full = sequence.computed // BLOCK
        if not self.enabled or full <= before // BLOCK:
            return
        names = self.names(sequence, full)
        for index in range(before // BLOCK, full):
            block, name = sequence.table[index], names[index]
            if self.pool.name(block, name) and self.disk is not None and not self.disk.has(name):
                self._unsaved[name] = block

    def save(self, *, wait: bool = False) -> None:
        """Hand full blocks to the disk's thread, as many as it takes; `wait`: all, until they are there."""
        if self.disk is None:
            return
        while self._unsaved and (wait or self.disk.has_room):
            name, block = next(iter(self._unsaved.items()))
            del self._unsaved[name]
            if self.pool.name_of.get(block) == name:  # else its room was needed
                self.disk.put(name, self.executor.export_block(block))
        if wait:
            self.disk.flush()

    def _restore(self, name: bytes) -> int | None:
        assert self.disk is not None
        self._allowance -= 1
        data = self.disk.get(name, self.executor.block_bytes)
        if data is None:
            return None
        try:
            block = self.pool.take()
        except OutOfBlocksError:
            return None
        self.executor.import_block(block, data)
        self.pool.name(block, name)
        return block
