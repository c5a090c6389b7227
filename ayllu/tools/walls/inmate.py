"""The program inside the walls: takes them on one by one, then runs the code and prints what it gave.

Whatever runs here is foreign from the first line of the code on, this module's own functions included. So
nothing that it says is believed: the only ways out are the bytes that it prints and its exit status, which
the kernel reports to the keeper. Nothing is ever unpickled.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from types import ModuleType, TracebackType
from typing import Any, NoReturn

from ayllu.tools.walls import kernel, landlock, privileges, seccomp

NAME = "<code>"  # what tracebacks call the code
_ONLY_TREE = 0x400  # ast.PyCF_ONLY_AST, without importing ast


class WallError(Exception):
    """A wall that could not be raised: its name and the kernel's reason."""

    def __init__(self, wall: str, reason: object) -> None:
        super().__init__(f"{wall}: {reason}")
        self.wall, self.reason = wall, str(reason)


def confine(
    walls: Mapping[str, str],
    limits: Mapping[str, float],
    rules: list[tuple[int, int]],
    abi: int,
    filter_: bytes,
    say: int,
) -> int:
    """Raise every wall that `walls` says is there ("" = there); returns the only descriptor kept beside 0-2.

    `rules`: what may be opened outside the work folder, which is the current one. WallError when one fails.
    """
    indoors = not walls["namespaces"]
    work = os.open(".", os.O_PATH | os.O_DIRECTORY)
    for wall in ("privileges", "landlock", "descriptors", "limits", "seccomp"):
        if walls.get(wall):
            continue
        try:
            if wall == "limits":
                privileges.limit(limits, count_threads=indoors)
            elif wall == "privileges":
                kernel.prctl(kernel.PR_SET_PDEATHSIG, 9)
                privileges.drop()
            elif wall == "landlock":
                landlock.restrict(abi, [*rules, (work, landlock.WORK)])
            elif wall == "descriptors":
                os.dup2(say, 3)
                os.closerange(4, 1 << 20)
                say = 3
            else:
                seccomp.restrict(filter_)
        except OSError as error:
            raise WallError(wall, error) from error
    return say


def execute(code: str, *, show_value: bool) -> NoReturn:
    """Run `code` as `__main__` and end the process as Python would.

    `show_value`: a last line that is an expression has its value printed, as at Python's prompt.
    """
    module = ModuleType("__main__")
    module.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = module
    sys.argv = [""]
    status = 1
    try:
        _run(code, module, show_value)
        status = 0
    except SystemExit as error:
        status = _exit_status(error.code)
    except BaseException as error:
        _explain(error, code)
    finally:
        _end(status)


def _run(code: str, module: ModuleType, show_value: bool) -> None:
    import _ast

    tree: Any = compile(code, NAME, "exec", _ONLY_TREE)
    last = None
    if show_value and tree.body and isinstance(tree.body[-1], _ast.Expr):
        last = _ast.Expression(tree.body.pop().value)
    exec(compile(tree, NAME, "exec"), module.__dict__)  # noqa: S102 (this is what the walls are for)
    if last is not None:
        sys.displayhook(eval(compile(last, NAME, "eval"), module.__dict__))  # noqa: S307


def _exit_status(code: object) -> int:
    if code is None or isinstance(code, int):
        return (code or 0) & 0xFF
    print(code, file=sys.stderr)
    return 1


def _explain(error: BaseException, code: str) -> None:
    """The traceback, from the code's own first frame on."""
    try:
        import linecache
        import traceback

        linecache.cache[NAME] = (len(code), None, code.splitlines(keepends=True), NAME)
        frames: TracebackType | None = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename != NAME:
            frames = frames.tb_next
        traceback.print_exception(type(error), error, frames)
    except BaseException:  # no memory, no stack, or objects that don't want to be printed
        os.write(2, type(error).__name__.encode() + b"\n")


def _end(status: int) -> NoReturn:
    try:
        import atexit
        import threading

        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as the interpreter does
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)
