"""The warm interpreter: it starts once, builds the room, and forks a walled child for each call.

A fork copies the interpreter as it was before any foreign line ran, so nothing of one call can be seen by
another. (One thing is shared by all calls of one keeper: the addresses at which things lie and the seed of
string hashing, which were drawn when it started.)

There are two processes a call: the child, and its keeper, who waits for it, kills it when the host says so or
goes away, and reports how it ended. Between calls this process imports common modules, so that the first call
doesn't wait for them and later ones find them there.

    host  --- one message with three descriptors: stdout, stderr, control --->  this process
    host  --- control: the request, JSON behind its length; then any byte or the end: kill --->  keeper
    keeper --- control: {"status": ...} or {"wall": ...} --->  host
"""

# ruff: noqa: PTH109, PTH112

from __future__ import annotations

import _socket
import importlib
import json
import os
import select
import signal
import struct
import sys
from typing import Any, NoReturn

from ayllu.tools.walls import inmate, kernel, landlock, namespaces, privileges, seccomp
from ayllu.tools.walls.inmate import WallError

PRELOADED = ["traceback", "linecache", "threading", "math", "random", "collections", "itertools", "functools"]
PRELOADED += ["operator", "string", "re", "datetime", "decimal", "fractions", "statistics", "heapq", "bisect"]
PRELOADED += ["copy", "textwrap", "dataclasses", "typing", "calendar", "csv", "io"]


