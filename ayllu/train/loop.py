"""The loop round the training step: resume, checkpoints, metrics, progress.

What a step trains on is a function of the seed and the step's number alone, so that a resumed run
repeats nothing and skips nothing. Metrics of steps that were lost with a kill are cut off again.

A checkpoint is written every 20 seconds, which is the most that a kill can cost; the environment
variable AYLLU_CHECKPOINT_SECONDS (0.1 to 60) sets another interval, as for a slow disk. Checkpoints
are working memory, not results: their folder begins with a dot and goes when the stage is done.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ayllu import machine
from ayllu.errors import UsageError
from ayllu.files import append_line, make_folder, write_text
from ayllu.model.decoder import Decoder
from ayllu.stage import StageContext
from ayllu.train.checkpoint import load_checkpoint, save_checkpoint
from ayllu.train.optim import Optimizer

CHECKPOINT_SECONDS = 20.0
CHECKPOINTS = ".checkpoints"


def checkpoint_seconds() -> float:
    """The interval between checkpoints. UsageError when AYLLU_CHECKPOINT_SECONDS is out of bounds."""
    text = os.environ.get("AYLLU_CHECKPOINT_SECONDS", "")
    if not text:
        return CHECKPOINT_SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 60:
        raise UsageError(
            f"AYLLU_CHECKPOINT_SECONDS = {text!r} is not possible", fix="give a number from 0.1 to 60"
        )
    return seconds


@dataclass
class Loop:
    """One training stage on its way. `state` is whatever the stage wants to find again (JSON)."""

    context: StageContext
    stage: str
    model: Decoder
    optimizer: Optimizer
    steps: int
    state: dict[str, Any] = field(default_factory=dict)
    on_resume: Callable[[dict[str, Any]], None] = lambda state: None

    def run(self, step: Callable[[int], dict[str, Any]], *, note: Callable[[dict[str, Any]], str]) -> None:
        """Call `step(n)` for the steps that are left; each returns a metrics row."""
        machine.keep_memory()
        folder = make_folder(self.context.folder / CHECKPOINTS)
        interval = checkpoint_seconds()
        found = load_checkpoint(folder, self.model, self.optimizer, self.context.progress)
        first = found.step if found else 0
        if found:
            self.state.update(found.state)
            self.on_resume(self.state)
            self.context.progress.say(f"goes on from step {first} of {self.steps}")
        cut_metrics(self.context.metrics, self.stage, first)
        self.context.progress.start(self.steps, "steps", first)
        saved = time.monotonic()
        for number in range(first, self.steps):
            row = step(number)
            head = {"stage": self.stage, "step": number + 1, "steps": self.steps}
            append_line(self.context.metrics, json.dumps(head | row))
            self.context.progress.update(number + 1, note(row))
            if number + 1 == self.steps or time.monotonic() - saved > interval:
                save_checkpoint(folder, number + 1, self.model, self.optimizer, self.state)
                saved = time.monotonic()


def cut_metrics(path: Path, stage: str, steps: int) -> None:
    """Drop a stage's rows after `steps` (they belong to work that was lost) and a torn last line."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if row.get("stage") != stage or row.get("step", 0) <= steps:
            kept.append(line)
    write_text(path, "".join(line + "\n" for line in kept))
