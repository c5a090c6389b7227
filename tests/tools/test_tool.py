"""Calls written by models: whatever they hold, a Result comes back."""

import json
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ayllu.tools.tool import MAX_ARGUMENTS, Call, Result, Tool, Toolbox, ToolError, check_arguments, cut

SCHEMA = {
    "type": "object",
    "properties": {
        "word": {"type": "string", "maxLength": 5},
        "times": {"type": "integer", "minimum": 1, "maximum": 3},
        "loud": {"type": "boolean"},
        "mood": {"type": "string", "enum": ["glad", "calm"]},
        "weight": {"type": "number"},
    },
    "required": ["word"],
}


def repeat(arguments):
    return arguments["word"] * arguments.get("times", 1)


REPEAT = Tool("repeat", "Says a word again.", SCHEMA, repeat)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({"word": "ab"}, ""),
        ({"word": "ab", "times": 3, "loud": True, "mood": "glad", "weight": 1}, ""),
        ({}, "word is missing"),
        ([], "JSON object"),
        ("word", "JSON object"),
        (None, "JSON object"),
        ({"word": 3}, "of type string"),
        ({"word": "abcdef"}, "longer than 5"),
        ({"word": "a", "times": 0}, "below 1"),
        ({"word": "a", "times": 4}, "above 3"),
        ({"word": "a", "times": True}, "of type integer"),
        ({"word": "a", "times": 1.5}, "of type integer"),
        ({"word": "a", "loud": 1}, "of type boolean"),
        ({"word": "a", "mood": "sad"}, "one of glad, calm"),
        ({"word": "a", "colour": "red"}, "no argument colour"),
    ],
)
def test_schema(arguments, why):
    found = check_arguments(SCHEMA, arguments)
    assert why in found and bool(found) == bool(why)
    result = Toolbox([REPEAT]).run("repeat", json.dumps(arguments))
    assert result.valid == (not why) and result.text.startswith("error: ") == bool(why)


NOTHING = {"type": "object", "properties": {}}
NOT_JSON = ["", "{", '{"word": NaN}', '{"word": Infinity}', "[" * 5000, '{"times": ' + "9" * 5000 + "}"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*SCHEMA["properties"], "x"]), inner),
    max_leaves=6,
)


@given(st.text(max_size=12) | st.just("repeat"), st.text(max_size=40) | json_values.map(json.dumps))
def test_any_call_gives_a_result(name, arguments):
    result = Toolbox([REPEAT]).run(name, arguments)
    assert isinstance(result.text, str)
    assert result.ok != result.text.startswith("error: ")
    assert result.valid or not result.ok


@pytest.mark.parametrize("text", NOT_JSON)
def test_broken_json(text):
    result = Toolbox([REPEAT]).run("repeat", text)
    assert result == Result(False, "error: the arguments are not valid JSON", valid=False)


def test_long_arguments_are_not_parsed():
    assert not Toolbox([REPEAT]).run("repeat", json.dumps({"word": "a" * MAX_ARGUMENTS})).valid


@given(st.text(max_size=300), st.integers(1, 200))
def test_cut_is_visible_and_keeps_both_ends(text, limit):
    short = cut(text, limit)
    if len(text) <= limit:
        assert short == text
    else:
        assert f"[{len(text) - limit} characters cut]" in short
        assert short.startswith(text[: limit - limit // 4]) and short.endswith(text[len(text) - limit // 4 :])


def test_a_long_result_is_cut():
    flood = Tool("flood", "", NOTHING, lambda _: "x" * 10_000)
    result = Toolbox([flood], result_limit=100).run("flood", "{}")
    assert result.ok and "9900 characters cut" in result.text and len(result.text) < 140


def fails(_):
    raise ToolError("the shop is closed")


def breaks(_):
    raise KeyError("secret detail")


@pytest.mark.parametrize(
    ("run", "text"),
    [
        (fails, "error: the shop is closed"),
        (breaks, "error: tool failed: KeyError"),
        (lambda _: 42, "error: tool gave no text"),
    ],
)
def test_a_failing_tool_gives_an_error_result(run, text):
    box = Toolbox([Tool("tool", "", NOTHING, run)])
    assert box.run("tool", "{}") == Result(False, text, valid=True)


def test_a_slow_tool_is_not_waited_for():
    over = threading.Event()
    slow = Tool("slow", "", NOTHING, lambda _: f"late {over.wait(30)}", seconds=0.05)
    result = Toolbox([slow]).run("slow", "{}")
    over.set()
    assert (result.ok, result.text) == (False, "error: slow took longer than 0.05 s")
    quick = Tool("quick", "", NOTHING, lambda _: "now", seconds=60)
    assert Toolbox([quick]).run("quick", "{}").text == "now"


def test_tools_that_change_something_need_a_yes():
    done = []
    pay = Tool("pay", "", NOTHING, lambda _: done.append(1) or "paid", changes_something=True)
    assert not Toolbox([pay]).run("pay", "{}").ok
    assert not Toolbox([pay], confirm=lambda tool, arguments: False).run("pay", "{}").ok
    assert done == []
    assert Toolbox([pay], confirm=lambda tool, arguments: True).run("pay", "{}").text == "paid"


def test_call_text_both_ways():
    call = Call.parse('calculator {"expression":"1 + 2"}')
    assert call == Call("calculator", '{"expression":"1 + 2"}') and Call.parse(call.text) == call
    assert Call.parse("calculator") == Call("calculator", "")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array"},
        {"type": "object", "properties": {"a": {"type": "array"}}},
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "x"}}},
        {"type": "object", "properties": {}, "required": ["a"]},
        {"type": "object", "oneOf": []},
        {"type": "object", "additionalProperties": True},
    ],
)
def test_a_schema_that_can_not_be_enforced_is_refused(schema):
    with pytest.raises(ValueError):
        Tool("tool", "", schema, repeat)


def test_names():
    box = Toolbox([REPEAT, Tool("other", "", SCHEMA, repeat)])
    assert box.names == ("repeat", "other") and box.only(["other", "none"]).names == ("other",)
    assert "tools: repeat, other" in box.run("none", "{}").text
    with pytest.raises(ValueError):
        Toolbox([REPEAT, REPEAT])
    with pytest.raises(ValueError):
        Tool("Bad Name", "", SCHEMA, repeat)
