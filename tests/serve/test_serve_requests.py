"""Bad requests: each is refused with the field that is wrong, and none breaks the server."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from running_server import USER, get, post, raw, wait_until

TOOL = {"type": "function", "function": {"name": "a", "strict": True}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"messages": [*USER, {"role": "assistant", "content": "x"}]}, None),
        ({"messages": [*USER, *USER]}, None),
        ({"messages": [*USER, {"role": "tool", "content": "x"}]}, "messages[1].tool_call_id"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": 1 << 70}, "n"),
        ({"n": True}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"stop": [""]}, "stop[0]"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"logprobs": True, "top_logprobs": 3}, "top_logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"logit_bias": {"5": 100}}, "logit_bias"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"functions": [{"name": "a"}]}, "functions"),
        ({"function_call": {"name": "a"}}, "function_call"),
        ({"guided_json": {"type": "object"}}, "guided_json"),
        ({"min_tokens": 5}, "min_tokens"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"tools": [{"type": "function", "function": {"name": "a\n"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a\nb"}}]}, "tools[0].function.name"),
        ({"tools": [TOOL], "tool_choice": "always"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "function": {"name": "a"}}},
            "tool_choice",
        ),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "b"}}}, "tool_choice"),
        ({"ayllu_tools": ["shell"]}, "ayllu_tools[0]"),
        ({"seed": 1.5}, "seed"),
        ({"thinking_budget": -1}, "thinking_budget"),
    ],
)
def test_invalid_values_name_their_field(shared, fields, param):
    status, body, _ = post(shared, {"model": "tiny", "messages": USER, **fields})
    assert status == 400, body
    assert body["error"]["param"] == param
    assert isinstance(body["error"]["code"], str) and body["error"]["type"] == "invalid_request_error"
    assert set(body["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 200_000, b'{"messages":' + b'{"a":' * 100_000,
     b'{"messages":[{"role":"user","content":"\\ud800"}]}',
     b'{"messages":[{"role":"user","content":"\xc3"}]}',
     b'{"model":"tiny","messages":[{"role":"user","content":"a"}],"temperature":1e999}', b"{'a':1}"],
)  # fmt: skip
def test_broken_json_is_400(shared, body):
    status, answer, _ = post(shared, body)
    assert status == 400 and isinstance(answer["error"]["code"], str)


def test_neutral_values_pass(shared):
    neutral = {
        "response_format": {"type": "text"}, "tool_choice": "auto", "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": {}, "top_logprobs": 0, "logprobs": None, "n": None, "stop": None, "tools": [],
        "stream": False,
        "temperature": None, "parallel_tool_calls": True, "seed": -1, "max_tokens": None, "top_k": -1,
    }  # fmt: skip
    status, body, headers = post(shared, {"messages": USER, **neutral})
    assert status == 200 and "x-ignored-fields" not in headers, body


def test_sizes_types_routes_and_methods(shared):
    status, body, _ = post(shared, b" " * ((1 << 20) + 1))
    assert (status, body["error"]["code"]) == (413, "request_too_large")
    pieces = b"".join(b"10000\r\n" + b" " * 65536 + b"\r\n" for _ in range(17)) + b"0\r\n\r\n"
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    try:
        answer = raw(shared.port, head + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + pieces)
        assert b" 413 " in answer.split(b"\r\n")[0]
    except ConnectionError:
        pass  # refused while we were still sending: as good
    assert post(shared, b"{}", {"content-type": "text/plain"})[0] == 415
    assert get(shared, "/v1/chat/completions")[0] == 405
    assert get(shared, "/v1/models", method="DELETE")[1]["error"]["code"] == "method_not_allowed"
    for path in ("/", "/v1", "/v1/embeddings", "/metrics", "/docs", "/v1/models/", "/v1/chat/completions/"):
        status, body, _ = get(shared, path)
        assert status == 404 and isinstance(body["error"]["code"], str), path


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = [
    "model", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop",
    "n",
    "stream", "stream_options", "logprobs", "top_logprobs", "tools", "tool_choice", "response_format",
    "parallel_tool_calls", "frequency_penalty", "logit_bias", "ayllu_tools", "thinking_budget", "user",
    "metadata",
]  # fmt: skip
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant", "tool"])},
    optional={
        "content": st.text(max_size=40) | anything,
        "reasoning_content": anything,
        "tool_call_id": st.text(max_size=5),
        "tool_calls": anything
        | st.lists(
            st.fixed_dictionaries(
                {"id": st.text(max_size=3)},
                optional={
                    "function": st.fixed_dictionaries({"name": st.just("calculator"), "arguments": st.text()})
                },
            ),
            max_size=2,
        ),
    },
)
conversation = (
    st.lists(message, max_size=4).map(lambda head: [*head, *USER]) | st.lists(message, max_size=4) | anything
)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from(FIELDS), anything, max_size=4), conversation)
def test_no_request_breaks_the_server(shared, fields, messages):
    status, body, _ = post(shared, {"messages": messages, **fields})
    assert status in (200, 400, 404), body
    if status != 200:
        assert isinstance(body["error"]["message"], str) and isinstance(body["error"]["code"], str)
        assert not re.search(r'/home|/work|/tmp|File "|Traceback', json.dumps(body))
    elif isinstance(body, bytes):
        assert body.endswith(b"data: [DONE]\n\n") and b'{"error"' not in body


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=60))
def test_no_body_breaks_the_server(shared, body):
    assert post(shared, body)[0] == 400


def test_after_all_that_it_still_answers(shared):
    assert get(shared, "/healthz")[0] == 200 and get(shared, "/readyz")[0] == 200
    assert "version" in get(shared, "/version")[1]
    assert wait_until(lambda: shared.service._open_answers == 0)
