"""The grammar of every call that a toolbox accepts, so that a model can be held to it while it writes.

A call of our own models is `name {"compact":"json"}`; other families have forms of theirs (CallForm). The
grammar says which names there are and, behind each, what the tool's own JSON schema allows, in the order of
its properties and in the one spacing that conversations are trained on. What it lets through, `Toolbox.run`
finds valid: both read the same schema.
(Constrained decoding by an automaton over the vocabulary: Willard and Louf 2023, arXiv 2307.09702.)

The text is a grammar in Lark's notation with llguidance's `%json`; whoever has an engine compiles it, once
for a toolbox. Descriptions are no part of it, and signs that mean something in a grammar are escaped, so that
what a stranger's tool calls its values can't get out of its quotes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ayllu.tools.tool import MAX_STRING, Tool, misfit

MOST = 10**15  # magnitude of whole numbers where the schema has no bound: JSON readers agree on them


@dataclass(frozen=True)
class CallForm:
    """How a call is written: the control tokens round it, and the text before and after its arguments, in
    which NAME stands for the tool's. `spaced`: a space behind commas and colons, as Python writes JSON.
    `ends_turn`: what closes it ends the turn as well, so that only a call that is forced can be held to it.
    """

    opens: str
    closes: str
    before: str
    after: str = ""
    spaced: bool = False
    ends_turn: bool = False


OURS = CallForm("<|tool|>", "<|/tool|>", "NAME ")


def call_grammar(tools: Iterable[Tool], form: CallForm = OURS) -> str:
    """The grammar of calls to `tools`; "" where no call is possible at all."""
    rules = [(tool.name, schema) for tool in tools if (schema := _schema(tool.parameters)) is not None]
    return grammar_of(rules, form)


def grammar_of(rules: Iterable[tuple[str, dict[str, Any]]], form: CallForm = OURS) -> str:
    """The grammar of calls to tools of these names with arguments of these schemas; "" for none. A name must
    not have signs that mean something in a grammar's quotes."""
    comma, colon = (", ", ": ") if form.spaced else (",", ":")
    spaces = {"whitespace_flexible": False, "item_separator": comma, "key_separator": colon}
    calls = []
    for name, schema in rules:
        before = json.dumps(form.before.replace("NAME", name))
        call = f"{before} %json {_quoted(schema | {'x-guidance': spaces})}"
        calls.append(f"{call} {json.dumps(form.after)}" if form.after else call)
    if not calls:
        return ""
    starts = " | ".join(f"call_{number}" for number in range(len(calls)))
    return "\n".join([f"start: {starts}", *(f"call_{number}: {call}" for number, call in enumerate(calls))])


def _schema(parameters: dict[str, Any]) -> dict[str, Any] | None:
    """A tool's schema with every bound written out; None where no arguments can fit it."""
    properties, required = {}, list(parameters.get("required", ()))
    for name, rule in parameters.get("properties", {}).items():
        bounded = _property(rule)
        if bounded is not None:
            properties[name] = bounded
        elif name in required:
            return None
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _property(rule: dict[str, Any]) -> dict[str, Any] | None:
    """One property's schema; None where no value can fit it."""
    kind = rule["type"]
    if "enum" in rule:
        values = [value for value in rule["enum"] if not misfit(rule, value)]
        return {"enum": values} if values else None
    if kind == "string":
        return {"type": kind, "maxLength": rule.get("maxLength", MAX_STRING)}
    if kind == "boolean":
        return {"type": kind}
    low, high = rule.get("minimum"), rule.get("maximum")
    if kind == "integer":
        low = math.ceil(low) if low is not None else min(-MOST, math.floor(high) if high is not None else 0)
        high = math.floor(high) if high is not None else max(MOST, low)
    if low is not None and high is not None and low > high:
        return None
    bounds = {"minimum": low, "maximum": high}
    return {"type": kind, **{name: value for name, value in bounds.items() if value is not None}}


def _quoted(schema: dict[str, Any]) -> str:
    """JSON in which brackets and repetitions of a grammar can't be mistaken for such."""
    text = json.dumps(schema)
    for sign in "()~":  # inside strings only: JSON has none of them
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return re.sub(r"\{(?=[\d,])", r"\\u007b", text)
