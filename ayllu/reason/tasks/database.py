"""A small database that a problem brings with it, and the `sql` tool that asks it.

`Database` is what a table problem needs of an engine: rows in, text of a query's result out. SQLite from
the standard library does it here, opened in memory, with an authoriser that lets nothing but reading
through, a limit on steps and one on rows; another engine fits behind the same two methods.
The text of a result is canonical: one row a line, values with ` | ` between them, numbers as the
calculator writes them, `(no rows)` for none.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Protocol

from ayllu.tools.calculator import canonical
from ayllu.tools.tool import Tool, ToolError

MAX_STEPS = 200_000  # of SQLite's virtual machine, for one query
MAX_ROWS = 50
_READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION}
_FUNCTIONS = {"count", "sum", "avg", "min", "max", "round", "length", "lower", "upper", "abs", "total"}


class Database(Protocol):
    """One table and its rows, read only."""

    def ask(self, query: str) -> list[tuple[Any, ...]]: ...


class SqliteDatabase:
    """`Database` in SQLite. `columns`: (name, "integer" or "text") pairs."""

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


def rows_text(rows: Sequence[Sequence[Any]]) -> str:
    """A result as the model reads it."""
    return "\n".join(" | ".join(map(_value_text, row)) for row in rows) or "(no rows)"


def _value_text(value: Any) -> str:
    if isinstance(value, float):
        return canonical(Fraction(value).limit_denominator(10**6))
    return "null" if value is None else str(value)


def sql_tool(database: Database) -> Tool:
    """The tool `sql` over one database."""
    return Tool(
        name="sql",
        description="One SELECT over the tables that were shown.",
        parameters={
            "type": "object",
            "properties": {"query": {"type": "string", "maxLength": 500}},
            "required": ["query"],
        },
        run=lambda arguments: rows_text(database.ask(arguments["query"])),
    )
