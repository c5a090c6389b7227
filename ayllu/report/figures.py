"""The figures of a report: which measured rows go into which chart, and what the caption says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ayllu.report.charts import (
    Interval,
    Level,
    Series,
    bar_chart,
    finite,
    interval_chart,
    line_chart,
    share_strip,
    short,
)
from ayllu.report.escape import safe
from ayllu.report.summary import WHEN

Row = dict[str, Any]


def figure(chart: str, title: str, caption: str) -> str:
    """A chart with its caption, or nothing when there is no chart."""
    if not chart:
        return ""
    return f"<figure>{chart}<figcaption><b>{safe(title)}.</b> {safe(caption)}</figcaption></figure>"


def series(
    rows: Sequence[Row], y: str, label: str = "", *, x: str = "step", colour: int = 1, noisy: bool = False
) -> Series:
    """The rows that have both keys, as a line."""
    return Series(label, finite((row.get(x), row.get(y)) for row in rows), colour, noisy)


def rows_of(family: dict[str, Row]) -> list[tuple[str, Row]]:
    """A family's evaluations in order: after SFT, after RL."""
    return [(when, family[when]) for when in WHEN if when in family]


def accuracy(evals: dict[str, dict[str, Row]]) -> str:
    """Bars with Wilson intervals, for each task before and after RL."""
    groups = []
    for family, both in evals.items():
        bars = []
        for when, row in rows_of(both):
            n = max(int(row["n"]), 1)
            share = row["correct"] / n
            low, high = row.get("low", share), row.get("high", share)
            note = f"{low:.1%} – {high:.1%}"
            bars.append(Interval(f"after {when.upper()}", share, low, high, 1 if when == "sft" else 2, note))
        groups.append((family, bars))
    return figure(
        interval_chart("Accuracy on held-out problems", groups),
        "Accuracy on held-out problems",
        "Bars are the share of right answers, whiskers the 95% Wilson interval. No problem was ever "
        "generated for training: a hash of each problem decides which split owns it.",
    )


def pretrain(report: Row, rows: Sequence[Row]) -> str:
    """Loss over tokens; bits per byte on held-out documents against xz."""
    result = report.get("pretrain", {})
    x, x_label = ("tokens", "training tokens") if any("tokens" in row for row in rows) else ("step", "step")
    loss = line_chart(
        "Pretraining loss",
        [series(rows, "loss", "loss", x=x, noisy=True)],
        x_label=x_label,
        y_label="nats per token",
    )
    xz = result.get("xz_bits_per_byte")
    levels = [Level("xz -9e", float(xz))] if isinstance(xz, (int, float)) else []
    bits = line_chart(
        "Bits per byte on held-out documents",
        [series(rows, "bits_per_byte", "model", x=x, colour=2)],
        x_label=x_label,
        y_label="bits per byte",
        levels=levels,
        y_from=0.0,
    )
    if not bits:
        named = (("this model", result.get("bits_per_byte"), 2), ("xz -9e", xz, 1))
        measured = [(label, float(v), colour) for label, v, colour in named if isinstance(v, (int, float))]
        bits = bar_chart("Bits per byte on held-out documents", measured)
    out = ["<h2>Pretraining</h2>"]
    if not (loss or bits or result):
        return "".join(out) + missing(report, "pretrain", "The loss curve")
    out.append(_throughput(result))
    out.append(figure(loss, "Training loss", "Each step faintly, the running mean on top."))
    out.append(
        figure(
            bits,
            "Bits per byte on held-out documents",
            "How many bits a byte of text needs that was not trained on: for the model, and for the "
            "compressor xz -9e on the same documents. Less is better.",
        )
    )
    return "".join(out)


def sft(report: Row, rows: Sequence[Row]) -> str:
    """Loss of supervised fine-tuning, and accuracy where it was measured on the way."""
    loss = line_chart(
        "SFT loss",
        [series(rows, "loss", "loss", noisy=True)],
        x_label="step",
        y_label="nats per token",
        y_from=0.0,
    )
    out = "<h2>Supervised fine-tuning</h2>"
    if not loss:
        return out + missing(report, "sft", "The loss curve")
    caption = "Loss on the tokens that the model has to write itself: thinking, calls and answers."
    return out + figure(loss, "Fine-tuning loss", caption)


