"""What a chat template does with calls and thoughts: found by trying it, not by believing its name.

Templates of one family differ in what they want (arguments as an object or as JSON text, an empty content
or none) and in what they keep. A small conversation is rendered in each way and read again with the
format's own marks: tools are offered only to a model whose calls come back as they went in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ayllu.errors import ModelFileDamagedError, RequestError
from ayllu.reason.formats.reading import Piece
from ayllu.reason.transcript import Heard, Kind

if TYPE_CHECKING:
    from ayllu.reason.template import ChatTemplate, Rendered, Run

Reading = Callable[[Sequence["Run"]], tuple[list[Piece], bool]]

_ARGUMENTS = {"place": "Arequipa"}
_THOUGHT = "thirteen llamas"
_TOOL = {
    "type": "function",
    "function": {
        "name": "altitude",
        "description": "How high a place is",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string", "description": "a town"}},
            "required": ["place"],
        },
    },
}
_USER = {"role": "user", "content": "How high?"}
_RESULT = {"role": "tool", "content": "2335 m", "tool_call_id": "abc123def", "name": "altitude"}


@dataclass(frozen=True)
class Habits:
    """`tools`: the template describes those on offer; where it only writes calls, we describe them.
    `calls`: the history may have calls, `arguments_as_text` and with `no_content` at all if need be;
    `words_cost_calls`: beside a content that isn't empty the template leaves them out.
    `thoughts_in_turn` and `thoughts_after`: whether a thought stays
    in the history until the turn ends, and after the next question; where it doesn't, the conversation
    is rendered anew."""

    tools: bool = False
    calls: bool = False
    arguments_as_text: bool = False
    no_content: bool = False
    words_cost_calls: bool = False
    thoughts_in_turn: bool = False
    thoughts_after: bool = False


def habits_of(template: ChatTemplate, read: Reading) -> Habits:
    """Try a template out."""
    thought = {"role": "assistant", "content": "High.", "reasoning_content": _THOUGHT}
    after = _shows(_tried(template, [_USER, thought, _USER]), _THOUGHT)
    offered = _tried(template, [_USER], tools=[_TOOL])
    # Some templates are for conversations with tools only.
    for more in ({}, {"tools": [_TOOL]}):
        for no_content in (False, True):
            for as_text in (False, True):
                call = _call(no_content=no_content, as_text=as_text)
                rendered = _tried(template, [_USER, call, _RESULT], **more)
                if rendered is None or not _comes_back(read(rendered.runs)[0]):
                    continue
                beside = _tried(template, [_USER, {**call, "content": "Let me look."}, _RESULT], **more)
                in_turn = _tried(template, [_USER, {**call, "reasoning_content": _THOUGHT}, _RESULT], **more)
                return Habits(
                    tools=_shows(offered, "altitude") and _shows(offered, "place"),
                    calls=True,
                    arguments_as_text=as_text,
                    no_content=no_content,
                    words_cost_calls=beside is None or not _comes_back(read(beside.runs)[0]),
                    thoughts_in_turn=_shows(in_turn, _THOUGHT),
                    thoughts_after=after,
                )
    return Habits(thoughts_in_turn=after, thoughts_after=after)


def _call(*, no_content: bool, as_text: bool) -> dict[str, Any]:
    arguments = json.dumps(_ARGUMENTS) if as_text else _ARGUMENTS
    function = {"name": "altitude", "arguments": arguments}
    return {
        "role": "assistant",
        "content": None if no_content else "",
        "tool_calls": [{"id": "abc123def", "type": "function", "function": function}],
    }


def _tried(template: ChatTemplate, messages: list[dict[str, Any]], **more: Any) -> Rendered | None:
    try:
        return template.render(messages, **more)
    except (RequestError, ModelFileDamagedError):
        return None


def _comes_back(pieces: Sequence[Piece]) -> bool:
    found: list[Heard] = [call for piece in pieces if piece.kind == Kind.CALL for call in piece.calls]
    return [(call.name, _loads(call.arguments), call.error) for call in found] == [
        ("altitude", _ARGUMENTS, "")
    ]


def _loads(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _shows(rendered: Rendered | None, text: str) -> bool:
    return rendered is not None and text in rendered.text
