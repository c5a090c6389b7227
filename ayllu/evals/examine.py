"""One examination: a task, a model, and what came of it.

Tasks are the official sets and the project's own families. Both go the same way: rows, what is asked, what
was said, verdicts, scores. A result says by itself how it was made: protocol, source, examples, rows, seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ayllu.evals.answers import NOTHING, Judged
from ayllu.evals.items import Choice, Example, Item, Program, Shots
from ayllu.evals.official import Official, as_read, with_shots
from ayllu.evals.programs import judge_programs
from ayllu.evals.scoring import score_choices, score_said, score_texts, share
from ayllu.evals.subject import Asked, Examinee, Said, Sampling
from ayllu.progress import Progress
from ayllu.reason.practice import toolbox_for, toolbox_of
from ayllu.reason.task import NewTemplates, Problem, Task, hardest
from ayllu.reason.verify import highest
from ayllu.reason.vote import canonical
from ayllu.tools.calculator import CALCULATOR
from ayllu.tools.tool import Toolbox

FAMILY_N = 1000  # problems of a family, unless told
FAMILY_SHOTS = 4  # worked examples for a model without a chat format
FAMILY_TOKENS = 512
CONVERSED_TOKENS = 1024  # of a conversing model's answer with its thinking, at the least
HOT = 0.7  # the temperature of several samples, unless told (Wang et al. 2022, section 3.1)

_T = TypeVar("_T")


@dataclass(frozen=True)
class ExamSettings:
    """What one may choose. None: as the task has it (n: all rows; 1,000 problems of a family). `ask_as`: one
    of subject.ASK_AS."""

    n: int | None = None
    samples: int = 1
    temperature: float | None = None
    max_tokens: int | None = None
    shots: int | None = None
    seed: int = 0
    thinking_budget: int | None = None
    ask_as: str = "auto"

    def sampling(self, max_tokens: int) -> Sampling:
        """For answers, where a task has `max_tokens`. One sample is the likeliest text unless told."""
        temperature = self.temperature
        if temperature is None:
            temperature = HOT if self.samples > 1 else 0.0
        most = self.max_tokens or max_tokens
        return Sampling(self.samples, temperature, most, self.seed, self.thinking_budget)

    def examples(self, usual: int, continues: bool) -> int:
        """Worked examples: as told, else the task's own for a model without a chat format."""
        return self.shots if self.shots is not None else usual if continues else 0


def choose(rows: Sequence[_T], n: int | None, name: str, seed: int) -> list[_T]:
    """`n` of the rows by lot, in their order; those of a smaller n are among those of a larger."""
    if n is None or n >= len(rows):
        return list(rows)
    rng = np.random.default_rng([seed, 5, *name.encode()])
    return [rows[i] for i in sorted(rng.permutation(len(rows))[:n])]


@dataclass(frozen=True)
class _Exam:
    """Rows to be asked, and what stands before each."""

    task: Official
    rows: list[Any]  # Items of the form's kind
    shots: list[Shots]
    examinee: Examinee
    settings: ExamSettings
    progress: Progress

    def sampling(self) -> Sampling:
        """How answers are drawn; who converses may think first."""
        most = self.task.max_tokens
        return self.settings.sampling(most if self.examinee.continues else max(most, CONVERSED_TOKENS))

    def counting(self, note: str = "") -> Callable[[int], None]:
        return _counting(self.task.name + note, self.progress)


def examine(
    task: Official,
    rows: list[Item],
    examinee: Examinee,
    data: Path,
    settings: ExamSettings,
    progress: Progress,
) -> dict[str, Any]:
    """A result of one official set (JSON values). Errors: those of `with_shots`, RefusedError."""
    task = as_read(task, rows)
    wanted = settings.examples(task.shots, examinee.continues) if task.form in SHOWN else 0
    rows, shots = with_shots(task, data, rows, wanted, settings.seed)
    rows = choose(rows, settings.n, task.name, settings.seed)
    progress.start(len(rows), "rows")
    before = [shots.get(row.group, Shots()) for row in rows]
    made = _FORMS[task.form](_Exam(task, rows, before, examinee, settings, progress))
    head = {"task": task.name, "title": task.title, "form": task.form, "shots": wanted}
    protocol = task.protocol if examinee.continues else _CONVERSED.get(task.form, task.protocol)
    # Published scores are of texts gone on with. Letters are another task, and so is another number of
    # examples; an answer or a program is the same one in conversation.
    same = wanted == task.shots if examinee.continues else task.form in ("answer", "program")
    how = {"protocol": protocol, "source": task.source, "beside": dict(task.beside) if same else {}}
    return {**head, **made, **how}


