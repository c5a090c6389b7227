"""The application and the process round it: listen, load, serve, end in good order.

Order matters. The address is taken before the model is loaded, so that a port in use costs nothing;
an address that others can reach is refused without a key; on SIGTERM no new request is taken, and
running answers get a grace time.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ayllu.engine.engine import Engine
from ayllu.errors import AylluError, PortInUseError, RefusedError, UsageError
from ayllu.reason.foreign import Continuation, chat_of, no_chat_format
from ayllu.serve.connection import Connection
from ayllu.serve.enginethread import log_failure
from ayllu.serve.faults import ApiError, as_api_error
from ayllu.serve.guard import LoopbackOnly
from ayllu.serve.limits import Limits
from ayllu.serve.options import EngineOptions
from ayllu.serve.routes import named, routes
from ayllu.serve.service import SamplingDefaults, Service
from ayllu.text.tokenizer import Tokenizer
from ayllu.tools.calculator import CALCULATOR
from ayllu.tools.tool import Toolbox

log = logging.getLogger("ayllu.serve")
SHORTEST_KEY = 16  # characters


def build_app(service: Service, *, api_key: str | None = None, loopback: bool = True) -> Starlette:
    """The ASGI application. `loopback`: refuse requests that don't name this machine."""
    around = [Middleware(Journal)] + [Middleware(LoopbackOnly)] * loopback
    app = Starlette(
        routes=routes(service, api_key),
        middleware=around,
        exception_handlers={ApiError: _failed, AylluError: _failed, HTTPException: _no_route},
    )
    app.router.redirect_slashes = False
    return app


async def _failed(request: Request, error: Exception) -> Response:
    refusal = as_api_error(error)
    if refusal.status == 500:
        log_failure(named(request.scope), error)
    return refusal.response()


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code, text = {
        404: ("not_found", "there is no such route here"),
        405: ("method_not_allowed", "this route doesn't take that method"),
    }.get(error.status_code, ("invalid_request", "the request can't be served"))
    return ApiError(error.status_code, code, text, headers=error.headers).response()


class Journal:
    """ASGI middleware: an id and a line in the log for each request, 500 for what nobody caught.

    The line has method, route, status and time. Prompts, answers and query strings are never logged,
    and the path is quoted, so that nobody can forge a line.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        name, began, status = f"req_{uuid.uuid4().hex}", time.monotonic(), 0
        scope.setdefault("state", {})["request_id"] = name

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", name.encode())]}
            await send(message)

        try:
            await self.app(scope, receive, note)
        except ClientDisconnect:
            status = 499  # nginx's number for a client that went away
        except Exception as error:
            log_failure(name, error)
            if not status:
                await as_api_error(error).response()(scope, receive, note)
        finally:
            took = 1000 * (time.monotonic() - began)
            log.info("%s %s %r %d %.0f ms", name, scope["method"], scope["path"][:200], status, took)


def serve(
    model_folder: Path,
    host: str = "127.0.0.1",
    port: int = 8080,
    *,
    name: str | None = None,
    api_key: str | None = None,
    options: EngineOptions | None = None,
    limits: Limits | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve a model folder until SIGTERM or Ctrl-C.

    `name` is what clients call the model (default: the folder's name, or the run's). `api_key` comes
    from AYLLU_API_KEY when not given. `options`: how the engine runs. `on_ready` gets the base URL. Port 0
    takes any free one.
    Raises PortInUseError, RefusedError (an open address without a key), and what loading raises.
    """
    limits, engine = limits or Limits(), (options or EngineOptions()).arguments()
    api_key = checked_key(api_key if api_key is not None else os.environ.get("AYLLU_API_KEY"))
    local = is_loopback(host)
    if not local and api_key is None:
        raise RefusedError(
            f"{host} can be reached by others, and no API key is set",
            why="everybody on the network could use this model and read its answers",
            fix=f"AYLLU_API_KEY=$(openssl rand -hex 24) ayllu serve {model_folder} --host {host}",
        )
    listening = listen(host, port)
    _log_to_stderr()
    with listening:
        service = _load(model_folder, name, engine, limits)
        try:
            address = listening.getsockname()
            shown = f"[{address[0]}]" if ":" in address[0] else address[0]
            url = f"http://{shown}:{address[1]}/v1"
            sys.stderr.write(f"{service.name} answers at {url}  (Ctrl-C ends)\n")
            if on_ready is not None:
                on_ready(url)
            app = build_app(service, api_key=api_key, loopback=local)
            with _sigterm_ends_in_order():
                Server(app, service).run(sockets=[listening])
        finally:
            service.close()


def _load(model_folder: Path, name: str | None, engine: dict[str, Any], limits: Limits) -> Service:
    folder = Path(model_folder)
    tokenizer = Tokenizer.load(folder)
    chat = chat_of(folder, tokenizer)
    if isinstance(chat, Continuation):
        raise no_chat_format()
    full = folder.resolve()

    def open_engine() -> Any:
        # One more sequence than answers, so that /readyz is never kept out by a full house.
        return Engine(folder, max_sequences=limits.running + 1, tokenizer=tokenizer, **engine)

    service = Service(
        open_engine,
        tokenizer,
        chat=chat,
        name=name or (full.parent.name if full.name == "model" else full.name),
        toolbox=Toolbox([CALCULATOR]),
        defaults=SamplingDefaults.read(folder),
        limits=limits,
    )
    service.start()
    return service


def _log_to_stderr() -> None:
    """One line a request, unless the program round us has set up logging already."""
    if not log.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)


class Server(uvicorn.Server):
    """uvicorn with an end in good order: no new work, a grace time, then an error event to who is left."""

    def __init__(self, app: Starlette, service: Service) -> None:
        grace = service.limits.grace
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                # Of a head in pieces; one that comes in a single read may be longer.
                h11_max_incomplete_event_size=16 << 10,
                timeout_keep_alive=60,
                timeout_graceful_shutdown=int(grace) + 5,
            )
        )
        self.service, self.grace = service, grace

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.draining = True
        timer = asyncio.get_running_loop().call_later(self.grace, self.service.engine.break_off)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. PortInUseError when another program has the port, UsageError for a bad address."""
    if not 0 <= port <= 65535:
        raise UsageError(f"there is no port {port}", fix="choose one from 1024 to 65535")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError, OverflowError) as error:
        raise UsageError(f"{host!r} port {port} is no address to listen on", why=str(error)) from error
    family, kind, protocol, _, address = found[0]
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(1024)
    except (OSError, OverflowError) as error:
        listening.close()
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise PortInUseError(
                f"port {port} on {host} is in use by another program",
                fix=f"stop that program, or choose another port: --port {port + 1}",
            ) from error
        raise UsageError(f"can't listen on {host} port {port}", why=str(error)) from error
    return listening


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`. A name counts when all its addresses do."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError):
        return False
    return bool(host) and all(ipaddress.ip_address(entry[4][0]).is_loopback for entry in found)


def checked_key(key: str | None) -> str | None:
    """The key, None when there is none. UsageError for one that no header can carry, or that is too short."""
    if not key:
        return None
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UsageError("the API key may have printable ASCII characters only, without spaces")
    if len(key) < SHORTEST_KEY:
        raise UsageError(
            f"the API key has {len(key)} characters, {SHORTEST_KEY} are the least",
            why="a short key is found by trying",
            fix="make one: AYLLU_API_KEY=$(openssl rand -hex 24)",
        )
    return key


@contextmanager
def _sigterm_ends_in_order() -> Iterator[None]:
    """uvicorn raises the signal that ended it once more when it is done; by then it has done its work."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
