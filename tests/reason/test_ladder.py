"""The ladder of problem families: what holds for all of them, then every step of each trace checked by
code of its own."""

import datetime
import itertools
import json
import os
import re
from collections import Counter

import numpy as np
import pytest
from drawn import problems, thinking, traced, value

from ayllu.errors import BadFileError, InputNotFoundError, RecipeValueError
from ayllu.reason.practice import (
    EXAMS,
    LADDER,
    RESAMPLED,
    TASKS,
    check_families,
    draw,
    practice_texts,
    tokenizer_texts,
    toolbox_of,
)
from ayllu.reason.task import SPLITS, TEMPLATES, conversation
from ayllu.reason.tasks import (
    dates,
    expressions,
    gsm8k,
    knights,
    paths,
    programs,
    tables,
    tool_choice,
    zebra,
)
from ayllu.reason.transcript import Chat, Kind
from ayllu.text.tokenizer import train_tokenizer
from ayllu.tools.calculator import CALCULATOR
from ayllu.tools.tool import Call, Toolbox

GENERATED = [task for task in LADDER if task is not RESAMPLED]
SLOW = {"zebra": 9, "countdown4": 40}
# Characters of prompt and solution together; stated, so that a recipe can choose the length of its rows.
LONGEST = {
    "long_arithmetic": 420, "expressions": 260, "countdown4": 400, "countdown3_patient": 420,
    "number_theory": 420, "bases": 330, "lists": 420, "dates": 520, "knights": 750, "zebra": 1000,
    "paths": 420, "stories_en": 750, "stories_de": 800, "stories_te": 800,
    "tables": 560, "tool_choice": 220, "programs": 420,
}  # fmt: skip


families = pytest.mark.parametrize("task", GENERATED, ids=lambda task: task.family)


# ---- all families
@families
def test_splits_never_meet(task):
    # With AYLLU_DRAWS=10000 these are ten thousand draws of each family and split (some minutes).
    n = int(os.environ.get("AYLLU_DRAWS", SLOW.get(task.family, 120)))
    splits = (*SPLITS, TEMPLATES) if task.templates else SPLITS
    drawn = {split: problems(task, split, n) for split in splits}
    for one, other in itertools.combinations(splits, 2):
        if (one, other) != ("test", TEMPLATES):  # these two may share numbers, in other words
            assert {p.key for p in drawn[one]}.isdisjoint(p.key for p in drawn[other])

    def asked(p):  # for the choice of a tool, what is on offer is part of the question
        return p.prompt, tuple(sorted(p.tools)) if task.family == "tool_choice" else ()

    for one, other in itertools.combinations(splits, 2):
        if "dev" not in (one, other):
            assert set(map(asked, drawn[one])).isdisjoint(map(asked, drawn[other]))


def test_new_wordings_are_asked_in_every_language_and_nowhere_else():
    for name in ("long_arithmetic", "expressions", "countdown4", "number_theory", "lists", "bases", "paths"):

        def words(split, name=name):
            drawn = problems(TASKS[name], split, SLOW.get(name, 200))
            return {re.sub(r"[\d\W]+", " ", p.prompt) for p in drawn}

        new = words(TEMPLATES)
        assert any(re.search("[\u0c00-\u0c7f]", text) for text in new), name
        assert new.isdisjoint(words("train")), name
        assert "~" not in "".join(p.prompt for p in problems(TASKS[name], TEMPLATES, 30))
    assert {f"{task.family}_templates" for task in GENERATED} <= set(EXAMS)


def test_a_remainder_belongs_to_one_split_whichever_family_asks():
    for p in problems(TASKS["number_theory"], "train", 300):
        if p.data["kind"] == "remainder":
            x, y = p.data["x"], p.data["y"]
            asked = expressions.Node(x % y, "%", expressions.Node(x), expressions.Node(y))
            assert asked.key() == p.key


@families
def test_the_same_seed_gives_the_same_problems(task):
    assert traced(task, 9, 3) == traced(task, 9, 3) != traced(task, 9, 4)


@families
def test_the_expert_is_right_and_chance_is_not(task):
    """Oracle and random baseline: the own solution scores, the answer to another problem hardly does."""
    solved = traced(task, SLOW.get(task.family, 90))
    right = [task.verify(p, trace[-1].text).strict for p, trace in solved]
    if task.family.startswith("countdown"):
        assert 0.8 < np.mean(right) <= 1, "now and then the expert gives up, and says so"
        assert all(r or t[-1].text == "no" for r, (_, t) in zip(right, solved, strict=True))
    else:
        assert all(right)
    others = [task.verify(p, solved[i - 1][1][-1].text).lenient for i, (p, _) in enumerate(solved)]
    chance = {"tool_choice": 0.35, "lists": 0.25, "number_theory": 0.3}.get(task.family, 0.15)
    assert np.mean(others) <= chance
    for p, trace in solved[:20]:
        assert not task.verify(p, None).strict and not task.verify(p, "").lenient
        assert not task.verify(p, trace[-1].text + " or not").strict


