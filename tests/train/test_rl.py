"""GRPO: rewards, advantages, which groups count, what a token weighs; a resume that changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rl_cases import BOX, CHAT, PROBLEM, SETTINGS, BrokenOffError, answered, context, group, weights

from ayllu.errors import RecipeValueError, TrainingStoppedError
from ayllu.reason.curriculum import Curriculum
from ayllu.reason.loop import Answer
from ayllu.reason.practice import TASKS
from ayllu.reason.task import Problem
from ayllu.reason.transcript import Chat
from ayllu.recipe import compose
from ayllu.tools.tool import Toolbox
from ayllu.train import rl as module
from ayllu.train.rl import RlSettings, Rollouts, reward
from ayllu.train.sft import SftSettings
from ayllu.train.updates import (
    _TYPICAL_TOKENS,
    Group,
    advantages,
    pack_answers,
    policy_batches,
    weighted,
)


# ---- rewards and advantages
def test_only_a_right_and_finished_answer_is_rewarded() -> None:
    def value(answer: Answer) -> float:
        return reward(PROBLEM, answer.transcript, answer, CHAT)

    right, wrong = value(answered(PROBLEM.answer)), value(answered("no idea"))
    assert (right, wrong) == (1.0, 0.0)
    assert value(answered(PROBLEM.answer, "length")) <= 0  # it ran into the limit
    nothing = Answer(CHAT.start(PROBLEM.prompt), "stop")
    assert value(nothing) == 0.0


rewards_of_groups = st.lists(
    st.lists(st.sampled_from([0.0, 1.0]), min_size=4, max_size=4), min_size=1, max_size=8
)


@given(rewards_of_groups)
def test_advantages_have_mean_zero_in_a_group_and_deviation_one_in_the_batch(
    rewards: list[list[float]],
) -> None:
    values = advantages([group(*r) for r in rewards])
    assert [len(v) for v in values] == [4] * len(rewards)
    for mine, given_rewards in zip(values, rewards, strict=True):
        assert sum(mine) == pytest.approx(0, abs=1e-9)
        order = np.argsort(given_rewards, kind="stable")
        assert np.all(np.diff(np.array(mine)[order]) >= -1e-12)  # better rewards, larger advantages
    spread = float(np.std(np.concatenate(values)))
    informative = any(min(r) != max(r) for r in rewards)
    assert spread == pytest.approx(1.0 if informative else 0.0)


def test_a_lone_right_answer_counts_more_than_one_of_many() -> None:
    """The batch's deviation, not the group's: a rare success keeps its larger advantage."""
    (hard, easy) = advantages([group(1, 0, 0, 0), group(1, 1, 1, 0)])
    assert hard[0] == pytest.approx(3 * easy[0])


def test_a_token_weighs_its_advantage_over_a_constant() -> None:
    settings = RlSettings(groups=2, size=4, length=64)
    groups = [group(1, 0, 0, 0), group(0, 0, 1, 1)]
    batches = policy_batches(groups, settings, "cpu")
    weights = torch.cat([b.weights_BT.flatten() for b in batches])
    wanted = []
    for g, values in zip(groups, advantages(groups), strict=True):
        for answer, value in zip(g.answers, values, strict=True):
            sampled = sum(answer.transcript.sampled())
            wanted += [value / (settings.groups * settings.size * _TYPICAL_TOKENS)] * sampled
    assert sorted(weights[weights != 0].tolist()) == pytest.approx(sorted(wanted))


def test_an_answer_longer_than_a_row_is_learnt_all_the_same() -> None:
    groups = [group(1, 0, 0, 0), group(0, 0, 1, 1)]
    (usual,) = policy_batches(groups, RlSettings(groups=2, size=4, length=64), "cpu")
    short = policy_batches(groups, RlSettings(groups=2, size=4, length=2), "cpu")
    weights = torch.cat([b.weights_BT.flatten() for b in short])
    assert sorted(weights[weights != 0].tolist()) == sorted(usual.weights_BT[usual.weights_BT != 0].tolist())


# ---- which groups, how many rounds
class Canned:
    """Stands where the engine's answers come from: the wanted rewards, round by round."""

    def __init__(self, rounds: list[list[bool]]) -> None:
        self.rounds, self.prompts = rounds, list[int]()

    def __call__(self, engine: Any, chat: Chat, problems: list[Problem], *rest: Any) -> list[Answer]:
        informative = self.rounds[len(self.prompts)]
        self.prompts.append(len(problems))
        answers = []
        for n, problem in enumerate(problems):
            mixed = informative[min(n // 4, len(informative) - 1)]
            answers.append(Answer(chat.start(problem.prompt), "right" if mixed and n % 4 == 0 else "wrong"))
        return answers


def sample(monkeypatch: pytest.MonkeyPatch, mixed: list[list[bool]], share: float, **more: Any) -> Any:
    canned = Canned(mixed)
    monkeypatch.setattr(module, "answer_problems", canned)
    monkeypatch.setattr(
        module, "reward", lambda problem, t, answer, chat: float(answer.finish_reason == "right")
    )
    rollouts = Rollouts(None, CHAT, RlSettings(groups=4, size=4, **more), 1, BOX)  # type: ignore[arg-type]
    return canned, rollouts.sample(0, Curriculum(informative=share))


def test_groups_of_equal_rewards_are_refilled(monkeypatch: pytest.MonkeyPatch) -> None:
    canned, groups = sample(monkeypatch, [[True, False], [True]], 0.5)
    assert canned.prompts == [8 * 4, 6 * 4]  # 4 wanted at a half; then 3 missing
    assert sum(g.informative for g in groups) == 1 + 6
    assert all(g.informative == (min(g.rewards) != max(g.rewards)) for g in groups)


def test_rounds_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    canned, groups = sample(monkeypatch, [[False]] * 3, 0.0, rounds=3)
    assert len(canned.prompts) == 3 and all(n <= 4 * 4 * 4 for n in canned.prompts)
    assert not any(g.informative for g in groups)


def test_enough_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    canned, groups = sample(monkeypatch, [[True]], 1.0)
    assert canned.prompts == [4 * 4] and len(groups) == 4


def test_the_shares_decide_what_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    _, groups = sample(monkeypatch, [[True]], 0.25, arithmetic=0.0, calculator=0.0, countdown3=1.0)
    assert {g.problem.family for g in groups} == {"countdown3"}
    with pytest.raises(RecipeValueError, match="every share is 0"):
        RlSettings(arithmetic=0, calculator=0, countdown3=0).shares()


# ---- the stage
@pytest.mark.usefixtures("luck")
@pytest.mark.parametrize("death", [1, 3])
def test_a_broken_stage_goes_on_identically(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, death: int
) -> None:
    whole = context(tmp_path / "whole", inputs)
    module.rl(whole, SETTINGS, SftSettings())
    sample, steps = Rollouts.sample, list[int]()

    def mortal(self: Rollouts, step: int, curriculum: Curriculum) -> list[Group]:
        steps.append(step)
        if step == death and steps.count(step) == 1:
            raise BrokenOffError
        return sample(self, step, curriculum)

    monkeypatch.setattr(Rollouts, "sample", mortal)
    broken = context(tmp_path / "broken", inputs)
    with pytest.raises(BrokenOffError):
        module.rl(broken, SETTINGS, SftSettings())
    module.rl(broken, SETTINGS, SftSettings())
    assert steps == [*range(death + 1), *range(death, SETTINGS.steps)]
    same = zip(weights(whole.folder), weights(broken.folder), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    assert whole.metrics.read_text() == broken.metrics.read_text()
    rows = [json.loads(line) for line in whole.metrics.read_text().splitlines()]
    assert any(row["informative"] > 0 for row in rows), "the policy gradient took part"
    moved = zip(weights(inputs["sft"]), weights(whole.folder), strict=True)
    assert any(not torch.equal(a, b) for a, b in moved)


def test_training_without_any_informative_group_is_stopped(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for value, said in ((0.0, "every group is all wrong"), (1.0, "every group is all right")):
        monkeypatch.setattr(module, "reward", lambda *_, value=value: value)
        here = context(tmp_path / said.replace(" ", "-"), inputs)
        with pytest.raises(TrainingStoppedError, match=said):
            module.rl(here, replace(SETTINGS, steps=40), SftSettings())


@pytest.mark.usefixtures("luck")
def test_rl_makes_rewarded_answers_more_frequent(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rewarded for short answers, a model soon ends at once."""
    monkeypatch.setattr(module, "reward", lambda p, t, answer, c: float(answer.finish_reason == "stop"))
    settings = replace(SETTINGS, steps=25, groups=8, anchor=0.0, lr=0.01, max_tokens=24)
    here = context(tmp_path / "short", inputs)
    module.rl(here, settings, SftSettings())
    rewards = [json.loads(line)["reward"] for line in here.metrics.read_text().splitlines()]
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.2


def test_answers_are_sampled_and_learnt_at_the_temperature_of_the_recipe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = list[float]()

    def answer(engine: Any, chat: Chat, problems: list[Problem], box: Toolbox, params: Any) -> list[Answer]:
        asked.append(params.temperature)
        return [answered("right" if n % 2 else "no") for n in range(len(problems))]

    monkeypatch.setattr(module, "answer_problems", answer)
    settings = replace(SETTINGS, temperature=0.5)
    groups = Rollouts(None, CHAT, settings, 1, BOX).answer([PROBLEM], 4, seed=5)  # type: ignore[arg-type]
    assert asked == [0.5]
    batches, _ = pack_answers(groups, [[1.0, 0.0, 1.0, 0.0]], settings, "cpu")
    assert {b.temperature for b in weighted(batches, torch.ones(999))} == {0.5}
    with pytest.raises(RecipeValueError, match="needs temperature = 1"):
        compose({"name": "a", "rl": {"temperature": 0.5, "updates": 2}})


def test_a_call_that_is_not_valid_costs_what_the_recipe_says() -> None:
    right = answered(PROBLEM.answer)
    sloppy = replace(right, calls=2, valid_calls=1)
    for price in (0.0, 0.1):
        rollouts = Rollouts(None, CHAT, RlSettings(invalid_call=price), 1, BOX)  # type: ignore[arg-type]
        assert rollouts._reward(PROBLEM, right) == 1.0
        assert rollouts._reward(PROBLEM, sloppy) == pytest.approx(1.0 - price)


def test_an_answer_that_is_cut_off_costs_what_the_recipe_says() -> None:
    """Ending is worth more than going in a circle; where no answer is right, nothing is learnt."""
    for price in (0.0, 0.05):
        rollouts = Rollouts(None, CHAT, RlSettings(cut_off=price), 1, BOX)  # type: ignore[arg-type]
        assert rollouts._reward(PROBLEM, answered("no")) == 0.0
        assert rollouts._reward(PROBLEM, answered(PROBLEM.answer)) == 1.0
        assert rollouts._reward(PROBLEM, answered("never en", "length")) == -price
    assert group(1.0, 0.0, -0.05).informative and group(1.0, -0.05).informative
    assert not group(0.0, 0.0, -0.05).informative


def test_a_wrong_answer_costs_what_the_recipe_says_where_no_is_honest() -> None:
    game = TASKS["countdown4"].problem(np.random.default_rng(0), 1, "train")
    right = TASKS["countdown4"].trace(game, np.random.default_rng(1))[-1].text
    rollouts = Rollouts(None, CHAT, RlSettings(wrong=0.25, cut_off=0.5), 1, BOX)  # type: ignore[arg-type]

    def worth(text: str, reason: str = "stop", problem: Problem = game) -> float:
        return rollouts._reward(problem, answered(text, reason, problem))

    assert right != "no", "a seed whose expert finds it"
    assert (worth(right), worth("no"), worth("1+1"), worth("1+", "length")) == (1.0, 0.0, -0.25, -0.5)
    strict = Rollouts(None, CHAT, RlSettings(wrong=0.25, invalid_call=1.0), 1, BOX)  # type: ignore[arg-type]
    sloppy = replace(answered(right, "stop", game), calls=2, valid_calls=1)
    assert strict._reward(game, sloppy) == 0.0, "a right answer is not charged for pretending"
    assert worth("12345", problem=PROBLEM) == 0.0, "arithmetic has no way to give up"
