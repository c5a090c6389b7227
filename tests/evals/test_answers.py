"""What counts as an answer: strictly in the asked form, leniently anywhere it can be found."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ayllu.evals.answers import (
    judge_closing,
    judge_number,
    judge_number_de,
    judge_words,
    last_readings,
    number,
    plain_words,
)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("18", "18"), ("$1,250", "1250"), ("18.00", "18"), ("72 %", "72"), ("-5.", "-5"), ("−5", "-5"),
        ("-$3", "-3"), ("007", "7"), (".5", "0.5"), ("౧౮", "18"), ("-0", "0"), ("100", "100"),
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ("3,5", None), ("eighteen", None), ("", None), ("1 2", None), ("1,2,3", None), ("²", None),
    ],
)  # fmt: skip
def test_numbers_in_their_plainest_spelling(text, wanted):
    assert number(text) == wanted


@given(st.integers(-(10**30), 10**30))
def test_whole_numbers_stay_what_they_are(value):
    assert number(f"{value}") == number(f"{value:,}") == str(value)
    assert last_readings(f"It was 7 and is {value:,}.") == (str(value),)
    assert last_readings(f"Es sind {f'{value:,}'.replace(',', '.')} Stück.", comma=True)[0] == str(value)


def test_the_last_number_keeps_its_sign():
    assert last_readings("It is −5.") == last_readings("It is -5.") == ("-5",)
    assert last_readings("12−5") == last_readings("12-5") == ("5",)


@given(st.text(max_size=60))
def test_no_text_is_too_odd(text):
    for continues in (True, False):
        for judge in (judge_number, judge_number_de, judge_words, judge_closing):
            judged = judge(["12"], text, continues)
            assert judged.lenient or not judged.strict


@pytest.mark.parametrize(
    ("said", "continues", "strict", "lenient"),
    [
        (" 9 jars.\n#### 18", True, True, True),
        ("#### 18.", True, True, True),
        ("#### $18", False, True, True),
        ("18", False, True, True),
        ("18", True, False, True),  # a continued text shows its working and the mark
        ("It is 18.", False, False, True),
        ("18 or 19", False, False, False),
        ("19, no, 18", False, False, True),
        ("#### 18\n#### 19", False, False, False),  # two answers are none
        ("#### 19\nso 18", True, False, False),
        ("12-5 = 18", True, False, True),
        ("", False, False, False),
    ],
)
def test_a_number(said, continues, strict, lenient):
    judged = judge_number(["18"], said, continues)
    assert (judged.strict, judged.lenient) == (strict, lenient)


def test_a_german_number():
    assert judge_number_de(["80000"], "Es sind 80.000 Euro.", False).lenient
    assert judge_number_de(["2500.75"], "#### 2.500,75", True).strict
    assert not judge_number(["80000"], "Es sind 80.000 Euro.", False).lenient


def test_a_german_question_may_be_answered_as_the_english_examples_are():
    for said in ("#### 2,125", "#### 2.125", "#### 2125"):
        judged = judge_number_de(["2125"], said, True)
        assert judged.strict and judged.value == "2125", said
    assert judge_number_de(["2.125"], "#### 2,125", True).strict
    assert judge_number_de(["3.5"], "#### 3,5", True).value == "3.5"
    assert not judge_number_de(["2125"], "#### 2,126", True).lenient


@pytest.mark.parametrize(
    ("said", "continues", "strict", "lenient"),
    [
        (" the Otter!\nQ: more", True, True, True),
        ("Otter.", False, True, True),
        ("An otter", False, True, True),
        ("It was an otter, I think", False, False, True),
        ("Ottery", False, False, False),
        ("A beaver\nOtter", True, False, True),
    ],
)
def test_words(said, continues, strict, lenient):
    judged = judge_words(["The otter"], said, continues)
    assert (judged.strict, judged.lenient) == (strict, lenient)


def test_overlap_of_words():
    assert judge_words(["red old barn"], "the red barn", False).f1 == pytest.approx(0.8)
    assert judge_words(["red", "blue"], "blue", False).f1 == 1
    assert judge_words(["red"], "blue", False).f1 == 0
    assert plain_words("The  Cat's an animal!") == "cats animal"


@pytest.mark.parametrize(
    ("wanted", "said", "continues", "strict", "lenient"),
    [
        ("(B)", "First ... So the answer is (B).", True, True, True),
        ("(B)", "the answer is (A). But then the answer is (B).", True, True, True),
        ("(B)", "(B)", False, True, True),
        ("(B)", "B.", False, True, True),
        ("(B)", "First ... So the answer is b", True, True, True),
        ("(B)", "So the answer is A", True, False, False),
        ("(B)", "It must be (B), not that", True, False, True),
        ("(B)", "(A) rather than (B) or (C)", True, False, False),
        ("valid", "So the answer is invalid.", True, False, False),
        ("valid", "This is valid.", False, False, True),
        ("No", "so the answer is no", True, True, True),
        ("} ] >", "So the answer is } ] >.", True, True, True),
        ("apple pear", "So the answer is apple  pear.", True, True, True),
        ("5", "That makes -5", True, False, False),
        ("5", "That makes 2.5", True, False, False),
        ("-5", "That makes -5", True, False, True),
        ("5", "That makes 5", True, False, True),
    ],
)
def test_a_closing_answer(wanted, said, continues, strict, lenient):
    judged = judge_closing([wanted], said, continues)
    assert (judged.strict, judged.lenient) == (strict, lenient)
