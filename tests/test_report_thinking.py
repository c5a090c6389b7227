"""The report of a run shows accuracy against tokens thought, where `ayllu eval` has left it in its folder."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from report_cases import RECIPE, Reader, finished_stages
from report_cases import run as run

from ayllu.report import charts, write_report
from ayllu.report.thinking import RESULTS

WEIGHTS = "cd" * 32  # as finished_stages() has it


def point(share: float, thought: float) -> dict[str, Any]:
    """What an evaluation keeps of one bound, with more than the report shows."""
    return {
        "n": 200, "correct": int(200 * share), "score": share, "low": share - 0.05, "high": share + 0.05,
        "mean_tokens": thought + 9, "mean_thinking_tokens": thought, "truncated": 3, "samples": [],
    }  # fmt: skip


def results(**changed: Any) -> dict[str, Any]:
    points = {"0": point(0.2, 0.0), "16": point(0.45, 14.2), "256": point(0.8, 61.5), "64": point(0.7, 48.0)}
    return {
        "weights_sha256": WEIGHTS,
        "results": {},
        "by_thinking_budget": {"countdown3": points, "arithmetic": {"16": point(0.9, 12.0)}},
    } | changed


def shown(run: Path, made: object) -> tuple[dict[str, Any], str]:
    """report.json and report.html with `made` in the run's folder."""
    text = made if isinstance(made, str) else json.dumps(made)
    (run / RESULTS).write_text(text, encoding="utf-8")
    write_report(run, RECIPE, finished_stages())
    page = (run / "report.html").read_text(encoding="utf-8")
    return json.loads((run / "report.json").read_text(encoding="utf-8")), page


def test_the_curve_of_the_runs_own_weights_is_drawn(tmp_path: Path) -> None:
    report, page = shown(tmp_path, results())
    found = report["thinking"]
    assert list(found) == ["countdown3"], "a single point is no curve"
    assert [p["budget"] for p in found["countdown3"]] == [0, 16, 64, 256] and "samples" not in found[
        "countdown3"
    ][0]
    text = Reader(page).text
    assert "Accuracy against thinking" in text and "tokens thought, mean of an answer" in text
    assert "65.0% – 75.0%" in text and "countdown3 80%" in text
    svg = re.search(r'<svg[^>]*aria-label="Accuracy against tokens thought".*?</svg>', page)
    assert svg and svg[0].count("whisker") == 4 * 3


def test_other_weights_and_damage_are_left_out(tmp_path: Path) -> None:
    write_report(tmp_path, RECIPE, finished_stages())
    plain = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Accuracy against thinking" not in plain
    broken = results(by_thinking_budget={"countdown3": {"0": {}, "x": {}}})
    for made in (results(weights_sha256="ef" * 32), results(weights_sha256=None), "{half", [], broken):
        report, page = shown(tmp_path, made)
        assert "thinking" not in report and page == plain
    (tmp_path / RESULTS).write_text(json.dumps(results(weights_sha256=None)), encoding="utf-8")
    write_report(tmp_path, RECIPE, {})  # not released: nothing says whose weights they are
    assert "Accuracy against thinking" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_names_of_tasks_are_escaped(tmp_path: Path) -> None:
    curves = {"<script>alert(1)</script>": results()["by_thinking_budget"]["countdown3"]}
    _, page = shown(tmp_path, results(by_thinking_budget=curves))
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page


def test_an_interval_stands_at_its_point_inside_the_frame() -> None:
    points, spread = ((0.0, 0.5), (10.0, 0.6)), ((0.1, 0.9), (0.4, 0.8))
    drawn = charts.line_chart("t", [charts.Series("a", points, spread=spread)], x_label="x")
    lines = [node.attrib for node in ElementTree.fromstring(drawn).iter() if node.get("class") == "whisker"]
    upright = [line for line in lines if line["x1"] == line["x2"]]
    (path,) = [node.attrib["d"] for node in ElementTree.fromstring(drawn).iter() if node.tag.endswith("path")]
    places = [tuple(map(float, pair.split(","))) for pair in path[1:].split()]
    assert len(lines) == 6 and len(upright) == 2
    for (x, y), line in zip(places, upright, strict=True):
        assert float(line["x1"]) == x and float(line["y2"]) < y < float(line["y1"])
    assert all(14 <= float(line[key]) <= 246 for line in lines for key in ("y1", "y2"))
    assert "whisker" not in charts.line_chart("t", [charts.Series("a", points)], x_label="x")


@pytest.mark.parametrize("percent", [True, False])
def test_wide_intervals_stretch_the_axis(percent: bool) -> None:
    series = charts.Series("a", ((0.0, 0.5),), spread=((0.0, 1.0),))
    drawn = charts.line_chart("t", [series], x_label="x", percent=percent)
    upright = next(n for n in ElementTree.fromstring(drawn).iter() if n.get("class") == "whisker").attrib
    assert float(upright["y1"]) - float(upright["y2"]) > 150
