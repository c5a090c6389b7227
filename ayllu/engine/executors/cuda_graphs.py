"""Decode steps as CUDA graphs: one launch instead of hundreds (PyTorch documentation, "CUDA Graphs").

A graph repeats recorded kernels on recorded addresses. So everything that changes from step to step stands in
one tensor that is filled before; there is a graph for each of a few numbers of sequences, the next larger
serves; and a graph dies with the memory that it knows. They are recorded when they are first wanted, so that
nobody waits for those that never are, and share one pool: only one runs at a time, and its result is copied.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ayllu.engine.batch import Int32
from ayllu.errors import AylluWarning

SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


@dataclass(frozen=True)
class _Recorded:
    graph: Any  # torch.cuda.CUDAGraph
    logits_SV: Tensor


class Graphs:
    """`decode(plan_SX) -> logits_SV` with graphs round it; on other devices than CUDA without. The plan has
    `width` blocks at most."""

    def __init__(self, decode: Callable[[Tensor], Tensor], width: int, device: torch.device) -> None:
        # A method of whoever holds this: weakly, or weights and cache would wait for the cyclic collector.
        method = isinstance(decode, MethodType)
        self._decode = weakref.WeakMethod(decode) if method else lambda: decode
        self.device = device
        self.usable = device.type == "cuda"
        self.plan_SX = torch.zeros(SIZES[-1], 2 + width, dtype=torch.int32, device=device)
        self._recorded: dict[int, _Recorded] = {}
        self._pool: Any = None
        self._stream: Any = None  # one for all: the pool's memory belongs to it

    def decode(self, plan_SX: Tensor) -> Tensor:
        """A step without a graph."""
        decode = self._decode()
        assert decode is not None, "who asks is alive"
        return decode(plan_SX)

    def forget(self) -> None:
        """The memory that the graphs know is gone."""
        self._recorded.clear()
        self._pool = None  # a pool that no graph uses any more can't be used again

    def run(self, tokens_S: Int32, positions_S: Int32, tables_SW: Int32) -> Tensor:
        """logits_SV (float32), a tensor of one's own."""
        count, width = tables_SW.shape
        size = next(n for n in SIZES if n >= count) if self.usable else count
        plan_SX = np.zeros((size, 2 + width), np.int32)
        plan_SX[count:, 1] = -1  # nobody
        plan_SX[:count, 0], plan_SX[:count, 1], plan_SX[:count, 2:] = tokens_S, positions_S, tables_SW
        self.plan_SX[:size, : 2 + width] = torch.from_numpy(plan_SX).to(self.device)
        if not self.usable:
            return self.decode(self.plan_SX[:size]).float()
        if size not in self._recorded:
            try:
                self._recorded[size] = self._record(self.plan_SX[:size])
            except RuntimeError as error:
                if isinstance(error, torch.cuda.OutOfMemoryError):
                    raise
                warnings.warn(f"CUDA graphs are off: {str(error)[:200]}", AylluWarning, stacklevel=2)
                self.usable = False
                return self.decode(self.plan_SX[:size])[:count].float()
        recorded = self._recorded[size]
        recorded.graph.replay()
        return recorded.logits_SV[:count].to(torch.float32, copy=True)

    def _record(self, plan_SX: Tensor) -> _Recorded:
        # What may allocate or load once (cuBLAS, Triton's modules) does so before, on the recording's stream.
        # The keys and values that this stores are those of the step itself.
        self._stream = stream = self._stream or torch.cuda.Stream(self.device)
        current = torch.cuda.current_stream(self.device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(2):
                self.decode(plan_SX)
        current.wait_stream(stream)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Other threads (the cache on disk) may use the device meanwhile.
        with torch.cuda.graph(graph, self._pool, stream, capture_error_mode="thread_local"):
            logits_SV = self.decode(plan_SX)
        return _Recorded(graph, logits_SV)
