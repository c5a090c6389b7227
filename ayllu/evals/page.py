"""Results of `ayllu eval` for people: one line as each is done, and a table with notes at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEAD = ("task", "n", "score", "95 % interval", "lenient", "chance", "maj@k", "pass@k")
CURVE = ("at most", "thought", "n", "score", "95 % interval", "cut off")


def line(result: Mapping[str, Any]) -> str:
    """One result in a line."""
    if result["form"] == "bits":
        spread = "" if result["low"] is None else f" ({result['low']:.4f} to {result['high']:.4f})"
        return f"{result['task']}: {result['score']:.4f}{spread} bits per byte, {result['bytes']:,} bytes"
    spread = f"{100 * result['low']:.1f} to {100 * result['high']:.1f}"
    said = f"{result['task']}: {100 * result['score']:.1f} % of {result['n']} ({spread}, 95 %)"
    budget = result.get("sampling", {}).get("thinking_budget")
    if budget is None:
        return said
    return f"{said}, {result['mean_thinking_tokens']:.1f} tokens thought of {budget} at most"


def page(made: Mapping[str, Any]) -> str:
    """The results as a table, below it what doesn't fit into one, and the curves over bounds on thinking."""
    found, notes = list(made["results"].values()), list[str]()
    for result in found:
        notes += [f"{result['task']}: {note}" for note in _notes(result)]
    parts = [*_table([HEAD, *map(_row, found)]), *notes] if found else []
    for name, points in made.get("by_thinking_budget", {}).items():
        if len(points) > 1:
            parts += (
                ["", *_curve(name, list(points.values()))] if parts else _curve(name, list(points.values()))
            )
    return "\n".join(parts)


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with the first column flush left and the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = []
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        table.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return table


def _curve(name: str, points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Accuracy against tokens thought, by rising bound."""
    rows = [CURVE]
    for point in points:
        rows.append(
            (
                f"{point['sampling']['thinking_budget']:,}",
                f"{point['mean_thinking_tokens']:.1f}",
                f"{point['n']:,}",
                _percent(point["score"]),
                f"{100 * point['low']:.2f} to {100 * point['high']:.2f}",
                f"{point['truncated']:,}",
            )
        )
    notes = [f"{name}: {note}" for note in _notes(points[-1], cut=False)]
    return [f"{name}: accuracy against tokens thought (mean of an answer)", *_table(rows), *notes]


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _scored(found: Mapping[str, Any]) -> str:
    return f"{_percent(found['score'])} ({100 * found['low']:.2f} to {100 * found['high']:.2f})"


def _row(result: Mapping[str, Any]) -> tuple[str, ...]:
    if result["form"] == "bits":
        spread = "" if result["low"] is None else f"{result['low']:.4f} to {result['high']:.4f}"
        return (result["task"], f"{result['n']:,}", f"{result['score']:.4f} bpb", spread, "", "", "", "")
    lenient, votes, passes = result.get("lenient"), result.get("majority"), result.get("pass_at", {})
    most = max(passes, key=int, default="")
    return (
        result["task"],
        f"{result['n']:,}",
        _percent(result["score"]),
        f"{100 * result['low']:.2f} to {100 * result['high']:.2f}",
        _percent(lenient["score"]) if lenient else "",
        _percent(result["chance"]) if "chance" in result else "",
        f"{_percent(votes['score'])} ({votes['k']})" if votes else "",
        f"{_percent(passes[most]['score'])} ({most})" if most else "",
    )


def _notes(result: Mapping[str, Any], *, cut: bool = True) -> list[str]:
    """What a row of the table has no place for; with `cut` also how many answers were cut off."""
    notes = [f"{result['protocol']} ({result['source']})" if result["source"] else result["protocol"]]
    if "asked_as" in result:
        notes.append(f"asked as {result['asked_as']}")
    if result["shots"]:
        notes.append(f"{result['shots']} examples before each row")
    if "by_rule" in result and len(result["by_rule"]) > 1:
        rules = ", ".join(f"{rule} {_percent(score)}" for rule, score in result["by_rule"].items())
        notes.append(f"by rule: {rules} (the score is by: {result['rule']})")
    if "groups" in result:
        notes.append(f"mean of {len(result['groups'])} groups {_percent(result['group_mean'])}")
    if "window" in result:
        notes.append(f"windows of {result['window']} tokens, one every {result['stride']}")
    if "best_of" in result:
        ways = {"best of": result["best_of"], "weighted vote of": result.get("weighted")}
        shown = (f"{name} {way['k']} {_scored(way)}" for name, way in ways.items() if way)
        notes.append(f"by the verifier: {', '.join(shown)}")
    if "f1" in result:
        notes.append(f"F1 {_percent(result['f1']['score'])}")
    if result.get("calls"):
        notes.append(f"{result['valid_calls']:,} of {result['calls']:,} tool calls valid")
    if result.get("too_long"):
        notes.append(
            f"{result['too_long']:,} of {result['n']:,} rows did not fit into the context and count as wrong"
            + ("; give fewer --shots" if result["shots"] else "")
        )
    if cut and result.get("truncated"):
        notes.append(f"{result['truncated']:,} answers were cut off at their last token")
    if result["beside"]:
        beside = ", ".join(f"{name} {score} %" for name, score in result["beside"].items())
        notes.append(f"published, each by its own protocol: {beside}")
    return notes
