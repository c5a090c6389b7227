"""Families of reasoning-gym: over a stand-in with its shape, and over the real one where it is installed."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

from ayllu.errors import RecipeValueError, ResourceError
from ayllu.reason.practice import EXAMS, TASKS, Families, check_families
from ayllu.reason.task import SPLITS, distinct_problems
from ayllu.reason.tasks import gym
from ayllu.recipe import compose

STAND_IN = {
    "__init__.py": "from .factory import create_dataset\n",
    "dataset.py": """
class ProceduralDataset:
    def score_answer(self, answer, entry):
        raise AssertionError("nothing of it sees what a model writes")
""",
    "factory.py": """
from .dataset import ProceduralDataset

class Usual(ProceduralDataset):
    def __init__(self, seed):
        self.seed = seed

    def __getitem__(self, place):
        n = (self.seed + place) % 1000
        return {"question": f"What is {n} twice?", "answer": str(2 * n), "metadata": {}}

class Own(Usual):
    def score_answer(self, answer, entry):
        return eval(answer)

class Poor(Usual):
    def __getitem__(self, place):
        return {"question": "What is it?", "answer": "it"}

DATASETS = {"twice": (Usual, 0), "countdown": (Own, 0), "gsm_symbolic": (Usual, 0), "poor": (Poor, 0)}

def create_dataset(name, seed, size):
    return DATASETS[name][0](seed)
""",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in as the package that is found; families that a test makes are forgotten again."""
    folder = tmp_path / "reasoning_gym"
    folder.mkdir()
    for name, text in STAND_IN.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "reasoning_gym"]:
        monkeypatch.delitem(sys.modules, name)
    for families in (TASKS, EXAMS):
        monkeypatch.setattr(families, "setdefault", lambda name, task: task, raising=False)
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "reasoning_gym"]:
        del sys.modules[name]


@pytest.mark.usefixtures("package")
def test_a_family_is_drawn_split_and_judged_as_ours_are() -> None:
    task = TASKS["gym_twice"]
    drawn = {split: distinct_problems(task, 40, (1,), split, 1) for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert {p.key for p in drawn[one]}.isdisjoint(p.key for p in drawn[other])
    assert [p.key for p in drawn["train"]] == [p.key for p in distinct_problems(task, 40, (1,), "train", 1)]
    problem = drawn["test"][0]
    assert problem.family == "gym_twice" and problem.prompt.endswith("twice?")
    assert task.verify(problem, f" {problem.answer} ").strict
    loose = task.verify(problem, f"{problem.answer}.0")
    assert loose.lenient and not loose.strict
    assert not task.verify(problem, None).lenient and not task.verify(problem, "__import__('os')").lenient


@pytest.mark.usefixtures("package")
def test_what_is_not_taken_is_said() -> None:
    assert gym.gym_names() == ("poor", "twice")
    with pytest.raises(RecipeValueError, match="GSM8K"):
        check_families(["gym_gsm_symbolic"], "rl.families")
    for name in ("gym_countdown", "gym_nothing"):
        with pytest.raises(RecipeValueError, match="scorer of its own") as error:
            check_families([name], "rl.families")
        assert "gym_poor, gym_twice" in str(error.value)
    with pytest.raises(RecipeValueError, match="no problem for"):
        for split in SPLITS:
            TASKS["gym_poor"].problem(np.random.default_rng(0), 1, split)


@pytest.mark.usefixtures("package")
def test_a_recipe_may_sample_them_and_not_imitate_them() -> None:
    compose({"name": "a", "rl": {"families": {"gym_twice": 0.5}}, "eval": {"families": ["gym_twice"]}})
    with pytest.raises(RecipeValueError, match="no worked solutions"):
        compose({"name": "a", "sft": {"families": {"gym_twice": 0.5}}})
    with pytest.raises(RecipeValueError, match="not in sft"):
        TASKS["gym_twice"].trace(TASKS["gym_twice"].problem(np.random.default_rng(0), 1, "train"), None)  # type: ignore[arg-type]


def test_without_the_package_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ResourceError, match="reasoning-gym"):
        check_families(["gym_twice"], "rl.families")
    with pytest.raises(KeyError):
        Families()["twice"]
    assert "gym_twice" not in list(TASKS), "naming it is all that would load it"


def test_the_real_package() -> None:
    pytest.importorskip("reasoning_gym", reason="the extra gym is not installed")
    names = gym.gym_names()
    assert len(names) >= 20 and not {"gsm_symbolic", "countdown"} & set(names)
    for name in ("gcd", "letter_counting", "caesar_cipher"):
        for problem in distinct_problems(gym.Gym(f"gym_{name}"), 3, (1,), "test", 1):
            assert TASKS[f"gym_{name}"].verify(problem, problem.answer).strict
