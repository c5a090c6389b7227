"""Log-likelihoods from the engine: how probable a way to go on is, and how many bits a text costs.

Two ways lead to the same numbers. The prompt's own log-probabilities (`prompt_logprobs`) read the whole text
once, but can't use what the prefix cache holds of it. The other way asks for single tokens: the context and
what is gone on with so far is a prompt, the next token is made certain by a bias, and the engine reports its
log-probability without the bias; such prompts share all their full blocks. With a long context and short
ways to go on (five examples and a letter) that is many times cheaper. `log_probabilities` counts the tokens
that each way computes and takes the cheaper one.

A text is cut into windows as long as the context holds. Each begins `stride` tokens after the one before and
counts only the tokens that no window before has counted, so that with a stride of half a window every token
but those of the first half window has at least half a window before it (Press et al. 2021, section 2.2, call
this sliding-window evaluation).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ayllu.engine.engine import Engine, SamplingParams
from ayllu.text.tokenizer import Tokenizer

TAIL = 16  # tokens at most that a prompt computes whose full blocks are all known
CERTAIN = 100.0  # the largest bias: a token of a probability above e^-100 becomes the likeliest
AT_ONCE = 256  # contexts handed to the engine together

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Pair:
    """A context and a way to go on with it, as token ids. Both hold one token at least."""

    context: Ids
    continuation: Ids


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> Pair:
    """The pair as one text, parted where the context's own tokens end; white space at the context's end
    belongs to what follows (as in lm-eval, so that scores are the same)."""
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    whole = tokenizer.encode(kept + continuation)
    begin = beginning(tokenizer)
    part = min(len(tokenizer.encode(kept)) if kept else 0, len(whole) - 1)
    return Pair((*begin, *whole[:part]), tuple(whole[part:]))


def beginning(tokenizer: Tokenizer) -> Ids:
    """What stands before any text: the file's prefix, else the token that begins or ends one."""
    if tokenizer.prefix:
        return tuple(tokenizer.prefix)
    if tokenizer.bos is not None:
        return (tokenizer.bos,)
    return tuple(tokenizer.eos[:1])


def fits(engine: Engine, pair: Pair) -> bool:
    """Whether the engine can read the pair; it keeps a place for a token that follows."""
    return len(pair.context) + len(pair.continuation) < engine.context_length


def log_probabilities(
    engine: Engine, groups: Sequence[Sequence[Pair]], on_group: Callable[[int], None] | None = None
) -> list[list[list[float]]]:
    """The log-probability (nats) of each token of each continuation; groups as given.

    A group's pairs have most of their context in common. All must fit. `on_group(done)` counts groups.
    """
    found: list[list[list[float]]] = []
    for start in range(0, len(groups), AT_ONCE):
        some = groups[start : start + AT_ONCE]
        single = [_single_is_cheaper(group) for group in some]
        known = _singles(
            engine, [pair for group, yes in zip(some, single, strict=True) if yes for pair in group]
        )
        left = {
            pair: None
            for group, yes in zip(some, single, strict=True)
            for pair in group
            if not yes or any((pair.context + pair.continuation[:i], t) not in known for i, t in _each(pair))
        }
        whole = dict(zip(left, _whole(engine, list(left)), strict=True))
        for group in some:
            found.append(
                [
                    whole[pair]
                    if pair in whole
                    else [known[pair.context + pair.continuation[:i], t] for i, t in _each(pair)]
                    for pair in group
                ]
            )
        if on_group is not None:
            on_group(min(start + AT_ONCE, len(groups)))
    return found


def _each(pair: Pair) -> Iterator[tuple[int, int]]:
    return enumerate(pair.continuation)


def _single_is_cheaper(group: Sequence[Pair]) -> bool:
    """Whether asking token by token computes fewer tokens than reading every pair as a whole."""
    asked = {(pair.context + pair.continuation[:i], t) for pair in group for i, t in _each(pair)}
    contexts = sum(map(len, {pair.context for pair in group}))
    whole = sum(len(pair.context) + len(pair.continuation) for pair in set(group))
    return contexts + TAIL * len(asked) < whole


def _singles(engine: Engine, pairs: Sequence[Pair]) -> dict[tuple[Ids, int], float]:
    """(prompt, token) -> log-probability, but for tokens that no bias can make certain."""
    asked = list(
        dict.fromkeys((pair.context + pair.continuation[:i], t) for pair in pairs for i, t in _each(pair))
    )
    if not asked:
        return {}
    params = [
        SamplingParams(max_tokens=1, temperature=0.0, logit_bias=((token, CERTAIN),), ignore_stop=True)
        for _, token in asked
    ]
    done = engine.generate([list(prompt) for prompt, _ in asked], params)
    return {
        (prompt, token): one.logprobs[0]
        for (prompt, token), one in zip(asked, done, strict=True)
        if one.token_ids == [token]
    }


def _whole(engine: Engine, pairs: Sequence[Pair]) -> list[list[float]]:
    """By the log-probabilities of the prompt."""
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=True, ignore_stop=True)
    done = engine.generate([[*pair.context, *pair.continuation] for pair in pairs], params)
    return [
        [p for p in one.prompt_logprobs[len(pair.context) :] if p is not None]
        for pair, one in zip(pairs, done, strict=True)
    ]


def windows(ids: Sequence[int], begin: Ids, length: int, stride: int) -> list[Pair]:
    """A text's windows: what is read, and of it what counts. Every token of `ids` counts once."""
    assert stride > 0 and len(begin) + 1 < length, "a window holds what begins a text and two tokens"
    whole, found = (*begin, *ids), []
    counted = len(begin) or 1
    end = min(length, len(whole))
    while counted < len(whole):
        start = max(0, end - length)
        found.append(Pair(whole[start:counted], whole[counted:end]))
        counted, end = end, min(end + stride, len(whole))
    return found


def nats_of_texts(
    engine: Engine, texts: Sequence[Sequence[int]], begin: Ids, *, length: int, stride: int
) -> list[float]:
    """What each text costs, given `begin`."""
    cut = [windows(ids, begin, length, stride) for ids in texts]
    flat = [pair for pairs in cut for pair in pairs]
    nats: list[float] = []
    for start in range(0, len(flat), AT_ONCE):
        nats += [-sum(p) for p in _whole(engine, flat[start : start + AT_ONCE])]
    at, found = 0, []
    for pairs in cut:
        found.append(sum(nats[at : at + len(pairs)]))
        at += len(pairs)
    return found
