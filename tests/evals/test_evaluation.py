"""`ayllu eval` whole: a real model on made-up sets, kept results, and words that make no sense."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from invented import write

from ayllu import cli
from ayllu.errors import (
    BadFileError,
    FolderReadOnlyError,
    InputNotFoundError,
    ModelFileMissingError,
    RecipeValueError,
    RefusedError,
    UsageError,
)
from ayllu.evals import evaluation
from ayllu.evals.answers import NOTHING, Judged
from ayllu.evals.evaluation import evaluate_model, find_tasks, hash_model, task_names
from ayllu.evals.examine import ExamSettings, choices_by_score
from ayllu.evals.official import OFFICIAL
from ayllu.evals.page import page
from ayllu.evals.subject import Said, Subject
from ayllu.model.config import ModelSettings
from ayllu.model.decoder import Decoder
from ayllu.model.weights import load_model, save_model
from ayllu.reason.foreign import Continuation
from ayllu.reason.practice import EXAMS, RESAMPLED
from ayllu.reason.verify import Verifier, save_head
from ayllu.text.tokenizer import Tokenizer, train_tokenizer

STORIES = Path(__file__).parents[1] / "fixtures" / "stories260K"
FEW = ExamSettings(n=2, max_tokens=6, shots=0)
TWO = ExamSettings(n=2)  # for tasks that give no answers


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """A model of our own form that has learnt nothing."""
    folder = tmp_path_factory.mktemp("ours")
    tokenizer = train_tokenizer(iter(["What is 12 + 3? The otter keeps the pond. ABCDE"] * 4), 320)
    torch.manual_seed(0)
    config = ModelSettings(width=32, layers=1, head_dim=16, context=512).config(tokenizer.vocab_size)
    control = tokenizer.control
    ids = {"bos": control["<|bos|>"], "eos": control["<|end|>"], "pad": control["<|pad|>"]}
    save_model(Decoder(config), folder, **ids)
    tokenizer.save(folder)
    return folder


def test_every_official_set_on_a_model_that_continues_texts(data):
    names = [name for name, task in OFFICIAL.items() if task.form != "program"]
    made = evaluate_model(STORIES, names, data=data, settings=FEW, quiet=True)
    assert list(made["results"]) == names and made["chat_format"] == "none" and made["context"] == 512
    for name, result in made["results"].items():
        assert result["n"] == 2 and result["seed"] == 0 and result["seconds"] > 0, name
        assert result["data"] and all(len(sha) == 64 for sha in result["data"].values())
        if result["form"] != "bits":
            assert 0 <= result["low"] <= result["score"] <= result["high"] <= 1
    assert 2 < made["results"]["wikitext2"]["score"] < 9
    assert json.loads(json.dumps(made)) == made
    shown = page(made)
    assert all(name in shown for name in names) and "own protocol: LLaMA 7B 72.8 %" in shown


def test_a_model_of_ours_is_asked_in_conversation(data, ours):
    names = ["gsm8k", "mmlu", "boolq", "xquad_de", "arithmetic", "stories_te_templates", "wikitext2"]
    made = evaluate_model(ours, names, data=data, settings=ExamSettings(n=2, max_tokens=6), quiet=True)
    assert made["chat_format"] == "ayllu"
    found = made["results"]
    assert found["mmlu"]["asked_as"] == "letters" and set(found["mmlu"]["by_rule"]) == {"raw"}
    assert found["gsm8k"]["asked_as"] == "conversation" and found["gsm8k"]["shots"] == 0
    assert found["arithmetic"]["n"] == found["stories_te_templates"]["n"] == 2
    assert "bits per byte" in found["wikitext2"]["unit"]


def test_samples_are_drawn_and_repeatable(ours, data):
    settings = ExamSettings(n=2, samples=4, max_tokens=4)
    one, two = (
        evaluate_model(ours, ["gsm8k", "arithmetic"], data=data, settings=settings, quiet=True)["results"]
        for _ in range(2)
    )
    for name in one:
        assert one[name]["sampling"]["temperature"] == 0.7 and set(one[name]["pass_at"]) == {"1", "2", "4"}
        assert one[name]["samples"] == two[name]["samples"] and one[name]["tokens"] == two[name]["tokens"]


@pytest.fixture(scope="module")
def judge(ours, tmp_path_factory):
    """A verifier of the model's vocabulary that has learnt nothing."""
    folder = tmp_path_factory.mktemp("judge")
    shutil.copytree(ours, folder / "verifier")
    torch.manual_seed(1)
    made = Verifier(load_model(ours))
    torch.nn.init.normal_(made.head.weight)
    save_head(made, folder / "verifier")
    return folder


