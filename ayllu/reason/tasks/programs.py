"""Problems that need a program: long loops, big numbers, searches; a few lines of Python find the answer.

The model learns to see that neither its head nor the calculator will do, to write a short program that
prints one number, and to give that number back. What a program prints stands in the trace because our own
solver works the answer out by another way (a formula, a sieve); nothing is run when problems are
made. Answers are compared, not programs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from numpy.random import Generator

from ayllu.reason.task import Piece, Problem, Task, Verdict, owns, wording
from ayllu.reason.tasks.arithmetic import verify_number
from ayllu.reason.transcript import Kind, call_text


@dataclass(frozen=True)
class Kindred:
    """One kind of problem: bounds of its numbers x, y, z; how it is asked; its program; our solver."""

    name: str
    level: int
    bounds: tuple[tuple[int, int], ...]
    ask: tuple[str, ...]
    code: str
    solve: Callable[..., int]


def _multiples_sum(n: int, k: int) -> int:
    return k * (n // k) * (n // k + 1) // 2


def _primes(n: int) -> list[int]:
    """All primes up to n, by the sieve of Eratosthenes."""
    sieve = bytearray([1]) * (n + 1)
    sieve[:2] = b"\0\0"
    for p in range(2, math.isqrt(n) + 1):
        if sieve[p]:
            sieve[p * p :: p] = bytes(len(range(p * p, n + 1, p)))
    return [i for i, prime in enumerate(sieve) if prime]


def _digit_sum(n: int) -> int:
    return sum(map(int, str(n)))


def _fibonacci(n: int) -> int:
    """By doubling (Dijkstra, EWD 654)."""
    a, b = 0, 1
    for bit in bin(n)[2:]:
        a, b = a * (2 * b - a), a * a + b * b
        if bit == "1":
            a, b = b, a + b
    return a


def _collatz(n: int) -> int:
    steps = 0
    while n != 1:
        n, steps = (n // 2 if n % 2 == 0 else 3 * n + 1), steps + 1
    return steps


def _palindromes(n: int) -> int:
    """Counted by their first halves."""
    count, size = 0, 1
    while 10 ** (size - 1) <= n:
        half = (size + 1) // 2
        for h in range(10 ** (half - 1), 10**half):
            text = str(h)
            count += int(text + text[::-1][size % 2 :]) <= n
        size += 1
    return count


KINDS = (
    Kindred(
        "multiples",
        1,
        ((200, 5000), (3, 19)),
        (
            "What is the sum of all numbers from 1 to {x} that are divisible by {y}?",
            "Add up all multiples of {y} up to {x}.",
            "Was ist die Summe aller durch {y} teilbaren Zahlen von 1 bis {x}?",
            "1 నుండి {x} వరకు {y} తో భాగించబడే సంఖ్యల మొత్తం ఎంత?",
            "~Which number is the total of the multiples of {y} from 1 to {x}?",
            "~Addiere alle Vielfachen von {y} bis {x}.",
            "~{x} వరకు {y} గుణిజాలను కూడండి.",
        ),
        "print(sum(n for n in range(1, {x} + 1) if n % {y} == 0))",
        _multiples_sum,
    ),
    Kindred(
        "squares",
        1,
        ((20, 900),),
        (
            "What is the sum of the squares of the numbers from 1 to {x}?",
            "Add up all square numbers from 1^2 to {x}^2.",
            "Was ist die Summe der Quadrate der Zahlen von 1 bis {x}?",
            "1 నుండి {x} వరకు సంఖ్యల వర్గాల మొత్తం ఎంత?",
            "~Find 1^2 + 2^2 + ... + {x}^2.",
            "~Addiere die Quadratzahlen von 1^2 bis {x}^2.",
            "~1^2 నుండి {x}^2 వరకు వర్గ సంఖ్యలను కూడండి.",
        ),
        "print(sum(n * n for n in range(1, {x} + 1)))",
        lambda x: x * (x + 1) * (2 * x + 1) // 6,
    ),
    Kindred(
        "digits",
        1,
        ((2, 9), (20, 300)),
        (
            "What is the sum of the digits of {x}^{y}?",
            "Add up the digits of the number {x}^{y}.",
            "Was ist die Quersumme von {x}^{y}?",
            "{x}^{y} యొక్క అంకెల మొత్తం ఎంత?",
            "~{x}^{y}: what do its digits add up to?",
            "~Addiere die Ziffern von {x}^{y}.",
            "~{x}^{y} అంకెలను కూడండి.",
        ),
        "print(sum(int(d) for d in str({x} ** {y})))",
        lambda x, y: _digit_sum(x**y),
    ),
    Kindred(
        "either",
        2,
        ((200, 5000), (3, 9), (10, 19)),
        (
            "How many numbers from 1 to {x} are divisible by {y} or by {z}?",
            "Count the numbers from 1 to {x} that {y} or {z} divides.",
            "Wie viele Zahlen von 1 bis {x} sind durch {y} oder durch {z} teilbar?",
            "1 నుండి {x} వరకు {y} లేదా {z} తో భాగించబడే సంఖ్యలు ఎన్ని?",
            "~From 1 to {x}, how many numbers are multiples of {y} or of {z}?",
            "~Zähle die Zahlen von 1 bis {x}, die Vielfache von {y} oder {z} sind.",
            "~1 నుండి {x} వరకు {y} లేదా {z} గుణిజాలను లెక్కించండి.",
        ),
        "print(sum(1 for n in range(1, {x} + 1) if n % {y} == 0 or n % {z} == 0))",
        lambda x, y, z: x // y + x // z - x // math.lcm(y, z),
    ),
    Kindred(
        "primes",
        2,
        ((100, 5000),),
        (
            "How many primes are there up to {x}?",
            "Count the prime numbers from 1 to {x}.",
            "Wie viele Primzahlen gibt es bis {x}?",
            "{x} వరకు ప్రధాన సంఖ్యలు ఎన్ని?",
            "~Find the number of primes not above {x}.",
            "~Zähle die Primzahlen von 1 bis {x}.",
            "~1 నుండి {x} వరకు ప్రధాన సంఖ్యలను లెక్కించండి.",
        ),
        "def prime(n):\n    return n > 1 and all(n % d for d in range(2, int(n ** 0.5) + 1))\n"
        "print(sum(1 for n in range({x} + 1) if prime(n)))",
        lambda x: len(_primes(x)),
    ),
    Kindred(
        "fibonacci",
        2,
        ((30, 900), (7, 997)),
        (
            "What is the Fibonacci number F({x}) modulo {y}, with F(1) = F(2) = 1?",
            "F(1) = F(2) = 1, each next one is the sum of two: what is F({x}) mod {y}?",
            "Welchen Rest hat die Fibonacci-Zahl F({x}) geteilt durch {y}, wenn F(1) = F(2) = 1 ist?",
            "F(1) = F(2) = 1 అయితే ఫిబొనాచీ సంఖ్య F({x}) ని {y} తో భాగిస్తే శేషం ఎంత?",
            "~Take the Fibonacci numbers with F(1) = F(2) = 1. Divide F({x}) by {y}: what remains?",
            "~Mit F(1) = F(2) = 1: Was ist die Fibonacci-Zahl F({x}) modulo {y}?",
            "~F(1) = F(2) = 1 తో ఫిబొనాచీ సంఖ్య F({x}) mod {y} ఎంత?",
        ),
        "a, b = 0, 1\nfor i in range({x}):\n    a, b = b, a + b\nprint(a % {y})",
        lambda x, y: _fibonacci(x) % y,
    ),
    Kindred(
        "nth_prime",
        3,
        ((20, 600),),
        (
            "What is prime number {x} (2 is number 1)?",
            "2 is the first prime. What is the prime at place {x}?",
            "2 ist die erste Primzahl. Welche Primzahl steht an Stelle {x}?",
            "2 మొదటి ప్రధాన సంఖ్య అయితే {x}వ ప్రధాన సంఖ్య ఏది?",
            "~Count the primes from 2 on: which one is number {x}?",
            "~Welche Primzahl ist die Nummer {x}, wenn 2 die Nummer 1 ist?",
            "~2 నుండి లెక్కిస్తే {x}వ స్థానంలోని ప్రధాన సంఖ్య ఏది?",
        ),
        "found, n = 0, 1\nwhile found < {x}:\n    n += 1\n"
        "    if all(n % d for d in range(2, int(n ** 0.5) + 1)):\n        found += 1\nprint(n)",
        lambda x: _primes(5000)[x - 1],
    ),
    Kindred(
        "collatz",
        3,
        ((10, 3000),),
        (
            "Halve {x} if it is even, else triple it and add 1; go on so. After how many steps is it 1?",
            "How many Collatz steps lead from {x} to 1?",
            "Wie viele Collatz-Schritte führen von {x} zu 1?",
            "{x} నుండి 1 వరకు ఎన్ని కొల్లాట్జ్ అడుగులు పడతాయి?",
            "~Start the Collatz sequence at {x}: how many steps until it reaches 1?",
            "~Die Collatz-Folge beginnt bei {x}: Nach wie vielen Schritten ist sie bei 1?",
            "~{x} తో మొదలయ్యే కొల్లాట్జ్ శ్రేణి ఎన్ని అడుగుల్లో 1 కు చేరుతుంది?",
        ),
        "n, steps = {x}, 0\nwhile n != 1:\n    n = n // 2 if n % 2 == 0 else 3 * n + 1\n"
        "    steps += 1\nprint(steps)",
        _collatz,
    ),
    Kindred(
        "palindromes",
        3,
        ((100, 9000),),
        (
            "How many numbers from 1 to {x} read the same from both ends?",
            "Count the palindromes among the numbers 1 to {x}.",
            "Wie viele Zahlen von 1 bis {x} sind Palindrome?",
            "1 నుండి {x} వరకు రెండు వైపుల నుండి ఒకేలా చదవబడే సంఖ్యలు ఎన్ని?",
            "~How many palindromes are there from 1 to {x}?",
            "~Zähle die Palindrome von 1 bis {x}.",
            "~1 నుండి {x} వరకు పాలిండ్రోమ్ సంఖ్యలు ఎన్ని?",
        ),
        "print(sum(1 for n in range(1, {x} + 1) if str(n) == str(n)[::-1]))",
        _palindromes,
    ),
)


class Programs(Task):
    """Levels 1 to 3: one sum; a condition or a recurrence; a search."""

    family = "programs"
    levels = 3
    templates = True

    def problem(self, rng: Generator, level: int, split: str) -> Problem:
        """The split goes by the kind and its numbers, not by the words."""
        kinds = [kind for kind in KINDS if kind.level == level]
        while True:
            kind = kinds[rng.integers(len(kinds))]
            numbers = {
                slot: int(rng.integers(low, high + 1))
                for slot, (low, high) in zip("xyz", kind.bounds, strict=False)
            }
            key = f"program {kind.name} {' '.join(map(str, numbers.values()))}"
            if owns(split, key):
                break
        answer = str(kind.solve(*numbers.values()))
        prompt = wording(rng, kind.ask, split).format(**numbers)
        data = {"kind": kind.name, "code": kind.code.format(**numbers), **numbers}
        return Problem(self.family, level, key, prompt, answer, data, ("python",))

    def trace(self, problem: Problem, rng: Generator) -> list[Piece]:
        """The program, what it prints, the answer."""
        return [
            Piece(Kind.CALL, call_text("python", {"code": problem.data["code"]})),
            Piece(Kind.RESULT, problem.answer),
            Piece(Kind.SAY, problem.answer),
        ]

    def verify(self, problem: Problem, answer: str | None) -> Verdict:
        """The number and nothing else; leniently the last number."""
        return verify_number(problem.answer, answer)
