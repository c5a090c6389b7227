"""GSM8K resampled: the training problems of GSM8K (Cobbe et al. 2021) with other numbers.

Its solutions carry calculator annotations, `<<48/2=24>>`. They are read as a graph: each operand is a
number of the question, a result from before, or a constant (100, 7 ...). A template is kept when this reading
is unambiguous; then new numbers near the old ones are drawn for the question and the graph is worked out
again. Draws with a result that is not positive, or not whole where it was whole, are thrown away.

The rows aren't part of this project: the user gives a folder with `train.jsonl` (or `.jsonl.xz`), and
only files with `train` in their name are read. Number words ("two", "half") keep their value and must be
bound to an operand, otherwise a variant would contradict them. Of the 7,473 training rows some 29 % become
templates.
What noise stays: of 150 variants that were read, four were wrong or contradicted themselves and one had days
of 29 hours (3.3 %, Wilson 1.4 to 7.6). The rules that came of it (facts, bargains, a two that counts twice,
percentages near the old ones, possible rates) were tried on 75 others: one was wrong (1.3 %, 0.2 to 7.2).
"""

from __future__ import annotations

import itertools
import json
import lzma
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from numpy.random import Generator

from ayllu.errors import BadFileError, InputNotFoundError
from ayllu.reason.task import Piece, Problem, Task, Verdict, split_of
from ayllu.reason.tasks.arithmetic import verify_number
from ayllu.reason.transcript import Kind, call_text
from ayllu.tools.calculator import canonical, evaluate
from ayllu.tools.tool import ToolError

FAMILY = "gsm8k_resampled"
MAX_STEPS = 8  # calls of one answer
TRIES = 40  # draws of new numbers; when none fits the problem stays as it was given
_ANNOTATION = re.compile(r"<<([^<>=]+)=([^<>=]+)>>")
_NUMBER = re.compile(r"(?<![\w.,/:])(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(?![\w/:]|\.\d|,\d)")
_OPERAND = re.compile(r"\d+(?:\.\d+)?|\.\d+")
_UNREADABLE = re.compile(r"\d/\d|\d:\d|\d(?:st|nd|rd|th)\b|(?:19|20)\d\d|\d-\w|#")  # fractions, times, years
WORDS: dict[str, tuple[int, ...]] = {
    "one": (1,), "two": (2,), "three": (3,), "four": (4,), "five": (5,), "six": (6,), "seven": (7,),
    "eight": (8,), "nine": (9,), "ten": (10,), "eleven": (11,), "twelve": (12,),
    "twenty": (20,), "thirty": (30,),
    "half": (2,), "halves": (2,), "twice": (2,), "double": (2,), "doubled": (2,),
    "thrice": (3,), "triple": (3,),
    "dozen": (12,), "third": (3,), "quarter": (4,), "fourth": (4,), "fifth": (5,), "pair": (2,),
    "both": (2,), "thirds": (3,), "quarters": (4,), "fourths": (4,), "fifths": (5,), "sixth": (6,),
    "sixths": (6,), "seventh": (7,), "sevenths": (7,), "eighth": (8,), "eighths": (8,), "ninth": (9,),
    "ninths": (9,), "tenth": (10,), "tenths": (10,),
}  # fmt: skip
# Numbers that are facts (ounces of a pound, legs), and bargains: a pack may come out dearer than its pieces.
_FIXED = re.compile(
    r"there are \d+ \w+ (?:in|per|to) (?:an? |one |each )?"
    r"(?:gallon|pound|foot|yard|mile|ton|hour|day|week|month|year)\b"
    r"|\d (?:eyes|legs|wheels|wings|arms)\b|\bcheaper\b|\bspecial\b|\bdeal\b",
    re.IGNORECASE,
)
_RATE = re.compile(
    r"(?<![\d.,])(\d+(?:\.\d+)?) (minute|hour|day|week|month)s? (?:a|per|each|every|in an?) "
    r"(hour|day|week|month|year)\b"
)
_MOST = {
    ("minute", "hour"): 60, ("hour", "day"): 24, ("hour", "week"): 168, ("day", "week"): 7,
    ("day", "month"): 31, ("day", "year"): 365, ("week", "month"): 5, ("week", "year"): 52,
    ("month", "year"): 12,
}  # fmt: skip
TRAINING_FILE = re.compile(
    r"(?<![a-z])train(ing|set)?(?![a-z])"
)  # in a file's name, small: not in "restraint"
_HARMLESS = ("one",)  # "one day", "each one": rarely a count
CONSTANTS = frozenset({2, 4, 5, 7, 12, 24, 52, 60, 100, 365, 1000})
_CONSTANT_CUES = {
    2: ("weekend",), 4: ("month",), 5: ("weekday", "weeknight", "work week", "workday"),
    100: ("%", "percent", "dollar", "cent", "meter"), 60: ("minute", "hour", "second"), 7: ("week", "day"),
    12: ("dozen", "year", "month", "feet", "foot", "inch"), 24: ("hour", "day"), 52: ("week", "year"),
    365: ("year", "day"), 1000: ("kilo", "gram", "km", "kg", "liter"),
}  # fmt: skip


