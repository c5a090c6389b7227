"""Families of problems: splits that never meet, traces whose every line is true, verifiers that take
nothing but the right answer, levels that mean what they say. Each checked by code of its own."""

import itertools
import json
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ayllu.reason.task import SPLITS, split_of
from ayllu.reason.tasks.arithmetic import (
    Arithmetic,
    add_lines,
    canonical_key,
    compare_line,
    multiply_lines,
    subtract_lines,
)
from ayllu.reason.tasks.calculator import Calculator
from ayllu.reason.tasks.countdown import PATIENCE, Countdown, check, lines, reachable, sums
from ayllu.reason.transcript import Kind
from ayllu.tools.calculator import CALCULATOR, canonical
from ayllu.tools.tool import Call, Toolbox

NUMERIC = (Arithmetic(), Calculator())
COUNTDOWN = Countdown()
TASKS = (*NUMERIC, COUNTDOWN)
quick = settings(deadline=None, max_examples=60)
seeds = st.integers(0, 2**32)


def problems(task, split, n, seed=0):
    rng = np.random.default_rng(seed)
    return [task.problem(rng, 1 + i % task.levels, split) for i in range(n)]


def owner_key(problem):
    """What must not be shared between splits: for Countdown the numbers without the target."""
    if problem.family == "countdown3":
        return "countdown " + " ".join(map(str, sorted(problem.data["numbers"])))
    x, op, y = (problem.data[name] for name in ("x", "op", "y"))
    return f"({x} / {y})" if op == "/" else f"{min(x, y)} {op} {max(x, y)}"


# ---- splits
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.family)
def test_every_problem_belongs_to_its_split(task):
    keys = {split: {owner_key(p) for p in problems(task, split, 300)} for split in SPLITS}
    for split, found in keys.items():
        assert {split_of(key) for key in found} == {split}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not keys[one] & keys[other]


def test_both_families_of_sums_share_their_splits():
    # What the calculator is examined on was never worked out by hand in practice.
    assert {owner_key(p) for p in problems(NUMERIC[1], "test", 500)}.isdisjoint(
        owner_key(p) for p in problems(NUMERIC[0], "train", 2000)
    )


@given(x=st.integers(0, 10**6), y=st.integers(0, 10**6), op=st.sampled_from("+-*"))
def test_a_problem_and_its_mirror_image_are_one(x, y, op):
    assert canonical_key(x, op, y) == canonical_key(y, op, x)
    assert canonical_key(x, "+", y) != canonical_key(x, "*", y)


def test_the_splits_have_their_shares():
    counts = dict.fromkeys(SPLITS, 0)
    for n in range(20_000):
        counts[split_of(f"{n} + {n + 3}")] += 1
    assert [counts[s] / 20_000 for s in SPLITS] == pytest.approx([0.85, 0.05, 0.10], abs=0.01)


def test_the_owner_of_a_key_never_changes():
    # Frozen: another hash would let a new program train on what an old one was examined on.
    frozen = {
        "3 + 5": "train",
        "12 * 47": "test",
        "417 - 385": "train",
        "countdown 4 17 63": "train",
        "0 + 1": "train",
        "99 * 99": "train",
        "7 - 88": "train",
    }
    assert {key: split_of(key) for key in frozen} == frozen


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.family)
def test_problems_follow_their_generator(task):
    one, same, other = (problems(task, "train", 20, seed) for seed in (3, 3, 4))
    assert one == same != other
    rng = np.random.default_rng
    assert [task.trace(p, rng(1)) for p in one] == [task.trace(p, rng(1)) for p in same]


# ---- sums, differences, products
@pytest.mark.parametrize("task", NUMERIC, ids=lambda task: task.family)
def test_questions_say_what_is_asked(task):
    for problem in problems(task, "train", 200):
        x, op, y = (problem.data[name] for name in ("x", "op", "y"))
        assert re.findall(r"\d+", problem.prompt) == [str(x), str(y)]
        assert f"{x} {op} {y}" in problem.prompt
        value = Fraction(x, y) if op == "/" else {"+": x + y, "-": x - y, "*": x * y}[op]
        assert problem.answer == canonical(value)


