"""What `ayllu eval --out` keeps: it goes on where it was broken off, and nothing stale counts as new."""

import json
import shutil
from pathlib import Path

import pytest

from ayllu.errors import (
    BadFileError,
    FolderReadOnlyError,
    InputNotFoundError,
    ModelFileMissingError,
    UsageError,
)
from ayllu.evals import evaluation
from ayllu.evals.evaluation import evaluate_model, hash_model
from ayllu.evals.examine import ExamSettings

STORIES = Path(__file__).parents[1] / "fixtures" / "stories260K"
TWO = ExamSettings(n=2)  # for tasks that give no answers


def test_a_killed_evaluation_goes_on_with_what_is_missing(data, tmp_path, monkeypatch):
    out, names = tmp_path / "results.json", ["boolq", "piqa", "arc_easy"]
    done = []
    real = evaluation._examine

    def dies(task, *rest):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(task.name)
        return real(task, *rest)

    monkeypatch.setattr(evaluation, "_examine", dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate_model(STORIES, names, data=data, settings=TWO, out=out, quiet=True)
    kept = json.loads(out.read_text())["results"]
    assert list(kept) == ["boolq", "piqa"] and not list(tmp_path.glob("*.part"))
    done.clear()
    whole = evaluate_model(STORIES, names, data=data, settings=TWO, out=out, quiet=True)["results"]
    assert done == ["arc_easy"] and list(whole) == names and whole["piqa"] == kept["piqa"]
    unbroken = evaluate_model(STORIES, names[:1], data=data, settings=TWO, quiet=True)["results"]
    assert unbroken["boolq"]["score"] == whole["boolq"]["score"]
    assert json.loads(out.read_text())["results"] == whole


def test_other_settings_and_other_data_are_done_again(data, tmp_path, monkeypatch):
    out, mine = tmp_path / "results.json", tmp_path / "sets"
    shutil.copytree(data, mine)
    done = []
    monkeypatch.setattr(evaluation, "_examine", lambda task, *_: done.append(task.name) or _result(task.name))

    def run(names, settings=TWO):
        done.clear()
        made = evaluate_model(STORIES, names, data=mine, settings=settings, out=out, quiet=True)
        return list(made["results"]), list(done)

    assert run(["boolq", "piqa"]) == (["boolq", "piqa"], ["boolq", "piqa"])
    assert run(["piqa"]) == (["piqa"], [])
    assert run(["piqa"], ExamSettings(n=3)) == (["piqa"], ["piqa"])
    file = mine / "commonsense/boolq_test.jsonl"
    file.write_text("\n".join(file.read_text().splitlines()[1:]) + "\n")
    assert run(["boolq", "piqa"], ExamSettings(n=3)) == (["boolq", "piqa"], ["boolq"])
    assert set(json.loads(out.read_text())["results"]) == {"boolq", "piqa"}


def _result(name):
    return {"task": name, "form": "choice", "n": 1, "score": 0.0, "low": 0.0, "high": 1.0}


def test_a_file_of_something_else_is_left_alone(data, tmp_path, ours):
    out = tmp_path / "results.json"
    out.write_text('{"my": "notes"}')
    with pytest.raises(UsageError, match="no file of results"):
        evaluate_model(STORIES, ["boolq"], data=data, settings=TWO, out=out, quiet=True)
    assert out.read_text() == '{"my": "notes"}'
    out.write_text("{broken")
    with pytest.raises(BadFileError):
        evaluate_model(STORIES, ["boolq"], data=data, settings=TWO, out=out, quiet=True)
    out.write_text(json.dumps({"kind": evaluation.KIND, "model_sha256": "another"}))
    with pytest.raises(UsageError, match="another model"):
        evaluate_model(STORIES, ["boolq"], data=data, settings=TWO, out=out, quiet=True)
    with pytest.raises(InputNotFoundError, match="no folder"):
        evaluate_model(STORIES, ["boolq"], data=data, settings=TWO, out=tmp_path / "x/y.json", quiet=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFileMissingError, match="no weights"):
        evaluate_model(tmp_path / "empty", ["boolq"], data=data, settings=TWO, quiet=True)


def test_the_hash_of_a_model_is_that_of_its_files(ours, tmp_path):
    shutil.copytree(ours, tmp_path / "copy")
    assert hash_model(ours) == hash_model(tmp_path / "copy")
    (tmp_path / "copy/README.md").write_text("a card changes no answer")
    assert hash_model(ours) == hash_model(tmp_path / "copy")
    config = tmp_path / "copy/config.json"
    config.write_text(config.read_text() + "\n")
    assert hash_model(ours) != hash_model(tmp_path / "copy")


def test_a_result_depends_on_what_its_form_goes_by(data, tmp_path):
    out = tmp_path / "results.json"

    def run(**settings):
        made = evaluate_model(
            STORIES,
            ["boolq", "nq_open"],
            data=data,
            settings=ExamSettings(n=2, **settings),
            out=out,
            quiet=True,
        )
        return {name: found["fingerprint"] for name, found in made["results"].items()}

    one, two = run(max_tokens=4), run(max_tokens=5)
    assert one["boolq"] == two["boolq"] and one["nq_open"] != two["nq_open"]
    results = json.loads(out.read_text())["results"]
    assert all(found["machine"]["chip"] for found in results.values()), "each result has its machine"


def test_how_a_model_ends_its_answers_belongs_to_it(ours, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(ours, model)
    before = hash_model(model)
    (model / "generation_config.json").write_text('{"thinking_budgets": true}')
    told = hash_model(model)
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
    assert len({before, told, hash_model(model)}) == 3


def test_a_file_that_cannot_be_written_is_found_before_the_first_task(data, tmp_path, monkeypatch):
    monkeypatch.setattr("ayllu.evals.evaluation._examine", lambda *_: pytest.fail("was begun"))

    def full(path, value):
        raise FolderReadOnlyError(f"{path} can't be written")

    monkeypatch.setattr("ayllu.evals.evaluation.write_json", full)
    with pytest.raises(FolderReadOnlyError):
        evaluate_model(
            STORIES, ["boolq"], data=data, settings=ExamSettings(n=2), out=tmp_path / "r.json", quiet=True
        )
