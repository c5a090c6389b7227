"""Connections that do nothing are closed, or a server has no file descriptors left for anybody else.

A full request head must come within a time: uvicorn times the pause between two requests, not a head that
never ends (Slowloris, 2009). An answer that was given before its request's body had come (a refusal) is the
end of its connection, unless the body and another request come within that time. And who doesn't read an
answer is left after a time, as far as the kernel can tell (TCP_USER_TIMEOUT of Linux; RFC 5482).
"""

from __future__ import annotations

import asyncio
import socket

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1 connection with time limits on whoever is at the other end."""

    head_seconds = 10.0  # for a request's head, and for the rest of a body that nobody waits for
    unread_seconds = 60.0  # for taking what was sent
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The clock starts with the connection,"""
        super().connection_made(transport)
        taken = transport.get_extra_info("socket")
        if taken is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            # Unread text fills the buffers, and writing waits: without this for ever, since a closed window
            # is no error to TCP.
            milliseconds = int(1000 * self.unread_seconds)
            taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """starts again with the first byte of a later request, and stops with the end of its head."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """The beginning of the next head may have come while this answer was written, and a body that was
        refused may still be on its way."""
        super().on_response_complete()
        if self.conn.trailing_data[0] or self.conn.our_state is h11.DONE:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is left to wait for."""
        super().connection_lost(exc)
        self._stop()

    def _watch(self) -> None:
        # DONE before the other side: a refused body that still may come, and that nothing else times.
        if self.conn.their_state is not h11.IDLE and self.conn.our_state is not h11.DONE:
            self._stop()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_seconds, self.timeout_keep_alive_handler)

    def _stop(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
