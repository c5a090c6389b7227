"""A server under test: the real routes, thread, loop and tokenizer; the engine is scripted or tiny.

The scripted engine answers each prompt with what a function says, so that a test decides what the
"model" writes; everything from its token ids to the client's objects is the real thing.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import openai

from ayllu.errors import ContextLengthError, RequestError
from ayllu.reason.foreign import TemplateChat
from ayllu.serve.app import Server, build_app, listen
from ayllu.serve.limits import Limits
from ayllu.serve.service import SamplingDefaults, Service
from ayllu.text.tokenizer import Tokenizer
from ayllu.tools.calculator import CALCULATOR
from ayllu.tools.tool import Toolbox

CONTEXT = 512
USER = [{"role": "user", "content": "What is it?"}]
SHORT = ("<|answer|>", "Ein schöner Tag", "<|end|>")
LONG = ("<|answer|>", "one two three four five six " * 12, "<|end|>")
TEXT = """The quick brown fox counts 0 1 2 3 4 5 6 7 8 9 sheep. calculator {"expression":"17+25"} tools:
Ein schöner Tag für Überlegungen: 417 + 385 = 802. నమస్కారం, మీరు ఎలా ఉన్నారు? What is it? The answer is"""


@dataclass
class ScriptedSequence:
    """What the engine hands out: the fields of ayllu.engine's Sequence."""

    id: int
    prompt_ids: list[int]
    to_come: list[int]
    stop_ids: tuple[int, ...]
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False
    finish_reason: str | None = None


class ScriptedEngine:
    """One token per sequence and step, from `script(prompt ids)`. Asserts that one thread drives it."""

    def __init__(self, script: Callable[[list[int]], list[int]], delay: float = 0.0) -> None:
        self.script, self.delay, self.context_length = script, delay, CONTEXT
        self.sequences: list[ScriptedSequence] = []
        self.params: list[object] = []
        self.cancelled: list[int] = []
        self.prompts: list[list[int]] = []
        self.most_at_once = self.steps = 0
        self.fail_next = False
        self.thread: int | None = None

    def _mine(self) -> None:
        self.thread = self.thread or threading.get_ident()
        assert self.thread == threading.get_ident(), "an engine belongs to one thread"

    def submit(self, prompt_ids, params):
        self._mine()
        if len(prompt_ids) + (params.max_tokens or 1) > self.context_length:
            raise ContextLengthError("too long")
        if not all(isinstance(i, int) for i in prompt_ids):
            raise RequestError("ids")
        self.prompts.append(list(prompt_ids))
        self.params.append(params)
        room = self.context_length - len(prompt_ids)
        to_come = self.script(list(prompt_ids))[: min(params.max_tokens or room, room)]
        sequence = ScriptedSequence(len(self.prompts), list(prompt_ids), to_come, params.stop_ids)
        self.sequences.append(sequence)
        return sequence

    def step(self):
        self._mine()
        self.steps += 1
        if self.delay:
            time.sleep(self.delay)
        if self.fail_next:
            self.fail_next = False
            raise RuntimeError("secret words of a user")
        self.most_at_once = max(self.most_at_once, len(self.sequences))
        stepped = list(self.sequences)
        for sequence in stepped:
            token = sequence.to_come[len(sequence.token_ids)]
            sequence.token_ids.append(token)
            sequence.logprobs.append(-0.25)
            if token in sequence.stop_ids:
                sequence.finished, sequence.finish_reason = True, "stop"
            elif len(sequence.token_ids) == len(sequence.to_come):
                sequence.finished, sequence.finish_reason = True, "length"
        self.sequences = [s for s in self.sequences if not s.finished]
        return stepped

    def cancel(self, sequence):
        self._mine()
        self.cancelled.append(sequence.id)
        sequence.finished, sequence.finish_reason = True, "cancelled"
        self.sequences = [s for s in self.sequences if s is not sequence]


@dataclass
class Running:
    """A server that answers on `url`."""

    url: str
    port: int
    service: Service
    server: Server
    thread: threading.Thread
    engine: ScriptedEngine | None = None

    def client(self, **more) -> openai.OpenAI:
        return openai.OpenAI(
            **{"base_url": self.url, "api_key": "none", "max_retries": 0, "timeout": 30, **more}
        )


@contextlib.contextmanager
def running_server(
    tokenizer: Tokenizer,
    open_engine: Callable[[], object],
    *,
    api_key: str | None = None,
    limits: Limits | None = None,
    defaults: SamplingDefaults | None = None,
    chat: TemplateChat | None = None,
) -> Iterator[Running]:
    """uvicorn on a free loopback port, in a thread."""
    service = Service(
        open_engine,
        tokenizer,
        name="tiny",
        chat=chat,
        toolbox=Toolbox([CALCULATOR]),
        defaults=defaults or SamplingDefaults(temperature=0.0),
        limits=limits or Limits(grace=0.5),
    )
    service.start()
    sock = listen("127.0.0.1", 0)
    server = Server(build_app(service, api_key=api_key), service)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    port = sock.getsockname()[1]
    deadline = time.monotonic() + 10
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.started
    try:
        yield Running(f"http://127.0.0.1:{port}/v1", port, service, server, thread)
    finally:
        server.should_exit = True
        thread.join(20)
        service.close()
        sock.close()
        assert not thread.is_alive()


def wait_until(true: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Poll until `true()`; whether it became so."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.01)
    return true()


def raw(port: int, data: bytes, *, wait: bool = True) -> bytes:
    """Send bytes to the server and read until it closes (or not at all)."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(data)
        answer = b""
        while wait and (piece := connection.recv(65536)):
            answer += piece
        return answer


def post(
    running: Running, body: object, headers: dict[str, str] | None = None, path: str = "/v1/chat/completions"
):
    """(status, decoded body, headers) of a POST; `body` may be bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, data, {"content-type": "application/json", **(headers or {})})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text) if text[:1] == b"{" else text, answer.headers


def get(running: Running, path: str, headers: dict[str, str] | None = None, method: str = "GET"):
    """(status, decoded body, headers) of a request without a body."""
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
    connection.request(method, path, headers=headers or {})
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, json.loads(text) if text else None, answer.headers