# Stages that a run has when its recipe names them: their heading, the curves that are drawn (key of a row,
# title, whether it is a share, colour) and what they mean.
_FURTHER: dict[str, tuple[str, tuple[tuple[str, str, bool, int], ...], str]] = {
    "expert": (
        "Expert iteration",
        (("loss", "loss, nats per token", False, 1),),
        "Fine-tuning on the model's own right solutions, beside the practice of before.",
    ),
    "verifier": (
        "Verifier",
        (("loss", "loss, nats per token", False, 1), ("accuracy", "tokens told apart", True, 2)),
        "At every token of a solution: is it going to be right? Half of the solutions are.",
    ),
    "distill": (
        "Distillation",
        (("kl", "reverse KL, nats per token", False, 1),),
        "How far the small model is from its teacher, on what the small one writes itself.",
    ),
}


def further(stage: str, report: Row, rows: Sequence[Row]) -> str:
    """The curves of an optional stage; nothing where the recipe doesn't have it."""
    if stage not in report["recipe"]:
        return ""
    heading, curves, caption = _FURTHER[stage]
    out, panels = f"<h2>{safe(heading)}</h2>", _panels(rows, curves)
    if not panels:
        return out + missing(report, stage, "The curves")
    pair = f'<div class="pair">{"".join(panels)}</div>'
    return out + figure(pair, heading, f"{caption} Each step faintly, the running mean on top.")


def rl(report: Row, rows: Sequence[Row]) -> str:
    """Small charts on the same steps (reward, pass rate, length and others), and the reward by task."""
    out = "<h2>Reinforcement learning</h2>"
    panels = _panels(
        rows,
        (
            ("reward", "mean reward", False, 1),
            ("pass_rate", "groups solved at least once", True, 2),
            ("length", "answer length, tokens", False, 3),
            ("informative", "informative groups", True, 4),
            ("entropy", "entropy, nats per token", False, 1),
            ("truncated", "cut off at the limit", True, 2),
        ),
    )
    if not panels:
        return out + missing(report, "rl", "The reward curves")
    caption = (
        "Each step faintly, the running mean on top. A group is informative when its answers earned "
        "different rewards; only such groups teach anything."
    )
    pair = f'<div class="pair">{"".join(panels)}</div>'
    families = sorted({key for row in rows for key in row if key.startswith("reward_")})
    lines = [
        series(rows, key, key.removeprefix("reward_"), colour=1 + i % 4, noisy=True)
        for i, key in enumerate(families)
    ]
    by_task = line_chart("Mean reward by task", lines, x_label="step", y_label="mean reward")
    return (
        out
        + figure(pair, "Learning from verified answers", caption)
        + figure(by_task, "Reward by task", "The same steps, each task on its own.")
    )


def _panels(rows: Sequence[Row], curves: Sequence[tuple[str, str, bool, int]]) -> list[str]:
    """A small chart of each key that the rows have: (key, title, whether it is a share, colour)."""
    panels = []
    for key, title, percent, colour in curves:
        line = series(rows, key, colour=colour, noisy=True)
        percent = percent and all(0 <= y <= 1 for _, y in line.points)
        low = 0.0 if line.points and min(y for _, y in line.points) >= 0 else None
        high = 1.0 if percent and line.points and max(y for _, y in line.points) > 0.5 else None
        chart = line_chart(
            title, [line], x_label="step", percent=percent, y_from=low, y_to=high, width=350, height=190
        )
        if chart:
            panels.append(f"<div><p>{safe(title)}</p>{chart}</div>")
    return panels


def time_strip(stages: dict[str, Row]) -> str:
    """Where the time went."""
    parts = [(name, float(stage.get("seconds") or 0.0)) for name, stage in stages.items()]
    return figure(
        share_strip("Time per stage", parts), "Where the time went", "Widths are shares of the whole time."
    )


def flops(rate: float) -> str:
    """`106000000000` -> `106 GFLOP/s`."""
    number, unit = short(rate), ""
    if number[-1] in "kMGT":
        number, unit = number[:-1], number[-1]
    return f"{number} {unit}FLOP/s"


def _throughput(result: Row) -> str:
    speed, rate, peak = (
        result.get(k) for k in ("tokens_per_second", "flops_per_second", "matmul_flops_per_second")
    )
    if not isinstance(speed, (int, float)):
        return ""
    words = [f"{speed:,.0f} tokens per second"]
    if isinstance(rate, (int, float)):
        words.append(f"{flops(rate)}")
    if isinstance(peak, (int, float)) and isinstance(result.get("fraction"), (int, float)):
        words.append(
            f"{result['fraction']:.0%} of the {flops(peak)} that this machine reaches in plain matrix "
            "products of the model’s own sizes"
        )
    return f"<p>{safe('; '.join(words))}.</p>"


def missing(report: Row, stage: str, what: str) -> str:
    """A sentence for something that isn't there: never an empty chart, never a made-up number."""
    why = f"the stage “{stage}” has not finished" if stage in report["missing"] else "nothing was recorded"
    return f'<p class="missing">{safe(what)}: not there, {why}.</p>'
