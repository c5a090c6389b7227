"""Tools from outside: servers that speak the Model Context Protocol (revision 2026-07-28 and before, by the
SDK `mcp`, which is the extra of that name), started here as programs and spoken to over their pipes.

A server is somebody else's program. So

    allow-list    only servers and tools that the user has named are offered; of the environment a server gets
                  HOME, PATH and the like, no keys
    pins          a tool may be pinned by the fingerprint of its description, its schema and whether it calls
                  itself read-only; a change turns it off
    text          descriptions and results are text, cut and without control characters; no text becomes a
                  control token of the conversation
    schema        arguments are checked here by our own subset; a tool that needs more is left out, and why
    confirmation  the user is asked before a call; not for a pinned tool that calls itself read-only: that it
                  does was seen when it was pinned, while without a pin a server could say so of anything
    time          every call has a limit, and so has starting up

What a server answers in one message is read as a whole; its size is bounded here only after that.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import hashlib
import json
import os
import re
import threading
import tomllib
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ayllu.errors import InputNotFoundError, RequestError
from ayllu.tools.tool import CONTROL, NAME, PROPERTY_KEYWORDS, TYPES, Tool, ToolError, cut

MAX_DESCRIPTION, MAX_RESULT, MAX_LISTED = 300, 4000, 500  # characters, characters, tools of a server
MAX_NAME, MAX_ENUM = 64, 500  # characters of an argument's name, values of one to choose from
MAX_BOUND = 1e15  # of a number: the grammar of calls has no use for larger ones, or breaks on them
STARTING = 20.0  # seconds
_KEYS = {"command", "tools", "seconds", "pins", "confirm", "environment"}


@dataclass(frozen=True)
class Server:
    """A server that may be used: the program, the names of its tools that are offered, `seconds` of a call,
    `pins` (tool -> fingerprint), `confirm` (ask before every tool), `environment` variables for it."""

    name: str
    command: tuple[str, ...]
    tools: tuple[str, ...]
    seconds: float = 30.0
    pins: dict[str, str] = field(default_factory=dict)
    confirm: bool = False
    environment: dict[str, str] = field(default_factory=dict)


def read_servers(path: Path) -> list[Server]:
    """The servers of a TOML file, one table each. InputNotFoundError where there is none, RequestError for
    what isn't right in it."""
    if not path.exists():
        raise InputNotFoundError(f"there is no list of servers {path}", fix="name a TOML file that is there")
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RequestError(f"the list of servers {path} can't be read", why=str(error)) from error
    servers = []
    for name, table in tables.items():
        if wrong := _wrong(name, table):
            raise RequestError(
                f"{path}: the server {name!r} is not described as it should be",
                why=wrong,
                fix='give command = ["program", "argument"] and tools = ["name"]; also seconds, confirm, '
                "pins and environment are read",
            )
        servers.append(
            Server(name, **{**table, "command": tuple(table["command"]), "tools": tuple(table["tools"])})
        )
    return servers


def _wrong(name: str, table: Any) -> str:
    """What is wrong with a server's description, "" for nothing."""
    if not isinstance(table, dict):
        return f"it stands outside of a table: write [{name}] above its keys"
    if not NAME.fullmatch(name):
        return "its name must be lower-case letters, digits and _, beginning with a letter"
    if unknown := sorted(table.keys() - _KEYS):
        return f"there is no key {unknown[0]!r}"
    for key in ("command", "tools"):
        texts = table.get(key)
        if not (isinstance(texts, list) and texts and all(isinstance(one, str) for one in texts)):
            return f"{key} must be a list of texts" + ("" if key in table else ", and is not there")
    seconds = table.get("seconds", 1)
    if type(seconds) not in (int, float) or not 0 < seconds <= 3600:
        return "seconds must be a number above 0 and at most 3600"
    if not isinstance(table.get("confirm", False), bool):
        return "confirm must be true or false"
    for key in ("pins", "environment"):
        some = table.get(key, {})
        if not (isinstance(some, dict) and all(isinstance(v, str) for v in some.values())):
            return f"{key} must be a table of texts"
    return ""


