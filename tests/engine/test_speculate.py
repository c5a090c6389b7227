"""Speculation: the text is the one without it, to the last token; it only takes fewer steps, and guessing
ends where it doesn't pay."""

import random
from collections import Counter

import numpy as np
import pytest
import torch
from guesses import Fixed, Guess, cheaply, clean, repetitive, same
from hypothesis import given, settings
from hypothesis import strategies as st
from small_model import CONTEXT, make_model
from test_engine import prompts_of

from ayllu import native
from ayllu.engine.draftmodel import DraftModel
from ayllu.engine.engine import Engine
from ayllu.engine.executors import make_executor
from ayllu.engine.executors.torch import TorchExecutor
from ayllu.engine.lookup import Lookup
from ayllu.engine.request import SamplingParams
from ayllu.engine.speculate import MOST_SEQUENCES, Costs, Speculation
from ayllu.model.config import ModelConfig, dense_layer
from ayllu.model.decoder import Decoder


# ---- the same text
@pytest.mark.parametrize("drafter", ["ngram", "model", "half a model"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_texts_of_many_small_models_are_those_without(drafter, temperature):
    """300 greedy texts and 300 sampled ones over the three drafters, to the bit by the native executor."""
    compared, total = 0, Counter()
    for seed in range(10):
        model = make_model(seed)
        prompts = repetitive(7, seed) + prompts_of(3, seed)
        asked = [
            SamplingParams(max_tokens=20 + 3 * n, temperature=temperature, seed=seed + n) for n in range(10)
        ]
        plain = Engine(model).generate(prompts, asked)
        other = make_model(seed)
        if drafter == "half a model":
            noise = torch.Generator().manual_seed(seed)
            for weight in other.parameters():
                weight.add_(0.02 * torch.randn(weight.shape, generator=noise))
        by = drafter if drafter == "ngram" else DraftModel(make_executor(other), CONTEXT)
        engine = cheaply(Engine(model, speculate=by))
        done = engine.generate(prompts, asked)
        if native.available():
            assert [(c.token_ids, c.logprobs) for c in done] == [(c.token_ids, c.logprobs) for c in plain]
        same(done, plain)
        compared += len(done)
        stats = engine.stats()
        total += Counter(steps=stats.steps, accepted=stats.accepted, drafted=stats.drafted)
        total["decoded"] += stats.decoded
        assert clean(engine) and stats.decoded == sum(len(c.token_ids) for c in plain)
    assert compared == 100 and 0 < total["accepted"] <= total["drafted"]
    if drafter == "model":  # it is the large one itself: never wrong, with the same random numbers
        assert total["accepted"] > 0.9 * total["drafted"] > 0.5 * total["decoded"]


@pytest.mark.skipif(not native.available(), reason="no native extension on this machine")
@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8", "int4"])
def test_to_the_bit_with_all_weights_of_the_native_executor(weights):
    config = ModelConfig(64, 211, (dense_layer(4, 2, 16, 96),) * 2, 256)
    model = Decoder(config).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(3)
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
    prompts = repetitive(6, 5) + prompts_of(2, 5)
    for temperature in (0.0, 1.0):
        asked = {"max_tokens": 40, "temperature": temperature, "seed": 1}
        plain = Engine(model, weights=weights).generate(prompts, **asked)
        answers = {tuple(p): c.token_ids for p, c in zip(prompts, plain, strict=True)}
        engine = cheaply(Engine(model, weights=weights, speculate=Guess(answers, wrong=7, depth=30)))
        done = engine.generate(prompts, **asked)
        assert [(c.token_ids, c.logprobs) for c in done] == [(c.token_ids, c.logprobs) for c in plain]
        assert engine.stats().accepted > 150


@pytest.mark.parametrize("wrong", [1, 3, 10**9])
@pytest.mark.parametrize("options", [{}, {"cache_blocks": 8}, {"prefill_tokens": 5}], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_guesses_change_nothing_but_the_number_of_steps(model, wrong, options, temperature):
    prompts = prompts_of(12, 51, 70)
    asked = {"max_tokens": 20, "temperature": temperature, "seed": 4}
    plain = Engine(model).generate(prompts, **asked)
    answers = {tuple(p): c.token_ids for p, c in zip(prompts, plain, strict=True)}
    engine = cheaply(Engine(model, speculate=Guess(answers, wrong), **options))
    same(engine.generate(prompts, **asked), plain)
    assert clean(engine)
    if options.get("cache_blocks"):
        assert engine.stats().preemptions
    if wrong == 10**9 and not options:
        assert engine.stats().steps < 12 and engine.stats().accepted > 150
    if wrong == 1:
        assert engine.stats().accepted == 0 < engine.stats().drafted


def test_the_reference_executor_checks_guesses_too(model):
    prompts = repetitive(8, 2)
    plain = Engine(model, executor=TorchExecutor(model)).generate(prompts, max_tokens=40, temperature=0)
    engine = cheaply(Engine(model, executor=TorchExecutor(model), speculate="ngram"))
    same(engine.generate(prompts, max_tokens=40, temperature=0), plain)
    assert engine.stats().accepted > 0 and clean(engine)


def test_the_distribution_is_the_plain_one(model):
    """Chi-square of the second to fourth token over many seeds, where the likeliest tokens are guessed each
    time: they must not be drawn more often than the model says, the others not less."""
    prompt, n = [7, 3, 7, 3, 7], 1200
    engine = Engine(model)
    likeliest = engine.generate([prompt], max_tokens=4, temperature=0)[0].token_ids
    guess = Guess({tuple(prompt): likeliest})
    free = {"max_tokens": 4, "temperature": 1.4, "top_k": 8}
    fast = cheaply(Engine(model, speculate=guess, max_sequences=16))
    ours = [
        c.token_ids
        for c in fast.generate([prompt] * n, [SamplingParams(**free, seed=10**6 + i) for i in range(n)])
    ]
    plain = [
        c.token_ids for c in engine.generate([prompt] * n, [SamplingParams(**free, seed=i) for i in range(n)])
    ]
    assert fast.stats().drafted > n / 2
    for place in (1, 2, 3):
        a, b = (Counter(ids[place] for ids in some) for some in (ours, plain))
        kinds = [t for t in a | b if a[t] + b[t] >= 20]
        chi = sum((a[t] - b[t]) ** 2 / (a[t] + b[t]) for t in kinds)
        freedom = max(len(kinds) - 1, 1)
        # Wilson and Hilferty 1931: the cube root is nearly normal; 4 standard deviations.
        border = freedom * (1 - 2 / (9 * freedom) + 4 * (2 / (9 * freedom)) ** 0.5) ** 3
        assert len(kinds) > 3 and chi < border, (place, chi, freedom)
    # And against the model's own probabilities of the first token.
    logits = model(torch.tensor([prompt]))[0, -1] / 1.4
    top = logits.topk(8)
    p = dict(zip(top.indices.tolist(), top.values.softmax(-1).tolist(), strict=True))
    seen = Counter(ids[0] for ids in ours)
    assert set(seen) <= set(p)
    for token, chance in p.items():
        assert abs(seen[token] - n * chance) < 5 * (n * chance * (1 - chance)) ** 0.5 + 1


# ---- when it pays
def test_a_crowd_isn_t_guessed_for(model):
    prompts = prompts_of(40, 8)
    plain = Engine(model).generate(prompts, max_tokens=8, temperature=0)
    guess = Guess({tuple(p): c.token_ids for p, c in zip(prompts, plain, strict=True)})
    engine = cheaply(Engine(model, speculate=guess, max_sequences=40))
    assert MOST_SEQUENCES < 40
    same(engine.generate(prompts, max_tokens=8, temperature=0), plain)
    assert guess.asked == 0


def test_depth_follows_success_and_costs():
    def depths(chance, base, slope, running=1):
        speculation = Speculation(Lookup(), Fixed(base, slope))
        return speculation.depths([(chance, 31)] * running, running)

    assert depths(0.99, 7, 1)[0] > depths(0.8, 7, 1)[0] > depths(0.4, 7, 1)[0] > depths(0.1, 7, 1)[0] == 0
    assert depths(0.8, 100, 1)[0] > depths(0.8, 7, 1)[0] > depths(0.8, 0.2, 1)[0] == 0
    assert sum(depths(0.6, 7, 1, 1)) > 0 == sum(depths(0.6, 7, 1, 16))
    assert depths(0.999, 10**6, 1) == [31]


@settings(deadline=None, max_examples=60)
@given(chances=st.lists(st.floats(0.01, 0.99), min_size=1, max_size=3), base=st.floats(0.1, 50))
def test_no_other_depths_give_more_tokens_a_second(chances, base):
    costs, n = Fixed(base, 1.0), len(chances)
    speed = lambda depths: (  # noqa: E731
        sum(sum(p**k for k in range(d + 1)) for p, d in zip(chances, depths, strict=True))
        / (costs(n) + sum(depths))
    )
    chosen = Speculation(Lookup(), costs).depths([(p, 5) for p in chances], n)
    best = max(speed(depths) for depths in np.ndindex(*[6] * n))
    assert speed(chosen) == pytest.approx(best)


def test_costs_are_learned_from_steps():
    dice, costs = random.Random(1), Costs()
    for _ in range(300):
        rows = dice.randint(1, 12)
        late = 50 if dice.random() < 0.02 else 1
        costs.measure(rows, (0.01 + 0.002 * rows) * dice.uniform(0.97, 1.03) * late)
    assert costs.slope == pytest.approx(0.002, rel=0.5) and costs(4) == pytest.approx(0.018, rel=0.3)
    for _ in range(1000):  # all of one size: no more is claimed than is known
        costs.measure(1, 0.5)
    assert costs(1) == pytest.approx(0.5) and 0 < costs.slope < 0.5


def test_what_is_never_right_is_hardly_guessed(model):
    prompts = prompts_of(1, 3)
    plain = Engine(model).generate(prompts, max_tokens=60, temperature=0)
    guess = Guess({tuple(prompts[0]): plain[0].token_ids}, wrong=1, depth=31)
    engine = Engine(model, speculate=guess)
    engine.scheduler.speculation.costs = Fixed(7, 1)
    same(engine.generate(prompts, max_tokens=60, temperature=0), plain)
    assert 0 < engine.stats().drafted < 30, "of 31 in each of 60 steps"
