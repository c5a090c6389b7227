"""Work that ends early: clients that go away, a full house, a failing engine, a shutdown."""

from __future__ import annotations

import json
import socket
import threading
import time

import openai
import pytest
from running_server import LONG, SHORT, USER, get, post, raw, wait_until

from ayllu.errors import EngineFailedError, GrammarFailedError, ResourceError
from ayllu.serve.connection import Connection
from ayllu.serve.faults import as_api_error
from ayllu.serve.limits import Limits
from ayllu.serve.service import SamplingDefaults


def test_closing_a_stream_frees_the_engine(scripted):
    with scripted(*LONG, delay=0.02) as running:
        stream = running.client().chat.completions.create(model="tiny", messages=USER, stream=True)
        assert any(chunk.choices[0].delta.content for chunk in stream)
        stream.close()
        assert wait_until(lambda: running.engine.cancelled == [1]), "cancelled"
        assert wait_until(lambda: running.service._open_answers == 0)
        steps = running.engine.steps
        time.sleep(0.1)
        assert running.engine.steps == steps, "nobody computes any more"


def test_closing_while_waiting_for_a_whole_answer_frees_the_engine(scripted):
    with scripted(*LONG, delay=0.02) as running:
        with pytest.raises(openai.APITimeoutError):
            running.client(timeout=0.3).chat.completions.create(model="tiny", messages=USER, n=2)
        assert wait_until(lambda: sorted(running.engine.cancelled) == [1, 2])
        assert wait_until(lambda: running.service._open_answers == 0)


def test_a_client_that_leaves_while_waiting_is_never_started(scripted):
    with scripted(*LONG, delay=0.005, limits=Limits(running=1, waiting=4, grace=0.5)) as running:
        first = running.client().chat.completions.create(model="tiny", messages=USER, stream=True)
        next(iter(first))
        assert wait_until(lambda: len(running.engine.prompts) == 1)
        with pytest.raises(openai.APITimeoutError):
            running.client(timeout=0.1).chat.completions.create(model="tiny", messages=USER)
        assert wait_until(lambda: running.service._open_answers == 1)
        list(first)
        assert wait_until(lambda: running.service._open_answers == 0)
        assert len(running.engine.prompts) == 1


def test_a_full_queue_is_503_with_retry_after(scripted):
    with scripted(
        *LONG, delay=0.02, limits=Limits(running=1, waiting=1, grace=0.5, ready_seconds=0.5)
    ) as running:
        create = running.client().chat.completions.create
        streams = [create(model="tiny", messages=USER, stream=True) for _ in range(2)]
        status, body, headers = post(running, {"messages": USER, "stream": True})
        assert (status, body["error"]["code"]) == (503, "queue_full") and int(headers["retry-after"]) > 0
        assert get(running, "/readyz")[0] == 200, "full is not dead"
        for stream in streams:
            stream.close()
        assert wait_until(lambda: running.service._open_answers == 0)
        assert post(running, {"messages": USER, "max_tokens": 2})[0] == 200


def test_silence_is_filled(scripted):
    with scripted(*SHORT, delay=0.25, limits=Limits(keep_alive=0.05, grace=0.5)) as running:
        _, body, headers = post(running, {"messages": USER, "stream": True, "max_tokens": 2})
        assert headers["content-type"].startswith("text/event-stream")
        assert body.count(b": keep-alive\n\n") >= 2
        events = [json.loads(line[6:]) for line in body.split(b"\n") if line.startswith(b"data: {")]
        assert all(event["choices"][0]["delta"] is not None for event in events)
        empty = [event for event in events if event["choices"][0]["delta"] == {"content": ""}]
        assert len(empty) == body.count(b": keep-alive\n\n")


def test_a_defect_of_ours_is_a_plain_500(scripted, monkeypatch, caplog):
    with scripted(*SHORT) as running:

        def defect(request, salt):
            raise KeyError("secret words in /home/user")

        monkeypatch.setattr(running.service, "prepare", defect)
        status, body, headers = post(running, {"messages": USER})
        assert (status, body["error"]["code"]) == (500, "internal_error") and headers["x-request-id"]
        assert "secret" not in json.dumps(body) + caplog.text and "KeyError" in caplog.text
        monkeypatch.undo()
        running.engine.script = lambda prompt: 1 // 0
        for stream in (False, True):
            _, body, _ = post(running, {"messages": USER, "stream": stream})
            assert b"internal_error" in (body if stream else json.dumps(body).encode())


