"""What an escape could find, plants it, runs the table of attempts and says which of them got out.

    python tests/escapes/world.py [--without WALL ...] [--user 65534] [--controls]

prints JSON: the sandbox's level, and for each attempt "" or what went wrong. With --controls all walls are
off, and "" means that the attempt did get out, as it should there. `--user` turns root into that user first,
in a mount namespace of its own where that user can reach this interpreter.
"""

# ruff: noqa: PTH106, SIM115

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import shared_memory
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from attempts import TABLE, Attempt  # noqa: E402
from calls import FORBIDDEN  # noqa: E402

from ayllu.tools.sandbox import WALLS, Limits, MiB, Outcome, Sandbox  # noqa: E402
from ayllu.tools.walls import kernel  # noqa: E402

ARM = os.uname().machine == "aarch64"
NUMBERS = {
    name: int(number)
    for name, *numbers in (entry.split(":") for entry in FORBIDDEN.split())
    if (number := numbers[ARM]) != "-"
}
NUMBERS["clone"] = 220 if ARM else 56
# -1 for every argument: a kernel that is reached complains about them, the filter never looks.
RAW = """import ctypes
libc = ctypes.CDLL(None, use_errno=True)
m = [ctypes.c_long(-1)] * 6
r = libc.syscall({number}, *m)
e = ctypes.get_errno()
print('ESCAPED' if r != -1 or e not in (1, 38) else '', r, e)"""
CALLS = [
    Attempt(f"system call {name}", RAW.format(number=number), False)
    for name, number in NUMBERS.items()
    if name != "clone"
]
EVERY = [*TABLE, *CALLS]
LIMITS = Limits(seconds=20, cpu_seconds=20, memory=512 * MiB)
SMALL = Limits(20, 20, memory=256 * MiB, disk=16 * MiB, file_bytes=8 * MiB, entries=200, output=16384)
SHORT = replace(SMALL, seconds=0.7, cpu_seconds=1)  # for what would go on for ever


