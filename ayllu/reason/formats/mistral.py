"""Mistral's instruction formats, from version 3 (7B 0.3, Nemo) to 11 and 13 (Small 3.2, Devstral).

[INST] and [/INST] stand round a user's turn, </s> ends the model's. Up to version 7 calls are one list,
[TOOL_CALLS] [{"name": ..., "arguments": ..., "id": ...}], and a result is JSON between [TOOL_RESULTS] and
[/TOOL_RESULTS]; from 11 on each call has a mark of its own, [TOOL_CALLS]name[CALL_ID]id[ARGS]{...} (13:
without the id), and a result is [TOOL_RESULTS]id[TOOL_CONTENT]text[/TOOL_RESULTS]. Ids are nine letters or
digits (mistral-common's validation).
"""

from __future__ import annotations

import hashlib
import string

from ayllu.reason.formats.form import (
    THINKING,
    Does,
    Format,
    Mark,
    Parts,
    UnreadableError,
    json_calls,
    named_call,
)
from ayllu.reason.transcript import Heard, Kind
from ayllu.tools.calls import CallForm

_SIGNS = string.ascii_letters + string.digits


def read(parts: Parts) -> list[Heard]:
    """A list of JSON calls, or a name with its arguments."""
    head = parts[0][1].strip()
    if len(parts) == 1 and head[:1] in ("[", "{"):
        return json_calls(head)
    inside = dict(parts[1:])
    if "[ARGS]" in inside:
        return [named_call(head, inside["[ARGS]"], inside.get("[CALL_ID]", ""))]
    name, brace, rest = head.partition("{")  # version 7 of some: name{...}
    if len(parts) == 1 and brace:
        return [named_call(name, brace + rest)]
    raise UnreadableError("the call has no arguments")


def nine_signs(number: str) -> str:
    """The id itself if it has nine letters or digits, otherwise nine that are made from it."""
    if len(number) == 9 and number.isascii() and number.isalnum():
        return number
    digest = hashlib.blake2b(number.encode("utf-8", "replace"), digest_size=9).digest()
    return "".join(_SIGNS[byte % len(_SIGNS)] for byte in digest)


MISTRAL = Format(
    name="mistral",
    signs=("[INST]",),
    marks={
        "<s>": Mark(Does.SKIP),
        "</s>": Mark(Does.END),
        "[INST]": Mark(Does.OPEN, Kind.USER),
        "[/INST]": Mark(Does.CLOSE, Kind.USER),
        "[SYSTEM_PROMPT]": Mark(Does.OPEN, Kind.SYSTEM),
        "[/SYSTEM_PROMPT]": Mark(Does.CLOSE, Kind.SYSTEM, then=None),
        "[AVAILABLE_TOOLS]": Mark(Does.OPEN, Kind.SYSTEM),
        "[/AVAILABLE_TOOLS]": Mark(Does.CLOSE, Kind.SYSTEM, then=None),
        "[TOOL_CALLS]": Mark(Does.OPEN, Kind.CALL),
        "[CALL_ID]": Mark(Does.PART),
        "[ARGS]": Mark(Does.PART),
        "[TOOL_RESULTS]": Mark(Does.OPEN, Kind.RESULT),
        "[TOOL_CONTENT]": Mark(Does.PART),
        "[/TOOL_RESULTS]": Mark(Does.CLOSE, Kind.RESULT),
        "[THINK]": Mark(Does.OPEN, Kind.THINK),
        "[/THINK]": Mark(Does.CLOSE, Kind.THINK),
        **THINKING,
    },
    read=read,
    call_id=nine_signs,
    writes=CallForm(
        "[TOOL_CALLS]", "</s>", '[{"name": "NAME", "arguments": ', "}]", spaced=True, ends_turn=True
    ),
)
