"""A conversation as typed spans of token ids: the one form for training, rollouts, chat and HTTP.

Each span carries its own control tokens and a bit that says whether the model sampled it. The SFT
loss mask, the RL mask, the trace and the HTTP answer are read off the same spans, and sampled ids
are never decoded and encoded again (byte-pair encoding is not an identity under that).

The form, with ids written as names:

    <|bos|> <|system|> tools: calculator <|end|>
    <|user|> What is 17 + 5? <|end|> <|assistant|>
    <|think|> 7+5=12 ... <|/think|>
    <|tool|> calculator {"expression":"17+5"} <|/tool|>  <|result|> 22 <|/result|>
    <|answer|> 22 <|end|>
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from ayllu.reason.messages import in_order
from ayllu.text.tokenizer import StreamDecoder, Tokenizer
from ayllu.tools.calls import OURS, CallForm
from ayllu.tools.tool import Tool


class Kind(StrEnum):
    """What a span is."""

    SYSTEM = "system"
    USER = "user"
    THINK = "think"
    SAY = "say"
    CALL = "call"
    RESULT = "result"


_OPEN = {
    Kind.SYSTEM: "<|system|>",
    Kind.USER: "<|user|>",
    Kind.THINK: "<|think|>",
    Kind.SAY: "<|answer|>",
    Kind.CALL: "<|tool|>",
    Kind.RESULT: "<|result|>",
}
# The user's span hands the turn over, so that what follows is the model's to write.
_CLOSE = {
    Kind.SYSTEM: ("<|end|>",),
    Kind.USER: ("<|end|>", "<|assistant|>"),
    Kind.THINK: ("<|/think|>",),
    Kind.SAY: ("<|end|>",),
    Kind.CALL: ("<|/tool|>",),
    Kind.RESULT: ("<|/result|>",),
}
_MODEL_KINDS = (Kind.THINK, Kind.CALL, Kind.SAY)


@dataclass(frozen=True)
class Span:
    """A typed piece: `ids` include its control tokens; `sampled` says that the model wrote it."""

    kind: Kind
    ids: tuple[int, ...]
    sampled: bool = False


@dataclass(frozen=True)
class Heard:
    """A call that a model wrote: name, JSON text of the arguments, the id that it gave, if any.

    `error` says what is wrong with a call that can't be read; the name may be empty then. `texts`: arguments
    that came as bare texts, before they were taken for JSON.
    """

    name: str
    arguments: str
    id: str = ""
    error: str = ""
    texts: tuple[tuple[str, str], ...] = ()

    @property
    def text(self) -> str:
        """`name {"arguments":"as JSON"}`."""
        return f"{self.name} {self.arguments}".strip()


# What may be called: a tool, OpenAI's description of one, or only its name.
Offer = str | Tool | dict[str, Any]


@dataclass(frozen=True)
class Transcript:
    """Spans in order. Immutable: every change gives a new one."""

    spans: tuple[Span, ...] = ()

    def ids(self) -> list[int]:
        """All token ids."""
        return [i for span in self.spans for i in span.ids]

    def sampled(self) -> list[bool]:
        """For each id, whether the model sampled it (the loss mask of SFT and RL)."""
        return [span.sampled for span in self.spans for _ in span.ids]

    def plus(self, *spans: Span) -> Transcript:
        """With `spans` appended."""
        return replace(self, spans=self.spans + spans)

    @property
    def latest(self) -> tuple[Span, ...]:
        """The spans that the model sampled last, since somebody else spoke."""
        first = len(self.spans)
        while first and self.spans[first - 1].sampled:
            first -= 1
        return self.spans[first:]


class Chat:
    """Builds and reads transcripts with one tokenizer."""

    call_form: CallForm = OURS  # of calls that may come, and of one that has to
    forced_form: CallForm = OURS

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        control = tokenizer.control
        self.bos, self.end, self.call_end = control["<|bos|>"], control["<|end|>"], control["<|/tool|>"]
        self._open = {kind: control[name] for kind, name in _OPEN.items()}
        self._close = {kind: tuple(control[name] for name in names) for kind, names in _CLOSE.items()}
        self._control_ids = frozenset(control.values())
        self._kind_of_open = {self._open[kind]: kind for kind in _MODEL_KINDS}
        self.stop_ids = (self.end, self.call_end)
        self.thought = (self._open[Kind.THINK], self._close[Kind.THINK][0])

    def thinks(self, transcript: Transcript) -> bool:
        """Whether the conversation ends in an open thought: never in this form."""
        return False

    def span(self, kind: Kind, text: str, *, sampled: bool = False, first: bool = False) -> Span:
        """One span of `text`; `first` puts <|bos|> in front."""
        head = (self.bos, self._open[kind]) if first else (self._open[kind],)
        return Span(kind, (*head, *self.tokenizer.encode(text), *self._close[kind]), sampled)

    def start(self, user: str, *, system: str = "", tools: Sequence[Offer] = ()) -> Transcript:
        """A conversation's first turn. This form names the tools only."""
        transcript = Transcript()
        text = system_text(system, [offered_name(tool) for tool in tools])
        if text:
            transcript = self.add(transcript, Kind.SYSTEM, text)
        return self.add(transcript, Kind.USER, user)

    def add(self, transcript: Transcript, kind: Kind, text: str, *, sampled: bool = False) -> Transcript:
        """With one more span of text."""
        return transcript.plus(self.span(kind, text, sampled=sampled, first=not transcript.spans))

    def extend(self, transcript: Transcript, ids: Sequence[int]) -> Transcript:
        """With sampled ids, cut into spans at the control tokens (a state machine, no regex).

        Every opening token begins a span. Ids outside any span, and spans left open, are kept as they
        are (the former as SAY spans), so that `ids()` is always exactly what the model saw.
        """
        spans: list[Span] = []
        kind, begun = Kind.SAY, 0
        for position, token in enumerate(ids):
            if token in self._kind_of_open:
                if position > begun:
                    spans.append(Span(kind, tuple(ids[begun:position]), True))
                kind, begun = self._kind_of_open[token], position
            if token == self._close[kind][-1]:
                spans.append(Span(kind, tuple(ids[begun : position + 1]), True))
                kind, begun = Kind.SAY, position + 1
        if begun < len(ids):
            spans.append(Span(kind, tuple(ids[begun:]), True))
        return transcript.plus(*spans)

    def text(self, span: Span) -> str:
        """A span's text without its control tokens."""
        return self.tokenizer.decode(span.ids)

    def is_closed(self, span: Span) -> bool:
        """Whether the span is whole: its own opening and closing tokens and only text between them."""
        ids = span.ids[1:] if span.ids[:1] == (self.bos,) else span.ids
        close = self._close[span.kind]
        inside = ids[1 : -len(close)]
        return (
            len(ids) > len(close)
            and ids[0] == self._open[span.kind]
            and ids[-len(close) :] == close
            and self._control_ids.isdisjoint(inside)
        )

    def reader(self, transcript: Transcript) -> Reader:
        """What reads the model's next turn while it comes."""
        return Reader(self)

    def calls(self, transcript: Transcript) -> list[Heard]:
        """The calls at the end that wait for a result: one here, or none."""
        last = transcript.spans[-1] if transcript.spans else None
        if last is None or not last.sampled or last.ids[-1:] != (self.call_end,):
            return []
        if last.kind != Kind.CALL or not self.is_closed(last):
            return [Heard("", "", error="not a call")]
        name, arguments = split_call(self.text(last).strip())
        return [Heard(name, arguments.strip())]

    def with_results(self, transcript: Transcript, results: Sequence[str]) -> Transcript:
        """With the results of `calls`, in their order."""
        for text in results:
            transcript = self.add(transcript, Kind.RESULT, text)
        return transcript

    def answer(self, transcript: Transcript) -> str | None:
        """What the user was told after the last user turn or result, or None where its end is missing: all of
        it, as `to_message` has it, so that a second answer can't hide a first one from whoever judges."""
        said = [span for span in self._turn(transcript) if span.kind == Kind.SAY]
        return "".join(map(self.text, said)) if said and self.is_closed(said[-1]) else None

    @staticmethod
    def _turn(transcript: Transcript) -> tuple[Span, ...]:
        """The spans since the last user turn or result."""
        others = [i for i, span in enumerate(transcript.spans) if span.kind in (Kind.USER, Kind.RESULT)]
        return transcript.spans[others[-1] + 1 if others else 0 :]

    # ---- OpenAI's JSON, both ways
    def from_messages(
        self,
        messages: Iterable[dict[str, Any]],
        *,
        tools: Sequence[Offer] = (),
        options: dict[str, Any] | None = None,
    ) -> Transcript:
        """A transcript from chat-completion messages, ready for the model's next turn.

        Roles: system/developer (first only), user, assistant (content, reasoning_content,
        tool_calls), tool. Of calls made at once each has its own result behind it, as ids say.
        `options` are for templates; this form has none. Raises RequestError for an order that the form
        can't express.
        """
        system, rest = in_order(list(messages))
        transcript = Transcript()
        if text := system_text(system, [offered_name(tool) for tool in tools]):
            transcript = self.add(transcript, Kind.SYSTEM, text)
        for message in rest:
            for kind, text in _message_spans(message):
                transcript = self.add(transcript, kind, text)
        return transcript

    def to_message(self, transcript: Transcript, *, call_ids: str = "call") -> dict[str, Any]:
        """The assistant's last turn as an OpenAI message (content, reasoning_content, tool_calls)."""
        texts: dict[Kind, list[str]] = {kind: [] for kind in Kind}
        for span in self._turn(transcript):
            texts[span.kind].append(self.text(span))
        calls = [Heard(*split_call(text), f"{call_ids}_{n}") for n, text in enumerate(texts[Kind.CALL])]
        return assistant_message("".join(texts[Kind.SAY]), texts[Kind.THINK], calls)


