"""One answer being written: a Turn of the tool-use loop, its stop strings, its counts.

`advance` is called after each step of the engine and gives what became new as Parts, at the end an
Ending. A call is run here when it is one of the server's own tools; a call to one of the caller's
tools ends the answer, and the caller sends the result in its next request.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from ayllu.errors import ContextLengthError
from ayllu.reason.loop import Event, Turn
from ayllu.reason.transcript import Kind, Transcript
from ayllu.serve.stops import StopStrings
from ayllu.serve.tally import Tally, TokenLogprob
from ayllu.tools.tool import Call, Result, Toolbox


class CallersTools(Toolbox):
    """Tools that the caller runs. A call that can't be passed on is answered with an error at once."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.offered = tuple(names)

    def run(self, name: str, arguments: str) -> Result:
        """What the model reads after a call that `passes_on` refuses."""
        if name not in self.offered:
            return Result(
                False, f"error: there is no tool {name[:40]}; tools: {', '.join(self.offered)}", valid=False
            )
        return Result(False, "error: the arguments are not valid JSON", valid=False)

    def passes_on(self, call: Call) -> bool:
        """Whether the caller gets this call: a tool of theirs, arguments that are a JSON object."""
        try:
            return call.name in self.offered and isinstance(json.loads(call.arguments), dict)
        except (ValueError, RecursionError):
            return False


@dataclass(frozen=True)
class Part:
    """New text of one kind: "think", "say"; or "call" (then `call` is whole), for the caller to run."""

    kind: str
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    call: Call | None = None


@dataclass(frozen=True)
class Ran:
    """A call that was run (or refused) here."""

    call: Call
    result: str


@dataclass(frozen=True)
class Ending:
    """The answer is complete. `finish_reason` is OpenAI's: "stop", "length" or "tool_calls"."""

    finish_reason: str
    completion_tokens: int
    reasoning_tokens: int
    ran: tuple[Ran, ...]


@dataclass(eq=False)
class Writing:
    """One answer in the making; driven by the engine thread only."""

    turn: Turn
    stops: StopStrings
    tally: Tally
    ended: bool = False
    ran: list[Ran] = field(default_factory=list)
    _seen: int = 0

    def submit(self) -> None:
        """Give the conversation to the engine (again, after a call was run)."""
        self.turn.submit()
        self._seen = 0

    def submit_or_end(self) -> list[Part | Ending]:
        """`submit`; a conversation that its own results made too long ends with "length"."""
        try:
            self.submit()
        except ContextLengthError:
            if not self.turn.segment:
                raise
            return [*self._flush(), *self._end("length")]
        return []

    def advance(self) -> list[Part | Ending]:
        """What the engine's last step added."""
        handle = self.turn.handle
        finished, count = handle.finished, len(handle.token_ids)
        for at in range(self._seen, count):
            self.tally.push(handle.token_ids[at], handle.logprobs[at])
        self._seen = count
        news = self._texts(self.turn.read())
        if self.stops.hit:
            self.turn.cancel()
            return [*news, *self._end("stop")]
        return [*news, *self._settle()] if finished else news

    def cancel(self) -> None:
        """Nobody wants the rest: free the engine's place."""
        self.ended = True
        self.turn.cancel()

    def _texts(self, events: Sequence[Event]) -> list[Part | Ending]:
        news: list[Part | Ending] = []
        for event in events:
            if event.kind == "think":
                news.append(Part("think", event.text))
            elif event.kind == "say" and (text := self.stops.push(event.text)):
                news.append(Part("say", text, tuple(self.tally.shown(text))))
        return news

    def _settle(self) -> list[Part | Ending]:
        call, toolbox = self._call(), self.turn.toolbox
        if isinstance(toolbox, CallersTools) and toolbox.passes_on(call):
            self.turn.cancel()
            return [*self._flush(), Part("call", call=call), *self._end("tool_calls")]
        self.ran += [Ran(call, event.text) for event in self.turn.settle() if event.kind == "result"]
        if self.turn.answer is None:
            return []
        reason = "stop" if self.turn.answer.finish_reason == "stop" else "length"
        return [*self._flush(), *self._end(reason)]

    def _call(self) -> Call:
        """The call at the end of what was sampled; a nameless one where there is none."""
        chat = self.turn.chat
        spans = chat.extend(Transcript(), self.turn.handle.token_ids).spans
        whole = bool(spans) and spans[-1].kind == Kind.CALL and chat.is_closed(spans[-1])
        return Call.parse(chat.text(spans[-1])) if whole else Call("", "")

    def _flush(self) -> list[Part | Ending]:
        text = self.stops.flush()
        logprobs = (*self.tally.shown(text), *self.tally.rest())
        return [Part("say", text, logprobs)] if text or logprobs else []

    def _end(self, reason: str) -> list[Part | Ending]:
        self.ended = True
        return [Ending(reason, self.tally.completion, self.tally.reasoning, tuple(self.ran))]
