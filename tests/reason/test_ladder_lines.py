"""Worked solutions line by line, checked by code of its own: every equation is true, every step follows."""

import datetime
import itertools
import re
from collections import Counter

import numpy as np
import pytest
from drawn import SLOW, thinking, traced, value

from ayllu.reason.practice import (
    TASKS,
    practice_texts,
)
from ayllu.reason.task import conversation
from ayllu.reason.tasks import (
    dates,
    expressions,
    knights,
    paths,
    zebra,
)
from ayllu.reason.transcript import Chat
from ayllu.text.tokenizer import train_tokenizer
from ayllu.tools.calculator import CALCULATOR
from ayllu.tools.tool import Call, Toolbox

CHAT = Chat(train_tokenizer(practice_texts(0), 400))


# ---- lines of working: every equation is true
EQUATION = re.compile(r"(?<![\w.])((?:\d+|[-+*/()])+)=(\d+(?:\*\d+\+\d+)?)(?!\d)")


@pytest.mark.parametrize("family", ["number_theory", "bases", "countdown4", "countdown3_patient", "dates"])
def test_every_equation_is_true(family):
    seen = 0
    for _, lines, _ in thinking(TASKS[family], SLOW.get(family, 90)):
        for left, right in EQUATION.findall("\n".join(lines)):
            assert value(left) == value(right), (left, right)
            seen += 1
    assert seen > 60


def test_long_arithmetic():
    for p, lines, said in thinking(TASKS["long_arithmetic"], 200):
        x, op, y = (p.data[name] for name in ("x", "op", "y"))
        assert int(said) == {"+": x + y, "-": x - y, "*": x * y}[op]
        if op == "-":
            check_difference(x, y, [line for line in lines if re.match(r"\d+-\d+ ", line)])
            continue
        pending, rows, found = None, [], ""
        for line in lines:
            if row := re.fullmatch(
                r"(\d+)\*(\d+) (\d)(0*)(:|=0)", line
            ):  # that of the last digit of what is left
                assert row[2].endswith(row[3])
                pending = int(row[1]) * int(row[3])
                assert row[5] == "=0" or len(row[4]) == len(rows)  # the zeros of its place
                rows.append((int(row[1]), row[2]))
            elif line.endswith(":"):  # a sum that the next `=` line ends
                pending = value(line[:-1])
            elif line.startswith("="):
                assert int(line[1:]) == pending, lines
            else:
                assert EQUATION.search(line)
                for left, right in EQUATION.findall(line):
                    assert value(left) == int(right)
                if op == "+":
                    found = re.search(r"=(\d+)", line)[1][-1] + found
                    assert len(found) == 1 or line.endswith(f" {found}" if line != lines[-1] else f" {said}")
        if op == "*":
            top, bottom = (x, y) if len(str(x)) >= len(str(y)) else (y, x)
            assert rows == [(top, str(bottom)[:n]) for n in range(len(str(bottom)), 0, -1)]


def test_long_arithmetic_practises_what_is_easily_confused():
    """Few different digits and like beginnings are much more frequent in practice, and only there."""
    rates = {}
    for split in ("train", "test"):
        drawn = [
            (p.data["x"], p.data["op"], p.data["y"]) for p in drawn_of("long_arithmetic", 1500, 4, split)
        ]
        long = [(x, op, y) for x, op, y in drawn if min(x, y) > 99]
        few = sum(len({*str(x), *str(y)}) <= 2 for x, _, y in long) / len(long)
        apart = [(str(x), str(y)) for x, op, y in long if op == "-" and len(str(x)) == len(str(y))]
        alike = sum(x[0] == y[0] for x, y in apart) / len(apart)
        rates[split] = few, alike
    assert 0.2 < rates["train"][0] < 0.4 and rates["test"][0] < 0.03
    assert rates["train"][1] > 0.5 and rates["test"][1] < 0.25


def drawn_of(family, n, level, split):
    rng = np.random.default_rng(3)
    return [TASKS[family].problem(rng, level, split) for _ in range(n)]


def check_difference(x, y, lines):
    """Column by column, what is left of both numbers first; the digits found make up the difference."""
    x, y, found = max(x, y), min(x, y), ""
    assert len(lines) == len(str(x))
    for place, line in enumerate(lines):
        left, *asked, working, so_far = line.split(" ") if place else [*line.split(" "), ""]
        assert left == f"{x // 10**place}-{y // 10**place}"
        made, _, digit = working.partition("=")
        assert value(made) == int(digit) and bool(asked) == bool(re.match(r"1\d-", made))
        found = digit + found
        assert so_far == (found if place else "")
    assert int(found) == x - y


