"""Votes: canonical answers, ties, answers that were cut off."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ayllu.engine.request import SamplingParams
from ayllu.reason import vote as module
from ayllu.reason.loop import Answer
from ayllu.reason.transcript import Chat, Kind
from ayllu.reason.vote import agreeing, canonical, several, winner
from ayllu.text.tokenizer import train_tokenizer
from ayllu.tools.tool import Toolbox

CHAT = Chat(train_tokenizer(iter(["What is 12 + 30? The answer is 1,250.00 or no"]), 300))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("42", "42"),
        (" 42. ", "42"),
        ("42.0", "42"),
        ("42.50", "42.5"),
        ("+42", "42"),
        ("-0", "0"),
        ("0.00", "0"),
        ("1,250", "1250"),
        ("1,250,000.10", "1250000.1"),
        ("$1,250", "1250"),
        ("15 %", "15"),
        ("1200", "1200"),
        ("1,25", "1,25"),  # no thousands: a list, or a decimal comma; not for us to guess
        ("Yes.", "yes"),
        ("(63-17)+4", "(63-17)+4"),
        ("NaN", "nan"),
        ("Infinity", "infinity"),
        ("1e3", "1000"),
        ("1E999999999", "1e999999999"),  # not spelt out
        ("-1e-999999999", "-1e-999999999"),
        ("", ""),
    ],
)
def test_canonical_answers(text, wanted):
    assert canonical(text) == wanted


@given(st.integers(-(10**12), 10**12))
def test_a_number_is_the_same_however_it_is_written(n):
    assert len({canonical(str(n)), canonical(f"{n:,}"), canonical(f"{n}.0"), canonical(f" {n}.")}) == 1
    assert canonical(str(n)) == str(n)


def test_the_first_of_the_largest_party_wins():
    assert winner(["7", "8", "8.0", "9"]) == 1
    assert winner(["7", "8", "8", "7"]) == 0  # as many: who came first
    assert winner([None, None, "5"]) == 2
    assert winner([None]) is None and winner([]) is None
    assert winner(["7", "8", "8"], [0.9, 0.3, 0.4]) == 0  # by weight


def answered(text, reason="stop"):
    return Answer(CHAT.add(CHAT.start("What is 12 + 30?"), Kind.SAY, text, sampled=True), reason)


def test_one_question_is_asked_k_times(monkeypatch):
    asked = {}

    def canned(engine, chat, transcripts, toolbox, params, **how):
        asked.update(n=len(transcripts), params=params)
        return [answered(text) for text in ("1", "2", "2.0")]

    monkeypatch.setattr(module, "answer_batch", canned)
    params = SamplingParams(max_tokens=9, n=2, seed=3)
    found = several(None, CHAT, CHAT.start("?"), Toolbox(), params, 3)
    assert asked["n"] == 3 and asked["params"].n == 1 and asked["params"].seed == 3
    assert agreeing([CHAT.answer(one.transcript) for one in found]) == (1, 2)


def test_the_best_score_of_those_that_answered():
    assert agreeing(["1", "2", "2.0"]) == (1, 2)
    assert agreeing(["1", "2", None], [0.1, 0.4, 0.9], best=True) == (1, 1)
    assert agreeing(["1", "2", "2"], [0.9, 0.3, 0.3]) == (0, 1)
    assert agreeing([None, None, "42", "42.0"]) == (2, 2)  # cut-off answers have no vote
    assert agreeing([None], [0.9], best=True) == (None, 0) == agreeing([])
