"""A Chart as a PNG, drawn with Pillow: axes with round numbers (Heckbert 1990, "Nice numbers for graph
labels"), marks, a legend. Drawn at twice the size and scaled down, which smooths the lines.

Pillow is one package without dependencies that draws lines and text; what draws Vega-Lite itself carries a
browser's engine along. The picture has what the Vega-Lite has, not its every detail.
"""

from __future__ import annotations

import datetime
import functools
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ayllu.tools.chart import Chart
from ayllu.tools.sql import value_text

SIZE = (800, 500)
_TWICE = 2
_LEFT, _TOP, _RIGHT, _BOTTOM = 90, 50, 30, 80  # room round the plot
_LEGEND = 150
# Paul Tol's "bright" and two greys: told apart by most colour-blind people, too
COLOURS = (
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377",
    "#bbbbbb", "#222222", "#dd8844", "#7766aa", "#99aa55", "#885544",
)  # fmt: skip
_INK, _GRID, _PAPER = "#333333", "#dddddd", "#ffffff"
# Fonts of Debian and its relatives for what the built-in one lacks (it has Latin letters).
_FONTS = ("NotoSansTelugu-Regular.ttf", "Lohit-Telugu.ttf", "NotoSans-Regular.ttf", "DejaVuSans.ttf")
Box = tuple[float, float, float, float]


