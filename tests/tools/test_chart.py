"""Charts: what makes one and what doesn't, the Vega-Lite, the picture."""

import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ayllu.tools.chart import KINDS, MAX_POINTS, chart_tool, from_csv, make_chart, save_in, vega_lite
from ayllu.tools.chart_png import COLOURS, SIZE, bins, png, ticks
from ayllu.tools.sql import Database, Table
from ayllu.tools.tool import Toolbox, ToolError

COLUMNS = ["month", "sales", "region"]
ROWS = [["2024-01-01", 3, "north"], ["2024-02-01", -1.5, "north"], ["2024-01-01", 7, "south"]]


def picture(chart):
    data, note = png(chart)
    image = Image.open(io.BytesIO(data))
    assert (image.format, image.size) == ("PNG", SIZE)
    return image.convert("RGB"), note


def near(image, colour):
    """How many pixels have about this colour."""
    wanted = tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))
    every = image.resize((200, 125)).getcolors(10**6)
    return sum(n for n, have in every if all(abs(a - b) < 40 for a, b in zip(have, wanted, strict=True)))


@pytest.mark.parametrize(
    ("kind", "scale", "groups", "mark"),
    [
        ("bar", "text", ["north", "south"], "bar"),
        ("line", "time", ["north", "south"], "line"),
        ("point", "time", ["north", "south"], "point"),
        ("area", "time", ["north", "south"], "area"),
    ],
)
def test_groups_are_told_apart(kind, scale, groups, mark):
    chart = make_chart(kind, COLUMNS, ROWS, colour="region", title="Sales")
    assert (chart.scale, chart.groups) == (scale, groups)
    spec = vega_lite(chart)
    assert spec["mark"]["type"] == mark and spec["encoding"]["color"]["field"] == "colour"
    assert spec["data"]["values"][1] == {"x": "2024-02-01", "y": -1.5, "colour": "north"}
    image, note = picture(chart)
    assert near(image, COLOURS[0]) and near(image, COLOURS[1]) and not near(image, COLOURS[2]) and not note
    json.dumps(spec, allow_nan=False)


def test_a_pie_and_a_histogram():
    pie = make_chart("pie", ["part", "share"], [["a", 1], ["b", 3]])
    spec = vega_lite(pie)
    assert spec["mark"]["type"] == "arc" and spec["encoding"]["theta"]["field"] == "y"
    image, _ = picture(pie)
    small, large = near(image, COLOURS[0]), near(image, COLOURS[1])
    assert 2 < large / small < 4
    histogram = make_chart("histogram", ["size"], [[n % 7] for n in range(50)])
    assert vega_lite(histogram)["encoding"]["y"]["aggregate"] == "count"
    assert near(picture(histogram)[0], COLOURS[0]) > 1000


def test_a_higher_bar_is_a_higher_bar():
    image, _ = picture(make_chart("bar", ["x", "y"], [["a", 10], ["b", 5]]))
    column = [
        sum(image.getpixel((x, y))[2] > 150 > image.getpixel((x, y))[0] for y in range(SIZE[1]))
        for x in (250, 600)
    ]
    assert column[0] == pytest.approx(2 * column[1], rel=0.03)


def test_names_of_columns_and_texts_are_only_texts():
    evil = "datum['x'] || <b>\x1b[31m\n{{x}}"
    chart = make_chart("bar", [evil, "y[0].z"], [[evil, 1]], title=evil)
    spec = vega_lite(chart)
    assert {spec["encoding"][name]["field"] for name in "xy"} == {"x", "y"}
    assert "\n" not in spec["title"]
    picture(chart)


def test_letters_of_other_scripts():
    chart = make_chart("bar", ["నెల", "Größe"], [["జనవరి", 1], ["März", 2]], title="అమ్మకాలు")
    assert vega_lite(chart)["encoding"]["x"]["title"] == "నెల"
    _, note = picture(chart)
    assert note in ("", "this machine has no font for some of its letters")
    assert picture(make_chart("bar", ["a", "Größe"], [["März", 2]]))[1] == ""


