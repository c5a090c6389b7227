"""Countdown with four numbers: the search of `countdown`, one step deeper.

Numbers and targets are those of TinyZero (1-99, 10-99). A line of the search makes two steps, says which
number is left and tries what the last step can give: `63-17=46 46+4=50 9: +59 -41`. The second step either
takes the third number to the first value or joins the other two numbers (`63-17=46 9-4=5: +51 -41`, where
none is left). A last step is written as its sign and value, and only when that could be a target: written
whole, and whatever the value, lines took half as many tokens again (docs/lab-log.md, 2026-11-29).

A deal has some 54 such lines, too many to write, and for one deal in four only one in 46 hits, so that an
expert that searched blindly would give up often and a model would learn to give up. The expert here is lucky
nine times in ten: among his few lines stands one that hits, the others are honest misses. Lines come in the
order of `lines`, many left out: what follows a line is always further on, where lines in random order led a
model that takes the likeliest in a circle (docs/lab-log.md, 2026-11-28). Every step written down is true, and
what a model can learn is which beginnings of lines tend to lead to hits ("guided" Stream of Search, Moon et
al. 2024). RL then sharpens that.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from numpy.random import Generator

from ayllu.reason.task import Piece, Problem, Task, Verdict, owns, wording
from ayllu.reason.tasks import countdown
from ayllu.reason.tasks.countdown import HIGH, LOW, PROMPTS, TARGETS, check, sums
from ayllu.reason.transcript import Kind

PATIENCE = 11  # lines of the expert's search
LUCK = 0.9  # chance that one of them hits
LARGEST = 2 * TARGETS[1] + HIGH  # of a value on the way: what is larger rarely comes back


@dataclass(frozen=True)
class Value:
    """A number and how it was made."""

    number: int
    text: str  # "(63-17)"


@dataclass(frozen=True)
class Line:
    """Two steps, the number that is left (`""` when they used up all four), and the last steps that can give
    a target. Steps are written `63-17=46`, last ones `+59`."""

    steps: tuple[str, str]
    left: str
    tries: tuple[tuple[str, Value], ...]

    def beginning(self) -> str:
        """`63-17=46 46+4=50 9:`."""
        return " ".join([*self.steps, self.left]).rstrip() + ":"


def results(x: int, y: int) -> list[tuple[str, int]]:
    """What can be made of two numbers on the way."""
    return countdown.results(x, y, LARGEST)


def reached(numbers: tuple[int, ...]) -> set[int]:
    """The targets that some line of the search reaches."""
    found: set[int] = set()
    for i, j in itertools.combinations(range(4), 2):
        k, m = (numbers[n] for n in range(4) if n not in (i, j))
        pairs = [other for _, other in results(k, m)] if i == 0 else []
        for _, made in results(numbers[i], numbers[j]):
            for third, last in ((k, m), (m, k)):
                for _, value in results(made, third):
                    found.update(v for _, v in results(value, last))
            for other in pairs:
                found.update(v for _, v in results(made, other))
    return {n for n in found if TARGETS[0] <= n <= TARGETS[1]}


def steps(x: Value, y: Value) -> Iterator[tuple[str, str, Value]]:
    """`results` of two values, written out whole and short, with what is made: `46+4=50`, `+50`."""
    if x.number < y.number:
        x, y = y, x
    for sign, made in results(x.number, y.number):
        whole = f"{x.number}{sign}{y.number}={made}"
        yield whole, f"{sign}{made}", Value(made, f"({x.text}{sign}{y.text})")


def lines(numbers: tuple[int, ...]) -> list[Line]:
    """All lines of the search."""
    values = [Value(n, str(n)) for n in sorted(numbers, reverse=True)]
    found: dict[tuple[str, str], Line] = {}
    for i, j in itertools.combinations(range(4), 2):
        k, m = (n for n in range(4) if n not in (i, j))
        for first, _, made in steps(values[i], values[j]):
            for third, last in ((k, m), (m, k)):
                for second, _, next_made in steps(made, values[third]):
                    _keep(found, (first, second), values[last].text, next_made, values[last])
            if i == 0:  # each way to make two pairs once
                for second, _, other in steps(values[k], values[m]):
                    _keep(found, (first, second), "", made, other)
    return list(found.values())


def _keep(found: dict[tuple[str, str], Line], made: tuple[str, str], left: str, x: Value, y: Value) -> None:
    tries = tuple(
        (short, value) for _, short, value in steps(x, y) if TARGETS[0] <= value.number <= TARGETS[1]
    )
    if tries:
        found.setdefault(made, Line(made, left, tries))


class Countdown4(Task):
    """Level 1: sums and differences are enough; level 2: they are not; level 3: as it is dealt. Targets
    are drawn from those that the search can reach."""

    family = "countdown4"
    gives_up = "no"
    levels = 3
    templates = True

    def problem(self, rng: Generator, level: int, split: str) -> Problem:
        """Uniform numbers, then one of their targets. The split goes by the numbers alone."""
        while True:
            numbers = tuple(rng.integers(LOW, HIGH + 1, 4).tolist())
            key = "countdown " + " ".join(map(str, sorted(numbers)))
            if not owns(split, key):
                continue
            targets = sorted(reached(numbers))
            if level < 3:
                easy = sums(numbers)
                targets = [t for t in targets if (t in easy) == (level == 1)]
            if targets:
                break
        target = targets[int(rng.integers(len(targets)))]
        prompt = wording(rng, PROMPTS, split).format(numbers=", ".join(map(str, numbers)), target=target)
        data = {"numbers": list(numbers), "target": target}
        tools = ("calculator",) if rng.integers(2) else ()
        return Problem(self.family, level, f"{key} {target}", prompt, str(target), data, tools)

    def trace(self, problem: Problem, rng: Generator) -> list[Piece]:
        """At most `PATIENCE` lines; the first hit ends the search; an honest "no" when there was none."""
        target = problem.data["target"]
        choices = lines(tuple(problem.data["numbers"]))
        hits = [n for n, line in enumerate(choices) if any(v.number == target for _, v in line.tries)]
        misses = [n for n in range(len(choices)) if n not in set(hits)]
        order = [misses[i] for i in rng.permutation(len(misses))[: PATIENCE - 1]]
        if rng.random() < LUCK or not misses:
            order.append(hits[int(rng.integers(len(hits)))])
        written = list[str]()
        for line in (choices[n] for n in sorted(order)):
            text = line.beginning()
            for step, made in line.tries:
                text += f" {step}"
                if made.number == target:
                    expression = made.text[1:-1]  # without the outermost brackets
                    return [
                        Piece(Kind.THINK, "\n".join([*written, text + "!"])),
                        Piece(Kind.SAY, expression),
                    ]
            written.append(text)
        return [Piece(Kind.THINK, "\n".join(written)), Piece(Kind.SAY, self.gives_up)]

    def verify(self, problem: Problem, answer: str | None) -> Verdict:
        """Strict: an expression of exactly the given numbers with the target's value. Lenient: the same
        with an optional `= target` at its end."""
        if answer is None:
            return Verdict(False, False, "no answer")
        strict, why = check(answer, problem.data["numbers"], problem.data["target"])
        if strict:
            return Verdict(True, True)
        lenient, _ = check(answer.split("=")[0], problem.data["numbers"], problem.data["target"])
        return Verdict(False, lenient, why)