class World:
    """Canaries outside of the sandbox: files, listeners, a process, shared memory, an open descriptor."""

    def __init__(self) -> None:
        self.secret = secrets.token_hex(16)
        self.outside = Path(tempfile.mkdtemp(prefix="ayllu-outside-"))
        self.outside.chmod(0o777)
        os.environ["AYLLU_CANARY"] = self.secret
        self.victim = subprocess.Popen(["sleep", "600"])
        self.memory = shared_memory.SharedMemory(create=True, size=64)
        self.memory.buf[:32] = self.secret.encode()
        self.shmid = kernel.LIBC.shmget(0, 4096, 0o1666)
        self.visits: list[str] = []
        self.listeners = [socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)]
        self.abstract = f"ayllu-{self.secret[:8]}"
        self.listeners[1].bind(f"\0{self.abstract}")
        self.named = socket.socket(socket.AF_UNIX)
        self.named.bind(str(self.outside / "socket"))
        self.listeners.append(self.named)
        for listener in self.listeners:
            listener.listen()
            threading.Thread(target=self._answer, args=(listener,), daemon=True).start()
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        os.chmod(self.outside / "socket", 0o777)
        self.plant()
        self.open = os.open(self.outside / "secret", os.O_RDONLY)
        os.set_inheritable(self.open, True)
        self.before = self.trace()

    def plant(self) -> None:
        """The files, as they are in the beginning."""
        import sqlite3

        subprocess.run(
            ["rm", "-rf", self.outside / "folder", self.outside / "new", self.outside / "made"], check=True
        )
        for name, text in {
            "secret": self.secret,
            "canary_module.py": f"print({self.secret!r})",
            "movable": self.secret,
            "folder/inside": self.secret,
        }.items():
            (self.outside / name).parent.mkdir(exist_ok=True)
            (self.outside / name).write_text(text)
            (self.outside / name).chmod(0o666)
        (self.outside / "folder").chmod(0o777)
        (self.outside / "empty").mkdir(exist_ok=True)
        (self.outside / "base.db").unlink(missing_ok=True)
        with sqlite3.connect(self.outside / "base.db") as base:
            base.execute("create table t(a)")
            base.execute("insert into t values (?)", (self.secret,))
        (self.outside / "base.db").chmod(0o666)
        if not (self.outside / "library.so").exists():
            loaded = next(
                line.split()[-1] for line in open("/proc/self/maps") if "libm.so" in line or "libc.so" in line
            )
            (self.outside / "library.so").write_bytes(Path(loaded).read_bytes())

    def _answer(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            self.visits.append("a connection")
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nhello")
            connection.close()

    def trace(self) -> list[str]:
        """Everything outside that an escape would change."""
        files = sorted(
            f"{path.relative_to(self.outside)} {seen.st_mode:o} {seen.st_mtime_ns} {seen.st_size}"
            for path in self.outside.rglob("*")
            if (seen := path.lstat())
        )
        left = [*Path("/tmp").glob("ayllu-canary-file"), *Path("/dev/shm").glob("ayllu-canary-*")]
        return [*files, *map(str, left), *self.visits, f"victim {self.victim.poll()}"]

    def fill_in(self, code: str) -> str:
        """The attempt's program with the places of this world in it."""
        words = {
            "SECRET": str(self.outside / "secret"),
            "OUTSIDE": str(self.outside),
            "ABSTRACT": self.abstract,
            "PORT": str(self.listeners[0].getsockname()[1]),
            "UDP": str(self.udp.getsockname()[1]),
            "VICTIM": str(self.victim.pid),
            "SHMID": str(self.shmid),
            "SHMNAME": self.memory.name.lstrip("/"),
            "HOST": str(os.getpid()),
            "SITE": sysconfig.get_path("purelib"),
            "REPO": str(Path(__file__).parents[2]),
            "HOME": str(Path.home()),
            "PYTHON": os.path.realpath(sys.executable),
        }
        code = re.sub(r"\bNR_(\w+)", lambda match: str(NUMBERS[match[1]]), code)
        return re.sub("SHMNAME|" + "|".join(words), lambda match: words[match[0]], code)

    def got_out(self, outcome: Outcome) -> bool:
        """Whether a program's output shows that it is outside."""
        text = outcome.stdout + outcome.stderr
        return "ESCAPED" in re.sub(r"(?m)^    .*$", "", text) or self.secret in text

    def close(self) -> None:
        """Take everything away again."""
        self.victim.kill()
        self.victim.wait()
        self.memory.close()
        self.memory.unlink()
        kernel.LIBC.shmctl(self.shmid, 0, None)
        for listener in (*self.listeners, self.udp):
            listener.close()
        subprocess.run(["rm", "-rf", self.outside], check=True)


def judge(world: World, attempt: Attempt, outcome: Outcome) -> str:
    """Why an attempt counts as an escape, or as not tried; "" when the walls held."""
    if world.got_out(outcome):
        return f"it got out: {outcome.stdout[-300:]} {outcome.stderr[-300:]}"
    if outcome.why_stopped not in attempt.ends:
        return f"it ended by {outcome.why_stopped}, not by one of {attempt.ends}: {outcome.stderr[-300:]}"
    if outcome.seconds > 60:
        return f"it took {outcome.seconds:.1f} s"
    if len(outcome.stdout) > 2 * LIMITS.output or outcome.memory > LIMITS.memory:
        return "it used more than its limits"
    return ""


def attempt_all(without: list[str]) -> dict[str, object]:
    """Run the whole table, two at a time; {"level": ..., "attempts": {name: complaint}, "world": [...]}."""
    world = World()
    with (
        Sandbox(limits=LIMITS, without=without) as sandbox,
        Sandbox(limits=SMALL, without=without) as small,
        Sandbox(limits=SHORT, without=without) as short,
    ):
        sandbox.run("# marker of an earlier call")

        def one(attempt: Attempt) -> str:
            box = short if "time" in attempt.ends else small if attempt.limits else sandbox
            return judge(world, attempt, box.run(world.fill_in(attempt.code), show_value=True))

        with ThreadPoolExecutor(2) as pool:
            results = dict(zip([a.name for a in EVERY], pool.map(one, EVERY), strict=True))
        changed = sorted(set(world.before) ^ set(world.trace()))
        level = str(sandbox.level())
        name = sandbox.level().name
    world.close()
    return {"level": name, "text": level, "attempts": results, "world": changed}


def control_all() -> dict[str, object]:
    """The attempts that succeed without walls, without walls; a complaint for each that did not."""
    world, results = World(), dict[str, str]()
    with Sandbox(limits=LIMITS, without=WALLS, allow_unsafe=True) as nothing:
        for attempt in EVERY:
            if not attempt.control and not attempt.name.startswith("system call"):
                continue
            world.plant()
            outcome = nothing.run(world.fill_in(attempt.code), show_value=True)
            results[attempt.name] = (
                "" if world.got_out(outcome) else f"{outcome.stdout[-200:]} {outcome.stderr[-200:]}"
            )
    world.close()
    return {"level": "none", "attempts": results, "world": []}


def become(user: int) -> None:
    """Turn root into `user`, who is shown this interpreter even where it lies in root's own folder."""
    kernel.unshare(kernel.CLONE_NEWNS)
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    prefix = Path(sys.base_prefix).resolve()
    for closed in reversed(prefix.parents):
        if not closed.stat().st_mode & 0o001:
            aside = tempfile.mkdtemp(prefix="ayllu-python-", dir="/dev/shm")
            kernel.mount(str(prefix), aside, None, kernel.MS_BIND)
            kernel.mount("tmpfs", str(closed), "tmpfs", 0, "mode=755")
            prefix.mkdir(parents=True)
            kernel.mount(aside, str(prefix), None, kernel.MS_BIND)
            kernel.checked(kernel.LIBC.umount2(os.fsencode(aside), kernel.MNT_DETACH), "umount2")
            os.rmdir(aside)
            break
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    os.environ["HOME"] = "/nonexistent"
    kernel.prctl(kernel.PR_SET_DUMPABLE, 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--without", nargs="*", default=[])
    parser.add_argument("--user", type=int)
    parser.add_argument("--controls", action="store_true")
    options = parser.parse_args()
    if options.user is not None:
        become(options.user)
    print(json.dumps(control_all() if options.controls else attempt_all(options.without)))
