"""What the engine takes, holds and gives: token ids in, token ids and log-probabilities out."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, field

from ayllu.errors import RequestError

MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class SamplingParams:
    """How to continue a prompt. Bad values raise RequestError when the object is made.

    `max_tokens` None means up to the end of the context. `temperature` 0 is greedy (ties go to the
    lowest id). `top_k` 0, `top_p` 1 and `min_p` 0 are off. A stop id ends the sequence and is kept as
    its last token. With a `seed` the same prompt gives the same tokens, whatever else is running.
    `logprobs` False leaves them out of the completion.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop_ids: tuple[int, ...] = ()
    logprobs: bool = True

    def __post_init__(self) -> None:
        for name in ("max_tokens", "top_k", "seed"):
            value = getattr(self, name)
            none = value is None and name != "top_k"
            _check(name, none or _is_whole(value), "that is a whole number", value)
        for name in ("temperature", "top_p", "min_p"):
            value = getattr(self, name)
            good = isinstance(value, numbers.Real) and not isinstance(value, bool)
            _check(name, good, "that is a number", value)
        good = isinstance(self.stop_ids, tuple) and all(map(_is_whole, self.stop_ids))
        _check("stop_ids", good, "that is a tuple of token ids", self.stop_ids)
        _check("max_tokens", self.max_tokens is None or self.max_tokens >= 1, "at least 1", self.max_tokens)
        _check("temperature", 0 <= self.temperature <= 10, "from 0 to 10", self.temperature)
        _check("top_k", self.top_k >= 0, "0 (off) or more", self.top_k)
        _check("top_p", 0 < self.top_p <= 1, "above 0 and at most 1", self.top_p)
        _check("min_p", 0 <= self.min_p < 1, "from 0 to below 1", self.min_p)
        _check("seed", self.seed is None or 0 <= self.seed <= MAX_SEED, f"from 0 to {MAX_SEED}", self.seed)


def _is_whole(value: object) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _check(name: str, good: bool, bounds: str, value: object) -> None:
    if not good or (isinstance(value, float) and not math.isfinite(value)):
        raise RequestError(f"{name} = {value!r:.100} can't be used", fix=f"use a value {bounds}")


@dataclass(eq=False)
class Sequence:
    """A request on its way. `token_ids` and `logprobs` grow; `finish_reason` is set at the end."""

    id: int
    prompt_ids: list[int]
    params: SamplingParams
    limit: int  # tokens that may be generated
    seed: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None

    @property
    def finished(self) -> bool:
        """Whether no more tokens will come."""
        return self.finish_reason is not None

    def append(self, token: int, logprob: float) -> None:
        """Take one sampled token; finishes at a stop id or at the limit."""
        self.token_ids.append(token)
        self.logprobs.append(logprob)
        if token in self.params.stop_ids:
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self.limit:
            self.finish_reason = "length"


@dataclass(frozen=True)
class Completion:
    """A finished sequence. `logprobs` are the model's own (before temperature and cuts), in nats."""

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: str
    prompt_tokens: int
