"""What is rare in other families' formats, and was once read or rendered wrongly."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from family_chats import BONN, ULM, USER, WEATHER, asks, gives, ids_of, seen

from ayllu.engine.grammar import matcher
from ayllu.engine.request import Grammar, ThinkingBudget
from ayllu.reason.foreign import TemplateChat
from ayllu.reason.formats.form import UnreadableError, call_of
from ayllu.reason.formats.hermes import HERMES
from ayllu.reason.formats.history import as_declared
from ayllu.reason.thinking import thought_tokens, told
from ayllu.reason.vote import agreeing, winner

CALL = '{"name": "weather", "parameters": {"city": "%s"}}'


def test_llama_two_calls_of_one_tool_are_rendered_once(chats: dict[str, TemplateChat]) -> None:
    """The template takes one at a time: they come one after another, and none stands there twice."""
    chat = chats["llama"]
    start = chat.from_messages([USER], tools=[WEATHER])
    answered = chat.extend(start, ids_of(chat, f"{CALL % 'Ulm'}; {CALL % 'Bonn'}<|eot_id|>"))
    assert [part for part in seen(answered, chat) if part[0] == "call"] == [ULM, BONN]
    grown = chat.with_results(answered, ["12", "22"])
    later = [part for part in seen(grown, chat) if part[0] in ("call", "result")]
    assert later == [ULM, ("result", "12"), BONN, ("result", "22")]


@pytest.mark.parametrize("name", ["deepseek", "deepseek 3.1", "qwen", "mistral", "hermes"])
def test_words_before_a_call_do_not_cost_the_call(chats: dict[str, TemplateChat], name: str) -> None:
    if name not in chats:
        pytest.skip(f"no template of {name} here")
    chat = chats[name]
    told_first = asks(("weather", {"city": "Ulm"}), content="Let me look.")
    parts = seen(chat.from_messages([USER, told_first, gives(0, "12")], tools=[WEATHER]), chat)
    assert [part for part in parts if part[0] in ("call", "result")] == [ULM, ("result", "12")]


def test_json_that_names_no_tool_on_offer_is_an_answer(chats: dict[str, TemplateChat]) -> None:
    chat, text = chats["llama"], '{"name": "greet", "parameters": {"name": "string"}}'
    start = chat.from_messages([USER], tools=[WEATHER])
    said = chat.extend(start, ids_of(chat, f"{text}<|eot_id|>"))
    assert not chat.calls(said) and chat.answer(said) == text
    marked = chat.extend(start, ids_of(chat, f"<|python_tag|>{text}<|eom_id|>"))
    assert [call.name for call in chat.calls(marked)] == ["greet"], "with the mark it is meant as one"


# ---- Qwen 3 Coder
def read(text: str) -> list[Any]:
    return HERMES.read([("", text)])


def function(name: str, **values: str) -> str:
    inside = "".join(f"\n<parameter={key}>\n{value}\n</parameter>" for key, value in values.items())
    return f"<function={name}>{inside}\n</function>"


def test_two_functions_are_two_calls() -> None:
    found = read(function("remove", path="a") + "\n" + function("list", path="b"))
    assert [(c.name, json.loads(c.arguments)) for c in found] == [
        ("remove", {"path": "a"}), ("list", {"path": "b"}),
    ]  # fmt: skip
    for broken in ("<function=f>words<parameter=a>1</parameter></function>", "<function=f></function>rest"):
        with pytest.raises(UnreadableError):
            read(broken)


@pytest.mark.parametrize("text", ["12345", "true", '{"a": 1}', "null", "words", "NaN", "1e999"])
def test_what_is_declared_a_string_stays_one(text: str) -> None:
    properties = {"zip": {"type": "string"}, "n": {"type": "integer"}}
    tools = [{"function": {"name": "send", "parameters": {"properties": properties}}}]
    (heard,) = read(function("send", zip=text, n="3"))
    assert json.loads(as_declared(heard, tools).arguments) == {"zip": text, "n": 3}
    assert as_declared(replace(heard, texts=()), tools).arguments == heard.arguments


# ---- numbers, grammars, budgets, votes
def test_a_number_that_json_has_no_word_for_makes_a_call_unreadable() -> None:
    with pytest.raises(UnreadableError, match="too large"):
        call_of({"name": "f", "arguments": json.loads('{"x": 1e999}')})


def test_no_grammar_lets_a_control_token_in_that_has_a_text(chats: dict[str, TemplateChat]) -> None:
    """Qwen's <think> is bytes to the tokenizer and a mark to the reader: in a string it would be obeyed."""
    tokenizer = chats["qwen"].tokenizer
    control = sorted(set(tokenizer.control.values()))
    assert any(tokenizer.piece_bytes(i) for i in control), "or there is nothing to see here"
    inside = matcher(Grammar("regex", r'"[^"]*"'), tokenizer, tokenizer.vocab_size)
    inside.consume(tokenizer.encode('"')[0])
    found = inside.allowed()
    assert found is not None and not found[0][control].any() and found[0].sum() > 100


def test_what_a_budget_bounds_lies_between_the_marks() -> None:
    budget = ThinkingBudget(1, 2, maximum=5)
    assert thought_tokens((1, 7, 7, 2), budget) == 2
    assert thought_tokens((7, 7, 2), budget) == 2, "the prompt had opened it"
    assert thought_tokens((1, 7, 2, 9, 9), budget) == 1, "white space behind it is no thought"
    assert thought_tokens((1, 7, 7), budget) == 2
    assert thought_tokens((1, 7, 2), None) == 0


def test_the_budget_is_the_last_line_of_the_last_system_turn() -> None:
    system = [{"role": "system", "content": text} for text in ("A", "B")]
    assert [m["content"] for m in told([*system, USER], 16)] == ["A", "B\nthink: 16", USER["content"]]
    assert [m["content"] for m in told([USER], 16)] == ["think: 16", USER["content"]]
    assert system[1]["content"] == "B"


def test_an_empty_answer_has_no_vote() -> None:
    assert winner(["", " ", "", "42", "42"]) == 3
    assert agreeing(["", "", "", "42", "42"]) == (3, 2)
    assert agreeing(["", ""]) == (None, 0)