_KINDS = {
    "<|think|>": "think",
    "<|/think|>": "say",
    "<|tool|>": "call",
    "<|/tool|>": "say",
    "<|answer|>": "say",
    "<|end|>": "say",
}


class Reader:
    """Sampled ids in, text by kind out, as whole characters; what stands outside any span is an answer.

    `said` are the places of the tokens whose text is part of an answer, `thinking` counts those of thoughts.
    """

    def __init__(self, chat: Chat) -> None:
        control = chat.tokenizer.control
        self.kinds = {control[name]: kind for name, kind in _KINDS.items()}
        self.closers = (control["<|/think|>"], control["<|/tool|>"], control["<|end|>"])
        self.control = frozenset(control.values())
        self.decoder = StreamDecoder(chat.tokenizer)
        self.kind, self.at = "say", 0
        self.said: list[int] = []
        self.thinking = 0

    def read(self, ids: Sequence[int], *, last: bool) -> list[tuple[str, str]]:
        """(kind, text) of the ids not seen before, neighbours of one kind joined; `last` flushes."""
        pieces: list[tuple[str, str]] = []
        for place in range(self.at, len(ids)):
            token = ids[place]
            if token in self.kinds:
                pieces.append((self.kind, self.decoder.flush()))
                closes_thought = self.kind == "think" and token in self.closers
                self.kind = self.kinds[token]
                self.thinking += closes_thought or self.kind == "think"
                continue
            pieces.append((self.kind, self.decoder.push(token)))
            self.thinking += self.kind == "think"
            if self.kind == "say" and token not in self.control:
                self.said.append(place)
        self.at = len(ids)
        if last:
            pieces.append((self.kind, self.decoder.flush()))
        joined: list[tuple[str, str]] = []
        for kind, text in pieces:
            if text and joined and joined[-1][0] == kind:
                joined[-1] = (kind, joined[-1][1] + text)
            elif text:
                joined.append((kind, text))
        return joined