def test_expressions_that_are_written_alike_have_one_key():
    """Their trees differ (9+(5-7) and (9+5)-7), which nobody can see."""
    rng, by_text = np.random.default_rng(2), {}
    for _ in range(4000):
        tree = expressions.grow(rng, int(rng.integers(1, 4)))
        sides = [expressions.Node(n) for n in (9, 5, 7)]
        by_text.setdefault(tree.text(), set()).add(tree.key())
    assert all(len(keys) == 1 for keys in by_text.values())
    for op in "+-":
        right = expressions.Node(5 + 7 if op == "+" else 5 - 7, op, *sides[1:])
        left = expressions.Node(14, "+", *sides[:2])
        one = expressions.Node(9 + right.value, "+", sides[0], right)
        other = expressions.Node(one.value, op, left, sides[2])
        assert one.text() == other.text() == f"9+5{op}7" and one.key() == other.key()


def test_expressions_call_the_calculator_with_what_was_asked():
    box = Toolbox([CALCULATOR])
    for p, (*_, call, result, said) in traced(TASKS["expressions"], 120):
        ran = box.call(Call.parse(call.text))
        assert ran.ok and ran.text == result.text == said.text
        if "%" not in p.data["expression"] or "%" in p.prompt:
            shown = p.prompt.translate(str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-"}))
            assert p.data["expression"] in shown.replace(" ", "")
        assert eval(p.data["expression"].replace("/", "//")) == int(said.text), "exact, in Python's order too"


def test_a_refused_expression_is_shown_with_its_error_and_never_learnt():
    box = Toolbox([CALCULATOR])
    refused = [(p, trace) for p, trace in traced(TASKS["expressions"], 300) if len(trace) > 3]
    assert 5 < len(refused) < 60, "a few of them"
    for p, trace in refused:
        wrong, error, call, *_ = trace
        ran = box.call(Call.parse(wrong.text))
        assert not ran.ok and ran.text == error.text and wrong.text != call.text
        spans = conversation(CHAT, p, trace).spans[-5:]
        assert [span.sampled for span in spans] == [False, False, True, False, True]


def test_patient_countdown_gives_up_only_when_every_line_was_tried():
    """By its own account of the lines: every pair and sign in the order of the numbers, then the third."""
    task, right = TASKS["countdown3_patient"], 0
    for p, written, said in thinking(task, 300):
        a, b, c = sorted(p.data["numbers"], reverse=True)
        wanted = [
            f"{x}{sign}{y}={result}" + (f" {z}:" if sign != "/" or x % y == 0 else f"r{x % y}")
            for x, y, z in dict.fromkeys(((a, b, c), (a, c, b), (b, c, a)))
            for sign, result in (("+", x + y), ("-", x - y), ("*", x * y), ("/", x // y))
            if 0 < result <= 198 and (sign != "/" or y > 1)
        ]
        beginnings = [line.partition(":")[0] + ":" * (":" in line) for line in written]
        assert beginnings == wanted[: len(beginnings)]
        for line in written:
            if " " in line:
                made, other = int(re.search(r"=(\d+) ", line)[1]), int(re.search(r" (\d+):", line)[1])
                high, low = max(made, other), min(made, other)
                can = {"+": high + low, "-": high - low, "*": high * low, "/": high // low if low > 1 else 0}
                tries = [f"{sign}{n}" for sign, n in can.items() if 10 <= n <= 99]
                if tries and tries[-1][0] == "/" and high % low:
                    tries[-1] += f"r{high % low}"
                seen = line.partition(":")[2].rstrip("!").split()
                assert seen == (tries[: len(seen)] if line.endswith("!") else tries)
        hit = written[-1].endswith("!")
        assert hit or len(beginnings) == len(wanted)
        assert task.verify(p, said).strict == hit and (said == "no") == (not hit)
        right += hit
    assert right >= 288  # 99 % of the deals, and six standard errors less


def test_countdown4_lines_combine_what_is_there():
    task = TASKS["countdown4"]
    for p, lines, said in thinking(task, 60):
        for i, line in enumerate(lines):
            hit = line.endswith("!")
            beginning, _, tries = line.partition(": ")
            left = Counter(map(str, p.data["numbers"]))
            for x, y, made in re.findall(r"(\d+)[-+*/](\d+)=(\d+)", beginning):
                left -= Counter([x, y])
                left[made] += 1
            assert sum(left.values()) == 2
            stated = beginning.split()[2:]  # the number that waited until now, where one did
            assert stated == [] or (stated[0] in left and stated[0] in map(str, p.data["numbers"]))
            low, high = sorted(map(int, left.elements()))
            possible = {"+": high + low, "-": high - low, "*": high * low, "/": high / low if low > 1 else 0}
            if low == 1:
                del possible["*"]
            wanted = [f"{sign}{int(n)}" for sign, n in possible.items() if n == int(n) and 10 <= n <= 99]
            made = tries.rstrip("!").split()
            assert made == (wanted[: len(made)] if hit else wanted)
            assert hit == (made[-1][1:] == str(p.data["target"])) and (not hit or i == len(lines) - 1)
        assert task.verify(p, said).strict == lines[-1].endswith("!")


def test_lists():
    for p, lines, said in thinking(TASKS["lists"], 250):
        kind, data = p.data["kind"], p.data
        if kind in ("sort", "words"):
            assert said == ", ".join(map(str, sorted(data["items"])))
            left = [str(item) for item in data["items"]]
            for line in lines:
                here, _, least = line.partition(": ")
                assert here.split() == left
                assert least == str(min(left, key=int if kind == "sort" else str))
                left.remove(least)
        elif kind == "letters":
            assert re.sub(r"\d", "", lines[0]).replace(" ", "") == data["word"]
            assert re.findall(rf"{data['wanted']}(\d+)", lines[0]) == [str(i + 1) for i in range(int(said))]
        elif kind == "backwards":
            assert lines == [" ".join(data["word"]), " ".join(said)] and said[::-1] == data["word"]


def test_dates_agree_with_the_calendar():
    for p, lines, said in thinking(TASKS["dates"], 250):
        start = datetime.date.fromisoformat(p.data["start"])
        names = dates.phrases(p.data["language"])
        end = start + datetime.timedelta(p.data["n"])
        if p.data["kind"] == "weekday":
            assert said == names["days"][start.weekday()] and lines[-1].endswith(said)
        elif p.data["kind"] == "add":
            assert said == dates.written(end, p.data["language"])
            assert lines[-1] == f"{names['months'][end.month - 1]} {end.day} {end.year}"
        elif p.data["kind"] == "between":
            assert lines[-1].endswith(f"={said}") and int(said) == (end - start).days
        else:
            assert lines[-1].endswith(said)


def test_knights_have_one_solution_and_lines_say_what_fits():
    for p, lines, said in thinking(TASKS["knights"], 120):
        statements = [tuple(s) for s in p.data["statements"]]
        (honest,) = knights.solutions(statements)
        kinds = knights.KINDS[p.data["language"]]
        assert said == ", ".join(f"{n} {kinds[h]}" for n, h in zip(p.data["names"], honest, strict=True))
        for line in lines:
            marks, _, checks = line.partition(": ")
            case = tuple(c == "K" for c in marks.split())
            for name, sign, statement, own in zip(
                p.data["names"], [c[-1] for c in checks.split()], statements, case, strict=False
            ):
                assert name in checks and (knights.holds(statement, case) == own) == (sign == "+")
        assert tuple(c == "K" for c in lines[-1].partition(":")[0].split()) == honest


def test_zebra_is_unique_and_each_place_follows():
    for p, lines, said in thinking(TASKS["zebra"], 12):
        houses, values = p.data["houses"], p.data["values"]
        clues = [tuple(c) for c in p.data["clues"]]

        def true(clue, places):
            return zebra._RELATIONS[clue[0]](
                places[clue[1]], clue[2] if clue[0].endswith("at") else places[clue[2]]
            )

        left = zebra.arrangements(houses)
        solutions = [a for a in left if all(true(c, a) for c in clues)]
        assert len(solutions) == 1
        for line in lines:
            why, _, fact = line.partition(": ")
            name, house = fact.rsplit(" ", 1)
            named = [clues[int(i) - 1] for i in why.split(",")] if why != "-" else []
            fitting = [a for a in left if all(true(c, a) for c in named)]
            assert {a[values.index(name)] for a in fitting} == {int(house) - 1}, "it follows"
            left = [a for a in left if a[values.index(name)] == int(house) - 1]
        wanted = said.split(", ")
        assert [solutions[0][values.index(v)] for v in wanted] == list(range(houses))


def test_paths_are_shortest_by_another_algorithm():
    task = TASKS["paths"]
    for p, lines, said in thinking(task, 100):
        roads = paths.roads_of(p.data["edges"])
        far = {(a, b): 0 if a == b else roads[a].get(b, 10**6) for a in roads for b in roads}
        for k, a, b in itertools.product(roads, repeat=3):  # Floyd and Warshall
            far[a, b] = min(far[a, b], far[a, k] + far[k, b])
        assert p.data["length"] == far[p.data["start"], p.data["goal"]] and said.endswith(
            f"= {p.data['length']}"
        )
        for line in lines[:-2]:
            place, _, rest = line.partition(" ")
            assert int(rest.partition(":")[0]) == far[p.data["start"], place], "a place is taken when settled"
        longer = "-".join([*said.split(" = ")[0].split("-"), p.data["start"]])
        assert not task.verify(p, f"{longer} = {p.data['length']}").lenient
