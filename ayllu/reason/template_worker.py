"""A process that renders chat templates and nothing else; started by `template.py`, which kills it at will.

A template is a program from a stranger. Here it runs in Jinja's immutable sandbox (no attributes that
begin with an underscore, no changes to what it is given), without a loader (nothing to include or import),
in a process of its own that has no files to open, little memory, and a timer on its processor time.
The timer ends the process from outside of Python, so that no loop in C code escapes it.

Requests and answers are JSON behind a length of four bytes. This file is run by its path and imports
nothing of the package.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import struct
import sys
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from jinja2 import Environment, Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(Extension):
    """`{% generation %}` marks what a model is trained on; when rendering, only what is inside counts."""

    tags = {"generation"}  # noqa: RUF012 (as Jinja declares it)

    def parse(self, parser: Parser) -> nodes.Node:
        """The block as a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def environment() -> Environment:
    """The sandbox with what the convention promises to templates (Hugging Face, "Chat templates")."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols], auto_reload=False
    )

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        """JSON without the escapes that Jinja makes for HTML."""
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    def raise_exception(message: str) -> None:
        raise RefusalError(str(message))

    made.filters["tojson"] = tojson
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return made


class RefusalError(TemplateError):
    """The template itself says that it can't write this conversation."""


def render(template: Template, values: dict[str, Any], limit: int) -> Iterator[str]:
    """The template's output in pieces. OverflowError when it is longer than `limit` characters."""
    size = 0
    for piece in template.generate(**values):
        size += len(piece)
        if size > limit:
            raise OverflowError(f"it writes more than {limit} characters")
        yield piece


def answer(made: Environment, kept: dict[str, Template], request: dict[str, Any]) -> dict[str, Any]:
    """One request: the same template with each of `values`, under one timer. `kept` are compiled ones."""
    signal.setitimer(signal.ITIMER_PROF, request["seconds"])
    try:
        source = request["template"]
        if source not in kept:
            compiled = made.from_string(source)
            if len(kept) >= 4:
                kept.clear()
            kept[source] = compiled
        return {"texts": ["".join(render(kept[source], v, request["limit"])) for v in request["values"]]}
    except RefusalError as error:
        return {"refused": str(error)[:500]}
    except MemoryError:
        return {"fault": "it needs too much memory"}
    except RecursionError:
        return {"fault": "it calls itself without end"}
    except Exception as error:
        return {"fault": f"{type(error).__name__}: {str(error)[:300]}"}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def confine(memory: int) -> None:
    """No files written, no further files or processes, at most `memory` bytes more than now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + memory, now + memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def main() -> None:
    """Read requests from stdin and answer on stdout until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    made = environment()
    # What Jinja and Python import at first use has to be there before the doors are closed.
    made.from_string("{{ strftime_now('%d') }}{% for a in b %}{{ a|tojson }}{% endfor %}").render(
        b=["\u0c95"]
    )
    with contextlib.suppress(TemplateError):
        made.from_string("{{ raise_exception('x') }}").render()
    with contextlib.suppress(TemplateError):
        made.from_string("{% wrong %}")
    kept: dict[str, Template] = {}
    source, out = sys.stdin.buffer, sys.stdout.buffer
    confine(int(sys.argv[1]))
    while head := source.read(4):
        (size,) = struct.unpack("<I", head)
        try:
            reply = json.dumps(answer(made, kept, json.loads(source.read(size)))).encode()
        except (MemoryError, RecursionError):
            reply = b'{"fault": "it needs too much memory"}'
        out.write(struct.pack("<I", len(reply)) + reply)
        out.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
