"""The tool `sql`: one SELECT over tables, answered by DuckDB (Raasveldt and Mühleisen, SIGMOD 2019).

    with Database([Table("cities", [("name", "text"), ("size", "integer")], rows)]) as database: ...
    with Database.of_files(["sales.csv"]) as database: ...
    Toolbox([sql_tool(database)])

Only SELECT is answered, nothing can be changed, and neither files nor the network can be reached: queries
run in a process of their own behind walls (`sql_worker.py`), with limits on time, memory and rows. Small
databases share one such process, a database of files has its own. A query that breaks it costs that query
alone: the next one gets a new process with the same tables (files that have changed by then are refused).

The text of a result is canonical: one row a line, values with ` | ` between them, numbers as the
calculator writes them, line ends and other control characters of a text as `\\n`, so that no value can pass
for a row, `(no rows)` for none, a visible mark where rows were left out.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from ayllu.errors import InputNotFoundError, RequestError
from ayllu.machine import end_worker
from ayllu.tools.calculator import canonical
from ayllu.tools.tool import Tool, ToolError

MAX_QUERY = 2000  # characters
MAX_ROWS = 50
SECONDS = 2.0  # for one query
SUFFIXES = (".csv", ".tsv", ".parquet", ".json", ".jsonl")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_KINDS = ("integer", "number", "text", "date", "boolean")
_GRACE = 3.0  # seconds after its time limit in which a query may still end by itself
_LOADING = 120.0  # seconds for opening tables or files
_LONGEST = 16 << 20  # bytes of an answer: twice what the worker sends at most
Column = tuple[str, str]


@dataclass(frozen=True)
class Table:
    """A table: (name, kind) of each column; kinds are integer, number, text, date (ISO text) and boolean."""

    name: str
    columns: Sequence[Sequence[str]]
    rows: Sequence[Sequence[Any]] = field(repr=False)


@dataclass(frozen=True)
class Found:
    """The result of a query: at most as many rows as were asked for; `more` says that there were more."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    more: bool = False


class _Worker:
    """A process that answers; a new one in its place when it had to be ended."""

    def __init__(self, paths: Sequence[str] = ()) -> None:
        self.paths, self.lock, self._asked = list(paths), threading.Lock(), 0
        self._state: list[tuple[int, int, int]] | None = None  # of the files when they were read
        self._process: subprocess.Popen[bytes] | None = None
        self.hello: dict[str, Any] = {}
        self.close: Callable[[], object] = lambda: None  # ends the process

    def start(self) -> dict[str, Any]:
        """What a new process says first. It reads the files again, and may find others in their place."""
        self.close()
        try:
            state = [(s.st_ino, s.st_size, s.st_mtime_ns) for s in map(os.stat, self.paths)]
        except OSError as error:
            return {"error": f"a data file is gone: {error.strerror}"}
        if self._state not in (None, state):
            return {"error": "a data file has changed since it was read"}
        self._state = state
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-m", "ayllu.tools.sql_worker", *self.paths],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in a terminal is for us
            env={"MALLOC_ARENA_MAX": "2"},  # address space is limited there, and arenas take much of it
        )
        self.close = weakref.finalize(self, end_worker, self._process)
        self.hello = self._read(_LOADING) or {"error": "DuckDB can't be started"}
        return self.hello

    def ask(self, request: dict[str, Any], patience: float) -> dict[str, Any] | None:
        """The answer; None where it took too long or the process died of it."""
        if self._process is None or self._process.poll() is not None:
            hello = self.start()
            if "error" in hello:
                return hello
        assert self._process is not None and self._process.stdin is not None
        self._asked += 1
        try:
            self._process.stdin.write(json.dumps({**request, "id": self._asked}).encode() + b"\n")
            self._process.stdin.flush()
            answer = self._read(patience)
        except OSError:
            return None
        except BaseException:  # Ctrl-C: what is still to come would be taken for the next answer
            self.close()
            raise
        if answer is not None and answer.pop("id", 0) != self._asked:
            self.close()
            return None
        return answer

    def _read(self, patience: float) -> dict[str, Any] | None:
        process = self._process
        assert process is not None and process.stdout is not None
        parts, size, until = list[bytes](), 0, time.monotonic() + patience
        while not parts or not parts[-1].endswith(b"\n"):
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, until - time.monotonic()))
            part = process.stdout.read1(1 << 20) if ready else b""  # type: ignore[attr-defined]
            size += len(part)
            if not part or size > _LONGEST:
                self.close()
                return None
            parts.append(part)
        try:
            answer: dict[str, Any] = json.loads(b"".join(parts))
        except ValueError:
            self.close()
            return None
        return answer


_shared = _Worker()
_numbers = itertools.count(1)


