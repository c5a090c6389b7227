"""Sums, differences and products of longer numbers, digit by digit: to six digits + and -, to 3x3 digits *.

The continuation of `arithmetic` (whose two levels stay as they are), in the same form and with the
same keys, so that a sum that is examined in one family is never practised in the other. A product
is worked out row by row as on paper; each row begins with its own operands, because what stands
near is learnt most easily, and rows are added up as they come, so that never more than two numbers
are added at a time. A difference writes down each pair of digits before it asks whether to borrow: in six
digits `arithmetic`'s form, which decides while it reads, went wrong there more than anywhere else.

What is left to do stands before each row of a product and each column of a difference: of 954*914 the rows
begin with `954*914 4:`, `954*91 10:`, `954*9 900:` (half of the misses of a model without these zeros
shifted the second row by two places), and a difference counts down `306267-66282`, `30626-6628`,
`3062-662`. So the next digit is always the last of what was written a moment ago. Models of 3 million
parameters that had to find it in the question lost their place where digits repeat: of eight misses four were
the digit of a row, three a difference. What was found so far stands behind each column of a sum or a
difference, for the same reason: gathered at the end, of two equal digits one was lost (lab log, 2026-11-29).

What is practised is harder than what is examined. Of 38 misses in 4,000, 21 lost or doubled a digit where
equal ones stand in a row (542111 became 54211), or took it from the other number, and seven held the smaller
number for the larger, three of them where both begin alike; uniform digits show both too rarely (lab log,
2026-11-30). So practice draws such numbers more often, and examinations stay uniform.
"""

from __future__ import annotations

from collections.abc import Sequence

from numpy.random import Generator

from ayllu.reason.task import Piece, Problem, Task, Verdict, owns, wording
from ayllu.reason.tasks.arithmetic import (
    PROMPTS,
    add_lines,
    canonical_key,
    compare_line,
    verify_number,
)
from ayllu.reason.transcript import Kind

LONGEST = (3, 4, 5, 6)  # digits of + and - by level
FACTORS = ((2, 2), (3, 1), (3, 2), (3, 3))  # most digits of the two factors by level
REPEATING = 0.3  # of the practised problems consist of two different digits at most
ALIKE = 0.2  # of the practised differences are of numbers that begin with the same digits


def row_lines(x: int, left: int, place: int = 0) -> list[str]:
    """417 times the last digit of what is left: `417*36 6:`, 7*6=42 and so on with the carry, `=2502`. The
    digit has the zeros of its place behind it, `417*3 30:`."""
    q = left % 10
    if q == 0:
        return [f"{x}*{left} 0=0"]
    carry, lines = 0, [f"{x}*{left} {q}{'0' * place}:"]
    for p in map(int, reversed(str(x))):
        total = p * q + carry
        lines.append(f"{p}*{q}={p * q}" + (f" {p * q}+{carry}={total}" if carry else ""))
        carry = total // 10
    return [*lines, f"={x * q}"]


