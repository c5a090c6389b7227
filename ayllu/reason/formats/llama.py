"""Llama 3.1 to 3.3: a call is JSON, in place of an answer or behind <|python_tag|>.

From the model's published prompt format: <|start_header_id|>role<|end_header_id|> begins a turn;
<|eot_id|> ends it, <|eom_id|> ends a message that expects a result. A tool of the caller's is called with
{"name": ..., "parameters": {...}}, one built in with name.call(key="value"), and anything else behind
<|python_tag|> is a program. A result stands in a turn of the role ipython.
"""

from __future__ import annotations

import json
from typing import Any

from ayllu.reason.formats.form import (
    THINKING,
    Does,
    Format,
    Mark,
    Parts,
    UnreadableError,
    json_calls,
    json_value,
)
from ayllu.reason.transcript import Heard, Kind
from ayllu.tools.calls import CallForm


def read(parts: Parts) -> list[Heard]:
    """JSON calls, name.call(...), or a program for the tool `python`."""
    text = "".join(text for _, text in parts).strip()
    if text[:1] in ("{", "["):
        return json_calls(text)
    name, sign, rest = text.partition(".call(")
    if sign and name.isidentifier():
        return [_keywords(name, rest)]
    if not text:
        raise UnreadableError("the call is empty")
    return [Heard("python", json.dumps({"code": text}, ensure_ascii=False))]


def _keywords(name: str, rest: str) -> Heard:
    """`key="value", key=2)` with JSON values."""
    arguments: dict[str, Any] = {}
    at = 0
    while True:
        while rest[at : at + 1] in (" ", ","):
            at += 1
        if rest[at:].strip() == ")":
            return Heard(name, json.dumps(arguments, ensure_ascii=False))
        key, sign, _ = rest[at:].partition("=")
        if not sign or not key.isidentifier():
            raise UnreadableError(f'{name}.call needs arguments of the form key="value"')
        arguments[key], at = json_value(rest, at + len(key) + 1)


LLAMA = Format(
    name="llama",
    signs=("<|start_header_id|>",),
    marks={
        "<|start_header_id|>": Mark(Does.HEAD),
        "<|end_header_id|>": Mark(Does.HEAD_END),
        "<|eot_id|>": Mark(Does.END),
        "<|eom_id|>": Mark(Does.END),
        "<|end_of_text|>": Mark(Does.END),
        "<|begin_of_text|>": Mark(Does.SKIP),
        "<|python_tag|>": Mark(Does.OPEN, Kind.CALL),
        **THINKING,
    },
    read=read,
    bare=True,
    roles={"system": Kind.SYSTEM, "user": Kind.USER, "assistant": Kind.SAY, "ipython": Kind.RESULT,
           "tool": Kind.RESULT},
    writes=CallForm("<|python_tag|>", "<|eot_id|>", '{"name": "NAME", "parameters": ', "}", spaced=True,
                    ends_turn=True),
)  # fmt: skip
