"""Overlap with evaluation problems: what is found, what is not, and what is no evidence."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ayllu.text.decontaminate import DISTINCT, PASSAGE, index_evaluations
from ayllu.text.document import tokens

STORY = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
    "How many clips did Natalia sell altogether in April and May?"
)
FILLER = "The herdsmen went up the hill with their llamas and nobody knew when they would come back. "


def test_a_whole_short_problem() -> None:
    index = index_evaluations(["What is 417 + 385?", "What is 12 * 34?"])
    hit = index.find(FILLER + "Teacher: what is  417 +\n385? Pupil: 802." + FILLER)
    assert hit is not None
    assert (hit.evaluation, hit.passage, hit.tokens) == ("What is 417 + 385?", "what is 417 + 385 ?", 6)


@pytest.mark.parametrize(
    "text",
    ["What is 417 + 386?", "What is 417 - 385?", "what is 417", "417 + 385?", "What is 1417 + 385?", ""],
)
def test_a_part_of_a_short_problem_is_no_leak(text: str) -> None:
    assert index_evaluations(["What is 417 + 385?"]).find(FILLER + text + FILLER) is None


def test_thirteen_tokens_of_a_long_problem() -> None:
    index = index_evaluations([STORY])
    names = tokens(STORY)
    for start in range(len(names) - PASSAGE + 1):
        passage = names[start : start + PASSAGE]
        hit = index.find(FILLER + " ".join(passage) + " " + FILLER)
        assert (hit is not None) == (len(set(passage)) >= DISTINCT)
        assert index.find(f"{FILLER} abc {' '.join(passage[1:])} xyz {FILLER}") is None


def test_rows_of_signs_are_no_evidence() -> None:
    table = "| " + "--- | " * 20 + "0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 " + "1, 2, 3, " * 10
    assert index_evaluations([table]).find(table) is None


def test_what_is_too_short_is_counted() -> None:
    index = index_evaluations(["Hello!", "", "1 + 1 = 2", "What is 417 + 385?"])
    assert index.too_short == 3
    assert index.find("Hello! 1 + 1 = 2") is None


def test_long_ones_without_a_passage_are_counted_too() -> None:
    index = index_evaluations(["1, 2, 3, " * 10, STORY])
    assert index.too_short == 1 and index.find(STORY) is not None


ARMY = "Ärzte können für 12 Übungen höchstens drei Bücher öffnen, nicht mehr."


@pytest.mark.parametrize(
    ("problem", "document"),
    [
        (unicodedata.normalize("NFD", ARMY), ARMY),
        ("\ufeffWhat is 417 + 385?", "What is 417 + 385?"),
        ("What is the al\u00adti\u00adtude of Pu\u200bno?", "What is the altitude of Puno?"),
        ("Who lives at +49 30 1234567 in this town?", "Who lives at [phone] in this town?"),
        ("కర్షక్\u200cలు ఎంత మంది ఉన్నారు ఇక్కడ?", "కర్షక్లు ఎంత మంది ఉన్నారు ఇక్కడ?"),
        ("What did Anna\u2019s \u201cfriend\u201d say \u2013 then?", 'What did Anna\'s "friend" say - then?'),
        ("Wie lang ist die STRASSE nach Puno?", "wie lang ist die Straße nach puno?"),
    ],
    ids=["decomposed", "byte order mark", "soft hyphens", "private", "joiners", "quotes", "case"],
)
def test_the_same_problem_in_another_form(problem: str, document: str) -> None:
    assert index_evaluations([problem]).find(FILLER + document + " " + FILLER) is not None
    assert index_evaluations([document]).find(FILLER + problem + " " + FILLER) is not None


def test_the_same_problem_twice_counts_once() -> None:
    a, b = index_evaluations([STORY, STORY]), index_evaluations([STORY])
    assert (len(a.texts), a.digest) == (1, b.digest)
    assert a.digest != index_evaluations([STORY + "!"]).digest


def test_no_problems_no_hits() -> None:
    assert index_evaluations([]).find(STORY) is None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([*"abcdefghij", "+", "12", "కారు"]), min_size=5, max_size=30),
    st.lists(st.sampled_from(["x", "y", "z"]), max_size=10),
    st.lists(st.sampled_from(["x", "y", "z"]), max_size=10),
)
def test_a_planted_problem_is_found(problem: list[str], before: list[str], after: list[str]) -> None:
    text = " ".join(problem)
    assume(len(text) >= 12 and (len(problem) < PASSAGE or len(set(problem[:PASSAGE])) >= DISTINCT))
    index = index_evaluations([text])
    hit = index.find(" ".join([*before, *problem, *after]))
    assert hit is not None
    assert hit.passage in " ".join(problem)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=5, max_size=20), min_size=1, max_size=5),
    st.lists(st.sampled_from("abcdefgh"), max_size=60),
)
def test_a_hit_is_really_in_both(problems: list[list[str]], text: list[str]) -> None:
    index = index_evaluations([" ".join(p) for p in problems])
    hit = index.find(" ".join(text))
    if hit is not None:
        assert f" {hit.passage} " in f" {' '.join(text)} "
        assert f" {hit.passage} " in f" {hit.evaluation} "
