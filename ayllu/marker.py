"""What a stage leaves behind: its files, and the marker that says that they are whole and from what.

The marker, `stage.json`, is written after everything else. It lists each file with size, time and hash:
a file whose size and time are unchanged is believed, any other is hashed again (as git's index does).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ayllu.errors import BadFileError
from ayllu.files import plain, read_json, sha256_json, write_text
from ayllu.stages import Plan, Stage, hash_files


def read_marker(stage: Stage, run: Path) -> dict[str, Any] | None:
    """A done stage's stage.json, or None when it is absent or not whole."""
    try:
        marker = read_json(stage.marker(run))
    except (FileNotFoundError, NotADirectoryError, BadFileError):
        return None
    wanted = ("fingerprint", "seconds", "result", "outputs", "needs", "basis")
    return marker if isinstance(marker, dict) and all(key in marker for key in wanted) else None


def of_recipe(stages: Sequence[Stage], plan: Plan, run: Path) -> dict[str, dict[str, Any]]:
    """The markers of the stages that are done and were made by this very recipe, up to the first that isn't:
    what stands behind it in the folder is another recipe's, until its turn comes."""
    found: dict[str, dict[str, Any]] = {}
    for stage in stages:
        marker = read_marker(stage, run)
        if marker is None:
            break
        settings = marker["basis"].get("settings", {})
        mine = {table: plan.recipe.get(table, {}) for table in settings}
        given, read = marker["basis"].get("given", {}), plan.recipe
        needs = {name: found[name]["fingerprint"] for name in stage.needs if name in found}
        if (
            _told(mine) != _told(settings)
            or any(read.get(name) != value for name, value in given.items())
            or any(marker["basis"].get("needs", {}).get(name) != made for name, made in needs.items())
        ):
            break
        found[stage.name] = marker
    return found


def _told(settings: Any) -> str:
    """Settings as a recipe's file has them, in which what is None isn't written."""

    def without_none(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without_none(item) for key, item in value.items() if item is not None}
        return [without_none(item) for item in value] if isinstance(value, list) else value

    return sha256_json(without_none(plain(settings)))


def made_by(marker: Mapping[str, Any]) -> str:
    """One hash over all files that a stage made."""
    return sha256_json({name: entry["sha256"] for name, entry in marker.get("outputs", {}).items()})


def damaged(marker: Mapping[str, Any], folder: Path) -> str:
    """What is wrong with the files that the marker lists; empty when nothing is."""
    for name in marker["outputs"]:
        if not (folder / name).is_file():
            return f"{name} is missing"
    now = hash_files([folder / name for name in marker["outputs"]], folder, marker["outputs"])
    altered = [n for n, entry in now.items() if entry["sha256"] != marker["outputs"][n]["sha256"]]
    return f"{altered[0]} has been altered" if altered else ""


def output_files(stage: Stage, run: Path) -> list[Path]:
    """The files that a stage made: all in its folder but its marker and dot files."""
    folder, marker = stage.folder(run), stage.marker(run)
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p != marker)
    return [p for p in files if not any(part.startswith(".") for part in p.relative_to(folder).parts)]


def used(stage: Stage, run: Path) -> bool:
    """Whether anything of the stage is there."""
    return any(p.is_dir() and any(p.iterdir()) for p in {stage.folder(run), stage.marker(run).parent})


def take_rows(metrics: Path, stage: str, target: Path) -> None:
    """Move a stage's rows of metrics.jsonl to `target`."""
    if not metrics.exists():
        return
    mine: list[str] = []
    others: list[str] = []
    for line in metrics.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # half a line, from a kill
            continue
        (mine if row.get("stage") == stage else others).append(line)
    if mine:
        write_text(target, "\n".join(mine) + "\n")
        write_text(metrics, "\n".join([*others, ""]))
