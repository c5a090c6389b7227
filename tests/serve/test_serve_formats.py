"""Tools, thoughts and parallel calls of models with a template of their own, as the `openai` client sees them."""

# ruff: noqa: E501 (what models write has lines of its own)

from __future__ import annotations

import itertools
import json

import pytest
from family_templates import FAMILIES, family_folder
from running_server import CONTEXT, USER, ScriptedEngine, get, post, running_server

from ayllu.errors import ModelFileDamagedError, RequestError
from ayllu.reason.foreign import chat_of
from ayllu.text.tokenizer import Tokenizer

CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "the sky", "parameters": CITY}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "%s"}}\n</tool_call>'
BOTH = f"<think>\nI need it.\n</think>\n\nMoment.\n{CALL % 'Ulm'}\n{CALL % 'Köln'}<|im_end|>"


class Served:
    """A server whose model says `reply`, or what `reply` makes of the prompt's text."""

    def __init__(self, path, family, reply):
        self.chat = chat_of(family_folder(path, *FAMILIES[family]), Tokenizer.load(path))
        self.names = {number: name for name, number in self.chat.tokenizer.control.items()}
        self.engine = ScriptedEngine(
            lambda ids: self.ids(reply if isinstance(reply, str) else reply(self.text(ids)))
        )
        self.engine.context_length = 4 * CONTEXT
        self.running = running_server(self.chat.tokenizer, lambda: self.engine, chat=self.chat)

    def ids(self, text):
        ids = []
        while text:
            found = [(text.index(n), -len(n), n) for n in self.chat.tokenizer.control if n in text]
            at, _, name = min(found, default=(len(text), 0, ""))
            ids += [
                *self.chat.tokenizer.encode(text[:at]),
                *([self.chat.tokenizer.control[name]] if name else []),
            ]
            text = text[at + len(name) :]
        return ids

    def text(self, ids):
        runs = itertools.groupby(ids, lambda i: self.names.get(i))
        return "".join(
            name * len(list(run)) if name else self.chat.tokenizer.decode(run) for name, run in runs
        )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("family", ["qwen", "hermes"])
def test_parallel_calls_and_their_results(tmp_path, family, stream):
    served = Served(tmp_path, family, lambda text: "Sonnig.<|im_end|>" if "<tool_response>" in text else BOTH)
    with served.running as running:
        create = running.client().chat.completions.create
        got = create(model="tiny", messages=USER, tools=[TOOL], stream=stream)
        if stream:
            choices = [chunk.choices[0] for chunk in got]
            reason = choices[-1].finish_reason
            content = "".join(c.delta.content or "" for c in choices)
            thought = "".join(getattr(c.delta, "reasoning_content", None) or "" for c in choices)
            calls: dict[int, dict[str, str]] = {}
            for piece in (p for c in choices for p in c.delta.tool_calls or ()):
                call = calls.setdefault(
                    piece.index, {"id": piece.id, "name": piece.function.name, "arguments": ""}
                )
                call["arguments"] += piece.function.arguments
            made = [calls[n] for n in sorted(calls)]
        else:
            message, reason = got.choices[0].message, got.choices[0].finish_reason
            content, thought = message.content, message.reasoning_content
            made = [
                {"id": c.id, "name": c.function.name, "arguments": c.function.arguments}
                for c in message.tool_calls
            ]
        assert (content, thought, reason) == ("Moment.", "I need it.", "tool_calls")
        assert [(c["name"], json.loads(c["arguments"])) for c in made] == [
            ("weather", {"city": "Ulm"}), ("weather", {"city": "Köln"}),
        ]  # fmt: skip
        assert len({c["id"] for c in made}) == 2
        history = [
            *USER,
            {"role": "assistant", "content": content, "reasoning_content": thought, "tool_calls": [
                {"id": c["id"], "type": "function", "function": {"name": c["name"], "arguments": c["arguments"]}}
                for c in made]},
            {"role": "tool", "tool_call_id": made[1]["id"], "content": "two"},
            {"role": "tool", "tool_call_id": made[0]["id"], "content": "one"},
        ]  # fmt: skip
        done = create(model="tiny", messages=history, tools=[TOOL])
        assert done.choices[0].message.content == "Sonnig."
        first, second = map(served.text, served.engine.prompts)
        assert second.startswith(first + BOTH), "the history is what was written"
        assert '"description": "the sky"' in first and second.index("\none\n") < second.index("\ntwo\n")


def test_one_call_at_a_time_when_asked(tmp_path):
    with Served(tmp_path, "qwen", BOTH).running as running:
        create = running.client().chat.completions.create
        done = create(model="tiny", messages=USER, tools=[TOOL], parallel_tool_calls=False)
        assert [json.loads(c.function.arguments) for c in done.choices[0].message.tool_calls] == [
            {"city": "Ulm"}
        ]


