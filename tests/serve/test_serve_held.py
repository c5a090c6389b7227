"""A caller's tools: whatever model answers, its calls fit the schemas that came with the request."""

from __future__ import annotations

import json

import pytest
import torch
from family_templates import FAMILIES, family_folder
from running_server import USER, post, running_server

from ayllu.engine.engine import Engine
from ayllu.model.config import ModelSettings
from ayllu.model.decoder import Decoder
from ayllu.reason.foreign import chat_of
from ayllu.serve.service import SamplingDefaults
from ayllu.text.tokenizer import Tokenizer

WEATHER = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "title": "Weather (of a place)",
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Ulm", "Köln"], "description": "a {9999} ~town"},
        "days": {"type": "array", "items": {"$ref": "#/$defs/day"}, "minItems": 1, "maxItems": 2},
    },
    "required": ["city", "days"],
    "$defs": {"day": {"type": "integer", "minimum": 1, "maximum": 7}},
}
LAMP = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}


def offer(name, parameters, **more):
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


TOOLS = [offer("get-weather", WEATHER), offer("lamp", LAMP)]


def random_engine(tokenizer):
    """A decoder that knows nothing."""
    torch.manual_seed(0)
    settings = ModelSettings(width=32, layers=2, head_dim=16, context=4096)
    decoder = Decoder(settings.config(tokenizer.vocab_size)).float().eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.3)
    return Engine(decoder, tokenizer=tokenizer)


@pytest.fixture(scope="module", params=["ours", "qwen", "llama", "mistral"])
def served(request, tmp_path_factory, tokenizer):
    """A server whose model writes tokens at random."""
    chat, known = None, tokenizer
    if request.param != "ours":
        path = tmp_path_factory.mktemp(request.param)
        chat = chat_of(family_folder(path, *FAMILIES[request.param]), Tokenizer.load(path))
        known = chat.tokenizer
    warm = SamplingDefaults(temperature=1.0)
    with running_server(known, lambda: random_engine(known), chat=chat, defaults=warm) as running:
        yield running


def made(running, **fields):
    """The one call of an answer."""
    create = running.client().chat.completions.create
    done = create(model="tiny", messages=USER, tools=TOOLS, **{"max_tokens": 300, **fields})
    choice = done.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    (call,) = choice.message.tool_calls
    return call.function.name, json.loads(call.function.arguments)


def test_a_call_is_forced_and_fits_its_schema(served):
    names = set()
    for seed in range(8):
        name, arguments = made(served, tool_choice="required", seed=seed)
        names.add(name)
        if name == "lamp":
            assert list(arguments) == ["on"] and isinstance(arguments["on"], bool)
        else:
            assert arguments.keys() == {"city", "days"} and arguments["city"] in ("Ulm", "Köln")
            assert 1 <= len(arguments["days"]) <= 2 and all(1 <= day <= 7 for day in arguments["days"])
    assert names == {"get-weather", "lamp"}


def test_the_named_tool_is_called(served):
    wanted = {"type": "function", "function": {"name": "lamp"}}
    for seed in range(4):
        assert made(served, tool_choice=wanted, seed=seed)[0] == "lamp"


def test_tokens_that_end_too_early_make_no_call(served):
    body = {"messages": USER, "tools": TOOLS, "tool_choice": "required", "max_tokens": 3}
    status, answer, _ = post(served, body)
    choice = answer["choices"][0]
    assert status == 200 and choice["finish_reason"] == "length" and "tool_calls" not in choice["message"]


# ---- what is told to the engine
ANSWER = ("<|answer|>", "Ein", "<|end|>")
DEEP: dict = {}
for _ in range(60):
    DEEP = {"type": "object", "properties": {"a": DEEP}}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array"},
        {"type": "object", "properties": 5},
        {"type": "object", "properties": {"a": {"type": "banana"}}},
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}},
        {"type": "object", "properties": {"a": {"type": "string", "pattern": "((a{1000}){1000}){1000}"}}},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"type": "object", "properties": {"a": {"$ref": "http://example.org/a.json"}}},
        {"properties": {"n": {"type": "integer", "minimum": 2, "maximum": 1}}, "required": ["n"]},
        DEEP,
    ],
)  # fmt: skip
def test_a_bad_schema_is_refused_before_any_work(scripted, schema):
    with scripted(*ANSWER) as running:
        body = {"messages": USER, "tools": [offer("fine", LAMP), offer("bad", schema)]}
        status, answer, _ = post(running, body)
        assert (status, answer["error"]["param"]) == (400, "tools[1].function.parameters"), answer
        assert not running.engine.prompts
        assert post(running, {"messages": USER})[0] == 200


def test_free_requests_are_held_to_calls_but_not_to_a_call(scripted, tokenizer):
    with scripted(*ANSWER) as running:
        for fields in ({"tools": TOOLS}, {"tools": TOOLS, "tool_choice": "none"}, {}):
            status, answer, headers = post(running, {"messages": USER, **fields})
            assert status == 200 and answer["choices"][0]["message"]["content"] == "Ein"
            assert "x-ignored-fields" not in headers
        held, none, plain = running.engine.params
        assert held.enclosed.open_id == tokenizer.control["<|tool|>"] and held.thinking is None
        assert none.enclosed.grammar is None and none == plain  # no call is opened at all


def test_keywords_that_can_not_be_held_to_are_told(scripted):
    tags = {"type": "array", "items": {"type": "string", "format": "uri-template"}, "uniqueItems": True}
    schema = {"type": "object", "properties": {"tags": tags, "uniqueItems": {"type": "boolean"}}}
    with scripted(*ANSWER) as running:
        status, _, headers = post(running, {"messages": USER, "tools": [offer("tag", schema)]})
        assert status == 200 and headers["x-ignored-fields"] == "tools[0].function.parameters (in part)"
        body = {"messages": USER, "tools": [offer("tag", schema, strict=True)]}
        status, answer, _ = post(running, body)
        assert (status, answer["error"]["param"]) == (400, "tools[0].function.parameters")
        assert "format, uniqueItems" in answer["error"]["message"]


def test_schemas_too_large_together_leave_the_names(scripted):
    words = {"type": "string", "enum": [f"word {n}" for n in range(2000)]}
    many = [offer(f"t{n}", {"type": "object", "properties": {"w": words}}) for n in range(4)]
    with scripted(*ANSWER) as running:
        status, _, headers = post(running, {"messages": USER, "tools": many})
        assert status == 200 and headers["x-ignored-fields"] == "tools.function.parameters"
        assert '"t3 "' in running.engine.params[0].enclosed.grammar.source
        status, answer, _ = post(running, {"messages": USER, "tools": many, "tool_choice": "required"})
        assert (status, answer["error"]["param"]) == (400, "tools")


@pytest.mark.parametrize("family", ["mistral 11", "hermes"])
def test_a_format_that_can_not_be_held_offers_tools_as_before(tmp_path, family):
    chat = chat_of(family_folder(tmp_path, *FAMILIES[family]), Tokenizer.load(tmp_path))
    engine = random_engine(chat.tokenizer)
    with running_server(chat.tokenizer, lambda: engine, chat=chat) as running:
        for more, where in (
            ({"tools": TOOLS, "tool_choice": "required"}, "tool_choice"),
            ({"tools": [offer("lamp", LAMP, strict=True)]}, "tools[0].function.strict"),
        ):
            status, answer, _ = post(running, {"messages": USER, **more})
            error = answer["error"]
            assert (status, error["param"], error["code"]) == (400, where, "unsupported_value")
        assert post(running, {"messages": USER, "tools": TOOLS, "max_tokens": 4})[0] == 200
