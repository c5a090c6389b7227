"""Further turns in other families' chat formats, one by one and in the loop: what is sampled stays what it
was, and what a template forgets is forgotten."""

from __future__ import annotations

from typing import Any

import pytest
from family_chats import (
    CALLS,
    CALLS_END,
    QWEN_CALL,
    ULM,
    USER,
    V3_CALL,
    V31_CALL,
    WEATHER,
    ids_of,
    seen,
    texts_of,
)
from scripted_engine import Params, ScriptedEngine

from ayllu.engine.request import SamplingParams, ThinkingBudget
from ayllu.errors import RequestError
from ayllu.reason.foreign import TemplateChat
from ayllu.reason.loop import answer_batch, answer_stream
from ayllu.reason.thinking import bounded
from ayllu.reason.transcript import Kind
from ayllu.tools.calculator import CALCULATOR
from ayllu.tools.tool import Toolbox

# ---- further turns
CANONICAL = {
    "llama": '{"name": "weather", "parameters": {"city": "Ulm"}}<|eot_id|>',
    "qwen": "<think>\nhm\n</think>\n\n" + QWEN_CALL % "Ulm" + "<|im_end|>",
    "hermes": "<think>\nhm\n</think>\n\n" + QWEN_CALL % "Ulm" + "<|im_end|>",
    "mistral": '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Ulm"}, "id": "123456789"}]</s>',
    "mistral 11": '[TOOL_CALLS]weather[CALL_ID]123456789[ARGS]{"city": "Ulm"}</s>',
    "deepseek": f"</think>{CALLS}{V3_CALL % 'Ulm'}{CALLS_END}",
    "deepseek 3.1": f"{CALLS}{V31_CALL % 'Ulm'}{CALLS_END}",
}


def test_sampled_ids_stay_and_the_template_goes_on_behind_them(chat: TemplateChat, family: str) -> None:
    start = chat.from_messages([USER], tools=[WEATHER])
    # A space that no template would write, so that encoding anew would not give the same ids.
    ids = ids_of(chat, CANONICAL[family].replace('{"city"', '{ "city"'))
    after = chat.with_results(chat.extend(start, ids), ["7 °C"])
    if family == "deepseek":  # this template opens a thought and forgets it: the history is written anew
        assert not any(after.sampled()) and ("result", "7 °C") in texts_of(after, chat)
        return
    assert after.ids()[: len(start.ids()) + len(ids)] == start.ids() + ids
    assert [i for i, mine in zip(after.ids(), after.sampled(), strict=True) if mine] == ids
    assert seen(after, chat)[-2:] == [ULM, ("result", "7 °C")]
    # What a template would have written anyway gives what it writes of the whole.
    ids = ids_of(chat, CANONICAL[family])
    after = chat.with_results(chat.extend(start, ids), ["7 °C"])
    assert after.ids() == chat.from_messages(after.messages, tools=[WEATHER]).ids()  # type: ignore[attr-defined]


def test_a_question_after_an_answer(chat: TemplateChat, family: str) -> None:
    end = chat.tokenizer.decode([chat.stop_ids[0]]) or next(
        name for name, number in chat.tokenizer.control.items() if number == chat.stop_ids[0]
    )
    start = chat.start("one")
    for text in ("two " + end, "two "):  # ended by itself, or cut off
        ids = ids_of(chat, ("</think>" if family == "deepseek" else "") + text)
        answered = chat.extend(start, ids)
        assert chat.answer(answered) == "two "
        second = chat.add(answered, Kind.USER, "three")
        assert seen(second, chat)[-1] == ("user", "three") and chat.answer(second) is None
        kept = second.ids()[: len(start.ids()) + len(ids)] == start.ids() + ids
        assert kept == (family != "deepseek") and any(second.sampled()) == kept
        again = chat.from_messages(
            [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two "},
             {"role": "user", "content": "three"}]
        )  # fmt: skip
        if family != "llama":  # which trims
            assert second.ids() == again.ids()


def test_a_thought_that_the_template_forgets_is_forgotten(chats: dict[str, TemplateChat]) -> None:
    chat = chats["qwen"]
    answered = chat.extend(chat.start("one"), ids_of(chat, "<think>\nhm\n</think>\n\ntwo<|im_end|>"))
    second = chat.add(answered, Kind.USER, "three")
    assert "hm" not in chat.tokenizer.decode(second.ids()) and not any(second.sampled())
    assert seen(second, chat) == [("user", "one"), ("say", "two"), ("user", "three")]


def test_thinking_can_be_turned_off(chats: dict[str, TemplateChat]) -> None:
    quiet = chats["qwen"].from_messages([USER], options={"enable_thinking": False})
    assert not quiet.thinks  # type: ignore[attr-defined]
    loud = chats["deepseek 3.1"].from_messages([USER], options={"thinking": True})
    assert loud.thinks  # type: ignore[attr-defined]
    opens, closes = chats["qwen"].thought  # type: ignore[misc]
    held = bounded(SamplingParams(), chats["qwen"], quiet, 9).thinking
    assert held == ThinkingBudget(opens, closes, maximum=9)
    assert chats["qwen"].tokenizer.decode([opens, closes]) == "<think></think>"
    assert bounded(SamplingParams(), chats["deepseek 3.1"], loud, 9).thinking.opened  # type: ignore[union-attr]
    assert chats["hermes"].thought is None, "there its marks are ordinary text"
    with pytest.raises(RequestError, match="option"):
        chats["qwen"].from_messages([USER], options={"messages": []})


# ---- the loop
def test_the_loop_runs_the_calls_of_another_family(chats: dict[str, TemplateChat]) -> None:
    box = Toolbox([CALCULATOR])
    for name in ("qwen", "hermes"):
        chat = chats[name]
        one, two = (
            f'<tool_call>{{"name": "calculator", "arguments": {{"expression": "{e}"}}}}</tool_call>'
            for e in ("1+2", "3*4")
        )
        replies = [
            f"<think>\nhm\n</think>{one}{two}<|im_end|>",
            f"{one[:30]}</tool_call><|im_end|>",
            "15<|im_end|>",
        ]
        asked: list[list[int]] = []

        def reply(
            prompt: list[int], chat: Any = chat, replies: Any = replies, asked: Any = asked
        ) -> list[int]:
            asked.append(prompt)
            return ids_of(chat, replies[len(asked) - 1])

        start = chat.start("1+2+3*4?", tools=box.tools)
        (answer,) = answer_batch(ScriptedEngine(reply, context_length=4096), chat, [start], box, Params())
        assert [part for part in texts_of(answer.transcript, chat) if part[0] in ("result", "say")] == [
            ("result", "3"), ("result", "12"), ("result", "error: the call is not valid JSON"), ("say", "15"),
        ]  # fmt: skip
        assert (answer.calls, answer.valid_calls, answer.finish_reason) == (3, 2, "stop")
        sampled = [i for r in replies for i in ids_of(chat, r)]
        ids = zip(answer.transcript.ids(), answer.transcript.sampled(), strict=True)
        assert [i for i, mine in ids if mine] == sampled and answer.tokens == len(sampled)
        assert answer.thinking_tokens == len(ids_of(chat, "<think>\nhm\n</think>"))
        asked.clear()
        events = list(answer_stream(ScriptedEngine(reply, context_length=4096), chat, start, box, Params()))
        assert events[-1].answer is not None and events[-1].answer.transcript == answer.transcript
        assert [e.text for e in events if e.kind == "call"][:2] == [
            'calculator {"expression": "1+2"}', 'calculator {"expression": "3*4"}',
        ]  # fmt: skip