@pytest.mark.parametrize(
    ("kind", "columns", "rows", "options", "why"),
    [
        ("donut", ["a", "b"], [["x", 1]], {}, "kind must be"),
        ("bar", ["a", "b"], [], {}, "no rows"),
        ("bar", ["a"], [["x"]], {}, "only 1 columns"),
        ("bar", ["a", "b"], [["x", "y"]], {}, "no number"),
        ("bar", ["a", "b"], [["x", None]], {}, "both x and y"),
        ("bar", ["a", "b"], [["x", True]], {}, "no number"),
        ("bar", ["a", "b"], [["x", float("inf")]], {}, "no number"),
        ("bar", ["a", "b"], [["x", 1], ["x", 2]], {}, "several rows"),
        ("bar", ["a", "b"], [["x", 1]], {"y": "c"}, "no column c; columns: a, b"),
        ("bar", ["a", "b"], [[str(n), 1] for n in range(61)], {}, "more than 60"),
        (
            "line",
            ["a", "b", "c"],
            [[n, 1, str(n)] for n in range(11)],
            {"colour": "c"},
            "more than 10 groups",
        ),
        ("point", ["a", "b"], [[n, 1] for n in range(MAX_POINTS + 1)], {}, "more than 1000 rows"),
        ("pie", ["a", "b"], [["x", -1], ["y", 2]], {}, "not negative"),
        ("pie", ["a", "b"], [["x", 0]], {}, "not all 0"),
        ("histogram", ["a"], [["x"]], {}, "no number"),
        ("histogram", ["a", "b"], [[1, 2]], {"y": "b"}, "x alone"),
    ],
)
def test_what_makes_no_chart_is_said(kind, columns, rows, options, why):
    with pytest.raises(ToolError, match=why):
        make_chart(kind, columns, rows, **options)


cells = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["2024-01-01", "x", "అ", ""])
)


@settings(deadline=None, max_examples=25)
@given(
    kind=st.sampled_from(KINDS),
    rows=st.lists(st.tuples(cells, st.integers(-(10**6), 10**6) | st.floats(), cells), max_size=6),
    colour=st.sampled_from(["", "c"]),
)
def test_any_rows_make_a_chart_or_an_error_for_the_model(kind, rows, colour):
    try:
        chart = make_chart(kind, ["a", "b", "c"], rows, colour=colour)
    except ToolError:
        return
    json.dumps(vega_lite(chart), allow_nan=False)
    picture(chart)


@given(st.floats(-1e9, 1e9), st.floats(0, 1e9))
def test_ticks_are_round_and_reach_round(low, span):
    marks = ticks(low, low + span)
    assert 2 <= len(marks) <= 12
    slack = 1e-6 * max(abs(low), span, 1)
    assert marks[0] <= low + slack and marks[-1] >= low + span - slack


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60))
def test_every_value_is_in_one_bin(values):
    assert sum(count for _, _, count in bins(values)) == len(values)


def test_csv():
    assert from_csv("a,b\n1,x\n2.5,\n") == (["a", "b"], [[1, "x"], [2.5, None]])
    assert from_csv('a,b\n"x, y",-3')[1] == [["x, y", -3]]
    for wrong in ("a,b", "", "a,b\n1", 'a,b\n"x'):
        with pytest.raises(ToolError):
            from_csv(wrong)


def test_the_tool_asks_the_database_and_keeps_files(tmp_path):
    table = Table("sales", [("month", "text"), ("amount", "integer")], [("May", 3), ("June", 5)])
    box = Toolbox([chart_tool(save_in(tmp_path), Database([table]))])
    arguments = {"kind": "bar", "query": "SELECT month, amount FROM sales", "title": "Sales"}
    result = box.run("chart", json.dumps(arguments))
    assert result.text == (
        "bar chart, 2 points, x month (text), y amount from 3 to 5: chart-1.json, chart-1.png"
    ), result.text
    assert json.loads((tmp_path / "chart-1.json").read_text())["title"] == "Sales"
    with Image.open(tmp_path / "chart-1.png") as picture:
        assert picture.size == SIZE
    again = box.run("chart", json.dumps({"kind": "line", "data": "a,b\n1,2\n2,3"}))
    assert "chart-2.png" in again.text
    for wrong in (
        {"kind": "bar"},
        {"kind": "bar", "query": "SELECT 1", "data": "a,b\n1,2"},
        {"kind": "bar", "query": "SELECT nothing"},
        {"kind": "line", "query": f"SELECT i, i FROM range({MAX_POINTS + 1}) r(i)"},
    ):
        assert box.run("chart", json.dumps(wrong)).text.startswith("error: ")
    many = box.run(
        "chart", json.dumps({"kind": "histogram", "query": f"SELECT i FROM range({MAX_POINTS}) r(i)"})
    )
    assert f"{MAX_POINTS} points" in many.text  # a chart takes more rows than a model would read
    bare = Toolbox([chart_tool(save_in(tmp_path))]).run(
        "chart", json.dumps({"kind": "bar", "query": "SELECT 1"})
    )
    assert "no tables" in bare.text
