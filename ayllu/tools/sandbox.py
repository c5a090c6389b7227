"""Model-written Python behind a wall: what it may read, write, use and say is bounded by the Linux kernel.

    with Sandbox() as sandbox:
        outcome = sandbox.run("print(6 * 7)")       # Outcome(stdout="42\\n", exit=0, why_stopped=None, ...)
        print(sandbox.level())

Checks on the text of the code are no wall (smolagents' CVE-2025-5120 and CVE-2025-9959), so there are none:
the code may do what it likes, in a process that can't do anything. No sockets of any family, no other
processes, no file but those of the work folder and (to read) of the standard library, no signals, bounded
time, memory, threads, descriptors, disk and output. How each wall is built stands in `walls/`.

`level()` says which walls this machine has. Two of them keep files apart, `namespaces` and `landlock`;
without either of the two, or without one of the others, a Sandbox is refused, unless `allow_unsafe` says
otherwise.

What code leaves in a work folder that is kept is foreign, for whoever opens it later. Checkouts aren't given
to code and can't be made by it (`work_folder.py`), since version control runs what stands in `.git` without
being told to.

Not covered: faults of the kernel itself, what can be learnt from timing, GPUs; at the level "landlock"
which files there are on the host, their sizes and times (not what is in them). Against an attacker rather
than a model, put a virtual machine round all of it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ayllu.errors import RefusedError
from ayllu.tools import work_folder as work_folders
from ayllu.tools.outcome import WALLS, Level, Limits, MiB, Outcome, Tape, level_of
from ayllu.tools.walls import folder as folders
from ayllu.tools.walls.interpreter import reads
from ayllu.tools.walls.keeper import send

__all__ = ["WALLS", "Level", "Limits", "MiB", "Outcome", "Sandbox", "Tape"]
NOBODY = 65534
WATCH_SECONDS = 0.01  # how often the work folder is measured while code runs
FLOOD = 64  # times the output limit after which a call is stopped, not only cut


class Sandbox:
    """A warm interpreter behind walls and a work folder; `run` may be called from several threads.

    `work_folder`: files that the code finds, changes and leaves there; calls take turns. None: every call has
    an empty folder of its own, which is gone afterwards, and calls run side by side. `packages`: installed
    packages that may be imported beside the standard library. `without`: walls left out by name (for tests
    and for machines that lack one). Raises RefusedError where what is left is not safe and `allow_unsafe` is
    not set, and for a work folder that holds more than work. Under root the code runs as user 65534, who
    gets the work folder (not the files that lie in it already: those it can read if others may).
    """

    def __init__(
        self,
        work_folder: Path | str | None = None,
        limits: Limits | None = None,
        *,
        packages: Sequence[str] = (),
        without: Iterable[str] = (),
        allow_unsafe: bool = False,
    ) -> None:
        self.limits = limits or Limits()
        self.without, self.packages = frozenset(without), tuple(packages)
        assert self.without <= set(WALLS), f"no such wall: {sorted(self.without - set(WALLS))}"
        _refuse_elsewhere()
        self.work_folder = None
        if work_folder is not None:
            self.work_folder = work_folders.checked(Path(work_folder), 4 * self.limits.entries)
        self._private = Path(tempfile.mkdtemp(prefix="ayllu-sandbox-"))
        self._private.chmod(0o711)  # an ordinary user passes through; what lies inside has rights of its own
        self._turn, self._sending, self._calls = threading.Lock(), threading.Lock(), 0
        self._running: set[socket.socket] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._close = weakref.finalize(self, _remove, self._private)
        try:
            self._start()
            if not self._level.safe and not allow_unsafe:
                raise RefusedError(
                    "code of a model is not run on this machine",
                    why=f"it would not be kept in: {self._level}",
                    fix="use a Linux kernel of 6.2 or newer, or a virtual machine round the whole "
                    "program; Sandbox(allow_unsafe=True) runs code that you have read yourself",
                )
        except BaseException:
            self.close()
            raise

    def level(self) -> Level:
        """What holds on this machine; found out by raising the walls, not by asking for versions."""
        return self._level

    def run(self, code: str, *, show_value: bool = False) -> Outcome:
        """Run `code` in a fresh process. `show_value`: a last expression's value is printed too.

        Never raises for what the code does. RefusedError when a wall that stood before doesn't rise: the code
        is not run then.
        """
        if self.work_folder is not None:
            with self._turn:
                return self._run_in(self.work_folder, "", code, show_value)
        with self._sending:
            self._calls += 1
            name = str(self._calls)
        folder = self._private / "work" / name
        folder.mkdir(mode=0o700)
        _hand_over(folder, self._level.user)
        try:
            return self._run_in(folder, name, code, show_value)
        finally:
            folders.remove(folder)

    def files(self) -> list[tuple[str, int]]:
        """(path, bytes) of the files in the work folder."""
        return folders.files(self.work_folder, 2 * self.limits.entries) if self.work_folder else []

    def close(self) -> None:
        """End the warm interpreter and remove what was private. Running calls are stopped."""
        for control in tuple(self._running):
            with contextlib.suppress(OSError):
                control.send(b"k")
        self._end()
        self._process = None
        self._close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # ---- the warm interpreter
    def _end(self) -> None:
        if self._process is not None:
            self._channel.close()
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        work = self.work_folder or self._private / "work"
        for path in (self._private / "room", self._private / "work"):
            path.mkdir(mode=0o711, exist_ok=True)
        walls = {wall: "switched off by name" if wall in self.without else "" for wall in WALLS}
        spec = {
            "room": str(self._private / "room"),
            "work": str(work),
            "user": NOBODY,
            **reads(self.packages),
        }
        _hand_over(work, NOBODY)
        hello: dict[str, Any] = {}
        while "walls" not in hello:
            hello = self._launch({**spec, "walls": walls})
            wall = hello.get("error")
            if wall is not None and (wall not in walls or walls[wall]):
                raise RefusedError("the sandbox does not start", why=hello["reason"], fix="report this")
            if wall is not None:
                walls[wall] = hello["reason"]
        self._level = level_of(hello["walls"], hello["user"], hello["abi"])
        _hand_over(work, self._level.user)

    def _launch(self, spec: dict[str, Any]) -> dict[str, Any]:
        """Start the interpreter and hear what it could do. One from before is ended."""
        self._end()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        root = str(Path(__file__).parents[2])
        start = f"import sys; sys.path.insert(0, {root!r}); from ayllu.tools.walls.keeper import main; main()"
        python = getattr(sys, "_base_executable", None) or sys.executable
        environment = {"LANG": "C.UTF-8", "TZ": "UTC", "MALLOC_ARENA_MAX": "2", "OMP_NUM_THREADS": "2"}
        if libraries := spec.pop("library_path"):
            environment["LD_LIBRARY_PATH"] = libraries
        with theirs:
            self._process = subprocess.Popen(
                [
                    python,
                    "-I",
                    "-S",
                    "-B",
                    "-X",
                    "utf8",
                    "-c",
                    start,
                    json.dumps({**spec, "channel": theirs.fileno()}),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is the host's business
                cwd="/",
            )
        data = self._channel.recv(1 << 16)
        if not data:
            self._process.wait()
            reason = f"the interpreter {python} ended at once (exit {self._process.returncode})"
            raise RefusedError("the sandbox does not start", why=reason, fix="report this")
        return dict(json.loads(data))

    # ---- one call
    def _run_in(self, folder: Path, name: str, code: str, show_value: bool) -> Outcome:
        start = folders.extent(folder, 4 * self.limits.entries)
        if not start.whole:  # nobody could tell any more what a call adds
            text = f"the work folder holds too many files, or more than {folders.DEEPEST} levels of folders\n"
            return Outcome("", text, None, "disk", 0.0)
        if start.checkout and self.work_folder:  # made since by somebody else, and not ours to remove
            text = f"the work folder holds a checkout or a repository: {start.checkout!r}\n"
            return Outcome("", text, None, "checkout", 0.0)
        before = folders.sizes(folder)
        request = {"folder": name, "limits": asdict(self.limits), "code": code, "show_value": show_value}
        least = _free(folder) - self.limits.disk - self.limits.unseen
        started = time.monotonic()
        control, out, err = self._submit(request)
        with control:
            self._running.add(control)
            try:
                tapes, report, why = self._watch(
                    control, out, err, lambda: self._amiss(folder, start, least), started
                )
            finally:
                self._running.discard(control)
                os.close(out)
                os.close(err)
        if "wall" in report:
            raise RefusedError(
                "the code was not run",
                why=f"a wall of the sandbox did not rise: {report['wall']}: {report['reason']}",
                fix="run it again; if it stays so, make a new Sandbox, which looks at the machine anew",
            )
        amiss = self._amiss(folder, start)  # also after a stop for another reason
        if amiss or why in ("disk", "checkout"):
            why = why or amiss
            folders.restore(folder, before)
        status = report.get("status")
        if why is None and (status is None or status < 0):
            spent = report.get("cpu", 0.0) >= max(1.0, round(self.limits.cpu_seconds)) - 0.05
            why = "lost" if status is None else "cpu" if spent else "crash"
        seconds = time.monotonic() - started
        texts = [tape.text() for tape in tapes]
        exit_ = status if why is None else None
        return Outcome(
            texts[0], texts[1], exit_, why, seconds, report.get("cpu", 0.0), report.get("memory", 0)
        )

    def _submit(self, request: dict[str, Any]) -> tuple[socket.socket, int, int]:
        """Hand a request to the warm interpreter, starting it again if it is gone."""
        for attempt in range(2):
            asked = self._process
            ours, theirs = socket.socketpair()
            (out, out_w), (err, err_w) = os.pipe(), os.pipe()
            numbers = array("i", [out_w, err_w, theirs.fileno()])
            try:
                with self._sending:
                    self._channel.sendmsg([b"c"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)])
                os.set_blocking(out, False)
                os.set_blocking(err, False)
                return ours, out, err
            except OSError:
                for descriptor in (out, err):
                    os.close(descriptor)
                ours.close()
                if attempt or self._process is None:
                    raise
                with self._sending:
                    if self._process is asked:  # another call may have started it again already
                        self._start()
            finally:
                os.close(out_w)
                os.close(err_w)
                theirs.close()
                if ours.fileno() >= 0:
                    with contextlib.suppress(OSError):
                        send(ours, request)
        raise AssertionError("unreachable")

    def _watch(
        self, control: socket.socket, out: int, err: int, amiss: Callable[[], str | None], started: float
    ) -> tuple[tuple[Tape, Tape], dict[str, Any], str | None]:
        """Read what comes until the keeper reports; stop the call when a limit is passed."""
        tapes = {out: Tape(self.limits.output), err: Tape(self.limits.output)}
        waiting = select.poll()
        for descriptor in (out, err, control.fileno()):
            waiting.register(descriptor, select.POLLIN)
        why: str | None = None
        deadline, report = started + self.limits.seconds, b""
        measured = started
        while True:
            now = time.monotonic()
            pause = min(WATCH_SECONDS, max(deadline - now, 0.0)) if why is None else 0.5
            events = waiting.poll(pause * 1000)
            for descriptor, _ in events:
                if descriptor == control.fileno():
                    with contextlib.suppress(ConnectionResetError):
                        report = control.recv(65536)
                    _drain(tapes)
                    parsed = json.loads(report) if report else {}
                    return (tapes[out], tapes[err]), parsed, why
                if not _read(descriptor, tapes[descriptor]):
                    waiting.unregister(descriptor)
            now = time.monotonic()
            if why is not None:
                if now > deadline:
                    return (tapes[out], tapes[err]), {}, why
                continue
            if now >= deadline:
                why = "time"
            elif any(tape.total > FLOOD * self.limits.output for tape in tapes.values()):
                why = "output"
            elif now - measured >= WATCH_SECONDS:
                why = amiss()
                measured = time.monotonic()
            if why is not None:
                deadline = now + 5.0
                with contextlib.suppress(OSError):
                    control.send(b"k")

    def _amiss(self, folder: Path, start: folders.Extent, least: int = 0) -> str | None:
        """Why what a call has left so far mustn't stay: "checkout" for one in a folder that is kept; "disk"
        where less than `least` bytes are free, or the folder is over its limits and larger than when the call
        began: what is too large already may shrink, or nobody could ever remove anything. None: it may."""
        now = folders.extent(folder, max(self.limits.entries, start.entries))
        if now.checkout and self.work_folder:
            return "checkout"
        over = not now.whole or now.bytes > max(self.limits.disk, start.bytes)
        return "disk" if over or _free(folder) < least else None


def _free(folder: Path) -> int:
    """Bytes free on the disk of a folder. Files that are removed while they are open take room that no folder
    shows."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def _read(descriptor: int, tape: Tape) -> bool:
    """Take what is there; False at the end."""
    try:
        data = os.read(descriptor, 1 << 16)
    except BlockingIOError:
        return True
    tape.write(data)
    return bool(data)


def _drain(tapes: dict[int, Tape]) -> None:
    """The rest that lies in the pipes of a process that has ended (at most what a pipe holds)."""
    for descriptor, tape in tapes.items():
        for _ in range(64):
            before = tape.total
            if not _read(descriptor, tape) or tape.total == before:
                break


def _refuse_elsewhere() -> None:
    if not sys.platform.startswith("linux"):
        raise RefusedError(
            "code of a model is not run on this system",
            why=f"the walls of the sandbox are the Linux kernel's, and this is {sys.platform}",
            fix="run Ayllu in a Linux virtual machine or container",
        )


def _hand_over(folder: Path, user: int) -> None:
    if os.geteuid() == 0:
        os.chown(folder, user, user)


def _remove(private: Path) -> None:
    with contextlib.suppress(OSError):
        folders.remove(private / "work")
    shutil.rmtree(private, ignore_errors=True)
