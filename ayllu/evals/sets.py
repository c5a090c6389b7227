"""From a row of an official set to what is asked. One function a set; the forms are those in which public
repositories keep them (docs/evaluation.md names each).

A row that lacks what its set always has raises KeyError, ValueError, TypeError or IndexError here; the
reader turns that into an error that names the file and the line.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Any

from ayllu.evals.items import Choice, Example, Item, Passage, Program, Question, Shots

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ANNOTATION = re.compile(r"<<[^<>]*>>")


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"text was expected, not {value!r}")
    return value


def lettered(question: str, options: tuple[str, ...]) -> str:
    """A question with its options, as it is put to a model that converses."""
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return "\n".join([question, *lines, "Answer with the letter only."])


def _choice(
    place: str, question: str, context: str, options: tuple[str, ...], gold: int, group: str = ""
) -> Choice:
    """One context; its options are ways to go on."""
    if not 0 <= gold < len(options) or len(options) < 2:
        raise ValueError(f"option {gold + 1} of {len(options)} can't be the right one")
    pairs = tuple((context, f" {option}") for option in options)
    return Choice(place, lettered(question, options), group, pairs, options, (gold,))


# ---- numbers
def gsm8k(place: str, row: Any) -> Question:
    """{"question", "answer"}; the answer ends with `#### 72`."""
    question, solution = _text(row["question"]).strip(), _text(row["answer"])
    worked, mark, answer = solution.rpartition("####")
    if not mark or not answer.strip():
        raise ValueError("the answer has no ####")
    shown = f"{_ANNOTATION.sub('', worked).strip()}\n#### {answer.strip()}"
    return Question(place, question, "", f"Question: {question}\nAnswer:", (answer.strip(),), f" {shown}")


def mgsm(place: str, row: Any) -> Question:
    """question TAB number."""
    question, answer = _text(row[0]).strip(), _text(row[1]).strip()
    return Question(place, question, "", f"Question: {question}\nAnswer:", (answer,), f" #### {answer}")


# ---- choices
def mmlu(place: str, row: Any) -> Choice:
    """{"subject", "question", "choices", "answer": "A".."D"}. The letters are the options."""
    options = tuple(str(option).strip() for option in row["choices"])
    gold = LETTERS.index(_text(row["answer"]).strip())
    question = _text(row["question"]).strip()
    lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    context = "\n".join([question, *lines, "Answer:"])
    if not 0 <= gold < len(options):
        raise ValueError(f"the answer {row['answer']!r} is none of {len(options)} choices")
    pairs = tuple((context, f" {letter}") for letter in LETTERS[: len(options)])
    return Choice(place, lettered(question, options), _text(row["subject"]), pairs, options, (gold,))


def _instruction(row: Any, word: str) -> tuple[str, tuple[str, ...], int]:
    """The instruction form: "Please ...: QUESTION\n\nAnswer1: ... Answer2: ...\n\nAnswer format: ..."."""
    asked = _text(row["instruction"]).rpartition("Answer format:")[0]
    parts = re.split(rf"(?:^|\s){word}\d: ?", asked.split(": ", 1)[1])
    options = tuple(part.strip() for part in parts[1:])
    if len(options) < 2 or not all(options):
        raise ValueError(f"no {word}1, {word}2 in the instruction")
    return parts[0].strip(), options, int(_text(row["answer"]).removeprefix(word.lower())) - 1


def arc(place: str, row: Any) -> Choice:
    """ARC, easy and challenge."""
    question, options, gold = _instruction(row, "Answer")
    return _choice(place, question, f"Question: {question}\nAnswer:", options, gold)


def openbookqa(place: str, row: Any) -> Choice:
    """The question's stem is gone on with."""
    question, options, gold = _instruction(row, "Answer")
    return _choice(place, question, question, options, gold)


def siqa(place: str, row: Any) -> Choice:
    """Context and question are one text here."""
    question, options, gold = _instruction(row, "Answer")
    return _choice(place, question, f"Q: {question}\nA:", options, gold)


def piqa(place: str, row: Any) -> Choice:
    """A goal and two solutions."""
    question, options, gold = _instruction(row, "Solution")
    return _choice(place, question, f"Question: {question}\nAnswer:", options, gold)


def boolq(place: str, row: Any) -> Choice:
    """The official form, {"question", "passage", "answer": true}, with the passage before the question; or
    the instruction form, {"instruction": "... question: IS IT SO?", "answer": "true"}, which has none."""
    if "passage" not in row:
        asked = _text(row["instruction"]).partition("question: ")[2].partition("\n\nAnswer format")[0].strip()
        gold = ("false", "true").index(_text(row["answer"]).strip())
        return _choice(place, _text(asked), f"Question: {asked}\nAnswer:", ("no", "yes"), gold)
    if not isinstance(row["answer"], bool):
        raise ValueError(f"the answer {row['answer']!r} is neither true nor false")
    passage, asked = _text(row["passage"]).strip(), _text(row["question"]).strip().rstrip("?") + "?"
    context = f"{passage}\nQuestion: {asked}\nAnswer:"
    return _choice(place, f"{passage}\n\n{asked}", context, ("no", "yes"), int(row["answer"]))


def lacks_passage(item: Choice) -> bool:
    """Whether a row of BoolQ is of the form without the passage."""
    return item.pairs[0][0].startswith("Question: ")


