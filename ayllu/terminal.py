"""The model at the terminal: one answer (`ayllu run`) and a conversation (`ayllu chat`).

The answer goes to stdout; thinking, tool calls and their results go to stderr, dimmed, so that a pipe
gets the answer alone. What a model or a tool writes is text and nothing else: control characters are
taken out before they reach the terminal, where they could rewrite the screen, the title or the
clipboard (an old class of attacks; ECMA-48 control functions begin with ESC or a C1 character).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ayllu.errors import AylluError, ContextLengthError, NotUtf8Error, RequestError, UsageError
from ayllu.serve.options import EngineOptions

if TYPE_CHECKING:
    from ayllu.engine.engine import SamplingParams
    from ayllu.engine.request import Grammar
    from ayllu.reason.foreign import TemplateChat
    from ayllu.reason.loop import Answer, Event
    from ayllu.reason.transcript import Chat, Transcript
    from ayllu.tools.session import Rules
    from ayllu.tools.tool import Tool, Toolbox

# C0 without tab and line feed, DEL, C1, and the marks that turn the direction of writing around. The
# joiners U+200C and U+200D stay: Telugu is written with them.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")

# For a model that continues texts and whose folder doesn't say how to sample: small ones, as most such are,
# lose the thread at 1, and go round in circles at 0.
STORY_TEMPERATURE = 0.5

# All tool calls of one answer together: somebody is waiting.
TOOL_SECONDS = 120.0

HELP = """\
  /help    this list
  /reset   forget the conversation and begin a new one
  /quit    leave (Ctrl-D too)
  Ctrl-C   stops an answer"""


def harmless(text: str) -> str:
    """`text` without the characters that command a terminal."""
    return CONTROLS.sub("", text)


class Painter:
    """Writes events as they come: what is said to `out`, the rest dimmed to `err`."""

    def __init__(self, out: TextIO, err: TextIO, *, quiet: bool = False) -> None:
        self.out, self.err, self.quiet = out, err, quiet
        self.kind, self.at_line_start = "", True
        self.dim = err.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"

    def paint(self, event: Event) -> None:
        """One event; "done" closes the line."""
        text = harmless(event.text)
        if event.kind != self.kind:
            self._close()
            text = {"call": "-> ", "result": "<- "}.get(event.kind, "") + text
            self.kind = event.kind
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


@dataclass
class Talk:
    """A loaded model with all that an answer needs."""

    engine: Any
    chat: Chat | TemplateChat
    toolbox: Toolbox
    params: SamplingParams
    rules: Rules | None = None
    constrain: bool = False  # hold calls to the tools' schemas while they are written
    budget: int | None = None  # tokens of thinking of one answer
    says_budget: bool = False

    def begin(self, user: str) -> Transcript:
        """A new conversation's first turn; the tools on offer are named in it, and the budget where the model
        was taught to mind it."""
        from ayllu.reason.thinking import budget_words

        system = budget_words(self.budget) if self.says_budget and self.budget is not None else ""
        return self.chat.start(user, system=system, tools=self.toolbox.tools)

    def bounded(self, transcript: Transcript) -> SamplingParams:
        """How the answer to a conversation is sampled. RequestError where thinking can't be bounded."""
        from ayllu.reason.thinking import bounded

        return bounded(self.params, self.chat, transcript, self.budget)

    def go_on(self, transcript: Transcript, user: str) -> Transcript:
        """A further turn."""
        from ayllu.reason.transcript import Kind

        return self.chat.add(transcript, Kind.USER, user)

    def answer(self, transcript: Transcript) -> Iterator[Event]:
        """The events of one answer (ayllu.reason.loop)."""
        from ayllu.reason.loop import answer_stream

        return answer_stream(
            self.engine,
            self.chat,
            transcript,
            self.toolbox,
            self.bounded(transcript),
            rules=self.rules,
            constrain=self.constrain,
        )


@contextlib.contextmanager
def load_talk(
    folder: Path,
    *,
    tools: bool,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    conversing: bool = False,
    engine: EngineOptions | None = None,
    further: Sequence[str] = (),
    budget: int | None = None,
) -> Iterator[Talk]:
    """Load the model of `folder`; what is None is as its generation_config.json says.

    `further` tools are those of `ayllu.tools.named`; `budget` is of thinking, in tokens. RequestError when
    it is to be `conversing` and has no chat format.
    """
    from ayllu.engine.engine import Engine, SamplingParams
    from ayllu.reason.foreign import Continuation, chat_of, no_chat_format
    from ayllu.reason.thinking import taught
    from ayllu.serve.service import SamplingDefaults
    from ayllu.text.tokenizer import Tokenizer
    from ayllu.tools.named import open_tools
    from ayllu.tools.session import Rules
    from ayllu.tools.tool import Toolbox

    tokenizer = Tokenizer.load(folder)
    chat = chat_of(folder, tokenizer)
    if conversing and isinstance(chat, Continuation):
        raise no_chat_format()
    usual = SamplingDefaults.read(folder)
    if isinstance(chat, Continuation) and not (folder / "generation_config.json").is_file():
        usual = SamplingDefaults(temperature=STORY_TEMPERATURE)
    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=usual.temperature if temperature is None else temperature,
        top_k=usual.top_k,
        top_p=usual.top_p,
        min_p=usual.min_p,
        seed=seed,
    )
    how = (engine or EngineOptions()).arguments()
    # What a model of ours has been taught; another's is offered nothing that wasn't asked for.
    usual_tools = ["calculator"] if tools and tokenizer.native else []
    with contextlib.ExitStack() as stack:
        ask = ask_at_terminal if sys.stdin.isatty() else None
        offered = open_tools(
            [*usual_tools, *further], stack, ask=ask, tell=lambda text: _tell(harmless(text))
        )
        toolbox = Toolbox(offered, confirm=confirm_at_terminal)
        _try_calls_out(params, chat, toolbox)
        opened = stack.enter_context(Engine(folder, tokenizer=tokenizer, **how))
        rules = Rules(seconds=TOOL_SECONDS, once=True)
        says = budget is not None and tokenizer.native and taught(folder)
        yield Talk(opened, chat, toolbox, params, rules, constrain=True, budget=budget, says_budget=says)


