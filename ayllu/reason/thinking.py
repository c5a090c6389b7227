"""How long a model may think, as its user says it: a bound that the engine keeps, and words that say it.

The engine puts the end of a thought in when the bound is reached, whatever the model was about to write
(engine/budget.py). A model whose practice had budgets (`budgets` in the table `[sft]`) is told the number as
well, in its system turn, and has practised to answer with what it has when the thought ends there, where one
that is only cut off goes on aloud in its answer (docs/evaluation.md). That it was taught stands in its
folder's generation_config.json.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from ayllu.engine.request import SamplingParams, ThinkingBudget
from ayllu.errors import RequestError
from ayllu.files import read_json, write_json
from ayllu.reason.transcript import Transcript

MOST = 1_000_000  # tokens that one may ask for
_FILE, _TAUGHT = "generation_config.json", "thinking_budgets"


class Thinker(Protocol):
    """What is needed to know of a chat format: the control tokens round a thought, and whether a conversation
    ends in one that is open already."""

    @property
    def thought(self) -> tuple[int, int] | None: ...

    def thinks(self, transcript: Transcript) -> bool: ...


def budget_words(budget: int) -> str:
    """How a system turn says that so many tokens of thinking are allowed."""
    return f"think: {budget}"


def bounded(
    params: SamplingParams, chat: Thinker, transcript: Transcript, budget: int | None
) -> SamplingParams:
    """`params` with at most `budget` tokens of thinking in the answer to `transcript` (None: no bound).

    RequestError for a budget below 0, and for a model that has no control tokens round its thoughts.
    """
    if budget is None:
        return params
    if not 0 <= budget <= MOST:
        raise RequestError(f"a thinking budget of {budget} tokens", fix=f"give one from 0 to {MOST:,}")
    if chat.thought is None:
        raise RequestError(
            "this model's thinking can't be bounded",
            why="its chat format has no control tokens round a thought",
            fix="leave the thinking budget out",
        )
    opens, closes = chat.thought
    opened = chat.thinks(transcript)
    return replace(params, thinking=ThinkingBudget(opens, closes, maximum=budget, opened=opened))


def left_over(params: SamplingParams, chat: Thinker, transcript: Transcript, thought: int) -> SamplingParams:
    """`params` for what an answer goes on with after a call, when it has `thought` so many tokens already
    (the control tokens not among them)."""
    budget = params.thinking
    if budget is None or budget.maximum is None or chat.thought != (budget.open_id, budget.close_id):
        return params
    left = max(budget.minimum, budget.maximum - thought)
    return replace(params, thinking=replace(budget, maximum=left, opened=chat.thinks(transcript)))


def thought_tokens(ids: Sequence[int], budget: ThinkingBudget | None) -> int:
    """Tokens of a thought between its marks, which are what a budget bounds: the first may be the prompt's,
    and behind the last there may be white space."""
    if budget is None:
        return 0
    inner = ids[1:] if ids and ids[0] == budget.open_id else ids
    return inner.index(budget.close_id) if budget.close_id in inner else len(inner)


def told(messages: Sequence[dict[str, Any]], budget: int) -> list[dict[str, Any]]:
    """`messages` whose system turn (the last, of several at the beginning) says the budget, in a line of
    its own at its end."""
    words, found = budget_words(budget), list(messages)
    leading = itertools.takewhile(lambda message: message.get("role") in ("system", "developer"), found)
    last = len(list(leading)) - 1
    if last >= 0 and isinstance(found[last]["content"], str):
        text = "\n".join(part for part in (found[last]["content"], words) if part)
        found[last] = {**found[last], "content": text}
        return found
    return [{"role": "system", "content": words}, *found]


# ---- what a model was taught
def mark_taught(folder: Path) -> None:
    """Note in a model folder that its practice had budgets."""
    path = folder / _FILE
    write_json(path, (dict(read_json(path)) if path.is_file() else {}) | {_TAUGHT: True})


def taught(folder: Path) -> bool:
    """Whether the practice of the folder's model had budgets. BadFileError for a damaged file."""
    path = folder / _FILE
    found = read_json(path) if path.is_file() else {}
    return isinstance(found, dict) and found.get(_TAUGHT) is True