def test_levels_of_arithmetic():
    rng = np.random.default_rng(0)
    for level in (1, 2):
        seen = {op: set() for op in "+-*"}
        for _ in range(1500):
            problem = Arithmetic().problem(rng, level, "train")
            digits = sorted(len(str(problem.data[name])) for name in ("x", "y"))
            seen[problem.data["op"]].add(tuple(digits))
        assert max(map(max, seen["+"])) == max(map(max, seen["-"])) == level + 1
        assert seen["*"] == ({(1, 1), (1, 2)} if level == 1 else {(1, 1), (1, 2), (2, 2)})
        assert (1, level + 1) in seen["+"] and (1, 1) in seen["-"], "short numbers are not rare"


def test_levels_of_the_calculator():
    rng = np.random.default_rng(0)
    for level, longest in ((1, 2), (2, 4), (3, 6)):
        drawn = [Calculator().problem(rng, level, "train").data for _ in range(300)]
        assert max(len(str(max(d["x"], d["y"]))) for d in drawn) == longest


EQUATION = re.compile(r"^(\d+)([-+*])(\d+)(?:([-+])(1|\d))?=(\d+)$")


def is_true(equation):
    """Whether `7-5=2`, `4+0+1=5` or `6*7=42` holds."""
    match = EQUATION.match(equation)
    assert match, equation
    x, op, y, op2, z, result = match.groups()
    value = {"+": int(x) + int(y), "-": int(x) - int(y), "*": int(x) * int(y)}[op]
    value += int(f"{op2}{z}") if op2 else 0
    return value == int(result)


def read_sum(written):
    """The number that digit lines spell out, the last digit first, and the last carry."""
    results = [int(line.split("=")[-1]) for line in written]
    digits = sum(result % 10 * 10**place for place, result in enumerate(results))
    return digits + results[-1] // 10 * 10 ** len(results)


