"""Before the first update, and reasons to stop: what is said, and when."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rl_cases import PROBLEM, SETTINGS, context, group

from ayllu.errors import RecipeValueError, TrainingStoppedError
from ayllu.reason.task import Problem
from ayllu.recipe import compose
from ayllu.train import preflight
from ayllu.train import rl as module
from ayllu.train.rl import RlSettings
from ayllu.train.sft import SftSettings
from ayllu.train.updates import Group


# ---- before the first update, and reasons to stop
def test_a_preflight_counts_by_hand() -> None:
    flight = preflight.flight([group(1, 0, 0, 0), group(0, 0, 0, 1), group(0, 0, 0, 0)], size=2)
    assert (flight.problems, flight.pass_1, flight.pass_16) == (
        3,
        pytest.approx(2 / 12),
        pytest.approx(2 / 3),
    )
    assert flight.informative == pytest.approx(1 / 3)  # of the first two answers each
    settings = RlSettings(steps=10, groups=4, size=2, arithmetic=1.0, countdown3=0.0, anchor_rows=2)
    # 4 / (1/3) groups of 2 answers are sampled; 4 groups of 2 and 2 rows of SFT are learnt from
    assert preflight.forecast({"arithmetic": flight}, settings, 0.5, 0.25) == pytest.approx(
        10 * (12 * 2 * 0.5 + (8 + 2) * 0.25)
    )


def test_a_forecast_counts_the_rounds_that_look_for_informative_groups() -> None:
    """At 5 % a round of 4 x 8 groups finds 1.6 of 8: three rounds are sampled, and then training goes on."""
    few = preflight.Flight(100, 0.05, 0.2, 0.0, 0.05, 10.0)
    settings = RlSettings(steps=1, groups=8, size=2, rounds=3, arithmetic=1.0, countdown3=0.0, anchor=0.0)
    sampled = 32 + (8 - 1.6) / 0.25 + (8 - 1.6 - 0.05 * (8 - 1.6) / 0.25) / 0.25
    assert preflight.forecast({"arithmetic": few}, settings, 1.0, 0.0) == pytest.approx(2 * sampled)
    twice = replace(settings, updates=4)
    training = preflight.forecast({"arithmetic": few}, twice, 0.0, 1.0)
    assert training == pytest.approx(16 * (1 + 2 * 3 / 12))


@pytest.mark.parametrize(
    ("rewards", "reason", "said"),
    [
        ((0, 0), "stop", "more SFT"),
        ((0, 0), "length", "raise rl.max_tokens"),
        ((1, 1), "stop", "nothing left to learn"),
    ],
)
def test_what_cannot_work_is_said_in_plain_words(rewards: tuple[int, ...], reason: str, said: str) -> None:
    made = group(*rewards)
    made = Group(PROBLEM, [replace(a, finish_reason=reason) for a in made.answers], made.rewards)
    assert said in str(preflight.nothing_to_learn([made, made]))


@pytest.mark.parametrize(("reason", "fix"), [("stop", "between the two"), ("length", "raise rl.max_tokens")])
def test_some_groups_all_right_and_others_all_wrong_is_said_as_it_is(reason: str, fix: str) -> None:
    right, wrong = group(1, 1), group(0, 0)
    wrong = Group(PROBLEM, [replace(a, finish_reason=reason) for a in wrong.answers], wrong.rewards)
    said = str(preflight.nothing_to_learn([right, right, right, wrong]))
    assert said.startswith("3 of 4 groups are all right and the others all wrong") and fix in said
    assert ("100 % of their answers ran out of tokens" in said) == (reason == "length")


def test_a_preflight_stops_before_the_first_update_and_flies_once(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "reward", lambda *_: 0.0)
    here = context(tmp_path / "wrong", inputs)
    with pytest.raises(TrainingStoppedError, match="every group is all wrong"):
        module.rl(here, replace(SETTINGS, preflight=1), SftSettings())
    assert not here.metrics.exists()
    kept = {"families": {}, "seconds": 1.0}
    (here.folder / preflight.KEPT).write_text(json.dumps(kept))
    assert preflight.preflight(here, None, None) == kept  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ((8, 0.0, 0.0, 0.97, 0.0, 90.0), "a: 97 % of the answers are cut off; raise rl.max_tokens"),
        (
            (8, 0.0, 0.0, 0.1, 0.0, 9.0),
            "a: not right once in 128 answers; its 20 % of the problems will teach",
        ),
        ((8, 1.0, 1.0, 0.0, 0.0, 9.0), "a: always right in these 8 problems; its 20 % of the problems may"),
        ((8, 0.5, 0.5, 0.0, 0.0, 9.0), "a: always right or never in these 8 problems"),
        ((8, 0.5, 0.9, 0.1, 0.3, 9.0), ""),
    ],
)
def test_a_family_that_teaches_nothing_is_named(found: tuple[float, ...], said: str) -> None:
    line = preflight.note("a", preflight.Flight(*found), {"a": 0.1, "b": 0.4})  # type: ignore[arg-type]
    assert line.startswith(said) and bool(line) == bool(said)


@pytest.mark.parametrize("share", [0.6, 0.02])
def test_a_run_that_would_hardly_learn_is_stopped(
    share: float, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Always right in what has nearly all of the share: the little that is left isn't worth the hours."""

    def reward(problem: Problem, *_: object) -> float:
        return 1.0 if problem.family == "calculator" else float(np.random.default_rng().integers(2))

    monkeypatch.setattr(module, "reward", reward)
    here = context(tmp_path / str(share), inputs)
    settings = replace(SETTINGS, steps=1, preflight=2, arithmetic=share, calculator=1.0)
    if share > 0.1:
        module.rl(here, settings, SftSettings())
        assert here.metrics.exists()
        return
    with pytest.raises(TrainingStoppedError, match="98 % of the problems would teach nothing") as stopped:
        module.rl(here, settings, SftSettings())
    # The model has learnt nothing: nearly all that it writes is cut off.
    assert re.search(r"calculator: \d+ % of the answers are cut off", str(stopped.value))
    assert not here.metrics.exists()


