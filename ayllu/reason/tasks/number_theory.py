"""Whole numbers: divisors, multiples, primes, divisibility, remainders of powers.

The algorithms are the school's: Euclid for the greatest common divisor (Elements VII, 2), lcm by way
of gcd, trial division by primes up to the square root, repeated squaring for powers. A division with
remainder is written as what it says, `84=60*1+24`, so that each line can be checked by itself.
"""

from __future__ import annotations

import math
from typing import Any

from numpy.random import Generator

from ayllu.reason.task import Piece, Problem, Task, Verdict, owns, wording
from ayllu.reason.tasks.arithmetic import remainder_key, verify_number
from ayllu.reason.transcript import Kind

LARGEST = (60, 200, 999)  # of the numbers, by level
PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31)
PROMPTS: dict[str, tuple[str, ...]] = {
    "gcd": (
        "What is the greatest common divisor of {x} and {y}?",
        "gcd({x}, {y}) = ?",
        "Was ist der größte gemeinsame Teiler von {x} und {y}?",
        "ggT({x}, {y}) = ?",
        "{x}, {y} ల గరిష్ఠ సామాన్య భాజకం ఎంత?",
        "~Find the greatest common divisor: {x}, {y}",
        "~Bestimme den größten gemeinsamen Teiler: {x}, {y}",
        "~గరిష్ఠ సామాన్య భాజకం కనుగొనండి: {x}, {y}",
    ),
    "lcm": (
        "What is the least common multiple of {x} and {y}?",
        "lcm({x}, {y}) = ?",
        "Was ist das kleinste gemeinsame Vielfache von {x} und {y}?",
        "kgV({x}, {y}) = ?",
        "{x}, {y} ల కనిష్ఠ సామాన్య గుణిజం ఎంత?",
        "~Find the least common multiple: {x}, {y}",
        "~Bestimme das kleinste gemeinsame Vielfache: {x}, {y}",
        "~కనిష్ఠ సామాన్య గుణిజం కనుగొనండి: {x}, {y}",
    ),
    "prime": (
        "What is the smallest prime factor of {x}?",
        "Which is the smallest prime that divides {x}?",
        "Was ist der kleinste Primfaktor von {x}?",
        "{x} యొక్క అతి చిన్న ప్రధాన భాజకం ఏది?",
        "~Find the smallest prime factor: {x}",
        "~Welche ist die kleinste Primzahl, die {x} teilt?",
        "~{x} ను భాగించే అతి చిన్న ప్రధాన సంఖ్య ఏది?",
    ),
    "remainder": (
        "What is the remainder of {x} divided by {y}?",
        "{x} mod {y} = ?",
        "Welcher Rest bleibt bei {x} geteilt durch {y}?",
        "{x} ని {y} తో భాగిస్తే శేషం ఎంత?",
        "~{x} divided by {y} leaves what remainder?",
        "~Was bleibt übrig, wenn man {x} durch {y} teilt?",
        "~{x} ను {y} చేత భాగించినప్పుడు శేషం చెప్పండి.",
    ),
    "multiples": (
        "How many of the numbers from 1 to {x} are divisible by {y}?",
        "How many multiples of {y} are there from 1 to {x}?",
        "Wie viele der Zahlen von 1 bis {x} sind durch {y} teilbar?",
        "1 నుండి {x} వరకు {y} తో భాగించబడే సంఖ్యలు ఎన్ని?",
        "~From 1 to {x}, how many numbers does {y} divide?",
        "~Wie viele Vielfache von {y} gibt es von 1 bis {x}?",
        "~1 నుండి {x} వరకు {y} గుణిజాలు ఎన్ని ఉన్నాయి?",
    ),
    "power": (
        "What is {x}^{y} mod {m}?",
        "{x}^{y} mod {m} = ?",
        "What is the remainder of {x}^{y} divided by {m}?",
        "Welchen Rest hat {x}^{y} geteilt durch {m}?",
        "{x}^{y} ని {m} తో భాగిస్తే శేషం ఎంత?",
        "~Divide {x}^{y} by {m}: what remains?",
        "~Teile {x}^{y} durch {m}: Was bleibt?",
        "~{x}^{y} ను {m} చేత భాగించినప్పుడు మిగిలేది ఎంత?",
    ),
}


def division(x: int, y: int) -> str:
    """84, 60 -> `84=60*1+24`."""
    return f"{x}={y}*{x // y}+{x % y}"


def gcd_lines(x: int, y: int) -> list[str]:
    """Euclid, down to the remainder 0; the last divisor is the answer."""
    x, y = max(x, y), min(x, y)
    lines = []
    while y:
        lines.append(division(x, y))
        x, y = y, x % y
    return lines


