"""One answer being written: a Turn of the tool-use loop, its stop strings, its counts.

`advance` is called after each step of the engine and gives what became new as Parts, at the end an
Ending. A call is run here when it is one of the server's own tools; calls to the caller's tools end the
answer, and the caller sends the results in its next request.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from ayllu.errors import ContextLengthError
from ayllu.reason.formats.form import no_constant
from ayllu.reason.loop import MAX_CALLS, Event, Turn
from ayllu.reason.transcript import Heard
from ayllu.serve.stops import StopStrings
from ayllu.serve.tally import Tally, TokenLogprob
from ayllu.tools.tool import Call, Result, Toolbox


class CallersTools(Toolbox):
    """Tools that the caller runs. A call that can't be passed on is answered with an error at once.

    `most`: so many calls of one turn are passed on.
    """

    def __init__(self, names: Sequence[str], *, most: int = MAX_CALLS) -> None:
        super().__init__()
        self.offered, self.most = tuple(names), most

    def run(self, name: str, arguments: str, *, seconds: float | None = None) -> Result:
        """What the model reads after a call that `passes_on` refuses."""
        if name not in self.offered:
            return Result(
                False, f"error: there is no tool {name[:40]}; tools: {', '.join(self.offered)}", valid=False
            )
        return Result(False, "error: the arguments are not valid JSON", valid=False)

    def passed_on(self, calls: Sequence[Heard]) -> list[Call]:
        """The calls that the caller gets: to tools of theirs, with arguments that are a JSON object."""
        return [Call(call.name, call.arguments) for call in calls if self._sound(call)][: self.most]

    def _sound(self, call: Heard) -> bool:
        try:
            arguments = json.loads(call.arguments, parse_constant=no_constant)
            return not call.error and call.name in self.offered and isinstance(arguments, dict)
        except (ValueError, RecursionError):
            return False


@dataclass(frozen=True)
class Part:
    """New text of one kind: "think", "say"; or "call" (then `call` is whole), for the caller to run.

    `number` counts the calls of one answer from 0.
    """

    kind: str
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    call: Call | None = None
    number: int = 0


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
    completion: int = 0  # tokens sampled so far
    _seen: int = 0
    _said: int = 0

    def submit(self) -> None:
        """Give the conversation to the engine (again, after a call was run)."""
        self.turn.submit()
        self._seen = self._said = 0

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
        self.completion += count - self._seen
        self._seen = count
        events = self.turn.read()
        said = self.turn.reader.said
        for place in said[self._said :]:
            self.tally.push(handle.token_ids[place], handle.logprobs[place])
        self._said = len(said)
        news = self._texts(events)
        if self.stops.hit:
            self.turn.cancel()
            return [*news, *self._end("stop")]
        return [*news, *self._settle()] if finished else news

    @property
    def failed(self) -> bool:
        """Whether the engine has given this answer up."""
        handle = self.turn.handle
        return handle is not None and handle.finished and handle.finish_reason == "error"

    def cancel(self) -> None:
        """Nobody wants the rest: free the engine's place."""
        self.ended = True
        self.turn.give_back()

    def _texts(self, events: Sequence[Event]) -> list[Part | Ending]:
        news: list[Part | Ending] = []
        for event in events:
            if event.kind == "think":
                news.append(Part("think", event.text))
            elif event.kind == "say" and (text := self.stops.push(event.text)):
                news.append(Part("say", text, tuple(self.tally.shown(text))))
        return news

    def _settle(self) -> list[Part | Ending]:
        turn, toolbox = self.turn, self.turn.toolbox
        chat, handle = turn.chat, turn.handle
        stopped = handle.finish_reason == "stop"
        calls = chat.calls(chat.extend(turn.transcript, handle.token_ids)) if stopped else []
        if isinstance(toolbox, CallersTools) and (passed := toolbox.passed_on(calls)):
            turn.cancel()
            parts = [Part("call", call=call, number=number) for number, call in enumerate(passed)]
            return [*self._flush(), *parts, *self._end("tool_calls")]
        events = turn.settle()
        if turn.error is not None:
            raise turn.error
        results = [event.text for event in events if event.kind == "result"]
        self.ran += [Ran(Call(c.name, c.arguments), text) for c, text in zip(calls, results, strict=True)]
        if turn.answer is None:
            return []
        told = self._texts(events)  # what a tool that has ended the turn tells the user
        reason = "stop" if turn.answer.finish_reason == "stop" else "length"
        return [*told, *self._flush(), *self._end(reason)]

    def _flush(self) -> list[Part | Ending]:
        text = self.stops.flush()
        logprobs = (*self.tally.shown(text), *self.tally.rest())
        return [Part("say", text, logprobs)] if text or logprobs else []

    def _end(self, reason: str) -> list[Part | Ending]:
        self.ended = True
        return [Ending(reason, self.completion, self.turn.thinking, tuple(self.ran))]
