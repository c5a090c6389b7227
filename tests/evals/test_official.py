"""The sets as they are read: rows, examples, and what is said of damaged or missing files."""

import json
import lzma

import pytest
from invented import BBH_TASKS, boolq_official, lines, write
from stand_ins import oracle

from ayllu.errors import BadFileError, InputNotFoundError, UsageError
from ayllu.evals.examine import ExamSettings, examine
from ayllu.evals.official import GROUPS, OFFICIAL, load, with_shots
from ayllu.evals.rows import find_file, read_rows
from ayllu.evals.scoring import RULES
from ayllu.progress import Progress

BOOLQ = "commonsense/boolq_test.jsonl"


def first(name, data):
    return load(OFFICIAL[name], data)[0]


def test_every_set_is_read_and_names_its_places(data):
    for task in OFFICIAL.values():
        rows = load(task, data)
        assert len({row.place for row in rows}) == len(rows) > 1
        assert task.headline in RULES and task.protocol and task.source
    assert all(name in OFFICIAL for members in GROUPS.values() for name in members)


def test_a_row_as_a_text_and_as_a_turn(data):
    row = first("gsm8k", data)
    assert row.text == "Question: Ola has 1 jars and buys 2 more. How many jars has Ola?\nAnswer:"
    assert row.worked == " Ola has 1+2=3 jars.\n#### 3" and row.answers == ("3",)
    assert row.question == "Ola has 1 jars and buys 2 more. How many jars has Ola?"
    row = first("winogrande", data)
    assert row.pairs[1] == ("Lia paid Rob as way b of 0", " sold 0 eggs.") and row.gold == (0,)
    row = first("arc_easy", data)
    assert row.pairs[0] == ("Question: A tool for task 0 is called\nAnswer:", " way a of 0")
    row = first("boolq", data)
    assert [way for _, way in row.pairs] == [" no", " yes"] and row.gold == (0,)
    row = first("mmlu", data)
    assert [way for _, way in row.pairs] == [" A", " B", " C", " D"]
    assert row.pairs[0][0].endswith("\nD. thing 3\nAnswer:") and row.group == "fence_building"
    row = first("truthfulqa_mc2", data)
    assert {row.options[i] for i in row.gold} == {"Moss, kind 0", "Moss grows"} and len(row.options) == 5
    row = first("truthfulqa_mc1", data)
    assert sorted(row.options) == ["Gold", "Moss, kind 0", "Silver 0", "Tin"]
    assert [row.options[i] for i in row.gold] == ["Moss, kind 0"]
    row = first("xquad_de", data)
    assert row.text == "Barns hold Gänse, as many as they are.\n\nQ: How many Gänse are in barn 0?\n\nA:"
    assert load(OFFICIAL["mbpp"], data)[1].entry == "add_1"
    assert load(OFFICIAL["wikitext2"], data)[0].text.startswith(" \n")


def test_protocols_say_what_is_left_out_of_solutions(data):
    """lm-eval shows GSM8K's solutions with their calculator marks."""
    for task in (OFFICIAL["gsm8k"], OFFICIAL["mgsm_de"]):
        _, shots = with_shots(task, data, load(task, data), 5, 0)
        before = shots[""].before("")
        assert before.count("####") == 5 and "<<" not in before
        assert "calculator marks removed" in task.protocol
    assert "not lm-eval's" in OFFICIAL["gsm8k"].protocol and "lm-eval" not in OFFICIAL["gsm8k"].source


# ---- BoolQ, with its passages and without
@pytest.fixture(params=["boolq/dev.jsonl", "boolq/dev.jsonl.xz", "commonsense/boolq_test.jsonl"])
def with_passages(request, data, tmp_path):
    """The official rows at each place where they may stand; at the first two beside the others."""
    folder = tmp_path / "sets"
    lines(folder / BOOLQ, [json.loads(row) for row in (data / BOOLQ).read_text().splitlines()])
    lines(folder / request.param, boolq_official())
    return folder


def test_the_passage_stands_before_the_question(with_passages):
    rows = load(OFFICIAL["boolq"], with_passages)
    assert len(rows) == len(boolq_official()) and [row.gold for row in rows[:2]] == [(0,), (1,)]
    context = "The number 1 is round.\nQuestion: is 1 a round number?\nAnswer:"
    assert rows[1].pairs == ((context, " no"), (context, " yes"))
    assert rows[1].question == (
        "The number 1 is round.\n\nis 1 a round number?\nA. no\nB. yes\nAnswer with the letter only."
    )


def examined(folder):
    task = OFFICIAL["boolq"]
    return examine(task, load(task, folder), oracle({}), folder, ExamSettings(), Progress("eval", quiet=True))


def test_a_result_says_whether_there_were_passages(data, with_passages):
    full, bare = examined(with_passages), examined(data)
    assert full["title"] == "BoolQ" and full["beside"] == {"LLaMA 7B": 76.5}
    assert "the passage before the question" in full["protocol"]
    assert bare["title"] == "BoolQ (no passage)" and bare["beside"] == {}, "published scores had passages"
    assert "the passage is absent" in bare["protocol"]


def test_where_boolq_may_stand_is_said(tmp_path):
    with pytest.raises(InputNotFoundError, match=r"boolq_test\.jsonl") as error:
        load(OFFICIAL["boolq"], tmp_path)
    assert "boolq/dev.jsonl" in error.value.fix


# ---- examples
def test_bbh_brings_its_own_examples(data):
    rows, shots = with_shots(OFFICIAL["bbh"], data, load(OFFICIAL["bbh"], data), 2, 0)
    assert set(shots) == set(BBH_TASKS)
    before = shots["lamp_logic"].before(rows[0].text)
    assert before.startswith("Tell what lamp_logic says.\n\nQ: Is lamp_logic case 0 lit?\nA: Let's think")
    assert "not for training" not in before and before.count("So the answer is Yes.") == 2
    assert before.endswith("\n\nQ: Is lamp_logic case 0 lit?\nA: Let's think step by step.")


