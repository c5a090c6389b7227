"""Expert iteration: what is kept, what a kill costs, where the stage stands in a run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ayllu.errors import RecipeError, RecipeValueError, TrainingStoppedError
from ayllu.model.weights import load_model
from ayllu.progress import Progress
from ayllu.reason.loop import Answer
from ayllu.reason.practice import TASKS, practice_texts, problem_shares
from ayllu.reason.task import Problem, conversation
from ayllu.reason.transcript import Chat, Kind
from ayllu.stage import StageContext
from ayllu.stages import STAGES, basis, make_plan, stages_of
from ayllu.text.tokenizer import train_tokenizer
from ayllu.train import expert as module
from ayllu.train.expert import ExpertSettings, distinct, is_right
from ayllu.train.packing import Practice
from ayllu.train.sft import SftSettings

TOKENIZER = train_tokenizer(practice_texts(0), 400)
CHAT = Chat(TOKENIZER)
TASK = TASKS["arithmetic"]
PROBLEM = TASK.problem(np.random.default_rng(0), 1, "train")
SETTINGS = ExpertSettings(problems=70, samples=2, steps=3, rows=2, length=128, max_tokens=16)
PRACTICE = SftSettings(arithmetic=1.0, calculator=0.0, countdown3=0.0, dialogue=0.0)


def answered(thinking: str, said: str, reason: str = "stop", **more: Any) -> Answer:
    transcript = CHAT.add(CHAT.start(PROBLEM.prompt), Kind.THINK, thinking, sampled=True)
    return Answer(CHAT.add(transcript, Kind.SAY, said, sampled=True), reason, **more)


def test_only_whole_right_solutions_with_valid_calls_are_kept() -> None:
    right = answered("1+1=2", PROBLEM.answer)
    assert is_right(CHAT, PROBLEM, right)
    assert not is_right(CHAT, PROBLEM, answered("1+1=2", "no idea"))
    assert not is_right(CHAT, PROBLEM, replace(right, finish_reason="length"))
    assert not is_right(CHAT, PROBLEM, replace(right, calls=1, valid_calls=0))
    assert is_right(CHAT, PROBLEM, replace(right, calls=1, valid_calls=1))


def test_the_same_working_in_another_order_is_kept_once() -> None:
    answers = [
        answered("1+1=2\n3+4=7", "7"),
        answered("3+4=7\n1+1=2 ", "7"),
        answered("3+4=7\n1+1=3", "7"),
        answered("1+1=2\n3+4=7", "8"),
    ]
    assert distinct(CHAT, answers) == [answers[0], answers[2]]


def context(folder: Path, inputs: dict[str, Path]) -> StageContext:
    folder.mkdir(exist_ok=True)
    progress = Progress("expert", quiet=True)
    return StageContext(folder, inputs, 3, 1, "cpu", progress, folder / "metrics.jsonl", folder)


class Solver:
    """Stands where the model's answers come from: the worked solution to every prompt but each third."""

    def __init__(self) -> None:
        self.asked, self.dies_at = 0, -1

    def __call__(self, engine: Any, chat: Chat, problems: list[Problem], *rest: Any) -> list[Answer]:
        self.asked += 1
        if self.asked == self.dies_at:
            raise KeyboardInterrupt
        rng = np.random.default_rng(0)
        found = []
        for n, asked in enumerate(problems):
            problem = TASK.problem(rng, 1, "train")
            worked = conversation(chat, problem, TASK.trace(problem, rng))
            spans = [span for span in worked.spans if span.sampled]
            start = chat.start(asked.prompt, tools=asked.tools)
            found.append(Answer(start.plus(*spans), "stop" if n % 3 else "length"))
        return found


@pytest.fixture
def solver(monkeypatch: pytest.MonkeyPatch) -> Solver:
    made = Solver()
    monkeypatch.setattr(module, "answer_problems", made)
    monkeypatch.setattr(module, "is_right", lambda chat, problem, answer: answer.finish_reason == "stop")
    return made


def weights(folder: Path) -> list[torch.Tensor]:
    return list(load_model(folder / "model").parameters())


