"""What the engine asks of an executor, whichever chip it uses."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ayllu.engine.batch import Batch


class Executor(Protocol):
    """Computes steps over a cache of blocks of `BLOCK` tokens, numbered from 0.

    `fingerprint` names the weights, the layout of a block and the arithmetic: blocks that were exported under
    one fingerprint may be imported under the same only.
    """

    name: str
    vocab_size: int
    block_bytes: int

    @property
    def fingerprint(self) -> str:
        """See above."""
        ...

    def reserve(self, blocks: int) -> None:
        """Make room for this many blocks, keeping what is stored. Raises ResourceError."""
        ...

    def step(self, batch: Batch) -> Tensor:
        """Store the keys and values of all tokens -> logits_LV (float32) of the wanted ones."""
        ...

    def export_block(self, block: int) -> Tensor:
        """The bytes of a block (uint8, on the CPU)."""
        ...

    def import_block(self, block: int, data: Tensor) -> None:
        """Put exported bytes into a block."""
        ...

    def copy_block(self, source: int, target: int) -> None:
        """Copy a block's content."""
        ...

    def refresh(self) -> None:
        """Take over the weights of a live Decoder after they have changed."""
        ...
