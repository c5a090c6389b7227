"""The model card: what a released model is, what it can't do, what it was made from, how it was measured.

The form is that of Mitchell et al. 2019 (Model Cards for Model Reporting) with the YAML head that
model hubs read. Every number comes from the run's report or the data manifest; what was not measured
is said to be missing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ayllu.evals.metrics import wilson
from ayllu.progress import clock
from ayllu.report.charts import short
from ayllu.report.summary import WHEN

SKILLS = {
    "arithmetic": "adds, subtracts (to three digits) and multiplies (to 2×2 digits) with its working shown",
    "calculator": "does the same on longer numbers by calling a calculator",
    "countdown3": "searches for a way to reach a target from three numbers (Countdown)",
    "dialogue": "greets, and says what it can and can't do, in English, German and Telugu",
}


def model_card(title: str, report: dict[str, Any], data: dict[str, Any]) -> str:
    """README.md of a model folder, from its report and its data manifest."""
    parts = (
        _head(report),
        f"# {_inline(title)}",
        _what(report),
        _limits(report),
        _evaluation(report),
        _beside(report),
        _training_data(report, data),
        _making(report),
        _use(report),
    )
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _head(report: dict[str, Any]) -> str:
    languages = sorted(
        {row["language"] for row in _mixture(report) if row.get("language") and row.get("documents")}
    )
    lines = ["---"]
    if languages:
        lines += ["language:", *(f"- {json.dumps(code)}" for code in languages)]
    tags = ("ayllu", "reasoning", "tool-use", "small-language-model", "trained-from-scratch")
    # Hubs show this line; whose own text is in it, only its maker can say what others may do.
    licence = ["license: apache-2.0"] if is_public(report) else ["license: other", "license_name: private"]
    lines += [*licence, "library_name: transformers", "pipeline_tag: text-generation", "tags:"]
    return "\n".join([*lines, *(f"- {tag}" for tag in tags), "---"])


def _what(report: dict[str, Any]) -> str:
    count = report.get("pretrain", {}).get("parameters")
    size = f" with {short(count)} parameters" if isinstance(count, (int, float)) else ""
    stored = f" Its weights are stored in {report['weights_dtype']}." if "weights_dtype" in report else ""
    free = (
        " Weights, code, data manifest and recipe are free to use, change and build on."
        if is_public(report)
        else " Some of its text is its maker's own (`private`): whether these weights may be handed on is "
        "theirs to say."
    )
    text = "public text" if is_public(report) else "text that isn't all public,"
    return (
        f"A small reasoning model{size}, trained from scratch on {text} with Ayllu: it thinks in the "
        f"open, calls tools and answers.{stored}{free}"
    )


def is_public(report: dict[str, Any]) -> bool:
    """Whether all its text has a licence that others may use it under."""
    return "private" not in {
        licence for row in _mixture(report) if row.get("documents") for licence in row.get("licences") or []
    }


def _limits(report: dict[str, Any]) -> str:
    lines = ["## What it can do, and what it can't", ""]
    measured = [family for family in report["evals"] if family in SKILLS]
    lines += [f"- It {SKILLS[family]}; how reliably, the table below says." for family in measured]
    others = [family for family in report["evals"] if family not in SKILLS]
    if others:
        lines.append(
            f"- It was examined in {', '.join(f'`{family}`' for family in others)}: the table below."
        )
    if not measured and not others:
        lines.append("What it can do was not measured in this run.")
    lines += [
        "",
        "It is a demonstration of a whole pipeline, not an assistant for daily work. It knows next to "
        "nothing about the world, can't hold a free conversation, and text that it continues may be wrong, "
        "outdated or offensive. It has had no safety training. Its thinking is how it was taught to work, "
        "not proof that the answer is right. Don't let it decide anything that matters.",
    ]
    return "\n".join(lines)


def _evaluation(report: dict[str, Any]) -> str:
    lines = ["## Evaluation", ""]
    rows = [
        (
            family,
            f"after {when.upper()}",
            f"{row['n']:,}",
            f"{row['correct']:,}",
            f"{row['correct'] / max(row['n'], 1):.1%}",
            f"{row['low']:.1%} – {row['high']:.1%}",
        )
        for family, both in report["evals"].items()
        for when in WHEN
        if (row := both.get(when))
    ]
    if rows:
        lines.append(
            _table(("task", "weights", "problems", "right", "accuracy", "95% Wilson interval"), rows)
        )
        lines += [
            "",
            "The problems are held out by construction: a hash of each problem decides which split owns it. "
            "The weights in this folder are the last ones, after RL." + _rounded(report),
        ]
    else:
        lines.append("Missing: this run has no finished evaluation.")
    pre = report.get("pretrain", {})
    if isinstance(pre.get("bits_per_byte"), (int, float)):
        xz = pre.get("xz_bits_per_byte")
        against = f" (`xz -9e` on the same documents: {xz:.3f})" if isinstance(xz, (int, float)) else ""
        lines += [
            "",
            f"Held-out documents after pretraining: {pre['bits_per_byte']:.3f} bits per byte{against}.",
        ]
    return "\n".join(lines)


def _rounded(report: dict[str, Any]) -> str:
    """What storing them in fewer bits means for the figures."""
    dtype = report.get("weights_dtype", "float32")
    return "" if dtype == "float32" else f" They were rounded to {dtype} after they had been examined."


def _beside(report: dict[str, Any]) -> str:
    """What stands in folders beside the weights: a verifier, a distilled model."""
    parts = []
    judged = (report.get("verifier") or {}).get("heldout") or {}
    if "verifier" in report and not judged.get("problems"):
        parts += ["## The verifier", "It is in the folder `verifier`. Missing: it was not measured."]
    elif judged:
        n = judged["problems"]
        shares = [judged[way] for way in ("one", "majority", "weighted", "best_of", "any")]
        between = [wilson(min(share * n, n), n) for share in shares]
        rows = [
            [
                f"{share:.1%} ({low:.1%} – {high:.1%})"
                for share, (low, high) in zip(shares, between, strict=True)
            ]
        ]
        parts += [
            "## The verifier",
            f"The folder `verifier` holds a copy of the model that says how likely an answer is right. It "
            f"chose among {report['verifier']['samples']} answers (temperature "
            f"{report['verifier']['temperature']}) to each of {n:,} "
            "problems of the test split, of the highest level; shares whose chosen answer is right, with 95% "
            "intervals:",
            _table(("without a choice", "majority", "weighted vote", "best score", "any is right"), rows),
        ]
    made = report.get("distill") or {}
    if made.get("evals"):
        sizes = made["parameters"]
        heads = (
            "task",
            "problems",
            f"this model ({short(sizes['teacher'])})",
            f"the small one ({short(sizes['student'])}) after SFT",
            "after distillation",
        )
        table = [
            [family, f"{rows['student']['n']:,}"]
            + [
                f"{row['correct'] / max(row['n'], 1):.1%} ({row['low']:.1%} – {row['high']:.1%})"
                for row in (rows["teacher"], rows["sft"], rows["student"])
            ]
            for family, rows in made["evals"].items()
        ]
        parts += [
            "## A smaller model",
            "The folder `student` holds a smaller model that learnt from this one (on-policy distillation). "
            f"Right answers to the same held-out problems, at most {limit} tokens each, with 95% Wilson "
            "intervals:"
            if isinstance(limit := report.get("recipe", {}).get("distill", {}).get("limit"), int)
            else "Right answers to the same held-out problems, with 95% Wilson intervals:",
            _table(heads, table),
        ]
    return "\n\n".join(parts)


def _training_data(report: dict[str, Any], data: dict[str, Any]) -> str:
    rows = [
        (
            row.get("language", ""),
            row.get("source", ""),
            f"{row.get('documents', 0):,}",
            f"{row.get('bytes', 0):,}",
            f"{row.get('share', 0):.1%}",
            ", ".join(row.get("licences") or []) or "missing",
        )
        for row in _mixture(report)
        if row.get("documents")
    ]
    lines = ["## Training data", ""]
    if rows:
        lines.append(_table(("language", "source", "documents", "bytes", "share", "licence"), rows))
    else:
        lines.append("Missing: the run has no mixture table.")
    train = data.get("train") or {}
    if train.get("sha256"):
        lines += [
            "",
            f"{train.get('documents', 0):,} documents were trained on; the hash of their list is "
            f"`{train['sha256']}`.",
        ]
    lines += [
        "",
        "Each document's source and licence is in `ATTRIBUTION.md`, the rules and hashes are in "
        "`manifest.json`. " + _practice(report.get("recipe", {})),
    ]
    return "\n".join(lines)


def _practice(recipe: dict[str, Any]) -> str:
    """Where the worked solutions and problems came from."""
    told = (
        "The reasoning traces of fine-tuning and the problems of RL were generated by programs, not by "
        "another model."
    )
    if recipe.get("sft", {}).get("gsm8k"):
        told += (
            " Among them are GSM8K's training problems (Cobbe et al. 2021, MIT licence) with other numbers; "
            "the hashes of the files are under `practice` in `manifest.json`."
        )
    if "expert" in recipe:
        told += " It has also learnt from those of its own solutions that were right (expert iteration)."
    return told


def _making(report: dict[str, Any]) -> str:
    machine = report.get("machine") or {}
    lines = ["## How it was made", ""]
    rows = [
        (
            name,
            clock(stage["seconds"]),
            f"{stage['peak_memory_mb']:,.0f} MB" if "peak_memory_mb" in stage else "–",
        )
        for name, stage in report["stages"].items()
        if "seconds" in stage
    ]
    if rows:
        lines += [_table(("stage", "time", "peak memory"), rows), ""]
    words = [f"{machine['chip']}" if machine.get("chip") else "an unnamed machine"]
    words += [
        f"{machine[key]} {unit}" for key, unit in (("threads", "threads"), ("gpu", "")) if machine.get(key)
    ]
    others = [
        m["chip"]
        if m["chip"] != machine.get("chip")
        else f"{m['chip']} ({', '.join(m.get('features') or [])})"
        for m in report.get("machines", [])
        if m.get("chip") and m != machine
    ]
    words += [f"in part on {', '.join(others)}"] if others else []
    lines.append(f"Made on {_inline(', '.join(words).strip())}, with seed {report['seed']}.")
    pre = report.get("pretrain", {})
    if isinstance(pre.get("tokens"), (int, float)) and isinstance(pre.get("tokens_per_second"), (int, float)):
        lines.append(
            f"Pretraining: {pre['tokens']:,.0f} tokens at {pre['tokens_per_second']:,.0f} per second."
        )
    lines.append("The complete recipe is in `manifest.json`, all measurements are in `report.json`.")
    return "\n".join(lines)


def _use(report: dict[str, Any]) -> str:
    context = report.get("recipe", {}).get("model", {}).get("context")
    limit = f" Its context is {context} tokens." if isinstance(context, int) else ""
    return f"""## How to use it

With Ayllu, tools included:

    ayllu chat FOLDER
    ayllu run FOLDER "What is 417 + 385?"
    ayllu serve FOLDER

With transformers (the model may end its turn with a tool call; run it and append the result):

    from transformers import AutoModelForCausalLM, AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    messages = [{{"role": "user", "content": "What is 417 + 385?"}}]
    inputs = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    print(tokenizer.decode(model.generate(**inputs, max_new_tokens=200)[0]))

Build prompts with the chat template, never by joining strings: the template breaks up control tokens that
somebody types into a message, a plain `tokenizer(text)` does not.{limit}

## Licence

{_licence(report)}"""


def _licence(report: dict[str, Any]) -> str:
    if is_public(report):
        return "Apache-2.0, see `LICENSE`."
    return "None is given: some of the text is its maker's own (`private`)."


def _mixture(report: dict[str, Any]) -> list[dict[str, Any]]:
    return list(report.get("text", {}).get("mixture") or [])


def _table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(_inline(cell) for cell in line) + " |" for line in lines)


def _inline(value: object) -> str:
    """Text from outside on one line, without what Markdown or HTML would take as a command."""
    text = " ".join(str(value).split())
    return "".join(f"\\{c}" if c in "|<>[]`*\\" else c for c in text)
