"""The program `ayllu`: from words to an exit code.

The verbs are in verbs.py and verbs_examine.py, and listed here only. This file answers `--help` by itself,
because a person who asks for help should not wait for a parser to be imported, and turns every error into
three lines on stderr (what happened, why, what to do) and the exit code that ayllu.errors gives it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ayllu.console import harmless
from ayllu.errors import AylluError, UsageError
from ayllu.files import typed_os_errors

if TYPE_CHECKING:
    from cyclopts import App

# The first line of each verb's own help.
VERBS = {
    "make": "Make a model: all stages of a recipe, from text to a released model folder.",
    "run": "Answer one prompt: the answer to stdout, thinking and tool calls to stderr.",
    "chat": "Talk with a model. Ctrl-C stops an answer, Ctrl-D leaves.",
    "serve": "Serve a model over HTTP (OpenAI's chat completions) until Ctrl-C.",
    "show": "Show what a model is and costs: parameters, bytes, cache, operations, what fits.",
    "import": "Import a model: any form that is read becomes a Hugging Face folder.",
    "export": "Export a model for other programs: one GGUF file (llama.cpp), or a Hugging Face folder.",
    "quantize": "Pack a model's weights in int8 or int4, and measure what that costs.",
    "bench": "Measure how fast a model decodes, reads prompts, and serves many texts at once.",
    "eval": "Examine a model: official test sets, the project's own families, bits per byte of a text.",
    "report": "Write report.json and report.html of a run anew from what its stages recorded.",
    "version": "Versions of Ayllu and of what it stands on.",
}

_EXAMINING = ("show", "quantize", "bench", "eval", "report", "version")  # in verbs_examine.py


def program() -> App:
    """All verbs. Each is imported when it is called."""
    from cyclopts import App

    from ayllu import __version__

    app = App(
        name="ayllu",
        help="Make, check, run and carry on an open language model on one machine.",
        version=__version__,
        help_format="plaintext",
        result_action="return_value",
    )
    for name in VERBS:
        file = "verbs_examine" if name in _EXAMINING else "verbs"
        function = f"{name}_" if name in ("import", "eval") else name  # words that Python has taken
        app.command(f"ayllu.{file}:{function}", name=name)
    return app


def overview() -> str:
    """What `ayllu --help` prints."""
    lines = [f"  {name:9}{text}" for name, text in VERBS.items()]
    return "\n".join(
        [
            "Usage: ayllu VERB ...",
            "",
            "Make, check, run and carry on an open language model on one machine.",
            "",
            *lines,
            "",
            "Each verb tells its options: ayllu make --help. With --debug an error shows its traceback.",
            "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 recipe, 4 not found, 5 bad file,",
            "6 memory or disk, 8 refused, 130 interrupted.",
        ]
    )


def main(tokens: Sequence[str] | None = None) -> None:
    """The program `ayllu`: parse, call, exit."""
    words = list(sys.argv[1:] if tokens is None else tokens)
    ours = words[: words.index("--")] if "--" in words else words
    debug = "--debug" in ours
    if debug:
        words.remove("--debug")
    if "-" in ours:  # stdin is a value, not an option: behind "--" the parser knows it
        words.remove("-")
        words += ["-"] if "--" in words else ["--", "-"]
    sys.exit(_run(words, debug=debug))


def _run(words: list[str], *, debug: bool) -> int:
    """Exit code of one call; prints its error."""
    if words in ([], ["--help"], ["-h"]):
        with _broken_pipe_is_quiet():
            print(overview(), flush=True)
        return 0
    from cyclopts import CycloptsError, UnusedCliTokensError

    shown: AylluError
    cause: BaseException
    app = program()
    if words[0] in ("run", "chat"):
        # Somebody waits for the first word. What imports leave behind is no rubbish, and looking through it
        # again and again takes 0.1 of 1.5 seconds.
        gc.set_threshold(50_000, 20, 100)
    try:
        with _broken_pipe_is_quiet(), typed_os_errors(Path.cwd()):
            app(words, exit_on_error=False, print_error=False)
            sys.stdout.flush()
        return 0
    except SystemExit as error:  # --help and --version
        return int(error.code or 0)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except UnusedCliTokensError as error:
        shown = cause = _too_many(words, error.unused_tokens or [])
    except CycloptsError as error:
        verb = f"{words[0]} " if words[0] in VERBS else ""
        shown = UsageError(" ".join(str(error).split()), fix=f"see ayllu {verb}--help")
        cause = error
    except AylluError as error:
        shown = cause = error
    except Exception as error:
        shown = AylluError(
            f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else 'no message'}",
            why="this is a mistake in Ayllu, not yours",
            fix="run it again with --debug and report what it prints",
        )
        cause = error
    if debug:
        traceback.print_exception(cause)
    print(f"ayllu: {harmless(str(shown))}", file=sys.stderr)
    return shown.exit_code


def _too_many(words: list[str], left: list[str]) -> UsageError:
    """What to say of words that no parameter takes."""
    hints = {"run": "put quotes round the prompt", "eval": "put commas between the tasks, without spaces"}
    fix = hints.get(words[0], f"see ayllu {words[0]} --help")
    if "--tools" in words and words[0] in ("run", "chat"):
        fix = f"one tool more is --tool {left[0]}"
    return UsageError(f"too many words: {' '.join(left)}", fix=fix)


@contextlib.contextmanager
def _broken_pipe_is_quiet() -> Iterator[None]:
    """`ayllu run … | head -1` ends without a message when the reader has gone."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
