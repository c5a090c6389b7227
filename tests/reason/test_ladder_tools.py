"""Families that call tools: tables, programs, the choice of a tool; and GSM8K's rows."""

import json
import re

import numpy as np
import pytest
from drawn import problems, traced

from ayllu.errors import BadFileError, InputNotFoundError
from ayllu.reason.practice import (
    TASKS,
    toolbox_of,
)
from ayllu.reason.task import TEMPLATES
from ayllu.reason.tasks import (
    gsm8k,
    programs,
    tables,
    tool_choice,
)
from ayllu.tools.calculator import CALCULATOR
from ayllu.tools.tool import Call, Toolbox


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


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_fifth_of_the_tools_is_missing_at_every_level(level):
    rng, there, python = np.random.default_rng(level), [], set()
    for _ in range(1500):
        p = TASKS["tool_choice"].problem(rng, level, "train")
        wanted, (low, high) = p.data["wanted"], tool_choice.OFFERED[level - 1]
        assert len(set(p.tools)) == len(p.tools) and low <= len(p.tools) + (wanted not in p.tools) <= high + 1
        if wanted != "none":
            there.append(wanted in p.tools)
        if wanted in ("calculator", "clock") and wanted not in p.tools:
            python.add((wanted, "python" in p.tools))
    assert 0.76 < sum(there) / len(there) < 0.84
    assert python == {("calculator", False), ("clock", False)}, "a program would do as well"


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
        ("A cow has 4 legs. Ann has 9.", "<<4*9=36>>\n#### 36", "a fact"),
        ("There are 16 ounces in a pound. Ann has 9.", "<<16*9=144>>\n#### 144", "a fact"),
        ("A pen is $3, a pack of 8 is cheaper: $20.", "<<3*8=24>> <<24-20=4>>\n#### 4", "a bargain"),
        ("Ann ran round a field of 30 by 50 m 2 times.", "<<30*2=60>> <<50*2=100>> <<60+100=160>> "
         "<<160*2=320>>\n#### 320", "a two that is used twice"),
    ],
)  # fmt: skip
def test_gsm8k_rows_that_cannot_be_trusted(question, answer, why):
    template, reason = gsm8k.parse(question, answer)
    assert template is None and why in reason


def variants(tmp_path, question, answer, number=150):
    """Questions drawn from one problem, under a name that only the word `train` makes a training file."""
    (tmp_path / "restraint.jsonl").write_text("no rows")
    (tmp_path / "gsm8k-train.jsonl").write_text(json.dumps({"question": question, "answer": answer}))
    task, rng = gsm8k.Resampled(), np.random.default_rng(0)
    assert task.read([tmp_path]) == {"templates": 1}
    ((level, split),) = task.pools
    return [task.problem(rng, level, split).prompt for _ in range(number)]


def test_gsm8k_new_numbers_stay_possible(tmp_path):
    hours = variants(tmp_path, "A shop is open 15 hours a day, 6 days a week.", "<<15*6=90>>\n#### 90")
    found = [tuple(map(int, re.findall(r"\d+", text))) for text in hours]
    assert len(set(found)) > 30 and all(a <= 24 and b <= 7 for a, b in found)
    taxed = variants(tmp_path, "Of $500 Ann pays 20% tax.", "<<500*20/100=100>>\n#### 100")
    shares = {int(re.search(r"(\d+)%", text)[1]) for text in taxed}
    assert shares == {10, 15, 20, 25, 30, 35, 40}, "near 20, and the rest near 80"
    most = variants(tmp_path, "Of $500 Ann keeps 95%.", "<<500*95/100=475>>\n#### 475")
    assert {re.search(r"(\d+)%", text)[1] for text in most} == {"90", "95"}, "10 is twice what was left"


def test_gsm8k_decimals_are_money_behind_a_dollar_sign_alone(tmp_path):
    texts = variants(tmp_path, "Ann works 6.5 hours for $7.50 each.", "<<6.5*7.5=48.75>>\n#### 48.75")
    assert all(re.search(r"\$\d+\.\d\d each", text) for text in texts)
    assert any(re.search(r"works \d+(\.\d)? hours", text) for text in texts)
    assert not any(re.search(r"works \d+\.\d?0 hours", text) for text in texts)


def test_gsm8k_parts_of_a_whole_are_words_with_a_value(tmp_path):
    question = "Ann has 60 eggs and boils two-thirds of them."
    texts = variants(tmp_path, question, "<<60*2/3=40>>\n#### 40")
    assert all("two-thirds" in text for text in texts) and len(set(texts)) > 10


def test_gsm8k_without_rows_says_what_is_missing(tmp_path):
    with pytest.raises(InputNotFoundError, match="GSM8K"):
        gsm8k.Resampled().problem(np.random.default_rng(0), 1, "train")
    with pytest.raises(InputNotFoundError):
        gsm8k.Resampled().read([tmp_path])
    (tmp_path / "train.jsonl").write_text('{"question": 3')
    with pytest.raises(BadFileError):
        gsm8k.Resampled().read([tmp_path])
