"""A stranger's JSON schema (draft 2020-12), made ready to hold a model to.

Tools of our own keep to a small subset (tool.py). A caller of the server, or a program of theirs, writes what
JSON Schema allows: words for people, which no grammar needs; rules that the compiler knows (llguidance); and
some that it doesn't, such as `uniqueItems`. Those are left out, and named, so that whoever asked for a
strict schema can be refused and all others told.
"""

from __future__ import annotations

from typing import Any

_SCHEMAS = ("additionalProperties", "items")  # keywords whose value is a schema
_LISTS = ("anyOf", "allOf", "oneOf", "prefixItems")  # or a list of them
_NAMED = ("properties", "patternProperties", "$defs", "definitions")  # or schemas by name
_RULES = (
    "type", "enum", "const", "required", "$ref", "$anchor", "nullable", "pattern", "minLength", "maxLength",
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minItems", "maxItems",
    "minProperties", "maxProperties",
)  # fmt: skip
_FORMATS = (
    "date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid",
)  # fmt: skip
_WORDS = (
    "title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly",
    "$comment", "$schema", "$id", "strict", "discriminator", "x-guidance",
)  # fmt: skip
_JOINED = ("anyOf", "allOf", "oneOf", "$ref", "patternProperties")


def held_schema(parameters: Any) -> tuple[dict[str, Any], list[str]]:
    """(what a call's arguments are held to, keywords of `parameters` that are not part of it).

    Nothing given means any object. A property that isn't declared is left out where the schema doesn't speak
    of such. ValueError, in words for its author, for what can't be the schema of an object.
    """
    if parameters is None:
        return {"type": "object"}, []
    if not isinstance(parameters, dict):
        raise ValueError("parameters must be a JSON schema, an object")
    dropped: list[str] = []
    schema: dict[str, Any] = _kept(parameters, dropped)
    kinds = schema.get("type", "object")
    if "object" not in (kinds if isinstance(kinds, list) else [kinds]):
        raise ValueError("parameters must be the schema of an object: a call's arguments are one")
    schema["type"] = "object"
    declared, wanted = schema.get("properties"), schema.get("required")
    if wanted is not None and not (
        isinstance(wanted, list) and all(isinstance(name, str) for name in wanted)
    ):
        raise ValueError("required must be a list of names")
    closed = "additionalProperties" not in schema and not schema.keys() & set(_JOINED)
    # One that is required and not declared may be anything, and there has to be room for it.
    known = not isinstance(wanted, list) or not isinstance(declared, dict) or declared.keys() >= set(wanted)
    if declared and closed and known:
        schema["additionalProperties"] = False
    return schema, sorted(set(dropped))


def _kept(schema: Any, dropped: list[str]) -> Any:
    """A schema without words and without rules that can't be held to; what it is not to be is left as it is,
    for the compiler to refuse. (A caller's JSON is no deeper than its parser allows.)"""
    if not isinstance(schema, dict):
        return schema
    out: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _WORDS:
            continue
        if key in _SCHEMAS:
            several = isinstance(value, list)
            out[key] = [_kept(one, dropped) for one in value] if several else _kept(value, dropped)
        elif key in _LISTS:
            out[key] = [_kept(one, dropped) for one in value] if isinstance(value, list) else value
        elif key in _NAMED:
            named = isinstance(value, dict)
            out[key] = {name: _kept(one, dropped) for name, one in value.items()} if named else value
        elif key in _RULES or (key == "format" and value in _FORMATS):
            out[key] = value
        else:
            dropped.append(key)
    return out
