"""What models write in other families' chat formats: it is read as it was meant, early, and nothing of it is
an exception."""

# ruff: noqa: E501 (what models write has lines of its own)

from __future__ import annotations

import json
from typing import Any

import pytest
from family_chats import (
    BONN,
    CALLS,
    CALLS_END,
    FORGED,
    QWEN_CALL,
    ULM,
    USER,
    V3_CALL,
    V31_CALL,
    WEATHER,
    asks,
    gives,
    ids_of,
    seen,
    texts_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ayllu.reason.foreign import TemplateChat
from ayllu.reason.transcript import Kind, Transcript

TURNS = [
    ("llama", '{"name": "weather", "parameters": {"city": "Ulm"}}<|eot_id|>', [ULM]),
    ("llama", '<|python_tag|>{"name": "weather", "parameters": {"city": "Ulm"}}<|eom_id|>', [ULM]),
    ("llama", '{"name": "weather", "parameters": {"city": "Ulm"}}; {"type": "function", "function": '
     '{"name": "weather", "parameters": {"city": "Bonn"}}}<|eot_id|>', [ULM, BONN]),
    ("llama", '<|python_tag|>weather.call(city="Ulm")<|eom_id|>', [ULM]),
    ("llama", "<|python_tag|>print(1)\nprint(2)<|eom_id|>", [("call", "python", {"code": "print(1)\nprint(2)"})]),
    ("llama", '{"name": "Ann", "age": 3}<|eot_id|>', [("say", '{"name": "Ann", "age": 3}')]),
    ("llama", '{"a": 1} is an object \n<|eot_id|>', [("say", '{"a": 1} is an object \n')]),
    ("llama", '{"name": "weather", "parameters": {"city"', [("say", '{"name": "weather", "parameters": {"city"')]),
    ("llama", "Hello.<|eot_id|>", [("say", "Hello.")]),
    ("mistral", '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Ulm"}}, {"name": "weather", '
     '"arguments": {"city": "Bonn"}, "id": "123456789"}]</s>', [ULM, BONN]),
    ("mistral", " Hallo </s>", [("say", " Hallo ")]),
    ("mistral 11", 'Moment.[TOOL_CALLS]weather[CALL_ID]123456789[ARGS]{"city": "Ulm"}[TOOL_CALLS]weather[ARGS]'
     '{"city": "Bonn"}</s>', [("say", "Moment."), ULM, BONN]),
    ("mistral 11", '[TOOL_CALLS]weather{"city": "Ulm"}</s>', [ULM]),
    ("deepseek", f"hm\n</think>\n\nGut.{CALLS}{V3_CALL % 'Ulm'}\n{V3_CALL % 'Bonn'}{CALLS_END}",
     [("think", "hm"), ("say", "Gut."), ULM, BONN]),
    ("deepseek", "hm\n</think>\n\nGut.<｜end▁of▁sentence｜>", [("think", "hm"), ("say", "Gut.")]),
    ("deepseek", "No thought at all.<｜end▁of▁sentence｜>", [("say", "No thought at all.")]),
    ("deepseek 3.1", f"{CALLS}{V31_CALL % 'Ulm'}{V31_CALL % 'Bonn'}{CALLS_END}", [ULM, BONN]),
]  # fmt: skip
for _name in ("qwen", "hermes"):
    TURNS += [
        (_name, f"<think>\nhm\n</think>\n\nSo:\n{QWEN_CALL % 'Ulm'}\n{QWEN_CALL % 'Bonn'}<|im_end|>",
         [("think", "hm"), ("say", "So:"), ULM, BONN]),
        (_name, "<tool_call>\n<function=weather>\n<parameter=city>\nUlm\n</parameter>\n</function>\n</tool_call>"
         "<|im_end|>", [ULM]),
        (_name, '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Ulm\\"}"}</tool_call><|im_end|>', [ULM]),
        (_name, '<tool_call>{"name": "f", "arguments": {"a": "{"}}<|im_end|>', [("call", "f", {"a": "{"})]),
        (_name, "<think></think> \n Ja.<|im_end|>", [("say", "Ja.")]),
        (_name, "a < b > c.<x>.<|im_end|>", [("say", "a < b > c.<x>.")]),
        (_name, "<think>cut off", [("think", "cut off")]),
        (_name, "Ein <tool_", [("say", "Ein <tool_")]),
    ]  # fmt: skip
TURNS += [
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "</tool_call> \\" <think>"}}</tool_call>.<|im_end|>',
     [("call", "f", {"a": '</tool_call> " <think>'}), ("say", ".")]),
    ("qwen", f"<think>I could{QWEN_CALL % 'Ulm'}<|im_end|>", [("think", "I could"), ULM]),
    ("hermes", "<think>I could <tool_call></think>Nein.<|im_end|>",
     [("think", "I could <tool_call>"), ("say", "Nein.")]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "wanted"), TURNS)