@families
def test_solutions_stay_below_the_stated_length(task):
    for p, trace in traced(task, SLOW.get(task.family, 60)):
        assert len(p.prompt) + sum(len(piece.text) for piece in trace) <= LONGEST[task.family]
        assert all(piece.text.strip() for piece in trace) and trace[-1].kind == Kind.SAY


@families
def test_problems_are_plain_data_and_offer_what_their_solution_calls(task):
    for p, trace in traced(task, 20):
        assert json.loads(json.dumps(p.data)) == p.data
        called = {piece.text.partition(" ")[0] for piece in trace if piece.kind == Kind.CALL}
        assert called <= set(p.tools)


CHAT = Chat(train_tokenizer(practice_texts(0), 400))


def test_everything_can_be_rendered_and_read_back():
    for task in GENERATED:
        for p, trace in traced(task, 6):
            whole = conversation(CHAT, p, trace)
            assert all(map(CHAT.is_closed, whole.spans))
            assert CHAT.answer(whole) == trace[-1].text
            assert [CHAT.text(s) for s in whole.spans[-len(trace) :]] == [piece.text for piece in trace]


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
                r"(\d+)\*(\d+) (\d)(:|=0)", line
            ):  # that of the last digit of what is left
                assert row[2].endswith(row[3])
                pending = int(row[1]) * int(row[3])
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


# ---- tables, tools, programs
def test_tables_answer_by_their_own_tool_and_write_nothing():
    task = TASKS["tables"]
    for number, (p, (call, result, said)) in enumerate(traced(task, 60)):
        box = toolbox_of(p, Toolbox([CALCULATOR]))
        assert box.names == p.tools == ("sql",), "what is not on offer does not work"
        ran = box.call(Call.parse(call.text))
        assert ran.ok and ran.text == result.text == said.text
        name = p.data["table"]
        for query in (f"DELETE FROM {name}", f"DROP TABLE {name}", "ATTACH 'x' AS y", "PRAGMA table_list"):
            assert not box.run("sql", json.dumps({"query": query})).ok
        endless = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM c) SELECT COUNT(*) FROM c"
        if number == 0:  # it takes the two seconds that a query may take
            assert not box.run("sql", json.dumps({"query": endless})).ok
        assert box.call(Call.parse(call.text)).text == result.text


def test_schemas_of_the_test_split_are_unseen():
    task = TASKS["tables"]

    def schemas(split):
        return {p.key.partition(" | ")[0] for p in problems(task, split, 150)}

    assert schemas("train").isdisjoint(schemas("test"))
    practised = {w for s in schemas("train") for w in s.split()}
    assert all(set(s.split()) - practised for s in schemas(TEMPLATES)), "a new word in each"
    assert {shape.level for shape in tables.SHAPES} == {1, 2, 3}


def test_programs_print_what_our_solver_found(capsys):
    seen = set()
    for p in problems(TASKS["programs"], "train", 30):
        exec(p.data["code"], {})
        assert capsys.readouterr().out.strip() == p.answer
        seen.add(p.data["kind"])
    assert len(seen) == len(programs.KINDS)


def test_the_right_tool_or_none():
    nones = 0
    for p, trace in traced(TASKS["tool_choice"], 300):
        assert p.answer in (*p.tools, "none")
        assert (p.answer == p.data["wanted"]) == (p.data["wanted"] in (*p.tools, "none"))
        first, *more = trace[0].text.split(": ")
        assert first == p.data["wanted"]
        if first != "none":
            seen, there = more[0].split(", "), more[1] == "yes"
            assert tuple(seen) == p.tools[: len(seen)] and there == (first in p.tools)
            assert seen[-1] == first if there else len(seen) == len(p.tools)
        nones += p.answer == "none"
    assert 60 < nones < 180
    for tool in tool_choice.requests()["tools"]:
        assert tool_choice.phrasings(tool, False)


# ---- GSM8K
ROW = {
    "question": "Mia buys 3 boxes with 14 pens each and gives 20 percent of them away. How many are left?",
    "answer": "3*14=<<3*14=42>>42 ... <<42*20/100=8.4>> ... <<42-8.4=33.6>>\n#### 33.6",
}
GOOD = {
    "question": "Mia buys 3 boxes with 14 pens each. She gives 5 pens to Ben. How many pens are left?",
    "answer": "She has 3*14=<<3*14=42>>42 pens. Then 42-5=<<42-5=37>>37.\n#### 37",
}