def offered_name(offer: Offer) -> str:
    """The name of a tool on offer."""
    if isinstance(offer, str):
        return offer
    return offer.name if isinstance(offer, Tool) else str(offer["function"]["name"])


def system_text(system: str, tools: Sequence[str]) -> str:
    """The system span: the tools on offer on the first line, then the caller's own words."""
    lines = [f"tools: {', '.join(tools)}"] if tools else []
    return "\n".join(lines + ([system] if system else []))


def assistant_message(said: str, thoughts: Sequence[str], calls: Sequence[Heard]) -> dict[str, Any]:
    """A turn as an OpenAI message; each call with the id that it is to have."""
    message: dict[str, Any] = {"role": "assistant", "content": said or (None if calls else "")}
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    if calls:
        message["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
            for c in calls
        ]
    return message


def call_text(name: str, arguments: dict[str, Any]) -> str:
    """`name {"compact":"json"}`."""
    return f"{name} {json.dumps(arguments, separators=(',', ':'), ensure_ascii=False)}"


def split_call(text: str) -> tuple[str, str]:
    """A call's text into its name and its arguments (JSON text, unparsed)."""
    name, _, arguments = text.partition(" ")
    return name, arguments


def _message_spans(message: dict[str, Any]) -> list[tuple[Kind, str]]:
    role, content = message["role"], message.get("content") or ""
    if role == "user":
        return [(Kind.USER, content)]
    if role == "tool":
        return [(Kind.RESULT, content)]
    spans, calls = [], message.get("tool_calls") or ()
    thought = message.get("reasoning_content") or message.get("reasoning") or ""
    if calls and content:  # an answer ends the turn: what was said before a call has no place but a thought's
        thought, content = "\n".join(text for text in (thought, content) if text), ""
    if thought:
        spans.append((Kind.THINK, thought))
    for call in calls:
        function = call["function"]
        spans.append((Kind.CALL, f"{function['name']} {function['arguments']}"))
    if content:
        spans.append((Kind.SAY, content))
    return spans
