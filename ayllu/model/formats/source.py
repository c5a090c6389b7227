"""What every container of weights offers, whichever way it stores them.

safetensors folders, Meta's consolidated files and GGUF all appear under Hugging Face names, so that the
family files serve all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class TensorInfo:
    """Shape and type of a stored tensor (for packed formats: the type that reading gives)."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class TensorSource(Protocol):
    """Named tensors that are read when asked for. May be used from several threads."""

    @property
    def entries(self) -> Mapping[str, TensorInfo]:
        """All tensors by name."""
        ...

    def read(self, name: str) -> Tensor:
        """The tensor in its own type and in memory of its own. Raises ModelFileDamagedError."""
        ...

    def copy_to(self, name: str, target: Tensor) -> None:
        """Fill `target` (contiguous, of the tensor's shape, any float type). Raises ModelFileDamagedError."""
        ...

    def close(self) -> None:
        """Let go of the files."""
        ...
