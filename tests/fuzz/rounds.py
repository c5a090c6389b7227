"""Starts a worker, and another behind the case that killed it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# One arena and no second pool of threads: they only reserve address space.
SURROUNDINGS = {
    "MALLOC_ARENA_MAX": "1",
    "OMP_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "0",
}


@dataclass
class Round:
    """What became of some cases."""

    cases: int = 0
    read: int = 0
    refused: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)
    next_seed: int = 0

    def add(self, other: Round) -> None:
        """Count both together."""
        self.cases, self.read = self.cases + other.cases, self.read + other.read
        self.refused += other.refused
        self.failures += other.failures


def run(
    first: int, count: int, until: float, kinds: list[str] | None = None, *, worker: str = "tests.fuzz.worker"
) -> Round:
    """Cases `first` to `first + count`, until the monotonic time `until`; a crash is a failure, too."""
    total, seed = Round(next_seed=first), first
    while seed < first + count and time.monotonic() < until:
        with tempfile.NamedTemporaryFile(prefix="ayllu-fuzz-at-") as note:
            left = [str(seed), str(first + count - seed), str(until - time.monotonic()), note.name]
            done = subprocess.run(
                [sys.executable, "-m", worker, *left, *(kinds or [])],
                cwd=ROOT,
                env=os.environ | SURROUNDINGS,
                capture_output=True,
                text=True,
                check=False,
            )
            at = note.read()
        outcome: dict[str, int] | None = None
        for line in done.stdout.splitlines():
            said = json.loads(line)
            outcome = said.get("outcome", outcome)
            total.failures += [] if "outcome" in said else [said]
        if outcome is not None:
            part = Round(outcome.get("cases", 0), outcome.get("read", 0), outcome.get("refused", 0))
            total.add(part)
            total.next_seed = seed + part.cases
            break
        why = f"ended with {done.returncode}: {done.stderr[-1500:]}"
        if not at:
            total.failures.append({"seed": seed, "kind": "the worker itself", "failure": why})
            break
        total.failures.append({"seed": int(at), "kind": "crash", "failure": why})
        total.cases += int(at) + 1 - seed
        total.next_seed = seed = int(at) + 1
    return total