@dataclass(frozen=True)
class Template:
    """A problem with slots. `steps` are expressions in which `{q0}` is a number of the question and `{r0}` a
    result from before."""

    parts: tuple[str, ...]  # text round the numbers; one more than numbers
    numbers: tuple[Fraction, ...]
    percent: tuple[bool, ...]
    steps: tuple[str, ...]
    whole: tuple[bool, ...]  # whether a step's result was a whole number

    @property
    def key(self) -> str:
        """The question with its numbers left out."""
        return "gsm8k " + " ".join("#".join(self.parts).split())

    def question(self, numbers: tuple[Fraction, ...]) -> str:
        """The text with these numbers."""
        money = [part.endswith("$") for part in self.parts]
        texts = [_written(*each) for each in zip(numbers, self.numbers, money[:-1], strict=True)]
        return "".join(a + b for a, b in zip(self.parts, [*texts, ""], strict=True))

    def work(self, numbers: tuple[Fraction, ...]) -> list[tuple[str, str]] | None:
        """Expressions and results with these numbers; None when a result isn't what it should be."""
        slots = {f"q{i}": canonical(n) for i, n in enumerate(numbers)}
        done: list[tuple[str, str]] = []
        for i, (step, whole) in enumerate(zip(self.steps, self.whole, strict=True)):
            expression = step.format(**slots)
            try:
                value = evaluate(expression)
            except ToolError:
                return None
            if value <= 0 or (whole and value.denominator != 1) or (value * 100).denominator != 1:
                return None
            slots[f"r{i}"] = canonical(value)
            done.append((expression, slots[f"r{i}"]))
        return done


def training_files(folder: Path) -> list[Path]:
    """The files of training rows in a folder, and below it."""
    every = (p for ending in ("*.jsonl", "*.jsonl.xz") for p in folder.rglob(ending))
    return sorted(p for p in every if TRAINING_FILE.search(p.name.lower()))


def read_rows(folder: Path) -> Iterator[dict[str, str]]:
    """The rows of the training files in a folder. InputNotFoundError without any; BadFileError for others."""
    files = training_files(folder)
    if not files:
        raise InputNotFoundError(
            f"{folder} holds no train*.jsonl of GSM8K", fix="give the folder with GSM8K's training rows"
        )
    for file in files:
        with (
            lzma.open(file, "rt", encoding="utf-8") if file.suffix == ".xz" else open(file, encoding="utf-8")
        ) as lines:
            try:
                for line in lines:
                    row = json.loads(line)
                    yield {"question": str(row["question"]), "answer": str(row["answer"])}
            except (ValueError, KeyError, TypeError, lzma.LZMAError, EOFError) as error:
                raise BadFileError(f"{file} is not GSM8K as JSON lines", why=str(error)[:200]) from error


