"""Messages as chat templates want them: OpenAI's JSON, checked and brought into the family's form.

OpenAI writes a call's arguments as JSON text; most templates want the object, some the text. Ids tie a
result to its call; a family may want ids of a form of its own, and where the form has none, results stand
in the order of the calls.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ayllu.errors import RequestError
from ayllu.reason.formats.form import Format
from ayllu.reason.transcript import Heard, Offer, offered_name
from ayllu.tools.tool import Tool

if TYPE_CHECKING:
    from ayllu.reason.formats.habits import Habits

_NOTHING: dict[str, Any] = {"type": "object", "properties": {}}


def schema(offer: Offer) -> dict[str, Any]:
    """A tool on offer as OpenAI's description of it, with all that templates look for."""
    given: dict[str, Any] = {"name": offered_name(offer), "description": "", "parameters": _NOTHING}
    if isinstance(offer, Tool):
        given |= {"description": offer.description, "parameters": offer.parameters}
    elif isinstance(offer, dict):
        given |= {key: value for key, value in offer["function"].items() if value is not None}
    return {"type": "function", "function": given}


def as_declared(call: Heard, tools: Sequence[dict[str, Any]]) -> Heard:
    """A call whose arguments came as bare texts, each as its tool declares it: what is to be a string is one,
    also where the text would be JSON (`12345`, a file's `{"a": 1}`)."""
    if not call.texts:
        return call
    known = [tool["function"].get("parameters") for tool in tools if tool["function"]["name"] == call.name]
    schema_of = known[0] if known and isinstance(known[0], dict) else {}
    properties = given if isinstance(given := schema_of.get("properties"), dict) else {}
    arguments = json.loads(call.arguments)
    for key, text in call.texts:
        if isinstance(one := properties.get(key), dict) and one.get("type") == "string":
            arguments[key] = text
    return replace(call, arguments=json.dumps(arguments, ensure_ascii=False))


def described(messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with the tools in the system's, for a template that has no place for them."""
    lines = [json.dumps(tool["function"], ensure_ascii=False) for tool in tools]
    text = "\n".join(["You may call these tools; their arguments are JSON:", *lines])
    if messages[0]["role"] == "system":
        text = f"{messages[0]['content']}\n\n{text}"
        messages = messages[1:]
    return [{"role": "system", "content": text}, *messages]


def as_history(messages: Iterable[dict[str, Any]], form: Format) -> list[dict[str, Any]]:
    """The messages with ids of the family's form and each call's results behind it, in its order.

    RequestError for a result without a call, a call without a result, and system messages that don't
    come first. A result that names no call belongs to the first that has none.
    """
    out: list[dict[str, Any]] = []
    open_: dict[str, dict[str, Any]] = {}  # id -> call
    results: dict[str, dict[str, Any]] = {}
    for index, message in enumerate(messages):
        role = message["role"]
        if role == "tool":
            number = message.get("tool_call_id")
            number = form.call_id(number) if number else next((i for i in open_ if i not in results), "")
            if number not in open_ or number in results:
                raise RequestError(
                    f"messages[{index}]: this result belongs to no call",
                    fix="a tool's result follows the assistant's call and names its id",
                )
            name = message.get("name") or open_[number]["function"]["name"]
            results[number] = {**message, "tool_call_id": number, "name": name}
            if len(results) == len(open_):
                out += [results[number] for number in open_]
                open_, results = {}, {}
            continue
        if open_:
            missing = next(number for number in open_ if number not in results)
            raise RequestError(f"messages[{index}]: the call {missing!r} has no result")
        if role in ("system", "developer"):
            if out and out[-1]["role"] != "system":
                raise RequestError("system messages must come first")
            if out:
                out[-1] = {**out[-1], "content": f"{out[-1]['content']}\n{message.get('content') or ''}"}
            else:
                out.append({**message, "role": "system"})
            continue
        if role not in ("user", "assistant"):
            raise RequestError(f"messages[{index}]: there is no role {role!r:.40}")
        if calls := message.get("tool_calls"):
            ids = [form.call_id(str(call.get("id") or f"call_{index}_{n}")) for n, call in enumerate(calls)]
            if len(set(ids)) != len(ids):
                raise RequestError(f"messages[{index}]: two calls have the same id")
            calls = [{**call, "id": number} for call, number in zip(calls, ids, strict=True)]
            open_ = {call["id"]: call for call in calls}
            message = {**message, "tool_calls": calls}
        out.append(message)
    if open_:
        missing = next(number for number in open_ if number not in results)
        raise RequestError(f"the call {missing!r} has no result")
    return out


@dataclass(frozen=True)
class History:
    """How a template wants its messages; without habits they have no calls."""

    habits: Habits | None

    def messages(self, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The messages for the template. RequestError for calls that it can't write."""
        return [self._message(message) for message in messages]

    def _message(self, message: dict[str, Any]) -> dict[str, Any]:
        if not message.get("tool_calls"):
            return {**message, "content": message.get("content") or ""}
        if self.habits is None or not self.habits.calls:
            raise RequestError(
                "this model's chat format has no calls",
                why="its chat template writes none, or in a form that is not read here",
                fix="send messages without calls",
            )
        calls = [
            {
                **call,
                "type": "function",
                "function": {**call["function"], "arguments": self._arguments(call["function"]["arguments"])},
            }
            for call in message["tool_calls"]
        ]
        content = message.get("content") if not self.habits.words_cost_calls else None
        content = content or (None if self.habits.no_content else "")
        return {**message, "content": content, "tool_calls": calls}

    def _arguments(self, given: Any) -> Any:
        assert self.habits is not None
        if self.habits.arguments_as_text:
            return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
        if not isinstance(given, str):
            return given
        try:
            value = json.loads(given or "{}")
        except (ValueError, RecursionError):
            value = None
        # What a model wrote and nobody could read stays in the history as it was.
        return value if isinstance(value, dict) else {"unreadable": given}
