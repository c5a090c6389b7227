"""Expressions with brackets, negative numbers, exact divisions and remainders, through the calculator.

The model learns to carry a longer expression over into the call exactly, from the spellings that
people use (spaces, x for times, a division sign, "remainder of ... divided by ..." in words), to give
the result back, and to call again where the calculator couldn't read the call. The tree is drawn at
random; a division is made exact by choosing its dividend as a multiple of its divisor, and remainders
have a positive divisor, so that every answer is a whole number and has one meaning.
"""

from __future__ import annotations

from dataclasses import dataclass

from numpy.random import Generator

from ayllu.reason.task import Piece, Problem, Task, Verdict, owns, wording
from ayllu.reason.tasks.arithmetic import canonical_key, quotient_key, remainder_key, verify_number
from ayllu.reason.transcript import Kind, call_text
from ayllu.tools.calculator import evaluate
from ayllu.tools.tool import ToolError

ASKED = (
    "What is {e}?",
    "{e} = ?",
    "{e}",
    "Calculate {e}.",
    "Work out {e}.",
    "Was ist {e}?",
    "Berechne {e}.",
    "Wie viel ist {e}?",
    "{e} ఎంత?",
    "{e} విలువ కనుగొనండి.",
    "~Evaluate {e}.",
    "~Was ergibt {e}?",
    "~{e} ను లెక్కించండి.",
)
REMAINDERS = (
    "What is the remainder of {x} divided by {y}?",
    "{x} divided by {y}: what remains?",
    "Welcher Rest bleibt bei {x} geteilt durch {y}?",
    "{x} geteilt durch {y}: Was ist der Rest?",
    "{x} ని {y} తో భాగిస్తే శేషం ఎంత?",
    "~What is left over when {x} is divided by {y}?",
    "~{x} durch {y}: Wie groß ist der Rest?",
    "~{x} ను {y} చేత భాగించినప్పుడు మిగిలేది ఎంత?",
)
SIGNS: tuple[dict[str, str], ...] = ({}, {"*": "×"}, {"*": "×", "/": "÷"}, {"*": "·", "/": "÷", "-": "−"})
LEAST, MOST = (2, 999), 9  # a leaf's range, dividends aside; leaves of a tree
LARGEST = 10**9  # magnitude of the value of every operation in a tree
SLIPS = 0.08  # of worked solutions, where one can be found, begin with a call that went wrong


@dataclass(frozen=True)
class Node:
    """A number (no children) or an operation with two."""

    value: int
    op: str = ""
    left: Node | None = None
    right: Node | None = None

    def depth(self) -> int:
        """0 for a number."""
        return 1 + max(self.left.depth(), self.right.depth()) if self.left and self.right else 0

    def leaves(self) -> int:
        """Numbers in the tree."""
        return self.left.leaves() + self.right.leaves() if self.left and self.right else 1

    def text(self, space: str = "") -> str:
        """With the fewest brackets that keep its value (* / % bind alike, from left to right)."""
        if self.left is None or self.right is None:
            return str(self.value)
        strong = self.op in "*/%"
        left, right = self.left.text(space), self.right.text(space)
        if self.left.value < 0 and not self.left.op:
            left = f"({left})"
        if strong and self.left.op and self.left.op in "+-":
            left = f"({left})"
        if (not self.right.op and self.right.value < 0) or (
            self.right.op and (strong or (self.op == "-" and self.right.op in "+-"))
        ):
            right = f"({right})"
        return f"{left}{space}{self.op}{space}{right}"

    def key(self) -> str:
        """The same for a sum or a product and its mirror image, and for what is written alike: 9+(5-7) is
        9+5-7. A single operation on positive numbers has arithmetic's key, so that all families agree about
        who owns it."""
        if self.left is None or self.right is None:
            return str(self.value)
        inner = self.right
        if self.op == "+" and inner.op in ("+", "-") and inner.left and inner.right:
            first = Node(self.left.value + inner.left.value, "+", self.left, inner.left)
            return Node(self.value, inner.op, first, inner.right).key()
        if self.depth() == 1 and self.op in "+-*" and min(self.left.value, self.right.value) >= 0:
            return canonical_key(self.left.value, self.op, self.right.value)
        if self.depth() == 1 and self.op in "/%":
            return (quotient_key if self.op == "/" else remainder_key)(self.left.value, self.right.value)
        names = [self.left.key(), self.right.key()]
        return "(" + f" {self.op} ".join(sorted(names) if self.op in "+*" else names) + ")"