def _try_calls_out(params: SamplingParams, chat: Chat | TemplateChat, toolbox: Toolbox) -> None:
    """Begin to try the grammar of calls out, which is another process's work, while the weights are read."""
    from ayllu.engine.grammar import checked
    from ayllu.reason.loop import held_to_tools

    def work(grammar: Grammar) -> None:
        with contextlib.suppress(AylluError):  # it comes again where it matters
            checked(grammar)

    if (held := held_to_tools(params, chat, toolbox).enclosed) is not None:
        threading.Thread(target=work, args=(held.grammar,), daemon=True).start()


def ask_at_terminal(question: str) -> str | None:
    """The user's answer to a model's question; None where there is none."""
    _tell(f"\n? {harmless(question)}")
    try:
        return input("> ")
    except (EOFError, KeyboardInterrupt, UnicodeDecodeError):
        return None


def confirm_at_terminal(tool: Tool, arguments: dict[str, Any]) -> bool:
    """Whether the user lets a tool that changes something run; where nobody can be asked, it doesn't."""
    if not sys.stdin.isatty():
        return False
    shown = json.dumps(arguments, ensure_ascii=False)
    _tell(f"\n! the model wants to use {tool.name} {harmless(shown)}")
    return (ask_at_terminal("Let it? y or n") or "").strip().casefold() in ("y", "yes", "j", "ja")


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
        return str(argument)
    if argument is None and sys.stdin.isatty():
        with contextlib.suppress(AylluError):  # what is wrong with the folder is told when it is loaded
            if folder is not None and goes_on_with_text(folder):
                return ""
        raise UsageError("there is no prompt", fix='give one, as in: ayllu run MODEL "What is 417 + 385?"')
    try:
        return sys.stdin.buffer.read().decode("utf-8").rstrip("\n")
    except UnicodeDecodeError as error:
        raise NotUtf8Error("the prompt on stdin is not UTF-8 text", why=str(error)) from error


def one_answer(talk: Talk, prompt: str, *, quiet: bool = False, silent: bool = False) -> dict[str, Any]:
    """Answer one prompt, painting it as it comes (nothing with `silent`); what happened, as plain values."""
    from ayllu.reason.foreign import Continuation

    if not prompt.strip() and not isinstance(talk.chat, Continuation):
        raise RequestError("the prompt is empty")
    return _painted(talk.answer(talk.begin(prompt)), quiet=quiet, silent=silent)


def _painted(events: Iterable[Event], *, quiet: bool, silent: bool) -> dict[str, Any]:
    painter = Painter(sys.stdout, sys.stderr, quiet=quiet)
    said: dict[str, Any] = {"answer": "", "reasoning": "", "calls": []}
    kind = ""
    for event in events:
        if not silent:
            painter.paint(event)
        if event.kind == "say":
            said["answer"] += event.text
        elif event.kind == "think":
            said["reasoning"] += event.text
        elif event.kind == "call":
            if kind != "call":
                said["calls"].append({"call": "", "result": None})
            said["calls"][-1]["call"] += event.text
        elif event.kind == "result" and said["calls"]:
            said["calls"][-1]["result"] = event.text
        elif event.kind == "done":
            said |= _counts(event.answer)
        kind = event.kind
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


def _counts(answer: Answer | None) -> dict[str, Any]:
    assert answer is not None, "a done event carries its answer"
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
    _tell("Ask something. /help lists the commands, Ctrl-D leaves.")
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            if sys.stdin.isatty():
                print()
            return
        except KeyboardInterrupt:
            _tell("\n(Ctrl-D or /quit leaves)")
            continue
        except UnicodeDecodeError as error:
            raise NotUtf8Error("the input is not UTF-8 text", why=str(error)) from error
        word = line.strip()
        if word in ("/quit", "/exit"):
            return
        if word == "/reset":
            transcript = None
            _tell("(a new conversation)")
        elif word == "/help":
            _tell(HELP)
        elif word.startswith("/") and " " not in word:
            _tell(f"there is no command {harmless(word)}; /help lists them")
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
                        _tell("(cut off: no room or no tokens were left)")
                    return event.answer.transcript
                if stop.is_set():
                    break
    except KeyboardInterrupt:
        pass
    except ContextLengthError as error:
        _tell(f"{error.what}\nwhat to do: /reset begins a new conversation")
        return None
    except AylluError as error:
        _tell(str(error))
        return None
    _tell("\n(stopped; this question and its answer are not remembered)")
    return None


def _tell(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