def test_no_tools_when_none_are_to_be_chosen(tmp_path):
    served = Served(tmp_path, "qwen", "Ja.<|im_end|>")
    with served.running as running:
        create = running.client().chat.completions.create
        done = create(model="tiny", messages=USER, tools=[TOOL], tool_choice="none")
        assert done.choices[0].message.content == "Ja." and "weather" not in served.text(
            served.engine.prompts[0]
        )


def test_a_thought_that_the_prompt_opened(tmp_path):
    reply = "hm\n</think>\n\nGrün.<｜end▁of▁sentence｜>"
    served = Served(tmp_path, "deepseek", reply)
    with served.running as running:
        done = running.client().chat.completions.create(model="tiny", messages=USER, logprobs=True)
        message = done.choices[0].message
        assert (message.content, message.reasoning_content) == ("Grün.", "hm")
        assert done.usage.completion_tokens == len(served.ids(reply))
        assert done.usage.completion_tokens_details.reasoning_tokens == len(served.ids("hm\n</think>"))
        said = b"".join(bytes(t.bytes) for t in done.choices[0].logprobs.content)
        assert said.decode().strip() == "Grün."


def test_the_template_is_told_not_to_think(tmp_path):
    served = Served(tmp_path, "qwen", "Ja.<|im_end|>")
    with served.running as running:
        more = {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}
        running.client().chat.completions.create(model="tiny", messages=USER, **more)
        assert served.text(served.engine.prompts[0]).endswith("<think>\n\n</think>\n\n")
        body = {"messages": USER, "chat_template_kwargs": {"messages": []}}
        assert post(running, body)[0] == 400
        status, _, headers = post(running, {"messages": USER, "tools": [TOOL]})
        assert status == 200 and "x-ignored-fields" not in headers


def test_a_conversation_that_the_template_cannot_write_is_the_callers(tmp_path, monkeypatch):
    served = Served(tmp_path, "qwen", "Ja.<|im_end|>")
    with served.running as running:
        written = served.chat.from_messages

        def damaged(messages, **more):
            if len(messages) > 1:
                raise ModelFileDamagedError(
                    "the chat template failed", why="'dict object' has no attribute 'x'"
                )
            return written(messages, **more)

        monkeypatch.setattr(served.chat, "from_messages", damaged)
        status, body, _ = post(running, {"messages": USER * 2})
        assert (status, body["error"]["param"]) == (400, "messages") and "no attribute" in body["error"][
            "message"
        ]
        assert post(running, {"messages": USER})[0] == 200


def test_readiness_does_not_need_the_template(tmp_path, monkeypatch):
    served = Served(tmp_path, "qwen", "Ja.<|im_end|>")

    def refuses(user, **more):
        raise RequestError("the chat template refuses this conversation", why="a system message comes first")

    monkeypatch.setattr(served.chat, "start", refuses)
    with served.running as running:
        assert get(running, "/readyz")[0] == 200
        assert post(running, {"messages": USER})[0] == 200


def test_a_call_that_can_t_be_read_goes_back_to_the_model(tmp_path):
    def reply(text):
        return (
            "Schade.<|im_end|>"
            if "<tool_response>" in text
            else '<tool_call>{"name": "wea</tool_call><|im_end|>'
        )

    served = Served(tmp_path, "qwen", reply)
    with served.running as running:
        done = running.client().chat.completions.create(model="tiny", messages=USER, tools=[TOOL])
        message = done.choices[0].message
        assert message.content == "Schade." and not message.tool_calls
        assert message.ayllu_trace[0]["result"] == "error: the call is not valid JSON"


@pytest.mark.parametrize("family", ["qwen", "mistral 11"])
def test_the_servers_own_calculator(tmp_path, family):
    call = {
        "qwen": '<tool_call>{"name": "calculator", "arguments": {"expression": "17+25"}}</tool_call><|im_end|>',
        "mistral 11": '[TOOL_CALLS]calculator[ARGS]{"expression": "17+25"}</s>',
    }[family]
    end = call[call.rindex("<") :]
    served = Served(tmp_path, family, lambda text: f"= 42{end}" if "42" in text else call)
    with served.running as running:
        more = {"extra_body": {"ayllu_tools": ["calculator"]}}
        done = running.client().chat.completions.create(model="tiny", messages=USER, **more)
        assert done.choices[0].message.content == "= 42" and done.choices[0].finish_reason == "stop"
        first, second = map(served.text, served.engine.prompts)
        assert second.startswith(first + call) and "calculator" in first