def grow(rng: Generator, depth: int) -> Node:
    """A random tree of exactly this depth, all divisions exact, all results within LARGEST."""
    if depth == 0:
        digits = int(rng.integers(1, 4))
        value = int(rng.integers(max(LEAST[0], 10 ** (digits - 1)), 10**digits))
        return Node(-value if rng.random() < 0.15 else value)
    while True:
        op = "+-*+-*/%"[rng.integers(8)]
        deep, other = grow(rng, depth - 1), grow(rng, int(rng.integers(0, depth)))
        left, right = (deep, other) if rng.integers(2) else (other, deep)
        if op == "/" and right.value not in (0, 1, -1) and not left.op:
            left = Node(right.value * int(rng.integers(2, 100)))  # makes the division exact
        node = _joined(op, left, right)
        if node and node.leaves() <= MOST and abs(node.value) <= LARGEST and node.depth() == depth:
            return node


def _joined(op: str, left: Node, right: Node) -> Node | None:
    x, y = left.value, right.value
    if op == "/":
        return Node(x // y, op, left, right) if y not in (0, 1, -1) and x % y == 0 else None
    if op == "%":
        return Node(x % y, op, left, right) if y > 1 and x > 0 else None
    return Node({"+": x + y, "-": x - y, "*": x * y}[op], op, left, right)


def slip(rng: Generator, expression: str) -> tuple[str, str] | None:
    """An expression that was carried over wrongly (a character too few or too many, an end written twice),
    and why the calculator refuses it; None when it took what was tried."""
    for _ in range(8):
        at = int(rng.integers(len(expression)))
        head, sign, tail = expression[:at], expression[at], expression[at + 1 :]
        wrong = (head + tail, head + 2 * sign + tail, expression + sign + tail)[rng.integers(3)]
        try:
            evaluate(wrong)
        except ToolError as error:
            return wrong, str(error)
    return None


class Expressions(Task):
    """Levels 1 to 4: trees of depth 1 to 4."""

    family = "expressions"
    levels = 4
    templates = True

    def problem(self, rng: Generator, level: int, split: str) -> Problem:
        """One expression; at level 1 remainders are also asked for in words."""
        while True:
            tree = grow(rng, level)
            if owns(split, tree.key()) and len(tree.text()) <= 60:
                break
        if tree.op == "%" and level == 1 and rng.integers(2):
            assert tree.left and tree.right
            prompt = wording(rng, REMAINDERS, split).format(x=tree.left.value, y=tree.right.value)
        else:
            written = tree.text(" " if rng.integers(2) else "")
            for sign, shown in SIGNS[rng.integers(len(SIGNS))].items():
                written = written.replace(sign, shown)
            prompt = wording(rng, ASKED, split).format(e=written)
        data = {"expression": tree.text()}
        return Problem(self.family, level, tree.key(), prompt, str(tree.value), data, ("calculator",))

    def trace(self, problem: Problem, rng: Generator) -> list[Piece]:
        """Call, result (written by the tool), answer; some after a call that the calculator refused."""
        wrong = slip(rng, problem.data["expression"]) if rng.random() < SLIPS else None
        before = []
        if wrong:
            before = [
                Piece(Kind.CALL, call_text("calculator", {"expression": wrong[0]}), given=True),
                Piece(Kind.RESULT, f"error: {wrong[1]}"),
            ]
        return [
            *before,
            Piece(Kind.CALL, call_text("calculator", {"expression": problem.data["expression"]})),
            Piece(Kind.RESULT, problem.answer),
            Piece(Kind.SAY, problem.answer),
        ]

    def verify(self, problem: Problem, answer: str | None) -> Verdict:
        """The number and nothing else; leniently the last number."""
        return verify_number(problem.answer, answer)
