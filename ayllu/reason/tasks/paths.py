"""Shortest paths in small weighted graphs, by Dijkstra's algorithm (1959) with its table in sight.

A line takes the nearest place that is not done and says what is reached from it: `C 3: B 5, D 9`. Only what
is new or shorter than before is written. The answer is the path and its length; any shortest path counts.
"""

from __future__ import annotations

import itertools
from typing import Any

from numpy.random import Generator

from ayllu.reason.task import Piece, Problem, Task, Verdict, owns, wording
from ayllu.reason.transcript import Kind

NODES = ((4, 4), (5, 5), (6, 7))  # least and most, by level
LONGEST = 9  # of an edge
PROMPTS = (
    "Roads: {roads}. What is the shortest way from {start} to {goal}?",
    "These roads go both ways: {roads}. Find the shortest path from {start} to {goal}.",
    "Straßen: {roads}. Was ist der kürzeste Weg von {start} nach {goal}?",
    "దారులు: {roads}. {start} నుండి {goal} కు అతి దగ్గరి దారి ఏది?",
    "~How do you get from {start} to {goal} the fastest on the roads {roads}?",
    "~Wie kommt man am schnellsten von {start} nach {goal}? Straßen: {roads}.",
    "~{start} నుండి {goal} కు చేరడానికి చిన్న మార్గం కనుగొనండి. దారులు: {roads}.",
)
Roads = dict[str, dict[str, int]]


def roads_of(edges: list[list[Any]]) -> Roads:
    """Neighbours and distances of each place."""
    roads: Roads = {}
    for a, b, length in edges:
        roads.setdefault(a, {})[b] = length
        roads.setdefault(b, {})[a] = length
    return roads


def dijkstra(roads: Roads, start: str, goal: str) -> tuple[list[str], list[str], int]:
    """Lines of the working, the places on the path, its length. Ties go to the first letter."""
    distance, before, done, lines = {start: 0}, dict[str, str](), set[str](), list[str]()
    while True:
        here = min((d, place) for place, d in distance.items() if place not in done)[1]
        done.add(here)
        if here == goal:
            break
        new = {}
        for place, length in sorted(roads[here].items()):
            if place not in done and distance[here] + length < distance.get(place, 10**9):
                new[place] = distance[place] = distance[here] + length
                before[place] = here
        found = ", ".join(f"{place} {d}" for place, d in new.items()) or "-"
        lines.append(f"{here} {distance[here]}: {found}")
    path = [goal]
    while path[-1] != start:
        path.append(before[path[-1]])
    back = " < ".join(path)
    return [*lines, f"{goal} {distance[goal]}", back], path[::-1], distance[goal]


class Paths(Task):
    """Levels 1 to 3: four, five, and six or seven places."""

    family = "paths"
    levels = 3
    templates = True

    def problem(self, rng: Generator, level: int, split: str) -> Problem:
        """A random tree that joins all places, and about half as many roads again. The split goes by the
        roads, start and goal."""
        low, high = NODES[level - 1]
        while True:
            places = "ABCDEFGHJKLM"[: int(rng.integers(low, high + 1))]
            order = [places[i] for i in rng.permutation(len(places))]
            pairs = {tuple(sorted((p, order[rng.integers(i)]))) for i, p in enumerate(order) if i}
            for _ in range(len(places) // 2 + 1):
                a, b = sorted(rng.choice(len(places), 2, replace=False).tolist())
                pairs.add((places[a], places[b]))
            edges: list[list[Any]] = [[a, b, int(rng.integers(1, LONGEST + 1))] for a, b in sorted(pairs)]
            i, j = rng.choice(len(places), 2, replace=False).tolist()
            start, goal = places[i], places[j]
            key = "roads " + " ".join(f"{a}{b}{n}" for a, b, n in edges)
            key += f" {min(start, goal)} {max(start, goal)}"
            if goal not in roads_of(edges)[start] and owns(split, key):
                break
        shown = [edges[k] for k in rng.permutation(len(edges))]
        written = ", ".join(f"{a}-{b} {n}" if rng.integers(2) else f"{b}-{a} {n}" for a, b, n in shown)
        prompt = wording(rng, PROMPTS, split).format(roads=written, start=start, goal=goal)
        _, path, length = dijkstra(roads_of(edges), start, goal)
        data = {"edges": edges, "start": start, "goal": goal, "length": length}
        return Problem(self.family, level, key, prompt, f"{'-'.join(path)} = {length}", data)

    def trace(self, problem: Problem, rng: Generator) -> list[Piece]:
        """The table of the algorithm, the way back, the answer."""
        data = problem.data
        lines, _, _ = dijkstra(roads_of(data["edges"]), data["start"], data["goal"])
        return [Piece(Kind.THINK, "\n".join(lines)), Piece(Kind.SAY, problem.answer)]

    def verify(self, problem: Problem, answer: str | None) -> Verdict:
        """Strict: `A-C-B = 5`, any path of the shortest length. Lenient: the path alone, or with spaces."""
        if answer is None:
            return Verdict(False, False, "no answer")
        path, _, length = answer.strip().partition(" = ")
        why = _fault(path.split("-"), problem.data)
        if not why and length == str(problem.data["length"]):
            return Verdict(True, True)
        loose = answer.partition("=")[0].replace("-", " ").replace(",", " ").split()
        lenient = not _fault(loose, problem.data)
        return Verdict(False, lenient, why or f"the length is not {length!r}")


def _fault(path: list[str], data: dict[str, Any]) -> str:
    """Why this is not a shortest path; "" when it is."""
    roads, total = roads_of(data["edges"]), 0
    if not path or path[0] != data["start"] or path[-1] != data["goal"]:
        return "not from the start to the goal"
    for a, b in itertools.pairwise(path):
        if b not in roads.get(a, {}):
            return f"there is no road {a}-{b}"
        total += roads[a][b]
    return "" if total == data["length"] else f"{total} is not the shortest"