class Database:
    """Tables that can be asked and not changed. One query at a time in each process."""

    def __init__(self, tables: Iterable[Table], *, seconds: float = SECONDS, most: int = MAX_ROWS) -> None:
        self.seconds, self.most, self.number = seconds, most, next(_numbers)
        self._tables: list[Table] | None = list(tables)
        for table in self._tables:
            for name, kind in table.columns:
                if kind not in _KINDS:
                    raise ValueError(f"column {name!r} of {table.name!r}: no kind {kind!r}")
        self._worker = _shared
        self.tables: dict[str, tuple[Column, ...]] = {
            table.name: tuple((name, kind) for name, kind in table.columns) for table in self._tables
        }

    @classmethod
    def of_files(
        cls, paths: Iterable[Path | str], *, seconds: float = SECONDS, most: int = MAX_ROWS
    ) -> Database:
        """A table for each data file (.csv, .tsv, .parquet, .json, .jsonl), named after it.

        They are read now; later changes aren't seen, but for a query that breaks the process: the next one
        reads them again, and is told if they have changed. InputNotFoundError for what isn't there,
        RequestError for what can't be read.
        """
        found = [Path(path).absolute() for path in paths]
        for path in found:
            if not path.exists():
                raise InputNotFoundError(f"there is no data file {path}", fix="name one that is there")
            if path.suffix.lower() not in SUFFIXES or not path.is_file():
                raise RequestError(
                    f"{path.name} is no data file that can be read", fix=f"give {', '.join(SUFFIXES)} files"
                )
        if len({path.stem for path in found}) != len(found):
            raise RequestError("two data files have the same name", fix="rename one: it names the table")
        self = cls((), seconds=seconds, most=most)
        self.number, self._tables, self._worker = 0, None, _Worker([str(path) for path in found])
        with self._worker.lock:
            hello = self._worker.start()
        if "error" in hello:
            raise RequestError("the data files can't be read", why=hello["error"], fix="check the files")
        self.tables = {t["name"]: tuple((n, k) for n, k in t["columns"]) for t in hello["tables"]}
        return self

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process of a database of files; the shared one stays for the others."""
        if self._worker is not _shared:
            self._worker.close()

    @property
    def walls(self) -> list[str]:
        """The kernel's walls round the queries, once there has been one."""
        return list(self._worker.hello.get("walls", []))

    def schema(self) -> str:
        """The tables as a model is shown them: `cities (name text, size integer)`, one a line."""
        return "\n".join(
            f"{table} ({', '.join(f'{name} {kind}' for name, kind in columns)})"
            for table, columns in self.tables.items()
        )

    def ask(self, query: str, most: int | None = None) -> Found:
        """The result of one SELECT, at most `most` rows (None: as many as the database gives at once).
        ToolError (text for the model) for whatever is refused or fails."""
        most = self.most if most is None else most
        request = {"database": self.number, "query": query, "most": most, "seconds": self.seconds}
        patience = self.seconds + _GRACE
        with self._worker.lock:
            reply = self._worker.ask(request, patience)
            if reply is not None and "missing" in reply:
                tables = [
                    {"name": table.name, "columns": list(map(list, table.columns)), "rows": list(table.rows)}
                    for table in self._tables or ()
                ]
                opened = self._worker.ask({"database": self.number, "tables": tables}, _LOADING)
                reply = opened if opened is None or "error" in opened else self._worker.ask(request, patience)
        if reply is None:
            raise ToolError("the query takes too much time or memory")
        if "error" in reply:
            raise ToolError(reply["error"])
        return Found(tuple(reply["columns"]), [tuple(row) for row in reply["rows"]], reply["more"])


def rows_text(rows: Sequence[Sequence[Any]], more: bool = False) -> str:
    """A result as the model reads it."""
    lines = [" | ".join(map(value_text, row)) for row in rows]
    if more:
        lines.append(f"…[only the first {len(rows)} rows]…")
    return "\n".join(lines) or "(no rows)"


def value_text(value: Any) -> str:
    """One value: a number as the calculator writes it, `null` for none, true and false as JSON has them."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and math.isfinite(value):
        return canonical(Fraction(repr(value)))  # the shortest decimal that is this float
    return "null" if value is None else _CONTROL.sub(lambda found: ascii(found[0])[1:-1], str(value))


def sql_tool(database: Database) -> Tool:
    """The tool `sql` over one database."""

    def run(arguments: dict[str, Any]) -> str:
        found = database.ask(arguments["query"])
        return rows_text(found.rows, found.more)

    return Tool(
        name="sql",
        description=f"One SELECT over the tables\n{database.schema()}",
        parameters={
            "type": "object",
            "properties": {"query": {"type": "string", "maxLength": MAX_QUERY}},
            "required": ["query"],
        },
        run=run,
    )
