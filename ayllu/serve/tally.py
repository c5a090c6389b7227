"""Counting what was sampled: tokens of thinking, and the log-probabilities of the answer's tokens.

The counts are taken from the sampled ids themselves, so that they are what the engine did and not
what some text encodes to again.
"""

from __future__ import annotations

from collections import deque

import msgspec

from ayllu.text.tokenizer import Tokenizer

_TURNS = {"<|think|>": "think", "<|tool|>": "call", "<|answer|>": "say"}
_CLOSERS = ("<|/think|>", "<|/tool|>", "<|end|>")


class TokenLogprob(msgspec.Struct):
    """A sampled token of the answer as OpenAI reports it; with bytes, since it may be part of a character."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[str] = []  # always empty: alternatives are not offered


class Tally:
    """Reads sampled ids one by one, with the state machine of the transcript's form."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        known = tokenizer.control if tokenizer.native else {}
        self._opens = {known[name]: kind for name, kind in _TURNS.items() if name in known}
        self._closes = {known[name] for name in _CLOSERS if name in known}
        self._silent = {*tokenizer.control.values(), *tokenizer.eos}
        self._kind = "say"
        self.completion = self.reasoning = 0
        self._read = self._sent = 0  # bytes of the answer: read from tokens, shown to the caller
        self._pending: deque[tuple[int, TokenLogprob]] = deque()

    def push(self, token: int, logprob: float) -> None:
        """One more sampled id."""
        self.completion += 1
        self._kind = self._opens.get(token, self._kind)
        self.reasoning += self._kind == "think"
        if token in self._closes:
            self._kind = "say"
        elif self._kind == "say" and token not in self._silent:
            raw = self.tokenizer.piece_bytes(token)
            entry = TokenLogprob(raw.decode("utf-8", "replace"), float(logprob), list(raw))
            self._pending.append((self._read, entry))
            self._read += len(raw)

    def shown(self, text: str) -> list[TokenLogprob]:
        """The tokens that begin in the answer's text up to and with `text`, each given once."""
        self._sent += len(text.encode("utf-8", "replace"))
        ready = []
        while self._pending and self._pending[0][0] < self._sent:
            ready.append(self._pending.popleft()[1])
        return ready

    def rest(self) -> list[TokenLogprob]:
        """The tokens not yet given (for example half a character at the end)."""
        ready = [entry for _, entry in self._pending]
        self._pending.clear()
        return ready
