"""A conversation with another's model: its chat template writes the turns, its format's marks read them.

`TemplateChat` has the methods of `transcript.Chat`. What the model sampled stays what it was: a further
turn appends only what the template writes after the answer. Some templates rewrite what was said before
(they leave thoughts out of the history, for one); then the conversation is rendered anew from its
messages, and nothing in it counts as sampled any more. `habits` says what a template does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ayllu.errors import RequestError
from ayllu.reason.formats import PLAIN
from ayllu.reason.formats.form import Does
from ayllu.reason.formats.habits import Habits, habits_of
from ayllu.reason.formats.history import History, as_declared, as_history, described, schema
from ayllu.reason.formats.reading import Machine, Piece
from ayllu.reason.formats.spans import ReadSpan, TurnReader, read_rendering, spans_of
from ayllu.reason.messages import one_at_a_time
from ayllu.reason.template import ChatTemplate, Rendered, Run, load_template
from ayllu.reason.transcript import Chat, Heard, Kind, Offer, Span, Transcript, assistant_message
from ayllu.text.tokenizer import StreamDecoder, Tokenizer
from ayllu.tools.calls import CallForm


@dataclass(frozen=True)
class Conversation(Transcript):
    """A transcript that knows the messages from which it was rendered, and how.

    `written` is the text of the last rendering, `runs` counts its runs; `thinks`: it ends in a thought
    that the template has opened for the model.
    """

    messages: tuple[dict[str, Any], ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    written: str = ""
    runs: int = 0
    thinks: bool = False


class TemplateChat:
    """Chat for a model with a template of its own."""

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate, *, for_tools: ChatTemplate | None = None
    ) -> None:
        self.tokenizer, self.template, self.form = tokenizer, template, template.form
        self.for_tools = for_tools  # some models have a template of its own for conversations with tools
        control = tokenizer.control
        self._names = {number: name for name, number in control.items() if name in self.form.marks}
        ends = [control[name] for name in self.form.names(Does.END) if name in control]
        self.stop_ids = tuple(dict.fromkeys((*tokenizer.eos, *ends)))
        self._ends = frozenset(self.stop_ids)

    @cached_property
    def habits(self) -> Habits:
        """What the template does with calls and with thoughts, tried out."""
        return habits_of(self.template, self._pieces)

    @cached_property
    def thought(self) -> tuple[int, int] | None:
        """The control tokens that open and close a thought; None where the format has none."""
        numbers = {name: number for number, name in self._names.items()}
        marks = [(mark, numbers[name]) for name, mark in self.form.marks.items() if name in numbers]
        ids = [
            [number for mark, number in marks if mark.kind == Kind.THINK and mark.does == does]
            for does in (Does.OPEN, Does.CLOSE)
        ]
        return (ids[0][0], ids[1][0]) if all(ids) else None

    def thinks(self, transcript: Transcript) -> bool:
        """Whether the template has opened a thought for the model."""
        return isinstance(transcript, Conversation) and transcript.thinks

    @cached_property
    def forced_form(self) -> CallForm | None:
        """How a call is written that has to come, where a model can be held to it: the marks have to be
        control tokens, and the template has to write JSON in one piece (Qwen 3 Coder, Mistral 11 don't)."""
        form, source = self.form.writes, (self.for_tools or self.template).source
        held = form is not None and {form.opens, form.closes} <= self.tokenizer.control.keys()
        return form if held and "<function=" not in source and "[ARGS]" not in source else None

    @cached_property
    def call_form(self) -> CallForm | None:
        """How calls are written that may come, where a model can be held to it."""
        form = self.forced_form
        return None if form is None or form.ends_turn else form

    @cached_property
    def _habits_for_tools(self) -> Habits:
        return habits_of(self.for_tools, self._pieces) if self.for_tools else self.habits

    def _for(self, tools: Sequence[Any]) -> tuple[ChatTemplate, Habits]:
        """The template for a conversation with these tools, and its habits."""
        if tools and self.for_tools:
            return self.for_tools, self._habits_for_tools
        return self.template, self.habits

    # ---- turns
    def start(self, user: str, *, system: str = "", tools: Sequence[Offer] = ()) -> Transcript:
        """A conversation's first turn. RequestError for tools that the template has no place for."""
        head = [{"role": "system", "content": system}] if system else []
        return self.from_messages([*head, {"role": "user", "content": user}], tools=tools)

    def add(self, transcript: Transcript, kind: Kind, text: str, *, sampled: bool = False) -> Transcript:
        """With the user's next turn."""
        assert kind == Kind.USER and not sampled
        return self._grown(transcript, [{"role": "user", "content": text}])

    def with_results(self, transcript: Transcript, results: Sequence[str]) -> Transcript:
        """With the results of `calls`, in their order."""
        assert isinstance(transcript, Conversation)
        made = self.to_message(transcript).get("tool_calls", [])
        new = [
            {"role": "tool", "content": text, "tool_call_id": call["id"], "name": call["function"]["name"]}
            for call, text in zip(made, results, strict=True)
        ]
        return self._grown(transcript, new)

    def extend(self, transcript: Transcript, ids: Sequence[int]) -> Transcript:
        """With sampled ids, cut into spans at the format's marks."""
        if not ids:
            return transcript
        every = [i for span in transcript.latest for i in span.ids] + list(ids)
        before = transcript.spans[: len(transcript.spans) - len(transcript.latest)]
        base = replace(transcript, spans=before)
        reader = self.reader(base)
        reader.read(every, last=True)
        return base.plus(*spans_of(reader.pieces, every, Kind.SAY, sampled=True))

    def reader(self, transcript: Transcript) -> TurnReader:
        """What reads the model's next turn while it comes."""
        machine = Machine(
            self.form,
            frozenset(self._names.values()),
            kind=Kind.THINK if self.thinks(transcript) else Kind.SAY,
            sampled=True,
            offered=frozenset(tool["function"]["name"] for tool in transcript.tools)
            if isinstance(transcript, Conversation)
            else frozenset(),
        )
        decoder = StreamDecoder(self.tokenizer, continues=self.continues(transcript))
        return TurnReader(machine, decoder, self._names, self._ends)

    # ---- what was said
    def text(self, span: Span) -> str:
        """A span's text without its marks."""
        if isinstance(span, ReadSpan):
            return span.text
        return self.tokenizer.decode([i for i in span.ids if i not in self._ends])

    def is_closed(self, span: Span) -> bool:
        """Whether the span's end was read."""
        return span.whole if isinstance(span, ReadSpan) else bool(self._ends & set(span.ids[-1:]))

    def calls(self, transcript: Transcript) -> list[Heard]:
        """The calls of the model's last turn."""
        tools = transcript.tools if isinstance(transcript, Conversation) else ()
        spans = [span for span in transcript.latest if isinstance(span, ReadSpan)]
        return [as_declared(call, tools) for span in spans for call in span.calls]

    def answer(self, transcript: Transcript) -> str | None:
        """What the model said after the last user turn, or None."""
        said = [self.text(span) for span in transcript.latest if span.kind == Kind.SAY]
        return "".join(said) if said else None

    def continues(self, transcript: Transcript) -> bool:
        """Whether what the model says goes on in the middle of a text."""
        return False

    # ---- OpenAI's JSON, both ways
    def from_messages(
        self,
        messages: Iterable[dict[str, Any]],
        *,
        tools: Sequence[Offer] = (),
        options: dict[str, Any] | None = None,
    ) -> Transcript:
        """A transcript from chat-completion messages, ready for the model's next turn.

        RequestError for what the template can't express.
        """
        given = as_history(messages, self.form)
        if not given or given[-1]["role"] not in ("user", "tool"):
            raise RequestError("the last message must be the user's or a tool's result")
        if tools and not self._for(tools)[1].calls:
            raise RequestError(
                "this model's chat format has no tools",
                why="its chat template has no place for them, or writes calls that are not read here",
                fix="send messages without tools",
            )
        offers = tuple(map(schema, tools))
        return self._conversation(given, offers, options or {})

    def to_message(self, transcript: Transcript, *, call_ids: str = "call") -> dict[str, Any]:
        """The assistant's last turn as an OpenAI message (content, reasoning_content, tool_calls)."""
        thoughts = [self.text(span) for span in transcript.latest if span.kind == Kind.THINK]
        before = len(transcript.messages) if isinstance(transcript, Conversation) else 0
        heard = self.calls(transcript)
        usual = [self.form.call_id(f"{call_ids}_{before}_{number}") for number in range(len(heard))]
        ids = [
            self.form.call_id(call.id) if call.id else made for call, made in zip(heard, usual, strict=True)
        ]
        if len(set(ids)) < len(ids):  # a model may give the same id twice
            ids = usual
        calls = [Heard(c.name or "unknown", c.arguments, i) for c, i in zip(heard, ids, strict=True)]
        return assistant_message(self.answer(transcript) or "", thoughts, calls)

    # ---- rendering
    def _grown(self, transcript: Transcript, new: list[dict[str, Any]]) -> Conversation:
        """The conversation with what the model said and the new messages."""
        assert isinstance(transcript, Conversation)
        said = self.to_message(transcript) if transcript.latest else None
        messages = as_history([*transcript.messages, *([said] if said else []), *new], self.form)
        rendered, given = self._render(messages, transcript.tools, transcript.options)
        apart = given is not messages  # then calls made at once stand in the rendering one after another
        at = self._end_of_answer(transcript, said, rendered) if said and not apart else None
        if at is None:
            return self._conversation(given, transcript.tools, transcript.options, rendered)
        ended = transcript.latest[-1].ids[-1:] and transcript.latest[-1].ids[-1] in self._ends
        runs = rendered.runs[at + bool(ended) :]
        pieces, thinks = self._pieces(runs, first=False)
        ids = [i for run in runs for i in run.ids]
        spans = (*transcript.spans, *spans_of(pieces, ids, Kind.USER, sampled=False))
        return replace(
            transcript,
            spans=spans,
            messages=tuple(given),
            written=rendered.text,
            runs=len(rendered.runs),
            thinks=thinks,
        )

    def _end_of_answer(self, before: Conversation, said: dict[str, Any], rendered: Rendered) -> int | None:
        """The run with which the answer ends in a rendering; None when the template has rewritten it."""
        if not rendered.text.startswith(before.written):
            return None
        start = max(before.runs - 1, 0)
        runs = rendered.runs
        at = next((i for i in range(start, len(runs)) if self._ends & set(runs[i].ids[:1])), None)
        if at is None or not runs[at].name:
            return None
        shown = "".join(run.text for run in runs[start:at])
        wanted = [said.get("reasoning_content", ""), said["content"] or ""]
        wanted += [call["function"]["name"] for call in said.get("tool_calls", [])]
        return at if all(text.strip() in shown for text in wanted) else None

    def _render(
        self, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]], options: dict[str, Any]
    ) -> tuple[Rendered, Sequence[dict[str, Any]]]:
        """The template's text. Where it takes one call at a time, several are given one after another."""
        template = self.for_tools if tools and self.for_tools else self.template
        calls = any(m.get("tool_calls") for m in messages)
        habits = self._for(tools)[1] if tools or calls else None
        in_place = bool(tools) and habits is not None and not habits.tools
        history, offers = History(habits), None if in_place else list(tools) or None
        apart = one_at_a_time(messages)
        for given in (messages, apart):
            told = described(given, tools) if in_place else given
            try:
                made = template.render(history.messages(told), tools=offers, options=options or None)
                return made, given
            except RequestError:
                if given is apart or apart == messages:
                    raise
        raise AssertionError("one of the two returns or raises")

    def _conversation(
        self,
        messages: Sequence[dict[str, Any]],
        tools: tuple[dict[str, Any], ...],
        options: dict[str, Any],
        rendered: Rendered | None = None,
    ) -> Conversation:
        if rendered is None:
            rendered, messages = self._render(messages, tools, options)
        ids = rendered.ids
        if not ids:
            raise RequestError("this model's chat format makes an empty prompt of the conversation")
        pieces, thinks = self._pieces(rendered.runs)
        return Conversation(
            tuple(spans_of(pieces, ids, Kind.USER, sampled=False)),
            tuple(messages),
            tools,
            options,
            rendered.text,
            len(rendered.runs),
            thinks,
        )

    def _pieces(self, runs: Sequence[Run], *, first: bool = True) -> tuple[list[Piece], bool]:
        """The spans of a rendered stretch, and whether it ends in a thought. `first`: it begins the whole."""
        return read_rendering(self.form, self.tokenizer, self._ends, runs, first=first)


