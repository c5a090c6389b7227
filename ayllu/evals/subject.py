"""The model under examination: how it is asked, and what it says.

One that converses gets the question as a turn of the user's, examples as turns before it, and its answer
comes from the tool-use loop that chat and the server use. One without a chat format goes on with a text and
is stopped where the next example would begin; one that converses may be asked that way, too, as other
harnesses do it. Either way the engine has many of them at a time, and what they have in common at the
beginning is computed once.

A prompt that doesn't fit is not cut: it counts as an answer that was not given (`too_long`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ayllu.engine.engine import Engine, SamplingParams
from ayllu.errors import RequestError
from ayllu.evals.items import Choice, Shots
from ayllu.evals.likelihood import Pair, beginning, encode_pair, fits, log_probabilities, nats_of_texts
from ayllu.evals.sets import LETTERS
from ayllu.reason.foreign import Continuation, TemplateChat
from ayllu.reason.loop import Answer, answer_batch
from ayllu.reason.rollout import fitting
from ayllu.reason.thinking import bounded, told
from ayllu.reason.transcript import Chat, Kind, Transcript
from ayllu.reason.verify import Verifier
from ayllu.tools.tool import Toolbox

AT_ONCE = 512  # prompts of a model that continues texts, handed to the engine together
MAX_CALLS = 8  # tool calls of one answer
ASK_AS = ("auto", "text", "chat")  # what the model is there for, a text to be gone on with, a conversation
ALONE = "Answer:"  # the context without the question (Brown et al. 2020, section 2.4)

OnAnswer = Callable[[int], None]


@dataclass(frozen=True)
class Said:
    """One answer. `text` None: none was given (cut off before its end, or the prompt didn't fit).

    `finish`: stop, length or too_long. `calls`: tool calls, and of them those that were `valid_calls`.
    `score`: how likely a verifier holds it to be right, where there is one.
    """

    text: str | None
    finish: str
    tokens: int = 0
    thinking_tokens: int = 0
    calls: int = 0
    valid_calls: int = 0
    score: float | None = None


TOO_LONG = Said(None, "too_long")


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn: `samples` for each prompt, `max_tokens` each, of which at most `thinking_budget`
    are thought."""

    samples: int = 1
    temperature: float = 0.0
    max_tokens: int = 256
    seed: int = 0
    thinking_budget: int | None = None


@dataclass(frozen=True)
class Asked:
    """One thing to be answered: as a question, and as a text to be gone on with; what stands before it; the
    tools on offer to a model of ours."""

    key: str
    question: str
    text: str
    shots: Shots = field(default_factory=Shots)
    tools: tuple[str, ...] = ()
    toolbox: Toolbox = field(default_factory=Toolbox)


@dataclass(frozen=True)
class Way:
    """A way to go on: the log-probability (nats) of each of its tokens, after its context, and after
    "Answer:" alone (None where a letter was asked for); its characters."""

    nats: tuple[float, ...]
    alone: tuple[float, ...] | None
    characters: int


class Examinee(Protocol):
    """What an examination needs of a model; tests put an oracle, a chooser by lot and a fool in its place."""

    @property
    def continues(self) -> bool:
        """Whether it is asked to go on with texts, as a model without a chat format always is."""

    @property
    def ours(self) -> bool:
        """Whether the model converses in our own form, whose answers are of few words."""

    def ways(
        self, items: Sequence[Choice], shots: Sequence[Shots], on_item: OnAnswer
    ) -> list[list[Way] | None]:
        """What each way to go on costs; None for a row that doesn't fit."""

    def say(
        self, asked: Sequence[Asked], sampling: Sampling, stop: tuple[str, ...], on_item: OnAnswer
    ) -> list[list[Said]]:
        """`sampling.samples` answers each."""

    def nats(self, texts: Sequence[str], on_item: OnAnswer) -> tuple[list[float], dict[str, int]]:
        """What each text costs, and how it was read: window and stride in tokens."""


@dataclass(frozen=True)
class Subject:
    """An engine, and the form in which its model is talked to: the Examinee that is one. A `verifier` scores
    what is said in conversation."""

    engine: Engine
    chat: Chat | TemplateChat
    verifier: Verifier | None = None
    says_budget: bool = False  # the model was taught to mind a budget that its system turn names

    @property
    def continues(self) -> bool:
        """Whether it is asked to go on with texts, as a model without a chat format always is."""
        return isinstance(self.chat, Continuation)

    @property
    def ours(self) -> bool:
        """Whether the model converses in our own form."""
        return isinstance(self.chat, Chat)

    # ---- ways to go on
    def ways(
        self, items: Sequence[Choice], shots: Sequence[Shots], on_item: OnAnswer
    ) -> list[list[Way] | None]:
        """Of a model that continues texts: the continuations, each also after "Answer:". Of one that
        converses: the letters at the beginning of the answer."""
        found: list[list[Way] | None] = [None] * len(items)
        pairs = [self._pairs(item, before) for item, before in zip(items, shots, strict=True)]
        open_ = [i for i, some in enumerate(pairs) if all(fits(self.engine, pair) for pair in some)]
        nats = log_probabilities(self.engine, [pairs[i] for i in open_], on_item)
        alone: dict[str, tuple[float, ...]] = {}
        if self.continues:
            words = list(dict.fromkeys(way for i in open_ for _, way in items[i].pairs))
            single = [[encode_pair(self.chat.tokenizer, ALONE, way)] for way in words]
            costs = log_probabilities(self.engine, single)
            alone = {way: tuple(cost[0]) for way, cost in zip(words, costs, strict=True)}
        for i, each in zip(open_, nats, strict=True):
            ways = [way for _, way in items[i].pairs]
            if not self.continues:
                ways = list(LETTERS[: len(ways)])
            found[i] = [
                Way(tuple(cost), alone.get(way), len(way.strip()))
                for cost, way in zip(each, ways, strict=True)
            ]
        return found

    def _pairs(self, item: Choice, shots: Shots) -> list[Pair]:
        tokenizer = self.chat.tokenizer
        if self.continues:
            return [encode_pair(tokenizer, shots.before(context), way) for context, way in item.pairs]
        ids = tuple(self._transcript(item.question, shots, ()).ids())
        if isinstance(self.chat, Chat):
            ids = (*ids, self.chat.span(Kind.SAY, "").ids[0])
        return [Pair(ids, tuple(tokenizer.encode(letter))) for letter in LETTERS[: len(item.pairs)]]

    # ---- answers
    def say(
        self, asked: Sequence[Asked], sampling: Sampling, stop: tuple[str, ...], on_item: OnAnswer
    ) -> list[list[Said]]:
        """By going on with texts, each up to the first of `stop`, or in the tool-use loop."""
        if self.continues:
            return self._go_on(asked, sampling, stop, on_item)
        return self._answer(asked, sampling, on_item)

    def _transcript(
        self, question: str, shots: Shots, tools: Sequence[str], budget: int | None = None
    ) -> Transcript:
        """A conversation that ends with the question."""
        messages: list[dict[str, Any]] = []
        for example in shots.examples:
            messages.append({"role": "user", "content": example.question})
            messages.append({"role": "assistant", "content": example.answer})
        messages.append({"role": "user", "content": question})
        if budget is not None and self.says_budget:
            messages = told(messages, budget)
        return self.chat.from_messages(messages, tools=tools if self.chat.tokenizer.native else ())

    def _go_on(
        self, asked: Sequence[Asked], sampling: Sampling, stop: tuple[str, ...], on_item: OnAnswer
    ) -> list[list[Said]]:
        tokenizer, room, k = self.chat.tokenizer, self.engine.context_length, sampling.samples
        begin = beginning(tokenizer)
        prompts = [[*begin, *tokenizer.encode(each.shots.before(each.text))] for each in asked]
        found = [[TOO_LONG] * k for _ in prompts]
        open_ = [i for i, ids in enumerate(prompts) if len(ids) < room]
        for start in range(0, len(open_), AT_ONCE):
            some = open_[start : start + AT_ONCE]
            params = [
                replace(
                    _params(sampling, asked[i].key, room - len(prompts[i])),
                    stop_strings=stop,
                    stop_ids=tuple(tokenizer.eos),
                    n=k,
                )
                for i in some
            ]
            done = self.engine.generate([prompts[i] for i in some], params)
            for at, i in enumerate(some):
                mine = done[at * k : (at + 1) * k]
                found[i] = [self._continued(each.token_ids, each.finish_reason, stop) for each in mine]
            on_item(start + len(some))
        return found

    def _continued(self, ids: list[int], reason: str, stop: tuple[str, ...]) -> Said:
        text = self.chat.tokenizer.decode(ids, continues=True)
        ends = [at for each in stop if (at := text.find(each)) >= 0]
        return Said(text[: min(ends)] if ends else text, "stop" if ends else reason, len(ids))

    def _answer(self, asked: Sequence[Asked], sampling: Sampling, on_item: OnAnswer) -> list[list[Said]]:
        room, k, done = self.engine.context_length, sampling.samples, 0
        budget = sampling.thinking_budget
        transcripts = [self._transcript(each.question, each.shots, each.tools, budget) for each in asked]
        lengths = [len(transcript.ids()) for transcript in transcripts]
        open_ = [i for i, length in enumerate(lengths) if length < room for _ in range(k)]

        def count(_index: int, _answer: Answer) -> None:
            nonlocal done
            done += 1
            on_item(done // k)

        given = answer_batch(
            self.engine,
            self.chat,  # type: ignore[arg-type]  # TemplateChat has the same methods
            [transcripts[i] for i in open_],
            [asked[i].toolbox for i in open_],
            [
                bounded(_params(sampling, asked[i].key, room - lengths[i]), self.chat, transcripts[i], budget)
                for i in open_
            ],
            max_calls=MAX_CALLS,
            constrain=True,
            on_answer=count,
        )
        scores: list[float | None] = [None] * len(given)
        if self.verifier is not None:
            scores = [*self.verifier.score([answer.transcript for answer in given])]
        found: list[list[Said]] = [[] for _ in transcripts]
        for i, answer, score in zip(open_, given, scores, strict=True):
            found[i].append(replace(self._answered(answer), score=score))
        return [said or [TOO_LONG] * k for said in found]

    def _answered(self, answer: Answer) -> Said:
        text = self.chat.answer(answer.transcript) if answer.finish_reason == "stop" else None
        said = Said(text, answer.finish_reason, answer.tokens, answer.thinking_tokens)
        return replace(said, calls=answer.calls, valid_calls=answer.valid_calls)

    # ---- texts
    def nats(self, texts: Sequence[str], on_item: OnAnswer) -> tuple[list[float], dict[str, int]]:
        """In windows as long as the context holds, each half a window after the one before."""
        begin = beginning(self.chat.tokenizer)
        length = self.engine.context_length - 1
        if not begin or length < 4:
            raise RequestError(
                "bits per byte can't be measured with this model",
                why="no token begins a text" if not begin else f"its context holds {length + 1} tokens",
            )
        found = []
        for done, ids in enumerate(self.chat.tokenizer.encode_batch(list(texts)), 1):
            found += nats_of_texts(self.engine, [ids], begin, length=length, stride=max(1, length // 2))
            on_item(done)
        return found, {"window": length, "stride": max(1, length // 2)}


def _params(sampling: Sampling, key: str, room: int) -> SamplingParams:
    """With a seed of its own for each row, and no more tokens than fit. A model that continues texts draws
    the same whichever other rows are asked; the tool-use loop adds an answer's place among all to the seed.
    """
    digest = hashlib.blake2b(f"{sampling.seed}/{key}".encode(), digest_size=8).digest()
    params = SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        seed=int.from_bytes(digest, "big") >> 1,
    )
    return fitting(params, room)
