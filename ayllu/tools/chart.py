"""The tool `chart`: a picture of a result, in a small fixed grammar (Wilkinson 1999).

    kind    bar, line, area, point, pie, histogram
    data    a query, or rows given as CSV
    x, y    columns (the first two if not named); a histogram has x alone
    colour  a third column that tells groups apart

A model chooses words from lists and names of columns: nothing that it writes is run, and only its title and
the values are shown, as text. Out come Vega-Lite (JSON, for a page that draws it; Satyanarayan et al. 2017)
and a PNG (`chart_png.py`), both from the same Chart. In the Vega-Lite the fields are called x, y and colour,
whatever the columns are called, so that a column's name can't be read as a path or an expression.
"""

from __future__ import annotations

import csv
import datetime
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ayllu.files import write_bytes, write_json
from ayllu.tools.sql import Database, value_text
from ayllu.tools.tool import Tool, ToolError

KINDS = ("bar", "line", "area", "point", "pie", "histogram")
MAX_POINTS, MAX_GROUPS, MAX_SLICES, MAX_BARS = 1000, 10, 12, 60
MAX_TEXT = 80  # characters of a title or a name
_MARKS = {"pie": "arc", "histogram": "bar"}
_SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"  # says what it is; nobody has to fetch it


@dataclass(frozen=True)
class Chart:
    """What is drawn. `points`: (x, y, group); a histogram's y is None until it is drawn. `scale` of x:
    "number", "time" (ISO dates) or "text", in the order given."""

    kind: str
    title: str
    names: tuple[str, str, str]  # of x, y, colour; "" for none
    scale: str
    points: tuple[tuple[Any, float | None, str], ...] = field(repr=False)

    @property
    def groups(self) -> list[str]:
        """The groups in order of appearance; one nameless where there is no colour."""
        return list(dict.fromkeys(group for _, _, group in self.points))

    def summary(self) -> str:
        """The chart in one line, for a model and for who can't see it."""
        x, y, colour = self.names
        told = f"{self.kind} chart, {len(self.points)} points, x {x} ({self.scale})"
        if y:
            values = [value for _, value, _ in self.points if value is not None]
            told += f", y {y} from {value_text(min(values))} to {value_text(max(values))}"
        return told + (f", {len(self.groups)} groups by {colour}" if colour else "")


def make_chart(
    kind: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    x: str = "",
    y: str = "",
    colour: str = "",
    title: str = "",
) -> Chart:
    """A chart of columns and rows. ToolError (text for the model) where they don't make one."""
    if kind not in KINDS:
        raise ToolError(f"kind must be one of {', '.join(KINDS)}")
    if not rows:
        raise ToolError("there are no rows to draw")
    if len(rows) > MAX_POINTS:
        raise ToolError(f"more than {MAX_POINTS} rows; group or filter them")
    if kind == "histogram" and (y or colour):
        raise ToolError("a histogram has x alone")
    place_x = _column(columns, x, 0)
    if kind == "histogram":
        values = [_number(columns[place_x], row[place_x]) for row in rows if row[place_x] is not None]
        if not values:
            raise ToolError(f"{columns[place_x]} has no values")
        points = tuple((value, None, "") for value in values)
        return Chart(kind, _short(title), (_short(columns[place_x]), "", ""), "number", points)
    place_y = _column(columns, y, 1)
    place_c = _column(columns, colour, 2) if colour else None
    kept = [row for row in rows if row[place_x] is not None and row[place_y] is not None]
    if not kept:
        raise ToolError("there are no rows with both x and y")
    scale = _scale([row[place_x] for row in kept]) if kind not in ("bar", "pie") else "text"
    made = [
        (
            _short(value_text(row[place_x])) if scale == "text" else row[place_x],
            _number(columns[place_y], row[place_y]),
            "" if place_c is None else _short(value_text(row[place_c])),
        )
        for row in kept
    ]
    names = (columns[place_x], columns[place_y], columns[place_c] if place_c is not None else "")
    chart = Chart(
        kind, _short(title), (_short(names[0]), _short(names[1]), _short(names[2])), scale, tuple(made)
    )
    _check(chart)
    return chart


def _check(chart: Chart) -> None:
    """ToolError for what no picture shows well."""
    xs = {x for x, _, _ in chart.points}
    if len(chart.groups) > MAX_GROUPS:
        raise ToolError(f"more than {MAX_GROUPS} groups of {chart.names[2]}")
    if chart.kind == "pie":
        if chart.names[2]:
            raise ToolError("a pie has no colour of its own: x names its parts")
        if len(chart.points) > MAX_SLICES or len(xs) < len(chart.points):
            raise ToolError(f"a pie has at most {MAX_SLICES} parts, each once; group them")
        if any(y is None or y < 0 for _, y, _ in chart.points) or not sum(y or 0 for _, y, _ in chart.points):
            raise ToolError("the parts of a pie are not negative, and not all 0")
    if chart.scale == "text" and len(xs) > MAX_BARS:
        raise ToolError(f"more than {MAX_BARS} different values of {chart.names[0]}; group or filter them")
    if len({(x, group) for x, _, group in chart.points}) < len(chart.points) and chart.kind in (
        "bar",
        "area",
    ):
        raise ToolError(f"several rows for one {chart.names[0]}; add them up or name a colour column")