@given(x=st.integers(0, 10**5), y=st.integers(0, 10**5))
def test_lines_of_a_sum(x, y):
    written = add_lines(x, y)
    assert all(map(is_true, written)) and read_sum(written) == x + y
    carry = 0
    for place, line in enumerate(written):
        p, q = (n // 10**place % 10 for n in (x, y))
        assert line.startswith(f"{p}+{q}+1=" if carry else f"{p}+{q}=")
        carry = int(line.split("=")[1]) // 10
    assert len(written) == max(len(str(x)), len(str(y)))


@given(x=st.integers(0, 10**5), y=st.integers(0, 10**5))
def test_lines_of_a_difference(x, y):
    x, y = max(x, y), min(x, y)
    written = subtract_lines(x, y)
    assert all(map(is_true, written)) and read_sum(written) == x - y
    borrow = 0
    for place, line in enumerate(written):
        top, rest = line.split("-", 1)
        q = y // 10**place % 10
        assert int(top) % 10 == x // 10**place % 10 and rest.startswith(f"{q}-1=" if borrow else f"{q}=")
        assert 0 <= int(line.split("=")[1]) <= 9
        borrow = int(int(top) >= 10)
    assert not borrow


@given(x=st.integers(0, 10**4), y=st.integers(0, 10**4))
def test_the_comparing_line(x, y):
    parts = compare_line(x, y).split()
    width = max(len(str(x)), len(str(y)))
    for place, part in enumerate(parts):
        assert (part[0], part[2]) == (str(x).zfill(width)[place], str(y).zfill(width)[place])
        assert {"<": part[0] < part[2], "=": part[0] == part[2], ">": part[0] > part[2]}[part[1]]
    assert all(part[1] == "=" for part in parts[:-1])
    assert parts[-1][1] == ("<" if x < y else ">" if x > y else "=")


@given(x=st.integers(0, 99), y=st.integers(0, 99))
def test_lines_of_a_product(x, y):
    written, at, partial = multiply_lines(x, y), 0, []
    for place, q in enumerate(reversed(str(y))):
        carry = 0
        for p in reversed(str(x)):
            equations = written[at].split()
            assert all(map(is_true, equations)) and equations[0] == f"{p}*{q}={int(p) * int(q)}"
            assert len(equations) == 1 + bool(carry)
            carry = int(equations[-1].split("=")[1]) // 10
            at += 1
        assert written[at] == str(x * int(q) * 10**place)
        partial.append(int(written[at]))
        at += 1
    assert sum(partial) == x * y
    if len(partial) > 1:
        assert read_sum(written[at:]) == x * y and all(map(is_true, written[at:]))
    else:
        assert at == len(written)


def test_traces_of_arithmetic_end_in_the_answer():
    for problem in problems(Arithmetic(), "train", 300):
        thought, said = Arithmetic().trace(problem, np.random.default_rng(0))
        assert (thought.kind, said.kind, said.text) == (Kind.THINK, Kind.SAY, problem.answer)
        if problem.data["op"] == "-" and problem.data["x"] < problem.data["y"]:
            assert thought.text.split("\n")[1] == f"-({problem.data['y']}-{problem.data['x']})"
        assert Arithmetic().verify(problem, said.text).strict


def test_the_calculator_divides_too_and_results_have_points():
    answers = [p.answer for p in problems(Calculator(), "train", 400) if p.data["op"] == "/"]
    assert 20 < len(answers) < 80
    assert sum("." in answer for answer in answers) > len(answers) / 2


def test_traces_of_the_calculator_run():
    box = Toolbox([CALCULATOR])
    for problem in problems(Calculator(), "train", 200):
        call, result, said = Calculator().trace(problem, np.random.default_rng(0))
        assert (call.kind, result.kind, said.kind) == (Kind.CALL, Kind.RESULT, Kind.SAY)
        ran = box.call(Call.parse(call.text))
        assert ran.ok and ran.valid and ran.text == result.text == said.text == problem.answer
        assert list(json.loads(call.text.partition(" ")[2])) == ["expression"]
        assert problem.tools == ("calculator",)


@pytest.mark.parametrize("task", NUMERIC, ids=lambda task: task.family)
def test_only_the_number_counts(task):
    for problem in problems(task, "train", 60):
        n = problem.answer
        assert task.verify(problem, n).strict and task.verify(problem, f" {n}\n").strict
        for loose in (f"The answer is {n}", f"1 or {n}", f"5-3={n}"):
            assert task.verify(problem, loose).lenient and not task.verify(problem, loose).strict
        more = canonical(Fraction(n) + 1)
        wrong = (f"{n} or {more}", more, f"{n}0", f"{n}.5", f"0{n}", "", "no", None)
        for answer in wrong:
            verdict = task.verify(problem, answer)
            assert not verdict.strict and not verdict.lenient and verdict.why, answer


@quick
@given(seed=seeds, text=st.text(max_size=30) | st.text("0123456789+-*/()= .", max_size=30))
def test_no_text_breaks_a_verifier(seed, text):
    for task in TASKS:
        (problem,) = problems(task, "train", 1, seed)
        verdict = task.verify(problem, text)
        assert verdict.lenient or not verdict.strict


# ---- Countdown
def brute_force(numbers):
    """Every target that some expression reaches, with exact fractions."""
    if len(numbers) == 1:
        return {numbers[0]}
    found = set()
    for i, j in itertools.permutations(range(len(numbers)), 2):
        x, y = numbers[i], numbers[j]
        rest = tuple(n for k, n in enumerate(numbers) if k not in (i, j))
        for value in (x + y, x - y, x * y, *([x / y] if y else [])):
            found |= brute_force((value, *rest))
    return found


triples = st.tuples(*[st.integers(1, 99)] * 3)


@quick
@given(numbers=triples)
def test_reachable_targets_are_those_of_brute_force(numbers):
    everything = brute_force(tuple(map(Fraction, numbers)))
    assert reachable(numbers) == {n for n in everything if n.denominator == 1 and 10 <= n <= 99}


@given(numbers=triples)
def test_sums_are_all_ways_to_set_the_signs(numbers):
    wanted = {
        sum(s * n for s, n in zip(signs, numbers, strict=True))
        for signs in itertools.product((1, -1), repeat=3)
    }
    assert sums(numbers) == wanted


def test_levels_of_countdown():
    rng = np.random.default_rng(1)
    easy = 0
    for i in range(300):
        level = 1 + i % 3
        data = COUNTDOWN.problem(rng, level, "train").data
        numbers, target = tuple(data["numbers"]), data["target"]
        assert all(1 <= n <= 99 for n in numbers) and 10 <= target <= 99
        assert target in brute_force(tuple(map(Fraction, numbers)))
        signs = itertools.product((1, -1), repeat=3)
        enough = any(sum(s * n for s, n in zip(each, numbers, strict=True)) == target for each in signs)
        assert level == 3 or enough == (level == 1)
        easy += level == 3 and enough
    assert 60 <= easy <= 95, "about four in five deals need sums and differences only"


TRY = re.compile(r"^(\d+)([-+*/])(\d+)=(\d+)$")


@quick
@given(seed=seeds)
def test_every_line_of_a_search_is_true_and_a_hit_is_one(seed):
    rng = np.random.default_rng(seed)
    problem = COUNTDOWN.problem(rng, 1 + seed % 3, "train")
    numbers, target = problem.data["numbers"], problem.data["target"]
    thought, said = COUNTDOWN.trace(problem, rng)
    written = thought.text.split("\n")
    assert 1 <= len(written) <= PATIENCE
    assert len(set(written)) == len(written) or len(set(numbers)) < 3, "no pair is tried twice"
    hits = 0
    for line in written:
        hit, steps = line.endswith("!"), line.rstrip("!").split()
        values = []
        for step in steps:
            x, sign, y, result = TRY.match(step).groups()
            values.append((int(x), int(y), int(result)))
            exact = {"+": int(x) + int(y), "-": int(x) - int(y), "*": int(x) * int(y)}
            assert (int(x) == int(y) * int(result)) if sign == "/" else exact[sign] == int(result), step
        (x, y, value), *tries = values
        rest = list(numbers)
        rest.remove(x)
        rest.remove(y)
        for left, right, _ in tries:
            assert sorted((left, right)) == sorted((value, rest[0])), "the value meets the third number"
        results = [result for *_, result in tries]
        assert (target in results) == hit and (not hit or results[-1] == target)
        assert not hit or line == written[-1]
        hits += hit
    verdict = COUNTDOWN.verify(problem, said.text)
    assert verdict.strict == bool(hits) and (hits or said.text == "no")


@quick
@given(numbers=triples)
def test_every_try_says_what_its_expression_is(numbers):
    results = set()
    for tries in lines(numbers):
        for attempt in tries:
            assert check(attempt.expression(), list(numbers), attempt.result) == (True, "")
            results.add(attempt.result)
    targets = reachable(numbers)
    assert {r for r in results if 10 <= r <= 99} <= targets
    assert {t for t in sums(numbers) if 10 <= t <= 99} <= results, "level 1 is always within the search"


NUMBERS, TARGET = [63, 17, 4], 50


@pytest.mark.parametrize(
    "answer", ["(63-17)+4", "63-17+4", " 4+63 - 17 ", "63-17+4\n", "63-(17-4)", "4-(17-63)"]
)
def test_right_expressions(answer):
    assert check(answer, NUMBERS, TARGET)[0]


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "no",
        "50",
        "63-17",
        "63-17+4+0",
        "63-13",
        "(63-17)+4, (63-17)+4",
        "63-17+4 or 4+63-17",
        "63-17+4=50",
        "63-17+4==50",
        "63-17+4\n63-17+4",
        "63-17+4;",
        "63.0-17+4",
        "63-17+4*1",
        "63-17--4",
        "+63-17+4",
        "63-17+4 if 1 else 2",
        "63//17+4",
        "63**17**4",
        "63%17+4",
        "abs(63-17)+4",
        "[63-17+4][0]",
        "True*50",
        "63-17/0+4",
        "(((((63-17+4",
        "1" * 99,
        "(" * 100 + "63-17+4" + ")" * 100,
        "63-17+4" + " " * 100,
        "\0",
    ],
)
def test_wrong_expressions(answer):
    good, why = check(answer, NUMBERS, TARGET)
    assert not good and why


def test_an_equals_sign_is_only_leniently_right():
    (problem,) = problems(COUNTDOWN, "train", 1)
    rng = np.random.default_rng(0)
    while (said := COUNTDOWN.trace(problem, rng)[-1].text) == "no":
        pass
    verdict = COUNTDOWN.verify(problem, f"{said} = {problem.data['target']}")
    assert verdict.lenient and not verdict.strict
    assert COUNTDOWN.verify(problem, None).why == "no answer"
