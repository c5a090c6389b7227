"""`ayllu eval` whole: real models on made-up sets, as a function and as a verb."""

import json
from pathlib import Path

import pytest

from ayllu import cli
from ayllu.evals.evaluation import evaluate_model
from ayllu.evals.examine import ExamSettings
from ayllu.evals.official import OFFICIAL
from ayllu.evals.page import page
from ayllu.evals.subject import Subject
from ayllu.reason.foreign import Continuation
from ayllu.text.tokenizer import Tokenizer

STORIES = Path(__file__).parents[1] / "fixtures" / "stories260K"
FEW = ExamSettings(n=2, max_tokens=6, shots=0)


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


def test_a_batch_changes_nothing(data):
    def run(batch):
        made = evaluate_model(
            STORIES, ["arc_easy", "nq_open"], data=data, settings=FEW, batch=batch, quiet=True
        )
        return {name: (r["score"], r["samples"]) for name, r in made["results"].items()}

    assert run(1) == run(16)


def test_rows_that_do_not_fit_are_counted_and_told(data, tmp_path):
    settings = ExamSettings(n=2, max_tokens=6, shots=12)
    made = evaluate_model(STORIES, ["gsm8k"], data=data, settings=settings, quiet=True)
    result = made["results"]["gsm8k"]
    assert (result["n"], result["too_long"], result["correct"]) == (2, 2, 0)
    assert "2 of 2 rows did not fit into the context and count as wrong; give fewer --shots" in page(made)


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