def _choices(exam: _Exam) -> dict[str, Any]:
    rows: list[Choice] = exam.rows
    ways = exam.examinee.ways(rows, exam.shots, exam.counting())
    how = {"letters": not exam.examinee.continues, "mass": exam.task.form == "mass"}
    found = score_choices(rows, ways, exam.task.headline, **how)

    def score(those: list[int]) -> float:
        mine = score_choices([rows[i] for i in those], [ways[i] for i in those], exam.task.headline, **how)
        return float(mine["score"])

    return found | _by_group(rows, score)


def _answers(exam: _Exam) -> dict[str, Any]:
    task, rows, continues = exam.task, exam.rows, exam.examinee.continues
    box = Toolbox([CALCULATOR]).only(task.tools)
    form = "" if exam.examinee.ours else task.asks
    asked = [
        Asked(row.place, f"{row.question}\n\n{form}".rstrip(), row.text, before, task.tools, box)
        for row, before in zip(rows, exam.shots, strict=True)
    ]
    sampling = exam.sampling()
    said = exam.examinee.say(asked, sampling, task.stop, exam.counting())
    judged = [
        [NOTHING if one.text is None else task.judge(row.answers, one.text, continues) for one in each]
        for row, each in zip(rows, said, strict=True)
    ]
    wanted = [" | ".join(row.answers) for row in rows]
    found = _said(asked, wanted, said, judged, exam.examinee, sampling)

    def score(those: list[int]) -> float:
        rights = [one.strict for i in those for one in judged[i]]
        return sum(rights) / len(rights)

    return found | _by_group(rows, score)


def _by_group(rows: Sequence[Item], score: Callable[[list[int]], float]) -> dict[str, Any]:
    """The score of each group (the subjects of MMLU, the tasks of BBH), and the mean of those."""
    places: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        places.setdefault(row.group, []).append(i)
    if len(places) < 2:
        return {}
    groups = {group: score(those) for group, those in places.items()}
    return {"groups": groups, "group_mean": sum(groups.values()) / len(groups)}


def _programs(exam: _Exam) -> dict[str, Any]:
    rows: list[Program] = exam.rows
    asked = [Asked(row.place, row.question, row.text) for row in rows]
    sampling = exam.sampling()
    said = exam.examinee.say(asked, sampling, exam.task.stop, exam.counting())
    exam.progress.start(len(rows), "rows")
    judged = judge_programs(rows, said, exam.examinee.continues, exam.counting(": tests"))
    return _said(asked, [row.solution for row in rows], said, judged, exam.examinee, sampling)


def _texts(exam: _Exam) -> dict[str, Any]:
    texts = [row.text for row in exam.rows]
    nats, read = exam.examinee.nats(texts, exam.counting())
    return {**score_texts(nats, texts), **read}


_FORMS: dict[str, Callable[[_Exam], dict[str, Any]]] = {
    "choice": _choices,
    "mass": _choices,
    "answer": _answers,
    "program": _programs,
    "bits": _texts,
}
SHOWN = ("choice", "mass", "answer")  # forms that have worked examples
_LETTERS = "a turn of the user's with lettered options; likelihood of each letter as the answer's beginning"
_CONVERSED = {  # the protocol with a model that converses
    "choice": _LETTERS,
    "mass": _LETTERS,
    "answer": "a turn of the user's, with the form asked for where the model wasn't trained here; strict is "
    "that form, or the answer alone",
    "program": "a turn of the user's with the head of the function; strict is code alone, run in the sandbox",
}


# ---- the project's own families
def examine_family(
    task: Task, examinee: Examinee, settings: ExamSettings, progress: Progress
) -> dict[str, Any]:
    """A result of one family: the hardest level of the test split, as the eval stage of a run has it.

    InputNotFoundError for a family that lives on GSM8K's rows when none were read.
    """
    n = FAMILY_N if settings.n is None else settings.n
    problems = hardest(task, n, settings.seed)
    wanted = settings.examples(FAMILY_SHOTS, examinee.continues)
    shots = Shots("", tuple(_family_examples(task, wanted, settings.seed)))
    sampling = settings.sampling(FAMILY_TOKENS)
    progress.start(len(problems), "problems")
    with toolbox_for([task.family]) as box:
        asked = [_problem(problem, shots, box) for problem in problems]
        said = examinee.say(asked, sampling, ("\n",), _counting(task.family, progress))
    judged = [
        [_verdict(task, problem, one.text) for one in each]
        for problem, each in zip(problems, said, strict=True)
    ]
    made = _said(asked, [problem.answer for problem in problems], said, judged, examinee, sampling)
    return {
        "task": task.family,
        "title": task.family,
        "form": "answer",
        "shots": wanted,
        **made,
        "protocol": f"level {task.levels}, test split, distinct problems, as generated from the seed",
        "source": f"ayllu/reason/tasks, {task.family}",
        "beside": {},
    }


