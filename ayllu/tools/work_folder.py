"""Which folders model-written code may be given to work in and to keep: those that hold work, and nothing
that others run or that version control takes its orders from.

What lies in such a folder after a call is foreign. The sandbox bounds what code can do, not what its files do
to whoever opens, imports or builds them later; only what is run without being asked for is kept out here.
"""

from __future__ import annotations

import os
from pathlib import Path

from ayllu.errors import RefusedError
from ayllu.files import make_folder
from ayllu.tools.walls import folder as folders
from ayllu.tools.walls.interpreter import interpreter

_SYSTEM = ("/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/run", "/sbin", "/sys", "/usr")


def checked(folder: Path, most: int) -> Path:
    """The resolved folder, made if absent; RefusedError where it holds more than work.

    Version control is looked for among `most` files and folders. One that holds more isn't refused here: the
    sandbox runs nothing in it.
    """
    make_folder(folder)
    folder = folder.resolve()
    library, _, _ = interpreter()
    package = Path(__file__).resolve().parents[1]
    for inside, what in ((Path.home(), "home folder"), (library, "Python"), (package, "program")):
        if inside.resolve().is_relative_to(folder):
            raise _refused(
                folder, f"it holds your {what}, and code may change and remove everything in its work folder"
            )
    if folder.is_relative_to(package) or folder.is_relative_to(library):
        raise _refused(folder, "it belongs to the program or to Python, which run what lies there")
    if os.geteuid() == 0 and any(folder.is_relative_to(path) for path in _SYSTEM):
        why = "it belongs to the system, and would be handed to the user as whom code runs"
        raise _refused(folder, why, "make an empty folder for it elsewhere")
    if any(folders.is_repository(place) for place in (folder, *folder.parents)):
        raise _refused(folder, "it lies in a version control's own folder, whose hooks are run as you")
    if found := folders.extent(folder, most).checkout:
        why = f"what code writes into {found!r} runs with your rights when you use version control next"
        raise _refused(folder, why, "give a folder without such in it, or an empty one")
    return folder


def _refused(folder: Path, why: str, fix: str = "make an empty folder for it") -> RefusedError:
    return RefusedError(f"{folder} is not given to model-written code", why=why, fix=fix)