def test_a_killed_stage_samples_only_what_is_missing_and_ends_the_same(
    inputs: dict[str, Path], tmp_path: Path, solver: Solver
) -> None:
    whole = context(tmp_path / "whole", inputs)
    result = module.expert(whole, SETTINGS, PRACTICE)
    assert solver.asked == 2  # 64 problems and 6
    counts = result["families"]["arithmetic"]
    assert counts["problems"] == 70 and counts["sampled"] == 140
    assert counts["right"] == sum(n % 3 != 0 for n in range(128)) + sum(n % 3 != 0 for n in range(12))
    assert (
        counts["solved"] == 70
        and 70 <= counts["kept"] <= counts["right"]
        and result["kept"] == counts["kept"]
    )
    assert result["too_long"] == 0
    shorter = replace(SETTINGS, length=56)
    cut = module.expert(context(tmp_path / "cut", inputs), shorter, PRACTICE)
    assert cut["too_long"] > 0 and cut["kept"] + cut["too_long"] == counts["kept"]
    broken = context(tmp_path / "broken", inputs)
    solver.asked, solver.dies_at = 0, 2
    with pytest.raises(KeyboardInterrupt):
        module.expert(broken, SETTINGS, PRACTICE)
    assert module.expert(broken, SETTINGS, PRACTICE) == result
    assert solver.asked == 3  # the first portion was not sampled again
    same = zip(weights(whole.folder), weights(broken.folder), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    moved = zip(weights(inputs["sft"]), weights(whole.folder), strict=True)
    assert any(not torch.equal(a, b) for a, b in moved)


def test_a_damaged_portion_is_sampled_again(inputs: dict[str, Path], tmp_path: Path, solver: Solver) -> None:
    here = context(tmp_path / "damaged", inputs)
    first, _ = module.solutions(here, SETTINGS, PRACTICE, CHAT)
    (here.folder / module.SOLUTIONS / "000001.json").write_text("{")
    again, _ = module.solutions(here, SETTINGS, PRACTICE, CHAT)
    assert again == first and solver.asked == 3


def test_without_a_right_solution_it_says_so(inputs: dict[str, Path], tmp_path: Path) -> None:
    settings = replace(SETTINGS, problems=2)
    with pytest.raises(TrainingStoppedError, match="solutions was right and fits into 128 tokens"):
        module.expert(context(tmp_path / "wrong", inputs), settings, PRACTICE)


@pytest.mark.usefixtures("solver")
def test_solutions_longer_than_a_row_are_left_out(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Practice fits a row; the model's own answers, of which the first would be longer, don't."""
    long = answered("1+1=2\n" * 40, PROBLEM.answer).transcript
    monkeypatch.setattr(module, "solutions", lambda *_: ([long], {}))
    with pytest.raises(TrainingStoppedError, match="fits into 128 tokens"):
        module.expert(context(tmp_path / "long", inputs), SETTINGS, PRACTICE)


def test_practice_that_does_not_fit_is_said_before_anything_is_sampled(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "solutions", lambda *_: pytest.fail("it was sampled"))
    with pytest.raises(RecipeValueError, match=r"expert\.length"):
        module.expert(context(tmp_path / "short", inputs), replace(SETTINGS, length=8), PRACTICE)


def test_kept_solutions_take_their_share_of_the_batches() -> None:
    problem = TASK.problem(np.random.default_rng(5), 2, "train")
    kept = conversation(CHAT, problem, TASK.trace(problem, np.random.default_rng(5)))
    source = Practice(CHAT, PRACTICE.shares(), 4, 128, 1, kept=[kept], kept_share=0.5)
    rng = np.random.default_rng(0)
    drawn = [source._draw(rng) for _ in range(400)]
    assert 150 < sum(transcript is kept for transcript in drawn) < 250


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(RecipeValueError, match=r"expert\.families"):
        ExpertSettings(families={"sums": 1.0}).check({})
    with pytest.raises(RecipeValueError, match="expert: every share is 0"):
        ExpertSettings(families={"arithmetic": 0.0}).check({})
    assert "dialogue" not in problem_shares({}, SftSettings(), "expert")


# ---- its place in a run
def test_only_recipes_with_its_table_have_the_stage() -> None:
    assert stages_of({"name": "a"}) == STAGES
    names = [stage.name for stage in stages_of({"name": "a", "expert": {}})]
    assert names == ["text", "tokenizer", "pretrain", "sft", "expert", "rl", "eval", "release"]
    by_name = {stage.name: stage for stage in stages_of({"expert": {}})}
    assert by_name["rl"].needs == ("text", "tokenizer", "sft", "expert")
    assert by_name["eval"] == next(stage for stage in STAGES if stage.name == "eval")
    assert stages_of({"expert": {}}, stages_of({"expert": {}})) == stages_of({"expert": {}})


def test_a_recipe_without_the_table_is_completed_as_before() -> None:
    raw = {"name": "a", "text": {"corpus": ["data/default"]}}
    plan = make_plan(raw, stages=STAGES[3:5])
    assert "expert" not in plan.recipe and plan.recipe["rl"]["loss"] == "grpo"
    there = raw | {"expert": {"problems": 5}}
    plan = make_plan(there, stages=stages_of(there)[3:6])
    assert plan.recipe["expert"]["problems"] == 5
    expert = stages_of(there)[4]
    made_from = basis(expert, plan, dict.fromkeys(expert.needs, "x"), {})
    assert made_from["given"]["threads"] == plan.given["threads"] and plan.given["device"] == "cpu"
    # Where a GPU computes, a run may go on beside another number of cores.
    on_gpu = replace(plan, recipe=plan.recipe | {"device": "cuda"})
    assert "threads" not in basis(expert, on_gpu, dict.fromkeys(expert.needs, "x"), {})["given"]
    assert set(made_from["settings"]) == {"expert", "sft"} and json.dumps(made_from)


def test_a_table_without_its_stage_is_not_passed_over() -> None:
    raw = {"name": "a", "expert": {}}
    with pytest.raises(RecipeError, match=r"no stage for the table \[expert\]"):
        make_plan(raw, stages=STAGES[3:5])
