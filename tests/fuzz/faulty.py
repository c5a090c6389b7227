"""A worker whose readers fail in every way that the fuzz is there to find: the test of the test."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path

from ayllu.errors import ModelFileDamagedError

from . import worker
from .samples import Kind


def _sample(folder: Path) -> None:
    (folder / "file").write_bytes(b"whole" * 20)


def _when_damaged(fault: Callable[[], object]) -> Callable[[Path], None]:
    def read(path: Path) -> None:
        if (path / "file").read_bytes() != b"whole" * 20:
            fault()

    return read


def _refuse() -> None:
    raise ModelFileDamagedError("damaged")


def _raise() -> None:
    raise KeyError("an untyped error")


kept: list[bytes] = []
FAULTS: dict[str, Callable[[], object]] = {
    "refuses": _refuse,
    "raises": _raise,
    "takes gigabytes": lambda: bytearray(1 << 32),
    "takes megabytes": lambda: kept.append(b"x" * (100 << 20)),
    "hangs": lambda: time.sleep(60),
    "crashes": lambda: ctypes.string_at(0),
}

if __name__ == "__main__":
    worker.SECONDS = 1
    worker.KINDS[:] = [Kind(name, "file", _sample, _when_damaged(fault)) for name, fault in FAULTS.items()]
    worker.main()
