"""The scorers judged: whoever answers by lot gets what chance gives, within the interval that is printed.

Two kinds of lot. One says the right answer to another question, so that it is right as often as answers
agree: every verdict can be told beforehand. The other guesses within the form that is asked for, where there
are only so many answers; what that gets follows from how many there are.
"""

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stand_ins import StandIn, by_lot, by_lot_of, replies, solved

from ayllu.evals.examine import ExamSettings, examine, examine_family
from ayllu.evals.official import OFFICIAL, load
from ayllu.progress import Progress
from ayllu.reason.practice import EXAMS
from ayllu.reason.task import Problem, hardest
from ayllu.reason.tasks import knights
from ayllu.reason.tasks.tool_choice import NONE

QUIET = Progress("eval", quiet=True)
CHOICES = [name for name, task in OFFICIAL.items() if task.form in ("choice", "mass")]
WORDS = [name for name, task in OFFICIAL.items() if task.form == "answer"]
PROGRAMS = [name for name, task in OFFICIAL.items() if task.form == "program"]
BOTH = pytest.mark.parametrize("continues", [True, False], ids=["continues", "converses"])


def agreement(answers: Sequence[object]) -> float:
    """The chance that the answers to two different questions are the same."""
    n = len(answers)
    return sum(count * (count - 1) for count in Counter(answers).values()) / (n * (n - 1))


# ---- official sets
@pytest.mark.parametrize("rule", ["raw", "token", "character", "answer"])
@pytest.mark.parametrize("name", CHOICES)
def test_by_lot_gets_what_chance_gives(data, name, rule):
    task = replace(OFFICIAL[name], headline=rule)
    rows = [replace(row, place=f"{row.place}/{i}") for i in range(40) for row in load(task, data)]
    found = examine(task, rows, by_lot(5), data, ExamSettings(), QUIET)
    assert 0.15 < found["chance"] < 0.55
    assert found["low"] < found["chance"] < found["high"], found["score"]


@pytest.mark.parametrize("name", ["truthfulqa_mc1", "truthfulqa_mc2"])
def test_who_always_says_a_gets_what_chance_gives(name):
    """These sets give their right answers first; as letters that would be an A for every row."""
    table = {"Correct Answers": "Moss; Lichen", "Best Answer": "Moss", "Incorrect Answers": "Gold; Tin; Sand"}
    read = OFFICIAL[name].read
    rows = [read(f"made:{i}", table | {"Question": f"What grows on stone {i}?"}) for i in range(400)]
    first = StandIn(lambda item: [-0.001, *[-500.0] * (len(item.pairs) - 1)], str, continues=False)
    found = examine(OFFICIAL[name], rows, first, Path(), ExamSettings(), QUIET)
    assert found["low"] < found["chance"] < found["high"] < 0.6, found["score"]


@BOTH
@pytest.mark.parametrize("name", WORDS)
def test_the_answer_to_another_row_is_right_where_the_answers_agree(data, name, continues):
    """Each row is there ten times, so that they do agree at times."""
    task = OFFICIAL[name]
    rows = [replace(row, place=f"{row.place}/{i}") for i in range(10) for row in load(task, data)]
    wanted = {row.place: row.answers for row in rows}
    lot = by_lot_of(replies(rows, continues), 5, continues=continues)
    found = examine(task, rows, lot, data, ExamSettings(samples=4, shots=0), QUIET)
    assert found["correct"] == sum(wanted[mine] == wanted[other] for mine, other in lot.drawn) > 0
    assert len(lot.drawn) == 4 * len(rows)
    chance = agreement(list(wanted.values()))
    assert found["low"] < chance < found["high"] < 1, found["score"]


def test_a_number_from_a_million_is_never_right(data):
    for name in WORDS:
        assert examine(OFFICIAL[name], load(OFFICIAL[name], data), by_lot(5), data, ExamSettings(), QUIET)[
            "score"
        ] == 0, name  # fmt: skip


