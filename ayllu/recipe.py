"""A recipe: the typed, complete description of a run.

A recipe is a TOML file. Its top-level keys are those of `RunSettings`; each table belongs to one part
of the house and is read into the settings dataclass that this part declares beside its own code, with
bounds and one line of help in the fields' metadata (stage.py: `bounded`, `one_of`, `free`). So there is
no second list of settings here, only the names of the tables.

Nothing is guessed: an unknown key is refused with the nearest known one, a value of the wrong type or
outside its bounds with the bounds and the help. What was left out gets its default, and the run folder
receives the recipe with every value written out (`to_toml`).
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import json
import math
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ayllu.errors import InputNotFoundError, RecipeError, RecipeKeyError, RecipeValueError
from ayllu.stage import bounded, free, one_of

# Table of the recipe -> the dataclass that reads it. Imported when a recipe is composed, because some
# stand in modules that import torch.
TABLES: dict[str, str] = {
    "guard": "ayllu.evals.guard:GuardSettings",
    "text": "ayllu.text.stage:TextSettings",
    "tokenizer": "ayllu.text.stage:TokenizerSettings",
    "model": "ayllu.model.config:ModelSettings",
    "pretrain": "ayllu.train.pretrain:PretrainSettings",
    "sft": "ayllu.train.sft:SftSettings",
    "expert": "ayllu.train.expert:ExpertSettings",
    "rl": "ayllu.train.rl:RlSettings",
    "verifier": "ayllu.train.verifier:VerifierSettings",
    "distill": "ayllu.train.distill:DistillSettings",
    "eval": "ayllu.evals.stage:EvalSettings",
    "release": "ayllu.release:ReleaseSettings",
}

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class RunSettings:
    """The keys above all tables."""

    name: str = free("", "name of the run and of its folder: letters, digits, '.', '_' and '-'")
    seed: int = bounded(0, 0, 2**31 - 1, "every random choice of the run follows from it")
    threads: int = bounded(0, 0, 1024, "threads for the arithmetic; 0 takes the physical cores")
    device: str = one_of(
        "auto", ("auto", "cpu", "cuda"), "where tensors live; auto takes a GPU if there is one"
    )


@dataclass(frozen=True)
class Recipe:
    """A recipe that has been read and checked: the run's own settings and one settings object a table."""

    run: RunSettings
    tables: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values (lists for tuples), in the recipe's own layout; keys that are None are left out."""
        return _plain(self.run) | {name: _plain(settings) for name, settings in self.tables.items()}


def load_name(path: str) -> Any:
    """The object that `package.module:name` names; the module is imported."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def read_recipe(path: Path) -> dict[str, Any]:
    """The TOML file as a dict, unchecked but for its form; `name` defaults to the file's stem.

    Raises InputNotFoundError, or RecipeError with the line that can't be read.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        near = (
            nearest(path.name, (p.name for p in path.parent.glob("*.toml"))) if path.parent.is_dir() else None
        )
        raise InputNotFoundError(
            f"there is no recipe {path}",
            fix=f"did you mean {path.parent / near}?" if near else "check the path",
        ) from error
    except IsADirectoryError as error:
        raise RecipeError(
            f"{path} is a folder", fix="name a recipe file, such as recipes/demo.toml"
        ) from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise RecipeError(f"{path} is not UTF-8 text (line {line})", fix="save it as UTF-8") from error
    except PermissionError as error:
        raise InputNotFoundError(f"{path} can't be read", why="no permission") from error
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(
            f"{path} is not valid TOML", why=str(error), fix=_quote_line(text, str(error))
        ) from error
    raw.setdefault("name", path.stem)
    return raw


def compose(raw: Mapping[str, Any], tables: Mapping[str, str] = TABLES) -> Recipe:
    """Check `raw` and give it its types. Raises RecipeKeyError, RecipeValueError, RecipeError.

    A settings class may have a method `check(tables) -> None` that looks at the other tables as well
    and raises RecipeError when the values don't fit together.
    """
    run = compose_run(raw, tables)
    composed = {}
    for name, path in tables.items():
        values = raw.get(name, {})
        if not isinstance(values, Mapping):
            raise RecipeValueError(
                f"{name} = {values!r} must be a table", fix=f"write [{name}] and its keys below"
            )
        composed[name] = _fill(load_name(path), values, name)
    for settings in composed.values():
        if callable(check := getattr(settings, "check", None)):
            check(composed)
    return Recipe(run, composed)


def compose_run(raw: Mapping[str, Any], tables: Mapping[str, str] = TABLES) -> RunSettings:
    """Only the keys above the tables, and the tables' names; imports nothing."""
    known = {f.name for f in dataclasses.fields(RunSettings)}
    top = {key: value for key, value in raw.items() if key not in tables}
    for key in top:
        if key not in known:
            raise _unknown(key, "", sorted(known | set(tables)))
    run: RunSettings = _fill(RunSettings, top, "")
    if not NAME.fullmatch(run.name):
        raise RecipeValueError(
            f"name = {run.name!r} can't name a folder", fix="use up to 64 letters, digits, '.', '_' and '-'"
        )
    return run


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant, or None: case and `-`/`_` don't count."""
    plain = {name.lower().replace("-", "_"): name for name in names}
    found = difflib.get_close_matches(word.lower().replace("-", "_"), plain, n=1, cutoff=0.5)
    return plain[found[0]] if found else None


