"""A work folder as the host sees it: counted, listed and emptied while its content is not to be trusted.

Inside there are only files and folders (no links, no pipes: seccomp refuses their making), but as many, as
deep and as oddly named as the code liked. Nothing here follows a link or recurses.
"""

# ruff: noqa: PTH104, PTH106

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import Path

DEEPEST = 32
# The folders and files (in small letters: not every disk tells them apart) that version control finds by
# itself. What hooks and settings in there name (`core.fsmonitor`, say) is run by the next `git status`: that
# of a shell whose prompt shows the branch, as soon as somebody goes into the folder.
_CONTROLS = frozenset({".git", ".hg", ".svn"})
# Git also takes a folder with these for a repository (gitrepository-layout(5)), whatever its name is.
_LAYOUTS = (frozenset({"head", "objects", "refs"}), frozenset({"head", "commondir"}))
_TELLING = _CONTROLS.union(*_LAYOUTS)


@dataclass(frozen=True)
class Extent:
    """What a folder takes: bytes on disk, files and folders; `whole` is False where counting stopped
    early. `checkout`: the path in it of something that version control takes for its own, "" for none."""

    bytes: int
    entries: int
    whole: bool = True
    checkout: str = ""


def extent(folder: Path, most: int) -> Extent:
    """The extent of `folder`; counting stops after `most` entries, below 32 levels, and at a path that the
    system finds too long."""
    total, entries, checkout, todo = 0, 0, "", [(str(folder), 0)]
    while todo:
        path, depth = todo.pop()
        if depth > DEEPEST:
            return Extent(total, entries, False, checkout)
        telling = set[str]()
        try:
            for entry in _listed(path):
                entries += 1
                if entries > most:
                    return Extent(total, entries, False, checkout)
                if (name := entry.name.lower()) in _TELLING:
                    telling.add(name)
                    if not checkout and _is_checkout(telling):
                        place = entry.path if name in _CONTROLS else path
                        checkout = os.path.relpath(place, folder)
                with contextlib.suppress(FileNotFoundError, PermissionError):
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    todo.append((entry.path, depth + 1))
        except OSError:
            return Extent(total, entries, False, checkout)
    return Extent(total, entries, True, checkout)


def _is_checkout(names: Set[str]) -> bool:
    """Whether a folder in which there is what is called so is a checkout, or a repository itself."""
    return not names.isdisjoint(_CONTROLS) or any(layout <= names for layout in _LAYOUTS)


def is_repository(folder: Path) -> bool:
    """Whether a folder is a version control's own, such as `.git`. Looks for a few names, not at them all."""
    names = ("HEAD", "objects", "refs", "commondir")
    return folder.name.lower() in _CONTROLS or _is_checkout(
        {name.lower() for name in names if os.access(folder / name, os.F_OK)}
    )


def _listed(path: str) -> Iterator[os.DirEntry[str]]:
    """What is in a folder. One of ours that can't be read is made readable, or it would hide what is in it;
    somebody else's, and one that is gone, is empty."""
    for attempt in range(2):
        try:
            with os.scandir(path) as found:
                yield from found
            return
        except PermissionError:
            if attempt or Path(path).lstat().st_uid != os.geteuid():
                return
            _allow(path)
        except (FileNotFoundError, NotADirectoryError):
            return


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


def sizes(folder: Path) -> dict[str, int]:
    """The path inside `folder` of all that is in it, with the bytes of each file. For a folder whose extent
    is known."""
    found, todo = dict[str, int](), [str(folder)]
    while todo:
        for entry in _listed(todo.pop()):
            with contextlib.suppress(OSError):
                found[os.path.relpath(entry.path, folder)] = entry.stat(follow_symlinks=False).st_size
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
    return found


def restore(folder: Path, before: dict[str, int]) -> None:
    """Back to no more than `sizes` said before: what is new is removed, files that have grown are cut to
    their size of then. What the system doesn't let go stays."""
    todo = [str(folder)]
    while todo:
        for entry in list(_listed(todo.pop())):  # of what was there before, so the path is none too long
            with contextlib.suppress(OSError):
                size = before.get(os.path.relpath(entry.path, folder))
                if size is None:
                    os.rename(entry.path, _spare(folder))
                elif entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
                elif entry.is_file(follow_symlinks=False) and entry.stat().st_size > size:
                    os.truncate(entry.path, size)
    with contextlib.suppress(OSError):
        clear(folder, set(before))


def _spare(folder: Path) -> Path:
    """A path directly in `folder` whose name nobody could have guessed."""
    return folder / f".removed-{secrets.token_hex(12)}"


def clear(folder: Path, keep: set[str] | None = None) -> None:
    """Empty `folder`, except for the names directly in it that are in `keep`, however deep it is.

    Each folder is moved up to the top before it is emptied, so that no path gets long.
    """
    keep = keep or set()
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
                    os.rename(inner.path, _spare(folder))
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