def png(chart: Chart) -> tuple[bytes, str]:
    """The picture's bytes, and a note where it lacks something ("" where it doesn't)."""
    canvas = _Canvas()
    canvas.text(SIZE[0] / 2, 22, chart.title, size=17, anchor="mm", room=SIZE[0] - 40)
    legend = (
        chart.groups if chart.names[2] else [x for x, _, _ in chart.points] if chart.kind == "pie" else []
    )
    right = SIZE[0] - _RIGHT - (_LEGEND if legend else 0)
    box = (_LEFT, _TOP, right, SIZE[1] - _BOTTOM)
    for number, name in enumerate(legend):
        y = _TOP + 10 + 22 * number
        canvas.rectangle((right + 20, y - 6, right + 32, y + 6), COLOURS[number])
        canvas.text(right + 40, y, name, anchor="lm", room=_LEGEND - 30)
    if chart.kind == "pie":
        _pie(canvas, chart, box)
    else:
        _plot(canvas, chart, box)
    return canvas.bytes(), canvas.note


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from at most `low` to at least `high`, about `most` of them."""
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-280):  # equal, or as good as that
        pad = abs(low) / 2 or 1.0
        low, high = low - pad, high + pad
    step = _nice((high - low) / max(most - 1, 1))
    first, last = math.floor(low / step), math.ceil(high / step)
    return [number * step for number in range(first, last + 1)]


def _nice(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= value * 0.999)


def bins(values: Sequence[float]) -> list[tuple[float, float, int]]:
    """Equal steps between round numbers -> (from, to, how many); the last one has its end in it."""
    edges = ticks(min(values), max(values), min(max(round(math.sqrt(len(values))), 4), 20))
    counts = [0] * (len(edges) - 1)
    step = edges[1] - edges[0]
    for value in values:
        counts[min(int((value - edges[0]) / step), len(counts) - 1)] += 1
    return [(edges[i], edges[i + 1], count) for i, count in enumerate(counts)]


# ---- kinds
def _pie(canvas: _Canvas, chart: Chart, box: Box) -> None:
    left, top, right, bottom = box
    radius = min(right - left, bottom - top + 40) / 2
    middle = ((left + right) / 2, (top + bottom) / 2 + 20)
    around = (middle[0] - radius, middle[1] - radius, middle[0] + radius, middle[1] + radius)
    total, at = sum(y or 0 for _, y, _ in chart.points), -90.0
    for number, (_, y, _) in enumerate(chart.points):
        share = 360.0 * (y or 0) / total
        canvas.slice(around, at, at + share, COLOURS[number])
        if share > 15:
            angle = math.radians(at + share / 2)
            place = (middle[0] + 0.65 * radius * math.cos(angle), middle[1] + 0.65 * radius * math.sin(angle))
            canvas.text(*place, value_text(y), anchor="mm", colour=_PAPER)
        at += share


def _plot(canvas: _Canvas, chart: Chart, box: Box) -> None:
    left, top, right, bottom = box
    counted = bins([x for x, _, _ in chart.points]) if chart.kind == "histogram" else []
    ys = [float(count) for _, _, count in counted] or [y or 0.0 for _, y, _ in chart.points]
    from_zero = chart.kind in ("bar", "area", "histogram")
    y_ticks = ticks(min([0.0, *ys] if from_zero else ys), max([0.0, *ys] if from_zero else ys))
    y_of = _linear(y_ticks[0], y_ticks[-1], bottom, top)
    for tick in y_ticks:
        canvas.line([(left, y_of(tick)), (right, y_of(tick))], _GRID, 1)
        canvas.text(left - 8, y_of(tick), _label(tick), anchor="rm", room=left - 30)
    canvas.text(left - 80, top - 16, chart.names[1] or "count", anchor="lm", room=200)
    canvas.text((left + right) / 2, SIZE[1] - 14, chart.names[0], anchor="mm", room=right - left)
    if counted:
        x_of = _linear(counted[0][0], counted[-1][1], left, right)
        for low, high, count in counted:
            canvas.rectangle((x_of(low) + 1, y_of(count), x_of(high) - 1, y_of(0)), COLOURS[0])
        _number_axis(canvas, [low for low, _, _ in counted] + [counted[-1][1]], x_of, bottom, _label)
    elif chart.scale == "text":
        _by_text(canvas, chart, box, y_of)
    else:
        _by_number(canvas, chart, box, y_of)
    canvas.line([(left, top), (left, bottom), (right, bottom)], _INK, 1)


def _by_text(canvas: _Canvas, chart: Chart, box: Box, y_of: Any) -> None:
    left, _, right, bottom = box
    names = list(dict.fromkeys(x for x, _, _ in chart.points))
    width, groups = (right - left) / len(names), chart.groups
    every = math.ceil(len(names) / 12)
    for place, name in enumerate(names):
        if place % every == 0:
            canvas.text(
                left + (place + 0.5) * width, bottom + 16, name, anchor="mm", room=max(width * every - 6, 24)
            )
    if chart.kind != "bar":
        _series(canvas, chart, lambda x: left + (names.index(x) + 0.5) * width, y_of)
        return
    for x, y, group in chart.points:
        inner = 0.8 * width / len(groups)
        begin = left + names.index(x) * width + 0.1 * width + groups.index(group) * inner
        edges = sorted((y_of(0), y_of(y)))
        canvas.rectangle((begin, edges[0], begin + inner, edges[1]), COLOURS[groups.index(group)])


def _by_number(canvas: _Canvas, chart: Chart, box: Box, y_of: Any) -> None:
    left, _, right, bottom = box
    if chart.scale == "time":
        moments = sorted({_seconds(x) for x, _, _ in chart.points})
        x_of = _linear(
            moments[0] - (moments[0] == moments[-1]), moments[-1] + (moments[0] == moments[-1]), left, right
        )
        shown = (
            [moments[round(i * (len(moments) - 1) / 5)] for i in range(6)] if len(moments) > 6 else moments
        )
        _number_axis(canvas, shown, x_of, bottom, _date)
        _series(canvas, chart, lambda x: x_of(_seconds(x)), y_of)
    else:
        marks = ticks(min(x for x, _, _ in chart.points), max(x for x, _, _ in chart.points))
        x_of = _linear(marks[0], marks[-1], left, right)
        _number_axis(canvas, marks, x_of, bottom, _label)
        _series(canvas, chart, x_of, y_of)


def _series(canvas: _Canvas, chart: Chart, x_of: Any, y_of: Any) -> None:
    """Points, or lines and areas through them, in order of x; text in the order given."""
    for number, group in enumerate(chart.groups):
        places = [(x_of(x), y_of(y)) for x, y, g in chart.points if g == group]
        if chart.kind == "point":
            for x, y in places:
                canvas.dot(x, y, COLOURS[number])
            continue
        places.sort(key=lambda place: place[0])
        if chart.kind == "area":
            canvas.area([(places[0][0], y_of(0)), *places, (places[-1][0], y_of(0))], COLOURS[number])
        canvas.line(places, COLOURS[number], 2.5)
        if len(places) == 1:
            canvas.dot(*places[0], COLOURS[number])


def _number_axis(canvas: _Canvas, values: Sequence[float], x_of: Any, bottom: float, label: Any) -> None:
    every = math.ceil(len(values) / 10)
    for value in values[::every]:
        canvas.line([(x_of(value), bottom), (x_of(value), bottom + 5)], _INK, 1)
        canvas.text(x_of(value), bottom + 16, label(value), anchor="mm", room=100)


def _linear(low: float, high: float, begin: float, end: float) -> Any:
    span = (high - low) or 1.0
    return lambda value: begin + (value - low) / span * (end - begin)


def _label(value: float) -> str:
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.3g}"
    return value_text(float(f"{value:.10g}"))


def _seconds(text: str) -> float:
    moment = datetime.datetime.fromisoformat(text)
    return moment.replace(tzinfo=moment.tzinfo or datetime.UTC).timestamp()


def _date(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.strftime("%Y-%m-%d" if not seconds % 86400 else "%Y-%m-%d %H:%M")


# ---- drawing
class _Canvas:
    """Lines, areas and text in units of the finished picture."""

    def __init__(self) -> None:
        self.image = Image.new("RGB", (SIZE[0] * _TWICE, SIZE[1] * _TWICE), _PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.note = ""

    def line(self, places: Sequence[tuple[float, float]], colour: str, width: float) -> None:
        self.draw.line([_scaled(place) for place in places], colour, round(width * _TWICE), "curve")

    def rectangle(self, box: Box, colour: str) -> None:
        self.draw.rectangle([*_scaled(box[:2]), *_scaled((max(box[0], box[2]), max(box[1], box[3])))], colour)

    def dot(self, x: float, y: float, colour: str) -> None:
        self.draw.ellipse([*_scaled((x - 4, y - 4)), *_scaled((x + 4, y + 4))], colour)

    def slice(self, box: Box, begin: float, end: float, colour: str) -> None:
        self.draw.pieslice([*_scaled(box[:2]), *_scaled(box[2:])], begin, end, colour, _PAPER, _TWICE)

    def area(self, places: Sequence[tuple[float, float]], colour: str) -> None:
        pale = Image.new("RGB", self.image.size, colour)
        mask = Image.new("L", self.image.size, 0)
        ImageDraw.Draw(mask).polygon([_scaled(place) for place in places], 90)
        self.image.paste(pale, mask=mask)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        *,
        anchor: str,
        size: int = 13,
        room: float = 1e9,
        colour: str = _INK,
    ) -> None:
        """Text that is cut with … where it has no room."""
        font, whole = _font(size * _TWICE, frozenset(c for c in text if c.isalpha()))
        if not whole:
            self.note = "this machine has no font for some of its letters"
        shown = text
        while shown and font.getlength(shown) > room * _TWICE:
            shown = shown[:-2] + "…" if len(shown) > 2 else ""
        self.draw.text(_scaled((x, y)), shown, colour, font, anchor)

    def bytes(self) -> bytes:
        out = io.BytesIO()
        self.image.resize(SIZE, Image.Resampling.LANCZOS).save(out, "PNG")
        return out.getvalue()


def _scaled(place: tuple[float, float]) -> tuple[float, float]:
    return place[0] * _TWICE, place[1] * _TWICE


@functools.lru_cache(maxsize=256)
def _font(size: int, letters: frozenset[str]) -> tuple[Any, bool]:
    """The built-in font, or one of the machine's that has more of `letters`; and whether it has them all."""
    font = ImageFont.load_default(size)
    for path in _fonts() if _lacks(font, letters) else ():
        found = ImageFont.truetype(path, size)
        if not _lacks(found, letters):
            return found, True
    return font, not _lacks(font, letters)


@functools.cache
def _fonts() -> list[str]:
    return [str(path) for name in _FONTS for path in sorted(Path("/usr/share/fonts").rglob(name))[:1]]


def _lacks(font: Any, letters: frozenset[str]) -> bool:
    """Whether some letter comes out as the box that stands for what a font doesn't have."""
    box = bytes(font.getmask("\U0010ffff"))
    return any(bytes(font.getmask(letter)) == box for letter in letters)
