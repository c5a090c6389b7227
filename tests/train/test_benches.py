"""The benches of rollouts beside trl, of budgets and of several seeds: what they measure is what they say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from ayllu.engine.engine import Engine
from ayllu.errors import UsageError
from ayllu.files import write_json
from ayllu.reason.practice import TASKS
from ayllu.reason.transcript import Chat
from ayllu.text.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import against_trl
import seeds
import thinking


def test_our_side_counts_what_it_sampled(tmp_path: Path) -> None:
    against_trl.write_model(tmp_path, width=32, layers=1)
    (row,) = against_trl.ours(tmp_path, prompts=1, max_tokens=16, steps=1)
    assert 0 < row["tokens"] <= against_trl.GROUP * 16
    assert 0 < row["sampling"] < row["step"]


def test_rates_are_medians() -> None:
    rows = [{"tokens": 100.0, "sampling": s, "step": 2 * s} for s in (1.0, 2.0, 4.0)]
    assert against_trl.rates(rows) == {"sampling": 50.0, "step": 25.0, "tokens": 100.0}


@pytest.mark.parametrize(
    ("rights", "wanted"),
    [
        ([range(60), range(120), range(150)], True),
        ([range(60), range(120), range(5, 120)], True),  # lower, but by what chance may do
        # Lost 20 and gained 2 of the same problems: two intervals would overlap, a paired test sees it.
        ([range(60), range(96), [*range(20, 96), 100, 101]], False),
        ([range(60), range(60), range(63)], False),  # nothing that could be told from chance
        ([range(60)], False),
    ],
)
def test_a_curve_rises_and_falls_by_what_pairs_of_verdicts_say(rights: list[Any], wanted: bool) -> None:
    points = [[number in set(these) for number in range(300)] for these in rights]
    assert thinking.rises(points) is wanted


@pytest.mark.parametrize("told", [False, True])
def test_no_budget_is_thought_beyond(tmp_path: Path, told: bool) -> None:
    against_trl.write_model(tmp_path, width=32, layers=1)
    chat = Chat(Tokenizer.load(tmp_path / "model"))
    options = {"n": 6, "told": told, "max_tokens": 24, "seed": 0}
    with Engine(tmp_path / "model") as engine:
        for budget in (0, 8):
            point = thinking.measure(engine, chat, TASKS["arithmetic"], budget, **options)
            assert point["budget"] == budget and point["n"] == 6
            assert point["mean_thinking_tokens"] <= budget + 2  # its two control tokens


def report(number: int, right: float, **more: Any) -> dict[str, Any]:
    """What bench/seeds.py reads of a run."""
    part = {"accuracy": right, "calls": 4, "valid_calls": 3}
    return {
        "finished": True, "seed": number, "recipe": {"seed": number, "name": "one"},
        "code": {"sft": {"ayllu.train.sft:sft": 17}},
        "machine": {"chip": f"chip {number}", "threads": 2, "features": ["avx2", "fma"]},
        "evals": {"lists": {"sft": part, "rl": part}}, "wall_seconds": 61.0,
    } | more  # fmt: skip


def test_seeds_side_by_side() -> None:
    reports = [report(n, right) for n, right in ((1, 0.5), (2, 0.6), (3, 0.7))]
    seeds.comparable(reports)
    table = "\n".join(seeds.lines(reports))
    assert "| lists | 50.0 60.0 70.0 | 60.0 ± 24.8 |" in table  # 4.303 * 10 / sqrt(3)
    assert "18 of 24 calls valid. In all: 1:01 on 2 threads of chip 1 (avx2, fma); 1:01 on 2 threads" in table


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"finished": False},
        {"recipe": {"seed": 2, "name": "two"}},
        {"code": {}},
        {"code": {"sft": {"ayllu.train.sft:sft": 16}}},
    ],
)
def test_other_runs_are_refused(other: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        seeds.comparable([report(1, 0.5)])
    with pytest.raises(UsageError):
        seeds.comparable([report(1, 0.5), report(2, 0.5, **other)])


def test_seeds_reads_folders_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one").mkdir()
    write_json(tmp_path / "one" / "report.json", report(1, 0.5))
    write_json(tmp_path / "two.json", report(2, 0.7))
    monkeypatch.setattr(sys, "argv", ["seeds.py", str(tmp_path / "one"), str(tmp_path / "two.json")])
    seeds.main()
    assert "| lists | 50.0 70.0 | 60.0 ± 127.1 |" in capsys.readouterr().out
    write_json(tmp_path / "results.json", {"kind": "ayllu eval"})
    for other in ("three.json", "results.json"):
        monkeypatch.setattr(sys, "argv", ["seeds.py", str(tmp_path / "one"), str(tmp_path / other)])
        with pytest.raises(SystemExit, match=r"seeds\.py: "):
            seeds.main()
