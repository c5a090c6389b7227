"""Charts as plain SVG text: no script, no library, colours from the page's CSS variables.

The form follows Tufte (The Visual Display of Quantitative Information, 1983) and Cleveland (The
Elements of Graphing Data, 1985): few quiet grid lines, the series labelled at their own ends rather
than in a legend, noisy measurements faint behind their running mean, intervals drawn wherever a
number is a sample. A chart is a function of numbers; everything textual passes through `safe`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ayllu.report.escape import safe

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line of a chart: `points` by rising x, `colour` 1..4 (a CSS variable of the page). `spread`: low
    and high of each point, where every one is a sample."""

    label: str
    points: tuple[Point, ...]
    colour: int = 1
    noisy: bool = False  # draw the points faintly and their running mean on top
    spread: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Level:
    """A horizontal line to compare with, e.g. what xz reaches."""

    label: str
    y: float


@dataclass(frozen=True)
class Interval:
    """A share with its interval, all in 0..1."""

    label: str
    share: float
    low: float
    high: float
    colour: int
    note: str = ""


def finite(points: Iterable[tuple[object, object]]) -> tuple[Point, ...]:
    """The points whose two coordinates are finite numbers, by rising x."""
    good = [
        (float(x), float(y))
        for x, y in points
        if isinstance(x, (int, float))
        and isinstance(y, (int, float))
        and math.isfinite(x)
        and math.isfinite(y)
    ]
    return tuple(sorted(good, key=lambda point: point[0]))


