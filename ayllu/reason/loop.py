"""Think, call, read the result, go on: the one tool-use loop.

Chat, server, RL rollouts and evaluation all come through here. The model samples until `<|end|>` (its
turn is over) or `<|/tool|>` (it has written a call); another's model may write several calls in a turn.
They are run, their results are appended as spans that were not sampled, and the longer conversation goes
back to the engine. Token ids go straight from the engine into spans and are never decoded and encoded
again (the fault behind trl#5224).

What the calls of a turn may use stands in `Rules` (ayllu/tools/session.py); each is recorded, and a turn
can be replayed from its records. `constrain` holds a call to the tools' schemas while it is written, so that
every call is valid; the rest of the text and all log-probabilities stay the model's own.

A `Turn` is one answer in the making. `answer_stream` drives one and yields its text; `answer_batch`
drives many at once: while one waits for its tool, the others keep the engine busy. A server that
steps an engine of its own drives Turns in the same way: submit, read, settle.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

from ayllu.errors import QueueFullError
from ayllu.reason.thinking import left_over, thought_tokens
from ayllu.reason.transcript import Chat, Kind, Transcript
from ayllu.tools.calls import CallForm, call_grammar
from ayllu.tools.session import MAX_CALLS, Record, Rules, Session
from ayllu.tools.tool import Toolbox

if TYPE_CHECKING:
    from ayllu.engine.engine import SamplingParams
    from ayllu.reason.foreign import TemplateChat


class Generating(Protocol):
    """An engine's sequence: a prompt being continued."""

    id: Any
    token_ids: list[int]  # sampled so far, the stop id included
    logprobs: list[float]
    finished: bool
    finish_reason: str | None  # "stop", "length" or "cancelled"


class Generator(Protocol):
    """What the loop needs of an engine (ayllu.engine.Engine has it)."""

    @property
    def context_length(self) -> int: ...
    def submit(self, prompt_ids: list[int], params: SamplingParams) -> Any: ...
    def step(self) -> Sequence[Any]: ...
    def cancel(self, handle: Any) -> None: ...


@dataclass(frozen=True)
class Answer:
    """A finished turn.

    `transcript` is the whole conversation with this turn appended; `finish_reason` is "stop",
    "length" (no room or no tokens left: the turn may end in an open span), "cancelled", or "error" (the
    engine could not go on, as where a grammar became too much).
    `logprobs` has one value for each sampled token of this turn, in order. `calls` counts the calls
    that were judged, `valid_calls` those whose tool exists and whose arguments fit its schema. `told`: what a
    tool that has ended the turn tells the user. `records`: the calls with their results.
    """

    transcript: Transcript
    finish_reason: str
    calls: int = 0
    valid_calls: int = 0
    tokens: int = 0
    thinking_tokens: int = 0
    logprobs: tuple[float, ...] = ()
    told: str = ""
    records: tuple[Record, ...] = ()


@dataclass(frozen=True)
class Event:
    """A piece of a streamed turn: "think", "say", "call" or "result" with text; "done" with the Answer."""

    kind: str
    text: str = ""
    answer: Answer | None = None


