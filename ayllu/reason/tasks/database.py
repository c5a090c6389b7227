"""The solver of table problems: a small table in SQLite, asked what the right answer is.

Models ask by the tool `sql`, which is DuckDB behind walls (`ayllu/tools/sql.py`). Problems are made by the
thousand a second, with our own queries, so their answers come from SQLite in memory, without any process in
between; that two engines agree on every shape of query is a test of both.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from ayllu.tools.tool import ToolError

MAX_STEPS = 200_000  # of SQLite's virtual machine, for one query
MAX_ROWS = 50
_READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION}
_FUNCTIONS = {"count", "sum", "avg", "min", "max", "round", "length", "lower", "upper", "abs", "total"}


class SqliteDatabase:
    """One table and its rows, read only. `columns`: (name, "integer" or "text") pairs."""

    def __init__(
        self, table: str, columns: Sequence[Sequence[str]], rows: Sequence[Sequence[int | str]]
    ) -> None:
        self.connection = sqlite3.connect(":memory:", check_same_thread=False)
        declared = ", ".join(f"{name} {kind}" for name, kind in columns)
        self.connection.execute(f"CREATE TABLE {table} ({declared})")
        marks = ", ".join("?" * len(columns))
        self.connection.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)  # noqa: S608 - our names
        self.connection.commit()
        self.connection.set_authorizer(_only_reading)
        self.steps = 0
        self.connection.set_progress_handler(self._count, 1000)

    def _count(self) -> int:
        self.steps += 1000
        return int(self.steps > MAX_STEPS)

    def ask(self, query: str) -> list[tuple[Any, ...]]:
        """At most MAX_ROWS rows. ToolError for whatever SQLite refuses or doesn't finish."""
        self.steps = 0
        try:
            return self.connection.execute(query).fetchmany(MAX_ROWS)
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:  # ValueError: a zero byte
            why = "the query takes too long" if self.steps > MAX_STEPS else str(error)
            raise ToolError(why[:120]) from error


def _only_reading(action: int, name: str | None, other: str | None, *_: Any) -> int:
    fine = action in _READING and (action != sqlite3.SQLITE_FUNCTION or (other or "").lower() in _FUNCTIONS)
    return sqlite3.SQLITE_OK if fine else sqlite3.SQLITE_DENY