def test_gsm8k_numbers_are_drawn_anew_and_worked_out_again(tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps(GOOD) + "\n" + json.dumps(ROW) + "\n")
    task = gsm8k.Resampled()
    assert task.read([tmp_path])["templates"] >= 1
    (split,) = {split for level, split in task.pools if level == 1}
    rng, seen = np.random.default_rng(0), set()
    for _ in range(40):
        p = task.problem(rng, 1, split)
        a, b, c = map(int, re.findall(r"\d+", p.prompt))
        assert int(p.answer) == a * b - c > 0
        assert p.prompt.replace(str(b), "14").endswith("How many pens are left?")
        box = Toolbox([CALCULATOR])
        trace = task.trace(p, rng)
        for call, result in zip(trace[:-1:2], trace[1::2], strict=True):
            assert box.call(Call.parse(call.text)).text == result.text
        assert task.verify(p, f"${p.answer}.").lenient and task.verify(p, p.answer).strict
        seen.add((a, b, c))
    assert len(seen) > 20


@pytest.mark.parametrize(
    "question, answer, why",
    [
        ("Ann has 5 cats and 5 dogs.", "<<5+5=10>>\n#### 10", "twice"),
        ("Ann has 5 cats and 7 dogs.", "<<5+7=13>>\n#### 13", "true"),
        ("Ann has 5 cats and 7 dogs.", "<<5+7=12>>\n#### 11", "the answer"),
        ("Ann has 5 cats and 7 dogs and 9 cows.", "<<5+7=12>>\n#### 12", "used"),
        ("Ann has 5 cats.", "<<5+13=18>>\n#### 18", "nowhere"),
        ("Ann has 5 cats, two dogs.", "<<5*3=15>>\n#### 15", "nowhere"),
        ("Ann has 5 cats and half of 1/2.", "<<5*3=15>>\n#### 15", "fractions"),
        ("Ann works 5 hours each weeknight.", "<<5*5=25>>\n#### 25", "two things"),
    ],
)
def test_gsm8k_rows_that_cannot_be_trusted(question, answer, why):
    template, reason = gsm8k.parse(question, answer)
    assert template is None and why in reason


def test_gsm8k_without_rows_says_what_is_missing(tmp_path):
    with pytest.raises(InputNotFoundError, match="GSM8K"):
        gsm8k.Resampled().problem(np.random.default_rng(0), 1, "train")
    with pytest.raises(InputNotFoundError):
        gsm8k.Resampled().read([tmp_path])
    (tmp_path / "train.jsonl").write_text('{"question": 3')
    with pytest.raises(BadFileError):
        gsm8k.Resampled().read([tmp_path])


# ---- practice
def test_families_are_drawn_by_name():
    rng = np.random.default_rng(0)
    shares = {"stories_te": 0.3, "tables": 0.3, "expressions": 0.4}
    offered = Counter()
    for _ in range(40):
        transcript = draw(rng, CHAT, shares)
        assert all(map(CHAT.is_closed, transcript.spans)) and transcript.spans[-1].kind == Kind.SAY
        for span in transcript.spans:
            if span.kind == Kind.CALL:
                name = CHAT.text(span).partition(" ")[0]
                assert name in CHAT.text(transcript.spans[0])
                offered[name] += 1
    assert offered["sql"] > 3 and offered["calculator"] > 5


def test_unknown_families_are_refused_and_new_templates_are_exams_only():
    with pytest.raises(RecipeValueError, match="storys"):
        check_families(["storys"], "sft.families")
    assert {"stories_de_templates", "tables_templates", "tool_choice_templates"} <= set(EXAMS) - set(TASKS)
    exam = EXAMS["stories_de_templates"]
    p = exam.problem(np.random.default_rng(0), 2, "test")
    assert p.family == "stories_de_templates" and exam.verify(p, p.answer).strict
    with pytest.raises(AssertionError):
        exam.problem(np.random.default_rng(0), 2, "train")


def test_the_tokenizer_sees_the_words_of_further_families_only():
    class Shares:
        def __init__(self, *names):
            self.names = names

        def shares(self):
            return dict.fromkeys(self.names, 1.0)

    plain = list(practice_texts(1))
    assert list(tokenizer_texts(Shares("arithmetic", "dialogue"), 1)) == plain, "the demo's are unchanged"
    more = list(tokenizer_texts(Shares("arithmetic", "stories_te"), 1))
    assert more[: len(plain)] == plain and any("పండ్లు" in text for text in more[len(plain) :])
