"""The official sets as a table: where each one lies, how it is read, shown and scored, and after whom.

The project ships none of them; `--data` names a folder in the layout of docs/evaluation.md. A set that is
new here is a row of OFFICIAL and a function in sets.py.

`headline` of a choice is the rule that its score goes by (see scoring.RULES). LLaMA (Touvron et al. 2023,
section 3) compares ways to go on per character, and OpenBookQA and BoolQ against the context "Answer:", as
GPT-3 does (Brown et al. 2020, section 2.4).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ayllu.errors import BadFileError, InputNotFoundError, NotUtf8Error, UsageError
from ayllu.evals import answers, sets
from ayllu.evals.items import Choice, Item, Shots
from ayllu.evals.rows import find_file, read_rows
from ayllu.text.readers import PLAIN, corpus_files

CODE = ("\nclass ", "\ndef ", "\n#", "\n@", "\nif ", "\nprint(", "\nassert ", "\n```")  # Chen et al. 2021 and
# what else begins a new statement at the margin


@dataclass(frozen=True)
class Official:
    """One set. `form`: choice, mass (TruthfulQA's MC2), answer, program or bits. `shots`: worked examples for
    a model without a chat format, drawn from `examples` (a file, or "" for rows that are then left out).
    `better`: a file of the same set with more in it, taken instead of `file` where it is there."""

    name: str
    title: str
    file: str
    read: Callable[..., Any]
    form: str
    protocol: str
    source: str
    layout: str = "rows"
    shots: int = 0
    examples: str = ""
    header: str = ""  # before the examples; {group} is the group's name
    headline: str = "character"
    judge: Callable[..., answers.Judged] = answers.judge_number
    max_tokens: int = 256
    stop: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    asks: str = ""  # behind the question, for a conversing model that wasn't trained here: the strict form
    beside: tuple[tuple[str, float], ...] = ()  # published scores, in percent
    better: str = ""


_ZERO_SHOT = "no examples; likelihood of each way to go on, {rule}; for a model that converses the letter"
_PER_CHARACTER = _ZERO_SHOT.format(rule="per character")
_ANSWER = _ZERO_SHOT.format(rule='against the context "Answer:"')
_LLAMA = "Touvron et al. 2023, section 3.1"
_SOLVED = (
    "solutions from the train split as examples, calculator marks removed (not lm-eval's protocol, which "
    "shows <<48/2=24>>); the number after ####"
)
_NUMBER = "Give your reasoning, and end with a line that has #### and the number alone."
_WORDS = "Answer with a few words, without a sentence around them."
_TELLS = ("\nQuestion:", "\n\nQ:")
_GSM8K = (("LLaMA 7B", 11.0), ("nanochat d20 SFT", 4.55), ("nanochat d20 RL", 7.58))

_ROWS = (
    Official(
        "gsm8k", "GSM8K", "gsm8k/test.jsonl", sets.gsm8k, "answer", _SOLVED,
        "Cobbe et al. 2021",
        shots=5, examples="gsm8k/train.jsonl", stop=_TELLS, tools=("calculator",), max_tokens=400,
        asks=_NUMBER, beside=_GSM8K,
    ),
    *(
        Official(
            f"mgsm_{code}", f"MGSM ({language})", f"mgsm/mgsm_{code}.tsv", sets.mgsm, "answer",
            "English solutions from GSM8K's train split as examples (EN-CoT), calculator marks removed; the "
            "number after ####",
            "Shi et al. 2022", shots=5, examples="gsm8k/train.jsonl", stop=_TELLS,
            judge=answers.judge_number_de if code == "de" else answers.judge_number,
            tools=("calculator",), max_tokens=400, asks=_NUMBER,
        )
        for code, language in (("en", "English"), ("de", "German"), ("te", "Telugu"))
    ),
    Official(
        "mmlu", "MMLU", "mmlu/mmlu_test.jsonl", sets.mmlu, "choice",
        "five examples of the subject; likelihood of the letter",
        "Hendrycks et al. 2021", shots=5, examples="mmlu/mmlu_dev.jsonl", headline="raw",
        header="The following are multiple choice questions (with answers) about {group}.",
        beside=(("LLaMA 7B", 35.1),),
    ),
    Official(
        "arc_easy", "ARC, easy", "commonsense/arc-easy_test.jsonl", sets.arc, "choice", _PER_CHARACTER,
        f"Clark et al. 2018; {_LLAMA}", beside=(("LLaMA 7B", 72.8),),
    ),
    Official(
        "arc_challenge", "ARC, challenge", "commonsense/arc-challenge_test.jsonl", sets.arc, "choice",
        _PER_CHARACTER, f"Clark et al. 2018; {_LLAMA}", beside=(("LLaMA 7B", 47.6),),
    ),
    Official(
        "piqa", "PIQA", "commonsense/piqa_test.jsonl", sets.piqa, "choice", _PER_CHARACTER,
        f"Bisk et al. 2020; {_LLAMA}", beside=(("LLaMA 7B", 79.8),),
    ),
    Official(
        "siqa", "SIQA", "commonsense/siqa_test.jsonl", sets.siqa, "choice", _PER_CHARACTER,
        f"Sap et al. 2019; {_LLAMA}", beside=(("LLaMA 7B", 48.9),),
    ),
    Official(
        "boolq", "BoolQ", "commonsense/boolq_test.jsonl", sets.boolq, "choice",
        f"{_ANSWER}; the passage before the question", f"Clark et al. 2019; {_LLAMA}", headline="answer",
        beside=(("LLaMA 7B", 76.5),), better="boolq/dev.jsonl",
    ),
    Official(
        "winogrande", "WinoGrande", "commonsense/winogrande_test.jsonl", sets.winogrande, "choice",
        "no examples; likelihood of what follows the blank after each filling",
        "Sakaguchi et al. 2020; Trinh and Le 2018", headline="raw", beside=(("LLaMA 7B", 70.1),),
    ),
    Official(
        "openbookqa", "OpenBookQA", "commonsense/openbookqa_test.jsonl", sets.openbookqa, "choice", _ANSWER,
        f"Mihaylov et al. 2018; {_LLAMA}", headline="answer", beside=(("LLaMA 7B", 57.2),),
    ),
    Official(
        "truthfulqa_mc1", "TruthfulQA MC1", "truthfulqa/TruthfulQA.csv", sets.truthfulqa_mc1, "choice",
        "no examples and no preamble; likelihood of the best answer and the incorrect ones, as a whole",
        "Lin et al. 2021, section 3.3", layout="header", headline="raw",
    ),
    Official(
        "truthfulqa_mc2", "TruthfulQA MC2", "truthfulqa/TruthfulQA.csv", sets.truthfulqa_mc2, "mass",
        "no examples and no preamble; share of probability of the correct answers among all",
        "Lin et al. 2021, section 3.3", layout="header", headline="raw",
    ),
    Official(
        "nq_open", "NQ-open", "nq-open/NQ-open.dev.jsonl", sets.nq_open, "answer",
        "other rows of the set as examples (left out of the score); the first line, as words",
        "Kwiatkowski et al. 2019; Lee et al. 2019; Touvron et al. 2023, section 3.2",
        shots=5, header="Answer these questions:", judge=answers.judge_words, max_tokens=32, asks=_WORDS,
        stop=("\n",), beside=(("LLaMA 7B, 5-shot", 22.0),),
    ),
    Official(
        "bbh", "BIG-Bench Hard", "bbh/bbh.jsonl", sets.bbh, "answer",
        "the set's own three worked examples with reasoning; what follows \"the answer is\"",
        "Suzgun et al. 2022", shots=3, examples="bbh/cot_prompts.json", judge=answers.judge_closing,
        max_tokens=512, stop=("\n\nQ:",),
        asks='Give your reasoning, and end with "the answer is" and the answer.',
    ),
    *(
        Official(
            f"xquad_{code}", f"XQuAD ({language})", f"xquad/xquad.{code}.json", sets.xquad, "answer",
            "no examples; paragraph and question; the first line, as words",
            "Artetxe et al. 2020; GPT-3's form for SQuAD (Brown et al. 2020)", layout="json",
            judge=answers.judge_words, max_tokens=48, stop=("\n",), asks=_WORDS,
        )
        for code, language in (("en", "English"), ("de", "German"))
    ),
    Official(
        "humaneval", "HumanEval", "humaneval/HumanEval.jsonl", sets.program, "program",
        "no examples; the function is gone on with and its tests are run in the sandbox",
        "Chen et al. 2021", max_tokens=512, stop=CODE, beside=(("LLaMA 7B", 10.5),),
    ),
    Official(
        "mbpp", "MBPP (sanitised)", "mbpp/mbpp_sanitized_for_code_generation.jsonl", sets.program, "program",
        "no examples; the head of the function with its description is gone on with; published scores show "
        "three examples and tests instead", "Austin et al. 2021; form of Chen et al. 2022 (CodeT)",
        max_tokens=512, stop=CODE,
    ),
    Official(
        "wikitext2", "WikiText-2 (test)", "wikitext2/test.txt", sets.passage, "bits",
        "bits per byte of the articles as they are (word-tokenised, with <unk>), each from its beginning",
        "Merity et al. 2016", layout="text",
    ),
)  # fmt: skip
OFFICIAL: dict[str, Official] = {task.name: task for task in _ROWS}
GROUPS: dict[str, tuple[str, ...]] = {
    "mgsm": ("mgsm_en", "mgsm_de", "mgsm_te"),
    "arc": ("arc_easy", "arc_challenge"),
    "truthfulqa": ("truthfulqa_mc1", "truthfulqa_mc2"),
    "xquad": ("xquad_en", "xquad_de"),
    "commonsense": ("boolq", "piqa", "siqa", "winogrande", "arc_easy", "arc_challenge", "openbookqa"),
    "official": tuple(OFFICIAL),
}
_NO_PASSAGE = f"{_ANSWER}; the passage is absent, so that published scores are another task's"
_DAMAGE = (KeyError, ValueError, TypeError, IndexError, AttributeError)


def as_read(task: Official, rows: Sequence[Item]) -> Official:
    """The task as its rows have it: BoolQ without its passages is another one, and says so."""
    if task.read is not sets.boolq or not any(isinstance(r, Choice) and sets.lacks_passage(r) for r in rows):
        return task
    return replace(task, title="BoolQ (no passage)", protocol=_NO_PASSAGE, beside=())


def text_task(path: str) -> Official:
    """Bits per byte of a text file, or of the texts in a folder: `text:PATH`."""
    return Official(
        f"text:{path}", f"text {Path(path).name}", path, sets.passage, "bits",
        "bits per byte of the text, read from its beginning", "", layout="file",
    )  # fmt: skip


def files_of(task: Official, data: Path, *, shots: int) -> list[Path]:
    """What is read for a task. InputNotFoundError for what is missing."""
    if task.layout == "file":
        return [file for _, file in _texts(task.file, data)]
    found = [_file_of(task, data)]
    if task.examples and shots:
        spared = ", or give --shots 0, which is what a model that converses gets unless told"
        found.append(find_file(data, task.examples, instead=spared))
    return found


def _file_of(task: Official, data: Path) -> Path:
    if not task.better:
        return find_file(data, task.file)
    with contextlib.suppress(InputNotFoundError):
        return find_file(data, task.better)
    return find_file(data, task.file, instead=f", or the official file as {task.better}")


def _texts(path: str, data: Path) -> list[tuple[str, Path]]:
    """The name and the file of each text at `path`, which is looked for here and then in `data`: a file of
    any kind, or the .txt and .md files of a folder but for those that describe it (README.md, LICENCE.txt).
    """
    found = next((place for place in (Path(path), data / path) if path.strip() and place.exists()), None)
    if found is None:
        looked = "" if data == Path() or Path(path).is_absolute() else f" and in {data}"
        raise InputNotFoundError(
            f"there is no file or folder {path!r}",
            why=f"it was looked for in {Path.cwd()}{looked}",
            fix="name a text file or a folder of texts, text:PATH, as seen from here or from --data",
        )
    if found.is_file():
        return [(found.name, found)]
    files = [file for file in corpus_files(found) if file.name.endswith(PLAIN)]
    if not files:
        raise InputNotFoundError(
            f"the folder {found} holds no texts", fix=f"put {' or '.join(PLAIN)} files there, or name a file"
        )
    return [(file.relative_to(found).as_posix(), file) for file in files]


def load(task: Official, data: Path) -> list[Item]:
    """All rows. BadFileError with file and line for one that isn't what the set has; NotUtf8Error."""
    if task.layout == "file":
        return _passages(task, data)
    file, found = _file_of(task, data), list[Item]()
    if task.layout == "text":
        texts = sets.articles([line for _, line in read_rows(file)])
        found = [sets.passage(f"{file.name}: article {i}", text) for i, text in enumerate(texts, 1)]
    elif task.layout == "json":
        found = [item for _, item in _read(task, file, 1, lambda value: task.read(value), _only(file))]
    else:
        found = _rows(task, file)
    if not found:
        raise BadFileError(f"{file} holds no rows", fix="copy the file again")
    return found


def _passages(task: Official, data: Path) -> list[Item]:
    """The texts at a path, empty ones left out."""
    found: list[Item] = []
    for name, file in _texts(task.file, data):
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise NotUtf8Error(f"{file} is not UTF-8 text", why=str(error)) from error
        if text:
            found.append(sets.passage(name, text))
    if not found:
        raise BadFileError(f"there is no text in {task.file}: it is empty", fix="name another file or folder")
    return found


def _only(file: Path) -> Any:
    return next(value for _, value in read_rows(file))


def _read(task: Official, file: Path, line: int, read: Callable[..., Any], *values: Any) -> Any:
    try:
        return read(*values)
    except _DAMAGE as error:
        raise BadFileError(
            f"{file}, line {line}: this is no row of {task.title}",
            why=f"{type(error).__name__}: {error}"[:200],
            fix="copy the file again",
        ) from error


def _rows(task: Official, file: Path) -> list[Item]:
    names: list[str] | None = None
    found = []
    for line, value in read_rows(file):
        if task.layout == "header" and names is None:
            names = list(value)
            continue
        if names is not None:
            value = _read(task, file, line, _named, names, value)
        found.append(_read(task, file, line, task.read, f"{file.name}:{line}", value))
    return found


def _named(names: list[str], cells: list[str]) -> dict[str, str]:
    return dict(zip(names, cells, strict=True))


def with_shots(
    task: Official, data: Path, items: list[Item], shots: int, seed: int
) -> tuple[list[Item], dict[str, Shots]]:
    """The rows that are scored, and what stands before those of each group. The same for the same seed.

    Examples come from a file of their own (of the same group where rows have one, in the file's order), or
    from the set itself, and are left out of the score then.
    """
    groups = dict.fromkeys(item.group for item in items)
    if not shots:
        return items, {group: _empty(task, group) for group in groups}
    if task.examples.endswith(".json"):
        return items, _prompts(task, find_file(data, task.examples), groups, shots)
    if task.examples:
        read = sets.gsm8k if task.read is sets.mgsm else task.read
        pool = _rows(replace(task, read=read), find_file(data, task.examples))
    else:
        pool = items
    grouped = any(groups)
    if not grouped:
        rng = np.random.default_rng([seed, 11, *task.name.encode()])
        if shots > len(pool) - (not task.examples):  # a row at least has to be left
            raise UsageError(f"--shots {shots} is more than {task.title} has", fix="give fewer")
        pool = [pool[i] for i in rng.choice(len(pool), shots, replace=False)]
    found = {}
    for group in groups:
        mine = [item for item in pool if item.group == group] if grouped else pool
        if len(mine) < shots:
            raise UsageError(
                f"--shots {shots} is more than the {len(mine)} examples of {task.title} {group}".rstrip(),
                fix="give fewer",
            )
        examples = tuple(sets.example_of(item) for item in mine[:shots])
        found[group] = replace(_empty(task, group), examples=examples)
    taken = set() if task.examples else {item.place for item in pool}
    return [item for item in items if item.place not in taken], found


def _empty(task: Official, group: str) -> Shots:
    return Shots(task.header.format(group=group.replace("_", " ")))


def _prompts(task: Official, file: Path, groups: dict[str, None], shots: int) -> dict[str, Shots]:
    prompts = _read(task, file, 1, sets.bbh_prompts, _only(file))
    found = {}
    for group in groups:
        if group not in prompts or len(prompts[group].examples) < shots:
            raise BadFileError(
                f"{file} has fewer than {shots} examples of {group}",
                fix="give fewer --shots, or copy the file again",
            )
        found[group] = replace(prompts[group], examples=prompts[group].examples[:shots])
    return found
