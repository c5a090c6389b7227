"""ChatML with Hermes' tool calls: Nous Hermes 2 and 3, Qwen 2.5, QwQ, Qwen 3, and Qwen 3 Coder's form.

<|im_start|>role, a line's end, the text, <|im_end|> (OpenAI's ChatML). A call is a JSON object between
<tool_call> and </tool_call>; a result stands between <tool_response> and </tool_response>, in a user's
turn (Qwen) or in a tool's (Hermes). Qwen 3 Coder writes the arguments one by one instead:
<function=name><parameter=key>value</parameter></function>.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from ayllu.reason.formats.form import (
    THINKING,
    Does,
    Format,
    Mark,
    Parts,
    UnreadableError,
    json_calls,
    named_call,
    no_constant,
)
from ayllu.reason.transcript import Heard, Kind
from ayllu.tools.calls import CallForm

_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"


def read(parts: Parts) -> list[Heard]:
    """JSON objects, or Qwen 3 Coder's functions."""
    text = "".join(text for _, text in parts).strip()
    if not text.startswith(_FUNCTION):
        return json_calls(text)
    found = list[Heard]()
    while text:
        heard, text = _function(text)
        found.append(heard)
    return found


def _function(text: str) -> tuple[Heard, str]:
    """One function with its parameters, and the text behind it. What is JSON is taken as JSON until the
    tool's schema is known (`as_declared`), all other values are text."""
    name, sign, rest = text[len(_FUNCTION) :].partition(">")
    if not sign or not text.startswith(_FUNCTION):
        raise UnreadableError("the function's name has no end")
    arguments: dict[str, Any] = {}
    texts = list[tuple[str, str]]()
    while (rest := rest.lstrip()).startswith(_PARAMETER):
        key, sign, rest = rest[len(_PARAMETER) :].partition(">")
        value, end, rest = rest.partition(_PARAMETER_END)
        if not sign or not end:
            raise UnreadableError(f"the parameter {key[:40]!r} has no end")
        value = value.removeprefix("\n").removesuffix("\n")
        try:
            arguments[key] = json.loads(value, parse_constant=no_constant)
            json.dumps(arguments[key], allow_nan=False)  # 1e999 is read as infinity
        except (ValueError, RecursionError):
            arguments[key] = value
        texts.append((key, value))
    if rest and not rest.startswith(_FUNCTION_END):
        raise UnreadableError("there is more than parameters in the function")
    heard = named_call(name, json.dumps(arguments, ensure_ascii=False))
    return replace(heard, texts=tuple(texts)), rest.removeprefix(_FUNCTION_END).strip()


HERMES = Format(
    name="hermes",
    signs=("<|im_start|>",),
    marks={
        "<|im_start|>": Mark(Does.HEAD),
        "<|im_end|>": Mark(Does.END),
        "<|endoftext|>": Mark(Does.END),
        "<tool_call>": Mark(Does.OPEN, Kind.CALL),
        "</tool_call>": Mark(Does.CLOSE, Kind.CALL),
        "<tool_response>": Mark(Does.OPEN, Kind.RESULT),
        "</tool_response>": Mark(Does.CLOSE, Kind.RESULT, then=None),
        **THINKING,
    },
    read=read,
    roles={"system": Kind.SYSTEM, "user": Kind.USER, "assistant": Kind.SAY, "tool": Kind.RESULT},
    head_ends="\n",
    writes=CallForm("<tool_call>", "</tool_call>", '\n{"name": "NAME", "arguments": ', "}\n", spaced=True),
)
