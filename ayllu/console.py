"""What stands between a program and the person at its terminal: text without commands in it, questions.

What a model or a tool writes is text and nothing else: control characters are taken out before they reach the
terminal, where they could rewrite the screen, the title or the clipboard (an old class of attacks; ECMA-48
control functions begin with ESC or a C1 character).
"""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ayllu.tools.tool import Tool

# C0 without tab and line feed, DEL, C1, and the marks that turn the direction of writing around. The
# joiners U+200C and U+200D stay: Telugu is written with them.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def harmless(text: str) -> str:
    """`text` without the characters that command a terminal."""
    return CONTROLS.sub("", text)


def tell(text: str) -> None:
    """A line for the person, beside the result: to stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def ask_at_terminal(question: str) -> str | None:
    """The user's answer to a model's question; None where there is none."""
    tell(f"\n? {harmless(question)}")
    try:
        return input("> ")
    except (EOFError, KeyboardInterrupt, UnicodeDecodeError):
        return None


def confirm_at_terminal(tool: Tool, arguments: dict[str, Any]) -> bool:
    """Whether the user lets a tool that changes something run; where nobody can be asked, it doesn't."""
    if not sys.stdin.isatty():
        return False
    shown = json.dumps(arguments, ensure_ascii=False)
    tell(f"\n! the model wants to use {tool.name} {harmless(shown)}")
    return (ask_at_terminal("Let it? y or n") or "").strip().casefold() in ("y", "yes", "j", "ja")
