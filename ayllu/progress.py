"""Progress of a stage on stderr: how far, how fast, how long still.

On a terminal one line is repainted; elsewhere (a log, CI) a plain line appears every few seconds.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path


def clock(seconds: float) -> str:
    """`75` -> `1:15`, `3675` -> `1:01:15`."""
    minutes, rest = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Prints what a stage is doing. `quiet` keeps everything to the log file."""

    def __init__(self, stage: str, *, quiet: bool = False, log: Path | None = None) -> None:
        self.stage, self.quiet, self.log = stage, quiet, log
        self.tty = sys.stderr.isatty()
        self.total, self.unit, self.first = 0, "", 0
        self.began = self.painted = 0.0

    def start(self, total: int, unit: str, done: int = 0) -> None:
        """Begin counting to `total` units; `done` were finished before (a resumed stage)."""
        self.total, self.unit, self.first = total, unit, done
        self.began, self.painted = time.monotonic(), 0.0

    def update(self, done: int, note: str = "") -> None:
        """`done` units are finished. Cheap to call often."""
        now = time.monotonic()
        if done < self.total and now - self.painted < (0.2 if self.tty else 5.0):
            return
        self.painted = now
        elapsed, made = now - self.began, done - self.first
        left = f"{clock(elapsed / made * (self.total - done))} left" if made > 0 else ""
        share = 100 * done // max(self.total, 1)
        counted = f"{done}/{self.total} {self.unit}"
        line = f"{self.stage:>9} {share:3d}%  {counted}  {clock(elapsed)}  {left}  {note}"
        self._print(line.rstrip(), rewrite=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        self._print(f"{self.stage:>9} {text}", rewrite=False)

    finish = say

    def _print(self, line: str, *, rewrite: bool) -> None:
        if self.log is not None:
            # A log that can't be written stops nothing: a full disk is the stage's own writes to report.
            with contextlib.suppress(OSError), open(self.log, "a", encoding="utf-8") as file:
                file.write(line + "\n")
        if self.quiet:
            return
        if self.tty:
            sys.stderr.write("\r\x1b[2K" + line[:200] + ("" if rewrite else "\n"))
        else:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()


@contextlib.contextmanager
def every(seconds: float, work: Callable[[], object]) -> Iterator[None]:
    """Do `work` again and again while the block runs, that long apart (longer where it takes long itself), in
    a thread. What fails is left for the next time; the block's end waits for one that has begun."""
    done, pause = threading.Event(), seconds

    def again() -> None:
        nonlocal pause
        while not done.wait(pause):
            begun = time.monotonic()
            with contextlib.suppress(Exception):  # it is beside the work that matters
                work()
            pause = max(seconds, 20 * (time.monotonic() - begun))

    thread = threading.Thread(target=again, daemon=True)
    try:
        thread.start()
        yield
    finally:
        done.set()
        if thread.ident is not None:
            thread.join()