def lcm_lines(x: int, y: int) -> list[str]:
    """The gcd, x over it, times y."""
    d = math.gcd(x, y)
    return [*gcd_lines(x, y), f"{x}/{d}={x // d}", f"{x // d}*{y}={x // d * y}"]


def prime_lines(x: int) -> list[str]:
    """Trial division by primes while their square is not above x; `11*11>97` ends a search in vain."""
    lines = list[str]()
    for p in PRIMES:
        if p * p > x:
            return [*lines, f"{p}*{p}>{x}"]
        lines.append(division(x, p))
        if x % p == 0:
            return lines
    raise AssertionError(f"{x} is beyond the table of primes")


def power_lines(x: int, n: int, m: int) -> list[str]:
    """Left to right over the bits of n: square, and where the bit is set times x; all modulo m.

    Each line is `exponent: product=m*quotient+remainder`.
    """
    value = x % m
    lines, exponent = [f"1: {division(x, m)}"], 1
    for bit in bin(n)[3:]:
        exponent, square = 2 * exponent, value * value
        lines.append(f"{exponent}: {value}*{value}={square} {division(square, m)}")
        value = square % m
        if bit == "1":
            exponent, product = exponent + 1, value * (x % m)
            lines.append(f"{exponent}: {value}*{x % m}={product} {division(product, m)}")
            value = product % m
    return lines


class NumberTheory(Task):
    """Levels 1 to 3: numbers to 60, 200 and 999; from level 2 on also remainders of powers."""

    family = "number_theory"
    levels = 3
    templates = True

    def problem(self, rng: Generator, level: int, split: str) -> Problem:
        """One kind of question, all equally often; gcd and lcm get a common factor half of the time."""
        kinds = [kind for kind in PROMPTS if level > 1 or kind != "power"]
        largest = LARGEST[level - 1]
        while True:
            kind = kinds[rng.integers(len(kinds))]
            data: dict[str, Any] = {"kind": kind, **_numbers(rng, kind, largest)}
            x, y = data["x"], data.get("y", 0)
            names = sorted((x, y)) if kind in ("gcd", "lcm") else [x, y]
            key = f"{kind} {names[0]} {names[1]} {data.get('m', 0)}"
            if kind == "remainder":
                key = remainder_key(x, y)
            if owns(split, key):
                break
        prompt = wording(rng, PROMPTS[kind], split).format(**data)
        return Problem(self.family, level, key, prompt, str(_solve(data)), data)

    def trace(self, problem: Problem, rng: Generator) -> list[Piece]:
        """The algorithm's lines, then the answer."""
        data = problem.data
        x, y = data["x"], data.get("y", 0)
        if data["kind"] == "gcd":
            lines = gcd_lines(x, y)
        elif data["kind"] == "lcm":
            lines = lcm_lines(x, y)
        elif data["kind"] == "prime":
            lines = prime_lines(x)
        elif data["kind"] in ("remainder", "multiples"):
            lines = [division(x, y)]
        else:
            lines = power_lines(x, y, data["m"])
        return [Piece(Kind.THINK, "\n".join(lines)), Piece(Kind.SAY, problem.answer)]

    def verify(self, problem: Problem, answer: str | None) -> Verdict:
        """The number and nothing else; leniently the last number."""
        return verify_number(problem.answer, answer)


def _numbers(rng: Generator, kind: str, largest: int) -> dict[str, int]:
    if kind in ("gcd", "lcm"):
        bound = largest if kind == "gcd" else min(largest, 99)
        factor = int(rng.integers(2, 13)) if rng.integers(2) else 1
        x, y = (factor * int(rng.integers(2, bound // factor + 1)) for _ in range(2))
        return {"x": x, "y": y}
    if kind == "prime":
        return {"x": int(rng.integers(2, min(largest, PRIMES[-1] ** 2) + 1))}
    if kind in ("remainder", "multiples"):
        return {"x": int(rng.integers(2, largest + 1)), "y": int(rng.integers(2, 13))}
    return {
        "x": int(rng.integers(2, 10)),
        "y": int(rng.integers(2, 16 if largest < 999 else 32)),
        "m": int(rng.integers(3, 20)),
    }


def _solve(data: dict[str, Any]) -> int:
    x, y = data["x"], data.get("y", 0)
    if data["kind"] == "gcd":
        return math.gcd(x, y)
    if data["kind"] == "lcm":
        return math.lcm(x, y)
    if data["kind"] == "prime":
        return next((p for p in range(2, x) if x % p == 0), x)
    if data["kind"] == "multiples":
        return x // y
    return x % y if data["kind"] == "remainder" else int(pow(x, y, data["m"]))
