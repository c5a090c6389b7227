"""Our engine as a model of lm-eval (EleutherAI's language model evaluation harness), the extra `lm-eval`.

    from ayllu.engine.engine import Engine
    from ayllu.evals.lm_eval_adapter import adapted

    with Engine(folder) as engine:
        lm_eval.simple_evaluate(model=adapted(engine), tasks=["arc_easy"])

The three questions that a harness asks are answered by what `ayllu eval` itself uses: a pair is parted in the
same place and the same token stands before it, so that both give the same log-likelihoods. The scores are the
same where `ayllu eval` gives texts to be gone on with, too, which to a model that converses it does with
`--ask-as text`. What doesn't fit into the context raises ContextLengthError; the harness's own models cut it
from the left without a word.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any

from ayllu.engine.engine import Engine, SamplingParams
from ayllu.errors import ContextLengthError, UsageError
from ayllu.evals.likelihood import (
    Pair,
    beginning,
    encode_pair,
    fits,
    log_probabilities,
    nats_of_texts,
)

MAX_TOKENS = 256  # of a generation whose task says nothing
_CERTAIN = math.log(0.5)  # a token above it is the likeliest of all


def adapted(engine: Engine) -> Any:
    """A `lm_eval.api.model.LM` over an engine that has a tokenizer. UsageError where lm-eval is absent."""
    try:
        base = importlib.import_module("lm_eval.api.model").LM  # only here: an extra, and slow to import
    except ImportError as error:
        raise UsageError(
            "lm-eval is not installed", why=str(error), fix="install it: pip install -e '.[lm-eval]'"
        ) from error

    def likelihoods(_: Any, requests: Sequence[Any], **__: Any) -> list[tuple[float, bool]]:
        return loglikelihood(engine, [request.args for request in requests])

    def rolling(_: Any, requests: Sequence[Any], **__: Any) -> list[float]:
        return loglikelihood_rolling(engine, [request.args[0] for request in requests])

    def texts(_: Any, requests: Sequence[Any], **__: Any) -> list[str]:
        return generate_until(engine, [request.args for request in requests])

    methods = {"loglikelihood": likelihoods, "loglikelihood_rolling": rolling, "generate_until": texts}
    return type("AylluLM", (base,), methods)()


def loglikelihood(engine: Engine, asked: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
    """(context, continuation) -> its log-likelihood in nats, and whether it is what greedy text would say."""
    tokenizer = _tokenizer(engine)
    pairs = [encode_pair(tokenizer, context, continuation) for context, continuation in asked]
    for pair in pairs:
        if not fits(engine, pair):
            _refuse(engine, len(pair.context) + len(pair.continuation))
    groups: dict[tuple[int, ...], list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.context, []).append(pair)
    found = dict(zip(groups, log_probabilities(engine, list(groups.values())), strict=True))
    nats = {
        pair: each
        for context, group in groups.items()
        for pair, each in zip(group, found[context], strict=True)
    }
    greedy = _greedy(engine, nats)
    return [(math.fsum(nats[pair]), greedy[pair]) for pair in pairs]


def _greedy(engine: Engine, nats: dict[Pair, list[float]]) -> dict[Pair, bool]:
    """Where every token has more than half of the probability it is clear; the others are generated."""
    known = {pair: True for pair, each in nats.items() if min(each) > _CERTAIN}
    open_ = [pair for pair in nats if pair not in known]
    params = [
        SamplingParams(max_tokens=len(pair.continuation), temperature=0.0, ignore_stop=True) for pair in open_
    ]
    done = engine.generate([list(pair.context) for pair in open_], params) if open_ else []
    return known | {
        pair: tuple(one.token_ids) == pair.continuation for pair, one in zip(open_, done, strict=True)
    }


def loglikelihood_rolling(engine: Engine, texts: Sequence[str]) -> list[float]:
    """The log-likelihood of whole texts, in windows that touch: each begins with the last token of the one
    before, as the harness has it (one token of context)."""
    tokenizer, length = _tokenizer(engine), engine.context_length - 1
    ids = [tokenizer.encode(text) for text in texts]
    nats = nats_of_texts(engine, ids, beginning(tokenizer), length=length, stride=length - 1)
    return [-each for each in nats]


def generate_until(engine: Engine, asked: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """(context, settings) -> what follows, up to the first of its `until`. Of the settings `until`,
    `max_gen_toks`, `do_sample`, `temperature`, `top_p` and `top_k` count."""
    tokenizer = _tokenizer(engine)
    prompts, params, stops = [], [], []
    for context, settings in asked:
        ids = [*beginning(tokenizer), *tokenizer.encode(context)]
        most = int(settings.get("max_gen_toks", MAX_TOKENS))
        if len(ids) + most > engine.context_length:
            _refuse(engine, len(ids) + most)
        until = settings.get("until") or ()
        stop = (until,) if isinstance(until, str) else tuple(until)
        draws = settings.get("do_sample", False)
        params.append(
            SamplingParams(
                max_tokens=most,
                temperature=float(settings.get("temperature", 1.0)) if draws else 0.0,
                top_p=float(settings.get("top_p", 1.0)),
                top_k=int(settings.get("top_k", 0)),
                seed=0,
                stop_strings=tuple(text for text in stop if text),
                stop_ids=tuple(tokenizer.eos),
            )
        )
        prompts.append(ids)
        stops.append(stop)
    done = engine.generate(prompts, params) if prompts else []
    found = []
    for one, stop in zip(done, stops, strict=True):
        text = tokenizer.decode(one.token_ids, continues=True)
        ends = [at for each in stop if each and (at := text.find(each)) >= 0]
        found.append(text[: min(ends)] if ends else text)
    return found


def _tokenizer(engine: Engine) -> Any:
    assert engine.tokenizer is not None, "the harness gives texts: open the engine from a model folder"
    return engine.tokenizer


def _refuse(engine: Engine, tokens: int) -> None:
    raise ContextLengthError(
        f"a row of the task needs {tokens} tokens, the context holds {engine.context_length}",
        why="nothing is cut silently",
        fix="give fewer examples (num_fewshot) or a smaller max_gen_toks",
    )
