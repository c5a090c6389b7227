"""The grammar of calls against the judge of calls: what the one lets through, the other finds valid."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from ayllu.engine.grammar import checked
from ayllu.engine.grammar_worker import Bytes
from ayllu.engine.request import Grammar
from ayllu.tools.ask_user import ask_user_tool
from ayllu.tools.calculator import CALCULATOR
from ayllu.tools.calls import MOST, call_grammar
from ayllu.tools.chart import chart_tool
from ayllu.tools.clock import clock_tool
from ayllu.tools.schemas import held_schema
from ayllu.tools.sql import Database, Table, sql_tool
from ayllu.tools.tool import MAX_STRING, Tool, Toolbox
from ayllu.tools.units import UNIT_TOOL

TOKENIZER = LLTokenizer(TokenizerWrapper(Bytes()), n_vocab=257)
END = 256


def tool(name, properties, required=()):
    schema = {"type": "object", "properties": properties, "required": list(required)}
    return Tool(name, "", schema, lambda arguments: "ran")


def beginning(tools):
    return LLMatcher(TOKENIZER, checked(Grammar("lark", call_grammar(tools))), log_level=0)


def fits(matcher, text):
    place, raw = matcher.deep_copy(), text.encode()
    return place.try_consume_tokens(list(raw)) == len(raw) and place.is_accepting()


def walk(matcher, rng, most=400):
    """A text that a model with no idea would write, byte by byte; "" where it doesn't end."""
    place, written = matcher.deep_copy(), bytearray()
    while len(written) < most:
        if place.is_accepting() and (place.is_stopped() or rng.random() < 0.3):
            return written.decode()
        mask = place.compute_bitmask()
        allowed = [b for b in range(256) if mask[b // 8] >> b % 8 & 1]
        wanted = [b for b in allowed if b in b'"}'] if rng.random() < 0.4 else []
        byte = rng.choice(wanted or allowed)
        assert place.consume_token(byte)
        written.append(byte)
    return ""


numbers = st.integers(-50, 50) | st.integers(-(10**12), 10**12)
bounds = st.fixed_dictionaries({}, optional={"minimum": numbers, "maximum": numbers})
texts = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=6)
rules = st.one_of(
    st.builds(dict, type=st.just("string"), maxLength=st.integers(0, 5)),
    st.builds(dict, type=st.just("string"), enum=st.lists(texts, min_size=1, max_size=3)),
    st.just({"type": "boolean", "description": '("{9999}~'}),
    st.just({"type": "integer", "enum": [3, "x", 7]}),
    bounds.map(lambda found: {"type": "integer", **found}),
    bounds.map(lambda found: {"type": "number", **found}),
)
schemas = st.dictionaries(texts.filter(bool), rules, max_size=3)


@settings(deadline=None, max_examples=40)
@given(st.lists(schemas, min_size=1, max_size=2), st.data(), st.integers(0, 10**6))
def test_whatever_comes_out_is_valid(found, data, seed):
    tools = []
    for number, properties in enumerate(found):
        required = data.draw(st.lists(st.sampled_from(sorted(properties)), unique=True)) if properties else []
        tools.append(tool(f"tool_{number}", properties, required))
    if not call_grammar(tools):
        return
    matcher, box, rng = beginning(tools), Toolbox(tools), random.Random(seed)
    for _ in range(3):
        if text := walk(matcher, rng):
            name, arguments = text.split(" ", 1)
            assert box.run(name, arguments).valid, text


ALL = (
    CALCULATOR,
    UNIT_TOOL,
    clock_tool(),
    ask_user_tool(),
    sql_tool(Database([Table("t", [("a", "integer")], [])])),
    chart_tool(lambda chart: ""),
)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ('calculator {"expression":"417+385"}', True),
        ('calculator {"expression":"' + "9" * 200 + '"}', True),
        ('calculator {"expression":"' + "9" * 201 + '"}', False),
        ('calculator {"expression": "1"}', False),
        ('calculator {"expression":1}', False),
        ("calculator {}", False),
        ('calculator  {"expression":"1"}', False),
        ('Calculator {"expression":"1"}', False),
        ('units {"value":-2.5e3,"from":"m","to":"ఎం"}', True),
        ('units {"value":NaN,"from":"m","to":"km"}', False),
        ("clock {}", True),
        ('clock {"zone":"Lima","days":4000001}', False),
        ('chart {"kind":"pie","data":"a,b\\n1,2"}', True),
        ('chart {"kind":"donut"}', False),
        ('sql {"query":"SELECT 1"}', True),
        ('sql {"query":"SELECT 1","more":1}', False),
    ],
)
def test_calls_of_our_own_tools(text, good):
    assert fits(beginning(ALL), text) == good


def test_bounds_are_written_out():
    box = [
        tool(
            "t",
            {
                "s": {"type": "string"},
                "n": {"type": "integer"},
                "low": {"type": "integer", "minimum": MOST + 5},
            },
        )
    ]
    matcher = beginning(box)
    assert fits(matcher, f't {{"s":"{"x" * MAX_STRING}","n":{-MOST}}}')
    assert not fits(matcher, f't {{"s":"{"x" * (MAX_STRING + 1)}"}}')
    assert not fits(matcher, f't {{"n":{MOST + 1}}}') and not fits(matcher, 't {"n":1.0}')
    assert fits(matcher, f't {{"low":{MOST + 5}}}')
    long = json.dumps({"s": "\x01" * MAX_STRING}, separators=(",", ":"))
    assert Toolbox(box).run("t", long).valid, "a text of escapes only is not too long"


def test_what_can_not_be_called_is_left_out():
    never = tool("never", {"n": {"type": "integer", "minimum": 2, "maximum": 1}}, ["n"])
    maybe = tool("maybe", {"n": {"type": "integer", "enum": ["x"]}, "b": {"type": "boolean"}})
    assert call_grammar([]) == call_grammar([never]) == ""
    matcher = beginning([never, maybe])
    assert fits(matcher, 'maybe {"b":true}') and fits(matcher, "maybe {}")
    assert not fits(matcher, 'maybe {"n":1}') and not fits(matcher, 'never {"n":1}')


def test_descriptions_are_no_part_of_it():
    told = Tool(
        "t",
        "anything",
        {"type": "object", "properties": {"b": {"type": "boolean", "description": "(((("}}},
        str,
    )
    plain = tool("t", {"b": {"type": "boolean"}})
    assert call_grammar([told]) == call_grammar([plain])


def test_what_is_required_and_not_declared_has_room():
    """`additionalProperties: false` would leave no call at all."""
    city = {"type": "object", "properties": {"city": {"type": "string"}}}
    assert held_schema(city)[0]["additionalProperties"] is False
    assert held_schema(city | {"required": ["city"]})[0]["additionalProperties"] is False
    assert "additionalProperties" not in held_schema(city | {"required": ["city", "unit"]})[0]


@pytest.mark.parametrize("required", [[["a"]], "a", [1], {"a": 1}])
def test_required_is_a_list_of_names(required):
    with pytest.raises(ValueError, match="list of names"):
        held_schema({"type": "object", "properties": {"a": {"type": "string"}}, "required": required})