def product_lines(x: int, y: int) -> list[str]:
    """All rows, the last digit of y first; from the second on each is added to the sum so far."""
    lines, total = list[str](), 0
    for place, q in enumerate(map(int, reversed(str(y)))):
        lines += row_lines(x, y // 10**place, place)
        part = x * q * 10**place
        if place and q:
            lines += [f"{part}+{total}:", *sum_lines(part, total), f"={part + total}"]
        total += part
    return lines


def sum_lines(x: int, y: int) -> list[str]:
    """417+85 -> 7+5=12, 1+8+1=10 02, 4+0+1=5 502: each column, and from the second on the sum so far."""
    lines = add_lines(x, y)
    digits = str(x + y).zfill(len(lines))
    for place in range(1, len(lines)):
        lines[place] += " " + (digits if place == len(lines) - 1 else digits[-place - 1 :])
    return lines


def difference_lines(x: int, y: int) -> list[str]:
    """For x >= y. 417-385 -> 417-385 7-5=2, 41-38 1<8 11-8=3 32, 4-3 4-3-1=0 032: what is left, what is taken
    away, with what was borrowed before, and from the second on the difference so far."""
    borrow, lines, found = 0, list[str](), ""
    for place, (p, q) in enumerate(zip(reversed(str(x)), reversed(str(y).zfill(len(str(x)))), strict=True)):
        top, taken = int(p), int(q) + borrow
        away = f"{q}-1" if borrow else q
        borrow = int(top < taken)
        digit = top + 10 * borrow - taken
        asked = f"{p}<{away.replace('-', '+')} 1" if borrow else ""
        found = f"{digit}{found}"
        so_far = f" {found}" if place else ""
        lines.append(f"{x // 10**place}-{y // 10**place} {asked}{p}-{away}={digit}{so_far}")
    return lines


class LongArithmetic(Task):
    """Levels 1 to 4: + and - to 3, 4, 5, 6 digits; products to 2x2, 3x1, 3x2, 3x3 digits."""

    family = "long_arithmetic"
    levels = 4
    templates = True

    def problem(self, rng: Generator, level: int, split: str) -> Problem:
        """Operand lengths are uniform, so that short numbers are not rare. In `train` more digits repeat."""
        while True:
            op = "+-*"[rng.integers(3)]
            longest = FACTORS[level - 1] if op == "*" else (LONGEST[level - 1],) * 2
            x, y = (_number(rng, int(rng.integers(1, n + 1))) for n in longest)
            if op == "*" and rng.integers(2):
                x, y = y, x
            if split == "train":
                x, y = confusable(rng, x, op, y)
            key = canonical_key(x, op, y)
            if owns(split, key):
                break
        prompt = wording(rng, PROMPTS, split).format(x=x, op=op, y=y)
        value = x + y if op == "+" else x - y if op == "-" else x * y
        tools = ("calculator",) if rng.integers(2) else ()
        return Problem(self.family, level, key, prompt, str(value), {"x": x, "op": op, "y": y}, tools)

    def trace(self, problem: Problem, rng: Generator) -> list[Piece]:
        """The digits of the working, then the answer. The longer factor is multiplied by the digits of
        the shorter one."""
        x, op, y = problem.data["x"], problem.data["op"], problem.data["y"]
        if op == "+":
            lines = sum_lines(x, y)
        elif op == "*":
            lines = product_lines(*((x, y) if len(str(x)) >= len(str(y)) else (y, x)))
        elif x >= y:
            lines = [compare_line(x, y), *difference_lines(x, y)]
        else:
            lines = [compare_line(x, y), f"-({y}-{x})", *difference_lines(y, x)]
        return [Piece(Kind.THINK, "\n".join(lines)), Piece(Kind.SAY, problem.answer)]

    def verify(self, problem: Problem, answer: str | None) -> Verdict:
        """The number and nothing else; leniently the last number."""
        return verify_number(problem.answer, answer)


def confusable(rng: Generator, x: int, op: str, y: int) -> tuple[int, int]:
    """Some of the time, numbers of the same lengths that are easily copied or compared wrongly: of two digits
    alone (855, 5558), or a difference whose numbers begin alike (46 - 49). Otherwise x and y as they are."""
    if op == "-" and x > 9 and rng.random() < ALIKE:
        shift = 10 ** int(rng.integers(1, len(str(x))))
        y = x - x % shift + int(rng.integers(shift))
        return (x, y) if rng.integers(2) else (y, x)
    if rng.random() < REPEATING:
        pair = rng.choice(10, 2, replace=False).tolist()
        return _of_digits(rng, pair, len(str(x))), _of_digits(rng, pair, len(str(y)))
    return x, y


def _of_digits(rng: Generator, allowed: Sequence[int], length: int) -> int:
    """A number of that many digits, all of them allowed; the first isn't 0 unless it is the only one."""
    digits = rng.choice(allowed, length)
    if length > 1 and digits[0] == 0:
        digits[0] = max(allowed)
    return int("".join(map(str, digits)))


def _number(rng: Generator, digits: int) -> int:
    return int(rng.integers(10 ** (digits - 1) if digits > 1 else 0, 10**digits))
