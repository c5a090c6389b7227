"""A few turns of plain conversation in English, German and Telugu.

Greetings, thanks, who it is, what it can and can't do, and honest refusals for what lies outside it:
world facts, weather, opinions, translation, and sums that are too long for the head when no
calculator is on offer. The phrasings stand in `phrases/*.toml`, one file a language. An intent has
one or two fixed answers, so that a model of a million parameters learns the whole family from a few
thousand turns; what it has to generalise over is how people ask.

The split goes by phrasing (with its slots unfilled, without case and punctuation), so that a test
phrasing is never seen in training with other capitals or another country.
"""

from __future__ import annotations

import functools
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.random import Generator

from ayllu.reason.task import Piece, Problem, Task, Verdict, split_of
from ayllu.reason.transcript import Chat, Kind, Transcript

LANGUAGES = ("en", "de", "te")
MAX_TURNS = 3
_DIGITS = (4, 9)  # of numbers that may be too long for the head; `arithmetic` is learnt to 3 digits
_STATEMENTS = frozenset({"hello", "morning", "thanks", "bye", "sorry", "stupid", "write"})  # no question mark


@dataclass(frozen=True)
class Phrasing:
    """One way to say one thing. `ask` may hold slots in braces."""

    language: str
    intent: str
    ask: str
    answers: tuple[str, ...]

    @property
    def key(self) -> str:
        """Canonical: language, intent, and the words without case and punctuation."""
        words = "".join(c if c.isalnum() or c in "{}+-*= " or ord(c) > 127 else " " for c in self.ask.lower())
        return f"dialogue {self.language} {self.intent} {' '.join(words.split())}"


@functools.cache
def phrasings() -> tuple[Phrasing, ...]:
    """Every phrasing of every intent, in file order."""
    return tuple(
        Phrasing(language, intent, ask, tuple(table["answer"]))
        for language in LANGUAGES
        for intent, table in _file(language)["intents"].items()
        for ask in table["ask"]
    )


@functools.cache
def _file(language: str) -> dict[str, Any]:
    path = Path(__file__).parent / "phrases" / f"{language}.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


@functools.cache
def _by_intent(split: str) -> dict[tuple[str, str], tuple[Phrasing, ...]]:
    """The split's phrasings by (language, intent); an intent without any in this split is left out."""
    groups: dict[tuple[str, str], list[Phrasing]] = {}
    for phrasing in phrasings():
        if split_of(phrasing.key) == split:
            groups.setdefault((phrasing.language, phrasing.intent), []).append(phrasing)
    return {group: tuple(members) for group, members in groups.items()}


def _draw(rng: Generator, split: str, language: str | None = None) -> Phrasing:
    """Uniform over intents, then over the intent's phrasings."""
    groups = [group for group in _by_intent(split) if language in (None, group[0])]
    members = _by_intent(split)[groups[rng.integers(len(groups))]]
    return members[rng.integers(len(members))]


def spoken(phrasing: Phrasing, rng: Generator) -> str:
    """A phrasing as somebody types it: slots filled; opener, capitals and the mark at the end vary."""
    values = {
        name: words[rng.integers(len(words))] for name, words in _file(phrasing.language)["slots"].items()
    }
    for name in "xy":
        digits = int(rng.integers(_DIGITS[0], _DIGITS[1] + 1))
        values[name] = str(rng.integers(10 ** (digits - 1), 10**digits))
    text = phrasing.ask.format(**values)
    style = rng.integers(8)
    if style == 0:
        text = text.lower()
    elif style == 1:
        text = text[0].lower() + text[1:]
    elif style == 2 and phrasing.intent not in _STATEMENTS:
        openers = _file(phrasing.language)["openers"]
        text = openers[rng.integers(len(openers))] + text[0].lower() + text[1:]
    if text.endswith("?") or phrasing.intent == "too_large":
        return text if text.endswith("?") or rng.integers(2) else text + "?"
    marks = ("", "!", ".", "") if phrasing.intent in _STATEMENTS else ("?", "?", "?", "")
    return text + marks[rng.integers(len(marks))]


def turns(rng: Generator, split: str) -> list[tuple[str, str]]:
    """One conversation of one to three turns in one language: (what the user says, the answer)."""
    first = _draw(rng, split)
    count = 1 + int(rng.choice(MAX_TURNS, p=(0.7, 0.2, 0.1)))
    said = [first] + [_draw(rng, split, first.language) for _ in range(count - 1)]
    return [(spoken(p, rng), p.answers[rng.integers(len(p.answers))]) for p in said]


def transcript(chat: Chat, pairs: list[tuple[str, str]]) -> Transcript:
    """`turns` as a conversation; the answers are what the model has to write."""
    result = Transcript()
    for asked, answer in pairs:
        result = chat.add(result, Kind.USER, asked)
        result = chat.add(result, Kind.SAY, answer, sampled=True)
    return result


def works_by_hand(problem: Problem, digits: int) -> bool:
    """Whether a problem calls too large what somebody who adds and subtracts `digits` digits by hand can
    do."""
    if problem.data.get("intent") != "too_large" or "*" in problem.prompt:
        return False
    return all(len(number) <= digits for number in re.findall(r"\d+", problem.prompt))


class Dialogue(Task):
    """The family as a Task: one turn a problem, level 1 only; several turns come from `turns`."""

    family = "dialogue"
    levels = 1
    templates = False

    def problem(self, rng: Generator, level: int, split: str) -> Problem:
        """One question; its key is its phrasing."""
        phrasing = _draw(rng, split)
        data = {"language": phrasing.language, "intent": phrasing.intent, "answers": list(phrasing.answers)}
        return Problem(self.family, level, phrasing.key, spoken(phrasing, rng), phrasing.answers[0], data)

    def trace(self, problem: Problem, rng: Generator) -> list[Piece]:
        """The answer, without thinking."""
        answers = problem.data["answers"]
        return [Piece(Kind.SAY, answers[rng.integers(len(answers))])]

    def verify(self, problem: Problem, answer: str | None) -> Verdict:
        """Strict: one of the intent's answers, letter for letter. Lenient: apart from case and spaces."""
        if answer is None:
            return Verdict(False, False, "no answer")
        wanted = problem.data["answers"]
        if answer.strip() in wanted:
            return Verdict(True, True)
        lenient = _loose(answer) in {_loose(text) for text in wanted}
        return Verdict(False, lenient, f"{answer!r} is not {problem.answer!r}")


def _loose(text: str) -> str:
    return " ".join(text.casefold().split())