def test_a_verifier_chooses_among_the_samples(ours, judge, tmp_path):
    settings, out = ExamSettings(n=4, samples=4, max_tokens=4), tmp_path / "results.json"

    def run(verifier):
        return evaluate_model(ours, ["arithmetic"], settings=settings, verifier=verifier, out=out, quiet=True)

    plain = run(None)["results"]["arithmetic"]
    assert "best_of" not in plain and "verifier" not in page(run(None))
    made = run(judge)
    found = made["results"]["arithmetic"]
    assert found["best_of"]["k"] == 4 and found["best_of"]["n"] == 4
    assert found["score"] == plain["score"] and len(found["verifier_sha256"]) == 64
    assert "by the verifier: best of 4 " in page(made)
    assert run(judge)["results"]["arithmetic"] == found  # kept, not made again


def test_verifiers_that_cannot_choose_are_refused(ours, judge, tmp_path):
    four = ExamSettings(n=1, samples=4, max_tokens=4)
    with pytest.raises(UsageError, match="each question gets one"):
        evaluate_model(ours, ["arithmetic"], settings=FEW, verifier=judge, quiet=True)
    with pytest.raises(InputNotFoundError, match="no folder"):
        evaluate_model(ours, ["arithmetic"], settings=four, verifier=tmp_path / "none", quiet=True)
    with pytest.raises(ModelFileMissingError, match="holds no verifier"):
        evaluate_model(ours, ["arithmetic"], settings=four, verifier=ours, quiet=True)
    with pytest.raises(UsageError, match="no chat format"):
        evaluate_model(STORIES, ["arithmetic"], settings=four, verifier=judge, quiet=True)


def test_the_choice_by_score():
    def row(*scores, cut=()):
        return [Said("x", "length" if n in cut else "stop", score=s) for n, s in enumerate(scores)]

    right, wrong = Judged(True, True, "7"), Judged(False, False, "8")
    said = [row(0.3, 0.4, 0.5), row(0.9, 0.2, 0.2, cut=(0,))]
    judged = [[right, right, wrong], [wrong, NOTHING, right]]
    found = choices_by_score(said, judged)
    assert found["best_of"]["correct"] == 0  # 0.5 is wrong; 0.9 was cut off, and of 0.2 and 0.2 the first
    assert found["weighted"]["correct"] == 1  # 0.3 + 0.4 beat 0.5
    assert choices_by_score([row(0.1)], [[right]]) == {}
    assert choices_by_score([row(None, None)], [[right, wrong]]) == {}
    assert "weighted" not in choices_by_score([row(0.1, 0.2)], [[NOTHING, NOTHING]])


def test_a_batch_changes_nothing(data):
    def run(batch):
        made = evaluate_model(
            STORIES, ["arc_easy", "nq_open"], data=data, settings=FEW, batch=batch, quiet=True
        )
        return {name: (r["score"], r["samples"]) for name, r in made["results"].items()}

    assert run(1) == run(16)


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


def test_rows_that_do_not_fit_are_counted_and_told(data, tmp_path):
    settings = ExamSettings(n=2, max_tokens=6, shots=12)
    made = evaluate_model(STORIES, ["gsm8k"], data=data, settings=settings, quiet=True)
    result = made["results"]["gsm8k"]
    assert (result["n"], result["too_long"], result["correct"]) == (2, 2, 0)
    assert "2 of 2 rows did not fit into the context and count as wrong; give fewer --shots" in page(made)


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


def test_a_family_of_others_that_is_none(monkeypatch):
    class Refusing(dict):
        def __contains__(self, name):
            raise RecipeValueError(f"there is no {name}", fix="choose another")

    monkeypatch.setattr("ayllu.evals.evaluation.EXAMS", Refusing())
    with pytest.raises(UsageError, match="there is no gym_typo"):
        find_tasks(["gym_typo"], None, ExamSettings())


def test_a_device_that_is_none_is_refused(data):
    assert call("eval", str(STORIES), "--tasks", "boolq", "--data", str(data), "--device", "gpux") == 2


def call(*words):
    with pytest.raises(SystemExit) as ended:
        cli.main(list(words))
    return ended.value.code


def test_the_verb(data, tmp_path, capsys):
    out = tmp_path / "results.json"
    text = tmp_path / "note.txt"
    text.write_text("One day, a fish swam in the pond.")
    words = ["eval", str(STORIES), "--tasks", f"boolq,text:{text}", "--data", str(data), "--n", "2"]
    assert call(*words, "--out", str(out)) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("task") and "windows of 511 tokens" in shown.out and "eval" in shown.err
    assert call(*words, "--out", str(out), "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made == json.loads(out.read_text()) and "machine" not in made
    assert 0.4 < made["results"][f"text:{text}"]["score"] < 2
    assert call(*words[:3], "bolq") == 2
    assert "did you mean boolq?" in capsys.readouterr().err
    assert call("eval", str(STORIES), "--tasks", "boolq", "--data", str(tmp_path / "no")) == 4


def test_what_goes_on_with_a_text_keeps_its_first_space():
    """A function's body is nothing without it, and a SentencePiece text alone would lose it."""
    tokenizer = Tokenizer.load(STORIES)
    before, ids = tokenizer.encode("def f():"), tokenizer.encode("def f(): go on")
    assert ids[: len(before)] == before
    said = Subject(None, Continuation(tokenizer))._continued(ids[len(before) :], "length", ())
    assert said.text == " go on"
