"""lm-eval over our engine: the same scores as by our own way, on one task that is made here."""

import json
from pathlib import Path

import pytest
from invented import instructions, write

import ayllu
from ayllu.errors import ContextLengthError, UsageError
from ayllu.evals.examine import ExamSettings, examine
from ayllu.evals.lm_eval_adapter import adapted, generate_until, loglikelihood, loglikelihood_rolling
from ayllu.evals.official import OFFICIAL, load
from ayllu.evals.subject import Asked, Sampling, Subject
from ayllu.progress import Progress
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
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.api.model", None)
    with pytest.raises(UsageError, match="lm-eval is not installed"):
        adapted(engine)


def test_the_same_scores_through_lm_eval(engine, tmp_path, monkeypatch):
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    for name in ("HF_HOME", "HF_DATASETS_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    data = write(tmp_path / "sets")
    rows = load(OFFICIAL["arc_easy"], data)
    ours = examine(
        OFFICIAL["arc_easy"], rows, Subject(engine, Continuation(engine.tokenizer)), data,
        ExamSettings(), Progress("eval", quiet=True),
    )  # fmt: skip
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
    theirs = lm_eval.simple_evaluate(
        model=adapted(engine), tasks=[task], bootstrap_iters=0, log_samples=True, random_seed=0
    )
    assert len(instructions("arc-easy", 4)) == ours["n"] == len(theirs["samples"]["made_here"])
    found = theirs["results"]["made_here"]
    assert found["acc,none"] == pytest.approx(ours["by_rule"]["raw"])
    assert found["acc_norm,none"] == pytest.approx(ours["by_rule"]["character"])
