"""Countdown: reach a target from given numbers, each used exactly once, with + - * and /.

The game of the TV show, as a reasoning test: Stream of Search (Gandhi et al. 2024) and TinyZero
(2025; numbers 1-99, targets 10-99, the same here). The expert whose traces are learnt searches
blindly: a line combines two numbers and then tries the third in every way; lines come in random
order, none twice; the first hit ends the search, and after one to five lines without one the expert
gives up, sometimes soon, sometimes late. So SFT teaches the form of a search and its arithmetic; where to
look first, and that going on pays, is left for RL to find out (the search of optimal experts leaves
nothing to learn, that of bad ones does: Gandhi et al., section 5).

A product above 198 can't come back below 100 by subtracting a number below 100, so it isn't tried (a
few solutions such as 60*50/40 are lost to that).
"""

from __future__ import annotations

import ast
import itertools
import re
from dataclasses import dataclass
from fractions import Fraction

from numpy.random import Generator

from ayllu.reason.task import Piece, Problem, Task, Verdict, owns, wording
from ayllu.reason.transcript import Kind

LOW, HIGH = 1, 99  # numbers
TARGETS = (10, 99)
PATIENCE = 5  # lines of the expert's search, at the most
PRODUCT_BOUND = TARGETS[1] + HIGH  # no larger product helps

PROMPTS = (
    "Use {numbers} to make {target}.",
    "Make {target} from {numbers}.",
    "Bilde {target} aus {numbers}.",
    "{numbers} తో {target} చేయండి.",
    "~How do you get {target} from {numbers}?",
    "~Wie kommt man mit {numbers} auf {target}?",
    "~{numbers} ఉపయోగించి {target} సాధించండి.",
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


def results(x: int, y: int, most: int) -> list[tuple[str, int]]:
    """What can be made of two numbers, sign and value: whole positive results, the larger operand first,
    products up to `most`, nothing that multiplies or divides by one."""
    high, low = max(x, y), min(x, y)
    found = [("+", high + low)]
    if high > low:
        found.append(("-", high - low))
    if low > 1 and high * low <= most:
        found.append(("*", high * low))
    if low > 1 and high % low == 0:
        found.append(("/", high // low))
    return found


def pairs(numbers: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Each pair of three numbers, the larger first, with the number that is left."""
    a, b, c = sorted(numbers, reverse=True)
    return list(dict.fromkeys(((a, b, c), (a, c, b), (b, c, a))))  # equal numbers give equal lines


def _outer(value: int, third: int) -> list[tuple[str, int]]:
    """What the third number can do to a value, in the order in which the trace tries it."""
    high, low = max(value, third), min(value, third)
    return [
        (f"{value}{sign}{third}" if sign in "+*" else f"{high}{sign}{low}", result)
        for sign, result in results(value, third, TARGETS[1])
    ]


def lines(numbers: tuple[int, ...]) -> list[list[Try]]:
    """All lines of a search: for each pair and sign, what the third number makes of its value."""
    return [
        [Try(f"{x}{sign}{y}", value, outer, result) for outer, result in _outer(value, z)]
        for x, y, z in pairs(numbers)
        for sign, value in results(x, y, PRODUCT_BOUND)
    ]


def reachable(numbers: tuple[int, ...]) -> set[int]:
    """The targets that some expression reaches (any one, not only those of the bounded search)."""
    values = [(n, 1) for n in numbers]  # fractions as (over, under), not reduced
    found: set[int] = set()
    _reach(values, found)
    return {n for n in found if TARGETS[0] <= n <= TARGETS[1]}


def sums(numbers: tuple[int, ...]) -> set[int]:
    """What addition and subtraction alone reach."""
    first, *rest = numbers
    values = {first, -first}
    for n in rest:
        values = {v + s for v in values for s in (n, -n)}
    return values


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


class Countdown(Task):
    """Countdown with three numbers. Level 1: sums and differences are enough; level 2: they are not;
    level 3: the game as it is dealt (four in five deals are level 1)."""

    family = "countdown3"
    gives_up = "no"
    levels = 3
    templates = True

    def problem(self, rng: Generator, level: int, split: str) -> Problem:
        """Uniform numbers, then one of the targets that they reach. The split goes by the numbers
        alone, so that no set of test numbers is ever seen in training with another target."""
        while True:
            numbers = tuple(rng.integers(LOW, HIGH + 1, 3).tolist())
            key = "countdown " + " ".join(map(str, sorted(numbers)))
            if not owns(split, key):
                continue
            targets = sorted(reachable(numbers))
            if level < 3:
                targets = [t for t in targets if (t in sums(numbers)) == (level == 1)]
            if not targets:
                continue
            target = targets[int(rng.integers(len(targets)))]
            prompt = wording(rng, PROMPTS, split).format(numbers=", ".join(map(str, numbers)), target=target)
            data = {"numbers": list(numbers), "target": target}
            tools = ("calculator",) if rng.integers(2) else ()
            return Problem(self.family, level, f"{key} {target}", prompt, str(target), data, tools)

    def trace(self, problem: Problem, rng: Generator) -> list[Piece]:
        """A blind search of one to five lines; an honest "no" when they hold no hit."""
        numbers, target = tuple(problem.data["numbers"]), problem.data["target"]
        choices, written = lines(numbers), []
        patience = int(rng.integers(1, PATIENCE + 1))
        for index in rng.permutation(len(choices))[:patience]:
            tries = choices[index]
            line = f"{tries[0].inner}={tries[0].value}"
            for attempt in tries:
                line += f" {attempt.outer}={attempt.result}"
                if attempt.result == target:
                    written.append(line + "!")
                    return [Piece(Kind.THINK, "\n".join(written)), Piece(Kind.SAY, attempt.expression())]
            written.append(line)
        return [Piece(Kind.THINK, "\n".join(written)), Piece(Kind.SAY, self.gives_up)]

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


_EXPRESSION = re.compile(r"[0-9+\-*/() ]+")  # what Python would read beyond that is no answer
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
    expression = expression.strip()
    if not _EXPRESSION.fullmatch(expression):
        return False, "not an expression"
    try:
        tree = ast.parse(expression, mode="eval").body
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
