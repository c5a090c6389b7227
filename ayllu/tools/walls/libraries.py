"""Which shared libraries the interpreter and its extension modules need: the closure over ELF's DT_NEEDED.

Format: System V ABI, chapters 4 and 5 ("Object Files", "Program Loading and Dynamic Linking"). Only names are
read; libraries are looked for in the folders of the library that asks (RPATH, RUNPATH) and of the system.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterable
from functools import cache
from pathlib import Path

# Loaded by name at run time and therefore in nobody's list: glibc loads libgcc_s to end a thread.
ALWAYS = ("libgcc_s.so.1", "libstdc++.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1")
_LOADED, _DYNAMIC = 1, 2
_NEEDED, _STRINGS, _RPATH, _RUNPATH = 1, 5, 15, 29


def system_folders() -> list[Path]:
    """Where a system keeps its shared libraries."""
    import os

    triple = f"{os.uname().machine}-linux-gnu"
    names = (
        f"/lib/{triple}",
        f"/usr/lib/{triple}",
        "/lib64",
        "/usr/lib64",
        "/lib",
        "/usr/lib",
        "/usr/local/lib",
    )
    return [Path(name) for name in names if Path(name).is_dir()]


@cache
def needed(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(names of the libraries, folders to look in first) of a 64-bit little-endian ELF file; else nothing."""
    with open(path, "rb") as file:
        if path.stat().st_size < 64:
            return (), ()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[:6] != b"\x7fELF\x02\x01":
                return (), ()
            return _dynamic(data, path)


def _dynamic(data: mmap.mmap, path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    segments = [struct.unpack_from("<IIQQQQ", data, table + size * i) for i in range(count)]
    entries = list[tuple[int, int]]()
    for kind, _, offset, _, _, length in segments:
        if kind == _DYNAMIC:
            entries = list(struct.iter_unpack("<qQ", data[offset : offset + length - length % 16]))
    address = next((value for tag, value in entries if tag == _STRINGS), 0)
    strings = 0
    for kind, _, offset, virtual, _, length in segments:
        if kind == _LOADED and virtual <= address < virtual + length:
            strings = offset + address - virtual

    def text(at: int) -> str:
        return data[strings + at : data.find(b"\0", strings + at)].decode("utf-8", "replace")

    names = tuple(text(value) for tag, value in entries if tag == _NEEDED)
    folders = [part for tag, value in entries if tag in (_RPATH, _RUNPATH) for part in text(value).split(":")]
    here = str(path.parent)
    return names, tuple(part.replace("$ORIGIN", here).replace("${ORIGIN}", here) for part in folders)


def closure(roots: Iterable[Path]) -> list[Path]:
    """All libraries that `roots` need, at the paths where a loader finds them."""
    system, found, queue = system_folders(), dict[str, Path](), list(roots)
    names = [(name, ()) for name in ALWAYS]
    while queue or names:
        for root in queue:
            wanted, folders = needed(root)
            names += [(name, folders) for name in wanted]  # type: ignore[misc]
        queue = []
        for name, first in names:
            if name in found:
                continue
            for folder in [*map(Path, first), *system]:
                if (folder / name).is_file():
                    found[name] = folder / name
                    queue.append(folder / name)
                    break
        names = []
    return sorted(set(found.values()))
