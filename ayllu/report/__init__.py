"""The report of a run: report.json for programs, report.html for people.

Both are made from what the stages wrote down and from nothing else; a stage that has not finished is
named as missing. summary.py decides what the report says, page.py how it looks, charts.py draws.

    write_report(folder, recipe, stages)     # stages[name] = {"seconds", "peak_memory_mb", "result"}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ayllu.files import write_json, write_text
from ayllu.report.page import page
from ayllu.report.summary import read_metrics, summarise
from ayllu.report.thinking import read_curves


def write_report(folder: Path, recipe: dict[str, Any], stages: dict[str, dict[str, Any]]) -> None:
    """Write report.json and report.html into the run folder `folder` (each one whole or not at all).

    `stages` holds the finished stages only: seconds of wall time, peak resident memory in MB, and the
    stage's result. The curves come from metrics.jsonl in the same folder, if there is one, and accuracy
    against thinking from what `ayllu eval` has left there (thinking.py).
    Errors: DiskFullError, FolderReadOnlyError.
    """
    report = summarise(recipe, stages)
    if curves := read_curves(folder, report["weights_sha256"]):
        report["thinking"] = curves
    write_json(folder / "report.json", report)
    write_text(folder / "report.html", page(folder.name, report, read_metrics(folder / "metrics.jsonl")))
