"""The same sums through a tool call: numbers to six digits, the calculator does the work.

The model learns when to call (it is asked to, or the numbers are too long for the head), to copy
the operands exactly into the call, and to copy the result into the answer. One in ten is a division, whose
result is rarely a whole number: what was never shown with a point is copied without it.
"""

from __future__ import annotations

from fractions import Fraction

from numpy.random import Generator

from ayllu.reason.task import Piece, Problem, Task, Verdict, owns, wording
from ayllu.reason.tasks.arithmetic import PROMPTS, canonical_key, quotient_key, verify_number
from ayllu.reason.transcript import Kind, call_text
from ayllu.tools.calculator import canonical

ASKED = (
    "Use the calculator: {x} {op} {y}",
    "What is {x} {op} {y}? Use the calculator.",
    "Nimm den Taschenrechner: {x} {op} {y}",
    "Was ist {x} {op} {y}? Nimm den Taschenrechner.",
    "కాలిక్యులేటర్ వాడండి: {x} {op} {y}",
    "~Let the calculator work out {x} {op} {y}.",
    "~Lass den Taschenrechner {x} {op} {y} rechnen.",
    "~{x} {op} {y}: కాలిక్యులేటర్‌తో లెక్కించండి.",
)
_LONGEST = 6
_SIGNS = "+-*+-*+-*/"


class Calculator(Task):
    """Levels 1 to 3: numbers to 2, 4 and 6 digits."""

    family = "calculator"
    levels = 3
    templates = True

    def problem(self, rng: Generator, level: int, split: str) -> Problem:
        """Operand lengths uniform from 1 to the level's longest."""
        longest = min(2 * level, _LONGEST)
        while True:
            op = _SIGNS[rng.integers(len(_SIGNS))]
            x, y = (
                int(rng.integers(10 ** (n - 1) if n > 1 else 0, 10**n))
                for n in rng.integers(1, longest + 1, 2).tolist()
            )
            if op == "/" and y < 2:
                continue
            key = quotient_key(x, y) if op == "/" else canonical_key(x, op, y)
            if owns(split, key):
                break
        # Beyond three digits the question need not say that the calculator is wanted.
        long = max(x, y) > 999
        prompts = PROMPTS if long and rng.integers(2) else ASKED
        prompt = wording(rng, prompts, split).format(x=x, op=op, y=y)
        value = Fraction(x, y) if op == "/" else {"+": x + y, "-": x - y, "*": x * y}[op]
        return Problem(
            self.family, level, key, prompt, canonical(value), {"x": x, "op": op, "y": y}, ("calculator",)
        )

    def trace(self, problem: Problem, rng: Generator) -> list[Piece]:
        """Call, result (written by the tool), answer."""
        expression = f"{problem.data['x']}{problem.data['op']}{problem.data['y']}"
        return [
            Piece(Kind.CALL, call_text("calculator", {"expression": expression})),
            Piece(Kind.RESULT, problem.answer),
            Piece(Kind.SAY, problem.answer),
        ]

    def verify(self, problem: Problem, answer: str | None) -> Verdict:
        """As in arithmetic: the number and nothing else."""
        return verify_number(problem.answer, answer)
