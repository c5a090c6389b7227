"""Which of the sampled tokens are the answer, and with which log-probabilities they were sampled.

The tokens are the sampled ids themselves, so that they are what the engine did and not what some text
encodes to again. Which of them belong to the answer says the reader of the conversation's form.
"""

from __future__ import annotations

from collections import deque

import msgspec

from ayllu.text.tokenizer import Tokenizer


class TokenLogprob(msgspec.Struct):
    """A sampled token of the answer as OpenAI reports it; with bytes, since it may be part of a character."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[str] = []  # always empty: alternatives are not offered


class Tally:
    """Takes the answer's tokens one by one and gives each with the text in which it begins."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._read = self._sent = 0  # bytes of the answer: read from tokens, shown to the caller
        self._pending: deque[tuple[int, TokenLogprob]] = deque()

    def push(self, token: int, logprob: float) -> None:
        """One more token of the answer."""
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