# ---- from plain values to dataclasses
def _fill(cls: type, values: Mapping[str, Any], table: str) -> Any:
    """An instance of the settings class `cls`; keys that are absent keep their defaults."""
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    made = {}
    for key, value in values.items():
        where = f"{table}.{key}" if table else key
        if key not in fields:
            raise _unknown(key, table, sorted(fields))
        made[key] = _convert(value, hints[key], fields[key], where)
    return cls(**made)


def _convert(value: Any, hint: Any, spec: dataclasses.Field[Any], where: str) -> Any:
    """`value` as the type `hint`, within the bounds of the field; RecipeValueError names them."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next(choice for choice in typing.get_args(hint) if choice is not type(None))
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise _wrong(value, "a table", spec, where)
        return _fill(typing.cast(type, hint), value, where)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise _wrong(value, "a table", spec, where)
        return {key: _convert(v, inner[1], spec, f"{where}.{key}") for key, v in value.items()}
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            raise _wrong(value, "a list", spec, where)
        fixed = origin is tuple and not (len(inner) == 2 and inner[1] is Ellipsis)
        if fixed and len(value) != len(inner):
            raise _wrong(value, f"a list of {len(inner)}", spec, where)
        kinds = inner if fixed else [inner[0]] * len(value)
        made = [
            _convert(v, k, spec, f"{where}[{i}]") for i, (v, k) in enumerate(zip(value, kinds, strict=True))
        ]
        return origin(made)
    return _scalar(value, hint, spec, where)


def _scalar(value: Any, hint: Any, spec: dataclasses.Field[Any], where: str) -> Any:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text in quotes"}
    assert hint in names, f"{where}: settings of type {hint} can't be read from a recipe"
    exact = isinstance(value, bool) == (hint is bool)  # in Python a bool is an int; in a recipe it isn't
    if not exact or not isinstance(value, (int, float) if hint is float else hint):
        raise _wrong(value, names[hint], spec, where)
    if hint is float:
        value = float(value)
        if not math.isfinite(value):
            raise _wrong(value, "a finite number", spec, where)
    low, high = spec.metadata.get("low", -math.inf), spec.metadata.get("high", math.inf)
    if isinstance(value, int | float) and not low <= value <= high:
        raise _wrong(value, names[hint], spec, where)
    if "choices" in spec.metadata and value not in spec.metadata["choices"]:
        raise _wrong(value, names[hint], spec, where)
    return value


def _wrong(value: Any, expected: str, spec: dataclasses.Field[Any], where: str) -> RecipeValueError:
    """The error for a value that doesn't fit, with what would."""
    rule = spec.metadata
    if "choices" in rule:
        expected = "one of " + ", ".join(_toml(choice) for choice in rule["choices"])
        if isinstance(value, str) and (near := nearest(value, map(str, rule["choices"]))):
            expected += f" (did you mean {near!r}?)"
    elif "low" in rule:
        expected += f" from {_number(rule['low'])} to {_number(rule['high'])}"
    default = (
        ""
        if spec.default in (dataclasses.MISSING, None, "")
        else f"; the default is {_toml(_plain(spec.default))}"
    )
    shown = _toml(_plain(value)) if isinstance(value, bool | int | float | str | list) else repr(value)
    return RecipeValueError(
        f"{where} = {shown[:200]} is not possible", why=rule.get("help", ""), fix=f"give {expected}{default}"
    )


def _unknown(key: str, table: str, known: list[str]) -> RecipeKeyError:
    """The error for a key that nobody reads, with the nearest one that somebody does."""
    where = f"[{table}] has no key {key!r}" if table else f"a recipe has no key or table {key!r}"
    if near := nearest(key, known):
        fix = f"did you mean {near!r}?"
    else:
        fix = f"known here: {', '.join(known)}"
    return RecipeKeyError(where, fix=fix)


# ---- and back
def _plain(value: Any) -> Any:
    """Dataclasses, tuples and dicts as what JSON and TOML have; None is left out of tables."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        pairs = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {name: _plain(v) for name, v in pairs if v is not None}
    if isinstance(value, Mapping):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def to_toml(values: Mapping[str, Any], heading: str = "") -> str:
    """`values` (as of Recipe.as_dict) as TOML that `read_recipe` reads back to the same values."""
    lines = [f"# {line}".rstrip() for line in heading.splitlines()]
    lines += [f"{_key(k)} = {_toml(v)}" for k, v in values.items() if not isinstance(v, Mapping)]
    for name, table in values.items():
        if isinstance(table, Mapping):
            lines += ["", f"[{_key(name)}]", *(f"{_key(k)} = {_toml(v)}" for k, v in table.items())]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)


def _toml(value: Any) -> str:
    """One value in TOML's notation. JSON's strings are TOML's, but for U+007F."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    return repr(value)


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _quote_line(text: str, message: str) -> str:
    """The line that a TOML message speaks of, to be shown to the writer."""
    lines = text.rstrip().splitlines() or [""]
    found = re.search(r"at line (\d+)", message)  # or "at end of document"
    number = min(int(found[1]), len(lines)) if found else len(lines)
    return f"look at line {number}: {lines[number - 1].strip()[:100]}"
