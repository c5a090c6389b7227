"""The tools by name, as they are asked for at a terminal: `clock`, `sql=sales.csv`, `documents=handbook`.

A model knows the tools that it was trained with. Offering others is for models that were taught more.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ayllu.errors import InputNotFoundError, UsageError
from ayllu.tools.tool import Tool, ToolError


@dataclass(frozen=True)
class Needs:
    """What stands behind the = of a name, and whether it must."""

    what: str = ""
    must: bool = False


TABLE: dict[str, Needs] = {
    "calculator": Needs(),
    "python": Needs("a folder to work in"),
    "sql": Needs("a data file (repeat it for several)", must=True),
    "chart": Needs("a folder for the pictures (charts)"),
    "documents": Needs("a folder of texts", must=True),
    "clock": Needs("a time zone (UTC)"),
    "units": Needs(),
    "ask_user": Needs(),
    "hand_off": Needs("a file of what was handed over", must=True),
    "mcp": Needs("a TOML file of servers", must=True),
}

SEVERAL = ("sql", "mcp")  # may be asked for more than once, each time with another file


def open_tools(
    wishes: Sequence[str],
    stack: contextlib.ExitStack,
    *,
    ask: Callable[[str], str | None] | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Tool]:
    """The tools of `wishes` (`name` or `name=where`), in their order; `stack` closes what they hold open.

    `ask` puts a question to the user (tool `ask_user`), `tell` says what was left out: files that aren't
    read, tools of a server that aren't offered. UsageError for a name that isn't in the table or is there
    for two things, and what the tools themselves raise when they can't be had.
    """
    pairs = list(dict.fromkeys(map(_parted, wishes)))
    names = [name for name, _ in pairs if name not in SEVERAL]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise UsageError(f"the tool {twice!r} is asked for twice", fix="give it once")
    database = None
    if data := [where for name, where in pairs if name == "sql"]:
        from ayllu.tools.sql import Database

        database = stack.enter_context(Database.of_files(data))
    tools: list[Tool] = []
    for name, where in pairs:
        if name in ("calculator", "units"):
            from ayllu.tools.calculator import CALCULATOR
            from ayllu.tools.units import UNIT_TOOL

            made = [CALCULATOR if name == "calculator" else UNIT_TOOL]
        elif name == "python":
            from ayllu.tools.python import python_tool
            from ayllu.tools.sandbox import Sandbox

            if where and not Path(where).is_dir():
                raise InputNotFoundError(f"there is no folder {where} to work in", fix="make it first")
            made = [python_tool(stack.enter_context(Sandbox(Path(where) if where else None)))]
        elif name == "sql":
            from ayllu.tools.sql import sql_tool

            assert database is not None
            made = [] if any(tool.name == "sql" for tool in tools) else [sql_tool(database)]
        elif name == "chart":
            from ayllu.tools.chart import chart_tool, save_in

            made = [chart_tool(save_in(Path(where or "charts")), database)]
        elif name == "documents":
            from ayllu.tools.documents import Documents, documents_tool

            documents = Documents(where)
            if documents.skipped:
                one, why = next(iter(documents.skipped.items()))
                tell(f"documents: {len(documents.skipped)} not read, such as {one} ({why})")
            made = [documents_tool(documents)]
        elif name == "clock":
            from ayllu.tools.clock import clock_tool, zone_of

            try:
                made = [clock_tool(zone=zone_of(where).key if where else "UTC")]
            except ToolError as error:
                raise UsageError(str(error), fix="give such a name, as in clock=Europe/Berlin") from error
        elif name == "ask_user":
            from ayllu.tools.ask_user import ask_user_tool

            made = [ask_user_tool(ask)]
        elif name == "hand_off":
            from ayllu.tools.hand_off import hand_off_tool, record_in

            if not Path(where).parent.is_dir():
                raise InputNotFoundError(f"there is no folder {Path(where).parent}", fix="make it first")
            made = [hand_off_tool(record_in(Path(where)))]
        else:
            from ayllu.tools.mcp import Servers, read_servers

            servers = stack.enter_context(Servers(read_servers(Path(where))))
            for one, why in servers.skipped.items():
                tell(f"mcp: {one} is not offered: {why}")
            made = [tool for tool in servers.tools if tool.name not in TABLE]
            for tool in servers.tools:
                if tool.name in TABLE:  # of a server `ask` the tool `user`, say
                    tell(f"mcp: {tool.name} is not offered: a tool of Ayllu's has that name")
        for tool in made:
            if all(tool.name != other.name for other in tools):
                tools.append(tool)
            elif name != "sql":  # one tool for all its files
                tell(f"{name}={where}: a second tool {tool.name} is not offered")
    return tools


def _parted(wish: str) -> tuple[str, str]:
    name, sign, where = wish.partition("=")
    needs = TABLE.get(name)
    if needs is None:
        raise UsageError(f"there is no tool {name!r}", fix=f"choose from {', '.join(TABLE)}")
    if (needs.must and not where) or (sign and not (where and needs.what)):
        told = f"{name}=..., where ... is {needs.what}" if needs.what else name
        raise UsageError(f"the tool {name!r} is asked for in another way", fix=f"give {told}")
    return name, where
