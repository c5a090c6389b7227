"""Small zebra puzzles: who lives where, from a few clues (after the puzzle in Life International, 1962).

Three or four houses in a row, three attributes a house, each value once. Clues are drawn from what is
true until only one arrangement is left, those that are not needed are dropped, and where the steps would
be too large a few are added again. A clue is the set of arrangements (of 216 or 13,824) in which it is
true, kept as the bits of a number, so "exactly one solution" is a count of bits. The expert derives one
place after the other, naming the clues that force it (`3: red 2`; one clue if one is enough, else two), so
that each line follows from the lines above it and those clues.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.random import Generator

from ayllu.reason.task import Piece, Problem, Task, Verdict, owns, wording
from ayllu.reason.transcript import Kind

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "person": ("Ada", "Ben", "Carl", "Dora", "Emil", "Gita", "Hari", "Lena"),
    "colour": ("red", "blue", "green", "white", "yellow", "black", "brown", "grey"),
    "pet": ("cat", "dog", "fish", "bird", "horse", "snake", "rabbit", "turtle"),
    "drink": ("tea", "milk", "water", "coffee", "juice", "cocoa", "lemonade", "soda"),
    "fruit": ("apple", "pear", "plum", "cherry", "mango", "melon", "grape", "lemon"),
    "sport": ("tennis", "chess", "golf", "rugby", "judo", "polo", "rowing", "skiing"),
}
HOUSES = (3, 4)  # by level
Step = tuple[tuple[int, ...], int, int]  # the clues that force it, a value, its house
Clue = tuple[str, int, int]  # kind, and two values (attribute * houses + number) or a value and a place
WORDS: dict[str, str] = {
    "at": "{a} is in house {n}.",
    "not_at": "{a} is not in house {n}.",
    "same": "{a} and {b} are in the same house.",
    "apart": "{a} and {b} are in different houses.",
    "left": "{a} is directly left of {b}.",
    "before": "{a} is somewhere left of {b}.",
    "next": "{a} is next to {b}.",
}
QUESTIONS = (
    "{n} houses stand in a row, 1 to {n}. Each has one of each: {groups}. {clues} Which {wanted} is in "
    "house 1 to {n}?",
    "~In a street of {n} houses, numbered from 1, no two have anything in common of this: {groups}. {clues} "
    "Go from house to house and name the {wanted}.",
)
_RELATIONS: dict[str, Callable[[int, int], bool]] = {  # of the places of two values, or a place and a house
    "at": lambda x, y: x == y,
    "not_at": lambda x, y: x != y,
    "same": lambda x, y: x == y,
    "apart": lambda x, y: x != y,
    "left": lambda x, y: x + 1 == y,
    "before": lambda x, y: x < y,
    "next": lambda x, y: abs(x - y) == 1,
}
_CHANCES = (1, 2, 4, 2, 3, 3, 3)
_HELP = 4  # clues that may be added to a puzzle that can't be derived yet


@functools.cache
def arrangements(houses: int) -> tuple[tuple[int, ...], ...]:
    """All of them: for each value (3 attributes * houses) its house, from 0."""
    one = list(itertools.permutations(range(houses)))
    return tuple(x + y + z for x, y, z in itertools.product(one, repeat=3))


@functools.cache
def placed(houses: int) -> tuple[tuple[int, ...], ...]:
    """placed[value][house]: the set of arrangements in which the value is there, as the bits of a number."""
    table = np.array(arrangements(houses), np.int8)
    return tuple(
        tuple(int.from_bytes(np.packbits(table[:, v] == h).tobytes(), "big") for h in range(houses))
        for v in range(3 * houses)
    )


@functools.cache
def every(houses: int) -> int:
    """The set of all arrangements."""
    return functools.reduce(int.__or__, placed(houses)[0])


@functools.cache
def holds(clue: Clue, houses: int) -> int:
    """The set of arrangements in which the clue is true."""
    at, (kind, a, b) = placed(houses), clue
    if kind == "at":
        return at[a][b]
    if kind == "not_at":
        return every(houses) & ~at[a][b]
    fits = [(x, y) for x in range(houses) for y in range(houses) if _RELATIONS[kind](x, y)]
    return functools.reduce(int.__or__, (at[a][x] & at[b][y] for x, y in fits))


def derive(clues: list[Clue], houses: int) -> list[Step] | None:
    """The steps that fill the table, or None when one or two clues at a time are not enough. A place
    that follows from the others of its attribute needs no clue."""
    truths = [holds(clue, houses) for clue in clues]
    reasons = [(), *((i,) for i in range(len(clues))), *itertools.combinations(range(len(clues)), 2)]
    left, unknown, steps = every(houses), list(range(3 * houses)), list[Step]()
    while unknown:
        step = next(filter(None, (_forced(left, truths, why, unknown, houses) for why in reasons)), None)
        if step is None:
            return None
        _, value, house = step
        unknown.remove(value)
        left &= placed(houses)[value][house]
        steps.append(step)
    return steps


def _forced(
    left: int, truths: list[int], why: tuple[int, ...], unknown: list[int], houses: int
) -> Step | None:
    """The first unknown value whose house is the same in all arrangements that the clues leave."""
    for i in why:
        left &= truths[i]
    for value in unknown:
        for house, there in enumerate(placed(houses)[value]):
            if left & there:
                if left & there == left:
                    return why, value, house
                break  # some are here, some elsewhere
    return None


class Zebra(Task):
    """Level 1: three houses, level 2: four; three attributes each."""

    family = "zebra"
    levels = 2
    templates = True

    def problem(self, rng: Generator, level: int, split: str) -> Problem:
        """The split goes by the clues as a set, with the names of the values."""
        houses = HOUSES[level - 1]
        while True:
            chosen = [list(ATTRIBUTES)[i] for i in rng.choice(len(ATTRIBUTES), 3, replace=False)]
            values = [
                ATTRIBUTES[a][i]
                for a in chosen
                for i in rng.choice(len(ATTRIBUTES[a]), houses, replace=False)
            ]
            clues, steps = _puzzle(rng, houses)
            said = [_said(clue, values) for clue in clues]
            key = "zebra " + " ".join(sorted(said))
            if owns(split, key):
                break
        solution = {value: house for _, value, house in steps}
        attribute = int(rng.integers(3))
        order = sorted(range(attribute * houses, (attribute + 1) * houses), key=solution.__getitem__)
        answer = ", ".join(values[v] for v in order)
        groups = "; ".join(", ".join(values[i * houses : (i + 1) * houses]) for i in range(3))
        numbered = " ".join(f"{i}. {text}" for i, text in enumerate(said, 1))
        asked = {"n": houses, "groups": groups, "clues": numbered, "wanted": chosen[attribute]}
        prompt = wording(rng, QUESTIONS, split).format(**asked)
        data: dict[str, Any] = {"houses": houses, "values": values, "clues": [list(c) for c in clues]}
        data["steps"] = [[list(why), value, house] for why, value, house in steps]
        return Problem(self.family, level, f"{key} {chosen[attribute]}", prompt, answer, data)

    def trace(self, problem: Problem, rng: Generator) -> list[Piece]:
        """One place a line: the clues that force it, the value, its house."""
        data = problem.data
        lines = [
            (",".join(str(i + 1) for i in why) or "-") + f": {data['values'][value]} {house + 1}"
            for why, value, house in data["steps"]
        ]
        return [Piece(Kind.THINK, "\n".join(lines)), Piece(Kind.SAY, problem.answer)]

    def verify(self, problem: Problem, answer: str | None) -> Verdict:
        """Strict: the values in the order of the houses, with commas. Lenient: without them."""
        if answer is None:
            return Verdict(False, False, "no answer")
        if answer.strip() == problem.answer:
            return Verdict(True, True)
        words = [w for w in answer.replace(",", " ").rstrip(".").split() if w in problem.data["values"]]
        return Verdict(False, words == problem.answer.split(", "), f"{answer!r} is not {problem.answer!r}")


def _said(clue: Clue, values: list[str]) -> str:
    kind, a, b = clue
    text = WORDS[kind].format(a=values[a], b="" if kind.endswith("at") else values[b], n=b + 1)
    return text[0].upper() + text[1:]


def _puzzle(rng: Generator, houses: int) -> tuple[list[Clue], list[Step]]:
    """Clues and the steps to the solution. Where small steps don't suffice, further true clues help."""
    places = arrangements(houses)
    while True:
        truth = places[rng.integers(len(places))]
        clues = _clues(rng, truth, houses)
        for _ in range(_HELP):
            if (steps := derive(clues, houses)) is not None:
                return clues, steps
            clues.insert(int(rng.integers(len(clues) + 1)), _true_clue(rng, truth, houses))


def _clues(rng: Generator, truth: tuple[int, ...], houses: int) -> list[Clue]:
    """Clues that are true of an arrangement and leave only it; none can be dropped."""
    left, clues = every(houses), list[Clue]()
    while left.bit_count() > 1:
        clue = _true_clue(rng, truth, houses)
        if left & holds(clue, houses) != left:  # it says something new
            left &= holds(clue, houses)
            clues.append(clue)
    for clue in clues[::-1]:
        others = [holds(other, houses) for other in clues if other != clue]
        if others and functools.reduce(int.__and__, others).bit_count() == 1:
            clues.remove(clue)
    return [clues[i] for i in rng.permutation(len(clues))]


def _true_clue(rng: Generator, truth: tuple[int, ...], houses: int) -> Clue:
    chances = np.array(_CHANCES) / sum(_CHANCES)
    while True:
        kind = list(WORDS)[int(rng.choice(len(WORDS), p=chances))]
        placing = kind.endswith("at")
        a, b = int(rng.integers(3 * houses)), int(rng.integers(houses if placing else 3 * houses))
        if not placing and a // houses == b // houses:
            continue  # two values of one attribute never share a house: that says little
        if _RELATIONS[kind](truth[a], b if placing else truth[b]):
            return kind, a, b
