"""The tool `hand_off`: the conversation goes to a person, with a summary so that nobody has to ask again.

It ends the model's turn. What was handed over is recorded before the user is told so; where it can't be
recorded nobody is told that somebody will come.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ayllu.files import append_line
from ayllu.tools.clock import Now, utc_now
from ayllu.tools.tool import Tool, ToolError

MAX_SUMMARY = 1000  # characters


@dataclass(frozen=True)
class HandedOver:
    """What a person needs to go on: when (ISO, UTC), the model's summary, which conversation."""

    time: str
    summary: str
    conversation: str = ""


def record_in(path: Path) -> Callable[[HandedOver], None]:
    """Appends what is handed over to a file, one JSON object a line."""

    def record(handed: HandedOver) -> None:
        append_line(path, json.dumps(asdict(handed), ensure_ascii=False))

    return record


def hand_off_tool(
    record: Callable[[HandedOver], None], *, conversation: str = "", now: Now = utc_now
) -> Tool:
    """The tool `hand_off`; `record` keeps it where people look."""

    def run(arguments: dict[str, Any]) -> str:
        summary = arguments["summary"].strip()
        if not summary:
            raise ToolError("the summary is empty")
        time = now().astimezone(datetime.UTC).isoformat(timespec="seconds")
        record(HandedOver(time, summary, conversation))
        return f"[handed over to a person] {summary}"

    return Tool(
        name="hand_off",
        description="Hands the conversation over to a person, when the user wants one or nothing else helps.",
        parameters={
            "type": "object",
            "properties": {
                "summary": {
                    "type": "string",
                    "maxLength": MAX_SUMMARY,
                    "description": "what the user wants, and what was tried",
                }
            },
            "required": ["summary"],
        },
        run=run,
        ends_turn=True,
    )
