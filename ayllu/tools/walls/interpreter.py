"""What of this machine the code may read: the interpreter's own files, and packages that were named."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ayllu.errors import InputNotFoundError
from ayllu.tools.walls.libraries import closure

# Extension modules with no use here: a terminal, a screen, the NIS. Their libraries stay outside.
LEFT_OUT = ("_tkinter", "readline", "_curses", "_curses_panel", "nis", "_dbm", "_gdbm", "_crypt")


@cache
def interpreter() -> tuple[Path, tuple[str, ...], tuple[str, ...]]:
    """The standard library's folder, what in it is hidden, and the shared libraries it needs."""
    library = Path(sysconfig.get_path("stdlib")).resolve()
    hidden = tuple(
        str(library / name) for name in ("site-packages", "dist-packages") if (library / name).is_dir()
    )
    python = Path(getattr(sys, "_base_executable", None) or sys.executable).resolve()
    modules = [
        path for path in (library / "lib-dynload").glob("*.so") if path.name.partition(".")[0] not in LEFT_OUT
    ]
    return library, hidden, tuple(map(str, closure([python, *modules])))


def reads(packages: Sequence[str]) -> dict[str, Any]:
    """What the code may read, as the keeper wants it told."""
    library, hidden, libraries = interpreter()
    readable, listed, path = (
        [str(library), *libraries],
        list[str](),
        [str(library), str(library / "lib-dynload")],
    )
    needed = set(libraries)
    if (zones := Path("/usr/share/zoneinfo")).is_dir():
        readable.append(str(zones))
    for name in packages:
        for place in _package(name):
            readable.append(str(place))
            more = closure(place.rglob("*.so*")) if place.is_dir() else closure([place])
            inside = [str(found) for found in more if not found.is_relative_to(place.parent)]
            readable += [found for found in inside if found not in needed]
            needed.update(inside)
            if str(place.parent) not in path:
                path.append(str(place.parent))
                listed.append(str(place.parent))
    usual = ("/lib", "/usr/lib", "/lib64", "/usr/lib64")
    odd = {str(Path(name).parent) for name in needed if not name.startswith(usual)}
    return {
        "readable": readable,
        "hidden": hidden,
        "listed": listed,
        "path": path,
        "library_path": ":".join(sorted(odd)),
    }


def _package(name: str) -> list[Path]:
    """Where an installed package lies: its folder or file, and the folder of its bundled libraries."""
    found = find_spec(name) if name.isidentifier() else None
    if found is None or not (found.submodule_search_locations or found.origin):
        raise InputNotFoundError(
            f"the package {name!r} is not installed",
            fix="install it, or leave it out of the sandbox's packages",
        )
    place = Path(next(iter(found.submodule_search_locations or ()), None) or str(found.origin)).resolve()
    bundled = place.parent / f"{name}.libs"
    return [place, bundled] if bundled.is_dir() else [place]
