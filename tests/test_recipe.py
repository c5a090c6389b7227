"""Recipes: what is read, what is refused and with which words."""

from __future__ import annotations

import dataclasses
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ayllu.errors import InputNotFoundError, RecipeError, RecipeKeyError, RecipeValueError
from ayllu.recipe import RunSettings, compose, nearest, read_recipe, to_toml
from ayllu.stage import bounded, free, one_of


@dataclass(frozen=True)
class Inner:
    depth: int = bounded(3, 1, 9, "levels below")


@dataclass(frozen=True)
class OvenSettings:
    temperature: int = bounded(180, 50, 300, "degrees Celsius")
    minutes: float = bounded(12.5, 0.0, 90.0, "time in the oven")
    mode: str = one_of("fan", ("fan", "grill", "steam"), "how the heat comes")
    preheat: bool = free(True, "wait until it is hot")
    trays: tuple[str, ...] = free(("upper",), "what goes in")
    shares: dict[str, float] = bounded(None, 0, 1, "per kind of bread")  # type: ignore[assignment]
    crust: int | None = bounded(None, 1, 5, "hardness")
    inner: Inner = dataclasses.field(default_factory=Inner)

    def check(self, tables: dict[str, Any]) -> None:
        if self.mode == "steam" and self.temperature > 200:
            raise RecipeError("steam above 200 degrees", fix="lower oven.temperature")


TABLES = {"oven": "kitchen:OvenSettings"}


@pytest.fixture(autouse=True, scope="module")
def kitchen() -> Any:
    module = ModuleType("kitchen")
    module.OvenSettings = OvenSettings  # type: ignore[attr-defined]
    sys.modules["kitchen"] = module
    yield
    del sys.modules["kitchen"]


def read(tmp_path: Path, text: str) -> Any:
    path = tmp_path / "bread.toml"
    path.write_text(text, encoding="utf-8")
    return compose(read_recipe(path), TABLES)


def test_defaults_and_values(tmp_path: Path) -> None:
    recipe = read(
        tmp_path,
        "seed = 7\n[oven]\nminutes = 20\ntrays = ['a', 'b']\nshares = {rye = 1}\n[oven.inner]\ndepth = 2",
    )
    assert recipe.run == RunSettings(name="bread", seed=7)  # the file's name
    oven = recipe.tables["oven"]
    assert oven == OvenSettings(minutes=20.0, trays=("a", "b"), shares={"rye": 1.0}, inner=Inner(2))
    assert type(oven.minutes) is float


def test_the_written_recipe_reads_back_the_same(tmp_path: Path) -> None:
    first = read(tmp_path, "name = 'x'\n[oven]\ntrays = ['అన్నం', 'q\"uote\\n']\nshares = {'a b' = 0.25}")
    again = read(tmp_path, to_toml(first.as_dict(), "every value written out"))
    assert again == first


scalars = st.one_of(st.integers(-(2**62), 2**62), st.floats(allow_nan=False), st.booleans(), st.text())
names = st.text(min_size=1)


@given(st.dictionaries(names, st.one_of(scalars, st.lists(scalars), st.dictionaries(names, scalars))))
def test_toml_keeps_every_value(values: dict[str, Any]) -> None:
    assert tomllib.loads(to_toml(values)) == values


FIELDS = [f.name for f in dataclasses.fields(OvenSettings)]


@settings(deadline=None)
@given(st.sampled_from(FIELDS), st.data())
def test_a_slip_of_one_letter_is_answered_with_the_key(name: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(name) - 1))
    letter = data.draw(st.sampled_from("abcxyz"))
    before, after = name[:at], name[at + 1 :]
    slips = [before + after, before + letter + after, before + letter + name[at:], name.upper(), name + "s"]
    slip = data.draw(st.sampled_from(slips))
    if slip in FIELDS:
        return
    with pytest.raises(RecipeKeyError) as caught:
        compose({"name": "a", "oven": {slip: 1}}, TABLES)
    assert caught.value.exit_code == 3
    assert "[oven]" in caught.value.what and repr(slip) in caught.value.what
    assert caught.value.fix == f"did you mean {name!r}?"


def test_a_key_like_no_other_is_answered_with_all_keys() -> None:
    with pytest.raises(RecipeKeyError) as caught:
        compose({"name": "a", "oven": {"qqq": 1}}, TABLES)
    assert all(name in caught.value.fix for name in FIELDS)