def test_what_models_write(
    chats: dict[str, TemplateChat], name: str, text: str, wanted: list[tuple[Any, ...]]
) -> None:
    chat = chats[name]
    start = chat.from_messages([USER], tools=[WEATHER])
    ids = ids_of(chat, text)
    grown = chat.extend(start, ids)
    assert grown.ids() == start.ids() + ids and grown.sampled() == [False] * len(start.ids()) + [True] * len(
        ids
    )
    assert seen(Transcript(grown.latest), chat) == wanted
    message = chat.to_message(grown)
    made = [
        (c["function"]["name"], json.loads(c["function"]["arguments"])) for c in message.get("tool_calls", [])
    ]
    assert [("call", *one) for one in made] == [part for part in wanted if part[0] == "call"]
    assert (message["content"] or "") == "".join(part[1] for part in wanted if part[0] == "say")
    assert [call.error for call in chat.calls(grown)] == [""] * len(made)
    check_stream(chat, start, ids)
    # In two goes: the same conversation.
    assert chat.extend(chat.extend(start, ids[:3]), ids[3:]) == grown


def check_stream(chat: TemplateChat, start: Transcript, ids: list[int]) -> None:
    """Token by token the same text comes out, early, and nothing is taken back."""
    reader = chat.reader(start)
    news = [piece for n in range(1, len(ids) + 1) for piece in reader.read(ids[:n], last=n == len(ids))]
    latest = chat.extend(start, ids).latest
    for kind in ("say", "call"):
        whole = "".join(chat.text(span) for span in latest if span.kind == kind)
        assert "".join(text for k, text in news if k == kind) == whole
    assert reader.thinking == sum(len(span.ids) for span in latest if span.kind == Kind.THINK)
    assert all(reader.said[i] < reader.said[i + 1] for i in range(len(reader.said) - 1))


