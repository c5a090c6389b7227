"""The calculator: exact rational arithmetic on a parsed expression.

The text comes from a model, so it is parsed by a grammar of its own (precedence climbing, Clarke
1986) and never handed to `eval`. Values are fractions: `0.1+0.2` is 0.3 and `1/3*3` is 1. Everything
is bounded before it is computed, so `9**9**9` costs nothing: length, nesting, and the size of every
intermediate value.

    expression := term (('+'|'-') term)*            left to right
    term       := unary (('*'|'/'|'%') unary)*      left to right; % is the remainder, sign of the divisor
    unary      := ('-'|'+') unary | power
    power      := atom (('^'|'**') unary)?          right to left, so -2^2 = -4 and 2^3^2 = 2^9
    atom       := number | '(' expression ')'

`canonical` is the one way in which this project writes a number: generated data, tool results and
verifiers share it, so that a model never meets `2.0` here and `2` there (a nanochat bug, d8eb1c4).
"""

from __future__ import annotations

import re
from fractions import Fraction

from ayllu.tools.tool import Tool, ToolError

MAX_LENGTH = 200  # characters of an expression
MAX_DEPTH = 32  # parentheses, signs and powers inside each other
MAX_VALUE = 10**60  # magnitude of every numerator and denominator
SIGNIFICANT = 12  # digits of a number that has no short exact decimal

TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d+)?|\.\d+)|(\*\*|[-+*/^%()]))", re.ASCII)
SAME = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-"})
PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "%": 2}


def canonical(value: Fraction | int) -> str:
    """The one decimal text of a number: `2`, `-0.5`, `0.333333333333`; no exponent, no trailing zeros.

    Whole numbers are exact, so are decimals of at most 12 places; the rest is rounded (half to even)
    to 12 significant digits, but never coarser than to a whole number.
    """
    value = Fraction(value)
    places = _exact_places(value.denominator)
    if places is None or places > SIGNIFICANT:
        places = SIGNIFICANT - _digits_before_point(abs(value))
    places = max(places, 0)
    scaled = round(value * 10**places)
    digits = str(abs(scaled)).rjust(places + 1, "0")
    whole, part = digits[: len(digits) - places], digits[len(digits) - places :].rstrip("0")
    return ("-" if scaled < 0 else "") + whole + ("." + part if part else "")


def _exact_places(denominator: int) -> int | None:
    """Decimal places that write a fraction with this denominator exactly; None when it never ends."""
    twos = (denominator & -denominator).bit_length() - 1
    rest, fives = denominator >> twos, 0
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    return max(twos, fives) if rest == 1 else None


def _digits_before_point(value: Fraction) -> int:
    """3 for 417.2, 1 for 4.2, 0 for 0.42, -1 for 0.042: the place of the first significant digit."""
    if value >= 1:
        return len(str(int(value)))
    return 1 - len(str(int(1 / value))) + (1 if _is_power_of_ten(1 / value) else 0)


def _is_power_of_ten(value: Fraction) -> bool:
    return value.denominator == 1 and value == 10 ** (len(str(value.numerator)) - 1)


def tokens(text: str) -> list[str]:
    """The numbers and signs of an expression, in order. ToolError for anything else."""
    if len(text) > MAX_LENGTH:
        raise ToolError(f"the expression is longer than {MAX_LENGTH} characters")
    text = text.translate(SAME).strip()
    found, at = list[str](), 0
    while at < len(text):
        match = TOKEN.match(text, at)
        if match is None:
            raise ToolError(f"can't read {text[at:].lstrip()[:12]!r}")
        found.append(match[1] or match[2])
        at = match.end()
    return found


def evaluate(text: str) -> Fraction:
    """The exact value of an expression. ToolError when it is malformed, too large or undefined."""
    parser = _Parser(tokens(text))
    value = parser.expression(1, 0)
    if parser.at < len(parser.tokens):
        raise ToolError(f"unexpected {parser.tokens[parser.at]!r}")
    return value


class _Parser:
    """Precedence climbing over a token list; values are computed on the way."""

    def __init__(self, found: list[str]) -> None:
        self.tokens, self.at = found, 0

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.at += 1
        return token

    def expression(self, lowest: int, depth: int) -> Fraction:
        """Operators of at least `lowest` precedence, left to right."""
        left = self.unary(depth)
        while PRECEDENCE.get(self.peek(), 0) >= lowest:
            sign = self.take()
            right = self.expression(PRECEDENCE[sign] + 1, depth)
            left = _apply(sign, left, right)
        return left

    def unary(self, depth: int) -> Fraction:
        if depth > MAX_DEPTH:  # every kind of nesting passes here
            raise ToolError(f"nested deeper than {MAX_DEPTH}")
        if self.peek() in ("-", "+"):
            return -self.unary(depth + 1) if self.take() == "-" else self.unary(depth + 1)
        return self.power(depth)

    def power(self, depth: int) -> Fraction:
        base = self.atom(depth)
        if self.peek() in ("^", "**"):
            self.take()
            return _power(base, self.unary(depth + 1))
        return base

    def atom(self, depth: int) -> Fraction:
        token = self.take()
        if token == "(":
            value = self.expression(1, depth + 1)
            if self.take() != ")":
                raise ToolError("a ) is missing")
            return value
        if not token:
            raise ToolError("the expression ends too early" if self.tokens else "the expression is empty")
        if not (token[0].isdigit() or token[0] == "."):
            raise ToolError(f"unexpected {token!r}")
        return _bounded(Fraction(token))


def _apply(sign: str, left: Fraction, right: Fraction) -> Fraction:
    if sign in "/%" and right == 0:
        raise ToolError("division by zero")
    if sign == "+":
        return _bounded(left + right)
    if sign == "-":
        return _bounded(left - right)
    if sign == "*":
        return _bounded(left * right)
    return _bounded(left / right if sign == "/" else left % right)


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1:
        raise ToolError("only whole exponents")
    if base == 0 and exponent < 0:
        raise ToolError("division by zero")
    # |n|^e >= 2^((bits of n - 1) * e): what is surely too large is refused before it is computed.
    bits = max(abs(base.numerator).bit_length(), base.denominator.bit_length()) - 1
    if bits * abs(exponent.numerator) > MAX_VALUE.bit_length():
        raise ToolError("the number is too large")
    return _bounded(Fraction(base**exponent.numerator))


def _bounded(value: Fraction) -> Fraction:
    if abs(value.numerator) > MAX_VALUE or value.denominator > MAX_VALUE:
        raise ToolError("the number is too large")
    return value


CALCULATOR = Tool(
    name="calculator",
    description="Exact arithmetic: + - * / ^ %, parentheses, whole numbers and decimals.",
    parameters={
        "type": "object",
        "properties": {
            "expression": {"type": "string", "maxLength": MAX_LENGTH, "description": "such as (417+385)*2"}
        },
        "required": ["expression"],
    },
    run=lambda arguments: canonical(evaluate(arguments["expression"])),
)
