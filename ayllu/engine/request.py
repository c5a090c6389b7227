"""What the engine takes, holds and gives: token ids in, token ids and log-probabilities out."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from ayllu.errors import RequestError

MAX_SEED = 2**63 - 1
MAX_CHOICES = 128  # completions of one prompt
MAX_TOP_LOGPROBS = 128
GRAMMARS = ("json", "json_schema", "regex", "lark", "choice")


@dataclass(frozen=True)
class Grammar:
    """What a text must look like. `source`: the schema's JSON, the regular expression, the grammar; for
    "choice" a JSON list of strings; for "json" (any object) nothing."""

    kind: str
    source: str = ""

    def __post_init__(self) -> None:
        _check("grammar kind", self.kind in GRAMMARS, f"of {', '.join(GRAMMARS)}", self.kind)
        _check("grammar", isinstance(self.source, str), "that is text", self.source)


@dataclass(frozen=True)
class Enclosed:
    """What stands between the control tokens `open_id` and `close_id` must follow `grammar`, each time anew;
    the rest of the text is free, but `close_id` comes only after `open_id`. With no grammar neither does."""

    open_id: int
    close_id: int
    grammar: Grammar | None

    def __post_init__(self) -> None:
        for name in ("open_id", "close_id"):
            value = getattr(self, name)
            good = _is_whole(value) and value >= 0
            _check(f"enclosed {name}", good, "that is a whole number from 0", value)
        differ = self.open_id != self.close_id
        _check("enclosed close_id", differ, "other than the open_id", self.close_id)
        good = self.grammar is None or isinstance(self.grammar, Grammar)
        _check("enclosed grammar", good, "that is a Grammar", self.grammar)


@dataclass(frozen=True)
class ThinkingBudget:
    """How long a model may think: between the control tokens `open_id` and `close_id`.

    Before `minimum` tokens the close is held back, from `soft` on (None: not at all) it is taken as soon as
    it is likely, at `maximum` (None: no bound) it is put in. `opened`: the prompt has opened it already.
    """

    open_id: int
    close_id: int
    minimum: int = 0
    maximum: int | None = None
    soft: int | None = None
    opened: bool = False

    def __post_init__(self) -> None:
        for name in ("open_id", "close_id", "minimum"):
            value = getattr(self, name)
            _check(
                f"thinking {name}", _is_whole(value) and value >= 0, "that is a whole number from 0", value
            )
        for name in ("maximum", "soft"):
            value = getattr(self, name)
            good = value is None or (_is_whole(value) and value >= self.minimum)
            _check(f"thinking {name}", good, f"of at least the minimum of {self.minimum}", value)
        if self.soft is not None and self.maximum is not None:
            _check("thinking soft", self.soft <= self.maximum, "of at most the maximum", self.soft)


# name: (lowest, highest, words for the bounds); None stands for no bound.
_WHOLE: dict[str, tuple[int | None, int | None, str]] = {
    "min_tokens": (0, None, "0 or more"),
    "top_k": (0, None, "0 (off) or more"),
    "n": (1, MAX_CHOICES, f"from 1 to {MAX_CHOICES}"),
    "top_logprobs": (0, MAX_TOP_LOGPROBS, f"from 0 to {MAX_TOP_LOGPROBS}"),
    "priority": (-1000, 1000, "from -1000 to 1000"),
}
_WHOLE_OR_NONE: dict[str, tuple[int | None, int | None, str]] = {
    "max_tokens": (1, None, "at least 1"),
    "seed": (0, MAX_SEED, f"from 0 to {MAX_SEED}"),
    "best_of": (1, MAX_CHOICES, f"from 1 to {MAX_CHOICES}"),
}
_REAL = {
    "temperature": (0.0, 10.0, "from 0 to 10"),
    "top_p": (0.0, 1.0, "above 0 and at most 1"),
    "min_p": (0.0, 1.0, "from 0 to below 1"),
    "repetition_penalty": (0.01, 10.0, "from 0.01 to 10 (1: off)"),
    "presence_penalty": (-2.0, 2.0, "from -2 to 2 (0: off)"),
    "frequency_penalty": (-2.0, 2.0, "from -2 to 2 (0: off)"),
}


@dataclass(frozen=True)
class SamplingParams:
    """How to continue a prompt. Bad values and contradictions raise RequestError when the object is made.

    `max_tokens` None means up to the end of the context. `temperature` 0 is greedy (ties go to the
    lowest id). `top_k` 0, `top_p` 1 and `min_p` 0 are off. A stop id ends the sequence and is kept as
    its last token. With a `seed` the same prompt gives the same tokens, whatever else is running: to the bit
    with the native executor; where others compute, sums may differ in their last bits with what runs beside.
    `logprobs` False leaves them out of the completion; `top_logprobs`: so many likeliest tokens at each
    place besides; `prompt_logprobs`: those of the prompt's tokens, too. `n` completions, the likeliest of
    `best_of` (by mean log-probability). A higher `priority` goes first. `ignore_stop`: stop ids don't end.
    `cache_salt`: prompts share stored blocks only with prompts of the same salt. `speculate` False: guess
    nothing here where the engine does (it makes no difference to the text, but for such last bits).
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop_ids: tuple[int, ...] = ()
    logprobs: bool = True
    min_tokens: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop_strings: tuple[str, ...] = ()
    n: int = 1
    best_of: int | None = None
    top_logprobs: int = 0
    prompt_logprobs: bool = False
    grammar: Grammar | None = None
    enclosed: Enclosed | None = None
    thinking: ThinkingBudget | None = None
    priority: int = 0
    ignore_stop: bool = False
    cache_salt: str = ""
    speculate: bool = True

    def __post_init__(self) -> None:
        for name, (low, high, words) in (_WHOLE | _WHOLE_OR_NONE).items():
            value = getattr(self, name)
            if value is None and name in _WHOLE_OR_NONE:
                continue
            _check(name, _is_whole(value), "that is a whole number", value)
            _check(name, (low is None or value >= low) and (high is None or value <= high), words, value)
        for name, (lowest, highest, words) in _REAL.items():
            value = getattr(self, name)
            _check(name, _is_real(value), "that is a number", value)
            _check(name, lowest <= value <= highest, words, value)
        _check("top_p", self.top_p > 0, _REAL["top_p"][2], self.top_p)
        _check("min_p", self.min_p < 1, _REAL["min_p"][2], self.min_p)
        for name in ("logprobs", "prompt_logprobs", "ignore_stop", "speculate"):
            _check(name, isinstance(getattr(self, name), bool), "that is true or false", getattr(self, name))
        good = isinstance(self.stop_ids, tuple) and all(map(_is_whole, self.stop_ids))
        _check("stop_ids", good, "that is a tuple of token ids", self.stop_ids)
        good = isinstance(self.stop_strings, tuple) and all(
            isinstance(s, str) and s for s in self.stop_strings
        )
        _check("stop_strings", good, "that is a tuple of texts that aren't empty", self.stop_strings)
        _check("cache_salt", isinstance(self.cache_salt, str), "that is text", self.cache_salt)
        good = isinstance(self.logit_bias, tuple) and all(map(_is_bias, self.logit_bias))
        _check("logit_bias", good, "that is a tuple of (token id, from -100 to 100)", self.logit_bias)
        for name, kind in (("grammar", Grammar), ("enclosed", Enclosed), ("thinking", ThinkingBudget)):
            value = getattr(self, name)
            _check(name, value is None or isinstance(value, kind), f"that is a {kind.__name__}", value)
        self._refuse_contradictions()

    def _refuse_contradictions(self) -> None:
        choices = self.best_of or self.n
        for wrong, what, fix in (
            (
                self.max_tokens is not None and self.min_tokens > self.max_tokens,
                f"min_tokens = {self.min_tokens} is more than max_tokens = {self.max_tokens}",
                "ask for fewer tokens at least, or more at most",
            ),
            (choices < self.n, f"best_of = {self.best_of} is less than n = {self.n}", "raise best_of"),
            (
                choices > self.n and self.temperature == 0,
                f"best_of = {self.best_of} with temperature = 0 would make the same text every time",
                "use a temperature above 0, or leave best_of out",
            ),
            (
                self.top_logprobs > 0 and not self.logprobs,
                f"top_logprobs = {self.top_logprobs} without logprobs",
                "set logprobs, too",
            ),
            (
                self.ignore_stop and bool(self.stop_strings),
                "stop_strings with ignore_stop",
                "leave one of them out",
            ),
            (self.ignore_stop and self.grammar is not None, "a grammar with ignore_stop", "leave one out"),
            (
                self.grammar is not None and self.enclosed is not None,
                "a grammar for the whole text and another for enclosed parts of it",
                "leave one out",
            ),
        ):
            if wrong:
                raise RequestError(what, fix=fix)


