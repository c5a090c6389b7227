"""What one request, and all of them together, may ask of the server.

Every number that a stranger can send has a bound, and work is refused before it is begun, the reading of a
prompt included: a bound that is only checked later is a way to exhaust the machine (CVE-2026-34756 is `n`
without one).
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_CHOICES = 16  # `n` of one request
MAX_STOPS = 16  # stop strings of one request, each of at most MAX_STOP_LENGTH characters
MAX_STOP_LENGTH = 256
MAX_MESSAGES = 2048
MAX_TOOLS = 64


@dataclass(frozen=True)
class Limits:
    """Bounds that depend on the machine. Times in seconds, sizes in bytes."""

    body_bytes: int = 1 << 20
    body_seconds: float = 30.0  # a slow sender is cut off after this
    running: int = 32  # answers written at the same time
    waiting: int = 128  # answers that may wait beyond those; more get 503
    keep_alive: float = 15.0  # silence in a stream before a sign of life is sent
    grace: float = 10.0  # how long running answers may go on after SIGTERM
    ready_seconds: float = 10.0  # how long /readyz waits for its token