class Servers:
    """Running servers and their tools. `skipped`: tools (or servers) that aren't offered, with the reason;
    `fingerprints`: of those that are, for pinning."""

    def __init__(self, servers: Iterable[Server]) -> None:
        try:
            import mcp  # noqa: F401
        except ImportError as error:
            raise RequestError(
                "MCP servers can't be used", why="the extra is not installed", fix="pip install -e '.[mcp]'"
            ) from error
        self.tools: list[Tool] = []
        self.skipped: dict[str, str] = {}
        self.fingerprints: dict[str, str] = {}
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._lives: list[concurrent.futures.Future[None]] = []
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        try:
            for server in servers:
                self._start(server)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the servers."""
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._stop.set)
        concurrent.futures.wait(self._lives, timeout=STARTING)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STARTING)
        if not self._thread.is_alive():
            self._loop.close()

    def _start(self, server: Server) -> None:
        """Start one server and take over its tools; one that doesn't start is skipped."""
        ready: concurrent.futures.Future[tuple[Any, list[Any]]] = concurrent.futures.Future()
        life = asyncio.run_coroutine_threadsafe(self._live(server, ready), self._loop)
        self._lives.append(life)
        try:
            client, listed = ready.result(STARTING)
        except Exception as error:  # whatever a program of somebody else does at its start
            life.cancel()
            self.skipped[server.name] = f"it did not start: {type(error).__name__}"
            return
        by_name = {one.name: one for one in listed}
        for name in server.tools:
            try:
                self._offer(server, client, by_name[name])
            except KeyError:
                self.skipped[f"{server.name}/{name}"] = "the server has no such tool"
            except ValueError as error:
                self.skipped[f"{server.name}/{name}"] = str(error)

    async def _live(self, server: Server, ready: concurrent.futures.Future[Any]) -> None:
        from mcp import Client, StdioServerParameters, stdio_client

        parameters = StdioServerParameters(
            command=server.command[0], args=list(server.command[1:]), env=server.environment
        )
        try:
            with open(os.devnull, "w") as nowhere:
                transport = stdio_client(parameters, errlog=nowhere)
                async with Client(transport, read_timeout_seconds=server.seconds) as client:
                    listed: list[Any] = []
                    cursor = None
                    while len(listed) < MAX_LISTED:
                        page = await client.list_tools(cursor=cursor)
                        listed += page.tools
                        cursor = page.next_cursor
                        if not cursor:
                            break
                    ready.set_result((client, listed[:MAX_LISTED]))
                    await self._stop.wait()
        except BaseException as error:
            if not ready.done():
                ready.set_exception(error)
            if not isinstance(error, Exception):
                raise

    def _offer(self, server: Server, client: Any, listed: Any) -> None:
        """ValueError where the tool can't be offered."""
        reads = listed.annotations is not None and listed.annotations.read_only_hint is True
        schema = {"description": listed.description or "", "schema": listed.input_schema, "reads": reads}
        mark = hashlib.sha256(json.dumps(schema, sort_keys=True).encode()).hexdigest()[:16]
        pinned = server.pins.get(listed.name) == mark
        if server.pins and not pinned:
            raise ValueError(f"its description is not the pinned one (it is {mark} now)")
        name = re.sub(r"[^a-z0-9_]", "_", f"{server.name}_{listed.name}".lower())[:64]
        if any(tool.name == name for tool in self.tools):
            raise ValueError("another tool has its name")
        asks = server.confirm or not (reads and pinned)

        def run(arguments: dict[str, Any]) -> str:
            return self._call(client, listed.name, arguments, server.seconds)

        tool = Tool(
            name=name,
            description=cut(plain(listed.description or "", lines=False), MAX_DESCRIPTION),
            parameters=our_schema(listed.input_schema),
            run=run,
            changes_something=asks,
            varies=not asks,
        )
        self.tools.append(tool)
        self.fingerprints[f"{server.name}/{listed.name}"] = mark

    def _call(self, client: Any, name: str, arguments: dict[str, Any], seconds: float) -> str:
        async def call() -> Any:
            return await asyncio.wait_for(client.call_tool(name, arguments), seconds)

        try:
            result = self._wait(call(), seconds)
        except TimeoutError:
            raise ToolError(f"no answer within {seconds:g} s") from None
        except Exception as error:
            raise ToolError(f"the server failed: {type(error).__name__}") from error
        text = cut("\n".join(map(_content_text, result.content)), MAX_RESULT)
        if result.is_error:
            raise ToolError(text or "the server gave an error without words")
        return text or "(no output)"

    def _wait(self, work: Coroutine[Any, Any, Any], seconds: float) -> Any:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(seconds + 1.0)
        except TimeoutError:
            future.cancel()
            raise


