"""`ayllu eval`: names, settings and data that make no sense are found before a model is loaded."""

import shutil
from pathlib import Path

import pytest

from ayllu.errors import BadFileError, InputNotFoundError, RecipeValueError, RefusedError, UsageError
from ayllu.evals.evaluation import evaluate_model
from ayllu.evals.examine import ExamSettings
from ayllu.evals.official import OFFICIAL
from ayllu.evals.tasks import find_tasks, task_names
from ayllu.reason.practice import EXAMS, RESAMPLED

STORIES = Path(__file__).parents[1] / "fixtures" / "stories260K"
FEW = ExamSettings(n=2, max_tokens=6, shots=0)


@pytest.mark.parametrize(
    ("name", "meant"), [("gms8k", "gsm8k"), ("ARC-easy", "arc_easy"), ("countdown-3", "countdown3")]
)
def test_a_name_that_is_not_there(name, meant):
    with pytest.raises(UsageError, match=f"no task '{name}'") as error:
        find_tasks([name], None, ExamSettings())
    assert error.value.fix == f"did you mean {meant}?"


def test_names_stand_for_several(data):
    assert [t.name for t in find_tasks(["mgsm", "mgsm_de"], data, FEW)] == ["mgsm_en", "mgsm_de", "mgsm_te"]
    assert [t.name for t in find_tasks(["official"], data, FEW)] == list(OFFICIAL)
    without = [t.name for t in find_tasks(["families"], None, FEW)]
    assert set(without) == {name for name in EXAMS if RESAMPLED.family not in name}
    assert set(OFFICIAL) | set(EXAMS) <= set(task_names())
    with pytest.raises(UsageError, match="no tasks"):
        find_tasks([], data, FEW)


@pytest.mark.parametrize(
    "bad",
    [
        {"n": 0}, {"n": 100_001}, {"samples": 0}, {"samples": 129}, {"shots": -1}, {"max_tokens": 0},
        {"seed": -1},
        {"temperature": -0.1}, {"temperature": 11.0}, {"samples": 2, "temperature": 0.0},
    ],
)  # fmt: skip
def test_settings_that_make_no_sense(data, bad):
    with pytest.raises(UsageError) as error:
        evaluate_model(STORIES, ["boolq"], data=data, settings=ExamSettings(**bad), quiet=True)
    assert error.value.exit_code == 2 and error.value.fix


def test_data_that_is_not_there():
    with pytest.raises(InputNotFoundError, match="gsm8k needs its data") as error:
        evaluate_model(STORIES, ["gsm8k"], quiet=True)
    assert "--data" in error.value.fix
    with pytest.raises(InputNotFoundError, match="needs its data"):
        evaluate_model(STORIES, [RESAMPLED.family], quiet=True)


def test_files_that_are_not_there_say_what_to_do(data, tmp_path):
    with pytest.raises(InputNotFoundError, match=r"no file .*typo\.txt") as error:
        find_tasks([f"text:{tmp_path}/typo.txt"], None, FEW)
    assert "text:PATH" in error.value.fix
    shutil.copytree(data, tmp_path / "sets")
    (tmp_path / "sets/gsm8k/train.jsonl.xz").unlink()
    with pytest.raises(InputNotFoundError, match=r"no gsm8k/train\.jsonl") as error:
        find_tasks(["gsm8k"], tmp_path / "sets", ExamSettings())
    assert "--shots 0" in error.value.fix
    assert find_tasks(["gsm8k"], tmp_path / "sets", ExamSettings(shots=0))
    with pytest.raises(InputNotFoundError, match=r"no train\*\.jsonl"):
        find_tasks([RESAMPLED.family], tmp_path / "sets", FEW)
    families = {task.name for task in find_tasks(["families"], tmp_path / "sets", FEW)}
    assert RESAMPLED.family not in families and families


@pytest.mark.parametrize("task", ["humaneval", "programs"])
def test_a_machine_without_walls_is_found_before_anything_is_written(task, data, monkeypatch):
    def refuse():
        raise RefusedError("no walls here")

    monkeypatch.setattr("ayllu.tools.sandbox._refuse_elsewhere", refuse)
    monkeypatch.setattr("ayllu.engine.engine.Engine.__init__", lambda *_, **__: pytest.fail("was loaded"))
    with pytest.raises(RefusedError, match="no walls here"):
        evaluate_model(STORIES, ["boolq", task], data=data, settings=FEW, quiet=True)


def test_examples_that_are_not_there_are_missed_before_the_model_is_loaded(data, tmp_path):
    for name in ("gsm8k", "mmlu", "nq_open"):
        with pytest.raises(UsageError, match="--shots 99"):
            find_tasks([name], data, ExamSettings(shots=99))
    with pytest.raises(BadFileError, match="fewer than 4 examples"):
        find_tasks(["bbh"], data, ExamSettings(shots=4))
    shutil.copytree(data, tmp_path / "sets")
    (tmp_path / "sets/gsm8k/train.jsonl").write_text('{"question": "How many?", "answer": "no mark"}')
    with pytest.raises(BadFileError, match=r"train\.jsonl, line 1"):
        find_tasks(["gsm8k"], tmp_path / "sets", ExamSettings())
    assert find_tasks(["gsm8k"], tmp_path / "sets", ExamSettings(shots=0))
    assert find_tasks(["humaneval"], data, ExamSettings(shots=99))  # has none


@pytest.mark.parametrize(
    ("tasks", "settings", "named"),
    [
        (["boolq"], ExamSettings(n=2, samples=4), "--samples"),
        (["mmlu", "wikitext2"], ExamSettings(thinking_budget=8), "--thinking-budget"),
        (["humaneval"], ExamSettings(shots=3), "--shots"),
        (["wikitext2"], ExamSettings(max_tokens=9, shots=2), "--max-tokens, --shots"),
    ],
)
def test_options_of_no_effect_are_refused(data, tasks, settings, named):
    with pytest.raises(UsageError, match=f"^{named}: of no effect"):
        evaluate_model(STORIES, tasks, data=data, settings=settings, quiet=True)


def test_a_family_of_others_that_is_none(monkeypatch):
    class Refusing(dict):
        def __contains__(self, name):
            raise RecipeValueError(f"there is no {name}", fix="choose another")

    monkeypatch.setattr("ayllu.evals.tasks.EXAMS", Refusing())
    with pytest.raises(UsageError, match="there is no gym_typo"):
        find_tasks(["gym_typo"], None, ExamSettings())