def winogrande(place: str, row: Any) -> Choice:
    """A sentence with a blank. What follows the blank is foretold after each filling (partial evaluation,
    Trinh and Le 2018)."""
    sentence, options, gold = _instruction(row, "Option")
    before, blank, after = sentence.partition("_")
    if not blank or not after.strip() or gold not in (0, 1):
        raise ValueError("no blank _ in the sentence")
    pairs = tuple((before + option, f" {after.strip()}") for option in options)
    question = f"Which fills the blank? {sentence}"
    return Choice(place, lettered(question, options), "", pairs, options, (gold,))


# ---- TruthfulQA
def _truthful(row: Any) -> tuple[str, str, list[str], list[str]]:
    right = [text.strip() for text in row["Correct Answers"].split(";") if text.strip()]
    wrong = [text.strip() for text in row["Incorrect Answers"].split(";") if text.strip()]
    best = _text(row["Best Answer"]).strip()
    if not wrong:
        raise ValueError("no incorrect answers")
    return _text(row["Question"]).strip(), best, right or [best], wrong


def _mixed(question: str, options: Iterable[str]) -> tuple[str, ...]:
    """Each option once, in an order that only depends on the texts: with the right ones first a model that
    likes the letter A would be right."""
    return tuple(
        sorted(set(options), key=lambda option: hashlib.blake2b(f"{question}\n{option}".encode()).digest())
    )


def truthfulqa_mc1(place: str, row: Any) -> Choice:
    """The best answer among the incorrect ones."""
    question, best, _, wrong = _truthful(row)
    options = _mixed(question, (best, *wrong))
    return _choice(place, question, f"Q: {question}\nA:", options, options.index(best))


def truthfulqa_mc2(place: str, row: Any) -> Choice:
    """All correct answers among all incorrect ones."""
    question, best, right, wrong = _truthful(row)
    options = _mixed(question, (best, *right, *wrong))
    made = _choice(place, question, f"Q: {question}\nA:", options, 0)
    gold = tuple(i for i, option in enumerate(options) if option == best or option in right)
    return Choice(made.place, made.question, "", made.pairs, made.options, gold)


# ---- words
def nq_open(place: str, row: Any) -> Question:
    """{"question", "answer": [...]}."""
    question = _text(row["question"]).strip()
    answers = tuple(_text(answer) for answer in row["answer"])
    if not answers or isinstance(row["answer"], str):
        raise ValueError("no list of answers")
    return Question(place, question, "", f"Q: {question}\nA:", answers, f" {answers[0]}")


def bbh(place: str, row: Any) -> Question:
    """{"task", "input", "target"}."""
    question, target = _text(row["input"]).strip(), _text(row["target"]).strip()
    text = f"Q: {question}\nA: Let's think step by step."
    return Question(place, question, _text(row["task"]), text, (target,), f"\nSo the answer is {target}.")


def bbh_prompts(value: Any) -> dict[str, Shots]:
    """{task: canary, "-----", description, "Q: ... A: ..." three times}: the examples of each task."""
    found = {}
    for task, prompt in value.items():
        description, *worked = _text(prompt).partition("-----\n")[2].strip().split("\n\nQ: ")
        examples = []
        for text in worked:
            question, mark, answer = text.partition("\nA: ")
            if not mark:
                raise ValueError(f"{task}: an example without an answer")
            examples.append(Example(f"Q: {text.strip()}", question.strip(), answer.strip()))
        found[task] = Shots(description, tuple(examples))
    return found


def xquad(value: Any) -> list[tuple[str, Question]]:
    """SQuAD's JSON: (where, question), with the paragraph before each question."""
    found = []
    for article in value["data"]:
        for paragraph in article["paragraphs"]:
            context = _text(paragraph["context"]).strip()
            for asked in paragraph["qas"]:
                question = _text(asked["question"]).strip()
                answers = tuple(dict.fromkeys(_text(a["text"]) for a in asked["answers"]))
                text, turn = f"{context}\n\nQ: {question}\n\nA:", f"{context}\n\n{question}"
                where = str(asked["id"])
                item = Question(where, turn, "", text, answers, f" {answers[0]}")
                found.append((where, item))
    return found


# ---- programs and passages
def program(place: str, row: Any) -> Program:
    """{"prompt", "entry_point", "test", "canonical_solution"}: HumanEval, and MBPP in its form."""
    prompt = _text(row["prompt"])
    question = f"Complete this Python function. Answer with the whole function.\n\n{prompt.rstrip()}"
    entry = _text(row["entry_point"]).strip()
    if not entry.isidentifier():
        raise ValueError(f"{entry!r} is no name of a function")
    return Program(place, question, "", prompt, entry, _text(row["test"]), str(row["canonical_solution"]))


def articles(lines: list[str]) -> list[str]:
    """WikiText as a list of articles; each begins with ` = Title = ` after a blank line (the test set has two
    equations that look like that)."""
    heading = re.compile(r"^ = [^=].*[^=] = *$")
    found: list[list[str]] = [[]]
    for line in lines:
        begun = any(before.strip() for before in found[-1])
        if begun and heading.match(line.rstrip("\n")) and not found[-1][-1].strip():
            found.append([])
        found[-1].append(line)
    return ["".join(part) for part in found if part]


def passage(place: str, text: str) -> Passage:
    """A text as it is."""
    return Passage(place, "", "", text)


def example_of(item: Item) -> Example:
    """A row as a worked example."""
    if isinstance(item, Choice):
        return Example(item.text, item.question, LETTERS[item.gold[0]])
    assert isinstance(item, Question), "programs and passages have no examples"
    return Example(item.text + item.worked, item.question, item.worked.strip())
