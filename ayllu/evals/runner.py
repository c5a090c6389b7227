"""Evaluation of one model on one family of problems.

Answers come from the tool-use loop that chat and the server use too. Strict and lenient scores are both
kept: an answer that is right but not in the asked form tells of the form, not of the reasoning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ayllu.evals.metrics import wilson
from ayllu.reason.loop import Answer, Generator
from ayllu.reason.rollout import answer_problems
from ayllu.reason.task import Problem, Task, Verdict
from ayllu.reason.transcript import Chat, Transcript
from ayllu.tools.tool import Toolbox

if TYPE_CHECKING:
    from ayllu.engine.engine import SamplingParams

SAMPLES = 4  # transcripts kept as text


@dataclass(frozen=True)
class EvalResult:
    """What one evaluation found. `low` and `high` are the 95 % Wilson interval of correct / n."""

    family: str
    n: int
    correct: int  # strictly
    lenient: int
    low: float
    high: float
    calls: int
    valid_calls: int
    truncated: int  # answers that ran out of room
    mean_tokens: float  # sampled tokens of an answer
    mean_thinking_tokens: float
    rights: tuple[bool, ...]  # strict verdicts in the order of the problems, for paired comparisons
    samples: tuple[dict[str, Any], ...]  # a few wrong and a few right ones, as text

    @property
    def accuracy(self) -> float:
        """Strict share of right answers, 0 when there were no problems."""
        return self.correct / self.n if self.n else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For report.json: the counts, without single verdicts and samples."""
        return {
            "n": self.n,
            "correct": self.correct,
            "accuracy": self.accuracy,
            "low": self.low,
            "high": self.high,
            "lenient": self.lenient,
            "calls": self.calls,
            "valid_calls": self.valid_calls,
            "truncated": self.truncated,
            "mean_tokens": self.mean_tokens,
            "mean_thinking_tokens": self.mean_thinking_tokens,
        }


def evaluate(
    engine: Generator,
    chat: Chat,
    task: Task,
    problems: Sequence[Problem],
    *,
    params: SamplingParams,
    toolbox: Toolbox | None = None,
    max_calls: int = 8,
    on_answer: Callable[[int], None] | None = None,
) -> EvalResult:
    """Score a model on problems of a family.

    Each conversation offers the tools that its problem names, as far as the toolbox has them; calls are held
    to their schemas, as wherever the model is used.
    `on_answer(done)` is called as answers finish.
    """
    box = toolbox or Toolbox()
    done = 0

    def count(_index: int, _answer: Answer) -> None:
        nonlocal done
        done += 1
        if on_answer is not None:
            on_answer(done)

    answers = answer_problems(
        engine, chat, problems, box, params, max_calls=max_calls, constrain=True, on_answer=count
    )
    return score(chat, task, problems, answers)


def score(chat: Chat, task: Task, problems: Sequence[Problem], answers: Sequence[Answer]) -> EvalResult:
    """Verdicts on answers that are there already."""
    verdicts = [
        task.verify(problem, chat.answer(answer.transcript) if answer.finish_reason == "stop" else None)
        for problem, answer in zip(problems, answers, strict=True)
    ]
    n, correct = len(problems), sum(verdict.strict for verdict in verdicts)
    low, high = wilson(correct, n)
    return EvalResult(
        family=task.family,
        n=n,
        correct=correct,
        lenient=sum(verdict.lenient for verdict in verdicts),
        low=low,
        high=high,
        calls=sum(answer.calls for answer in answers),
        valid_calls=sum(answer.valid_calls for answer in answers),
        truncated=sum(answer.finish_reason == "length" for answer in answers),
        mean_tokens=sum(answer.tokens for answer in answers) / max(n, 1),
        mean_thinking_tokens=sum(answer.thinking_tokens for answer in answers) / max(n, 1),
        rights=tuple(verdict.strict for verdict in verdicts),
        samples=_samples(chat, problems, answers, verdicts),
    )


def _samples(
    chat: Chat, problems: Sequence[Problem], answers: Sequence[Answer], verdicts: Sequence[Verdict]
) -> tuple[dict[str, Any], ...]:
    """The first wrong ones and the first right ones, half and half as far as there are both."""
    wrong = [i for i, verdict in enumerate(verdicts) if not verdict.strict]
    right = [i for i, verdict in enumerate(verdicts) if verdict.strict]
    take_right = min(len(right), max(SAMPLES // 2, SAMPLES - len(wrong)))
    chosen = sorted(right[:take_right] + wrong[: SAMPLES - take_right])
    return tuple(
        {
            "prompt": problems[i].prompt,
            "wanted": problems[i].answer,
            "correct": verdicts[i].strict,
            "why": verdicts[i].why,
            "finish_reason": answers[i].finish_reason,
            "spans": readable(chat, answers[i].transcript),
        }
        for i in chosen
    )


def readable(chat: Chat, transcript: Transcript) -> list[list[str]]:
    """A conversation as [kind, text] pairs, for people."""
    return [[str(span.kind), chat.text(span)] for span in transcript.spans]