class Continuation(TemplateChat):
    """Not a chat at all: a model without a chat format goes on with a text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__(tokenizer, ChatTemplate("", tokenizer, {}))
        self.form, self._names = replace(PLAIN, marks={}), {}  # in a story a mark is a word like others

    def start(self, user: str, *, system: str = "", tools: Sequence[Offer] = ()) -> Transcript:
        """The text to be continued; an empty one is the beginning of any text."""
        ids = (*self.tokenizer.prefix, *self.tokenizer.encode(user))
        if not ids and self.tokenizer.bos is not None:
            ids = (self.tokenizer.bos,)
        if not ids:
            raise RequestError("the prompt is empty", fix="give the beginning of a text")
        return Conversation((Span(Kind.USER, ids),), ({"role": "user", "content": user},))

    def add(self, transcript: Transcript, kind: Kind, text: str, *, sampled: bool = False) -> Transcript:
        """There is no second turn."""
        raise no_chat_format()

    def continues(self, transcript: Transcript) -> bool:
        """An empty prompt begins a text, any other is gone on with."""
        return not isinstance(transcript, Conversation) or bool(transcript.messages[0]["content"])

    def from_messages(
        self,
        messages: Iterable[dict[str, Any]],
        *,
        tools: Sequence[Offer] = (),
        options: dict[str, Any] | None = None,
    ) -> Transcript:
        """There are no messages."""
        raise no_chat_format()


def no_chat_format() -> RequestError:
    """The error for a conversation with a model that was never taught to converse."""
    return RequestError(
        "this model has no chat format",
        why="its folder has no chat template: it was trained to continue texts, not to answer",
        fix='let it continue a text: ayllu run MODEL "Once upon a time"',
    )


def chat_of(path: Path, tokenizer: Tokenizer) -> Chat | TemplateChat:
    """The form of a conversation with the model at `path`: ours, its own, or none (a Continuation).

    Errors: ModelFileDamagedError for a damaged template.
    """
    if tokenizer.native:
        return Chat(tokenizer)
    template = load_template(path, tokenizer)
    if template is None:
        return Continuation(tokenizer)
    return TemplateChat(tokenizer, template, for_tools=load_template(path, tokenizer, named="tool_use"))
