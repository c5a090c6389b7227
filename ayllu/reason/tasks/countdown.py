"""Countdown: reach a target from given numbers, each used exactly once, with + - * and /.

The game of the TV show, as a reasoning test: Stream of Search (Gandhi et al. 2024) and TinyZero
(2025, numbers 1-99, targets 10-99, the same here). The trace is a bounded search, written so that a
small model can follow it: each line combines two numbers and then tries the third; the first hit
ends the search.

Two ideas keep it short. With n1 >= n2 >= n3 all sums and differences of three numbers are n1+n2+n3,
n1+n2-n3, n1-n2+n3 and |n1-n2-n3|, so two lines cover them. And a product above 198 can't come back
below 100 by subtracting a number below 100, so it isn't tried (a few solutions such as 60*50/40 are
lost to that bound; it is a bounded search).
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from numpy.random import Generator

from ayllu.reason.task import Piece, Problem, Verdict, split_of
from ayllu.reason.transcript import Kind

LOW, HIGH = 1, 99  # numbers
TARGETS = (10, 99)
_PRODUCT_BOUND = TARGETS[1] + HIGH

PROMPTS = (
    "Use {numbers} to make {target}.",
    "Make {target} from {numbers}.",
    "Bilde {target} aus {numbers}.",
    "{numbers} తో {target} చేయండి.",
)


@dataclass(frozen=True)
class Try:
    """One combination in the search: the inner pair, then the third number."""

    inner: str  # "63-17"
    value: int  # 46
    outer: str  # "46+4" as it is tried
    result: int  # 50

    def expression(self) -> str:
        """The whole, for example (63-17)+4."""
        left, sign, right = _split_operation(self.outer)
        if int(left) == self.value:
            return f"({self.inner}){sign}{right}"
        return f"{left}{sign}({self.inner})"


def _split_operation(text: str) -> tuple[str, str, str]:
    position = next(i for i, c in enumerate(text) if c in "+-*/" and i > 0)
    return text[:position], text[position], text[position + 1 :]


def _outer(value: int, third: int, *, signs: str) -> Iterator[tuple[str, int]]:
    """What the third number can do to a value, in the order in which the trace tries it."""
    high, low = max(value, third), min(value, third)
    if "+" in signs:
        yield f"{value}+{third}", value + third
    if "-" in signs and high > low:
        yield f"{high}-{low}", high - low
    if "*" in signs and low > 1 and value * third <= TARGETS[1]:
        yield f"{value}*{third}", value * third
    if "/" in signs and low > 1 and high % low == 0:
        yield f"{high}/{low}", high // low


def search(numbers: tuple[int, ...]) -> Iterator[list[Try]]:
    """The lines of the bounded search, in order; each a list of tries with the same inner pair."""
    a, b, c = sorted(numbers, reverse=True)
    plans: list[tuple[str, int, int, str]] = [(f"{a}+{b}", a + b, c, "+-")]
    if a > b:
        plans.append((f"{a}-{b}", a - b, c, "+-"))
    pairs = ((a, b, c), (a, c, b), (b, c, a))
    for x, y, z in pairs:
        if y > 1 and x * y <= _PRODUCT_BOUND:
            plans.append((f"{x}*{y}", x * y, z, "+-*/"))
        if y > 1 and x % y == 0:
            plans.append((f"{x}/{y}", x // y, z, "+-*/"))
    for x, y, z in pairs:
        plans.append((f"{x}-{y}", x - y, z, "*/"))
        plans.append((f"{x}+{y}", x + y, z, "*/"))
    for inner, value, third, signs in plans:
        tries = [Try(inner, value, outer, result) for outer, result in _outer(value, third, signs=signs)]
        if value > 0 and tries:
            yield tries


def reachable(numbers: tuple[int, ...]) -> set[int]:
    """The targets that some expression reaches (any one, not only those of the bounded search)."""
    values = [(n, 1) for n in numbers]  # fractions as (over, under), not reduced
    found: set[int] = set()
    _reach(values, found)
    return {n for n in found if TARGETS[0] <= n <= TARGETS[1]}


def _reach(values: list[tuple[int, int]], found: set[int]) -> None:
    for i, j in itertools.combinations(range(len(values)), 2):
        (p, q), (r, s) = values[i], values[j]
        results = [(p * s + r * q, q * s), (p * s - r * q, q * s), (r * q - p * s, q * s), (p * r, q * s)]
        if r:
            results.append((p * s, q * r))
        if p:
            results.append((r * q, s * p))
        rest = [v for k, v in enumerate(values) if k != i and k != j]
        if rest:
            for result in results:
                _reach([*rest, result], found)
        else:
            found.update(over // under for over, under in results if over % under == 0)


class Countdown:
    """Countdown with three numbers."""

    family = "countdown3"
    levels = 1

    def problem(self, rng: Generator, level: int, split: str) -> Problem:
        """Uniform numbers, then one of the targets that they reach. The split goes by the numbers
        alone, so that no set of test numbers is ever seen in training with another target."""
        while True:
            numbers = tuple(rng.integers(LOW, HIGH + 1, 3).tolist())
            key = "countdown " + " ".join(map(str, sorted(numbers)))
            if split_of(key) != split:
                continue
            targets = sorted(reachable(numbers))
            if not targets:
                continue
            target = targets[int(rng.integers(len(targets)))]
            prompt = PROMPTS[rng.integers(len(PROMPTS))].format(numbers=", ".join(map(str, numbers)), target=target)
            data = {"numbers": list(numbers), "target": target}
            return Problem(self.family, level, f"{key} {target}", prompt, str(target), data)

    def trace(self, problem: Problem, rng: Generator) -> list[Piece]:
        """The search as text; an honest "no" where the bounded search finds nothing."""
        numbers, target = tuple(problem.data["numbers"]), problem.data["target"]
        lines = []
        for tries in search(numbers):
            line = f"{tries[0].inner}={tries[0].value}"
            for attempt in tries:
                line += f" {attempt.outer}={attempt.result}"
                if attempt.result == target:
                    lines.append(line + "!")
                    return [Piece(Kind.THINK, "\n".join(lines)), Piece(Kind.SAY, attempt.expression())]
            lines.append(line)
        return [Piece(Kind.THINK, "\n".join(lines)), Piece(Kind.SAY, "no")]

    def verify(self, problem: Problem, answer: str | None) -> Verdict:
        """Strict: the answer is an expression of exactly the given numbers with the target's value.
        Lenient: the same after an optional `= target` at its end."""
        if answer is None:
            return Verdict(False, False, "no answer")
        strict, why = check(answer, problem.data["numbers"], problem.data["target"])
        if strict:
            return Verdict(True, True)
        lenient, _ = check(answer.split("=")[0], problem.data["numbers"], problem.data["target"])
        return Verdict(False, lenient, why)


_OPERATIONS = {
    ast.Add: lambda x, y: x + y,
    ast.Sub: lambda x, y: x - y,
    ast.Mult: lambda x, y: x * y,
    ast.Div: lambda x, y: x / y,
}


def check(expression: str, numbers: list[int], target: int) -> tuple[bool, str]:
    """Whether `expression` uses exactly `numbers` and equals `target`; else why not."""
    if len(expression) > 100:
        return False, "too long"
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
        used: list[int] = []
        value = _evaluate(tree, used)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return False, "not an expression"
    if sorted(used) != sorted(numbers):
        return False, f"uses {sorted(used)}, not {sorted(numbers)}"
    return (True, "") if value == target else (False, f"gives {value}, not {target}")


def _evaluate(node: ast.expr, used: list[int]) -> Fraction:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        used.append(node.value)
        return Fraction(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_evaluate(node.left, used), _evaluate(node.right, used))
    raise ValueError("only + - * / and whole numbers")
