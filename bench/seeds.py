"""Several runs of one recipe, one line for each family: `python bench/seeds.py runs/one runs/two ...`

From the runs' own reports (a run's folder, or its report.json alone): right answers before and after RL, in
per cent, for every run, their mean, and the 95 % interval of the mean from its spread between the runs
(Student's t). Runs of other recipes or other versions of the code are refused: such figures don't belong into
one mean. Times stand with their machines, which may differ.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

from ayllu.errors import AylluError, UsageError
from ayllu.files import read_json
from ayllu.progress import clock

STAGES = ("sft", "rl")
# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def spread(values: list[float]) -> tuple[float, float]:
    """Mean of two values or more, and half of its 95 % interval."""
    t = _T[min(len(values) - 1, len(_T)) - 1]
    return statistics.fmean(values), t * statistics.stdev(values) / len(values) ** 0.5


def comparable(reports: list[dict[str, Any]]) -> None:
    """UsageError unless there are several runs, finished, that differ in their seed alone."""
    if len(reports) < 2:
        raise UsageError("one run has no spread", fix="name several runs of one recipe")
    if not all(report["finished"] for report in reports):
        raise UsageError("a run isn't finished", fix="finish it with ayllu make")
    if len({report["seed"] for report in reports}) < len(reports):
        raise UsageError("two runs have the same seed")
    first, *others = (
        {k: v for k, v in report["recipe"].items() if k not in ("seed", "threads", "device")}
        for report in reports
    )
    if any(other != first for other in others):
        raise UsageError("the runs differ in their recipe")
    if not all(report.get("code") for report in reports):
        raise UsageError(
            "a report doesn't say by which versions of the code it was made",
            fix="ayllu report RUN writes it anew",
        )
    if any(report["code"] != reports[0]["code"] for report in reports):
        raise UsageError("the runs were made by different versions of the code")


def lines(reports: list[dict[str, Any]]) -> list[str]:
    """The table in Markdown."""
    seeds = " ".join(str(report["seed"]) for report in reports)
    found = [f"| family | before RL (seeds {seeds}) | mean | after RL | mean |", "|---|---|---|---|---|"]
    for family in reports[0]["evals"]:
        cells = []
        for stage in STAGES:
            values = [100 * report["evals"][family][stage]["accuracy"] for report in reports]
            mean, half = spread(values)
            cells += [" ".join(f"{value:.1f}" for value in values), f"{mean:.1f} ± {half:.1f}"]
        found.append(f"| {family} | " + " | ".join(cells) + " |")
    stages = [
        report["evals"][family][stage] for report in reports for family in report["evals"] for stage in STAGES
    ]
    valid, every = (sum(each[name] for each in stages) for name in ("valid_calls", "calls"))
    times = "; ".join(f"{clock(report['wall_seconds'])} on {_machine(report)}" for report in reports)
    return [*found, "", f"{valid:,} of {every:,} calls valid. In all: {times}"]


def _machine(report: dict[str, Any]) -> str:
    found = report["machine"]
    return f"{found['threads']} threads of {found['chip']} ({', '.join(found['features'])})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="runs of one recipe with different seeds")
    wish = parser.parse_args()
    try:
        reports = [read_json(run / "report.json" if run.is_dir() else run) for run in wish.runs]
        if not all(isinstance(report, dict) and "finished" in report for report in reports):
            raise UsageError("a file is no report of a run", fix="name run folders, or their report.json")
        comparable(reports)
    except (AylluError, OSError) as error:
        sys.exit(f"seeds.py: {error}")
    print("\n".join(lines(reports)))


if __name__ == "__main__":
    main()
