"""What a run's folder says of itself: whose results a report shows, where they were made, what they were
made of."""

from __future__ import annotations

import json
from pathlib import Path

import fake_run
import pytest

from ayllu.errors import InputNotFoundError
from ayllu.marker import of_recipe
from ayllu.recipe import read_recipe
from ayllu.report.summary import summarise
from ayllu.run import Run
from ayllu.stages import Plan, make_plan


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("one")
    return tmp_path


def recipe(place: Path, text: str = "") -> Path:
    path = place / "fake.toml"
    path.write_text("threads = 1\ndevice = 'cpu'\nseed = 3\n" + text)
    return path


def shown(place: Path) -> list[str]:
    return list(json.loads((place / "runs/fake/report.json").read_text())["stages"])


def test_a_report_has_no_results_of_another_recipe(place: Path) -> None:
    fake_run.run(recipe(place))
    assert shown(place) == ["count", "mix", "pack"]
    fake_run.run(recipe(place, "[count]\nsteps = 4\n"), until="count")
    assert shown(place) == ["count"], "what stands behind it was made before, from something else"
    run = place / "runs/fake"
    assert list(of_recipe(fake_run.STAGES, Plan(read_recipe(run / "recipe.toml"), {}), run)) == ["count"]
    fake_run.run(recipe(place, "[count]\nsteps = 4\n"))
    assert shown(place) == ["count", "mix", "pack"]
    fake_run.run(recipe(place, "[mix]\nsalt = 'x'\n"), until="count")
    assert shown(place) == ["count"]


def test_the_machine_is_that_on_which_it_was_made(place: Path) -> None:
    fake_run.run(recipe(place))
    marker = json.loads((place / "runs/fake/count/stage.json").read_text())
    assert marker["machine"]["chip"] and marker["machine"]["threads"] == 1
    there = {"chip": "Elsewhere 9000", "threads": 4}
    stages = {"text": marker | {"machine": there}, "tokenizer": marker | {"machine": there}}
    report = summarise({"threads": 1}, stages)
    assert report["machine"] == there and "machines" not in report
    report = summarise({"threads": 1}, stages | {"pretrain": marker})
    assert report["machine"] == marker["machine"] and report["machines"][0] == there


def test_a_corpus_named_from_the_root_is_the_same_from_everywhere(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(place, f"[count]\ncorpus = '{place}/corpus'\n")
    fake_run.run(made, place / "out")
    (place / "calls.txt").unlink()
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    fake_run.run(made, place / "out")
    assert not (place / "elsewhere" / "calls.txt").exists(), "nothing was made again"


def test_a_corpus_that_is_not_seen_from_here_costs_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(place)
    fake_run.run(made, place / "out")
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    with pytest.raises(InputNotFoundError, match="corpus isn't here"):
        fake_run.run(made, place / "out")
    assert not (place / "out" / "old").exists() and (place / "out" / "model" / "config.json").exists()


def test_a_stage_begun_from_something_else_is_not_gone_on_with(place: Path) -> None:
    """The settings are the same, and what came before isn't: it was damaged and made again otherwise."""
    fake_run.run(recipe(place))
    run = place / "runs/fake"
    marker = json.loads((run / "mix" / "stage.json").read_text())
    begun = {key: marker[key] for key in ("fingerprint", "basis")} | {
        "needs": {"count": "something else"}, "seconds": 1.0, "peak_memory_mb": 1.0, "starts": 1,
    }  # fmt: skip
    (run / ".clock.json").write_text(json.dumps({"mix": begun}))
    (run / "mix" / "stage.json").unlink()
    fake_run.run(recipe(place))
    assert {p.name.split("-")[0] for p in (run / "old").iterdir()} == {"mix"}
    assert "begun from something else" in (run / "log.txt").read_text()


def test_tables_that_the_recipe_does_not_have_are_not_checked(tmp_path: Path) -> None:
    """By itself [distill] would refuse a context of 128; the recipe has no such stage."""
    raw = {"name": "a", "model": {"context": 128}, "rl": {"max_tokens": 96}, "text": {"corpus": ["x"]}}
    settings = Run(tmp_path, make_plan(raw)).settings()
    assert settings["rl"].max_tokens == 96 and "distill" not in settings
