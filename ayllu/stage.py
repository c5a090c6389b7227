"""What a stage of a run is given, and how its settings are declared.

A stage is a plain function `(StageContext, Settings) -> dict`. The settings dataclass stands beside
the stage's code; `bounded` and `one_of` put the bounds next to the default, so that a recipe can be
checked (and explained) without a second list.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ayllu.progress import Progress


@dataclass(frozen=True)
class StageContext:
    """The surroundings of one stage."""

    folder: Path  # the stage's own folder; exists
    inputs: dict[str, Path]  # folders of the stages it needs, by stage name
    seed: int
    threads: int
    device: str  # "cpu" or "cuda"
    progress: Progress
    metrics: Path  # the run's metrics.jsonl
    root: Path  # what relative paths in the recipe refer to


def bounded(default: Any, low: float, high: float, help: str) -> Any:
    """A number with inclusive bounds."""
    return field(default=default, metadata={"low": low, "high": high, "help": help})


def one_of(default: Any, choices: tuple[Any, ...], help: str) -> Any:
    """A value from a fixed set."""
    return field(default=default, metadata={"choices": choices, "help": help})


def free(default: Any, help: str) -> Any:
    """A value without bounds (a path, a list of names)."""
    return field(default=default, metadata={"help": help})


def further(help: str) -> Any:
    """A table of shares by name (0 to 1), empty by default."""
    return field(default_factory=dict, metadata={"low": 0.0, "high": 1.0, "help": help})
