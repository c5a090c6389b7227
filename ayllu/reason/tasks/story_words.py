"""The words of the stories, in three languages: people, things, verbs, sentences (`phrases/stories.toml`)."""

from __future__ import annotations

import functools
import tomllib
from pathlib import Path
from random import Random
from typing import Any

LANGUAGES = ("en", "de", "te")


@functools.cache
def words() -> dict[str, Any]:
    """The grammar's words."""
    path = Path(__file__).parent / "phrases" / "stories.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


@functools.cache
def predicates() -> tuple[str, ...]:
    """Every verb with every thing that it goes with: `gain.pick apples`."""
    return tuple(
        f"{group}.{name} {thing[0]}"
        for group in ("gain", "loss", "daily")
        for name, verb in words()[group].items()
        for kind in verb["with"]
        for thing in words()["things"][kind]
    )


@functools.cache
def verbs(group: str, kind: str) -> tuple[str, ...]:
    """The verbs of a group that go with a kind of things."""
    return tuple(f"{group}.{name}" for name, verb in words()[group].items() if kind in verb["with"])


@functools.cache
def _wordings(style: str) -> int:
    group, _, name = style.partition(".")
    table = words()[group][name]["en"]
    return len(table) if isinstance(table, list) else 1


def draw_wording(rng: Random, style: str) -> int:
    """One of the wordings of a sentence, by its number in English; languages with fewer begin again."""
    return rng.randrange(_wordings(style))
