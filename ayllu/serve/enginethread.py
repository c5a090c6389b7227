"""One thread owns the engine; the answers of all requests are written in the same batch.

An engine is driven by one thread (submit, step and cancel are not thread-safe). Here that thread
takes commands from a queue and steps as long as anybody waits for a token; after each step every
Writing takes what is new and passes it on. Whoever comes joins at the next step, whoever is done
leaves: continuous batching (Yu et al., Orca, OSDI 2022).
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from ayllu.errors import EngineFailedError, QueueFullError, ShuttingDownError
from ayllu.serve.writing import Ending, Part, Writing

log = logging.getLogger("ayllu.serve")

_SHUTTING_DOWN = "the server is shutting down"
_IN_THE_MIDDLE = "the engine failed in the middle of this answer"
News = Part | Ending | Exception
Sink = Callable[[News], None]  # called on the engine thread; must not block


@dataclass(eq=False)
class Order:
    """A Writing to be made and who gets its news. `make` runs on the engine thread, given the engine."""

    make: Callable[[Any], Writing]
    sink: Sink
    urgent: bool = False  # goes first and takes no slot: the question whether the engine is alive
    writing: Writing | None = None
    cancelled: bool = False


class EngineThread:
    """Starts with `open_engine` called on the new thread, ends with `close`."""

    def __init__(self, open_engine: Callable[[], Any], running: int) -> None:
        self._open, self._limit = open_engine, running
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._waiting: deque[Order] = deque()
        self._running: list[Order] = []
        self._loaded: Future[int] = Future()
        self._closing = self._told_to_close = False
        self._engine: Any = None
        self._thread = threading.Thread(target=self._run, name="ayllu-engine", daemon=True)
        self.context_length = 0

    def start(self) -> None:
        """Load the model; returns when it is there, raises what loading raised."""
        self._thread.start()
        self.context_length = self._loaded.result()

    def close(self) -> None:
        """End the thread; whoever still waits gets ShuttingDownError."""
        self._commands.put(self._close)
        self._thread.join(timeout=30)

    @property
    def alive(self) -> bool:
        """Whether the thread takes orders."""
        return self._thread.is_alive() and not self._closing

    def place(self, order: Order) -> None:
        """From any thread: have an answer written."""
        self._commands.put(lambda: self._place(order))
        if not self.alive:
            order.sink(_stopped())

    def cancel(self, order: Order) -> None:
        """From any thread: stop writing. Nothing happens if it is done."""
        order.cancelled = True
        self._commands.put(lambda: self._cancel(order))

    def break_off(self) -> None:
        """From any thread: everybody who waits gets ShuttingDownError now."""
        self._commands.put(lambda: self._fail_all(ShuttingDownError(_SHUTTING_DOWN)))

    # ---- on the engine thread
    def _run(self) -> None:
        try:
            with contextlib.ExitStack() as stack:
                self._engine = self._open()
                if hasattr(self._engine, "__enter__"):
                    stack.enter_context(self._engine)
                self._loaded.set_result(int(self._engine.context_length))
                self._serve()
        except BaseException as error:
            if not self._loaded.done():
                self._loaded.set_exception(error)
            else:
                log_failure("the engine thread ended", error)
        finally:
            self._closing = True
            try:
                with contextlib.suppress(queue.Empty):
                    while True:  # orders that came too late get their refusal as well
                        self._last(self._commands.get_nowait())
            finally:
                ended = ShuttingDownError(_SHUTTING_DOWN) if self._told_to_close else _stopped()
                self._last(lambda: self._fail_all(ended))

    def _last(self, command: Callable[[], None]) -> None:
        """Done as well as it can be: the engine may be broken, but others wait for their news."""
        try:
            command()
        except Exception as error:
            log_failure("the engine thread could not end in order", error)

    def _serve(self) -> None:
        while not self._closing:
            if not (self._running or self._waiting):
                self._commands.get()()  # nothing to do: sleep until somebody asks
            with contextlib.suppress(queue.Empty):
                while True:
                    self._commands.get_nowait()()
            self._admit()
            if self._running:
                self._step()

    def _admit(self) -> None:
        """Submit those who wait, in order, as far as there is room."""
        while self._waiting and (self._waiting[0].urgent or len(self._running) < self._limit):
            order = self._waiting.popleft()
            try:
                order.writing = order.writing or order.make(self._engine)
                news = order.writing.submit_or_end()
            except QueueFullError as error:
                if not self._running:
                    order.sink(error)  # nobody will make room
                    continue
                self._waiting.appendleft(order)
                return
            except Exception as error:
                order.sink(error)
                continue
            self._running.append(order)
            self._pass_on(order, news)

    def _step(self) -> None:
        try:
            self._engine.step()
        except Exception as error:  # one bad step must not end the server: who is concerned is told
            log_failure("a step of the engine failed", error)
            ended = [order for order in self._running if order.writing and order.writing.failed]
            # An engine that doesn't say whose step it was is no longer trusted with any answer it has begun.
            self._fail(ended or list(self._running), EngineFailedError(_IN_THE_MIDDLE))
            return
        for order in list(self._running):
            writing = order.writing
            assert writing is not None
            try:
                news = writing.advance()
            except Exception as error:
                log_failure("an answer could not be read", error)
                order.sink(error)
                self._cancel(order)
                continue
            if not writing.ended and writing.turn.waiting:  # a call was run: its result goes to the model
                self._running.remove(order)
                self._waiting.appendleft(order)
            self._pass_on(order, news)

    def _pass_on(self, order: Order, news: list[Part | Ending]) -> None:
        for piece in news:
            order.sink(piece)
        if order.writing is not None and order.writing.ended and order in self._running:
            self._running.remove(order)

    def _place(self, order: Order) -> None:
        if not order.cancelled:
            (self._waiting.appendleft if order.urgent else self._waiting.append)(order)

    def _cancel(self, order: Order) -> None:
        for line in (self._waiting, self._running):
            if order in line:
                line.remove(order)
        if order.writing is not None and not order.writing.ended:
            order.writing.cancel()  # reads nothing: only an engine that can't even cancel fails here

    def _fail_all(self, error: Exception) -> None:
        """Everybody gets `error`. If the engine can't even cancel, the thread ends and /readyz says so."""
        self._fail([*self._running, *self._waiting], error)

    def _fail(self, orders: list[Order], error: Exception) -> None:
        for order in orders:
            order.sink(error)
        for order in orders:
            self._cancel(order)

    def _close(self) -> None:
        self._closing = self._told_to_close = True


def _stopped() -> EngineFailedError:
    return EngineFailedError("the engine has stopped; the server must be started again")


def log_failure(what: str, error: BaseException | None) -> None:
    """Log where an error arose, and what it arose from. Messages may hold a user's words, so only types are
    written."""
    chain: list[BaseException] = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__
    log.error("%s: %s", what, ", from ".join(map(_place, chain)))


def _place(error: BaseException) -> str:
    places = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        places.append(f"{code.co_name} ({code.co_filename.rpartition('/')[2]}:{trace.tb_lineno})")
        trace = trace.tb_next
    return f"{type(error).__name__} in {' > '.join(places[-6:])}"