def test_readyz_needs_a_real_token(scripted):
    with scripted(*SHORT, limits=Limits(ready_seconds=0.3, grace=0.5)) as running:
        assert get(running, "/readyz")[0] == 200
        running.engine.fail_next = True
        assert get(running, "/readyz")[0] == 503
        running.engine.delay = 1.0
        status, body, headers = get(running, "/readyz")
        assert (status, body["error"]["code"]) == (503, "not_ready") and "retry-after" in headers
        assert get(running, "/healthz")[0] == 200
        running.engine.delay = 0.0


def test_a_dead_engine_thread_is_noticed(scripted):
    with scripted(*LONG, delay=0.01) as running:

        def broken(sequence):
            raise SystemError

        running.engine.cancel = broken
        running.engine.fail_next = True
        assert post(running, {"messages": USER})[0] == 503
        assert wait_until(lambda: not running.service.engine.alive)
        status, body, _ = post(running, {"messages": USER})
        assert (status, body["error"]["code"]) == (503, "engine_failed")
        assert get(running, "/readyz")[0] == 503 and get(running, "/healthz")[0] == 200


@pytest.mark.parametrize("broken", [False, True])
def test_who_waits_is_not_told_that_its_answer_has_failed(scripted, broken):
    limits = Limits(running=1, waiting=4, grace=0.5)
    with scripted(*LONG, delay=0.02, limits=limits) as running:

        def unable(sequence):
            raise SystemError

        stream = running.client().chat.completions.create(model="tiny", messages=USER, stream=True)
        next(iter(stream))
        results: list[tuple[int, str]] = []

        def ask():
            status, body, _ = post(running, {"messages": USER})
            results.append((status, body.get("error", {}).get("code", "")))

        thread = threading.Thread(target=ask)
        thread.start()
        assert wait_until(lambda: running.service._open_answers == 2)
        if broken:
            running.engine.cancel = unable
        running.engine.fail_next = True
        with pytest.raises(openai.APIError) as caught:
            list(stream)
        assert caught.value.code == "engine_failed"
        thread.join(20)
        assert results == ([(503, "engine_failed")] if broken else [(200, "")])
        assert running.service.engine.alive is not broken


def test_a_step_that_failed_for_one_leaves_the_others(scripted):
    with scripted(*LONG, delay=0.02) as running:
        create = running.client().chat.completions.create
        first, second = (create(model="tiny", messages=USER, stream=True) for _ in range(2))
        next(iter(first)), next(iter(second))
        assert wait_until(lambda: len(running.engine.sequences) == 2)
        step, failed = running.engine.step, running.engine.sequences[0]

        def failing():
            running.engine.step = step
            failed.finished, failed.finish_reason = True, "error"
            running.engine.sequences.remove(failed)
            raise EngineFailedError("the executor failed")

        running.engine.step = failing
        with pytest.raises(openai.APIError) as caught:
            list(first)
        assert caught.value.code == "engine_failed"
        assert list(second)[-1].choices[0].finish_reason == "stop"


def test_a_failure_is_found_in_the_log_by_its_id(scripted, monkeypatch, caplog):
    with scripted(*SHORT) as running:

        def defect(request, salt):
            try:
                raise KeyError("secret words")
            except KeyError as error:
                raise ResourceError("no memory") from error

        monkeypatch.setattr(running.service, "prepare", defect)
        _, _, headers = post(running, {"messages": USER})
        lines = [r.getMessage() for r in caplog.records if headers["x-request-id"] in r.getMessage()]
        assert any("ResourceError" in line and "from KeyError" in line for line in lines)
        monkeypatch.undo()
        running.engine.script = lambda prompt: 1 // 0
        _, _, headers = post(running, {"messages": USER, "stream": True})
        assert any(
            headers["x-request-id"] in r.getMessage() and "ZeroDivisionError" in r.getMessage()
            for r in caplog.records
        )
        assert "secret" not in caplog.text


