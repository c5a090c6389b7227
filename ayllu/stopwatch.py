"""How long the stages of a run have taken, through kills and restarts."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ayllu import machine
from ayllu.errors import AylluError, BadFileError
from ayllu.files import read_json, write_json

TICK = 2.0  # seconds between two writings: what a kill can make it forget


class Stopwatch:
    """Seconds spent in the stages that are not done yet, kept in a file through kills and restarts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.entries: dict[str, dict[str, Any]] = dict(read_json(path))
        except (FileNotFoundError, BadFileError, ValueError, TypeError):
            self.entries = {}

    def drop(self, stage: str) -> None:
        """Forget a stage that is done or set aside."""
        if self.entries.pop(stage, None) is not None:
            write_json(self.path, self.entries)

    @contextlib.contextmanager
    def running(
        self, stage: str, fingerprint: str, made_from: dict[str, Any], needs: dict[str, str]
    ) -> Iterator[dict[str, Any]]:
        """Count while the block runs; the entry it gives has `seconds` and `peak_memory_mb`."""
        entry = self.entries.setdefault(
            stage,
            {
                "fingerprint": fingerprint,
                "basis": made_from,
                "needs": needs,
                "seconds": 0.0,
                "peak_memory_mb": 0.0,
                "starts": 0,
            },
        )
        entry["starts"] += 1
        before, began = entry["seconds"], time.monotonic()
        peak_before, stop = entry["peak_memory_mb"], threading.Event()
        machine.reset_peak_memory()

        def note() -> None:
            entry["seconds"] = round(before + time.monotonic() - began, 3)
            entry["peak_memory_mb"] = round(max(peak_before, machine.peak_memory_mb()), 1)
            write_json(self.path, self.entries)

        def tick() -> None:
            while not stop.wait(TICK):
                with contextlib.suppress(AylluError, OSError):  # a full disk is the stage's to report
                    note()

        note()
        thread = threading.Thread(target=tick, name="run-clock", daemon=True)
        thread.start()
        try:
            yield entry
        finally:
            stop.set()
            thread.join()
            with contextlib.suppress(AylluError, OSError):
                note()
