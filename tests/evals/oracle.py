"""Baselines for the scorer: a model that knows every worked solution, and one that knows nothing."""

from collections.abc import Callable, Sequence

import numpy as np

from ayllu.reason.task import Problem, Task, conversation
from ayllu.reason.transcript import Chat


def oracle(chat: Chat, task: Task, problems: Sequence[Problem]) -> Callable[[list[int]], list[int]]:
    """Replies with the task's own trace: what the model is to write next after a prompt."""
    rng = np.random.default_rng(0)
    solved = []
    for problem in problems:
        whole = conversation(chat, problem, task.trace(problem, rng))
        solved.append((whole.ids(), whole.sampled()))

    def reply(prompt: list[int]) -> list[int]:
        for ids, sampled in solved:
            if ids[: len(prompt)] == prompt:
                end = len(prompt)
                while end < len(ids) and sampled[end]:
                    end += 1
                return ids[len(prompt) : end]
        return [chat.end]

    return reply


def ignorant(chat: Chat, seed: int) -> Callable[[list[int]], list[int]]:
    """Replies with random tokens inside an answer."""
    rng = np.random.default_rng(seed)
    first = len(chat.tokenizer.control)
    answer = chat.tokenizer.control["<|answer|>"]

    def reply(_prompt: list[int]) -> list[int]:
        length = int(rng.integers(1, 6))
        return [answer, *rng.integers(first, chat.tokenizer.vocab_size, length).tolist(), chat.end]

    return reply
