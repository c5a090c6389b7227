"""Is an answer right? Strict: in the form that was asked for. Lenient: to be found in what was said.

The two are kept apart because a gain in form looks like a gain in reasoning (one published 1.5B run went
from 2 to 49 % strictly and from 38 to 55 % leniently). A judge takes what was wanted, what was said and
whether the model continues a text, and gives a Verdict; its `answer` is what votes are counted on.

Sources: `####` before the number is GSM8K's own form (Cobbe et al. 2021); words are compared as SQuAD does it
(Rajpurkar et al. 2016: lower case, without signs and English articles); "the answer is" as in BIG-Bench Hard
(Suzgun et al. 2022).
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation


@dataclass(frozen=True)
class Judged:
    """`value` is what a vote goes to (None: no answer was found); `f1` the overlap of words, if measured."""

    strict: bool
    lenient: bool
    value: str | None = None
    f1: float | None = None


NOTHING = Judged(False, False)
_NUMBER = re.compile(r"(?:(?<![\d)])-)?(?:\d{1,3}(?:[,.]\d{3})+(?!\d)(?:[.,]\d+)?|\d+(?:[.,]\d+)?|\.\d+)")
_MARK = re.compile(r"####\s*([^\n]*)")
_ANSWER_IS = re.compile(r"the answer is:?\s*", re.IGNORECASE)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_SIGNS = str.maketrans("", "", string.punctuation + "„“”‚‘’«»")
_ALONE = re.compile(r"\(?([a-z])\)?")
_LETTER = re.compile(r"\(([A-Z])\)")


def number(text: str, *, comma: bool = False) -> str | None:
    """A number in its plainest spelling, None when `text` is anything else.

    Signs of money, percent, an end point and thousands' commas don't count; digits of any script do. `comma`:
    thousands have points and the fraction a comma, as in German.
    """
    plain = "".join(
        str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text.strip().replace("−", "-")
    )
    plain = plain.rstrip(".").strip().strip("$€₹£%").strip()
    plain = plain.replace("-$", "-")
    if comma and re.fullmatch(r"-?\d{1,3}(\.\d{3})+(,\d+)?|-?\d+,\d+", plain):
        plain = plain.replace(".", "").replace(",", ".")
    elif re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", plain):
        plain = plain.replace(",", "")
    if not re.fullmatch(r"-?(\d+(\.\d*)?|\.\d+)", plain):
        return None
    try:
        value = Decimal(plain)
    except InvalidOperation:
        return None
    spelt = f"{value:f}"
    return (spelt.rstrip("0").rstrip(".") if "." in spelt else spelt) if value else "0"


def readings(text: str, *, comma: bool = False) -> tuple[str, ...]:
    """What a number may mean, the likeliest first; nothing when `text` is anything else. With `comma` signs
    are read as in German and as in English, in which German questions are shown solved: 2,125 may be
    either."""
    english = number(text)
    german = number(text, comma=True) if comma else None
    both = (english, german) if "," in text and "." not in text else (german, english)
    return tuple(dict.fromkeys(each for each in both if each is not None))


def last_readings(text: str, *, comma: bool = False) -> tuple[str, ...]:
    """The last number of a text, as `readings` has it."""
    found = _NUMBER.findall(text.replace("−", "-"))
    if not found:
        return ()
    last = found[-1]
    if not comma and "," in last and not re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", last):
        last = re.split(r"[ ,]", last)[-1]  # 3,5: two numbers side by side
    return readings(last, comma=comma)


def judge_number(answers: Sequence[str], said: str, continues: bool) -> Judged:
    """Strict: one `#### number`; for a model that converses the number alone will do, too. Lenient: the
    last number."""
    return _judge_number(answers, said, continues, comma=False)


def judge_number_de(answers: Sequence[str], said: str, continues: bool) -> Judged:
    """`judge_number` where 1.250,5 is a number, and 1,250 may be one thousand and more."""
    return _judge_number(answers, said, continues, comma=True)


def _judge_number(answers: Sequence[str], said: str, continues: bool, *, comma: bool) -> Judged:
    wanted = {number(answer) for answer in answers}
    marks = {readings(mark, comma=comma) for mark in _MARK.findall(said)}
    exact = marks.pop() if len(marks) == 1 else ()
    if not exact and not marks and not continues:
        exact = readings(said, comma=comma)
    last = exact or last_readings(said, comma=comma)
    return Judged(not wanted.isdisjoint(exact), not wanted.isdisjoint(last), next(iter(last), None))


def plain_words(text: str) -> str:
    """SQuAD's normal form."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_SIGNS)).split())


def judge_words(answers: Sequence[str], said: str, continues: bool) -> Judged:
    """Strict: the same words as one of the answers (of a continued text, its first line). Lenient: an answer
    stands in what was said, whole words."""
    first = said.strip().split("\n")[0] if continues else said
    found, wanted = plain_words(first), [plain_words(answer) for answer in answers]
    inside = any(w and f" {w} " in f" {plain_words(said)} " for w in wanted)
    f1 = max((_overlap(found, w) for w in wanted), default=0.0)
    return Judged(found in wanted, found in wanted or inside, found or None, f1)


def _overlap(found: str, wanted: str) -> float:
    """F1 of two bags of words."""
    a, b = found.split(), wanted.split()
    same = sum((Counter(a) & Counter(b)).values())
    if not a or not b:
        return float(a == b)
    return 2 * same / (len(a) + len(b))


def judge_closing(answers: Sequence[str], said: str, continues: bool) -> Judged:
    """Strict: what follows the last "the answer is" (for a model that converses the answer alone will do).
    Lenient: the text ends with the answer, or the last letter in brackets is it."""
    wanted = {_closing(answer) for answer in answers}
    _, *closing = _ANSWER_IS.split(said)
    exact = _closing(closing[-1].split("\n")[0]) if closing else None if continues else _closing(said)
    letters = _LETTER.findall(said)
    loose = _closing(f"({letters[-1]})") if letters else None
    end = _closing(said)
    lenient = exact in wanted or loose in wanted or any(_ends_with(end, w) for w in wanted)
    return Judged(exact in wanted, lenient, exact or loose)


def _closing(text: str) -> str:
    """In lower case without an end point; a letter alone has brackets, as the set's options do."""
    plain = " ".join(text.strip().removesuffix(".").split()).casefold()
    return f"({alone[1]})" if (alone := _ALONE.fullmatch(plain)) else plain


def _ends_with(text: str, wanted: str) -> bool:
    before = text.removesuffix(wanted)
    joined = "-−.," if wanted[:1].isdigit() else ""  # -5 and 2.5 don't end with 5
    whole = not before or not (before[-1].isalnum() or before[-1] in joined)
    return bool(wanted) and before != text and whole
