"""Accuracy against the tokens thought, under several bounds on them, for the report of a run.

The stages of a run don't measure this. `ayllu eval` does, and what it has left in the run's folder is shown:

    ayllu eval runs/NAME --tasks countdown3 --thinking-budget 0,16,64 --out runs/NAME/evaluation.json
    ayllu report runs/NAME
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ayllu.errors import BadFileError
from ayllu.files import read_json
from ayllu.report.charts import Series, line_chart
from ayllu.report.figures import figure

RESULTS = "evaluation.json"
KEPT = ("n", "correct", "score", "low", "high", "mean_tokens", "mean_thinking_tokens", "truncated")

Curves = dict[str, list[dict[str, Any]]]


def read_curves(folder: Path, weights_sha256: str | None) -> Curves:
    """The points of each task by rising bound, from the results of an evaluation in a run's folder.

    None of them where the file is damaged or has the results of other weights than the run's own: a report is
    written while the run goes on, and must not fail for what somebody has put there.
    """
    try:
        made = read_json(folder / RESULTS)
        if not weights_sha256 or made.get("weights_sha256") != weights_sha256:
            return {}
        curves = made.get("by_thinking_budget", {})
        return {task: _points(points) for task, points in curves.items() if len(points) > 1}
    except (OSError, BadFileError, AttributeError, KeyError, TypeError, ValueError):
        return {}


def _points(points: dict[str, Any]) -> list[dict[str, Any]]:
    found = [{"budget": int(b), **{key: point[key] for key in KEPT}} for b, point in points.items()]
    return sorted(found, key=lambda point: point["budget"])


def drawn(curves: Curves) -> str:
    """The figure: one line a task, with the interval of each point."""
    lines = []
    for i, (task, points) in enumerate(curves.items()):
        # By what was thought: a bound above what a model wants to think changes nothing.
        by_thought = sorted(points, key=lambda point: (point["mean_thinking_tokens"], point["budget"]))
        marks = tuple((float(p["mean_thinking_tokens"]), float(p["score"])) for p in by_thought)
        spread = tuple((float(p["low"]), float(p["high"])) for p in by_thought)
        lines.append(Series(task, marks, 1 + i % 4, spread=spread))
    chart = line_chart(
        "Accuracy against tokens thought",
        lines,
        x_label="tokens thought, mean of an answer",
        y_label="accuracy",
        percent=True,
        y_from=0.0,
        y_to=1.0,
    )
    return figure(
        chart,
        "Accuracy against tokens thought",
        "The same problems under several bounds on the tokens of thinking before an answer. Upright lines "
        "are the 95% Wilson intervals.",
    )