def test_more_examples_than_there_are(data):
    for name in ("gsm8k", "mmlu", "nq_open"):
        with pytest.raises(UsageError, match="--shots 99"):
            with_shots(OFFICIAL[name], data, load(OFFICIAL[name], data), 99, 0)
    with pytest.raises(BadFileError, match="fewer than 4 examples"):
        with_shots(OFFICIAL["bbh"], data, load(OFFICIAL["bbh"], data), 4, 0)


def test_what_is_missing_is_named_with_what_to_do(tmp_path):
    with pytest.raises(InputNotFoundError, match="no folder") as error:
        load(OFFICIAL["gsm8k"], tmp_path / "nowhere")
    assert "--data" in error.value.fix
    with pytest.raises(InputNotFoundError, match=r"gsm8k/test\.jsonl") as error:
        load(OFFICIAL["gsm8k"], tmp_path)
    assert error.value.exit_code == 4 and "docs/evaluation.md" in error.value.fix


@pytest.mark.parametrize(
    ("name", "file", "row"),
    [
        ("gsm8k", "gsm8k/test.jsonl", '{"question": "How many?", "answer": "no mark"}'),
        ("gsm8k", "gsm8k/test.jsonl", '["a list"]'),
        ("gsm8k", "gsm8k/test.jsonl", '{"question": 5, "answer": "#### 5"}'),
        ("mgsm_te", "mgsm/mgsm_te.tsv", "a question and no number"),
        ("mmlu", "mmlu/mmlu_test.jsonl", '{"subject":"x","question":"?","choices":["a","b"],"answer":"C"}'),
        ("piqa", "commonsense/piqa_test.jsonl", '{"instruction": "Please: go", "answer": "solution1"}'),
        ("arc_easy", "commonsense/arc-easy_test.jsonl", '{"instruction": "no colon", "answer": "answer1"}'),
        ("boolq", "commonsense/boolq_test.jsonl", '{"instruction":"x, question: y?","answer":"maybe"}'),
        ("boolq", BOOLQ, '{"question": "is it", "passage": "It is.", "answer": "true"}'),
        ("boolq", BOOLQ, '{"question": "is it", "passage": " ", "answer": true}'),
        ("nq_open", "nq-open/NQ-open.dev.jsonl", '{"question": "who", "answer": "a text"}'),
        ("truthfulqa_mc1", "truthfulqa/TruthfulQA.csv", "one,cell,too,few"),
        ("bbh", "bbh/bbh.jsonl", '{"task": "x", "input": "y"}'),
        ("humaneval", "humaneval/HumanEval.jsonl", '{"prompt":"x","entry_point":"not a name","test":"t"}'),
        ("humaneval", "humaneval/HumanEval.jsonl", "{broken"),
    ],
)
def test_a_damaged_row_is_named_by_file_and_line(tmp_path, name, file, row):
    write(tmp_path)
    path = tmp_path / file
    packed = path.with_name(path.name + ".xz")
    if packed.exists():
        path.write_bytes(lzma.decompress(packed.read_bytes()))
    good = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([*good[:2], row, *good[2:]]) + "\n", encoding="utf-8")
    with pytest.raises(BadFileError) as error:
        load(OFFICIAL[name], tmp_path)
    assert path.name in error.value.what and "line 3" in str(error.value)


def test_damage_in_whole_files(tmp_path):
    write(tmp_path)
    (tmp_path / "xquad/xquad.en.json").write_text('{"data": [{"paragraphs": [{"qas": []}]}]}')
    with pytest.raises(BadFileError, match="no row of XQuAD"):
        load(OFFICIAL["xquad_en"], tmp_path)
    (tmp_path / "gsm8k/test.jsonl").write_text("")
    with pytest.raises(BadFileError, match="holds no rows"):
        load(OFFICIAL["gsm8k"], tmp_path)
    (tmp_path / "bbh/bbh.jsonl.xz").write_bytes(b"not packed at all")
    with pytest.raises(BadFileError, match="can't be read"):
        load(OFFICIAL["bbh"], tmp_path)
    (tmp_path / "mgsm/mgsm_de.tsv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadFileError, match="can't be read"):
        load(OFFICIAL["mgsm_de"], tmp_path)
    (tmp_path / "bbh/cot_prompts.json").write_text('{"lamp_logic": "no examples"}')
    (tmp_path / "bbh/bbh.jsonl").write_text(json.dumps({"task": "lamp_logic", "input": "x", "target": "y"}))
    with pytest.raises(BadFileError, match="fewer than 3 examples of lamp_logic"):
        with_shots(OFFICIAL["bbh"], tmp_path, load(OFFICIAL["bbh"], tmp_path), 3, 0)


def test_a_file_packed_or_not(data, tmp_path):
    assert find_file(data, "mmlu/mmlu_test.jsonl").suffix == ".xz"
    rows = list(read_rows(data / "mmlu/mmlu_test.jsonl.xz"))
    assert [line for line, _ in rows] == list(range(1, len(rows) + 1))
    (tmp_path / "x.csv").write_text('a,b\n"two\nlines",2\nlast,3\n')
    assert list(read_rows(tmp_path / "x.csv")) == [
        (1, ["a", "b"]),
        (2, ["two\nlines", "2"]),
        (4, ["last", "3"]),
    ]
    (tmp_path / "x.tsv").write_text('"quoted\t5\n\nlast\t6\n\n')
    assert list(read_rows(tmp_path / "x.tsv")) == [(1, ['"quoted', "5"]), (3, ["last", "6"])]
