"""Published shapes by name: `presets.toml` read as if each were a folder's config.json.

A preset says its family and the config values that its publisher gave (in the words of transformers),
its parameters as published, and where that number stands. `like` takes over another preset's values.
"""

from __future__ import annotations

import difflib
import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ayllu.errors import InputNotFoundError
from ayllu.model.config import ModelConfig

_FILE = Path(__file__).with_name("presets.toml")
_UNITS = {"M": 10**6, "B": 10**9, "T": 10**12}


@dataclass(frozen=True)
class Preset:
    """One published shape. `total` and `active` are as published ("6.7B"); `besides`: weights that the
    published total counts and a text decoder doesn't have (a vision encoder); `estimate`: the shape was
    never published and is chosen to meet the published counts."""

    name: str
    title: str
    family: str
    values: dict[str, Any]
    total: str
    source: str
    active: str = ""
    besides: int = 0
    note: str = ""
    estimate: bool = False

    def config(self) -> ModelConfig:
        """The shape, read by the preset's family."""
        from ayllu.model.families import family

        return family(self.family).config_from_hf(self.values)


def number(text: str) -> float:
    """A published count: "6.7B" -> 6.7e9."""
    return float(text[:-1]) * _UNITS[text[-1]]


@functools.cache
def presets() -> dict[str, Preset]:
    """All presets by name, in the order of the file."""
    table = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    found: dict[str, Preset] = {}
    for name, entry in table.items():
        given = dict(entry)
        like = found.get(given.pop("like", ""))
        if like is not None:
            given.setdefault("family", like.family)
            given["values"] = like.values | given.get("values", {})
        given["values"] |= dict.fromkeys(given.pop("null", []))
        found[name] = Preset(name=name, **given)
    return found


def preset(name: str) -> Preset:
    """The preset of that name. Raises InputNotFoundError, which names the nearest ones."""
    found = presets().get(name.lower())
    if found is None:
        near = difflib.get_close_matches(name.lower(), presets(), n=3, cutoff=0.5)
        raise InputNotFoundError(
            f"there is no model or preset {name!r}",
            fix=f"did you mean {' or '.join(near)}?" if near else "ayllu show lists the presets",
        )
    return found