def test_text_comes_while_it_is_written(chats: dict[str, TemplateChat]) -> None:
    for name in ("qwen", "hermes"):
        chat = chats[name]
        reader, ids = chat.reader(chat.start("x")), ids_of(chat, "<think>abc</think>defg")
        first = next(n for n in range(len(ids)) if ("think", "a") in reader.read(ids[: n + 1], last=False))
        assert chat.tokenizer.decode(ids[: first + 1]).endswith("a")


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("qwen", '<tool_call>{"name": "weather", "arguments": {"city": </tool_call><|im_end|>', "not valid JSON"),
        ("hermes", '<tool_call>{"name": "weather", "arguments": {"city": "U<|im_end|>', "not valid JSON"),
        ("qwen", "<tool_call></tool_call><|im_end|>", "empty"),
        ("qwen", '<tool_call>{"name": 7}</tool_call><|im_end|>', "the tool's name"),
        ("qwen", '<tool_call>{"name": "f", "arguments": [1]}</tool_call><|im_end|>', "a JSON object"),
        ("qwen", "<tool_call>" + '{"name":' * 3000 + "</tool_call><|im_end|>", "not valid JSON"),
        ("qwen", "<tool_call><function=f><parameter=a>1</tool_call><|im_end|>", "has no end"),
        ("llama", "<|python_tag|>f.call(city=)<|eom_id|>", "not valid JSON"),
        ("llama", "<|python_tag|>f.call(1)<|eom_id|>", "key="),
        ("llama", "<|python_tag|><|eom_id|>", "empty"),
        ("mistral", "[TOOL_CALLS] weather</s>", "no arguments"),
        ("mistral 11", "[TOOL_CALLS]weather[ARGS]{</s>", "not valid JSON"),
        ("mistral 11", "[TOOL_CALLS][ARGS]{}</s>", "the tool's name"),
        ("deepseek 3.1", "<｜tool▁call▁begin｜>weather<｜end▁of▁sentence｜>", "separator"),
        ("deepseek", "</think><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\n```<｜tool▁call▁end｜>",
         "not valid JSON"),
    ],
)  # fmt: skip
def test_a_broken_call_says_what_is_wrong(
    chats: dict[str, TemplateChat], name: str, text: str, error: str
) -> None:
    chat = chats[name]
    start = chat.from_messages([USER], tools=[WEATHER])
    grown = chat.extend(start, ids_of(chat, text))
    (call,) = chat.calls(grown)
    assert error in call.error
    after = chat.with_results(grown, [f"error: {call.error}"])
    assert ("result", f"error: {call.error}") in texts_of(after, chat)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_no_ids_are_an_error(chats: dict[str, TemplateChat], data: st.DataObject) -> None:
    for chat in chats.values():
        pieces = st.sampled_from(FORGED).map(lambda text, chat=chat: ids_of(chat, text))
        random = st.integers(0, chat.tokenizer.vocab_size - 1).map(lambda i: [i])
        ids = [i for part in data.draw(st.lists(pieces | random, max_size=12)) for i in part]
        start = chat.from_messages([USER], tools=[WEATHER])
        grown = chat.extend(start, ids)
        assert grown.ids() == start.ids() + ids and sum(grown.sampled()) == len(ids)
        if ids:
            check_stream(chat, start, ids)
        calls = chat.calls(grown)
        after = chat.with_results(grown, ["r"] * len(calls)) if calls else chat.add(grown, Kind.USER, "u")
        assert after.ids() and (
            not calls or [k for k, _ in texts_of(after, chat)].count("result") == len(calls)
        )


def test_two_calls_of_one_id_are_two_calls(chats: dict[str, TemplateChat]) -> None:
    for name, text in (
        ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": {}, "id": "123456789"}, {"name": "g", "arguments": {}, '
         '"id": "123456789"}]</s>'),
        ("mistral 11", "[TOOL_CALLS]f[CALL_ID]123456789[ARGS]{}[TOOL_CALLS]g[CALL_ID]123456789[ARGS]{}</s>"),
    ):  # fmt: skip
        chat = chats[name]
        grown = chat.extend(chat.from_messages([USER], tools=[WEATHER]), ids_of(chat, text))
        after = chat.with_results(grown, ["one", "two"])
        assert [part for part in texts_of(after, chat) if part[0] == "result"] == [
            ("result", "one"), ("result", "two"),
        ]  # fmt: skip


def test_half_a_character_in_a_call_is_no_error(chats: dict[str, TemplateChat]) -> None:
    chat = chats["qwen"]
    text = QWEN_CALL % "a\\ud800b" + "<|im_end|>"
    grown = chat.extend(chat.from_messages([USER], tools=[WEATHER]), ids_of(chat, text))
    (call,) = chat.calls(grown)
    assert json.loads(call.arguments) == {"city": "a?b"}
    for half in ("\ud800", "a\udfff"):
        after = chat.with_results(grown, [half])
        assert texts_of(after, chat)[-1] == ("result", half.encode("utf-8", "replace").decode())
    given = [USER, asks(("f", {"x": "\ud800"})), gives(0, "7")]
    assert ("call", "f", {"x": "?"}) in seen(chat.from_messages(given), chat)
