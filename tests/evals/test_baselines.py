"""The scorers judged: who knows the answers gets everything, who never does gets nothing."""

import numpy as np
import pytest
from stand_ins import StandIn, by_lot, oracle, replies, solved, wrong

from ayllu.evals import examine as module
from ayllu.evals.examine import ExamSettings, examine, examine_family
from ayllu.evals.items import Choice
from ayllu.evals.official import OFFICIAL, load
from ayllu.evals.page import page
from ayllu.progress import Progress
from ayllu.reason.practice import EXAMS
from ayllu.reason.task import hardest

QUIET = Progress("eval", quiet=True)
CHOICES = [name for name, task in OFFICIAL.items() if task.form in ("choice", "mass")]
WORDS = [name for name, task in OFFICIAL.items() if task.form == "answer"]
PROGRAMS = [name for name, task in OFFICIAL.items() if task.form == "program"]
FAMILIES = list(EXAMS)


def run(name, data, make, *, continues=True, rows=None, **settings):
    task = OFFICIAL[name]
    rows = rows or load(task, data)
    return examine(task, rows, make(rows, continues), data, ExamSettings(**settings), QUIET)


def knowing(rows, continues):
    return oracle(replies(rows, continues), continues=continues)


@pytest.mark.parametrize("continues", [True, False], ids=["continues", "converses"])
@pytest.mark.parametrize("name", CHOICES + WORDS)
def test_the_oracle_is_always_right_and_the_fool_never(data, name, continues):
    best = run(name, data, knowing, continues=continues)
    assert best["n"] > 3 and best["score"] > 0.999 and best["high"] == pytest.approx(1, abs=1e-3)
    if name in WORDS:
        assert best["correct"] == best["lenient"]["correct"] == best["n"]
    worst = run(name, data, lambda rows, continues: wrong(continues=continues), continues=continues)
    assert worst["n"] == best["n"] and worst["score"] < 0.001 and worst["low"] == pytest.approx(0, abs=1e-3)
    if name in WORDS:
        assert worst["lenient"]["correct"] == 0


@pytest.mark.parametrize("name", WORDS)
def test_who_converses_is_told_the_form_unless_it_was_trained_here(data, name):
    """Strict is the form that was asked for, so it has to be asked for; and who thinks needs room."""
    task = OFFICIAL[name]
    assert task.asks
    for ours in (True, False):
        made = StandIn(lambda item: [], lambda key: "no", continues=False, ours=ours)
        examine(task, load(task, data), made, data, ExamSettings(), QUIET)
        assert all(question.endswith(task.asks) is not ours for question in made.asked)
        assert made.most >= 1024
    made = StandIn(lambda item: [], lambda key: "no")
    examine(task, load(task, data), made, data, ExamSettings(), QUIET)
    assert made.most == task.max_tokens and not any(task.asks in seen for seen in made.seen)


def test_published_scores_stand_beside_the_same_task_only(data):
    def beside(name, **settings):
        return run(name, data, knowing, **settings)["beside"]

    assert beside("arc_easy") and not beside("arc_easy", continues=False), "letters are another task"
    assert beside("mmlu") and not beside("mmlu", shots=0)
    assert beside("gsm8k") and beside("gsm8k", continues=False) and not beside("gsm8k", shots=1)


def test_tasks_of_one_set_have_scores_of_their_own(data):
    rows = load(OFFICIAL["bbh"], data)
    groups = {row.group for row in rows}
    first = min(groups)
    known = {row.place: row.worked for row in rows if row.group == first}
    made = run("bbh", data, lambda rows, continues: oracle(known))
    assert made["groups"] == {group: float(group == first) for group in groups}
    assert made["group_mean"] == pytest.approx(1 / len(groups)) and len(groups) > 1
    assert f"mean of {len(groups)} groups" in page({"results": {"bbh": made}})