def _is_whole(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_bias(pair: object) -> bool:
    return (
        isinstance(pair, tuple)
        and len(pair) == 2
        and _is_whole(pair[0])
        and pair[0] >= 0
        and _is_real(pair[1])
        and -100 <= pair[1] <= 100
    )


def _check(name: str, good: bool, bounds: str, value: object) -> None:
    if not good or (isinstance(value, float) and not math.isfinite(value)):
        raise RequestError(f"{name} = {value!r:.100} can't be used", fix=f"use a value {bounds}")


class SamplingState(Protocol):
    """What sampling keeps of one sequence: counts for penalties, a grammar's place, text for stop strings.
    `error`: why the sequence can't go on, if it can't."""

    @property
    def error(self) -> Exception | None:
        """None while all is well."""
        ...

    def accept(self, token: int) -> str | None:
        """Take the token that was chosen -> the reason if the sequence ends with it."""
        ...


class Row(NamedTuple):
    """Whose next token a row of logits decides. `drafts`: proposed tokens between what the sequence has
    and this place (speculation); the others have none."""

    sequence: Sequence
    drafts: tuple[int, ...] = ()

    @property
    def position(self) -> int:
        """Tokens generated before this one, drafts included: the counter of the random numbers."""
        return len(self.sequence.token_ids) + len(self.drafts)


class Sampled(NamedTuple):
    """A chosen token, its log-probability by the unmodified model (nats, temperature 1), and the likeliest
    tokens with theirs (`top_logprobs` of them, falling; ties by lowest id) where any are wanted."""

    token: int
    logprob: float
    top: list[tuple[int, float]] | None = None


@dataclass(eq=False)
class Sequence:
    """A request on its way. `token_ids` and `logprobs` grow; `finish_reason` is set at the end: "stop",
    "length", "cancelled" or "error" (then `error` says why).

    The engine's own: `computed` tokens have their keys and values in the blocks of `table`; `hashes` are
    the names of its full blocks (prefix.py); `cached_tokens` of the prompt came from the prefix cache.
    """

    id: int
    prompt_ids: list[int]
    params: SamplingParams
    limit: int  # tokens that may be generated
    seed: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    prompt_logprobs: list[float | None] = field(default_factory=list)  # the first token has none
    finish_reason: str | None = None
    error: Exception | None = None
    state: SamplingState | None = None
    cached_tokens: int = 0
    computed: int = 0
    table: list[int] = field(default_factory=list)
    version: int = 0  # grows when entries of the table are replaced
    hashes: list[bytes] = field(default_factory=list)
    twin: Sequence | None = None  # whose prompt's blocks this one will share

    @property
    def finished(self) -> bool:
        """Whether no more tokens will come."""
        return self.finish_reason is not None

    @property
    def length(self) -> int:
        """Tokens so far, the prompt's included."""
        return len(self.prompt_ids) + len(self.token_ids)

    @property
    def read(self) -> int:
        """Prompt tokens whose log-probabilities are known (the first has none)."""
        return max(1, len(self.prompt_logprobs))

    @property
    def reads_prompt(self) -> bool:
        """Whether log-probabilities of prompt tokens are still to come."""
        return self.params.prompt_logprobs and len(self.prompt_logprobs) < len(self.prompt_ids)

    def ids(self, start: int, end: int) -> list[int]:
        """Tokens start to end of the prompt and what was generated."""
        prompt = len(self.prompt_ids)
        if start >= prompt:
            return self.token_ids[start - prompt : end - prompt]
        return (self.prompt_ids[start:end] + self.token_ids[: max(0, end - prompt)])[: end - start]

    def append(self, token: int, logprob: float, top: list[tuple[int, float]] | None = None) -> None:
        """Take one sampled token; finishes at a stop id, where the state says so, or at the limit."""
        self.token_ids.append(token)
        self.logprobs.append(logprob)
        if self.params.top_logprobs:
            self.top_logprobs.append(top or [])
        reason = self.state.accept(token) if self.state is not None else None
        if reason is None and token in self.params.stop_ids and not self.params.ignore_stop:
            reason = "stop"
        if reason is None and len(self.token_ids) >= self.limit:
            reason = "length"
        self.finish_reason = reason


@dataclass(frozen=True)
class Completion:
    """A finished sequence. `logprobs` are the model's own (before temperature and cuts), in nats."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str
    prompt_tokens: int
    cached_tokens: int = 0
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    prompt_logprobs: list[float | None] = field(default_factory=list)
