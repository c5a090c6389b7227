"""Schemas, thinking budgets, stop strings, penalties and seeds through the engine, side by side."""

import json
import re
from dataclasses import replace

import pytest
import torch

from ayllu.engine.engine import Engine
from ayllu.engine.request import Grammar, SamplingParams, ThinkingBudget
from ayllu.engine.stopping import text_until_stop
from ayllu.errors import GrammarFailedError, RequestError
from ayllu.model.config import ModelConfig, dense_layer
from ayllu.model.decoder import Decoder
from ayllu.text.tokenizer import train_tokenizer

TEXT = '{"name": "Ana", "age": 31} true false yes no 2024 ఎలా ఉన్నారు 🙂 the quick brown fox '
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["Ana", "ఎలా"]}, "age": {"type": "integer", "minimum": 1, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(iter([TEXT * 4]), 330)


@pytest.fixture(scope="module")
def model(tokenizer):
    """A random decoder with more ids than its vocabulary has."""
    config = ModelConfig(48, tokenizer.vocab_size + 6, (dense_layer(4, 2, 12, 80),) * 2, 256)
    generator = torch.Generator().manual_seed(0)
    model = Decoder(config).requires_grad_(False).eval()
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
    return model


@pytest.fixture
def engine(model, tokenizer):
    with Engine(model, max_sequences=6, prefill_tokens=64, tokenizer=tokenizer) as engine:
        yield engine


@pytest.fixture(scope="module")
def wishes(tokenizer):
    """Requests that differ in everything."""
    control = tokenizer.control
    end = (control["<|end|>"],)
    thinking = ThinkingBudget(control["<|think|>"], control["<|/think|>"], minimum=4, soft=8, maximum=12)
    schema = Grammar("json_schema", json.dumps(SCHEMA))
    unthinking = replace(thinking, minimum=0, soft=0, maximum=0)
    words = Grammar("regex", r"(yes|no)( [a-z]{2,9}){1,3}\.")
    penalties = {"repetition_penalty": 1.5, "frequency_penalty": 0.6}
    every = [
        SamplingParams(max_tokens=90, grammar=schema, thinking=thinking, stop_ids=end),
        SamplingParams(max_tokens=90, grammar=schema, stop_ids=end, temperature=0.0),
        SamplingParams(max_tokens=90, grammar=schema, thinking=unthinking),
        SamplingParams(max_tokens=60, grammar=words, stop_strings=("e ",)),
        SamplingParams(max_tokens=50, thinking=thinking, stop_ids=end, top_p=0.9, temperature=1.5),
        SamplingParams(max_tokens=40, stop_strings=("a", "e", "🙂"), min_tokens=10),
        SamplingParams(max_tokens=40, **penalties, top_k=40, top_logprobs=3),
        SamplingParams(max_tokens=40, min_tokens=25, stop_ids=tuple(range(20, 200)), min_p=0.02),
        SamplingParams(max_tokens=40),
        SamplingParams(max_tokens=40, temperature=0.0),
        SamplingParams(max_tokens=30, logit_bias=((50, 100.0),), presence_penalty=0.5),
    ]
    return [replace(params, seed=1000 + at) for at, params in enumerate(every)]


def prompts_of(n, size=300):
    generator = torch.Generator().manual_seed(n)
    return [torch.randint(20, size, (3 + 7 * i,), generator=generator).tolist() for i in range(n)]


def test_each_gets_what_it_asked_for(engine, tokenizer, wishes):
    control = tokenizer.control
    done = engine.generate(prompts_of(len(wishes)), wishes)
    text = [tokenizer.decode(c.token_ids) for c in done]
    for at in (0, 1, 2):
        ids = done[at].token_ids
        if at == 0:
            close = ids.index(control["<|/think|>"])
            assert ids[0] == control["<|think|>"] and 4 <= close - 1 <= 12
            ids = ids[close + 1 :]
        assert done[at].finish_reason == "stop" and control["<|think|>"] not in ids
        value = json.loads(tokenizer.decode(ids))
        assert value["name"] in ("Ana", "ఎలా") and 1 <= value["age"] <= 99
    if done[3].finish_reason == "stop":
        cut = text_until_stop(tokenizer, done[3].token_ids, wishes[3])
        assert "e " not in cut and text[3].startswith(cut)
    assert re.match(r"yes|no", text[3])
    opened = done[4].token_ids.index(control["<|think|>"])
    assert opened == 0 and 4 <= done[4].token_ids.index(control["<|/think|>"]) - 1 <= 12
    assert len(done[5].token_ids) >= 10
    assert all(len(top) == 3 for top in done[6].top_logprobs)
    stopped = [i for i, token in enumerate(done[7].token_ids) if 20 <= token < 200]
    assert not stopped or (stopped == [len(done[7].token_ids) - 1] and stopped[0] >= 25)
    assert set(done[10].token_ids) == {50}


def test_company_order_and_prefill_change_nothing(model, tokenizer, wishes):
    prompts = prompts_of(len(wishes))
    alone = []
    for prompt, params in zip(prompts, wishes, strict=True):
        with Engine(model, tokenizer=tokenizer) as engine:
            alone += engine.generate([prompt], params)
    for sequences, tokens, turned in ((11, 512, 0), (3, 16, 4), (6, 33, 7)):
        order = [(i + turned) % len(wishes) for i in range(len(wishes))]
        with Engine(model, max_sequences=sequences, prefill_tokens=tokens, tokenizer=tokenizer) as engine:
            done = engine.generate([prompts[i] for i in order], [wishes[i] for i in order])
        assert [d.token_ids for d in done] == [alone[i].token_ids for i in order]


def test_preemption_changes_nothing(model, tokenizer, wishes):
    prompts = prompts_of(len(wishes))
    with Engine(model, tokenizer=tokenizer, max_sequences=11) as engine:
        roomy = engine.generate(prompts, wishes)
    with Engine(model, tokenizer=tokenizer, max_sequences=11, cache_blocks=17) as engine:
        narrow = engine.generate(prompts, wishes)
        assert engine.stats().preemptions > 0
    assert [c.token_ids for c in narrow] == [c.token_ids for c in roomy]


def test_a_failing_sequence_ends_alone(engine, tokenizer, wishes):
    """Its grammar's library breaks in the middle; the others don't change by a byte."""
    prompts = prompts_of(4)
    wanted = [wishes[8], wishes[1], wishes[6], wishes[5]]
    before = engine.generate(prompts, wanted)
    sequences = [engine.submit(p, w) for p, w in zip(prompts, wanted, strict=True)]
    for _ in range(5):
        engine.step()
    sequences[1].state.matcher._inner.consume_token(tokenizer.encode("x")[0])  # now it is in error for good
    while engine.busy:
        engine.step()
    assert sequences[1].finish_reason == "error" and isinstance(sequences[1].error, GrammarFailedError)
    assert before[1].token_ids[: len(sequences[1].token_ids)] == sequences[1].token_ids
    for at in (0, 2, 3):
        assert sequences[at].token_ids == before[at].token_ids
    assert engine.generate(prompts, wanted)[1].token_ids == before[1].token_ids


@pytest.mark.parametrize(
    "options",
    [
        {"grammar": Grammar("regex", "(" * 60_000)},
        {"grammar": Grammar("json_schema", '{"$ref":"#"}')},
        {"logit_bias": ((10**6, 1.0),)},
        {"thinking": ThinkingBudget(5, 10**6)},
        {"stop_strings": tuple("abc" * 40)},
    ],
)
def test_bad_requests_are_refused_before_any_work(engine, options):
    running = engine.submit([30, 31], SamplingParams(max_tokens=5, seed=1))
    engine.step()
    with pytest.raises(RequestError):
        engine.submit([30, 31], SamplingParams(**options))
    while engine.busy:
        engine.step()
    assert running.token_ids == engine.generate([[30, 31]], max_tokens=5, seed=1)[0].token_ids


def test_a_stream_stops_before_its_stop_string(engine, tokenizer):
    whole = "".join(engine.stream("the quick", max_tokens=60, seed=3))
    at = len(whole) // 2
    stop = whole[at : at + 2]
    assert stop
    pieces = list(engine.stream("the quick", max_tokens=60, seed=3, stop_strings=(stop,)))
    assert "".join(pieces) == whole[: whole.index(stop)]
