"""Connections that say nothing are closed: a full request head must come within a time.

uvicorn times the pause between two requests, not a head that never ends; with enough of those
(Slowloris, 2009) a server has no file descriptors left for anybody else.
"""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1 connection with a time limit on the request head."""

    head_seconds = 10.0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The clock starts with the connection,"""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """starts again with the first byte of a later request, and stops with the end of its head."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """The beginning of the next head may have come while this answer was written."""
        super().on_response_complete()
        if self.conn.trailing_data[0]:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is left to wait for."""
        super().connection_lost(exc)
        self._stop()

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_seconds, self.timeout_keep_alive_handler)

    def _stop(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
