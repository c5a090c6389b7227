"""A work folder as the host sees it: counted, listed and emptied while its content is not to be trusted.

Inside there are only files and folders (no links, no pipes: seccomp refuses their making), but as many, as
deep and as oddly named as the code liked. Nothing here follows a link or recurses.
"""

# ruff: noqa: PTH104, PTH106

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

DEEPEST = 32


@dataclass(frozen=True)
class Extent:
    """What a folder takes: bytes on disk, files and folders; `whole` is False where counting stopped
    early."""

    bytes: int
    entries: int
    whole: bool = True


def extent(folder: Path, most: int) -> Extent:
    """The extent of `folder`; counting stops after `most` entries or below 32 levels."""
    total, entries, todo = 0, 0, [(str(folder), 0)]
    while todo:
        path, depth = todo.pop()
        if depth > DEEPEST:
            return Extent(total, entries, whole=False)
        with (
            contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError),
            os.scandir(path) as found,
        ):
            for entry in found:
                entries += 1
                if entries > most:
                    return Extent(total, entries, whole=False)
                with contextlib.suppress(FileNotFoundError, PermissionError):
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    todo.append((entry.path, depth + 1))
    return Extent(total, entries)


def files(folder: Path, most: int) -> list[tuple[str, int]]:
    """(path inside `folder`, bytes) of its regular files, sorted; at most `most` are looked at."""
    found, seen, todo = list[tuple[str, int]](), 0, [(str(folder), 0)]
    while todo and seen < most:
        path, depth = todo.pop()
        with contextlib.suppress(OSError), os.scandir(path) as entries:
            for entry in entries:
                seen += 1
                if entry.is_dir(follow_symlinks=False) and depth < DEEPEST:
                    todo.append((entry.path, depth + 1))
                elif entry.is_file(follow_symlinks=False):
                    size = entry.stat(follow_symlinks=False).st_size
                    found.append((os.path.relpath(entry.path, folder), size))
    return sorted(found)


def paths(folder: Path) -> set[str]:
    """The paths inside `folder` of all that is in it. For a folder whose extent is known."""
    found, todo = set[str](), [str(folder)]
    while todo:
        with contextlib.suppress(OSError), os.scandir(todo.pop()) as entries:
            for entry in entries:
                found.add(os.path.relpath(entry.path, folder))
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
    return found


def restore(folder: Path, keep: set[str]) -> None:
    """Remove what isn't among the paths `keep`, and what is in it; files that are, stay as they are now."""
    moved, todo = 0, [str(folder)]
    while todo:
        for entry in list(os.scandir(todo.pop())):
            if entry.is_dir(follow_symlinks=False):
                _allow(entry.path)
            if os.path.relpath(entry.path, folder) not in keep:
                moved += 1
                os.rename(entry.path, folder / f".new-{os.getpid()}-{moved}")
            elif entry.is_dir(follow_symlinks=False):
                todo.append(entry.path)
    clear(folder, keep)


def clear(folder: Path, keep: set[str] | None = None) -> None:
    """Empty `folder`, except for the names directly in it that are in `keep`, however deep it is.

    Each folder is moved up to the top before it is emptied, so that no path gets long.
    """
    keep = keep or set()
    moved = 0
    while True:
        left = [entry for entry in os.scandir(folder) if entry.name not in keep]
        if not left:
            return
        for entry in left:
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.path)
                continue
            _allow(entry.path)
            for inner in list(os.scandir(entry.path)):
                if inner.is_dir(follow_symlinks=False):
                    _allow(inner.path)
                    moved += 1
                    os.rename(inner.path, folder / f".emptied-{os.getpid()}-{moved}")
                else:
                    os.unlink(inner.path)
            os.rmdir(entry.path)


def _allow(path: str) -> None:
    """Let its owner read and empty a folder whose content forbade it."""
    with contextlib.suppress(OSError):
        os.chmod(path, stat.S_IRWXU, follow_symlinks=True)


def remove(folder: Path) -> None:
    """`clear` and remove the folder itself; nothing happens where it is gone already."""
    with contextlib.suppress(FileNotFoundError):
        clear(folder)
        shutil.rmtree(folder, ignore_errors=True)