class Turn:
    """One answer in the making: submit() -> [engine steps, read()]* -> settle(), again until `answer`."""

    def __init__(
        self,
        engine: Generator,
        chat: Chat | TemplateChat,
        transcript: Transcript,
        toolbox: Toolbox,
        params: SamplingParams,
        *,
        max_calls: int = MAX_CALLS,
        rules: Rules | None = None,
        recorded: Sequence[Record] | None = None,
        constrain: bool = False,
        index: int = 0,
    ) -> None:
        self.engine, self.chat, self.transcript, self.toolbox = engine, chat, transcript, toolbox
        self.params, self.index = params, index
        if constrain:
            self.params = held_to_tools(params, chat, toolbox)
        self.session = Session(toolbox, rules or Rules(max_calls=max_calls), recorded=recorded)
        self.handle: Any = None  # the engine's sequence, or None while one is to be submitted
        self.answer: Answer | None = None
        self.error: Exception | None = None  # why the engine could not go on with it
        self.segment = self.thinking = self.thought = 0
        self.logprobs: list[float] = []
        self.reader = chat.reader(transcript)

    @property
    def waiting(self) -> bool:
        """Whether submit() is what this turn needs next."""
        return self.handle is None and self.answer is None

    def submit(self) -> None:
        """Hand the conversation to the engine. ContextLengthError, QueueFullError as the engine says."""
        params = replace(
            self.params,
            stop_ids=tuple(dict.fromkeys((*self.chat.stop_ids, *self.params.stop_ids))),
            seed=_derived_seed(self.params.seed, self.index, self.segment),
        )
        ids = self.transcript.ids()
        if self.segment and params.max_tokens is not None:
            room = self.engine.context_length - len(ids)
            params = replace(params, max_tokens=min(params.max_tokens - len(self.logprobs), room))
        if self.segment:
            params = left_over(params, self.chat, self.transcript, self.thought)
        if params.enclosed is not None and self.session.over:  # what it may not do any more it doesn't begin
            params = replace(params, enclosed=replace(params.enclosed, grammar=None))
        self.handle = self.engine.submit(ids, params)
        self.reader = self.chat.reader(self.transcript)

    def read(self) -> list[Event]:
        """Text that became whole since the last read."""
        pieces = self.reader.read(self.handle.token_ids, last=self.handle.finished)
        return [Event(kind, text) for kind, text in pieces]

    def settle(self) -> list[Event]:
        """Take over a finished sequence: run its calls and go on waiting, or set `answer`."""
        reason, self.error = self.handle.finish_reason, getattr(self.handle, "error", None)
        self._take_over()
        calls = self.chat.calls(self.transcript) if reason == "stop" else []
        if not calls:
            return self._finish(reason)
        results = [self.session.run(call.name, call.arguments, call.error) for call in calls]
        self.transcript = self.chat.with_results(self.transcript, [result.text for result in results])
        self.segment += 1
        events = [Event("result", result.text) for result in results]
        if told := "\n".join(result.told for result in results if result.told):
            return [*events, Event("say", told), *self._finish("stop", told)]
        spent = self.params.max_tokens is not None and len(self.logprobs) >= self.params.max_tokens
        full = len(self.transcript.ids()) >= self.engine.context_length
        return events + (self._finish("length") if spent or full else [])

    def give_back(self) -> None:
        """Give the engine's place back, whatever was sampled: nobody will read it."""
        if self.handle is not None and not self.handle.finished:
            self.engine.cancel(self.handle)

    def cancel(self) -> None:
        """Give the engine's place back; what was sampled so far becomes the answer."""
        self.give_back()
        if self.handle is not None:
            self._take_over()
        if self.answer is None:
            self._finish("cancelled")

    def _take_over(self) -> None:
        """What the engine sampled becomes the conversation's."""
        self.logprobs += self.handle.logprobs
        self.transcript = self.chat.extend(self.transcript, self.handle.token_ids)
        thoughts = [span.ids for span in self.transcript.latest if span.kind == Kind.THINK]
        self.thinking += sum(map(len, thoughts))
        self.thought += sum(thought_tokens(ids, self.params.thinking) for ids in thoughts)
        self.handle = None

    def _finish(self, reason: str, told: str = "") -> list[Event]:
        self.answer = Answer(
            self.transcript,
            reason,
            self.session.calls,
            self.session.valid_calls,
            tokens=len(self.logprobs),
            thinking_tokens=self.thinking,
            logprobs=tuple(self.logprobs),
            told=told,
            records=tuple(self.session.records),
        )
        return [Event("done", answer=self.answer)]


def held_to_tools(params: SamplingParams, chat: Chat | TemplateChat, toolbox: Toolbox) -> SamplingParams:
    """`params` with which every call that the model opens is one that `toolbox` finds valid; where it has no
    tool, no call is opened.

    The grammar is compiled once for a toolbox and a vocabulary. Nothing changes for a chat format whose calls
    don't stand between two control tokens.
    """
    form = chat.call_form
    return held_to(params, chat, form, call_grammar(toolbox.tools, form)) if form is not None else params


def held_to(
    params: SamplingParams, chat: Chat | TemplateChat, form: CallForm, grammar: str, *, forced: bool = False
) -> SamplingParams:
    """`params` with which every call follows `grammar` ("": there are no calls); `form` is the chat's own.

    `forced`: the answer is one call and nothing else. To the engine it begins with a thought of no length: it
    puts in the token that ends it, which here is the one that opens the call.
    """
    from ayllu.engine.request import Enclosed, Grammar, ThinkingBudget

    opens, closes = chat.tokenizer.control[form.opens], chat.tokenizer.control[form.closes]
    rule = Grammar("lark", grammar) if grammar else None
    params = replace(params, enclosed=Enclosed(opens, closes, rule))
    if rule is None or not forced:
        return params
    begins = ThinkingBudget(closes, opens, maximum=0, opened=True)
    return replace(params, thinking=begins, stop_ids=(*params.stop_ids, closes))


