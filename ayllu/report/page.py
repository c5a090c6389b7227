"""report.html: one file to read, print and keep. No script, nothing from the network.

The page's own Content-Security-Policy forbids both, so that even a mistake here could not make text
that a model wrote run or call home. All text is escaped at the place where it enters the page
(`safe`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ayllu.progress import clock
from ayllu.report import figures, thinking
from ayllu.report.card import is_public
from ayllu.report.charts import short
from ayllu.report.escape import safe
from ayllu.report.figures import missing, rows_of
from ayllu.report.summary import STAGES, in_order

CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
LANGUAGES = {"en": "English", "de": "German", "te": "Telugu"}
Rows = dict[str, list[dict[str, Any]]]


REFRESH = '<meta http-equiv="refresh" content="30">\n'  # a run under way writes its report again and again


def page(name: str, report: dict[str, Any], metrics: Rows) -> str:
    """The whole report of run `name` as one HTML document."""
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    body = "\n".join(
        [
            _header(name, report),
            _headline(report),
            _accuracy(report),
            _thinking(report),
            figures.pretrain(report, metrics.get("pretrain", [])),
            figures.sft(report, metrics.get("sft", [])),
            figures.further("expert", report, metrics.get("expert", [])),
            figures.rl(report, metrics.get("rl", [])),
            _preflight(report),
            figures.further("verifier", report, metrics.get("verifier", [])),
            figures.further("distill", report, metrics.get("distill", [])),
            _samples(report),
            _data(report),
            _resources(report),
            _machine(report),
            _recipe(report),
            _hashes(report),
        ]
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{CSP}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"{'' if report['finished'] else REFRESH}"
        f"<title>{safe(name)}: run report</title>\n<style>\n{style}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    numbers: Sequence[int] = (),
    foot: Sequence[object] = (),
) -> str:
    """A table; `numbers` are the columns that are set flush right."""

    def cells(row: Sequence[object], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=n' if i in numbers else ''}>{safe(v)}</{tag}>" for i, v in enumerate(row)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    end = f"<tfoot><tr>{cells(foot, 'td')}</tr></tfoot>" if foot else ""
    head = f"<thead><tr>{cells(heads, 'th')}</tr></thead>" if heads else ""
    return f'<div class="wide"><table>{head}<tbody>{body}</tbody>{end}</table></div>'


def size(count: object) -> str:
    """Bytes for people: `1.38 MB`."""
    if not isinstance(count, (int, float)):
        return "–"
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}" if count < 100 * scale else f"{count / scale:.0f} {unit}"
    return f"{count:.0f} B"


def maybe(value: object, form: Callable[[float], str]) -> str:
    """A number in the given form, or a dash where none was measured."""
    return form(float(value)) if isinstance(value, (int, float)) and not isinstance(value, bool) else "–"


def _header(name: str, report: dict[str, Any]) -> str:
    pre, text = report.get("pretrain", {}), report.get("text", {})
    count = pre.get("parameters")
    lead = f"A language model of {short(count)} parameters" if isinstance(count, (int, float)) else "A run"
    mixture = [row for row in text.get("mixture") or [] if row.get("documents")]
    languages = sorted({LANGUAGES.get(code, code) for code in _column(mixture, "language")})
    if languages:
        joined = " and ".join(part for part in (", ".join(languages[:-1]), languages[-1]) if part)
        lead += f", from {'public ' if is_public(report) else ''}text in {joined}"
    lead += f", {clock(report['wall_seconds'])} of machine time so far" if report["missing"] else ""
    lines = [
        "<header>",
        '<p class="kicker">Ayllu · run report</p>',
        f"<h1>{safe(name)}</h1>",
        f'<p class="lead">{safe(lead)}.</p>',
        "</header>",
    ]
    if report["missing"]:
        left = ", ".join(report["missing"])
        lines.append(
            f'<p class="missing">This run is not finished. Missing stages: <b>{safe(left)}</b>. '
            "What they would show is left out below.</p>"
        )
    return "\n".join(lines)


def _column(rows: Sequence[dict[str, Any]] | None, key: str) -> list[str]:
    return [str(row[key]) for row in rows or [] if key in row]


def _headline(report: dict[str, Any]) -> str:
    facts = []
    pre = report.get("pretrain", {})
    for family, both in report["evals"].items():
        when = "rl" if "rl" in both else "sft"
        row = both[when]
        beside = f"{row['correct']:,} of {row['n']:,} held-out problems, after {when.upper()}"
        facts.append((family, f"{row['correct'] / max(row['n'], 1):.1%}", beside))
    if isinstance(pre.get("bits_per_byte"), (int, float)):
        xz = maybe(pre.get("xz_bits_per_byte"), "{:.3f}".format)
        facts.append(("bits per byte", f"{pre['bits_per_byte']:.3f}", f"xz -9e on the same documents: {xz}"))
    if isinstance(pre.get("tokens_per_second"), (int, float)):
        beside = "tokens per second"
        if pre.get("fraction") is not None:
            beside += f"; {pre['fraction']:.0%} of the machine’s matrix-product rate"
        facts.append(("pretraining speed", f"{pre['tokens_per_second']:,.0f}", beside))
    unit = "hours" if report["wall_seconds"] >= 3600 else "minutes"
    facts.append(("time", clock(report["wall_seconds"]), f"{unit} for {len(report['stages'])} stages"))
    cells = "".join(
        f'<div><dt>{safe(name)}</dt><dd><span class="number">{safe(number)}</span>'
        f'<span class="beside">{safe(beside)}</span></dd></div>'
        for name, number, beside in facts
    )
    return f'<dl class="facts">{cells}</dl>'


def _accuracy(report: dict[str, Any]) -> str:
    chart = figures.accuracy(report["evals"])
    if not chart:
        return "<h2>Accuracy</h2>" + missing(report, "eval", "Accuracy on held-out problems")
    rows, gains = [], []
    for family, both in report["evals"].items():
        for when, row in rows_of(both):
            share, percent = row["correct"] / max(row["n"], 1), "{:.1%}".format
            interval = f"{maybe(row.get('low'), percent)} – {maybe(row.get('high'), percent)}"
            calls = f"{row.get('valid_calls', 0):,} of {row['calls']:,}" if row.get("calls") else "–"
            counts = (f"{row['n']:,}", f"{row['correct']:,}", percent(share), interval, calls)
            rows.append((family, f"after {when.upper()}", *counts))
        if gain := both.get("gain"):
            gains.append(f"{family}: gained {gain['gained']:,}, lost {gain['lost']:,} (p = {gain['p']:.2g})")
    heads = ("task", "weights", "problems", "right", "accuracy", "95% interval", "valid calls")
    out = "<h2>Accuracy before and after reinforcement learning</h2>" + chart
    out += table(heads, rows, numbers=(2, 3, 4, 5, 6))
    if gains:
        out += (
            f'<p class="note">On the same problems, what RL changed: {safe("; ".join(gains))}. '
            "The p value is McNemar’s (1947).</p>"
        )
    return out


def _thinking(report: dict[str, Any]) -> str:
    """Accuracy against tokens thought, where `ayllu eval` has measured it."""
    curves, percent = report.get("thinking", {}), "{:.1%}".format
    if not curves:
        return ""
    rows = [
        (
            family,
            f"{point['budget']:,}",
            f"{point['mean_thinking_tokens']:.1f}",
            f"{point['n']:,}",
            percent(point["score"]),
            f"{percent(point['low'])} – {percent(point['high'])}",
        )
        for family, points in curves.items()
        for point in points
    ]
    heads = ("task", "at most", "tokens thought", "problems", "accuracy", "95% interval")
    drawn = thinking.drawn(curves)
    return f"<h2>Accuracy against thinking</h2>{drawn}{table(heads, rows, numbers=(1, 2, 3, 4, 5))}"


def _preflight(report: dict[str, Any]) -> str:
    """What RL found before its first update, where the recipe lets it look."""
    found = report.get("rl", {}).get("preflight") or {}
    if not found.get("families"):
        return ""
    heads = ("task", "problems", "pass@1", "pass@16", "cut off", "informative groups", "tokens")
    rows = [
        (
            family,
            maybe(each.get("problems"), "{:,.0f}".format),
            *(maybe(each.get(k), "{:.0%}".format) for k in ("pass_1", "pass_16", "truncated", "informative")),
            maybe(each.get("tokens"), "{:,.0f}".format),
        )
        for family, each in found["families"].items()
    ]
    rate = maybe(found.get("tokens_per_second"), "{:,.0f}".format)
    note = (
        f"Each problem was answered 16 times, {rate} tokens a second; the whole stage was expected to take "
        f"{maybe(found.get('seconds'), clock)}."
    )
    out = "<h3>Before the first update</h3>" + table(heads, rows, numbers=range(1, len(heads)))
    return f'{out}<p class="note">{safe(note)}</p>'


SPANS = {
    "system": "system", "user": "user", "think": "thinking", "call": "tool call", "result": "tool result",
    "say": "answer",
}  # fmt: skip


def _samples(report: dict[str, Any]) -> str:
    out = "<h2>Samples</h2>"
    if not report["samples"]:
        return out + missing(report, "eval", "Sample conversations")
    out += '<p class="note">The first right and the first wrong problem of each task, word for word.</p>'
    for sample in report["samples"]:
        verdict = '<span class="right">right</span>' if sample["correct"] else _wrong(sample)
        label = f"{sample['family']}, {sample['when']}"
        out += f'<div class="sample"><div class="top"><span>{safe(label)}</span>{verdict}</div>'
        for kind, text in sample.get("spans") or []:
            style = kind if kind in SPANS else "other"
            out += f'<div class="span {style}"><span>{safe(SPANS.get(kind, kind))}</span>'
            out += f"<div>{safe(text)}</div></div>"
        out += "</div>"
    return out


def _wrong(sample: dict[str, Any]) -> str:
    why = f": {sample['why']}" if sample.get("why") else ""
    return f'<span class="wrong">{safe("wrong" + why)}</span>'


def _data(report: dict[str, Any]) -> str:
    text, out = report.get("text", {}), ["<h2>Training text</h2>"]
    mixture = text.get("mixture") or []
    if mixture:
        rows = [
            (
                LANGUAGES.get(row.get("language"), row.get("language", "–")),
                row.get("source", "–"),
                maybe(row.get("documents"), "{:,.0f}".format),
                size(row.get("bytes")),
                maybe(row.get("share"), "{:.1%}".format),
                maybe(row.get("dropped"), "{:,.0f}".format),
                ", ".join(row.get("licences") or ["–"]),
            )
            for row in mixture
        ]
        total = (
            "all",
            "",
            f"{sum(r.get('documents') or 0 for r in mixture):,}",
            size(sum(r.get("bytes") or 0 for r in mixture)),
            "",
            f"{sum(r.get('dropped') or 0 for r in mixture):,}",
            "",
        )
        heads = ("language", "source", "documents", "bytes", "share", "dropped", "licence")
        out.append(table(heads, rows, numbers=(2, 3, 4, 5), foot=total))
    else:
        out.append(missing(report, "text", "The mixture table"))
    out.append("<h3>Dropped documents by rule</h3>")
    if isinstance(text.get("dropped"), dict):
        rules = sorted(text["dropped"].items(), key=lambda item: -item[1])
        out.append(
            table(("rule", "documents"), [(rule, f"{count:,}") for rule, count in rules], numbers=(1,))
            if rules
            else "<p>None: every document passed every rule.</p>"
        )
    else:
        out.append(missing(report, "text", "Dropped documents"))
    out.append("<h3>Tokenizer: what a language pays</h3>")
    fairness = report.get("tokenizer", {}).get("fairness") or {}
    if fairness:
        keys = ("bytes_per_token", "characters_per_token", "tokens_per_word")
        prices = [
            (LANGUAGES.get(code, code), *(maybe(row.get(key), "{:.2f}".format) for key in keys))
            for code, row in sorted(fairness.items())
        ]
        titles = ("language", "bytes per token", "characters per token", "tokens per word")
        out.append(table(titles, prices, numbers=(1, 2, 3)))
        pieces = maybe(report["tokenizer"].get("vocabulary"), "{:,.0f}".format)
        note = f"{pieces} pieces, measured on held-out text. More tokens for a word cost time and context."
        out.append(f'<p class="note">{note}</p>')
    else:
        out.append(missing(report, "tokenizer", "Bytes per token"))
    return "\n".join(out)


def _resources(report: dict[str, Any]) -> str:
    rows = [
        (
            name,
            maybe(report["stages"].get(name, {}).get("seconds"), clock)
            if name in report["stages"]
            else "missing",
            maybe(report["stages"].get(name, {}).get("peak_memory_mb"), "{:,.0f} MB".format),
        )
        for name in in_order()
        if name in STAGES or name in report["stages"]
    ]
    strip = figures.time_strip(report["stages"])
    total = ("all", clock(report["wall_seconds"]), "")
    heads = ("stage", "time", "peak memory")
    return "<h2>Time and memory</h2>" + strip + table(heads, rows, numbers=(1, 2), foot=total)


def _machine(report: dict[str, Any]) -> str:
    rows = []
    for key, value in (report["machine"] or {}).items():
        words = ", ".join(map(str, value)) if isinstance(value, list) else value
        rows.append((key.replace("_", " ").replace("gib", "GiB"), words))
    return "<h2>Machine</h2>" + (table((), rows) if rows else missing(report, "machine", "The machine"))


def _recipe(report: dict[str, Any]) -> str:
    """The recipe as it would stand in a file: plain keys first, then the tables."""
    recipe, lines = report["recipe"], []
    lines += [
        f"{key} = {json.dumps(v, ensure_ascii=False)}" for key, v in recipe.items() if not isinstance(v, dict)
    ]
    for name, part in recipe.items():
        if isinstance(part, dict):
            lines += ["", f"[{name}]"]
            lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in part.items()]
    return f"<h2>Recipe</h2><pre>{safe(chr(10).join(lines).strip())}</pre>"


def _hashes(report: dict[str, Any]) -> str:
    rows = [("seed", report["seed"]), ("weights, SHA-256", report["weights_sha256"])]
    for stage, key, label in (
        ("release", "data_manifest_sha256", "data manifest, SHA-256"),
        ("release", "tokenizer_sha256", "tokenizer, SHA-256"),
    ):
        rows.append((label, report.get(stage, {}).get(key)))
    cells = "".join(
        f"<tr><td>{safe(label)}</td><td><code>{safe('missing' if value is None else value)}</code></td></tr>"
        for label, value in rows
    )
    which = " (the last of several)" if report.get("machines") else ""
    return (
        f'<h2>Seed and hashes</h2><div class="wide"><table><tbody>{cells}</tbody></table></div>'
        f"<footer>All numbers were measured in this run, on the machine named above{which}. "
        "Intervals are Wilson’s (1927), 95%.</footer>"
    )
