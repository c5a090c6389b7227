"""Server-sent events (WHATWG HTML, section 9.2): `data: JSON`, a blank line, `data: [DONE]` at the end.

The response ends its work when the client goes away: `on_close` is called in every case, also when
the connection breaks between two events, so that nobody computes for a closed socket.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import msgspec
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

DONE = b"data: [DONE]\n\n"
COMMENT = b": keep-alive\n\n"  # readers skip it; proxies see traffic


def event(value: Any) -> bytes:
    """One event. JSON has no raw line ends, so that one `data:` line always suffices."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


class EventStream(StreamingResponse):
    """A stream of events; `on_close` runs once when it ends, for whatever reason."""

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncIterator[bytes], on_close: Callable[[], None], headers: Mapping[str, str]
    ) -> None:
        # Proxies must neither store the stream nor collect it before passing it on.
        always = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(events, headers={**headers, **always})
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_close()
