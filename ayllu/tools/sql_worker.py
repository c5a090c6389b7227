"""A process that answers questions over tables by DuckDB, and can do nothing else; started by `sql.py`.

SQL is a language with loops and with functions that make strings of gigabytes: DuckDB's own memory limit
doesn't count those, and its interrupt comes too late for them. So queries run here, behind walls:

    DuckDB       in memory, no files, no extensions, no Python objects, settings locked, one SELECT at a time,
                 in a transaction that reads only (a SELECT's WITH can hold a DELETE)
    the kernel   no file can be opened, no socket made (Landlock, seccomp, where it has them); little memory
    the parent   ends this process when a query takes too long, and starts another

A line of JSON comes in, a line of JSON goes out: `open` makes a database of tables, `ask` puts one query.
The command line names data files; they are read into the first database before the walls close, when nothing
but they can be opened any more.
"""

from __future__ import annotations

import contextlib
import datetime
import decimal
import glob
import json
import math
import os
import resource
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

import duckdb

from ayllu.tools.walls import kernel, landlock, privileges, seccomp

MEMORY = 1 << 30  # bytes of address space; DuckDB and Python take 120 MB of it
DUCKDB_MEMORY = "400MB"
MOST_DATABASES = 64  # open at once; the parent opens one again that had to go
ASKED = ("/proc/self/cgroup", "/proc/meminfo", "/sys/fs/cgroup")
MAX_VALUE = 500  # characters of one value of a result
MAX_RESULT = 8 << 20  # bytes of one result, as JSON
MOST_COLUMNS = 100  # of a result
TYPES = {"integer": "BIGINT", "number": "DOUBLE", "text": "VARCHAR", "date": "DATE", "boolean": "BOOLEAN"}
READERS = {
    ".csv": "read_csv(?)",
    ".tsv": "read_csv(?)",
    ".parquet": "read_parquet(?)",
    ".json": "read_json(?)",
    ".jsonl": "read_json(?)",
}


def connection(*, files: bool = False) -> duckdb.DuckDBPyConnection:
    """An empty database in memory, without anything that reaches beyond it."""
    settings: dict[str, Any] = {
        "enable_external_access": "true" if files else "false",
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "allow_community_extensions": "false",
        "python_enable_replacements": "false",
        "temp_directory": "",
        "threads": "1",
        "async_threads": "0",
        "memory_limit": DUCKDB_MEMORY,
    }
    return duckdb.connect(":memory:", config=settings)


def lock(base: duckdb.DuckDBPyConnection) -> None:
    """No more settings, no more files."""
    base.execute("SET enable_external_access = false")
    base.execute("SET lock_configuration = true")


def opened(tables: Iterable[dict[str, Any]]) -> duckdb.DuckDBPyConnection:
    """A database of tables given with their columns and rows."""
    base = connection()
    for table in tables:
        columns = ", ".join(f"{_name(name)} {TYPES[kind]}" for name, kind in table["columns"])
        base.execute(f"CREATE TABLE {_name(table['name'])} ({columns})")
        if rows := table["rows"]:
            marks = ", ".join("?" * len(table["columns"]))
            insert = f"INSERT INTO {_name(table['name'])} VALUES "  # noqa: S608 - quoted names
            for begin in range(0, len(rows), 200):
                some = rows[begin : begin + 200]
                values = [value for row in some for value in row]
                base.execute(insert + ", ".join([f"({marks})"] * len(some)), values)
    lock(base)
    return base


def from_files(paths: Iterable[str]) -> duckdb.DuckDBPyConnection:
    """A database with a table for each data file, named after it."""
    base = connection(files=True)
    for path in map(Path, paths):
        reader = READERS[path.suffix.lower()]
        # DuckDB takes a name for a pattern, so that sales[1].csv would be sales1.csv; a descriptor has none.
        pattern = str(path) != glob.escape(str(path))
        with path.open("rb") if pattern else contextlib.nullcontext() as file:
            name = f"/dev/fd/{file.fileno()}" if file is not None else str(path)
            base.execute(f"CREATE TABLE {_name(path.stem)} AS SELECT * FROM {reader}", [name])  # noqa: S608
    lock(base)
    return base


class Watch:
    """Interrupts a query whose time is over; one thread for all of them."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.base: duckdb.DuckDBPyConnection | None = None
        self.until = 0.0

    def begin(self, base: duckdb.DuckDBPyConnection, seconds: float) -> None:
        """A query begins, on the one connection that is asked now."""
        with self.changed:
            self.base, self.until = base, time.monotonic() + seconds
            self.changed.notify()

    def end(self) -> None:
        """It has ended."""
        with self.changed:
            self.base = None

    def run(self) -> None:
        """The thread's work, for ever."""
        with self.changed:
            while True:
                left = self.until - time.monotonic()
                if self.base is not None and left <= 0:
                    self.base.interrupt()
                    left = 0.1  # a query that begins just now may miss it
                self.changed.wait(left if self.base is not None else None)


WATCH = Watch()


