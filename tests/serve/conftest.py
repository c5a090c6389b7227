"""Fixtures: a small real tokenizer, ids from names and text, a server with a scripted engine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from running_server import TEXT, Running, ScriptedEngine, running_server

from ayllu.text.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(iter([TEXT] * 20), 400)


@pytest.fixture
def ids(tokenizer):
    """`ids("<|think|>", "text", ...)`: control names become control ids, the rest is encoded."""

    def build(*parts: str) -> list[int]:
        out: list[int] = []
        for part in parts:
            control = tokenizer.control.get(part)
            out += [control] if control is not None else tokenizer.encode(part)
        return out

    return build


@pytest.fixture
def scripted(tokenizer, ids):
    """`with scripted("<|answer|>", "Hi", "<|end|>") as running` or with a function of the prompt ids."""

    @contextlib.contextmanager
    def start(*parts, delay: float = 0.0, **more) -> Iterator[Running]:
        script = parts[0] if callable(parts[0]) else (lambda prompt: ids(*parts))
        engine = ScriptedEngine(script, delay)
        with running_server(tokenizer, lambda: engine, **more) as running:
            running.engine = engine
            yield running

    return start


@pytest.fixture(scope="session")
def shared(tokenizer):
    """One server for all tests that only send requests."""
    control = tokenizer.control
    words = [control["<|answer|>"], *tokenizer.encode("Ein"), control["<|end|>"]]
    with running_server(tokenizer, lambda: ScriptedEngine(lambda prompt: words)) as running:
        yield running
