"""`--ask-as`: a model that converses is asked as a text too, and every result says how it was asked."""

import json
from pathlib import Path

import pytest

from ayllu import cli
from ayllu.errors import UsageError
from ayllu.evals.evaluation import evaluate_model
from ayllu.evals.examine import ExamSettings
from ayllu.evals.likelihood import encode_pair
from ayllu.evals.page import page
from ayllu.text.tokenizer import Tokenizer

STORIES = Path(__file__).parents[1] / "fixtures" / "stories260K"
TASKS = ["arc_easy", "gsm8k", "arithmetic"]


def run(model, data, ask_as):
    settings = ExamSettings(n=2, max_tokens=6, shots=0, ask_as=ask_as)
    return evaluate_model(model, TASKS, data=data, settings=settings, quiet=True)


def asked_as(made):
    return [made["results"][name]["asked_as"] for name in TASKS]


def test_a_model_of_ours_is_asked_as_told(data, ours):
    auto, text, chat = (run(ours, data, ask_as) for ask_as in ("auto", "text", "chat"))
    assert asked_as(auto) == asked_as(chat) == ["letters", "conversation", "conversation"]
    assert asked_as(text) == ["continuations", "text", "text"]
    assert auto["chat_format"] == text["chat_format"] == "ayllu", "what the model has, however it is asked"
    for name in TASKS:
        assert auto["results"][name]["score"] == chat["results"][name]["score"]
        assert f"{name}: asked as {text['results'][name]['asked_as']}" in page(text)
    assert set(text["results"]["arc_easy"]["by_rule"]) == {"raw", "token", "character", "answer"}
    assert "likelihood of each way to go on" in text["results"]["arc_easy"]["protocol"]
    assert text["results"]["arc_easy"]["beside"], "the task of the published scores"
    assert text["results"]["gsm8k"]["samples"][0]["prompt"].endswith("\nAnswer:")
    assert text["results"]["arithmetic"]["samples"][0]["prompt"].startswith("Q: ")


def test_as_a_text_examples_stand_before_it_unless_told(data, ours):
    settings = ExamSettings(n=1, max_tokens=4, ask_as="text")
    made = evaluate_model(ours, ["gsm8k", "arithmetic"], data=data, settings=settings, quiet=True)
    assert [found["shots"] for found in made["results"].values()] == [5, 4]


def test_before_a_text_of_ours_stands_the_token_that_begins_one(ours):
    tokenizer = Tokenizer.load(ours)
    assert tokenizer.native
    assert encode_pair(tokenizer, "The otter", " keeps").context[0] == tokenizer.control["<|bos|>"]


def test_one_way_is_not_taken_for_the_other(data, ours, tmp_path):
    out = tmp_path / "results.json"
    for ask_as, wanted in (("auto", "letters"), ("text", "continuations"), ("auto", "letters")):
        settings = ExamSettings(n=2, ask_as=ask_as)
        made = evaluate_model(ours, ["arc_easy"], data=data, settings=settings, out=out, quiet=True)
        assert made["results"]["arc_easy"]["asked_as"] == wanted
        assert json.loads(out.read_text())["results"]["arc_easy"]["asked_as"] == wanted


def test_a_model_without_a_chat_format_has_no_conversation(data):
    with pytest.raises(UsageError, match="no chat format") as error:
        run(STORIES, data, "chat")
    assert "--ask-as text" in error.value.fix
    assert asked_as(run(STORIES, data, "text")) == asked_as(run(STORIES, data, "auto"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ask_as": "letters"}, "--ask-as letters is not possible"),
        ({"ask_as": "text", "thinking_budget": 8}, "--thinking-budget bounds thoughts"),
    ],
)
def test_what_makes_no_sense_is_found_before_the_model_is_loaded(data, ours, monkeypatch, settings, said):
    monkeypatch.setattr("ayllu.evals.evaluation.Engine", lambda *_, **__: pytest.fail("was loaded"))
    with pytest.raises(UsageError, match=said) as error:
        evaluate_model(ours, ["gsm8k"], data=data, settings=ExamSettings(shots=0, **settings), quiet=True)
    assert error.value.fix


def test_a_verifier_has_nothing_to_score_in_a_text(data, ours, monkeypatch):
    monkeypatch.setattr("ayllu.evals.evaluation.Engine", lambda *_, **__: pytest.fail("was loaded"))
    settings = ExamSettings(samples=2, ask_as="text")
    with pytest.raises(UsageError, match="--ask-as text has none"):
        evaluate_model(ours, ["arithmetic"], settings=settings, verifier=ours, quiet=True)


def test_bits_per_byte_are_asked_for_in_one_way_only(data, ours):
    with pytest.raises(UsageError, match="--ask-as: of no effect on wikitext2"):
        evaluate_model(ours, ["wikitext2"], data=data, settings=ExamSettings(ask_as="text"), quiet=True)


def test_the_verb(data, ours, capsys):
    words = ["eval", str(ours), "--tasks", "arc_easy", "--data", str(data), "--n", "2", "--ask-as", "text"]
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 0 and "arc_easy: asked as continuations" in capsys.readouterr().out