@pytest.mark.parametrize("continues", [True, False], ids=["continues", "converses"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_are_run(data, walls, name, continues):
    best = run(name, data, knowing, continues=continues, samples=3)
    assert (best["n"], best["correct"], best["pass_at"]["2"]["score"]) == (4, 12, 1.0)
    worst = run(name, data, lambda rows, continues: wrong(continues=continues), continues=continues)
    assert worst["correct"] == worst["lenient"]["correct"] == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_our_own(resampled, name):
    task = EXAMS[name]
    n = 40 if "countdown" in name else 4
    settings, problems = ExamSettings(n=n, seed=2), hardest(task, n, 2)
    said = {problem.key: solved(task, problem) for problem in problems}
    for continues in (True, False):
        best = examine_family(task, oracle(said, continues=continues), settings, QUIET)
        assert best["n"] == best["correct"] == best["lenient"]["correct"] == len(problems)
        worst = examine_family(task, wrong(continues=continues), settings, QUIET)
        assert worst["correct"] == worst["lenient"]["correct"] == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_examples_of_our_own_families_are_right(resampled, name):
    """Countdown's `answer` is its target, which nobody should be shown as an answer."""
    examples = module._family_examples(EXAMS[name], 2, 5)
    source = getattr(EXAMS[name], "task", EXAMS[name])
    rng, told = np.random.default_rng([5, 13, *name.encode()]), iter(examples)
    example = next(told)
    for _ in range(60):  # the same draws; those that the expert gave up are passed over
        problem = source.problem(rng, source.levels, "train")
        source.trace(problem, rng)
        if example is not None and problem.prompt == example.question:
            assert source.verify(problem, example.answer).strict, (example.question, example.answer)
            assert example.text == f"Q: {problem.prompt}\nA: {example.answer}"
            example = next(told, None)
    assert example is None


def test_examples_stand_before_a_text_and_are_no_rows_of_the_score(data):
    found = knowing(load(OFFICIAL["nq_open"], data), True)
    rows = load(OFFICIAL["nq_open"], data)
    result = examine(OFFICIAL["nq_open"], rows, found, data, ExamSettings(shots=3), QUIET)
    assert result["n"] == len(rows) - 3 and result["shots"] == 3
    for seen in found.seen:
        examples, asked = seen.rsplit("\n\n", 1)
        assert examples.startswith("Answer these questions:\n\nQ: ") and examples.count("A: The Otter") == 3
        assert asked.endswith("\nA:") and asked not in examples


def test_examples_are_of_the_same_subject(data):
    rows = load(OFFICIAL["mmlu"], data)
    found = knowing(rows, True)
    examine(OFFICIAL["mmlu"], rows, found, data, ExamSettings(), QUIET)
    for row, seen in zip(rows, found.seen, strict=True):
        subject = row.group.replace("_", " ")
        assert seen.startswith(
            f"The following are multiple choice questions (with answers) about {subject}.\n\n"
        )
        assert seen.count(f" of {row.group}?") == 6 and seen.endswith("\nAnswer:")
        assert all(letter in seen for letter in ("\nAnswer: A\n\n", "\nAnswer: D\n\n"))


def test_a_model_that_converses_gets_no_examples_unless_told(data):
    result = run("gsm8k", data, knowing, continues=False)
    assert result["shots"] == 0 and result["asked_as"] == "conversation"
    assert run("gsm8k", data, knowing, continues=False, shots=2)["shots"] == 2


def test_so_many_rows_by_lot_and_the_same_ones_again(data):
    few, more = ([s["place"] for s in run("gsm8k", data, knowing, n=n, seed=3)["samples"]] for n in (3, 4))
    assert len(few) == 3 and set(few) <= set(more)
    assert few == [s["place"] for s in run("gsm8k", data, knowing, n=3, seed=3)["samples"]]
    drawn = {tuple(s["place"] for s in run("gsm8k", data, knowing, n=3, seed=i)["samples"]) for i in range(9)}
    assert len(drawn) > 1


def test_bits_per_byte_of_what_costs_a_bit_a_byte(data):
    result = run("wikitext2", data, lambda rows, continues: by_lot(0))
    assert result["n"] == 4 and result["score"] == pytest.approx(1.0)
    assert result["low"] == pytest.approx(1.0) == result["high"]
    assert result["bytes"] == (data / "wikitext2/test.txt").stat().st_size


def test_every_choice_has_a_letter_for_each_option(data):
    for name in CHOICES:
        for row in load(OFFICIAL[name], data):
            assert isinstance(row, Choice) and len(row.options) == len(row.pairs)
            assert f"\n{chr(64 + len(row.options))}. {row.options[-1]}\nAnswer" in row.question
