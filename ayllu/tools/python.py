"""The tool `python`: a program in, what it printed or the value of its last line out, behind the sandbox's
walls.

    error text   goes back to the model as a result, with the traceback from its own first line on
    files        what a call leaves in the work folder is named, so that the next call can go on with it
    paths        those of this machine's Python are shown as `python/...`: a model has no use for them

Every call is a program of its own. Variables don't live from one call to the next; files do, where the
sandbox has a work folder.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from typing import Any

from ayllu.errors import RefusedError
from ayllu.tools.sandbox import Outcome, Sandbox
from ayllu.tools.tool import Tool, ToolError, cut

MAX_CODE = 6000  # characters; the arguments as a whole have their own limit
MAX_OUTPUT = 1600  # characters of one result, the list of files not counted
MAX_FILES = 20
_PRINTABLE = re.compile(r"[^\t\n -~\u00a0-\U0010ffff]")

STOPPED = {
    "time": "stopped after {seconds:g} s",
    "cpu": "stopped after {cpu_seconds:g} s of processor time",
    "disk": "stopped: the work folder got too large; new files were removed",
    "output": "stopped: too much output",
    "crash": "the process crashed",
    "checkout": "stopped: no .git, .hg or .svn, nor a repository, may be in the work folder; new files were "
    "removed",
    "lost": "the sandbox broke off; try again",
}


def python_tool(sandbox: Sandbox) -> Tool:
    """The tool over `sandbox`, whose limits and folder it uses. RefusedError where that one isn't safe."""
    if not sandbox.level().safe:
        raise RefusedError(
            "the tool python is off",
            why=f"model-written code would not be kept in: {sandbox.level()}",
            fix="leave the tool out, or run Ayllu in a virtual machine with a newer kernel",
        )
    return Tool(
        name="python",
        description="Runs a Python program (standard library only, no network). Gives what it prints, or "
        "the value of its last line.",
        parameters={
            "type": "object",
            "properties": {
                "code": {"type": "string", "maxLength": MAX_CODE, "description": "such as sum(range(10))"}
            },
            "required": ["code"],
        },
        run=lambda arguments: run_python(sandbox, arguments),
        varies=True,  # it may look at its files, at the time, draw numbers
    )


def run_python(sandbox: Sandbox, arguments: dict[str, Any]) -> str:
    """The result text of one call. ToolError (text for the model) when the program failed or was stopped."""
    before = dict(sandbox.files())
    try:
        outcome = sandbox.run(arguments["code"], show_value=True)
    except RefusedError as error:
        raise ToolError("the program was not run: the sandbox is not available") from error
    text = result_text(sandbox, outcome)
    changed = [(name, size) for name, size in sandbox.files() if before.get(name) != size]
    if changed:
        text += "\n" + _listed(changed)
    if not outcome.ok:
        raise ToolError(text.strip())
    return text.strip() or "(no output)"


def result_text(sandbox: Sandbox, outcome: Outcome) -> str:
    """What a model reads of an outcome: output, errors, and why it was stopped; cut with a mark."""
    parts = [outcome.stdout.rstrip("\n")]
    if outcome.stderr:
        parts.append(without_machine_paths(outcome.stderr.rstrip("\n")))
    text = cut("\n".join(part for part in parts if part), MAX_OUTPUT)
    if outcome.why_stopped:
        limits = {"seconds": sandbox.limits.seconds, "cpu_seconds": sandbox.limits.cpu_seconds}
        reason = STOPPED[outcome.why_stopped].format(**limits)
        text = f"{reason}\n{text}" if text else reason
    elif outcome.exit and not outcome.stderr:
        text = f"exit status {outcome.exit}\n{text}"
    return _PRINTABLE.sub("�", text)


def without_machine_paths(text: str) -> str:
    """`text` with this Python's folders shown as `python`."""
    for path in sorted({sysconfig.get_path("stdlib"), sys.base_prefix, sys.prefix}, key=len, reverse=True):
        if len(path) > len("/usr"):
            text = text.replace(path, "python")
    return text


def _listed(files: list[tuple[str, int]]) -> str:
    shown = [f"{name[:100]!r} ({size:,} bytes)" for name, size in files[:MAX_FILES]]
    more = f" and {len(files) - MAX_FILES} more" if len(files) > MAX_FILES else ""
    return f"files: {', '.join(shown)}{more}"
