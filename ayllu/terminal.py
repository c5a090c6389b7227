"""The model at the terminal: one answer (`ayllu run`) and a conversation (`ayllu chat`).

The answer goes to stdout; thinking, tool calls and their results go to stderr, dimmed, so that a pipe
gets the answer alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ayllu.console import harmless, tell
from ayllu.errors import AylluError, ContextLengthError, NotUtf8Error, RequestError, UsageError

if TYPE_CHECKING:
    from ayllu.reason.loop import Answer, Event
    from ayllu.reason.transcript import Transcript
    from ayllu.talk import Talk

HELP = """\
  /help    this list
  /reset   forget the conversation and begin a new one
  /quit    leave (Ctrl-D too)
  Ctrl-C   stops an answer"""


class Painter:
    """Writes events as they come: what is said to `out`, the rest dimmed to `err`."""

    def __init__(self, out: TextIO, err: TextIO, *, quiet: bool = False) -> None:
        self.out, self.err, self.quiet = out, err, quiet
        self.kind, self.call, self.at_line_start = "", "", True
        self.dim = err.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"

    def paint(self, event: Event) -> None:
        """One event; "done" closes the line."""
        text = harmless(event.text)
        # Of several results each has its line; so have calls, which come in pieces or whole.
        if event.kind != self.kind or event.kind == "result" or (event.kind == "call" and _whole(self.call)):
            self._close()
            self.call = ""
            text = {"call": "-> ", "result": "<- "}.get(event.kind, "") + text
            self.kind = event.kind
        self.call += event.text if event.kind == "call" else ""
        if not text or (self.quiet and event.kind != "say"):
            return
        if event.kind == "say":
            self._write(self.out, text)
        else:
            self._write(self.err, f"\x1b[2m{text}\x1b[22m" if self.dim else text)
        self.at_line_start = text.endswith("\n")

    def _close(self) -> None:
        """End the line of the last kind, unless it has ended."""
        if not self.at_line_start:
            self._write(self.out if self.kind == "say" else self.err, "\n")
            self.at_line_start = True

    def _write(self, stream: TextIO, text: str) -> None:
        stream.write(text)
        stream.flush()


def _whole(call: str) -> bool:
    """Whether `name {"arguments":"as JSON"}` is complete."""
    try:
        return isinstance(json.loads(call.partition(" ")[2]), dict)
    except (ValueError, RecursionError):
        return False


def goes_on_with_text(folder: Path) -> bool:
    """Whether the model has no chat format: then it continues a text, which may be empty."""
    from ayllu.reason.foreign import Continuation, chat_of
    from ayllu.text.tokenizer import Tokenizer

    return isinstance(chat_of(folder, Tokenizer.load(folder)), Continuation)


def read_prompt(argument: str | None, folder: Path | None = None) -> str:
    """The prompt: the argument, or stdin when that is absent or `-`.

    At a terminal a model in `folder` that only continues texts begins one of its own.
    """
    if argument not in (None, "-"):
        prompt = str(argument)
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError as error:  # bytes of an argument that are no text come as surrogates
            raise NotUtf8Error(
                "the prompt is not UTF-8 text", why=error.reason, fix="type it in UTF-8, or pipe a UTF-8 file"
            ) from error
        return prompt
    if argument is None and sys.stdin.isatty():
        with contextlib.suppress(AylluError):  # what is wrong with the folder is told when it is loaded
            if folder is not None and goes_on_with_text(folder):
                return ""
        raise UsageError("there is no prompt", fix='give one, as in: ayllu run MODEL "What is 417 + 385?"')
    try:
        return sys.stdin.buffer.read().decode("utf-8").rstrip("\n")
    except UnicodeDecodeError as error:
        raise NotUtf8Error(
            "the prompt on stdin is not UTF-8 text", why=str(error), fix="convert it to UTF-8"
        ) from error


def one_answer(
    talk: Talk,
    prompt: str,
    *,
    quiet: bool = False,
    silent: bool = False,
    on_done: Callable[[Transcript, Answer], None] | None = None,
) -> dict[str, Any]:
    """Answer one prompt, painting it as it comes (nothing with `silent`); what happened, as plain values.

    `on_done` gets the conversation that was answered, and the answer."""
    from ayllu.reason.foreign import Continuation

    if not prompt.strip() and not isinstance(talk.chat, Continuation):
        raise RequestError("the prompt is empty")
    begun = talk.begin(prompt)
    events = talk.answer(begun)
    if on_done is not None:
        events = _watched(events, begun, on_done)
    return _painted(events, quiet=quiet, silent=silent)


def _watched(
    events: Iterable[Event], begun: Transcript, on_done: Callable[[Transcript, Answer], None]
) -> Iterator[Event]:
    for event in events:
        if event.kind == "done" and event.answer is not None:
            on_done(begun, event.answer)
        yield event


def _painted(events: Iterable[Event], *, quiet: bool, silent: bool) -> dict[str, Any]:
    painter = Painter(sys.stdout, sys.stderr, quiet=quiet)
    said: dict[str, Any] = {"answer": "", "reasoning": "", "calls": []}
    call = ""
    for event in events:
        if not silent:
            painter.paint(event)
        if event.kind == "say":
            said["answer"] += event.text
        elif event.kind == "think":
            said["reasoning"] += event.text
        elif event.kind == "call":
            call += event.text
        elif event.kind == "result":
            call = ""
        elif event.kind == "done" and event.answer is not None:
            said |= _counts(event.answer)
            records = event.answer.records
            said["calls"] = [{"call": f"{r.name} {r.arguments}".strip(), "result": r.text} for r in records]
    if call:  # begun and not run: the tokens ended, or the calls that are allowed
        said["calls"].append({"call": call, "result": None})
    return said


def paint_answer(
    talk: Talk, begun: Transcript, answer: Answer, *, quiet: bool = False, silent: bool = False
) -> dict[str, Any]:
    """Paint an answer that is there already, as `one_answer` would have; `begun` is what it answers."""
    from ayllu.reason.loop import Event

    made = answer.transcript.spans[len(begun.spans) :]
    events = [Event(str(span.kind), talk.chat.text(span)) for span in made]
    if answer.told:
        events.append(Event("say", answer.told))
    return _painted([*events, Event("done", answer=answer)], quiet=quiet, silent=silent)


def _counts(answer: Answer) -> dict[str, Any]:
    return {
        "finish_reason": answer.finish_reason,
        "tokens": answer.tokens,
        "thinking_tokens": answer.thinking_tokens,
    }


@contextlib.contextmanager
def ctrl_c_sets(stop: threading.Event) -> Iterator[None]:
    """Ctrl-C sets `stop` instead of breaking into the engine's step; a second one breaks in after all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def converse(talk: Talk) -> None:
    """Read lines and answer them until Ctrl-D or /quit.

    A stopped answer, and one that doesn't fit, leave the conversation as it was before the question.
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (line editing and the history of this conversation)
    transcript: Transcript | None = None
    turn = 0
    tell("Ask something. /help lists the commands, Ctrl-D leaves.")
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            if sys.stdin.isatty():
                print()
            return
        except KeyboardInterrupt:
            tell("\n(Ctrl-D or /quit leaves)")
            continue
        except UnicodeDecodeError as error:
            raise NotUtf8Error("the input is not UTF-8 text", why=str(error)) from error
        word = line.strip()
        if word in ("/quit", "/exit"):
            return
        if word == "/reset":
            transcript = None
            tell("(a new conversation)")
        elif word == "/help":
            tell(HELP)
        elif word.startswith("/") and " " not in word:
            tell(f"there is no command {harmless(word)}; /help lists them")
        elif word:
            asked = talk.begin(line) if transcript is None else talk.go_on(transcript, line)
            turn += 1
            transcript = _answer_turn(_with_seed(talk, turn), asked) or transcript


def _with_seed(talk: Talk, turn: int) -> Talk:
    """The same question twice in a conversation may be answered differently, yet reproducibly."""
    if talk.params.seed is None:
        return talk
    return replace(talk, params=replace(talk.params, seed=talk.params.seed + turn))


def _answer_turn(talk: Talk, asked: Transcript) -> Transcript | None:
    """Paint one answer; the conversation with it, or None when it was stopped or couldn't be begun."""
    painter, stop = Painter(sys.stdout, sys.stderr), threading.Event()
    events = talk.answer(asked)
    try:
        with ctrl_c_sets(stop), contextlib.closing(events):  # type: ignore[type-var]
            for event in events:
                painter.paint(event)
                if event.kind == "done" and event.answer is not None:
                    if event.answer.finish_reason == "length":
                        tell("(cut off: no room or no tokens were left)")
                    return event.answer.transcript
                if stop.is_set():
                    break
    except KeyboardInterrupt:
        pass
    except ContextLengthError as error:
        tell(f"{error.what}\nwhat to do: /reset begins a new conversation")
        return None
    except AylluError as error:
        tell(str(error))
        return None
    tell("\n(stopped; this question and its answer are not remembered)")
    return None
