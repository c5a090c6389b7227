"""Speculation with everything else: grammars, budgets, stops, choices, limits and cancels do what they do
without it."""

import json
import random

import pytest
from guesses import Guess, cheaply, clean, draft_model, repetitive, same
from small_model import CONTEXT

from ayllu.engine.engine import Engine
from ayllu.engine.request import Grammar, SamplingParams, ThinkingBudget
from ayllu.errors import RequestError


def interplays(eos):
    values = {"a": {"type": "array", "items": {"type": "integer"}}}
    rules = {"type": "object", "properties": values, "required": ["a"], "additionalProperties": False}
    schema = json.dumps(rules)
    return {
        "penalties": {"repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.2},
        "cuts": {"top_k": 9, "top_p": 0.9, "min_p": 0.01},
        "stop strings": {"stop_strings": ("at", "he ", "1")},
        "stop ids": {"stop_ids": tuple(range(20, 60))},
        "least": {"min_tokens": 15, "stop_ids": tuple(range(20, 200))},
        "thinking": {"thinking": ThinkingBudget(3, 4, minimum=2, maximum=9), "stop_ids": eos},
        "schema": {"grammar": Grammar("json_schema", schema), "stop_ids": eos},
        "regex": {"grammar": Grammar("regex", "(the cat|a dog){3,9}"), "stop_ids": eos},
        "thinking, then choice": {
            "thinking": ThinkingBudget(3, 4, maximum=7, opened=True),
            "grammar": Grammar("choice", '["the cat sat on the mat", "the hat"]'),
            "stop_ids": eos,
        },
        "logprobs": {"top_logprobs": 3, "prompt_logprobs": True},
    }


@pytest.mark.parametrize("name", list(interplays(())))
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("drafter", ["ngram", "model"])
def test_what_steers_a_text_steers_it_the_same(folder, name, temperature, drafter):
    plain_engine = Engine(folder)
    tokenizer = plain_engine.tokenizer
    prompts = [tokenizer.encode("the cat sat on the mat and " * k) for k in (1, 2, 3)] * 2
    options = interplays(tuple(tokenizer.eos))[name]
    asked = [SamplingParams(max_tokens=40, temperature=temperature, seed=n, **options) for n in range(6)]
    plain = plain_engine.generate(prompts, asked)
    with Engine(folder, speculate="ngram" if drafter == "ngram" else folder) as engine:
        done = cheaply(engine).generate(prompts, asked)
        assert done == plain, "log-probabilities and all"
        assert engine.stats().decoded == sum(len(c.token_ids) for c in plain)
        assert engine.stats().drafted > 0 or drafter == "ngram" or "stop" in name
        assert clean(engine)
    # Guesses that follow the answer exactly, across the place where it ends.
    answers = {tuple(p): [*c.token_ids, 5, 6, 7] for p, c in zip(prompts[:3], plain[:3], strict=True)}
    engine = cheaply(Engine(folder, speculate=Guess(answers)))
    assert engine.generate(prompts[:3], asked[:3]) == plain[:3] and clean(engine)
    assert engine.stats().accepted > 0


def test_limits_and_the_context_are_kept(model):
    prompt = [3, 4] * 30
    for most in (1, 2, 5, CONTEXT - 60):
        engine = cheaply(Engine(model, speculate="ngram", cache_blocks=CONTEXT // 16))
        plain = Engine(model).generate([prompt], max_tokens=most, temperature=0)
        same(engine.generate([prompt], max_tokens=most, temperature=0), plain)
        assert len(plain[0].token_ids) == most


@pytest.mark.parametrize("speculate", ["ngram", "model"])
def test_choices_of_one_prompt_and_prefix_hits(model, speculate):
    prompts = repetitive(4, 9)
    prompts += [prompts[0] + [5], prompts[1]]
    asked = {"max_tokens": 30, "temperature": 0.9, "seed": 2, "n": 3}
    plain = Engine(model).generate(prompts, **asked)
    by = draft_model() if speculate == "model" else speculate
    engine = cheaply(Engine(model, speculate=by, max_sequences=9))
    for _ in range(2):
        same(engine.generate(prompts, **asked), plain)
    assert engine.stats().cached > 0 and engine.stats().accepted > 0 and clean(engine)
    # What was guessed wrongly is in no block that others find: the text continued is as if fresh.
    longer = [p + c.token_ids for p, c in zip(prompts, plain[::3], strict=True)]
    fits = [p for p in longer if len(p) < CONTEXT - 12]
    again = engine.generate(fits, max_tokens=10, temperature=0)
    same(again, Engine(model, prefix_cache=False).generate(fits, max_tokens=10, temperature=0))


@pytest.mark.parametrize("speculate", ["ngram", "model"])
def test_cancels_in_the_middle_leave_nothing(model, speculate):
    dice = random.Random(6)
    by = draft_model() if speculate == "model" else speculate
    engine = cheaply(Engine(model, speculate=by, cache_blocks=24, max_sequences=6))
    alive, kept = [], []
    for n in range(150):
        prompt = repetitive(1, n)[0]
        params = SamplingParams(
            max_tokens=dice.randint(1, 40), temperature=n % 2, seed=n, speculate=n % 7 > 0
        )
        alive.append(engine.submit(prompt, params))
        for _ in range(dice.randint(0, 3)):
            engine.step()
        while len(alive) > 12:
            engine.cancel(alive.pop(dice.randrange(len(alive))))
    while engine.busy:
        engine.step()
    kept = [s for s in alive if s.finish_reason != "cancelled"]
    assert clean(engine) and len(kept) > 5
    for s in kept[:6]:
        assert Engine(model).generate([s.prompt_ids], s.params)[0].token_ids == s.token_ids


def test_a_request_can_do_without(model):
    prompt = [5, 6, 7] * 8
    engine = cheaply(Engine(model, speculate="ngram"))
    engine.generate([prompt], max_tokens=30, temperature=0, speculate=False)
    assert engine.stats().drafted == 0
    engine.generate([prompt], max_tokens=30, temperature=0)
    assert engine.stats().drafted > 0
    with pytest.raises(RequestError, match="speculate"):
        SamplingParams(speculate="yes")
