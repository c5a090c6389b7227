"""docs/practice.md and docs/recipes.md have every family and every setting, as the code has them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ayllu.reason.practice import TASKS
from ayllu.reason.tasks.countdown import check
from ayllu.recipe import TABLES, RunSettings, load_name
from ayllu.tools.calculator import evaluate

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "practice.md").read_text(encoding="utf-8")
RECIPES = (DOCS / "recipes.md").read_text(encoding="utf-8")
PRACTICE = ("sft", "expert", "rl", "verifier", "distill")


def shown(value: Any) -> str:
    if value is dataclasses.MISSING or value in ((), ""):
        return "none"
    return str(value)


def row(field: dataclasses.Field[Any]) -> str:
    """The line of the page for a setting: name, default, what it may be, what it is."""
    about = field.metadata
    may_be = ", ".join(about["choices"]) if "choices" in about else ""
    if "low" in about:
        may_be = f"{about['low']:g} to {about['high']:g}"
    return f"| `{field.name}` | {shown(field.default)} | {may_be} | {about['help']} |"


@pytest.mark.parametrize("table", ["", *TABLES])
def test_every_setting_stands_in_its_section(table: str) -> None:
    settings = load_name(TABLES[table]) if table else RunSettings
    page = PAGE if table in PRACTICE else RECIPES
    title = f"`[{table}]`" if table else "Above the tables"
    section = page.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    assert rows == [row(field) for field in dataclasses.fields(settings)]


def test_every_family_stands_in_the_table() -> None:
    rows = [
        line.split("|") for line in PAGE.partition("## How each")[0].splitlines() if line.startswith("| `")
    ]
    told = {
        name.strip().strip("`"): (int(levels), new.strip() == "yes") for _, name, _, levels, _, new, _ in rows
    }
    tools = {name.strip().strip("`"): tool.strip() for _, name, _, _, tool, _, _ in rows}
    for name in told.keys() - {"tool_choice", "gsm8k_resampled", "dialogue"}:
        rng = np.random.default_rng(0)
        drawn = [TASKS[name].problem(rng, 1, "train").tools for _ in range(40)]
        (most,) = {each for each in drawn if each} or {()}
        words = ", ".join(most)
        assert tools[name] == (words if all(drawn) else f"({words})" if most else ""), name
    assert told == {name: (task.levels, task.templates) for name, task in TASKS.items() if "gym_" not in name}


def test_how_each_is_asked() -> None:
    """Every family is there, and where a question has one right answer the family's own verifier says so."""
    section = PAGE.partition("## How each")[2].partition("\n## ")[0]
    rows = [re.split(r" \| ", line.strip("| ")) for line in section.splitlines() if line.startswith("| `")]
    named = {
        name: (question, said) for names, question, said in rows for name in re.findall(r"`(\w+)`", names)
    }
    assert named.keys() - {"sql", "python"} >= {
        name for name in TASKS if "gym_" not in name and name != "gsm8k_resampled"
    }
    for name in ("countdown3", "countdown4"):
        question, said = named[name]
        numbers = list(map(int, re.findall(r"\d+", question)))
        target = numbers.pop(-1 if question.startswith("Use") else 0)
        assert check(said, numbers, target)[0]
    for name in ("arithmetic", "calculator", "expressions"):
        question, said = named[name]
        assert evaluate(re.sub(r"[^-+*/()\d]", "", question.replace("×", "*"))) == int(said)