@pytest.mark.parametrize(("key", "meant"), [("sed", "seed"), ("ovn", "oven"), ("thread", "threads")])
def test_keys_above_the_tables(key: str, meant: str) -> None:
    with pytest.raises(RecipeKeyError, match=f"did you mean '{meant}'"):
        compose({"name": "a", key: 1}, TABLES)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("temperature", 301, ["301", "50 to 300", "degrees Celsius", "180"]),
        ("temperature", 49, ["49", "50 to 300"]),
        ("temperature", True, ["true", "whole number"]),
        ("temperature", 180.0, ["180.0", "whole number"]),
        ("temperature", "hot", ["hot", "whole number"]),
        ("minutes", float("nan"), ["nan", "number"]),
        ("minutes", float("inf"), ["inf", "number"]),
        ("mode", "gril", ["gril", "did you mean 'grill'"]),
        ("preheat", 1, ["true or false"]),
        ("trays", "upper", ["a list"]),
        ("trays", [1], ["oven.trays[0]", "text"]),
        ("shares", {"rye": 2}, ["oven.shares.rye", "0 to 1"]),
        ("crust", 9, ["1 to 5"]),
        ("inner", {"depth": 0}, ["oven.inner.depth", "1 to 9"]),
        ("inner", 4, ["a table"]),
    ],
)
def test_impossible_values_are_named_with_their_bounds(key: str, value: Any, words: list[str]) -> None:
    with pytest.raises(RecipeValueError) as caught:
        compose({"name": "a", "oven": {key: value}}, TABLES)
    text = str(caught.value)
    assert caught.value.exit_code == 3
    assert f"oven.{key}" in text and all(word in text for word in words), text


@pytest.mark.parametrize("value", [50, 300])
def test_bounds_belong_to_the_range(value: int) -> None:
    assert compose({"name": "a", "oven": {"temperature": value}}, TABLES).tables["oven"].temperature == value


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden", "a" * 65, "a b", 5])
def test_the_name_must_be_a_folder_name(name: Any) -> None:
    with pytest.raises(RecipeValueError, match="name"):
        compose({"name": name}, TABLES)


def test_a_table_that_is_no_table() -> None:
    with pytest.raises(RecipeValueError, match=r"\[oven\]"):
        compose({"name": "a", "oven": 3}, TABLES)


@pytest.mark.parametrize(
    ("table", "values", "said"),
    [
        ("model", {"width": 65}, "width = 65 doesn't fit"),
        ("eval", {"families": ["arithmetik"]}, "no family 'arithmetik'"),
        ("sft", {"families": {"arithmetic": 0.5}}, "sft.families.arithmetic can't be used"),
        ("sft", {"families": {"gsm8k_resampled": 0.5}}, "gsm8k = "),
        ("rl", {"families": {"gsm8k_resampled": 0.5}}, "rl.families: gsm8k_resampled needs"),
        ("expert", {"families": {"gsm8k_resampled": 0.5}}, "expert.families: gsm8k_resampled needs"),
        ("verifier", {"families": {"gsm8k_resampled": 0.5}}, "verifier.families: gsm8k_resampled needs"),
        ("distill", {"families": {"gsm8k_resampled": 0.5}}, "distill.families: gsm8k_resampled needs"),
        ("distill", {"max_tokens": 512}, "no room for a question in 512 tokens"),
        ("eval", {"families": ["gsm8k_resampled"]}, "eval.families: gsm8k_resampled needs"),
        ("rl", {"families": {"countdown3": 0.5}}, "rl.families.countdown3 can't be used"),
        ("rl", {"arithmetic": 0, "calculator": 0, "countdown3": 0}, "rl: every share is 0"),
        ("rl", {"max_tokens": 512}, "no room for a question in 512 tokens"),
    ],
)
def test_what_a_later_stage_would_refuse_is_refused_before_the_first(
    table: str, values: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeValueError) as caught:
        compose({"name": "a", table: values})
    assert said in str(caught.value)


def test_values_that_do_not_fit_together() -> None:
    with pytest.raises(RecipeError, match="steam above 200"):
        compose({"name": "a", "oven": {"mode": "steam", "temperature": 250}}, TABLES)


@pytest.mark.parametrize(
    ("text", "line"),
    [("seed = 1\nname = \n", "line 2: name ="), ("a = 1\na = 2", "line 2"), ("[oven", "line 1")],
)
def test_bad_toml_names_the_line(tmp_path: Path, text: str, line: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, text)
    assert line in str(caught.value) and "bread.toml" in str(caught.value)


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    (tmp_path / "demo.toml").write_text("seed = 1")
    with pytest.raises(InputNotFoundError, match=r"did you mean .*demo\.toml"):
        read_recipe(tmp_path / "dmeo.toml")
    with pytest.raises(InputNotFoundError):
        read_recipe(tmp_path / "nowhere" / "demo.toml")
    with pytest.raises(RecipeError, match="folder"):
        read_recipe(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"seed = 1\nname = '\xfc'")
    with pytest.raises(RecipeError, match="line 2"):
        read_recipe(tmp_path / "latin.toml")


@given(st.text(), st.lists(st.text(), max_size=5))
def test_nearest_answers_with_a_name_or_nothing(word: str, known: list[str]) -> None:
    assert nearest(word, known) in [*known, None]
    assert all(nearest(name, [name]) == name for name in known if name)
