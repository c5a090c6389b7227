"""The recipes that the project ships: each is composed as `ayllu make` does, and is as large as it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ayllu.model.counts import parameters
from ayllu.model.weights import save_model, shell_of
from ayllu.recipe import TABLES, Recipe, compose, read_recipe
from ayllu.stages import OPTIONAL, stages_of

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
MOST, FILE = 64_000_000, 16 << 20  # bytes of a release's weights, and of one file of them


def composed(path: Path) -> Recipe:
    """As `make_plan` composes it: without the tables of optional stages that the recipe doesn't name."""
    raw = read_recipe(path)
    without = {stage.table for stage in OPTIONAL} - set(raw)
    return compose(raw, {name: table for name, table in TABLES.items() if name not in without})


def shape(recipe: Recipe) -> Any:
    return recipe.tables["model"].config(recipe.tables["tokenizer"].vocabulary)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_composed(path: Path) -> None:
    recipe = composed(path)
    assert recipe.run.name == path.stem and recipe.run.seed == 1
    assert all((ROOT / corpus).exists() for corpus in recipe.tables["text"].corpus)
    assert [stage.name for stage in stages_of(read_recipe(path))][-1] == "release"
    examined = {name.removesuffix("_templates") for name in recipe.tables["eval"].families}
    practised = {name for name, share in recipe.tables["sft"].shares().items() if share}
    # Countdown-3 is one game, by whichever expert it was learnt.
    assert examined <= practised | ({"countdown3"} if "countdown3_patient" in practised else set())


@pytest.mark.parametrize(
    ("name", "least", "most"), [("reason-cpu", 2e6, 5e6), ("reason-gpu", 30e6, 60e6), ("demo", 1e6, 2e6)]
)
def test_the_sizes_of_models(name: str, least: float, most: float) -> None:
    recipe = composed(ROOT / "recipes" / f"{name}.toml")
    count = parameters(shape(recipe))
    assert least <= count <= most
    assert count * (2 if recipe.tables["release"].dtype == "bfloat16" else 4) <= MOST
    if name.startswith("reason"):  # the size in the file's own words
        assert f"{count / 1e6:.1f} million parameters" in (ROOT / "recipes" / f"{name}.toml").read_text()


def test_the_files_of_the_largest_release(tmp_path: Path) -> None:
    recipe = composed(ROOT / "recipes" / "reason-gpu.toml")
    settings = recipe.tables["release"]
    model = shell_of(shape(recipe)).to_empty(device="cpu")
    size = settings.max_shard_size * 10**6
    save_model(model, tmp_path, bos=0, eos=1, pad=2, dtype=settings.dtype, shard_bytes=size)
    sizes = [path.stat().st_size for path in tmp_path.glob("*.safetensors")]
    assert len(sizes) > 1 and max(sizes) <= FILE and sum(sizes) <= MOST


def test_what_was_learnt_on_a_cpu_is_in_the_recipe_for_a_gpu() -> None:
    """docs/lab-log.md measured it with reason-cpu; who changes one of the two has to look at the other."""
    cpu, gpu = (composed(ROOT / "recipes" / f"reason-{kind}.toml").tables for kind in ("cpu", "gpu"))
    shares = {family: share for family, share in cpu["sft"].shares().items() if share}
    assert shares == {f: share for f, share in gpu["sft"].shares().items() if share and f in shares}
    assert cpu["sft"].budgets == gpu["sft"].budgets
    same = ("anchor", "anchor_without", "invalid_call", "max_tokens", "retire", "cut_off", "wrong", "loss")
    assert all(getattr(cpu["rl"], name) == getattr(gpu["rl"], name) for name in same)
    assert cpu["rl"].shares() == gpu["rl"].shares()
    assert set(cpu["eval"].families) <= set(gpu["eval"].families)
    assert (cpu["eval"].n, cpu["eval"].max_tokens) == (gpu["eval"].n, gpu["eval"].max_tokens)
