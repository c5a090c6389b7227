"""What a call into the sandbox may use, how it ended, and which walls stood round it."""

from __future__ import annotations

from dataclasses import dataclass, field

WALLS = ("namespaces", "landlock", "seccomp", "privileges", "limits")
MiB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What one call may use. Bytes, seconds, counts."""

    seconds: float = 10.0  # wall-clock time
    cpu_seconds: float = 10.0  # of all its threads; whole seconds, at least 1
    memory: int = 512 * MiB  # address space, the interpreter's 40 MB included
    threads: int = 16  # there are no other processes at all
    open_files: int = 64
    file_bytes: int = 64 * MiB  # one file
    disk: int = 128 * MiB  # all of the work folder, what was there before included
    unseen: int = 512 * MiB  # by which the disk may get fuller beyond that: removed files may still be open
    entries: int = 1000  # files and folders in the work folder
    output: int = 64 * 1024  # bytes kept of stdout, and as many of stderr; more is cut in the middle


@dataclass(frozen=True)
class Outcome:
    """How a call ended. `exit` is the exit status, or None when it did not end by itself.

    `why_stopped`: None, or "time", "cpu", "disk", "output", "crash" (a fault of the process, such as a null
    pointer), "lost" (the sandbox itself broke off), "checkout" (the work folder, one that is kept, came to
    hold a `.git` or the like). The texts are what it printed, cut to the limit with a mark.
    """

    stdout: str
    stderr: str
    exit: int | None
    why_stopped: str | None
    seconds: float
    cpu_seconds: float = 0.0
    memory: int = 0  # bytes: peak of its resident pages

    @property
    def ok(self) -> bool:
        """Whether the code ran to its end with exit status 0."""
        return self.exit == 0 and self.why_stopped is None


@dataclass(frozen=True)
class Level:
    """Which walls stand. `name`: "full", "landlock" or "namespaces" (the other of the two is missing),
    "none"."""

    name: str
    walls: tuple[str, ...]
    missing: dict[str, str] = field(default_factory=dict)  # wall -> the kernel's reason
    user: int = -1  # the user id under which code runs
    landlock_abi: int = 0

    @property
    def safe(self) -> bool:
        """Whether model-written code may run at this level."""
        return self.name != "none"

    def __str__(self) -> str:
        text = f"sandbox level {self.name}: {', '.join(self.walls) or 'no walls'}; as user {self.user}"
        return text + "".join(f"; no {wall} ({why})" for wall, why in self.missing.items())


def level_of(walls: dict[str, str], user: int, abi: int) -> Level:
    standing = tuple(wall for wall in WALLS if not walls[wall])
    missing = {wall: why for wall, why in walls.items() if why}
    # Before ABI 3 Landlock doesn't govern truncation: alone it would let the interpreter's files be emptied.
    alone = ("namespaces",) if abi < 3 else ("namespaces", "landlock")
    apart = [wall for wall in alone if wall in standing]
    rest = {"seccomp", "privileges", "limits"} <= set(standing)
    safe = apart and rest and user != 0  # root without capabilities still owns the system's files
    name = "none" if not safe else "full" if len(apart) == 2 else apart[0]
    return Level(name, standing, missing, user, abi)


class Tape:
    """Output of unknown length, of which the beginning and the end are kept."""

    def __init__(self, limit: int) -> None:
        self.head, self.tail, self.total = bytearray(), bytearray(), 0
        self.keep_head = limit - limit // 4
        self.keep_tail = limit // 4

    def write(self, data: bytes) -> None:
        """Take in more bytes."""
        self.total += len(data)
        room = self.keep_head - len(self.head)
        self.head += data[:room]
        self.tail += data[room:] if room > 0 else data
        if len(self.tail) > 4 * self.keep_tail + 65536:
            del self.tail[: -self.keep_tail]

    def text(self) -> str:
        """What was kept, with a mark where something is missing. Bytes that are no UTF-8 are replaced."""
        lost = len(self.tail) - self.keep_tail
        lost = max(lost, 0) + self.total - len(self.head) - len(self.tail)
        if not lost:
            return bytes(self.head + self.tail).decode("utf-8", "replace")
        tail = self.tail[-self.keep_tail :] if self.keep_tail else b""
        mark = f"\n…[{lost} bytes of output cut]…\n"
        return self.head.decode("utf-8", "replace") + mark + bytes(tail).decode("utf-8", "replace")