def _derived_seed(seed: int | None, index: int, segment: int) -> int | None:
    """A seed of its own for each answer of a batch and each stretch between calls.

    One seed for all would give a group of rollouts from one prompt the same text.
    """
    if seed is None:
        return None
    digest = hashlib.blake2b(f"{seed}/{index}/{segment}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # 63 bits: fits a signed 64-bit integer


def answer_stream(
    engine: Generator,
    chat: Chat | TemplateChat,
    transcript: Transcript,
    toolbox: Toolbox,
    params: SamplingParams,
    *,
    max_calls: int = MAX_CALLS,
    rules: Rules | None = None,
    recorded: Sequence[Record] | None = None,
    constrain: bool = False,
) -> Iterator[Event]:
    """One answer as it is made: text events, then one "done" event with the Answer.

    `transcript` ends with the model's turn to speak. `params.max_tokens` bounds the sampled tokens of
    the whole turn, results not counted. `rules` stand for `max_calls` and more; `recorded` results are given
    instead of running tools. Closing the iterator early cancels the sequence. Raises ContextLengthError and
    QueueFullError before the first event, RequestError when other calls come than the recorded ones.
    """
    turn = Turn(
        engine,
        chat,
        transcript,
        toolbox,
        params,
        max_calls=max_calls,
        rules=rules,
        recorded=recorded,
        constrain=constrain,
    )
    try:
        while turn.answer is None:
            if turn.waiting:
                turn.submit()
            engine.step()
            yield from turn.read()
            if turn.handle.finished:
                events = turn.settle()
                if turn.error is not None:
                    raise turn.error
                yield from events
    finally:
        turn.cancel()


def answer_batch(
    engine: Generator,
    chat: Chat,
    transcripts: Sequence[Transcript],
    toolbox: Toolbox | Sequence[Toolbox],
    params: SamplingParams | Sequence[SamplingParams],
    *,
    max_calls: int = MAX_CALLS,
    rules: Rules | None = None,
    constrain: bool = False,
    on_answer: Callable[[int, Answer], None] | None = None,
) -> list[Answer]:
    """Answers to all transcripts, in their order; `on_answer(index, answer)` as each one is done.

    `toolbox` and `params` are one for all or one each. With one seed for all, each answer derives its
    own from it and its index, so that the result doesn't depend on who shares the batch.
    Raises ContextLengthError when a prompt doesn't fit.
    """
    toolboxes = [toolbox] * len(transcripts) if isinstance(toolbox, Toolbox) else list(toolbox)
    every = list(params) if isinstance(params, Sequence) else [params] * len(transcripts)
    turns = [
        Turn(
            engine,
            chat,
            transcript,
            box,
            each,
            max_calls=max_calls,
            rules=rules,
            constrain=constrain,
            index=index,
        )
        for index, (transcript, box, each) in enumerate(zip(transcripts, toolboxes, every, strict=True))
    ]
    waiting, running = deque(turns), dict[Any, Turn]()
    try:
        while waiting or running:
            full = _submit_waiting(waiting, running)
            stepped = engine.step()
            if full and not running and not stepped:
                raise full  # others fill the queue and nothing moves
            for sequence in stepped:
                if not sequence.finished or sequence.id not in running:
                    continue
                turn = running.pop(sequence.id)
                turn.settle()
                if turn.answer is None:
                    waiting.appendleft(turn)  # its prefix is still warm
                elif on_answer is not None:
                    on_answer(turn.index, turn.answer)
    finally:
        for turn in running.values():
            turn.cancel()
    return [turn.answer for turn in turns if turn.answer is not None]


def _submit_waiting(waiting: deque[Turn], running: dict[Any, Turn]) -> QueueFullError | None:
    """Submit until nobody waits or the engine's queue is full (then its error is returned)."""
    while waiting:
        try:
            waiting[0].submit()
        except QueueFullError as error:
            return error
        turn = waiting.popleft()
        running[turn.handle.id] = turn
    return None