def thin(points: Sequence[Point], most: int = 300) -> tuple[Point, ...]:
    """At most `most` points, each the mean of its neighbours: an honest small picture of a long run."""
    if len(points) <= most:
        return tuple(points)
    size = math.ceil(len(points) / most)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return tuple((sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups)


def running_mean(points: Sequence[Point], window: int) -> tuple[Point, ...]:
    """Mean over the `window` nearest points; at both ends only those that exist, so nothing is invented."""
    half, out = max(window // 2, 1), []
    for i, (x, _) in enumerate(points):
        near = points[max(i - half, 0) : i + half + 1]
        out.append((x, sum(y for _, y in near) / len(near)))
    return tuple(out)


def ticks(low: float, high: float, about: int) -> tuple[float, ...]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) inside low..high, close to `about` of them."""
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return (low,)
    raw = span / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(span / s - about))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return tuple(round(i * step, 12) for i in range(first, last + 1))


def short(value: float) -> str:
    """`1500` -> `1,500`, `2500000` -> `2.5M`, `0.30000001` -> `0.3`."""
    # What three digits round up to the next unit (999,600 to 1M) is written with that one.
    units = ((0.9995e12, 1e12, "T"), (0.9995e9, 1e9, "G"), (0.9995e6, 1e6, "M"), (1e4, 1e3, "k"))
    for least, size, sign in units:
        if abs(value) >= least:
            return f"{value / size:.3g}{sign}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str = "",
    levels: Sequence[Level] = (),
    percent: bool = False,
    y_from: float | None = None,
    y_to: float | None = None,
    width: int = 720,
    height: int = 280,
) -> str:
    """Lines over a common x axis as one `<svg>`; empty text when there is not a single point."""
    shown = [s for s in series if s.points]
    if not shown:
        return ""
    xs = [x for s in shown for x, _ in s.points]
    lines = [_strong(s) for s in shown]
    # Outliers of a noisy series (the very first losses) must not flatten the rest: scale by the means.
    ys = [y for line in lines for _, y in line] + [level.y for level in levels]
    ys += [end for s in shown for ends in s.spread for end in ends]
    low, high = _room(min(ys), max(ys), y_from, y_to)
    x_low, x_high = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) - 0.5, max(xs) + 0.5)
    left, right, top, bottom = 46, _label_room(shown, levels, percent), 26 if y_label else 14, 34
    inner_w, inner_h = width - left - right, height - top - bottom

    def at(point: Point) -> Point:
        x = left + (point[0] - x_low) / (x_high - x_low) * inner_w
        y = top + (high - min(max(point[1], low), high)) / (high - low) * inner_h
        return round(x, 1), round(y, 1)

    def number(value: float) -> str:
        return f"{value:.0%}" if percent else short(value)

    out = [_open(title, width, height)]
    for y in ticks(low, high, 5):
        py = at((x_low, y))[1]
        out.append(f'<line class="grid" x1="{left}" x2="{left + inner_w}" y1="{py}" y2="{py}"/>')
        out.append(_text(left - 7, py + 3.5, number(y), "tick end"))
    for x in ticks(x_low, x_high, 6 if width > 500 else 4):
        px = at((x, low))[0]
        out.append(f'<line class="axis" x1="{px}" x2="{px}" y1="{top + inner_h}" y2="{top + inner_h + 4}"/>')
        out.append(_text(px, top + inner_h + 16, short(x), "tick mid"))
    base = top + inner_h
    out.append(f'<line class="axis" x1="{left}" x2="{left + inner_w}" y1="{base}" y2="{base}"/>')
    out.append(_text(left + inner_w / 2, height - 3, x_label, "label mid"))
    if y_label:
        out.append(_text(left - 30, 11, y_label, "label"))

    ends: list[tuple[float, str, str]] = []
    for level in levels:
        py = at((x_low, level.y))[1]
        out.append(f'<line class="level" x1="{left}" x2="{left + inner_w}" y1="{py}" y2="{py}"/>')
        ends.append((py, f"{level.label} {number(level.y)}", "end-label muted"))
    for s, line in zip(shown, lines, strict=True):
        if s.noisy and len(s.points) > 2:
            out.append(_path([at(p) for p in thin(s.points)], f"line c{s.colour} faint"))
        for (x, _), spread in zip(s.points, s.spread, strict=False):  # a line without intervals has none
            out += _whiskers(*(at((x, end)) for end in spread))
        placed = [at(p) for p in thin(line)]
        if len(placed) == 1:
            out.append(f'<circle class="dot c{s.colour}" cx="{placed[0][0]}" cy="{placed[0][1]}" r="3.5"/>')
        else:
            out.append(_path(placed, f"line c{s.colour}"))
            out.append(f'<circle class="dot c{s.colour}" cx="{placed[-1][0]}" cy="{placed[-1][1]}" r="2.6"/>')
        ends.append((placed[-1][1], f"{s.label} {number(line[-1][1])}".strip(), f"end-label t{s.colour}"))
    for y, text, style in _apart(ends, 14, top, base):
        out.append(_text(left + inner_w + 8, y + 3.5, text, style))
    out.append("</svg>")
    return "".join(out)


def interval_chart(title: str, groups: Sequence[tuple[str, Sequence[Interval]]], *, width: int = 720) -> str:
    """Shares as bars with their intervals, grouped (a task, before and after); empty without groups."""
    if not any(rows for _, rows in groups):
        return ""
    left, right, row, gap, top = 172, 166, 21, 15, 8
    inner = width - left - right
    height = top + sum(len(rows) * row + gap for _, rows in groups) + 22
    base = height - 26
    out = [_open(title, width, height)]
    for share in (0, 0.25, 0.5, 0.75, 1):
        x = left + share * inner
        out.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{top}" y2="{base}"/>')
        out.append(_text(x, height - 8, f"{share:.0%}", "tick mid"))
    y = float(top)
    for name, rows in groups:
        for i, item in enumerate(rows):
            middle = y + row / 2
            share, low, high = (min(max(v, 0.0), 1.0) for v in (item.share, item.low, item.high))
            if i == 0:
                out.append(_text(0, middle + 4, name, "group"))
            out.append(_text(left - 8, middle + 4, item.label, "tick end"))
            bar = max(round(share * inner, 1), 0.5)
            out.append(
                f'<rect class="bar c{item.colour}" x="{left}" y="{y + 4}" width="{bar}" height="{row - 8}"/>'
            )
            x1, x2 = round(left + low * inner, 1), round(left + high * inner, 1)
            out.append(f'<line class="whisker" x1="{x1}" x2="{x2}" y1="{middle}" y2="{middle}"/>')
            for x in (x1, x2):
                out.append(f'<line class="whisker" x1="{x}" x2="{x}" y1="{middle - 4}" y2="{middle + 4}"/>')
            out.append(_text(left + inner + 12, middle + 4, f"{item.share:.1%}", "value"))
            out.append(_text(left + inner + 66, middle + 4, item.note, "tick"))
            y += row
        y += gap
    out.append("</svg>")
    return "".join(out)


def bar_chart(title: str, bars: Sequence[tuple[str, float, int]], *, width: int = 720) -> str:
    """Values from zero as horizontal bars (label, value, colour); empty without bars."""
    if not bars:
        return ""
    left, right, row = 172, 70, 24
    scale = (width - left - right) / max(*(value for _, value, _ in bars), 1e-12)
    out = [_open(title, width, len(bars) * row + 6)]
    for i, (label, value, colour) in enumerate(bars):
        y, wide = i * row + 4, max(value * scale, 0.5)
        out.append(_text(left - 8, y + 13, label, "label end"))
        out.append(f'<rect class="bar c{colour}" x="{left}" y="{y}" width="{wide:.1f}" height="{row - 7}"/>')
        out.append(_text(left + wide + 8, y + 13, f"{value:.3f}", "value"))
    out.append("</svg>")
    return "".join(out)


def share_strip(title: str, parts: Sequence[tuple[str, float]], *, width: int = 720) -> str:
    """Parts of a whole as one strip (where the time went); names stand where they fit."""
    whole = sum(value for _, value in parts)
    if whole <= 0:
        return ""
    out, x = [_open(title, width, 46)], 0.0
    for i, (name, value) in enumerate(parts):
        wide = value / whole * width
        tone = f"bar c{1 + i % 2}{' pale' if i % 4 >= 2 else ''}"
        out.append(f'<rect class="{tone}" x="{x:.1f}" y="0" width="{max(wide - 1.5, 0.5):.1f}" height="22"/>')
        if wide > 7.5 * len(name) + 8:
            out.append(_text(x + 1, 38, name, "tick"))
        x += wide
    out.append("</svg>")
    return "".join(out)


def _strong(series: Series) -> tuple[Point, ...]:
    if not series.noisy or len(series.points) <= 2:
        return series.points
    return running_mean(series.points, max(len(series.points) // 20, 3))


def _room(low: float, high: float, y_from: float | None, y_to: float | None) -> tuple[float, float]:
    """Limits of the y axis: a little air round the data, unless fixed by the caller."""
    air = (high - low) * 0.08 or abs(high) * 0.1 or 0.5
    bottom = (max(0.0, low - air) if low >= 0 else low - air) if y_from is None else y_from
    limit = high + air if y_to is None else max(y_to, bottom)
    return bottom, limit if limit > bottom else bottom + 1.0


def _label_room(series: Sequence[Series], levels: Sequence[Level], percent: bool) -> int:
    longest = max(len(label) for label in [s.label for s in series] + [level.label for level in levels])
    return min(24 + round((longest + (5 if percent else 6)) * 6.4), 190)


def _apart(
    ends: list[tuple[float, str, str]], gap: float, top: float, base: float
) -> list[tuple[float, str, str]]:
    """Move labels that would overlap: first down, then, where they run out of the frame, up again."""
    placed: list[tuple[float, str, str]] = []
    for y, text, style in sorted(ends):
        floor = placed[-1][0] + gap if placed else top
        placed.append((max(y, floor), text, style))
    ceiling = base
    for i in range(len(placed) - 1, -1, -1):
        y, text, style = placed[i]
        placed[i] = (min(y, ceiling), text, style)
        ceiling = placed[i][0] - gap
    return placed


def _open(title: str, width: int, height: int) -> str:
    name = safe(title)
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{name}" '
        f'xmlns="http://www.w3.org/2000/svg"><title>{name}</title>'
    )


def _text(x: float, y: float, text: str, style: str) -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{safe(text)}</text>'


def _whiskers(low: Point, high: Point) -> list[str]:
    """An interval of y as an upright line with a bar at each end."""
    (x, y1), (_, y2) = low, high
    bars = [f'<line class="whisker" x1="{x - 3}" x2="{x + 3}" y1="{y}" y2="{y}"/>' for y in (y1, y2)]
    return [f'<line class="whisker" x1="{x}" x2="{x}" y1="{y1}" y2="{y2}"/>', *bars]


def _path(points: Sequence[Point], style: str) -> str:
    return f'<path class="{style}" d="M{" ".join(f"{x},{y}" for x, y in points)}"/>'
