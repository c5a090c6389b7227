"""The same tensors under other names: some publishers leave out a prefix, others put one before.

A family that knows of such files has SPELLINGS, pairs of a regular expression and what a name that it
matches as a whole becomes (`re.Match.expand`). The first that matches counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from ayllu.errors import ModelFileDamagedError
from ayllu.model.formats.source import TensorInfo, TensorSource

Spellings = tuple[tuple[str, str], ...]


class Respelled:
    """A source whose names are rewritten; reading is the source's own."""

    def __init__(self, source: TensorSource, spellings: Spellings) -> None:
        self._source = source
        self._stored: dict[str, str] = {}
        for stored in source.entries:
            name = _rewritten(stored, spellings)
            if name in self._stored:
                raise ModelFileDamagedError(
                    "the weights hold a tensor twice",
                    why=f"{ascii(stored)[:200]} and {ascii(self._stored[name])[:200]} are the same",
                )
            self._stored[name] = stored
        self._entries = {name: source.entries[stored] for name, stored in self._stored.items()}

    @property
    def entries(self) -> Mapping[str, TensorInfo]:
        """All tensors by their rewritten names."""
        return self._entries

    def read(self, name: str) -> Tensor:
        """See TensorSource."""
        return self._source.read(self._stored[name])

    def copy_to(self, name: str, target: Tensor) -> None:
        """See TensorSource."""
        self._source.copy_to(self._stored[name], target)

    def close(self) -> None:
        """See TensorSource."""
        self._source.close()


def respelled(source: TensorSource, spellings: Spellings) -> TensorSource:
    """`source` under the names that `spellings` make. Raises ModelFileDamagedError where two become one."""
    return Respelled(source, spellings) if spellings else source


def _rewritten(name: str, spellings: Spellings) -> str:
    for pattern, replacement in spellings:
        if (match := re.fullmatch(pattern, name)) is not None:
            return match.expand(replacement)
    return name
