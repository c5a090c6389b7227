"""Small zebra puzzles: who lives where, from a few clues (after the puzzle in Life International, 1962).

Three or four houses in a row, three attributes a house, each value once. Clues are drawn from what is
true until only one arrangement is left, those that are not needed are dropped, and where the steps would be too
large a few are added again. All arrangements
(216 or 13,824) are kept as a table, so a clue is a column of truth values and "exactly one solution" is
a count. The expert derives one place after the other, naming the clues that force it (`3: red 2`; one
clue if one is enough, else two), so that each line follows from the lines above it and those clues.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from ayllu.reason.task import Piece, Problem, Verdict, split_of
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
_CHANCES = (1, 2, 4, 2, 3, 3, 3)
_HELP = 4  # clues that may be added to a puzzle that can't be derived yet


@functools.cache
def arrangements(houses: int) -> NDArray[np.int8]:
    """places_AV: for each arrangement and each value (3 attributes * houses) the house, from 0."""
    one = list(itertools.permutations(range(houses)))
    rows = [sum(three, ()) for three in itertools.product(one, repeat=3)]
    return np.array(rows, np.int8)


def holds(clue: Clue, houses: int) -> NDArray[np.bool_]:
    """For each arrangement whether the clue is true in it."""
    places, (kind, a, b) = arrangements(houses), clue
    if kind in ("at", "not_at"):
        return (places[:, a] == b) == (kind == "at")
    x, y = places[:, a], places[:, b]
    if kind in ("same", "apart"):
        return (x == y) == (kind == "same")
    if kind == "left":
        return x + 1 == y
    return x < y if kind == "before" else abs(x - y) == 1


def derive(clues: list[Clue], houses: int) -> list[tuple[tuple[int, ...], int, int]] | None:
    """The steps (clue numbers, value, house) that fill the table, or None when one or two clues at a time
    are not enough. A place that follows from the others of its attribute needs no clue."""
    places = arrangements(houses)
    truths = np.array([holds(clue, houses) for clue in clues])
    reasons = [(), *((i,) for i in range(len(clues))), *itertools.combinations(range(len(clues)), 2)]
    known: set[int] = set()
    steps = []
    while len(known) < 3 * houses:
        step = next(filter(None, (_forced(places, truths, why, known) for why in reasons)), None)
        if step is None:
            return None
        _, value, house = step
        known.add(value)
        steps.append(step)
        left = places[:, value] == house  # only what fits the places found so far is looked at again
        places, truths = places[left], truths[:, left]
    return steps


def _forced(
    places: NDArray[np.int8], truths: NDArray[np.bool_], why: tuple[int, ...], known: set[int]
) -> tuple[tuple[int, ...], int, int] | None:
    """The first unknown value whose house is the same in all arrangements that the clues leave."""
    rows = places[truths[list(why)].all(0)] if why else places
    fixed = np.flatnonzero((rows == rows[0]).all(0))
    return next(((why, int(v), int(rows[0, v])) for v in fixed if int(v) not in known), None)


class Zebra:
    """Level 1: three houses, level 2: four; three attributes each."""

    family = "zebra"
    levels = 2

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
            if split_of(key) == split:
                break
        solution = {value: house for _, value, house in steps}
        attribute = int(rng.integers(3))
        order = sorted(range(attribute * houses, (attribute + 1) * houses), key=solution.__getitem__)
        answer = ", ".join(values[v] for v in order)
        groups = "; ".join(", ".join(values[i * houses : (i + 1) * houses]) for i in range(3))
        numbered = " ".join(f"{i}. {text}" for i, text in enumerate(said, 1))
        prompt = (
            f"{houses} houses stand in a row, 1 to {houses}. Each has one of each: {groups}. {numbered} "
            f"Which {chosen[attribute]} is in house 1 to {houses}?"
        )
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


def _puzzle(rng: Generator, houses: int) -> tuple[list[Clue], list[tuple[tuple[int, ...], int, int]]]:
    """Clues and the steps to the solution. Where small steps don't suffice, further true clues help."""
    places = arrangements(houses)
    while True:
        truth = places[rng.integers(len(places))]
        clues = _clues(rng, truth, houses)
        for _ in range(_HELP):
            if (steps := derive(clues, houses)) is not None:
                return clues, steps
            clue = _true_clue(rng, truth, houses)
            clues.insert(int(rng.integers(len(clues) + 1)), clue)


def _clues(rng: Generator, truth: NDArray[np.int8], houses: int) -> list[Clue]:
    """Clues that are true of an arrangement and leave only it; none can be dropped."""
    left = np.ones(len(arrangements(houses)), bool)
    clues, seen = list[Clue](), list[NDArray[np.bool_]]()
    while left.sum() > 1:
        clue = _true_clue(rng, truth, houses)
        table = holds(clue, houses)
        if (left & table).sum() < left.sum():  # it says something new
            left &= table
            clues.append(clue)
            seen.append(table)
    for i in reversed(range(len(clues))):
        others = [table for j, table in enumerate(seen) if j != i]
        if others and np.logical_and.reduce(others).sum() == 1:
            del clues[i], seen[i]
    return [clues[i] for i in rng.permutation(len(clues))]


def _true_clue(rng: Generator, truth: NDArray[np.int8], houses: int) -> Clue:
    chances = np.array(_CHANCES) / sum(_CHANCES)
    while True:
        kind = list(WORDS)[int(rng.choice(len(WORDS), p=chances))]
        a = int(rng.integers(3 * houses))
        b = int(rng.integers(houses if kind in ("at", "not_at") else 3 * houses))
        if kind not in ("at", "not_at") and a // houses == b // houses:
            continue  # about two values of different attributes: of one they never share a house
        x, y = int(truth[a]), b if kind in ("at", "not_at") else int(truth[b])
        true = {
            "at": x == y,
            "not_at": x != y,
            "same": x == y,
            "apart": x != y,
            "left": x + 1 == y,
            "before": x < y,
            "next": abs(x - y) == 1,
        }[kind]
        if true:
            return kind, a, b
