"""bench/gpu.py without a GPU: a dry run of the part that makes a recipe, what it notices, the exit code."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ayllu.files import read_json

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import gpu
import gpu_recipe


def wish(out: Path, device: str = "cpu") -> argparse.Namespace:
    return argparse.Namespace(out=out, device=device, tiny=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The dry run's folder, and what the part says of it."""
    out = tmp_path_factory.mktemp("bench")
    return out / "recipe" / "run", gpu_recipe.recipe(wish(out))


def test_a_run_that_is_stopped_twice_comes_to_its_end(made: tuple[Path, dict[str, Any]]) -> None:
    run, said = made
    assert said["ok"] and said["finished"] and said["faults"] == [], said
    assert set(said["stages"]) == {"text", "tokenizer", "pretrain", "sft", "rl", "eval", "release"}
    assert set(said["resumed"]) == {"sft", "rl"}
    assert all(0 < step < steps for step, steps in said["resumed"].values())
    clock = {stage: read_json(run / stage / "stage.json")["starts"] for stage in said["stages"]}
    assert clock["sft"] == clock["rl"] == 2 and clock["pretrain"] == 1
    first, last = said["losses"]["sft"]
    assert last < first and "rl" not in said["losses"]


def doubled(run: Path) -> None:
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines()
    (at,) = [
        n for n, line in enumerate(lines) if (row := json.loads(line))["stage"] == "rl" and row["step"] == 3
    ]
    path.write_text("\n".join([*lines, lines[at]]) + "\n")


def left_out(run: Path) -> None:
    path = run / "metrics.jsonl"
    path.write_text(
        "".join(line + "\n" for line in path.read_text().splitlines() if '"step": 7,' not in line)
    )


def altered(run: Path) -> None:
    path = run / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (doubled, ["rl: steps are missing or stand there twice"]),
        (left_out, [f"{stage}: steps are missing" for stage in ("pretrain", "sft", "rl")]),
        (altered, ["model.safetensors has been altered"]),
    ],
)
def test_what_is_not_in_order_is_named(
    made: tuple[Path, dict[str, Any]], tmp_path: Path, damage: Callable[[Path], None], said: list[str]
) -> None:
    run, found = made
    shutil.copytree(run, tmp_path / "run")
    damage(tmp_path / "run")
    faults = gpu_recipe.unsound(tmp_path / "run", {}, found, learning=False)
    assert len(faults) == len(said) and all(
        words in fault for fault, words in zip(faults, said, strict=True)
    ), faults


def test_a_run_that_learns_nothing_or_begins_again_is_not_in_order(
    made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    shutil.copytree(made[0], tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | {"informative": 0.0}) + "\n" for row in rows))
    found = made[1] | {"resumed": {"sft": (1, 100)}, "losses": {"sft": (2.0, 2.5)}, "finished": False}
    faults = gpu_recipe.unsound(tmp_path / "run", {"missing": ["eval"]}, found, learning=True)
    assert [fault.partition(":")[0] for fault in faults] == [
        "stages are missing", "rl began again", "rl", "pretrain", "sft",
    ]  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_stopped_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = gpu_recipe.recipe(wish(tmp_path, "cuda"))
    (fault,) = said["faults"]
    assert not said["ok"] and not said["finished"] and said["stages"] == said["resumed"] == {}
    assert fault.startswith("it ended before sft had a checkpoint") and "GPU" in fault
    assert "not finished; went on: nowhere" in capsys.readouterr().out


def test_the_exit_code_says_whether_something_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = {"tests": {"ok": True}, "recipe": {"ok": False}, "decode": {"tokens": 3}}
    parts = {name: lambda _, found=found: dict(found) for name, found in outcomes.items()}
    monkeypatch.setattr(gpu, "PARTS", parts)
    words = ["gpu.py", "--out", str(tmp_path), "--tiny", "--device", "cpu", "--parts"]
    monkeypatch.setattr(sys, "argv", [*words, "tests", "recipe", "decode"])
    with pytest.raises(SystemExit, match="failed: recipe"):
        gpu.main()
    assert read_json(tmp_path / "decode.json")["tokens"] == 3  # what comes after is measured all the same
    monkeypatch.setattr(sys, "argv", [*words, "tests", "decode"])
    gpu.main()
