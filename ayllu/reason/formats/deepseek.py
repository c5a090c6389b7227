"""DeepSeek V3, R1 and V3.1: every border is a control token.

<｜User｜> and <｜Assistant｜> begin turns, <｜end▁of▁sentence｜> ends the model's. Calls stand between
<｜tool▁call▁begin｜> and <｜tool▁call▁end｜>: V3 and R1 write function<｜tool▁sep｜>name and the arguments
in a fence of JSON, V3.1 writes name<｜tool▁sep｜>{...}. Results stand between <｜tool▁output▁begin｜> and
its end. A thought is <think>...</think>; the prompt of a reasoning model opens it already.
"""

from __future__ import annotations

from ayllu.reason.formats.form import (
    THINKING,
    Does,
    Format,
    Mark,
    Parts,
    UnreadableError,
    named_call,
)
from ayllu.reason.transcript import Heard, Kind

_SEPARATOR = "<｜tool▁sep｜>"


def read(parts: Parts) -> list[Heard]:
    """One call; the fence, where there is one, begins on the line after the name."""
    inside = "".join(text for mark, text in parts if mark == _SEPARATOR)
    if len(parts) != 2:
        raise UnreadableError("a call must have one separator between name and arguments")
    name, line, rest = inside.strip().partition("\n")
    if line and rest.lstrip().startswith("```"):
        fence = rest.strip().removeprefix("```json").removeprefix("```").removesuffix("```")
        return [named_call(name, fence)]
    return [named_call(parts[0][1], inside)]


DEEPSEEK = Format(
    name="deepseek",
    signs=("<｜Assistant｜>",),
    marks={
        "<｜begin▁of▁sentence｜>": Mark(Does.SKIP),
        "<｜end▁of▁sentence｜>": Mark(Does.END),
        "<｜User｜>": Mark(Does.OPEN, Kind.USER),
        "<｜Assistant｜>": Mark(Does.OPEN, Kind.SAY),
        "<｜tool▁calls▁begin｜>": Mark(Does.SKIP),
        "<｜tool▁call▁begin｜>": Mark(Does.OPEN, Kind.CALL),
        _SEPARATOR: Mark(Does.PART),
        "<｜tool▁call▁end｜>": Mark(Does.CLOSE, Kind.CALL),
        "<｜tool▁calls▁end｜>": Mark(Does.SKIP),
        "<｜tool▁outputs▁begin｜>": Mark(Does.SKIP),
        "<｜tool▁output▁begin｜>": Mark(Does.OPEN, Kind.RESULT),
        "<｜tool▁output▁end｜>": Mark(Does.CLOSE, Kind.RESULT),
        "<｜tool▁outputs▁end｜>": Mark(Does.SKIP),
        **THINKING,
    },
    read=read,
    begins=Kind.SYSTEM,
)