def vega_lite(chart: Chart) -> dict[str, Any]:
    """The chart as a Vega-Lite specification with its data in it."""
    x, y, colour = chart.names
    kinds = {"number": "quantitative", "time": "temporal", "text": "nominal"}
    mark: dict[str, Any] = {"type": _MARKS.get(chart.kind, chart.kind), "tooltip": True}
    values = [
        {"x": a} | ({} if b is None else {"y": b}) | ({"colour": c} if colour else {})
        for a, b, c in chart.points
    ]
    encoding: dict[str, Any]
    if chart.kind == "pie":
        encoding = {
            "theta": {"field": "y", "type": "quantitative", "title": y},
            "color": {"field": "x", "type": "nominal", "title": x, "sort": None},
        }
    else:
        encoding = {"x": {"field": "x", "type": kinds[chart.scale], "title": x}}
        if chart.scale == "text":
            encoding["x"]["sort"] = None
        if chart.kind == "histogram":
            encoding["x"]["bin"] = True
            encoding["y"] = {"aggregate": "count", "type": "quantitative", "title": "count"}
        else:
            encoding["y"] = {"field": "y", "type": "quantitative", "title": y}
        if colour:
            encoding["color"] = {"field": "colour", "type": "nominal", "title": colour, "sort": None}
            if chart.kind == "bar":
                encoding["xOffset"] = {"field": "colour", "sort": None}
    return {
        "$schema": _SCHEMA,
        "title": chart.title,
        "description": chart.summary(),
        "width": 560,
        "height": 320,
        "data": {"values": values},
        "mark": mark,
        "encoding": encoding,
    }


def save_in(folder: Path) -> Callable[[Chart], str]:
    """Keeps charts as chart-1.json and chart-1.png, chart-2..., in `folder` -> how the two are called."""
    from ayllu.tools.chart_png import png

    def keep(chart: Chart) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        number = 1
        while (folder / f"chart-{number}.json").exists() or (folder / f"chart-{number}.png").exists():
            number += 1
        write_json(folder / f"chart-{number}.json", vega_lite(chart))
        picture, note = png(chart)
        write_bytes(folder / f"chart-{number}.png", picture)
        return f"chart-{number}.json, chart-{number}.png{f' ({note})' if note else ''}"

    return keep


def chart_tool(keep: Callable[[Chart], str], database: Database | None = None) -> Tool:
    """The tool `chart`; `keep` takes each chart and says what was made of it."""

    def run(arguments: dict[str, Any]) -> str:
        query, given = arguments.get("query", ""), arguments.get("data", "")
        if bool(query) == bool(given):
            raise ToolError("give either a query or data")
        columns: Sequence[str]
        rows: Sequence[Sequence[Any]]
        if query:
            if database is None:
                raise ToolError("there are no tables to ask; give data as CSV")
            found = database.ask(query, MAX_POINTS)
            columns, rows = found.columns, found.rows
            if found.more:
                raise ToolError(f"the query gives more than {len(rows)} rows; group or filter them")
        else:
            columns, rows = from_csv(given)
        options = {name: arguments.get(name, "") for name in ("x", "y", "colour", "title")}
        chart = make_chart(arguments["kind"], columns, rows, **options)
        return f"{chart.summary()}: {keep(chart)}"

    name = {"type": "string", "maxLength": MAX_TEXT}
    return Tool(
        name="chart",
        description="Draws a chart of a query's result or of rows given as CSV with a line of names.",
        parameters={
            "type": "object",
            "properties": {
                "kind": {"type": "string", "enum": list(KINDS)},
                "query": {"type": "string", "maxLength": 2000, "description": "one SELECT"},
                "data": {"type": "string", "maxLength": 4000, "description": "such as month,sales\\nMay,3"},
                "x": name,
                "y": name,
                "colour": name,
                "title": name,
            },
            "required": ["kind"],
        },
        run=run,
        varies=True,
    )


def from_csv(text: str) -> tuple[list[str], list[list[Any]]]:
    """Names and rows of CSV text, numbers where they are ones. ToolError where the rows differ in length."""
    try:
        lines = [line for line in csv.reader(io.StringIO(text), strict=True) if line]
    except csv.Error as error:
        raise ToolError(f"the data are no CSV: {error}") from error
    if len(lines) < 2:
        raise ToolError("the data need a line of names and at least one row")
    if len({len(line) for line in lines}) > 1:
        raise ToolError("the rows of the data differ in length")
    return [name.strip() for name in lines[0]], [
        [_value(cell.strip()) for cell in line] for line in lines[1:]
    ]


def _value(cell: str) -> Any:
    if not cell:
        return None
    try:
        number = float(cell) if cell.isascii() and "_" not in cell else None  # 1_000 is Python's
    except ValueError:
        return cell
    if number is None or number - number != 0:  # no number, or none that has a place on an axis
        return cell
    return int(cell) if cell.lstrip("+-").isdigit() else number


def _column(columns: Sequence[str], name: str, usual: int) -> int:
    if not name:
        if usual >= len(columns):
            raise ToolError(f"there are only {len(columns)} columns: {', '.join(columns)}")
        return usual
    if name not in columns:
        raise ToolError(f"there is no column {name[:40]}; columns: {', '.join(columns)}")
    return list(columns).index(name)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value - value != 0:
        raise ToolError(f"{name} has {value_text(value)[:40]}, which is no number")
    if abs(value) > 1e300:
        raise ToolError(f"{name} has numbers that are too large")
    return value


def _scale(values: Sequence[Any]) -> str:
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        for value in values:
            _number("x", value)
        return "number"
    return "time" if all(is_time(value) for value in values) else "text"


def is_time(value: Any) -> bool:
    """Whether a value is an ISO date, with a time or without."""
    if not isinstance(value, str) or len(value) < 10:
        return False
    try:
        datetime.datetime.fromisoformat(value)
    except ValueError:
        return False
    return True


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"