@BOTH
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_drawn_by_lot_is_right_when_it_is_the_rows_own(data, walls, name, continues):
    task = OFFICIAL[name]
    rows = load(task, data)
    lot = by_lot_of(replies(rows, continues), 4, others=False, continues=continues)
    found = examine(task, rows, lot, data, ExamSettings(samples=16), QUIET)
    own = sum(mine == other for mine, other in lot.drawn)
    assert found["correct"] == found["lenient"]["correct"] == own and len(lot.drawn) == 16 * len(rows)
    assert found["low"] < 1 / len(rows) < found["high"], found["score"]
    others = by_lot_of(replies(rows, continues), 4, continues=continues)
    found = examine(task, rows, others, data, ExamSettings(samples=4), QUIET)
    assert found["correct"] == found["lenient"]["correct"] == 0, "programs of other rows are wrong ones"


# ---- families of our own
@pytest.mark.parametrize("name", list(EXAMS))
def test_the_answer_to_another_problem_is_right_where_the_answers_agree(resampled, name):
    task, n = EXAMS[name], 6 if name.startswith("zebra") else 60  # a zebra takes long to make
    problems = hardest(task, n, 3)
    said = {problem.key: solved(task, problem) for problem in problems}
    # Several answers are right where a problem says which, as an everyday question does.
    right = {p.key: set(p.data.get("answers", ())) | {said[p.key]} for p in problems}
    lot = by_lot_of(said, 5, continues=False)
    found = examine_family(task, lot, ExamSettings(n=n, seed=3, samples=8), QUIET)
    agreed = sum(said[other] in right[mine] for mine, other in lot.drawn)
    assert found["n"] == len(problems) and len(lot.drawn) == 8 * len(problems)
    if name.startswith("paths"):  # another's path may be as short as one's own
        assert found["correct"] >= agreed
    else:
        assert found["correct"] == agreed
    pairs = [(mine, other) for mine in said for other in said if mine != other]
    chance = sum(said[other] in right[mine] for mine, other in pairs) / len(pairs)
    assert found["low"] <= chance <= found["high"] < 0.6, found["score"]


def of_knights(problem: Problem, rng: np.random.Generator) -> str:
    """Of each person either kind."""
    kinds = knights.KINDS[problem.data["language"]]
    return ", ".join(f"{name} {kinds[rng.integers(2)]}" for name in problem.data["names"])


def of_zebra(problem: Problem, rng: np.random.Generator) -> str:
    """The values that are asked about, in any order."""
    return ", ".join(rng.permutation(problem.answer.split(", ")))


def of_tools(problem: Problem, rng: np.random.Generator) -> str:
    """One of the tools on offer, or none of them."""
    return str(rng.choice([*problem.tools, NONE]))


Guess = Callable[[Problem, np.random.Generator], str]


@pytest.mark.parametrize("templates", ["", "_templates"], ids=["test", "templates"])
@pytest.mark.parametrize(
    ("name", "level", "guess", "answers"),
    [
        ("knights", 1, of_knights, lambda problem: 2**2),
        ("knights", 3, of_knights, lambda problem: 2**4),
        ("zebra", 1, of_zebra, lambda problem: 3 * 2),
        ("tool_choice", 3, of_tools, lambda problem: len(problem.tools) + 1),
    ],
)
def test_a_guess_within_the_form_gets_one_in_so_many(
    name: str, templates: str, level: int, guess: Guess, answers: Callable[[Problem], int]
):
    task = copy.copy(EXAMS[name + templates])
    task.levels = level  # the highest is examined
    problems = {problem.key: problem for problem in hardest(task, 150, 7)}
    rng = np.random.default_rng(7)
    lot = StandIn(lambda item: [], lambda key: guess(problems[key], rng), continues=False)
    found = examine_family(task, lot, ExamSettings(n=150, seed=7, samples=8), QUIET)
    chance = float(np.mean([1 / answers(problem) for problem in problems.values()]))
    assert found["n"] == len(problems) > 100
    assert found["low"] < chance < found["high"] < 1.6 * chance + 0.1, found["score"]
