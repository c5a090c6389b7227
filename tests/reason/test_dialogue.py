"""The dialogue family: every intent in every language, splits by phrasing, honest answers."""

import itertools
import re
import unicodedata
from collections import Counter

import numpy as np
import pytest

from ayllu.reason.practice import draw
from ayllu.reason.task import SPLITS, conversation, split_of
from ayllu.reason.tasks.dialogue import (
    LANGUAGES,
    MAX_TURNS,
    Dialogue,
    Phrasing,
    phrasings,
    spoken,
    transcript,
    turns,
)
from ayllu.reason.transcript import Chat, Kind
from ayllu.text.tokenizer import train_tokenizer

INTENTS = {p.intent for p in phrasings()}
CHAT = Chat(train_tokenizer(iter(["Hello నమస్కారం Grüße"]), 300))


def test_every_language_has_every_intent():
    assert len(INTENTS) >= 25
    assert {(p.language, p.intent) for p in phrasings()} == {(i, j) for i in LANGUAGES for j in INTENTS}


@pytest.mark.parametrize("language", LANGUAGES)
def test_enough_phrasings_to_learn_from_and_to_test_with(language):
    train = Counter(p.intent for p in phrasings() if p.language == language and split_of(p.key) == "train")
    assert all(train[intent] >= 3 for intent in INTENTS), train
    assert sum(p.language == language and split_of(p.key) == "test" for p in phrasings()) >= 15


def test_one_phrasing_has_one_meaning():
    words = Counter(p.key.split(" ", 3)[3] for p in phrasings())
    twice = [text for text, count in words.items() if count > 1]
    assert twice == [], "the same words never stand for two intents, nor in two languages"


def test_answers_are_short_and_tell_the_intents_apart():
    meaning = {}
    for p in phrasings():
        for answer in p.answers:
            assert 1 <= len(answer.split()) <= 25
            assert answer[-1] in ".!?"
            assert meaning.setdefault((p.language, answer), p.intent) == p.intent


@pytest.mark.parametrize("language", LANGUAGES)
def test_text_is_in_its_script(language):
    for p in phrasings():
        if p.language != language:
            continue
        for text in (
            *p.answers,
            p.ask.format_map(dict.fromkeys(("x", "y", "place", "city", "topic", "word"), "1")),
        ):
            letters = [c for c in text if c.isalpha()]
            telugu = [c for c in letters if unicodedata.name(c).startswith("TELUGU")]
            assert len(telugu) == (len(letters) if language == "te" else 0), text
            assert unicodedata.normalize("NFC", text) == text


def said_by(text: str) -> set[str]:
    """Which splits own a text typed by somebody, by comparing it with every phrasing."""
    same = [p for p in phrasings() if Phrasing(p.language, p.intent, text, ()).key == p.key]
    return {split_of(p.key) for p in same}


@pytest.mark.parametrize("split", SPLITS)
def test_splits_share_no_phrasing(split):
    rng = np.random.default_rng(1)
    for _ in range(100):
        for asked, _answer in turns(rng, split):
            assert said_by(asked) <= {split}
        assert split_of(Dialogue().problem(rng, 1, split).key) == split


def test_turns():
    rng = np.random.default_rng(2)
    lengths, seen = Counter(), set()
    answers = {answer: p for p in phrasings() for answer in p.answers}
    for _ in range(2000):
        pairs = turns(rng, "train")
        lengths[len(pairs)] += 1
        assert len({answers[answer].language for _, answer in pairs}) == 1
        assert all("{" not in asked and asked == asked.strip() for asked, _ in pairs)
        seen |= {(answers[answer].language, answers[answer].intent) for _, answer in pairs}
    assert set(lengths) == set(range(1, MAX_TURNS + 1))
    assert len(seen) == len(LANGUAGES) * len(INTENTS), (
        "a few thousand turns show every intent in every language"
    )


def test_same_seed_same_turns():
    drawn = [[turns(np.random.default_rng(5), "train") for _ in range(3)] for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_numbers_without_a_calculator_are_long():
    rng = np.random.default_rng(3)
    for p in (p for p in phrasings() if p.intent == "too_large"):
        numbers = "".join(c if c.isdigit() else " " for c in spoken(p, rng)).split()
        assert len(numbers) == 2 and all(len(n) >= 4 for n in numbers)


@pytest.mark.parametrize("budgets", [0.0, 0.5])
def test_what_longer_sums_can_do_is_not_called_too_large(budgets):
    """The same question must not be refused in one family and worked out in another."""
    refusals = {answer for p in phrasings() if p.intent == "too_large" for answer in p.answers}

    def refused(shares):
        rng, found = np.random.default_rng(5), []
        for _ in range(1500):
            spans = draw(rng, CHAT, shares, budgets).spans
            for asked, said in itertools.pairwise(spans):
                if said.kind == Kind.SAY and CHAT.text(said) in refusals:
                    found.append(CHAT.text(asked))
        return found

    def short(text):
        return "*" not in text and all(len(n) <= 6 for n in re.findall(r"\d+", text))

    assert any(map(short, refused({"dialogue": 1.0})))
    both = refused({"dialogue": 1.0, "long_arithmetic": 0.05})
    assert len(both) > 20 and not any(map(short, both))


def test_transcript_marks_the_answers_only():
    pairs = [("Hello", "Hello!"), ("Bye", "Goodbye!")]
    conversation_ = transcript(CHAT, pairs)
    assert [(s.kind, CHAT.text(s), s.sampled) for s in conversation_.spans] == [
        (Kind.USER, "Hello", False),
        (Kind.SAY, "Hello!", True),
        (Kind.USER, "Bye", False),
        (Kind.SAY, "Goodbye!", True),
    ]


def test_verdicts():
    task, rng = Dialogue(), np.random.default_rng(4)
    for _ in range(100):
        problem = task.problem(rng, 1, "test")
        whole = conversation(CHAT, problem, task.trace(problem, rng))
        assert task.verify(problem, CHAT.answer(whole)).strict
        spaced = task.verify(problem, " " + problem.answer.upper().replace(" ", "  "))
        assert spaced.lenient
        for wrong in ("", "I don't care.", problem.answer + " Or not.", None):
            verdict = task.verify(problem, wrong)
            assert not verdict.strict and not verdict.lenient
