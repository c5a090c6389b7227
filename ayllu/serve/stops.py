"""Stop strings in a stream: text is held back while it could still become one.

A stop string may be cut by the borders of tokens and chunks. The longest tail that is the beginning
of a stop string waits until the next text decides.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Push text, get the text that may be shown; `hit` tells that a stop string was met."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops, self.held, self.hit = tuple(stops), "", False

    def push(self, text: str) -> str:
        """The text that is safe to show now. After a hit: nothing more."""
        if self.hit:
            return ""
        text = self.held + text
        found = [at for stop in self.stops if (at := text.find(stop)) >= 0]
        if found:
            self.hit, self.held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self.stops), default=0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        text, self.held = self.held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest tail of `text` that begins `stop` (shorter than `stop`)."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
