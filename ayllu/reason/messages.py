"""OpenAI's messages in the order in which our own form writes them.

Calls made at once become calls made one after another, each with its result behind it: the form has no ids,
and this is how models learn calls.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from ayllu.errors import RequestError

_MAY_FOLLOW = {
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "call": ("tool",),
    "tool": ("assistant", "tool", "user"),  # a tool may end the turn: the user is asked
}


def in_order(messages: Sequence[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """The system's text and the other messages. RequestError for an order that the form can't express."""
    head = [m for m in messages if m["role"] in ("system", "developer")]
    if head and list(messages[: len(head)]) != head:
        raise RequestError("system messages must come first")
    previous, open_ = "system", 0
    for index, message in enumerate(messages[len(head) :], len(head)):
        role = message["role"]
        if role not in _MAY_FOLLOW[previous]:
            raise RequestError(
                f"messages[{index}]: {role!r} can't follow {previous!r}",
                fix="alternate user and assistant; a tool's result follows the assistant's call",
            )
        if role == "tool" and not open_:
            raise _belongs_to_no_call(index)
        if role != "tool" and open_:
            raise RequestError(f"messages[{index}]: a call before it has no result")
        calls = message.get("tool_calls") if role == "assistant" else ()
        previous, open_ = ("call", len(calls)) if calls else (role, open_ - (role == "tool"))
    if previous not in ("user", "tool"):
        raise RequestError("the last message must be the user's or a tool's result")
    if open_:
        raise RequestError("a call at the end has no result")
    said = _results_in_order(list(messages[len(head) :]), len(head))
    return "\n".join(str(m.get("content") or "") for m in head), one_at_a_time(said)


def one_at_a_time(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same conversation with calls made at once as calls made one after another."""
    out: list[dict[str, Any]] = []
    later: list[dict[str, Any]] = []
    for message in messages:
        calls = message.get("tool_calls") or ()
        if len(calls) > 1:
            out.append({**message, "tool_calls": calls[:1]})
            later = [{"role": "assistant", "content": None, "tool_calls": [call]} for call in calls[1:]]
            continue
        out.append(message)
        if later and message["role"] == "tool":
            out.append(later.pop(0))
    return out


def _results_in_order(messages: list[dict[str, Any]], first: int) -> list[dict[str, Any]]:
    """The results of calls made at once in the order of the calls. RequestError for one that names another
    call; `first` is the number of the first message."""
    out = list(messages)
    for at, message in enumerate(messages, 1):
        place = {call.get("id"): n for n, call in enumerate(message.get("tool_calls") or ())}
        results = list(itertools.takewhile(lambda m: m["role"] == "tool", messages[at:])) if place else []
        named = [result["tool_call_id"] for result in results if result.get("tool_call_id") is not None]
        if None in place:
            continue  # calls without ids: in the order in which they come
        if not place.keys() >= set(named) or len(set(named)) < len(named):
            raise _belongs_to_no_call(first + at)
        if results and len(named) == len(results):
            out[at : at + len(results)] = sorted(results, key=lambda m: place[m["tool_call_id"]])
    return out


def _belongs_to_no_call(index: int) -> RequestError:
    return RequestError(
        f"messages[{index}]: a result belongs to no call",
        fix="a tool's result follows the assistant's call and names its id",
    )
