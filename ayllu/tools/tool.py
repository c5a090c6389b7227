"""What a model may call: a Tool, the Call that it writes, the Result that it reads.

A call is text that a model wrote, so nothing about it is trusted: the name is looked up, the
arguments are parsed as JSON and checked against the tool's JSON schema, the result is cut to a
size, and whatever goes wrong becomes a result that begins with `error:`. A model can read that and
try again; an exception would end the conversation (verl#3070 is such a bug).

The schema language is a small subset of JSON Schema (draft 2020-12): objects of named properties of
type string, integer, number or boolean, with `enum`, `maxLength`, `minimum`, `maximum`. A keyword
outside the subset is refused when the tool is made, because a check that is silently skipped is
worse than none.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}
OBJECT_KEYWORDS = {"type", "properties", "required", "description", "additionalProperties"}
PROPERTY_KEYWORDS = {"type", "description", "enum", "maxLength", "minimum", "maximum"}
NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
# C0, DEL and C1, Unicode's own two line ends, and what turns the direction of writing (its property
# Bidi_Control; Boucher and Anderson 2021, "Trojan Source"). The joiners stay: Telugu is written with them.
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
MAX_STRING = 8192  # characters of one string, where the schema says nothing
MAX_ARGUMENTS = 1 << 20  # characters of JSON: more than any call has whose strings fit, escapes included
WAITING = "(the user has been told and is to answer)"


class ToolError(Exception):
    """Raised inside a tool: the text is for the model, which reads it after `error: `."""


@dataclass(frozen=True)
class Tool:
    """One tool. `run` takes checked arguments and returns text, or raises ToolError.

    `seconds` is the time limit of one call (None: the tool is bounded by construction). It stops the
    waiting, not the work: a tool that runs foreign code needs a wall of its own.
    `changes_something` marks tools that act on the world; a Toolbox runs them only when confirmed.
    `varies`: the same call may give something else the next time (a clock, a program with files).
    `ends_turn`: the text is for the user, whose turn it is then; the model reads WAITING.
    `asks`: it waits for the user to answer, however long that takes; no time limit is put on it.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    run: Callable[[dict[str, Any]], str]
    changes_something: bool = False
    seconds: float | None = None
    varies: bool = False
    ends_turn: bool = False
    asks: bool = False

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"tool name {self.name!r}: lower-case letters, digits and _ only")
        check_schema(self.parameters)


@dataclass(frozen=True)
class Call:
    """What a model wrote: a tool's name and the JSON text of its arguments, both unchecked."""

    name: str
    arguments: str

    @classmethod
    def parse(cls, text: str) -> Call:
        """`calculator {"expression":"2+2"}` -> Call. Never fails: the Toolbox judges the content."""
        name, _, arguments = text.strip().partition(" ")
        return cls(name, arguments.strip())

    @property
    def text(self) -> str:
        """The form in which a call stands between `<|tool|>` and `<|/tool|>`."""
        return f"{self.name} {self.arguments}"


@dataclass(frozen=True)
class Result:
    """What a call gave: `text` for the model. `valid`: the call itself was well formed (known tool, arguments
    that fit). `told`: what the user is told, who speaks next, where a tool has ended the turn. `asked`:
    seconds that the user took to confirm the call, which are no tool's."""

    ok: bool
    text: str
    valid: bool = True
    told: str = ""
    asked: float = field(default=0.0, compare=False)


def check_schema(schema: dict[str, Any]) -> None:
    """ValueError unless `schema` stays inside the subset that `check_arguments` enforces."""
    if schema.get("type") != "object" or not schema.keys() <= OBJECT_KEYWORDS:
        raise ValueError(f"parameters must be a plain object schema, not {schema}")
    if schema.get("additionalProperties", False) is not False:
        raise ValueError("additionalProperties: arguments that are not declared are always refused")
    properties = schema.get("properties", {})
    for name, rule in properties.items():
        if rule.get("type") not in TYPES or not rule.keys() <= PROPERTY_KEYWORDS:
            raise ValueError(f"property {name!r}: {rule} is outside the supported subset of JSON Schema")
        if not all(_sensible(keyword, value) for keyword, value in rule.items()):
            raise ValueError(f"property {name!r}: {rule} has a value of another kind than its keyword needs")
    if missing := set(schema.get("required", ())) - properties.keys():
        raise ValueError(f"required but not declared: {sorted(missing)}")


def _sensible(keyword: str, value: Any) -> bool:
    """Whether a keyword of a property has a value that it can have."""
    if keyword == "enum":
        return isinstance(value, list | tuple) and all(isinstance(v, str | int | float) for v in value)
    if keyword == "maxLength":
        return type(value) is int and value >= 0
    if keyword in ("minimum", "maximum"):
        return type(value) in (int, float) and math.isfinite(value)
    return isinstance(value, str)


def check_arguments(schema: dict[str, Any], arguments: Any) -> str:
    """Why `arguments` don't fit `schema`, in words for the model; "" when they do."""
    if not isinstance(arguments, dict):
        return "the arguments must be a JSON object"
    properties = schema.get("properties", {})
    for name in schema.get("required", ()):
        if name not in arguments:
            return f"the argument {name} is missing"
    for name, value in arguments.items():
        if name not in properties:
            return f"there is no argument {name[:40]}"
        if why := misfit(properties[name], value):
            return f"the argument {name} {why}"
    return ""


