"""Scores: rules of choice, votes, several samples, bits per byte, against sums done by hand."""

import math
from dataclasses import replace

import pytest

from ayllu.evals.answers import Judged
from ayllu.evals.items import Choice, Program
from ayllu.evals.metrics import wilson
from ayllu.evals.programs import programs_of
from ayllu.evals.scoring import best_way, mass_of, mean, score_choices, score_said, score_texts
from ayllu.evals.subject import TOO_LONG, Said, Way

# Each rule prefers another way: the whole, per token, per character, against "Answer:".
WAYS = [
    Way((-2.0,), (-1.0,), 1),
    Way((-1.0, -1.5), (-2.0,), 2),
    Way((-3.0, -2.0), (-4.0,), 30),
    Way((-2.2, -0.2), (-9.0,), 2),
]


def test_each_rule_has_its_own_choice():
    assert [best_way(WAYS, rule) for rule in ("raw", "token", "character", "answer")] == [0, 3, 2, 3]
    assert best_way([WAYS[0], WAYS[0]], "raw") == 0, "the first of equals"


def test_the_mass_of_right_answers():
    ways = [Way((math.log(p),), None, 1) for p in (0.1, 0.2, 0.1)]
    assert mass_of(ways, (0, 2)) == pytest.approx(0.5)
    assert mass_of([Way((-5000.0,), None, 1), Way((-5000.0,), None, 1)], (0,)) == pytest.approx(0.5)


def row(gold, options=4):
    pairs = tuple(("c", f" {i}") for i in range(options))
    return Choice("x:1", "q", "", pairs, tuple("abcd"[:options]), (gold,))


def test_choices_are_scored_by_every_rule_and_rows_that_did_not_fit_are_wrong():
    found = score_choices([row(2), row(0), row(1)], [WAYS, WAYS, None], "character")
    assert (found["n"], found["correct"], found["too_long"]) == (3, 1, 1)
    assert (found["low"], found["high"]) == wilson(1, 3)
    assert found["by_rule"] == {"raw": 1 / 3, "token": 0, "character": 1 / 3, "answer": 0}
    assert found["chance"] == pytest.approx(0.25) and found["rule"] == "character"
    assert [sample["said"] for sample in found["samples"]] == ["c", "c", None]
    mixed = score_choices([row(0, 2), row(0, 4)], [WAYS[:2], WAYS], "raw", letters=True)
    assert mixed["chance"] == pytest.approx(0.375) and set(mixed["by_rule"]) == {"raw"}


def said(n, k, judged, finish="stop"):
    rows = [[Said("x", finish, 10, 4, 1, 1)] * k for _ in range(n)]
    names = [f"r{i}" for i in range(n)]
    return score_said(names, names, names, rows, judged)


def judged(*values, wanted="a", strict=True):
    return [Judged(v == wanted and strict, v == wanted, v) for v in values]


def test_one_sample():
    found = said(4, 1, [judged("a"), judged("b"), judged("a", strict=False), judged(None)])
    assert (found["n"], found["correct"], found["score"]) == (4, 1, 0.25)
    assert found["lenient"]["correct"] == 2 and (found["low"], found["high"]) == wilson(1, 4)
    assert found["tokens"] == 40 and found["mean_thinking_tokens"] == 4 and found["calls"] == 4
    assert "majority" not in found and "pass_at" not in found


def test_several_samples():
    found = said(2, 4, [judged("a", "b", "a", "c"), judged("b", "b", "a", None)])
    assert found["score"] == pytest.approx((2 / 4 + 1 / 4) / 2) and found["correct"] == 3
    assert found["pass_at"]["1"]["score"] == pytest.approx(found["score"])
    assert found["pass_at"]["2"]["score"] == pytest.approx((5 / 6 + 1 / 2) / 2)
    assert found["pass_at"]["4"]["score"] == 1
    assert (found["majority"]["k"], found["majority"]["correct"]) == (4, 1)


def test_a_vote_in_a_loose_form_is_leniently_right():
    found = said(1, 3, [judged("a", "a", "b", strict=False)])
    assert found["majority"]["correct"] == 0 and found["majority"]["lenient"]["correct"] == 1


def test_an_interval_never_collapses():
    assert mean([1.0] * 5)["low"] < 0.6 and mean([0.0] * 5)["high"] > 0.4
    assert mean([0.5] * 100)["low"] == pytest.approx(wilson(50, 100)[0])
    assert mean([])["n"] == 0


def test_what_was_cut_off_and_what_did_not_fit_is_counted():
    assert said(2, 1, [judged(None), judged(None)], finish="length")["truncated"] == 2
    rows = [[TOO_LONG], [Said("a", "stop", 1)]]
    found = score_said(["1", "2"], ["", ""], ["", ""], rows, [judged(None), judged("a")])
    assert (found["too_long"], found["truncated"], found["n"], found["correct"]) == (1, 0, 2, 1)


def test_bits_per_byte_of_all_texts_together():
    found = score_texts([math.log(2) * 30, math.log(2) * 10], ["äöü" * 5, "abcde" * 2])
    assert found["score"] == pytest.approx(1.0) and found["bytes"] == 40
    assert found["low"] == pytest.approx(1.0)
    uneven = score_texts([math.log(2) * 10, math.log(2) * 30], ["a" * 20, "a" * 20])
    assert uneven["low"] < uneven["score"] == 1 < uneven["high"]
    assert score_texts([1.0], ["a"])["low"] is None


FUNCTION = Program("x", "", "", 'def add(x):\n    """Adds 1."""\n', "add", "", "")


def test_the_strict_program_goes_on_where_the_prompt_ended():
    strict, lenient = programs_of(FUNCTION, "    return x + 1\n", True)
    assert strict == lenient == FUNCTION.text + "    return x + 1\n"
    whole = "def add(x):\n    return x + 1\n"
    strict, lenient = programs_of(FUNCTION, f"Here:\n```python\n{whole}```\nDone.", True)
    assert lenient.strip() == whole.strip() != strict


def test_what_stands_above_the_head_need_not_be_written_again():
    above = "from typing import List\n\n\n"
    item = replace(FUNCTION, text=above + FUNCTION.text)
    whole = "def add(x: List[int]):\n    return x[0] + 1"
    assert programs_of(item, whole, False) == (above + whole, above + whole)
    assert programs_of(item, above + whole, False) == (above + whole, above + whole)
    future = "from __future__ import annotations\n" + whole
    assert programs_of(item, future, False) == (future, future)  # nothing may stand before that line
    _, lenient = programs_of(item, f"```python\n{whole}\n```", True)
    assert lenient == above + whole


def test_of_a_conversation_code_and_nothing_else_is_strict():
    whole = "def add(x):\n    return x + 1"
    assert programs_of(FUNCTION, whole, False) == (whole, whole)
    assert programs_of(FUNCTION, f"```python\n{whole}\n```", False) == (whole, whole)
    assert programs_of(FUNCTION, f"Sure!\n```python\n{whole}\n```", False) == (None, whole)
    strict, lenient = programs_of(FUNCTION, "return x + 1", False)
    assert strict is None and lenient == FUNCTION.text.rstrip() + "\n    return x + 1"