def test_a_family_gets_several_tries_before_it_is_said_to_teach_nothing(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One group in ten that teaches shows in none of eight in two runs of five."""
    asked: list[Problem] = []

    def reward(problem: Problem, *_: object) -> float:
        asked.append(problem)
        return float(len({p.key for p in asked}) == 6 and len(asked) % 2)

    monkeypatch.setattr(module, "reward", reward)
    here = context(tmp_path / "late", inputs)
    result = module.rl(here, replace(SETTINGS, steps=1, preflight=2), SftSettings())
    assert result["preflight"]["families"]["arithmetic"]["problems"] == 6


def test_answers_that_grow_without_end_are_told_of() -> None:
    flight = {"truncated": 0.04}
    state: dict[str, Any] = {"cut_off": []}
    told = [module.more_cut_off(state, share, flight) for share in [0.05] * 9 + [0.3] * 9]
    first = next(n for n, line in enumerate(told) if line)
    assert first >= 10 and told[first].startswith("10 % of the answers run out of tokens now, 4 % did before")
    state = {"cut_off": []}
    assert not any(module.more_cut_off(state, 0.07, flight) for _ in range(30))  # twice, but few
    assert not any(module.more_cut_off({"cut_off": []}, 0.9, None) for _ in range(30))


@pytest.mark.usefixtures("luck")
def test_collapsed_entropy_is_stopped(inputs: dict[str, Path], tmp_path: Path) -> None:
    here = context(tmp_path / "alike", inputs)
    settings = replace(SETTINGS, steps=40, groups=1, entropy_floor=9.9)  # more than ln 400
    with pytest.raises(TrainingStoppedError, match="entropy has collapsed"):
        module.rl(here, settings, SftSettings())
    assert len(here.metrics.read_text().splitlines()) < 40


def test_the_live_curve_has_a_bar_a_step() -> None:
    assert module.curve([0.0, 0.5, 1.0]) == "▁▅█"
    assert module.curve([]) == "" and module.curve([0.3]) == "▁"


def test_what_the_anchor_leaves_out_must_exist_and_leave_something() -> None:
    compose({"name": "a", "rl": {"anchor_without": ["countdown3"]}})
    with pytest.raises(RecipeValueError, match="no family 'countdown'"):
        compose({"name": "a", "rl": {"anchor_without": ["countdown"]}})
    alone = {"arithmetic": 0, "calculator": 0, "dialogue": 0, "countdown3": 1}
    with pytest.raises(RecipeValueError, match="nothing is left for the anchor"):
        compose({"name": "a", "sft": alone, "rl": {"anchor_without": ["countdown3"]}})
    compose({"name": "a", "sft": alone, "rl": {"anchor_without": ["countdown3"], "anchor": 0}})