def _problem(problem: Problem, shots: Shots, box: Toolbox) -> Asked:
    own = toolbox_of(problem, box)
    text = f"Q: {problem.prompt}\nA:"
    return Asked(problem.key, problem.prompt, text, shots, problem.tools, own)


def _family_examples(task: Task, wanted: int, seed: int) -> list[Example]:
    """Worked ones from the train split, with a right answer where many are right (Countdown)."""
    source = task.task if isinstance(task, NewTemplates) else task
    rng = np.random.default_rng([seed, 13, *task.family.encode()])
    found = list[Example]()
    while len(found) < wanted:
        problem = source.problem(rng, source.levels, "train")
        said = source.trace(problem, rng)[-1].text if source.worked else problem.answer
        if source.verify(problem, said).strict:  # an expert may give up
            found.append(Example(f"Q: {problem.prompt}\nA: {said}", problem.prompt, said))
    return found


def _verdict(task: Task, problem: Problem, text: str | None) -> Judged:
    verdict = task.verify(problem, None if text is None else text.strip())
    return Judged(verdict.strict, verdict.lenient, canonical(text) if text and text.strip() else None)


# ---- both
def choices_by_score(said: Sequence[Sequence[Said]], judged: Sequence[Sequence[Judged]]) -> dict[str, Any]:
    """What a verifier's scores choose from the samples of each row: the best of them (Cobbe et al. 2021), and
    the answer with the largest sum of scores (Li et al. 2022). Nothing without scores, or with one sample."""
    k = len(said[0]) if said else 1
    if k < 2 or all(one.score is None for row in said for one in row):
        return {}
    best, weighted = [], []
    for row, verdicts in zip(said, judged, strict=True):
        scores = [one.score or 0.0 for one in row]
        best.append(verdicts[highest(scores, [one.finish == "stop" for one in row])])
        weighted.append(_by_weight(verdicts, scores))
    found: dict[str, Any] = {"best_of": {"k": k, **share([one.strict for one in best])}}
    found["best_of"]["lenient"] = share([one.lenient for one in best])
    if any(one.value is not None for row in judged for one in row):
        found["weighted"] = {"k": k, **share([one.strict for one in weighted])}
        found["weighted"]["lenient"] = share([one.lenient for one in weighted])
    return found


def _by_weight(verdicts: Sequence[Judged], scores: Sequence[float]) -> Judged:
    """The verdict on the value with the largest sum of scores, strict as that of a vote by count is."""
    sums: dict[str, float] = {}
    for one, score in zip(verdicts, scores, strict=True):
        if one.value is not None:
            sums[one.value] = sums.get(one.value, 0.0) + score
    if not sums:
        return NOTHING
    value = max(sums, key=lambda each: sums[each])
    those = [one for one in verdicts if one.value == value]
    return Judged(any(one.strict for one in those), any(one.lenient for one in those), value)


def _counting(note: str, progress: Progress) -> Callable[[int], None]:
    return lambda done: progress.update(done, note)


def _said(
    asked: Sequence[Asked],
    wanted: Sequence[str],
    said: Sequence[Sequence[Said]],
    judged: Sequence[Sequence[Judged]],
    examinee: Examinee,
    sampling: Sampling,
) -> dict[str, Any]:
    prompts = [each.text if examinee.continues else each.question for each in asked]
    made = score_said([each.key for each in asked], prompts, wanted, said, judged)
    made |= choices_by_score(said, judged)
    made["asked_as"] = "text" if examinee.continues else "conversation"
    made["sampling"] = {"temperature": sampling.temperature, "max_tokens": sampling.max_tokens}
    if sampling.thinking_budget is not None:
        made["sampling"]["thinking_budget"] = sampling.thinking_budget
    return made