def parse(question: str, answer: str) -> tuple[Template | None, str]:
    """The template of a row, or None and why not."""
    steps = _ANNOTATION.findall(answer)
    final = answer.rpartition("####")[2].strip().replace(",", "")
    if not steps or len(steps) > MAX_STEPS:
        return None, "no annotations, or too many"
    if _UNREADABLE.search(question):
        return None, "fractions, times, ordinals or years in the question"
    if _FIXED.search(question):
        return None, "a number that is a fact, or a bargain"
    found = list(_NUMBER.finditer(question))
    numbers = tuple(Fraction(m[0].replace(",", "")) for m in found)
    if len(set(numbers)) < len(numbers):
        return None, "a number occurs twice"
    if len(re.findall(r"\d+", re.sub(r"(\d)[.,](?=\d)", r"\1", question))) != len(numbers):
        return None, "a number that isn't understood"
    used_words: set[int] = set()
    words = {
        w: WORDS[w] for w in re.findall(r"[a-z]+", question.lower()) if w in WORDS and w not in _HARMLESS
    }
    results: list[Fraction] = []
    written, used = list[str](), set[int]()
    for expression, result in steps:
        text, why = _bind(expression, question, numbers, results, words, used, used_words)
        if why:
            return None, why
        written.append(text)
        try:
            value = evaluate(expression.replace(",", "").replace("$", ""))
            if canonical(value) != canonical(Fraction(result.replace(",", "").replace("$", "").strip())):
                return None, "an annotation isn't true"
        except (ToolError, ValueError, ZeroDivisionError):
            return None, "an annotation can't be read"
        results.append(value)
    if canonical(results[-1]) != final:
        return None, "the last result isn't the answer"
    if any(n == 2 and "".join(written).count(f"{{q{i}}}") > 1 for i, n in enumerate(numbers)):
        return None, "a two that is used twice"  # "2 times" and, silently, the two sides of a fence
    if len(used) < len(numbers):
        return None, "a number of the question isn't used"
    if any(not used_words.intersection(values) for values in words.values()):
        return None, "a number word isn't used"
    parts, at = [], 0
    for match in found:
        parts.append(question[at : match.start()])
        at = match.end()
    percent = tuple(question[m.end() :].lstrip().startswith(("%", "percent")) for m in found)
    template = Template(
        (*parts, question[at:]), numbers, percent, tuple(written), tuple(r.denominator == 1 for r in results)
    )
    work = template.work(numbers)
    if work is None or work[-1][1] != final:
        return None, "working it out again gives something else"
    return template, ""


def _bind(
    expression: str,
    question: str,
    numbers: tuple[Fraction, ...],
    results: list[Fraction],
    words: dict[str, tuple[int, ...]],
    used: set[int],
    used_words: set[int],
) -> tuple[str, str]:
    """An annotation with slots for its operands, or why that isn't possible."""
    text, at, why = "", 0, ""
    expression = expression.replace(",", "").replace("$", "").strip()
    for match in _OPERAND.finditer(expression):
        value = Fraction(match[0])
        slots = [f"q{i}" for i, n in enumerate(numbers) if n == value]
        # A percentage is written .2 or 0.2 for 20 in the question.
        slots += [f"q{i}/100" for i, n in enumerate(numbers) if n == value * 100 and value < 1]
        slots += [f"r{i}" for i, r in enumerate(results) if r == value]
        fixed = any(value in values for values in words.values())
        fixed |= value in CONSTANTS and any(cue in question.lower() for cue in _CONSTANT_CUES[int(value)])
        if len(slots) + fixed > 1:
            why = "an operand may be two things"
        elif fixed:
            used_words.add(int(value))
            slots = [""]
        elif not slots:
            why = f"an operand from nowhere: {match[0]}"
        if why:
            return "", why
        slot = slots[0]
        if slot.startswith("q"):
            used.add(int(slot[1:].partition("/")[0]))
        filled = f"({{{slot[:-4]}}}/100)" if slot.endswith("/100") else f"{{{slot}}}" if slot else match[0]
        text += expression[at : match.start()] + filled
        at = match.end()
    return text + expression[at:], ""


