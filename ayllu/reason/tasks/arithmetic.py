"""Sums, differences and products with visible digit-by-digit thinking.

The trace works from the last digit to the first, one operation a line, with the carry written where
it is used: the form that small models learn best (Lee et al. 2023, "Teaching arithmetic to small
transformers", section 5; Nye et al. 2021, scratchpads).
"""

from __future__ import annotations

import re

from numpy.random import Generator

from ayllu.reason.task import Piece, Problem, Task, Verdict, owns, wording
from ayllu.reason.transcript import Kind

PROMPTS = (
    "What is {x} {op} {y}?",
    "{x} {op} {y} = ?",
    "{x} {op} {y}",
    "Calculate {x} {op} {y}.",
    "Was ist {x} {op} {y}?",
    "Berechne {x} {op} {y}.",
    "{x} {op} {y} ఎంత?",
    "~How much is {x} {op} {y}?",
    "~Rechne {x} {op} {y} aus.",
    "~{x} {op} {y} విలువ చెప్పండి.",
)


def add_lines(x: int, y: int) -> list[str]:
    """417+85 -> 7+5=12, 1+8+1=10, 4+0+1=5."""
    width, carry, lines = max(len(str(x)), len(str(y))), 0, []
    for p, q in zip(_digits(x, width), _digits(y, width), strict=True):
        total = p + q + carry
        lines.append(f"{p}+{q}{'+1' if carry else ''}={total}")
        carry = total // 10
    return lines


def subtract_lines(x: int, y: int) -> list[str]:
    """For x >= y. 417-385 -> 7-5=2, 11-8=3, 4-3-1=0."""
    width, borrow, lines = len(str(x)), 0, []
    for p, q in zip(_digits(x, width), _digits(y, width), strict=True):
        top = p + 10 if p < q + borrow else p
        lines.append(f"{top}-{q}{'-1' if borrow else ''}={top - q - borrow}")
        borrow = int(top > p)
    return lines


def compare_line(x: int, y: int) -> str:
    """Digits from the first on until they differ. 519, 193 -> 5>1; 694, 657 -> 6=6 9>5."""
    width, found = max(len(str(x)), len(str(y))), []
    for p, q in zip(reversed(_digits(x, width)), reversed(_digits(y, width)), strict=True):
        found.append(f"{p}{'>' if p > q else '<' if p < q else '='}{q}")
        if p != q:
            break
    return " ".join(found)


def multiply_lines(x: int, y: int) -> list[str]:
    """47*36 -> the products with 6 and with 3, each digit by digit and then whole, then their sum."""
    lines, parts = [], []
    for place, q in enumerate(_digits(y, len(str(y)))):
        carry = 0
        for p in _digits(x, len(str(x))):
            total = p * q + carry
            lines.append(f"{p}*{q}={p * q}" + (f" {p * q}+{carry}={total}" if carry else ""))
            carry = total // 10
        parts.append(x * q * 10**place)
        lines.append(str(parts[-1]))
    if len(parts) > 1:
        lines += add_lines(*sorted(parts, reverse=True))
    return lines


def _digits(n: int, width: int) -> list[int]:
    """Digits from the last to the first, padded with zeros to `width`."""
    return [n // 10**i % 10 for i in range(width)]


def canonical_key(x: int, op: str, y: int) -> str:
    """One key for a problem and its mirror image: 3+5 and 5+3, 3*5 and 5*3, 8-3 and 3-8."""
    low, high = sorted((x, y))
    return f"{low} {op} {high}"


def remainder_key(x: int, y: int) -> str:
    """The key of what remains of x divided by y, whichever family asks."""
    return f"remainder {x} {y}"


def quotient_key(x: int, y: int) -> str:
    """The key of x / y, whichever family asks."""
    return f"({x} / {y})"


class Arithmetic(Task):
    """Level 1: + and - to 2 digits, products 1x1 to 2x1. Level 2: + and - to 3 digits, products to 2x2."""

    family = "arithmetic"
    levels = 2
    templates = True

    def problem(self, rng: Generator, level: int, split: str) -> Problem:
        """Operand lengths are uniform, so that short numbers are not rare."""
        while True:
            op = "+-*"[rng.integers(3)]
            longest = level + 1 if op != "*" else 2
            lengths = [int(rng.integers(1, longest + 1)) for _ in range(2)]
            if op == "*" and level == 1:
                lengths[int(rng.integers(2))] = 1
            x, y = (int(rng.integers(10 ** (n - 1) if n > 1 else 0, 10**n)) for n in lengths)
            key = canonical_key(x, op, y)
            if owns(split, key):
                break
        prompt = wording(rng, PROMPTS, split).format(x=x, op=op, y=y)
        value = x + y if op == "+" else x - y if op == "-" else x * y
        # The tool is on offer half of the time: small numbers are for the head either way.
        tools = ("calculator",) if rng.integers(2) else ()
        return Problem(self.family, level, key, prompt, str(value), {"x": x, "op": op, "y": y}, tools)

    def trace(self, problem: Problem, rng: Generator) -> list[Piece]:
        """The digits of the working, then the answer."""
        x, op, y = problem.data["x"], problem.data["op"], problem.data["y"]
        if op == "+":
            lines = add_lines(x, y)
        elif op == "*":
            lines = multiply_lines(x, y)
        elif x >= y:
            lines = [compare_line(x, y), *subtract_lines(x, y)]
        else:  # the sign first, then the other way round
            lines = [compare_line(x, y), f"-({y}-{x})", *subtract_lines(y, x)]
        return [Piece(Kind.THINK, "\n".join(lines)), Piece(Kind.SAY, problem.answer)]

    def verify(self, problem: Problem, answer: str | None) -> Verdict:
        """Strict: the answer is the number and nothing else. Lenient: it is the last number in it."""
        return verify_number(problem.answer, answer)


def verify_number(wanted: str, answer: str | None) -> Verdict:
    """Compare an answer with the number wanted (see `Arithmetic.verify`)."""
    if answer is None:
        return Verdict(False, False, "no answer")
    if answer.strip() == wanted:
        return Verdict(True, True)
    numbers = _NUMBER.findall(answer)
    return Verdict(False, bool(numbers) and numbers[-1] == wanted, f"{answer!r} is not {wanted}")


# A minus belongs to the number unless it stands behind another one (12-5).
_NUMBER = re.compile(r"(?:(?<![\d)])-)?\d+(?:\.\d+)?")
