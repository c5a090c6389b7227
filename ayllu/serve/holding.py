"""Calls to a caller's tools, held to the schemas that came with the request.

The same grammar as for tools of our own (ayllu/tools/calls.py), made of schemas that strangers wrote. Each
is tried out by itself first, in the engine's other process, so that a bad one is a 400 that names its tool
before any work is done. Where a chat format's calls can't be held to anything, tools are offered as they are,
and whoever asked for more (`strict`, a forced call) is refused.
"""

from __future__ import annotations

import json
from functools import lru_cache

from ayllu.engine.grammar import MAX_SOURCE, checked
from ayllu.engine.request import Grammar, SamplingParams
from ayllu.errors import RequestError
from ayllu.reason.foreign import TemplateChat
from ayllu.reason.loop import held_to
from ayllu.reason.transcript import Chat
from ayllu.serve.faults import invalid
from ayllu.serve.openai import ChatRequest, forced_names
from ayllu.tools.calls import grammar_of
from ayllu.tools.schemas import held_schema

_KEPT = 256  # verdicts on schemas
_NOT_SERVED = "unsupported_value"


def held_calls(
    params: SamplingParams, chat: Chat | TemplateChat, request: ChatRequest
) -> tuple[SamplingParams, list[str]]:
    """`params` that hold calls to `request.tools` and force one where it is asked for, and the names of what
    they are not held to. ApiError 400, with the field."""
    functions, forced = [offer.function for offer in request.tools or ()], forced_names(request)
    if (form := chat.forced_form if forced else chat.call_form) is None:
        why = "this model's chat format has no calls that can be held to a schema"
        for index, function in enumerate(functions):
            if function.strict:
                raise invalid(why, f"tools[{index}].function.strict", _NOT_SERVED)
        if forced:
            raise invalid(f"a call can't be forced: {why}", "tool_choice", _NOT_SERVED)
        return params, []
    rules, ignored = [], list[str]()
    for index, function in enumerate(functions):
        where = f"tools[{index}].function.parameters"
        # As text it is the key of what is remembered; the order of properties counts.
        asked = json.dumps(function.parameters)
        # A long one (of descriptions, mostly) would be kept for long; short ones are what agents repeat.
        schema, dropped, why = (_verdict if len(asked) <= MAX_SOURCE else _judged)(asked)
        if why:
            raise invalid(f"this schema can't be used: {why}", where)
        if dropped and function.strict:
            keywords = ", ".join(dropped)
            raise invalid(f"calls can't be held to these keywords: {keywords}", where, _NOT_SERVED)
        ignored += [f"{where} (in part)"] * bool(dropped)
        if not forced or function.name in forced:
            rules.append((function.name, schema))
    grammar = grammar_of(rules, form)
    try:
        checked(Grammar("lark", grammar))
    except RequestError as error:
        if forced or any(function.strict for function in functions):
            raise invalid(f"these schemas are too large together: {error.why}", "tools") from error
        grammar = grammar_of([(name, {"type": "object"}) for name, _ in rules], form)
        ignored = ["tools.function.parameters"]
    return held_to(params, chat, form, grammar, forced=bool(forced)), ignored


def _judged(parameters: str) -> tuple[dict[str, object], tuple[str, ...], str]:
    """(schema to hold to, keywords left out of it, why it can't be used)."""
    try:
        schema, dropped = held_schema(json.loads(parameters))
        checked(Grammar("json_schema", json.dumps(schema)))
    except (ValueError, RecursionError) as error:
        return {}, (), str(error) if isinstance(error, ValueError) else "it is too deep"
    except RequestError as error:
        return {}, (), error.why or error.what
    return schema, tuple(dropped), ""


_verdict = lru_cache(maxsize=_KEPT)(_judged)
