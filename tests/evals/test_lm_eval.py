"""lm-eval over our engine: the same scores as by our own way, on one task that is made here."""

import json
import sys
from pathlib import Path

import harness
import pytest
from invented import instructions

import ayllu
from ayllu.errors import ContextLengthError, UsageError
from ayllu.evals.evaluation import evaluate_model
from ayllu.evals.examine import ExamSettings
from ayllu.evals.items import Shots
from ayllu.evals.lm_eval_adapter import adapted, generate_until, loglikelihood, loglikelihood_rolling
from ayllu.evals.official import OFFICIAL, load
from ayllu.evals.subject import Asked, Sampling, Subject
from ayllu.reason.foreign import Continuation

STORIES = Path(__file__).parents[1] / "fixtures" / "stories260K"


@pytest.fixture(scope="module")
def engine():
    with ayllu.Engine(STORIES) as opened:
        yield opened


def test_whether_a_continuation_is_greedy_text(engine):
    (greedy,) = engine.generate([[1]], max_tokens=6, temperature=0)
    said = engine.tokenizer.decode(greedy.token_ids)
    (likely, yes), (unlikely, no) = loglikelihood(engine, [("", said), ("", "Zebras")])
    assert (yes, no) == (True, False) and unlikely < likely < 0
    (nats, same) = loglikelihood(engine, [("", said)])[0]
    assert (nats, same) == (pytest.approx(likely), True)


def test_what_does_not_fit_is_refused_and_not_cut(engine):
    with pytest.raises(ContextLengthError, match="nothing is cut"):
        loglikelihood(engine, [("The dog ran. " * 200, "x")])
    with pytest.raises(ContextLengthError, match="num_fewshot"):
        generate_until(engine, [("The dog", {"max_gen_toks": 600})])


def test_rolling_is_the_same_text_in_one_window(engine):
    text = "Tim had a red ball and a small dog."
    assert loglikelihood_rolling(engine, [text])[0] == pytest.approx(
        loglikelihood(engine, [("", text)])[0][0]
    )


def test_text_goes_on_until_told(engine):
    subject = Subject(engine, Continuation(engine.tokenizer))
    ((said,),) = subject.say(
        [Asked("x", "", "Once upon a time")], Sampling(max_tokens=40), (".",), lambda done: None
    )
    settings = {"until": ["."], "max_gen_toks": 40, "do_sample": False}
    assert generate_until(engine, [("Once upon a time", settings)]) == [said.text]
    assert said.text.startswith(",") and "." not in said.text


def test_without_lm_eval_it_says_what_to_install(engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(UsageError, match="lm-eval is not installed"):
        adapted(engine)


@pytest.fixture(params=["a model that continues texts", "a model of ours"])
def model(request, ours):
    """Its folder. A model of ours converses, and is asked as a text here: so does lm-eval."""
    return STORIES if request.param == "a model that continues texts" else ours


def test_both_ask_for_the_same_likelihoods(model, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", harness.module())
    rows = load(OFFICIAL["arc_easy"], data)
    with ayllu.Engine(model) as engine:
        subject = Subject(engine, Continuation(engine.tokenizer))
        ways = subject.ways(rows, [Shots()] * len(rows), lambda done: None)
        theirs = harness.likelihoods(adapted(engine), rows)
    assert len(rows) == len(instructions("arc-easy", 4))
    assert theirs == [[pytest.approx(sum(way.nats)) for way in row] for row in ways]


def test_both_give_the_same_scores(model, data, monkeypatch):
    """The example of docs/evaluation.md, with a stand-in for the harness."""
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", harness.module())
    ours = as_text(model, data)
    with ayllu.Engine(model) as engine:
        theirs = harness.simple_evaluate(adapted(engine), load(OFFICIAL["arc_easy"], data))
    assert theirs == {"acc": pytest.approx(ours["raw"]), "acc_norm": pytest.approx(ours["character"])}


def as_text(model, data):
    """`ayllu eval MODEL --tasks arc_easy --ask-as text`: the score by each rule."""
    made = evaluate_model(
        model, ["arc_easy"], data=data, settings=ExamSettings(ask_as="text"), quiet=True
    )  # fmt: skip
    found = made["results"]["arc_easy"]
    assert found["asked_as"] == "continuations" and found["shots"] == 0
    return found["by_rule"]


def test_the_same_scores_through_lm_eval(model, data, tmp_path, monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    for name in ("HF_HOME", "HF_DATASETS_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    rows = load(OFFICIAL["arc_easy"], data)
    ours = as_text(model, data)
    file = tmp_path / "rows.json"
    with open(file, "w", encoding="utf-8") as out:
        for row in rows:
            asked = {"context": row.pairs[0][0], "choices": list(row.options), "gold": row.gold[0]}
            out.write(json.dumps(asked) + "\n")
    task = {
        "task": "made_here",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    with ayllu.Engine(model) as engine:
        theirs = lm_eval.simple_evaluate(
            model=adapted(engine), tasks=[task], bootstrap_iters=0, log_samples=True, random_seed=0
        )
        stand_in = harness.simple_evaluate(adapted(engine), rows)
    assert len(rows) == len(theirs["samples"]["made_here"])
    found = theirs["results"]["made_here"]
    assert found["acc,none"] == pytest.approx(ours["raw"]) == pytest.approx(stand_in["acc"])
    assert found["acc_norm,none"] == pytest.approx(ours["character"]) == pytest.approx(stand_in["acc_norm"])