def ask(base: duckdb.DuckDBPyConnection, query: str, most: int, seconds: float) -> dict[str, Any]:
    """One SELECT: columns, at most `most` rows and whether there are more; or "error"."""
    WATCH.begin(base, seconds)
    try:
        statements = base.extract_statements(query)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            return {"error": "one SELECT, and nothing else, is answered"}
        base.execute("BEGIN TRANSACTION READ ONLY")
        try:
            found = base.execute(statements[0])
            columns = [column[0] for column in found.description or ()]
            if len(columns) > MOST_COLUMNS:
                return {"error": f"a result has at most {MOST_COLUMNS} columns"}
            rows = found.fetchmany(most + 1)
        finally:
            WATCH.end()
            _roll_back(base)
    except duckdb.InterruptException:
        return {"error": "the query takes too long"}
    except duckdb.OutOfMemoryException:
        return {"error": "the query takes too much memory"}
    except (duckdb.Error, MemoryError, RuntimeError, ValueError, OverflowError) as error:
        return {"error": " ".join(str(error).split("LINE 1:")[0].split())[:300] or type(error).__name__}
    finally:
        WATCH.end()
    return {
        "columns": columns,
        "rows": [[_plain(value) for value in row] for row in rows[:most]],
        "more": len(rows) > most,
    }


def _roll_back(base: duckdb.DuckDBPyConnection) -> None:
    """Without it no other query could begin: where it fails the process ends, and the parent starts anew."""
    try:
        base.execute("ROLLBACK")
    except (duckdb.Error, MemoryError, RuntimeError) as error:
        raise SystemExit(1) from error


def described(base: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
    """The tables with their columns and types."""
    found = base.execute(
        "SELECT table_name, column_name, data_type FROM duckdb_columns() WHERE NOT internal "
        "ORDER BY table_name, column_index"
    ).fetchall()
    tables: dict[str, list[list[str]]] = {}
    for table, column, kind in found:
        tables.setdefault(table, []).append([column, kind.lower()])
    return [{"name": name, "columns": columns} for name, columns in tables.items()]


def _name(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _plain(value: Any) -> Any:
    """A value that JSON has: numbers, text, true, false, null."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, decimal.Decimal):
        if decimal.Decimal(repr(float(value))) != value:  # more digits than a float has: cents of large sums
            return format(value, "f")
        value = float(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat(*([" "] if isinstance(value, datetime.datetime) else []))
    if isinstance(value, bytes | bytearray | memoryview):
        return f"({len(value)} bytes)"
    text = str(value)
    cut = len(text) - MAX_VALUE
    return text if cut <= 0 else f"{text[:MAX_VALUE]} …[{cut} characters cut]…"


def confine(paths: Iterable[str]) -> None:
    """Before anything foreign is read: no file but `paths` can be opened. Capabilities stay until then: root
    may have named what belongs to another user."""
    with contextlib.suppress(OSError, KeyError):
        kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
        _only(paths)


def close_walls() -> list[str]:
    """Whatever this kernel has of walls, for good -> their names."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    standing = ["limits"]
    for name, wall in (
        ("privileges", privileges.drop),
        ("landlock", lambda: _only(())),
        ("seccomp", lambda: seccomp.restrict(seccomp.program(indoors=False, threads=True))),
    ):
        with contextlib.suppress(OSError, KeyError):
            wall()
            standing.append(name)
    return standing


def _only(paths: Iterable[str]) -> None:
    """Landlock: nothing can be opened but `paths`, to be read. Each time less, never more."""
    # DuckDB asks in these how much memory there is, and gives up where that is forbidden.
    known = list[int]()
    for path in (*ASKED, *paths):
        with contextlib.suppress(OSError):
            known.append(os.open(path, os.O_PATH | os.O_CLOEXEC))
    landlock.restrict(landlock.version(), [(file, landlock.READ_FILE) for file in known])
    for file in known:
        os.close(file)


def main(paths: list[str]) -> None:
    """Serve requests until the input ends."""
    bases: OrderedDict[int, duckdb.DuckDBPyConnection] = OrderedDict()
    reply: dict[str, Any] = {}
    out = _own_output()
    try:
        ask(connection(), "SELECT 1", 1, 1.0)  # what is loaded at first use, before the walls
        if paths:
            confine(paths)
            bases[0] = from_files(paths)
            reply["tables"] = described(bases[0])
        reply["walls"] = close_walls()
    except (duckdb.Error, KeyError, OSError) as error:
        reply = {"error": " ".join(str(error).split())[:300]}
    threading.Thread(target=WATCH.run, daemon=True).start()
    _send(out, reply)
    for line in sys.stdin:
        request = json.loads(line)
        number, asked = request["database"], {"id": request["id"]}
        if "tables" in request:
            try:
                bases[number] = opened(request["tables"])
                _send(out, asked)
            except (duckdb.Error, KeyError, MemoryError) as error:
                _send(out, asked | {"error": " ".join(str(error).split())[:300]})
        elif number not in bases:
            _send(out, asked | {"missing": True})
        else:
            bases.move_to_end(number)
            _send(out, asked | ask(bases[number], request["query"], request["most"], request["seconds"]))
        while len(bases) > MOST_DATABASES:
            bases.popitem(last=False)[1].close()


def _own_output() -> TextIO:
    """Where answers go. What DuckDB prints (a log of queries can be told to) doesn't get among them."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    return out


def _send(out: TextIO, reply: dict[str, Any]) -> None:
    text = json.dumps(reply)
    if len(text) > MAX_RESULT:
        short = {"id": reply["id"]} if "id" in reply else {}
        text = json.dumps(short | {"error": "the result is too large: ask for fewer columns or rows"})
    out.write(text + "\n")
    out.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
