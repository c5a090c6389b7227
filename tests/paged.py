"""Texts through an executor's one entry, `step`, for tests that hold its logits against others."""

import numpy as np
import torch

from ayllu.engine.batch import BLOCK, Batch


class Paged:
    """Sequences with blocks of their own, given out in no order."""

    def __init__(self, executor, texts: int, longest: int) -> None:
        self.executor, width = executor, -(-longest // BLOCK)
        executor.reserve(texts * width)
        order = np.random.default_rng(0).permutation(texts * width)
        self.tables_SW = order.reshape(texts, width).astype(np.int32)
        self.stored = [0] * texts

    def step(self, tokens: dict[int, list[int]]) -> dict[int, torch.Tensor]:
        """New tokens of some texts -> their logits_TV, all in one batch."""
        ids, positions, sequence = [], [], []
        for row, new in tokens.items():
            ids += new
            positions += range(self.stored[row], self.stored[row] + len(new))
            sequence += [row] * len(new)
            self.stored[row] += len(new)
        arrays = [np.array(values, np.int32) for values in (ids, positions, sequence)]
        logits_TV = self.executor.step(Batch(*arrays, self.tables_SW, np.arange(len(ids), dtype=np.int32)))
        return dict(zip(tokens, logits_TV.split([len(new) for new in tokens.values()]), strict=True))

    def read(self, row: int, tokens: list[int], sizes: list[int]) -> torch.Tensor:
        """One text in pieces of `sizes`, the last of them again and again -> logits_TV of all."""
        out, at = [], 0
        while at < len(tokens):
            size = sizes[min(len(out), len(sizes) - 1)]
            out.append(self.step({row: tokens[at : at + size]})[row])
            at += size
        return torch.cat(out)
