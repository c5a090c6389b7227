"""Tasks by name, and which settings each one goes by.

Everything that can be wrong with a name or with a test set's files is found here, before a model is loaded.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from ayllu.errors import InputNotFoundError, RecipeValueError, UsageError
from ayllu.evals.examine import SHOWN, ExamSettings
from ayllu.evals.items import Item
from ayllu.evals.official import GROUPS, OFFICIAL, Official, files_of, load, text_task, with_shots
from ayllu.reason.practice import EXAMS, RESAMPLED
from ayllu.reason.tasks.gsm8k import training_files

# The settings that a form of task goes by.
_DRAWN = ("n", "seed")
_ASKED = (*_DRAWN, "ask_as")
_ANSWERED = (*_ASKED, "samples", "temperature", "max_tokens", "thinking_budget")
_USES = {
    "choice": (*_ASKED, "shots"), "mass": (*_ASKED, "shots"), "bits": _DRAWN, "program": _ANSWERED,
    "answer": (*_ANSWERED, "shots"),
}  # fmt: skip


@dataclass(frozen=True)
class Named:
    """A task by its name: an official set with its rows and files, or a family (`official` None)."""

    name: str
    official: Official | None = None
    rows: tuple[Item, ...] = ()
    files: tuple[Path, ...] = ()

    @property
    def uses(self) -> tuple[str, ...]:
        """The settings that its result depends on."""
        return _USES[self.official.form if self.official is not None else "answer"]


def task_names() -> dict[str, str]:
    """Every name that --tasks takes, with what it is."""
    named = {task.name: task.title for task in OFFICIAL.values()}
    groups = {name: ", ".join(members) for name, members in GROUPS.items()}
    groups["official"] = "all official sets"
    return {
        **named,
        **groups,
        **dict.fromkeys(EXAMS, "family"),
        "families": "all families",
        "text:PATH": "text",
    }


def find_tasks(names: Sequence[str], data: Path | None, settings: ExamSettings) -> list[Named]:
    """Tasks in the order given, each once, official sets read. UsageError for a name that isn't there,
    InputNotFoundError and BadFileError for data."""
    wanted: dict[str, None] = {}
    for name in names:
        if name == "families":
            given = data is not None and bool(_resampled_files(data))
            wanted |= dict.fromkeys(f for f in EXAMS if RESAMPLED.family not in f or given)
        elif name in GROUPS:
            wanted |= dict.fromkeys(GROUPS[name])
        elif name in OFFICIAL or _is_family(name) or name.startswith("text:"):
            wanted[name] = None
        else:
            raise _no_such_task(name)
    if not wanted:
        raise UsageError("there are no tasks", fix="name some with --tasks, as in: --tasks gsm8k,mmlu")
    return [_named(name, data, settings) for name in wanted]


def _is_family(name: str) -> bool:
    """UsageError for a family of others that isn't one, with their reasons."""
    try:
        return name in EXAMS
    except RecipeValueError as error:
        raise UsageError(error.what, why=error.why, fix=error.fix) from error


def _no_such_task(name: str) -> UsageError:
    known = task_names()
    near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1, cutoff=0.5)
    fix = f"did you mean {near[0]}?" if near else f"choose from {', '.join(known)}"
    return UsageError(f"there is no task {name!r}", fix=fix)


def _named(name: str, data: Path | None, settings: ExamSettings) -> Named:
    task = text_task(name.removeprefix("text:")) if name.startswith("text:") else OFFICIAL.get(name)
    if task is None:
        if RESAMPLED.family not in name:
            return Named(name)
        folder = _needed(name, data)
        RESAMPLED.read([folder / "gsm8k"])
        return Named(name, files=_resampled_files(folder))
    folder = (data or Path()) if task.layout == "file" else _needed(name, data)
    shown = settings.shots if settings.shots is not None else task.shots
    files = tuple(files_of(task, folder, shots=shown))
    rows = load(task, folder)
    if task.form in SHOWN:
        with_shots(task, folder, rows, shown, settings.seed)  # what is wrong with the examples
    return Named(name, task, tuple(rows), files)


def _resampled_files(data: Path) -> tuple[Path, ...]:
    return tuple(training_files(data / "gsm8k"))


def _needed(name: str, data: Path | None) -> Path:
    if data is None:
        raise InputNotFoundError(
            f"{name} needs its data",
            why="the project ships no test sets",
            fix="name their folder with --data FOLDER; docs/evaluation.md says what lies where",
        )
    if not data.is_dir():
        raise InputNotFoundError(f"there is no folder {data}", fix="name the folder with the test sets")
    return data


def check_uses(named: Sequence[Named], settings: ExamSettings, verifier: Path | None) -> None:
    """UsageError for a setting that none of the tasks goes by."""
    given = {field.name for field in fields(settings) if getattr(settings, field.name) != field.default}
    idle = sorted(given - {"seed"} - {name for task in named for name in task.uses})
    if verifier is not None and not any("samples" in task.uses for task in named):
        idle.append("verifier")
    if idle:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in idle)
        tasks = ", ".join(task.name for task in named)
        raise UsageError(f"{names}: of no effect on {tasks}", fix=f"leave {names} out, or add other tasks")
