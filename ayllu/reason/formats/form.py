"""What a chat format is, as data: which marks stand round a thought, a call, a result, a turn.

A model's chat template says how a conversation is written. How what the model then writes is to be read,
no template says; that is a table here, one file a family. A mark is a control token where the vocabulary
has one of that name and ordinary text where it has none (Hermes 2 on Llama 3 writes <tool_call> in
pieces); the machine in `reading.py` does the same with both.

The forms in use are compared in vLLM's and llama.cpp's documentation of tool calling.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ayllu.reason.transcript import Heard, Kind
from ayllu.tools.calls import CallForm


class Does(StrEnum):
    """What happens at a mark."""

    OPEN = "open"  # a span of the mark's kind begins
    CLOSE = "close"  # it ends, and what `then` says goes on
    HEAD = "head"  # a turn begins; its role follows, up to the head's end
    HEAD_END = "head end"
    PART = "part"  # a border inside a call, between its name and its arguments, say
    END = "end"  # a turn ends
    SKIP = "skip"  # nothing: it frames what has marks of its own


@dataclass(frozen=True)
class Mark:
    """What a mark does. `then`: the kind of what follows a CLOSE (None: between turns)."""

    does: Does
    kind: Kind | None = None
    then: Kind | None = Kind.SAY


class UnreadableError(ValueError):
    """Why a call can't be read, in words for the model that wrote it."""


Parts = Sequence[tuple[str, str]]  # (mark in front, text): what stood inside a call, cut at its PART marks


@dataclass(frozen=True)
class Format:
    """A family's way of writing. `signs`: what its templates have and others don't (any of them).

    `read` cuts the inside of a call into calls, or raises UnreadableError. `bare`: a turn that begins
    with a brace may be a call without a mark. `roles` are the names in turn heads; a head ends at its
    HEAD_END mark or at `head_ends`, a sign. `begins`: the kind of what stands before the first mark.
    `call_id` makes an id of the form that the templates want. `writes`: how a call is written, where a
    model can be held to it: between two control tokens, with none inside.
    """

    name: str
    signs: tuple[str, ...]
    marks: Mapping[str, Mark]
    read: Callable[[Parts], list[Heard]]
    bare: bool = False
    roles: Mapping[str, Kind] = field(default_factory=dict)
    head_ends: str = ""
    begins: Kind | None = None
    call_id: Callable[[str], str] = str
    writes: CallForm | None = None

    def names(self, *does: Does) -> tuple[str, ...]:
        """The marks that do one of these things."""
        return tuple(name for name, mark in self.marks.items() if mark.does in does)


THINKING = {
    "<think>": Mark(Does.OPEN, Kind.THINK),
    "</think>": Mark(Does.CLOSE, Kind.THINK),
}


def call_of(value: Any, keys: Sequence[str] = ("arguments", "parameters")) -> Heard:
    """A call from its JSON object, {"name": ..., "arguments": {...}}; some wrap it in "function"."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = {**value["function"], "id": value.get("id")}
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise UnreadableError("a call must be a JSON object with the tool's name and its arguments")
    given: Any = next((value[key] for key in keys if key in value), None)
    if isinstance(given, str):  # JSON inside of JSON, as in OpenAI's own form
        given = json_value(given or "{}")[0]
    if not isinstance(given, dict):
        raise UnreadableError("a call must have arguments, a JSON object")
    number = value.get("id")
    try:
        arguments = json.dumps(given, ensure_ascii=False, allow_nan=False)
    except ValueError as error:  # 1e999 is read as infinity, for which JSON has no word
        raise UnreadableError("a number of the call is too large") from error
    return Heard(value["name"], arguments, number if isinstance(number, str) else "")


def json_value(text: str, at: int = 0) -> tuple[Any, int]:
    """The JSON value at `at`, and where it ends. UnreadableError when there is none."""
    try:
        return _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError) as error:
        raise UnreadableError("the call is not valid JSON") from error


def json_calls(text: str, between: str = ";,") -> list[Heard]:
    """The calls in a text of JSON objects, one after another or in a list."""
    found: list[Heard] = []
    at = 0
    while at < len(text):
        if text[at].isspace() or text[at] in between:
            at += 1
            continue
        value, at = json_value(text, at)
        found += [call_of(each) for each in value] if isinstance(value, list) else [call_of(value)]
    if not found:
        raise UnreadableError("the call is empty")
    return found


def named_call(name: str, arguments: str, number: str = "") -> Heard:
    """A call whose name stands apart from its arguments."""
    name = name.strip()
    if not name or len(name) > 200 or any(sign.isspace() for sign in name):
        raise UnreadableError("a call must begin with the tool's name")
    value, end = json_value(arguments.strip() or "{}")
    if not isinstance(value, dict) or arguments.strip()[end:].strip():
        raise UnreadableError("the arguments must be one JSON object")
    return Heard(name, arguments.strip() or "{}", number.strip())


def no_constant(name: str) -> Any:
    """For json's `parse_constant`: NaN and Infinity are Python's words, none of JSON's (ValueError)."""
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=no_constant, strict=False)
