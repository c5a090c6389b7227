"""The report's charts: sound SVG, inside its frame, with the values where they are."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_cases import points_of

from ayllu.report import charts

numbers = st.floats(-1e9, 1e9, allow_nan=False)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=60), st.booleans())
def test_every_chart_is_sound_xml_inside_its_frame(points: list[tuple[float, float]], noisy: bool) -> None:
    series = charts.Series("a<b & c", charts.finite(points), 1, noisy)
    svg = charts.line_chart("<title>", [series], x_label="step", levels=[charts.Level("xz", 2.0)])
    for path in points_of(svg):
        assert all(0 <= x <= 720 and 0 <= y <= 280 for x, y in path)


def test_a_rising_series_is_drawn_rising() -> None:
    points = tuple((float(i), i * i / 10) for i in range(20))
    (path,) = points_of(charts.line_chart("t", [charts.Series("", points)], x_label="x"))
    assert [x for x, _ in path] == sorted(x for x, _ in path)
    assert [y for _, y in path] == sorted((y for _, y in path), reverse=True)  # SVG's y points down


def test_no_points_no_chart() -> None:
    assert (
        charts.line_chart("t", [charts.Series("", charts.finite([(1, None), ("a", 2)]))], x_label="x") == ""
    )
    assert charts.interval_chart("t", []) == ""
    assert charts.share_strip("t", [("text", 0.0)]) == ""


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 8))
def test_ticks_are_round_few_and_inside(low: float, span: float, about: int) -> None:
    marks = charts.ticks(low, low + span, about)
    slack = span * 1e-6 + 1e-9
    assert all(low - slack <= mark <= low + span + slack for mark in marks)
    assert len(marks) <= 2 * about + 1


@given(st.lists(numbers, min_size=1, max_size=2000))
def test_thinning_keeps_the_mean(values: list[float]) -> None:
    points = tuple((float(i), v) for i, v in enumerate(values))
    thinned = charts.thin(points, 300)
    assert len(thinned) <= 300
    if len(values) % math.ceil(len(values) / 300) == 0:
        mean = sum(v for _, v in thinned) / len(thinned)
        assert mean == pytest.approx(sum(values) / len(values), rel=1e-6, abs=1e-3)


def test_intervals_are_drawn_where_they_are() -> None:
    bar = charts.Interval("after RL", 0.5, 0.4, 0.6, 2)
    svg = ElementTree.fromstring(charts.interval_chart("t", [("task", [bar])]))
    rect = next(node for node in svg.iter() if node.attrib.get("class") == "bar c2")
    whisker = next(node for node in svg.iter() if node.attrib.get("class") == "whisker")
    left, width = float(rect.attrib["x"]), float(rect.attrib["width"])
    assert float(whisker.attrib["x1"]) == pytest.approx(left + width * 0.8, abs=0.2)
    assert float(whisker.attrib["x2"]) == pytest.approx(left + width * 1.2, abs=0.2)