class Keeper:
    """What all calls share: the walls that stand, the Landlock rules, the filter."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.walls: dict[str, str] = spec["walls"]  # name -> why it is missing; "" where it stands
        self.base = spec["work"]
        self.proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
        self.abi = 0
        self._move_in(spec)
        if os.geteuid() == 0 and not self.walls["privileges"]:
            self._step_down(spec)
        self._prepare_rules(spec)
        self._prepare_filter()

    def _move_in(self, spec: dict[str, Any]) -> None:
        if self.walls["namespaces"]:
            return
        try:
            namespaces.leave(self.proc)
            namespaces.enter(spec["room"], spec["readable"], spec["hidden"], spec["work"])
            self.base = namespaces.WORK
        except OSError as error:  # perhaps half way out of the old ones: the host starts again without them
            raise WallError("namespaces", error) from error

    def _step_down(self, spec: dict[str, Any]) -> None:
        """Root becomes an ordinary user, where that one can still reach the interpreter's files."""
        os.seteuid(spec["user"])
        reachable = all(os.access(path, os.R_OK, effective_ids=True) for path in spec["readable"])
        os.seteuid(0)
        if reachable:
            privileges.become(spec["user"])

    def _prepare_rules(self, spec: dict[str, Any]) -> None:
        """Descriptors of what may be read. Where no room hides it, site-packages is left out: the folder that
        it lies in may be listed, and what else is in there is opened piece by piece."""
        self.rules: list[tuple[int, int]] = []
        if self.walls["landlock"]:
            return
        try:
            self.abi = landlock.version()
        except OSError as error:
            self.walls["landlock"] = str(error)
            return
        hidden = set(spec["hidden"]) if self.walls["namespaces"] else set()
        for path in spec["readable"]:
            if not any(name.startswith(path + "/") for name in hidden):
                self._rule(path, landlock.READ_FILE | landlock.READ_DIR)
                continue
            self._rule(path, landlock.READ_DIR)
            for entry in os.scandir(path):
                if entry.path not in hidden:
                    self._rule(entry.path, landlock.READ_FILE | landlock.READ_DIR)
        for path in spec["listed"]:
            self._rule(path, landlock.READ_DIR)
        for path in namespaces.DEVICES:
            self._rule(path, landlock.READ_FILE | (landlock.WRITE_FILE if path == "/dev/null" else 0))

    def _rule(self, path: str, rights: int) -> None:
        if not os.path.isdir(path):
            rights &= ~landlock.READ_DIR
        self.rules.append((os.open(path, os.O_PATH), rights))

    def _prepare_filter(self) -> None:
        indoors = not self.walls["namespaces"]
        # Threads are counted for one call only in a user namespace, and never for root: then there are none.
        threads = indoors and os.geteuid() != 0
        try:
            self.filter = seccomp.program(indoors=indoors, threads=threads)
        except KeyError:
            self.walls["seccomp"] = f"unknown processor {kernel.MACHINE}"

    def keep(self, out: int, err: int, control: Any) -> None:
        """One call, in a process of its own that ends with it."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        request = receive(control)
        try:
            report = self._call(out, err, control, request)
        except WallError as error:
            report = {"wall": error.wall, "reason": error.reason}
        control.sendall(json.dumps(report).encode())

    def _call(self, out: int, err: int, control: Any, request: dict[str, Any]) -> dict[str, Any]:
        if not self.walls["namespaces"]:
            try:
                namespaces.private_call(self.proc, request["folder"])
            except OSError as error:
                raise WallError("namespaces", error) from error
        ear, mouth = os.pipe()
        child = os.fork()
        if child == 0:
            self._become_inmate(out, err, mouth, request)
        for descriptor in (out, err, mouth):
            os.close(descriptor)
        said = os.read(ear, 4096)
        if said != b"ready":
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            wall, _, reason = said.decode("utf-8", "replace").partition("\0")
            raise WallError(wall or "unknown", reason)
        gone = os.pidfd_open(child)
        poll = select.poll()
        poll.register(gone, select.POLLIN)
        poll.register(control.fileno(), select.POLLIN)
        if not any(descriptor == gone for descriptor, _ in poll.poll()):
            os.kill(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
        code = os.waitstatus_to_exitcode(status)
        return {"status": code, "cpu": usage.ru_utime + usage.ru_stime, "memory": usage.ru_maxrss * 1024}

    def _become_inmate(self, out: int, err: int, mouth: int, request: dict[str, Any]) -> NoReturn:
        try:
            os.dup2(out, 1)
            os.dup2(err, 2)
            indoors = not self.walls["namespaces"]
            os.chdir(self.base)  # indoors the call's own folder covers it
            if not indoors and request["folder"]:
                os.chdir(request["folder"])
            os.environ.clear()
            os.environ.update(HOME=os.getcwd(), LANG="C.UTF-8", TZ="UTC", PATH="/bin")
            sys.path_importer_cache.clear()
            mouth = inmate.confine(self.walls, request["limits"], self.rules, self.abi, self.filter, mouth)
            os.write(mouth, b"ready")
            os.close(mouth)
        except WallError as error:
            os.write(mouth, f"{error.wall}\0{error.reason}".encode())
            os._exit(1)
        except BaseException as error:
            os.write(mouth, f"unknown\0{error!r}".encode())
            os._exit(1)
        inmate.execute(request["code"], show_value=request["show_value"])

    def try_walls(self) -> None:
        """One empty call, repeated without the wall that failed, until what is left stands."""
        nowhere = os.open("/dev/null", os.O_WRONLY)
        limits = {"memory": 1 << 33, "cpu_seconds": 5, "file_bytes": 0, "open_files": 32, "threads": 4}
        request = {"folder": "", "limits": limits, "code": "", "show_value": False}
        while True:
            ours, theirs = _socket.socketpair()
            pid = os.fork()
            if pid == 0:
                ours.close()
                try:
                    self.keep(nowhere, os.dup(nowhere), theirs)
                finally:
                    os._exit(0)
            theirs.close()
            send(ours, request)
            report = json.loads(ours.recv(65536) or b'{"wall": "unknown", "reason": "the keeper died"}')
            os.waitpid(pid, 0)
            ours.close()
            if "wall" not in report:
                break
            if self.walls.get(report["wall"], "unknown"):
                raise WallError(report["wall"], report["reason"])
            self.walls[report["wall"]] = report["reason"]
            if report["wall"] == "namespaces":
                raise WallError("namespaces", report["reason"])  # the host starts again without them
        os.close(nowhere)


def send(control: Any, request: dict[str, Any]) -> None:
    """A request as JSON behind its length."""
    text = json.dumps(request).encode("utf-8", "surrogatepass")
    control.sendall(struct.pack("<I", len(text)) + text)


def receive(control: Any) -> dict[str, Any]:
    """What `send` sent."""
    data = b""
    while len(data) < 4 or len(data) < 4 + struct.unpack_from("<I", data)[0]:
        more = control.recv(1 << 20)
        if not more:
            os._exit(0)  # the host is gone
        data += more
    return dict(json.loads(data[4:]))


def main() -> None:
    """Serve calls until the host closes its end. argv[1]: the spec (sandbox.py makes it)."""
    spec = json.loads(sys.argv[1])
    sys.argv = [""]
    sys.path[:] = spec["path"]
    sys.dont_write_bytecode = True
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    import builtins

    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]
    channel = _socket.socket(fileno=spec["channel"])
    try:
        keeper = Keeper(spec)
        keeper.try_walls()
    except (OSError, WallError) as error:
        channel.send(
            json.dumps({"error": getattr(error, "wall", "namespaces"), "reason": str(error)}).encode()
        )
        return
    channel.send(json.dumps({"walls": keeper.walls, "user": os.geteuid(), "abi": keeper.abi}).encode())
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers are reaped by the kernel
    _serve(channel, keeper)


def _serve(channel: Any, keeper: Keeper) -> None:
    ready = select.poll()
    ready.register(channel.fileno(), select.POLLIN)
    waiting = list(PRELOADED)
    while True:
        while waiting and not ready.poll(0):
            importlib.import_module(waiting.pop(0))
        data, extra, _, _ = channel.recvmsg(1, _socket.CMSG_SPACE(12))
        if not data or not extra:
            return
        out, err, number = struct.unpack("iii", extra[0][2])
        if os.fork() == 0:
            channel.close()
            status = 1
            try:
                keeper.keep(out, err, _socket.socket(fileno=number))
                status = 0
            finally:
                os._exit(status)
        for descriptor in (out, err, number):
            os.close(descriptor)
