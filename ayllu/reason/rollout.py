"""Problems put to a model: one conversation each, with the tools that the problem has on offer.

Rollouts of the training stages and evaluations come through here, so that what is rewarded, what is learnt
from and what is measured is asked in one way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ayllu.engine.request import SamplingParams
from ayllu.reason.loop import Answer, Generator, answer_batch
from ayllu.reason.practice import toolbox_of
from ayllu.reason.task import Problem
from ayllu.reason.transcript import Chat
from ayllu.tools.session import MAX_CALLS
from ayllu.tools.tool import Toolbox


def fitting(params: SamplingParams, room: int) -> SamplingParams:
    """With no more tokens than the context has room for; a prompt without room is the engine's to refuse."""
    if params.max_tokens is None or room < 1:
        return params
    return replace(params, max_tokens=min(params.max_tokens, room))


def answer_problems(
    engine: Generator,
    chat: Chat,
    problems: Sequence[Problem],
    toolbox: Toolbox,
    params: SamplingParams | Sequence[SamplingParams],
    *,
    system: str = "",
    max_calls: int = MAX_CALLS,
    constrain: bool = False,
    on_answer: Callable[[int, Answer], None] | None = None,
) -> list[Answer]:
    """An answer to each problem, in order; `toolbox` is the shared one (practice.toolbox_for).

    `params`: for all, or one for each problem; no answer may become longer than its room in the context. A
    problem that leaves none has an answer without a token, cut off ("length").
    Rollouts to learn from aren't constrained: what is learnt from is the model's own distribution.
    """
    every = params if isinstance(params, Sequence) else [params] * len(problems)
    prompts = [chat.start(problem.prompt, system=system, tools=problem.tools) for problem in problems]
    rooms = [engine.context_length - len(prompt.ids()) for prompt in prompts]
    asked = [i for i, room in enumerate(rooms) if room > 0]
    answers = [Answer(prompt, "length") for prompt in prompts]

    def done(index: int, answer: Answer) -> None:
        if on_answer is not None:
            on_answer(asked[index], answer)

    given = answer_batch(
        engine,
        chat,
        [prompts[i] for i in asked],
        [toolbox_of(problems[i], toolbox) for i in asked],
        [fitting(every[i], rooms[i]) for i in asked],
        max_calls=max_calls,
        constrain=constrain,
        on_answer=done,
    )
    for i, answer in zip(asked, given, strict=True):
        answers[i] = answer
    return answers
