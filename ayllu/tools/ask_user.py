"""The tool `ask_user`: a question back, when a request can't be served without knowing more.

At a terminal the user answers at once, and the model goes on in the same turn. Elsewhere (a chat over HTTP)
the question ends the turn: it is what the user reads, and the answer is the user's next message.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ayllu.tools.tool import Tool, ToolError, cut

MAX_QUESTION, MAX_ANSWER = 500, 1000  # characters


def ask_user_tool(ask: Callable[[str], str | None] | None = None) -> Tool:
    """The tool `ask_user`. `ask(question)` gives the user's answer (None: there is none); without it the
    question ends the turn."""

    def run(arguments: dict[str, Any]) -> str:
        question = arguments["question"].strip()
        if not question:
            raise ToolError("the question is empty")
        if ask is None:
            return question
        answer = ask(question)
        if answer is None or not answer.strip():
            raise ToolError("the user did not answer")
        return cut(answer.strip(), MAX_ANSWER)

    return Tool(
        name="ask_user",
        description="Asks the user a question when something needed is missing or unclear.",
        parameters={
            "type": "object",
            "properties": {"question": {"type": "string", "maxLength": MAX_QUESTION}},
            "required": ["question"],
        },
        run=run,
        varies=True,
        ends_turn=ask is None,
        asks=ask is not None,
    )
