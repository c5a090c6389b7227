"""The loop round the training step: resume, checkpoints, metrics, progress.

What a step trains on is a function of the seed and the step's number alone, so that a resumed run
repeats nothing and skips nothing. Metrics of steps that were lost with a kill are cut off again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ayllu.files import append_line, make_folder, write_text
from ayllu.model.decoder import Decoder
from ayllu.stage import StageContext
from ayllu.train.checkpoint import load_checkpoint, save_checkpoint
from ayllu.train.optim import Optimizer

CHECKPOINT_SECONDS = 20.0


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
    checkpoint_seconds: float = CHECKPOINT_SECONDS

    def run(self, step: Callable[[int], dict[str, Any]], *, note: Callable[[dict[str, Any]], str]) -> None:
        """Call `step(n)` for the steps that are left; each returns a metrics row."""
        folder = make_folder(self.context.folder / "checkpoints")
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
            if number + 1 == self.steps or time.monotonic() - saved > self.checkpoint_seconds:
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