def misfit(rule: dict[str, Any], value: Any) -> str:
    """Why `value` doesn't fit a property's schema, in words for the model; "" when it does."""
    kind = rule["type"]
    if type(value) not in TYPES[kind]:  # not isinstance: a bool is an int in Python, not in JSON
        return f"must be of type {kind}"
    if "enum" in rule and value not in rule["enum"]:
        return f"must be one of {', '.join(map(str, rule['enum']))}"
    if kind == "string" and len(value) > rule.get("maxLength", MAX_STRING):
        return f"is longer than {rule.get('maxLength', MAX_STRING)} characters"
    if "minimum" in rule and value < rule["minimum"]:
        return f"is below {rule['minimum']}"
    if "maximum" in rule and value > rule["maximum"]:
        return f"is above {rule['maximum']}"
    return ""


def cut(text: str, limit: int) -> str:
    """`text`, or its head and tail round a visible mark when it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    mark = f" …[{len(text) - limit} characters cut]… "
    tail = limit // 4
    return text[: limit - tail] + mark + (text[-tail:] if tail else "")


def whole(text: str) -> str:
    """`text` with a ? for each half character (a lone surrogate): JSON can write it, no vocabulary has it."""
    return text.encode("utf-8", "replace").decode()


def escaped(text: str, keep: str = "") -> str:
    """`text` with its control characters, but for those in `keep`, written out: `\\x1b`, `\\u202e`."""
    return CONTROL.sub(lambda found: found[0] if found[0] in keep else ascii(found[0])[1:-1], text)


def _reject_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


class Toolbox:
    """The tools that one conversation may call, by name.

    `confirm(tool, arguments)` is asked before a tool that changes something; without it such tools
    are refused. `result_limit` is in characters.
    """

    def __init__(
        self,
        tools: Iterable[Tool] = (),
        *,
        result_limit: int = 2000,
        confirm: Callable[[Tool, dict[str, Any]], bool] | None = None,
    ) -> None:
        self.tools, self.result_limit, self.confirm = tuple(tools), result_limit, confirm
        self.by_name = {tool.name: tool for tool in self.tools}
        if len(self.by_name) != len(self.tools):
            raise ValueError(f"two tools of one name: {sorted(tool.name for tool in self.tools)}")

    @property
    def names(self) -> tuple[str, ...]:
        """Tool names in the order given."""
        return tuple(tool.name for tool in self.tools)

    def only(self, names: Iterable[str]) -> Toolbox:
        """The toolbox with just these tools (unknown names are left out)."""
        wanted = set(names)
        kept = [tool for tool in self.tools if tool.name in wanted]
        return Toolbox(kept, result_limit=self.result_limit, confirm=self.confirm)

    def run(self, name: str, arguments: str, *, seconds: float | None = None) -> Result:
        """Run one call given its name and its arguments as JSON text. Never raises for a bad call.

        `seconds`: a time limit beside the tool's own; none of them holds for a tool that `asks`.
        """
        tool = self.by_name.get(name)
        if tool is None:
            known = ", ".join(self.names) or "none"
            return Result(False, f"error: there is no tool {name[:40]}; tools: {known}", valid=False)
        if len(arguments) > MAX_ARGUMENTS:
            return Result(False, f"error: more than {MAX_ARGUMENTS} characters of arguments", valid=False)
        try:
            values = json.loads(arguments, parse_constant=_reject_constant)
        except (ValueError, RecursionError):  # ValueError covers bad syntax and integers of > 4300 digits
            return Result(False, "error: the arguments are not valid JSON", valid=False)
        if why := check_arguments(tool.parameters, values):
            return Result(False, f"error: {why}", valid=False)
        asked = 0.0
        if tool.changes_something:
            begun = time.monotonic()
            confirmed = self.confirm is not None and self.confirm(tool, values)
            asked = time.monotonic() - begun
            if not confirmed:
                return Result(False, f"error: {name} was not confirmed by the user", asked=asked)
        limits = [limit for limit in (tool.seconds, seconds) if limit is not None and not tool.asks]
        result = _timed(tool, values, min(limits)) if limits else _run(tool, values)
        text = cut(result.text, self.result_limit)
        if tool.ends_turn and result.ok:
            return Result(True, WAITING, told=text, asked=asked)
        return Result(result.ok, text, asked=asked)

    def call(self, call: Call) -> Result:
        """`run` for a Call."""
        return self.run(call.name, call.arguments)


def _run(tool: Tool, arguments: dict[str, Any]) -> Result:
    try:
        text = tool.run(arguments)
    except ToolError as error:
        return Result(False, f"error: {error}")
    except Exception as error:  # a defect of the tool must not end the conversation
        return Result(False, f"error: {tool.name} failed: {type(error).__name__}")
    return Result(True, text) if isinstance(text, str) else Result(False, f"error: {tool.name} gave no text")


def _timed(tool: Tool, arguments: dict[str, Any], seconds: float) -> Result:
    """`_run` on a daemon thread that is waited for at most `seconds`."""
    box: list[Result] = []
    thread = threading.Thread(target=lambda: box.append(_run(tool, arguments)), daemon=True)
    thread.start()
    thread.join(seconds)
    return box[0] if box else Result(False, f"error: {tool.name} took longer than {seconds:.3g} s")