def draw_numbers(rng: Generator, template: Template) -> tuple[Fraction, ...] | None:
    """New numbers near the old ones, all different; None when this draw isn't possible."""
    drawn = []
    for old, percent in zip(template.numbers, template.percent, strict=True):
        if percent:
            # Near the old one, and what is left of the whole near what was left: no tax of 95 %.
            near = [n for n in range(5, 100, 5) if _near(n, old) and _near(100 - n, 100 - old)]
            new = Fraction(near[rng.integers(len(near))]) if near else old
        elif old.denominator == 1:
            step = 100 if old >= 1000 and old % 100 == 0 else 10 if old >= 100 and old % 10 == 0 else 1
            low, high = max(2, int(old) // (2 * step)), max(int(old) * 2 // step, 6)
            new = Fraction(step * int(rng.integers(low, high + 1)))
        else:
            places = 100 if (old * 100).denominator == 1 else 1000
            new = Fraction(
                int(rng.integers(max(1, int(old * places) // 2), int(old * places) * 2 + 1)), places
            )
        drawn.append(new)
    return tuple(drawn) if len(set(drawn)) == len(drawn) else None


def _near(new: int, old: Fraction) -> bool:
    return old <= 2 * new <= 4 * old


def _possible(text: str) -> bool:
    """No 25 hours a day."""
    return all(float(m[1]) <= _MOST.get((m[2], m[3]), math.inf) for m in _RATE.finditer(text))


class Resampled(Task):
    """Levels 1 to 3: one or two, three or four, five to eight steps. `read` comes first."""

    family = FAMILY
    levels = 3
    templates = False

    def __init__(self) -> None:
        self.pools: dict[tuple[int, str], list[Template]] = {}

    def read(self, folders: Sequence[Path]) -> dict[str, int]:
        """Take the templates of folders; what became of its rows: `templates`, and each reason against."""
        outcome: dict[str, int] = {"templates": 0}
        self.pools = {}
        for row in itertools.chain.from_iterable(map(read_rows, folders)):
            template, why = parse(row["question"], row["answer"])
            why = why.partition(":")[0]
            outcome[why or "templates"] = outcome.get(why or "templates", 0) + 1
            if template:
                level = 1 if len(template.steps) < 3 else 2 if len(template.steps) < 5 else 3
                self.pools.setdefault((level, split_of(template.key)), []).append(template)
        return outcome

    def texts(self, split: str) -> list[str]:
        """The questions of a split as they were given."""
        pools = (pool for (_, owner), pool in self.pools.items() if owner == split)
        return [template.question(template.numbers) for pool in pools for template in pool]

    def problem(self, rng: Generator, level: int, split: str) -> Problem:
        """A variant. The split goes by the template. InputNotFoundError when nothing was read."""
        pool = self.pools.get((level, split), [])
        if not pool:
            raise InputNotFoundError(
                f"{self.family}: there are no rows of GSM8K for level {level}, split {split}",
                fix="name the folder with GSM8K's training rows: sft.gsm8k in a recipe, or --data",
            )
        template = pool[rng.integers(len(pool))]
        numbers, work = template.numbers, template.work(template.numbers)  # stays so when no draw fits
        for _ in range(TRIES):
            drawn = draw_numbers(rng, template)
            if drawn and _possible(template.question(drawn)) and (fitting := template.work(drawn)):
                numbers, work = drawn, fitting
                break
        assert work is not None, "parse checked it"
        question = template.question(numbers)
        key = f"{template.key} {' '.join(map(str, numbers))}"
        return Problem(
            self.family, level, key, question, work[-1][1], {"work": [list(w) for w in work]}, ("calculator",)
        )

    def trace(self, problem: Problem, rng: Generator) -> list[Piece]:
        """One call a step, then the answer."""
        pieces = []
        for expression, result in problem.data["work"]:
            pieces += [
                Piece(Kind.CALL, call_text("calculator", {"expression": expression})),
                Piece(Kind.RESULT, result),
            ]
        return [*pieces, Piece(Kind.SAY, problem.answer)]

    def verify(self, problem: Problem, answer: str | None) -> Verdict:
        """The number and nothing else; leniently the last number (dollar signs and commas don't count)."""
        verdict = verify_number(problem.answer, answer)
        if verdict.strict or answer is None:
            return verdict
        return Verdict(False, verify_number(problem.answer, re.sub(r"[$,]", "", answer)).lenient, verdict.why)


def _written(new: Fraction, old: Fraction, money: bool) -> str:
    """As the question wrote it: two decimals for money, a comma from a thousand on."""
    if old.denominator != 1:
        return f"{float(new):.2f}" if money and (old * 100).denominator == 1 else canonical(new)
    return f"{int(new):,}" if new >= 1000 else str(int(new))
