"""Small test sets in the forms of the official ones. All of it is made up for these tests."""

from __future__ import annotations

import csv
import json
import lzma
from pathlib import Path
from typing import Any

N = 12
SUBJECTS = ("fence_building", "pond_lore")
BBH_TASKS = ("lamp_logic", "stone_sorting")


def lines(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"
    if path.suffix == ".xz":
        path.write_bytes(lzma.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")


def gsm8k(first: int) -> list[dict[str, str]]:
    return [
        {
            "question": f"Ola has {i} jars and buys {i + 1} more. How many jars has Ola?",
            "answer": f"Ola has {i}+{i + 1}=<<{i}+{i + 1}={2 * i + 1}>>{2 * i + 1} jars.\n#### {2 * i + 1}",
        }
        for i in range(first, first + N)
    ]


def gsm8k_long() -> list[dict[str, str]]:
    """Problems of five steps, each with words of its own: of their templates some belong to every split."""
    names = ("Ola", "Mia", "Tom", "Ida", "Kofi", "Lena", "Raju", "Sita", "Emil", "Nora")
    places = (
        "pond",
        "barn",
        "mill",
        "lake",
        "wood",
        "farm",
        "yard",
        "hill",
        "beach",
        "garden",
        "bog",
        "field",
    )
    birds = ("geese", "hens", "ducks", "swans", "crows", "doves")
    numbers = (31, 44, 83, 118, 207, 301)
    steps, total = [], numbers[0]
    for number in numbers[1:]:
        steps.append(f"<<{total}+{number}={total + number}>>")
        total += number
    rows = []
    for name in names:
        for place in places:
            counted = ", ".join(f"{n} {bird}" for n, bird in zip(numbers, birds, strict=True))
            asked = f"{name} counts {counted} at the {place}. How many birds does {name} count?"
            rows.append({"question": asked, "answer": f"{' '.join(steps)}\n#### {total}"})
    return rows


def mmlu(each: int) -> list[dict[str, Any]]:
    return [
        {
            "subject": subject,
            "question": f"Which is number {i} of {subject}?",
            "choices": [f"thing {i}", f"thing {i + 1}", f"thing {i + 2}", f"thing {i + 3}"],
            "answer": "ABCD"[i % 4],
        }
        for subject in SUBJECTS
        for i in range(each)
    ]


def instructions(name: str, options: int) -> list[dict[str, str]]:
    word = {"piqa": "Solution", "winogrande": "Option"}.get(name, "Answer")
    rows = []
    for i in range(N):
        asked = (
            f"A tool for task {i} is called" if name != "winogrande" else f"Lia paid Rob as _ sold {i} eggs."
        )
        ways = " ".join(f"{word}{j + 1}: way {'abcde'[j]} of {i}" for j in range(options))
        form = "/".join(f"{word.lower()}{j + 1}" for j in range(options))
        instruction = f"Please choose the correct one: {asked}\n\n{ways}\n\nAnswer format: {form}"
        rows.append({"task": name, "instruction": instruction, "answer": f"{word.lower()}{i % options + 1}"})
    return rows


def boolq() -> list[dict[str, str]]:
    begin = "Please answer the following question with true or false, question: "
    return [
        {
            "task": "boolq",
            "instruction": f"{begin}is {i} a round number?\n\nAnswer format: true/false",
            "answer": ("false", "true")[i % 2],
        }
        for i in range(N)
    ]


def boolq_official() -> list[dict[str, Any]]:
    """The rows of the public dev.jsonl, whose questions have no question mark."""
    return [
        {
            "question": f"is {i} a round number",
            "title": f"Number {i}",
            "passage": f"The number {i} is {'' if i % 2 else 'not '}round.",
            "answer": bool(i % 2),
        }
        for i in range(N)
    ]


def programs() -> list[dict[str, str]]:
    return [
        {
            "task_id": f"Made/{i}",
            "prompt": f'def add_{i}(x):\n    """Adds {i} to x."""\n',
            "entry_point": f"add_{i} " if i == 1 else f"add_{i}",
            "canonical_solution": f"    return x + {i}\n",
            "test": f"def check(f):\n    assert f(2) == {i + 2}\n    assert not f(-{i})\n",
        }
        for i in range(4)
    ]


def bbh_prompt(task: str) -> str:
    worked = "\n\n".join(
        f"Q: Is {task} case {i} lit?\nA: Let's think step by step.\nCase {i} is lit. So the answer is Yes."
        for i in range(3)
    )
    return f"a line that is not for training\n-----\nTell what {task} says.\n\n{worked}"


def xquad(word: str) -> dict[str, Any]:
    asked = [
        {
            "id": f"{word}-{i}",
            "question": f"How many {word} are in barn {i}?",
            "answers": [{"answer_start": 0, "text": f"{i} {word}"}],
        }
        for i in range(4)
    ]
    return {"data": [{"paragraphs": [{"context": f"Barns hold {word}, as many as they are.", "qas": asked}]}]}


def write(folder: Path) -> Path:
    """All sets, in the layout of docs/evaluation.md."""
    lines(folder / "gsm8k/test.jsonl", gsm8k(1))
    lines(folder / "gsm8k/train.jsonl.xz", gsm8k(50))
    (folder / "mgsm").mkdir()
    for code, text in (("en", "Mia has"), ("de", "Mia hat"), ("te", "మియా వద్ద")):
        rows = [f"{text} {i} + {i}?\t{2 * i}" for i in range(1, 7)]
        (folder / f"mgsm/mgsm_{code}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    lines(folder / "mmlu/mmlu_test.jsonl.xz", mmlu(N))
    lines(folder / "mmlu/mmlu_dev.jsonl.xz", mmlu(5))
    for name, options in (("arc-easy", 4), ("arc-challenge", 5), ("openbookqa", 4), ("siqa", 3), ("piqa", 2)):
        lines(folder / f"commonsense/{name}_test.jsonl", instructions(name, options))
    lines(folder / "commonsense/winogrande_test.jsonl", instructions("winogrande", 2))
    lines(folder / "commonsense/boolq_test.jsonl", boolq())
    lines(folder / "humaneval/HumanEval.jsonl", programs())
    lines(folder / "mbpp/mbpp_sanitized_for_code_generation.jsonl", programs())
    questions = [
        {"question": f"who keeps pond {i}", "answer": [f"The Otter {i}", f"Otter {i}"]} for i in range(N)
    ]
    lines(folder / "nq-open/NQ-open.dev.jsonl", questions)
    (folder / "truthfulqa").mkdir()
    with open(folder / "truthfulqa/TruthfulQA.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(
            ["Type", "Category", "Question", "Best Answer", "Correct Answers", "Incorrect Answers", "Source"]
        )
        for i in range(N):
            right, wrong = f"Moss, kind {i}; Moss grows", f"Gold; Silver {i}; Tin"
            table.writerow(["Made", "Up", f"What grows on stone {i}?", f"Moss, kind {i}", right, wrong, "-"])
    lines(
        folder / "bbh/bbh.jsonl.xz",
        [
            {"task": task, "input": f"Is {task} case {i} lit?", "target": ("Yes", "No")[i % 2]}
            for task in BBH_TASKS
            for i in range(4)
        ],
    )
    (folder / "bbh/cot_prompts.json").write_text(json.dumps({task: bbh_prompt(task) for task in BBH_TASKS}))
    (folder / "xquad").mkdir()
    for code, word in (("en", "geese"), ("de", "Gänse")):
        (folder / f"xquad/xquad.{code}.json").write_text(json.dumps(xquad(word)), encoding="utf-8")
    (folder / "wikitext2").mkdir()
    text = "".join(f" \n = Pond {i} = \n \n The pond of {i} otters is <unk> .\n" for i in range(4))
    (folder / "wikitext2/test.txt").write_text(text, encoding="utf-8")
    return folder
