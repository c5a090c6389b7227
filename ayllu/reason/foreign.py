"""A conversation with another's model: its chat template writes the turns, its end tokens close them.

`TemplateChat` has the methods of `transcript.Chat` that the loop, the terminal and the server use, for
turns of plain text. Each turn is rendered anew from the messages, because that is how these models were
trained; so an answer is decoded and encoded again here, other than in our own form.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ayllu.errors import RequestError
from ayllu.reason.template import ChatTemplate, load_template
from ayllu.reason.transcript import Chat, Kind, Span, Transcript
from ayllu.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Conversation(Transcript):
    """A transcript that knows the messages from which its first span was rendered."""

    messages: tuple[dict[str, Any], ...] = ()


class TemplateChat:
    """Chat for a model with a template of its own."""

    call_end = -1  # no token ends a call: calls are not read here

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate) -> None:
        self.tokenizer, self.template = tokenizer, template
        self.stop_ids = tokenizer.eos
        self._ends = frozenset(tokenizer.eos)

    def start(self, user: str, *, system: str = "", tools: Sequence[str] = ()) -> Transcript:
        """A conversation's first turn. `tools` are ours, which this model was not taught to call."""
        head = [{"role": "system", "content": system}] if system else []
        return self._rendered([*head, {"role": "user", "content": user}])

    def add(self, transcript: Transcript, kind: Kind, text: str, *, sampled: bool = False) -> Transcript:
        """With the user's next turn; what the model said before becomes a message."""
        assert kind == Kind.USER and isinstance(transcript, Conversation) and not sampled
        messages = list(transcript.messages)
        if (said := self.answer(transcript)) is not None:
            messages.append({"role": "assistant", "content": said})
        return self._rendered([*messages, {"role": "user", "content": text}])

    def extend(self, transcript: Transcript, ids: Sequence[int]) -> Transcript:
        """With sampled ids: one span, closed when it ends in an end token."""
        return transcript.plus(Span(Kind.SAY, tuple(ids), True)) if ids else transcript

    def text(self, span: Span) -> str:
        """A span's text without its control tokens."""
        return self.tokenizer.decode([i for i in span.ids if i not in self._ends])

    def is_closed(self, span: Span) -> bool:
        """Whether the model ended the span itself."""
        return bool(span.ids) and span.ids[-1] in self._ends

    def answer(self, transcript: Transcript) -> str | None:
        """What the model said after the last user turn, or None."""
        last = transcript.spans[-1] if transcript.spans else None
        return self.text(last) if last is not None and last.kind == Kind.SAY else None

    def continues(self, transcript: Transcript) -> bool:
        """Whether what the model says goes on in the middle of a text."""
        return False

    def from_messages(self, messages: Iterable[dict[str, Any]], *, tools: Sequence[str] = ()) -> Transcript:
        """A transcript from chat-completion messages. RequestError for what the template can't express."""
        given = list(messages)
        if tools or any(m["role"] == "tool" or m.get("tool_calls") for m in given):
            raise RequestError(
                "this model's tool calls are not served",
                why="it has a chat format of its own, of which only turns of plain text are read",
                fix="send messages without tools",
            )
        if not given or given[-1]["role"] != "user":
            raise RequestError("the last message must be the user's")
        return self._rendered(given)

    def _rendered(self, messages: list[dict[str, Any]]) -> Conversation:
        ids = self.template.render(messages).ids
        if not ids:
            raise RequestError("this model's chat format makes an empty prompt of the conversation")
        return Conversation((Span(Kind.USER, tuple(ids)),), tuple(messages))


class Continuation(TemplateChat):
    """Not a chat at all: a model without a chat format goes on with a text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.stop_ids = tokenizer, tokenizer.eos
        self._ends = frozenset(tokenizer.eos)

    def start(self, user: str, *, system: str = "", tools: Sequence[str] = ()) -> Transcript:
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

    def from_messages(self, messages: Iterable[dict[str, Any]], *, tools: Sequence[str] = ()) -> Transcript:
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
    return Continuation(tokenizer) if template is None else TemplateChat(tokenizer, template)
