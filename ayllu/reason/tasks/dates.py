"""The calendar: which weekday, how many days between, which date later; in English, German and Telugu.

The working goes month by month, and a weekday is found as on paper: the last two digits of the year, a
quarter of them, a number for the month and the day, added up and divided by seven (the method of the
"month numbers"; 0 is Sunday, for the years 2000 to 2099). January and February of a leap year count one less.
"""

from __future__ import annotations

import datetime
import functools
import tomllib
from pathlib import Path
from typing import Any

from numpy.random import Generator

from ayllu.reason.task import Piece, Problem, Task, Verdict, owns, wording
from ayllu.reason.tasks.arithmetic import verify_number
from ayllu.reason.tasks.number_theory import division
from ayllu.reason.transcript import Kind

KINDS = (("after", "between", "add"), ("after", "between", "add", "weekday"), ("between", "add", "weekday"))
SPANS = (31, 92, 366)  # most days between two dates, by level
LANGUAGES = ("en", "de", "te")
FIRST, LAST = 2000, 2099
MONTH_NUMBERS = (6, 2, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4)


@functools.cache
def phrases(language: str) -> dict[str, Any]:
    """The language's names and questions."""
    text = (Path(__file__).parent / "phrases" / "dates.toml").read_text(encoding="utf-8")
    return dict(tomllib.loads(text)[language])


def written(date: datetime.date, language: str) -> str:
    """`14 March 2025`, `14. März 2025`, `14 మార్చి 2025`."""
    names = phrases(language)
    return str(names["date"].format(day=date.day, month=names["months"][date.month - 1], year=date.year))


def month_length(year: int, month: int) -> int:
    """28 to 31."""
    return 31 - (month in (4, 6, 9, 11)) if month != 2 else 28 + (year % 4 == 0)  # right from 1901 to 2099


def between_lines(start: datetime.date, end: datetime.date, names: list[str]) -> list[str]:
    """The rest of the first month, each whole month, the days of the last, each added to what is there."""
    if (start.year, start.month) == (end.year, end.month):
        return [f"{end.day}-{start.day}={end.day - start.day}"]
    year, month = start.year, start.month
    length = month_length(year, month)
    total = length - start.day
    lines = [f"{names[month - 1]} {length}: {length}-{start.day}={total}"]
    while True:
        year, month = (year, month + 1) if month < 12 else (year + 1, 1)
        last = (year, month) == (end.year, end.month)
        days = end.day if last else month_length(year, month)
        lines.append(f"{names[month - 1]} {days}: {total}+{days}={total + days}")
        total += days
        if last:
            return lines


def add_lines(start: datetime.date, n: int, names: list[str]) -> list[str]:
    """Day plus days; as long as that is beyond the month's end, the month's length is taken off."""
    year, month, day = start.year, start.month, start.day + n
    lines = [f"{start.day}+{n}={day}"]
    while day > (length := month_length(year, month)):
        lines.append(f"{names[month - 1]} {length}: {day}-{length}={day - length}")
        day -= length
        year, month = (year, month + 1) if month < 12 else (year + 1, 1)
    return [*lines, f"{names[month - 1]} {day} {year}"]


def weekday_lines(date: datetime.date, names: list[str]) -> list[str]:
    """Year, its quarter, month number, day; the remainder by seven is the day after Sunday."""
    y = date.year % 100
    number = MONTH_NUMBERS[date.month - 1]
    if date.month < 3 and date.year % 4 == 0:
        number -= 1
    a, b = y + y // 4, y + y // 4 + number
    total = b + date.day
    lines = [division(y, 4), f"{y}+{y // 4}={a}", f"{a}+{number}={b}", f"{b}+{date.day}={total}"]
    return [*lines, division(total, 7), f"{total % 7} {names[(total % 7 - 1) % 7]}"]


class Dates(Task):
    """Levels 1 to 3: spans to 31, 92 and 366 days; from level 2 on also the weekday of any date."""

    family = "dates"
    levels = 3
    templates = True

    def problem(self, rng: Generator, level: int, split: str) -> Problem:
        """A kind of question, a date of this century, a language. The split goes by the numbers, not by the
        language: what is examined in one is not practised in another."""
        kinds = KINDS[level - 1]
        while True:
            kind = kinds[rng.integers(len(kinds))]
            start = datetime.date(FIRST, 1, 1) + datetime.timedelta(int(rng.integers(0, 36500 - 400)))
            n, today = int(rng.integers(2, SPANS[level - 1] + 1)), int(rng.integers(7))
            key = f"{kind} {today} {n}" if kind == "after" else f"date {kind} {start.isoformat()} {n}"
            if kind == "weekday":
                key = f"date weekday {start.isoformat()}"
            if owns(split, key):
                break
        language = LANGUAGES[rng.integers(3)]
        data = {"kind": kind, "start": start.isoformat(), "n": n, "today": today, "language": language}
        words, end = phrases(language), start + datetime.timedelta(n)
        prompt = wording(rng, words[kind], split).format(
            weekday=words["days"][today], n=n, d=written(start, language), e=written(end, language)
        )
        return Problem(self.family, level, key, prompt, solve(data), data)

    def trace(self, problem: Problem, rng: Generator) -> list[Piece]:
        """The steps of the working, in the question's language."""
        data = problem.data
        words, start = phrases(data["language"]), datetime.date.fromisoformat(data["start"])
        if data["kind"] == "after":
            rest = data["n"] % 7
            walk = [words["days"][(data["today"] + i) % 7] for i in range(rest + 1)]
            lines = [division(data["n"], 7), " ".join(f"{i} {name}" for i, name in enumerate(walk))]
        elif data["kind"] == "between":
            lines = between_lines(start, start + datetime.timedelta(data["n"]), words["months"])
        elif data["kind"] == "add":
            lines = add_lines(start, data["n"], words["months"])
        else:
            lines = weekday_lines(start, words["days"])
        return [Piece(Kind.THINK, "\n".join(lines)), Piece(Kind.SAY, problem.answer)]

    def verify(self, problem: Problem, answer: str | None) -> Verdict:
        """Strict: the number, the day or the date as the language writes it. Lenient: apart from case and
        stops, and in any of the three languages."""
        if problem.data["kind"] == "between":
            return verify_number(problem.answer, answer)
        if answer is None:
            return Verdict(False, False, "no answer")
        if answer.strip() == problem.answer:
            return Verdict(True, True)
        every = {_loose(solve(problem.data | {"language": language})) for language in LANGUAGES}
        return Verdict(False, _loose(answer) in every, f"{answer!r} is not {problem.answer!r}")


def solve(data: dict[str, Any]) -> str:
    """The answer, by Python's calendar."""
    words, start = phrases(data["language"]), datetime.date.fromisoformat(data["start"])
    if data["kind"] == "after":
        return str(words["days"][(data["today"] + data["n"]) % 7])
    if data["kind"] == "between":
        return str(data["n"])
    if data["kind"] == "add":
        return written(start + datetime.timedelta(data["n"]), data["language"])
    return str(words["days"][start.weekday()])


def _loose(text: str) -> str:
    return " ".join(text.casefold().replace(".", " ").replace(",", " ").split())
