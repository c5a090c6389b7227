"""Clients that take places and give nothing: bodies that don't come, answers that nobody reads, work before
the
queue."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest
from running_server import LONG, SHORT, USER, get, post, raw, wait_until

from ayllu.serve.connection import Connection
from ayllu.serve.limits import Limits


@pytest.mark.parametrize("key", [None, "a key of some length"])
def test_a_body_that_is_refused_and_never_comes(scripted, monkeypatch, key):
    """Answered at once (a route without a body, a request without the key), then one byte, then nothing."""
    monkeypatch.setattr(Connection, "head_seconds", 0.3)
    with scripted(*SHORT, api_key=key) as running:
        path, kind = ("/healthz", "GET") if key is None else ("/v1/chat/completions", "POST")
        head = f"{kind} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000000\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
            connection.sendall(head)
            answer = connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200" if key is None else b"HTTP/1.1 401")
            connection.sendall(b"{")
            began = time.monotonic()
            while connection.recv(65536):
                pass
            assert time.monotonic() - began < 5, "closed without another word"


def test_a_body_that_comes_after_its_answer_is_timed_all_the_same(scripted, monkeypatch):
    monkeypatch.setattr(Connection, "head_seconds", 0.3)
    with scripted(*SHORT) as running:
        head = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\n"
        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
            connection.sendall(head)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            connection.sendall(b"abc")
            while connection.recv(65536):
                pass
        whole = head + b"abc"  # which came in time: the connection can be used on
        assert raw(running.port, whole + whole + b"GET / HT").count(b"HTTP/1.1 200") == 2


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="needs Linux's TCP_USER_TIMEOUT")
def test_a_stream_that_nobody_reads_gives_its_places_back(scripted, monkeypatch):
    monkeypatch.setattr(Connection, "unread_seconds", 1.0)
    with scripted(*LONG) as running:
        running.server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        body = json.dumps({"messages": USER, "stream": True, "n": 16, "logprobs": True}).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", running.port))
            connection.sendall(head.encode() + body)
            assert wait_until(lambda: len(running.engine.prompts) == 16 and not running.engine.sequences)
            assert running.service._open_answers == 16, "all is written, and nobody has read it"
            assert wait_until(lambda: running.service._open_answers == 0, 20)
        assert post(running, {"messages": USER})[0] == 200


def test_what_is_prepared_counts_as_waiting(scripted, monkeypatch):
    with scripted(*SHORT, limits=Limits(running=1, waiting=1, grace=0.5)) as running:
        prepare, go_on = running.service.prepare, threading.Event()

        def slow(request, salt):
            go_on.wait(20)
            return prepare(request, salt)

        monkeypatch.setattr(running.service, "prepare", slow)
        results: list[int] = []

        def ask(body):
            results.append(post(running, body)[0])

        threads = [threading.Thread(target=ask, args=({"messages": USER},)) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert wait_until(lambda: running.service._open_answers == 2)
        status, body, _ = post(running, {"messages": USER})
        assert (status, body["error"]["code"]) == (503, "queue_full") and not running.engine.prompts
        assert get(running, "/readyz")[0] == 200
        go_on.set()
        for thread in threads:
            thread.join(20)
        assert results == [200, 200]
        monkeypatch.undo()
        assert post(running, {"messages": USER, "ayllu_tools": ["shell"]})[0] == 400
        assert wait_until(lambda: running.service._open_answers == 0), "a refusal gives its place back"