def test_an_answer_that_cannot_be_read_leaves_the_others_alone(scripted):
    with scripted(*LONG, delay=0.01) as running:
        usual, nonsense = running.engine.script, [None, None, None]
        running.engine.script = lambda prompt: nonsense if len(running.engine.prompts) == 2 else usual(prompt)
        stream = running.client().chat.completions.create(model="tiny", messages=USER, stream=True)
        next(iter(stream))
        status, body, _ = post(running, {"messages": USER})
        assert (status, body["error"]["code"]) == (500, "internal_error")
        assert list(stream)[-1].choices[0].finish_reason == "stop"
        assert running.engine.cancelled == [2] and running.service.engine.alive


def test_a_shutdown_lets_answers_end_and_breaks_off_the_rest(scripted):
    with scripted(*LONG, delay=0.05, limits=Limits(grace=0.4)) as running:
        create = running.client().chat.completions.create
        short = create(model="tiny", messages=USER, stream=True, max_tokens=4)
        long = create(model="tiny", messages=USER, stream=True)
        next(iter(short)), next(iter(long))
        running.server.should_exit = True
        assert list(short)[-1].choices[0].finish_reason == "length"
        with pytest.raises(openai.APIError) as caught:
            list(long)
        assert caught.value.code == "shutting_down"
        running.thread.join(10)
        assert not running.thread.is_alive()


def test_a_slow_body_is_cut_off(scripted):
    with scripted(*SHORT, limits=Limits(body_seconds=0.2, grace=0.5)) as running:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        answer = raw(running.port, head + b"Connection: close\r\nContent-Length: 100\r\n\r\n{")
        assert b" 408 " in answer.split(b"\r\n")[0]


def test_prompts_are_never_logged(scripted, caplog):
    caplog.set_level("DEBUG")
    with scripted(*SHORT) as running:
        post(running, {"messages": [{"role": "user", "content": "MY-SECRET"}]})
        post(running, {"messages": [{"role": "MY-SECRET"}], "temperature": "MY-SECRET"})
        get(running, "/v1/models/x%0AMY-LINE?key=MY-SECRET")
    ours = [r.getMessage() for r in caplog.records if r.name.startswith(("ayllu", "uvicorn"))]
    assert any("/v1/chat/completions" in line for line in ours)
    assert not any("MY-SECRET" in line or "\n" in line for line in ours)


def test_a_head_that_never_ends_is_cut_off(scripted, monkeypatch):
    monkeypatch.setattr(Connection, "head_seconds", 0.3)
    with scripted(*LONG, delay=0.01) as running:
        began = time.monotonic()
        assert raw(running.port, b"") == b"" and raw(running.port, b"GET / HTTP/1.1\r\nHost: l") == b""
        one = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        answer = raw(running.port, one + b"GET /hea")  # the same after a request that was answered
        assert answer.startswith(b"HTTP/1.1 200") and time.monotonic() - began < 5
        status, body, _ = post(running, {"messages": USER})
        assert status == 200 and body["choices"], "a long answer is not a slow head"


def test_slow_and_silent_connections_do_not_block_others(scripted):
    with scripted(*SHORT) as running:
        silent = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(50)]
        for connection in silent[:25]:
            connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: loc")
        results: list[int] = []
        threads = [
            threading.Thread(target=lambda: results.append(post(running, {"messages": USER})[0]))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert results == [200] * 4
        for connection in silent:
            connection.close()


def test_generation_config(tmp_path):
    assert SamplingDefaults.read(tmp_path).temperature == 1.0
    path = tmp_path / "generation_config.json"
    path.write_text('{"temperature": 0.6, "top_p": 0.95, "top_k": null, "eos_token_id": 1, "max_length": 20}')
    assert SamplingDefaults.read(tmp_path) == SamplingDefaults(temperature=0.6, top_p=0.95)
    path.write_text('{"do_sample": false, "temperature": 0.6}')
    assert SamplingDefaults.read(tmp_path).temperature == 0.0


def test_an_answer_that_cannot_go_on_has_its_own_code():
    """The engine's word for it, which docs/errors.md has, and not a failure of the server's."""
    made = as_api_error(GrammarFailedError("no token fits any more"))
    assert (made.status, made.envelope.error.code) == (500, "grammar_failed")
    assert as_api_error(ValueError("secret")).envelope.error.code == "internal_error"
