"""The blocks of the paged cache: who holds which, which are free, which still hold a known text.

A block may be held by several sequences (references are counted). A full block has a name, the hash of the
text up to its end (prefix.py); once nobody holds it, it stays findable until its room is needed, the least
recently used first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from ayllu.engine.batch import BLOCK
from ayllu.errors import ResourceError

_FIRST = 64  # blocks reserved at first; doubled as needed


class OutOfBlocksError(Exception):
    """Every block is held. The scheduler answers it by preemption; no user meets it."""


def blocks_for(tokens: int) -> int:
    """Blocks that so many tokens need."""
    return -(-tokens // BLOCK)


class BlockPool:
    """`capacity` blocks at most; `reserve(n)` makes room for blocks 0 to n - 1, as they are needed."""

    def __init__(self, capacity: int, reserve: Callable[[int], None]) -> None:
        self.capacity, self._reserve = capacity, reserve
        self.references: list[int] = []  # of each reserved block
        self.free: list[int] = []
        self.named: dict[bytes, int] = {}
        self.name_of: dict[int, bytes] = {}
        self.idle: OrderedDict[int, None] = OrderedDict()  # named, held by nobody; oldest first
        self.failure: ResourceError | None = None  # why the pool is smaller than it was to be

    @property
    def available(self) -> int:
        """Blocks that can be taken now."""
        return len(self.free) + len(self.idle) + self.capacity - len(self.references)

    @property
    def held(self) -> int:
        """Blocks that somebody holds."""
        return len(self.references) - len(self.free) - len(self.idle)

    def take(self) -> int:
        """A block of one's own. Raises OutOfBlocksError."""
        if not self.free and len(self.references) < self.capacity:
            self._grow()
        if self.free:
            block = self.free.pop()
        elif self.idle:
            block, _ = self.idle.popitem(last=False)
            self._forget(block)
        else:
            raise OutOfBlocksError
        self.references[block] = 1
        return block

    def share(self, block: int) -> None:
        """Hold a block that others may hold, too."""
        self.references[block] += 1
        self.idle.pop(block, None)

    def release(self, block: int) -> None:
        """Let go. Whoever releases a text's blocks begins with the last: it is the least likely to be
        wanted again."""
        assert self.references[block] > 0, "a block was released twice"
        self.references[block] -= 1
        if self.references[block] == 0:
            if block in self.name_of:
                self.idle[block] = None
            else:
                self.free.append(block)

    def shared(self, block: int) -> bool:
        """Whether writing into the block would change what others read."""
        return self.references[block] > 1 or block in self.name_of

    def name(self, block: int, name: bytes) -> bool:
        """Make a full block findable -> whether it is the first of this name."""
        if name in self.named or block in self.name_of:
            return False
        self.named[name], self.name_of[block] = block, name
        return True

    def find(self, name: bytes) -> int | None:
        """The block of this name."""
        return self.named.get(name)

    def forget_all(self) -> None:
        """No name holds any more: the weights have changed."""
        self.free += self.idle
        self.idle.clear()
        self.named.clear()
        self.name_of.clear()

    def _forget(self, block: int) -> None:
        del self.named[self.name_of.pop(block)]

    def _grow(self) -> None:
        have = len(self.references)
        wanted = min(self.capacity, max(_FIRST, 2 * have))
        try:
            self._reserve(wanted)
        except ResourceError as error:
            self.capacity, self.failure = have, error
            return
        self.references += [0] * (wanted - have)
        self.free += range(wanted - 1, have - 1, -1)
