"""Numbers in other bases: by repeated division one way, by Horner's rule the other.

A line is one step: `45=2*22+1` gives the next digit (the last one first), `5*2+1=11` takes one in.
Digits above nine are the letters A to F. Between two bases other than ten the way goes through ten.
"""

from __future__ import annotations

from numpy.random import Generator

from ayllu.reason.task import Piece, Problem, Task, Verdict, owns, wording
from ayllu.reason.tasks.number_theory import division
from ayllu.reason.transcript import Kind

DIGITS = "0123456789ABCDEF"
LARGEST = (63, 255, 999)  # by level
BASES = ((2, 8), (2, 3, 5, 8, 16), (2, 3, 4, 5, 6, 7, 8, 9, 12, 16))
PROMPTS = (
    "Write {number} (base {source}) in base {target}.",
    "Convert {number} from base {source} to base {target}.",
    "{number} in base {source} is what in base {target}?",
    "Schreibe {number} (Basis {source}) zur Basis {target}.",
    "Rechne {number} von Basis {source} in Basis {target} um.",
    "ఆధారం {source} లోని {number} ను ఆధారం {target} లో రాయండి.",
    "~Which digits in base {target} are {number} in base {source}?",
    "~Wie lautet {number} (Basis {source}) in Basis {target}?",
    "~ఆధారం {source} సంఖ్య {number} ను ఆధారం {target} కు మార్చండి.",
)


def written(n: int, base: int) -> str:
    """n >= 0 in digits of the base."""
    text = ""
    while n >= base:
        n, text = n // base, DIGITS[n % base] + text
    return DIGITS[n] + text


def down_lines(n: int, base: int) -> list[str]:
    """Division until nothing is left; the remainders, read upwards, are the digits."""
    lines = []
    while True:
        lines.append(division(n, base) + (f" {DIGITS[n % base]}" if n % base > 9 else ""))
        n //= base
        if n == 0:
            return lines


def up_lines(text: str, base: int) -> list[str]:
    """Horner's rule from the first digit; a letter is read before it is used (`B=11`)."""
    value, lines = DIGITS.index(text[0]), []
    if value > 9:
        lines.append(f"{text[0]}={value}")
    for c in text[1:]:
        digit = DIGITS.index(c)
        read = f"{c}={digit} " if digit > 9 else ""
        lines.append(f"{read}{value}*{base}+{digit}={value * base + digit}")
        value = value * base + digit
    return lines


class Bases(Task):
    """Level 1: to 63, between ten and 2 or 8. Level 2: to 255, five bases. Level 3: to 999, also between
    two bases other than ten."""

    family = "bases"
    levels = 3
    templates = True

    def problem(self, rng: Generator, level: int, split: str) -> Problem:
        """A number and two bases; the split goes by the number and both bases."""
        bases = BASES[level - 1]
        while True:
            n = int(rng.integers(2, LARGEST[level - 1] + 1))
            other = bases[rng.integers(len(bases))]
            second = bases[rng.integers(len(bases))] if level == 3 and rng.random() < 0.3 else 10
            source, target = (other, second) if rng.integers(2) else (second, other)
            key = f"base {n} {source} {target}"
            if source != target and owns(split, key):
                break
        data = {"number": written(n, source), "source": source, "target": target, "value": n}
        prompt = wording(rng, PROMPTS, split).format(**data)
        return Problem(self.family, level, key, prompt, written(n, target), data)

    def trace(self, problem: Problem, rng: Generator) -> list[Piece]:
        """Up to ten, then down from it, as far as either is needed."""
        data, lines = problem.data, list[str]()
        if data["source"] != 10:
            lines += up_lines(data["number"], data["source"]) or [f"{data['number']}={data['value']}"]
        if data["target"] != 10:
            lines += down_lines(data["value"], data["target"])
        return [Piece(Kind.THINK, "\n".join(lines)), Piece(Kind.SAY, problem.answer)]

    def verify(self, problem: Problem, answer: str | None) -> Verdict:
        """Strict: the digits and nothing else. Lenient: in either case, or as the last word."""
        if answer is None:
            return Verdict(False, False, "no answer")
        if answer.strip() == problem.answer:
            return Verdict(True, True)
        words = answer.upper().rstrip(" .\n").split()
        return Verdict(
            False, bool(words) and words[-1] == problem.answer, f"{answer!r} is not {problem.answer}"
        )