def plain(text: str, *, lines: bool = True) -> str:
    """A stranger's text without control characters but line feeds and tabs; on one line unless `lines`."""
    text = CONTROL.sub(lambda found: found[0] if found[0] in "\n\t" else "", text)
    return text if lines else " ".join(text.split())


def _content_text(part: Any) -> str:
    text = getattr(part, "text", None)
    if isinstance(text, str):
        return plain(text[: 4 * MAX_RESULT])
    return f"({plain(str(getattr(part, 'type', 'something')), lines=False)[:20]} that can't be shown)"


def our_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """A server's schema as our subset. Properties that don't fit in are left out where they are optional;
    ValueError where one is required. Stricter rules than ours the server checks itself."""
    if schema.get("type") != "object" or not isinstance(schema.get("properties", {}), dict):
        raise ValueError("its arguments are no object")
    if not isinstance(schema.get("required", []), list):
        raise ValueError("its list of required arguments is none")
    properties, required = {}, [str(name) for name in schema.get("required", ())]
    for name, rule in schema.get("properties", {}).items():
        taken = _our_property(rule) if _is_plain(name, MAX_NAME) else None
        if taken is not None:
            properties[name] = taken
        elif name in required:
            raise ValueError(f"its argument {plain(name)[:40]} is of a kind that can't be given here")
    if missing := set(required) - properties.keys():
        raise ValueError(f"it requires {sorted(missing)[0][:40]}, which it doesn't describe")
    return {"type": "object", "properties": properties, "required": required}


def _is_plain(text: str, most: int) -> bool:
    """Whether it can be shown as it is: it has to be written exactly so, and can't be cut or cleaned."""
    return len(text) <= most and plain(text) == text and "\n" not in text


def _our_property(rule: Any) -> dict[str, Any] | None:
    if not isinstance(rule, dict):
        return None
    some = rule.get("anyOf")
    if isinstance(some, list):  # "a string or null": what is optional may be left out as well
        kinds = [one for one in some if isinstance(one, dict) and one.get("type") != "null"]
        return _our_property(kinds[0]) if len(kinds) == 1 else None
    if (
        not isinstance(rule.get("type"), str)
        or rule["type"] not in TYPES
        or "$ref" in rule
        or "const" in rule
    ):
        return None
    kept = {key: value for key, value in rule.items() if key in PROPERTY_KEYWORDS}
    kept["description"] = cut(plain(str(kept.get("description", "")), lines=False), MAX_DESCRIPTION)
    choices = kept.get("enum", [])
    if not isinstance(choices, list) or len(choices) > MAX_ENUM:
        return None
    if not all(_is_plain(one, MAX_DESCRIPTION) for one in choices if isinstance(one, str)):
        return None
    for key in ("minimum", "maximum"):
        if type(kept.get(key, 0)) not in (int, float) or not abs(kept.get(key, 0)) <= MAX_BOUND:
            return None
    if type(kept.get("maxLength", 0)) is not int or kept.get("maxLength", 0) < 0:
        return None
    return kept
