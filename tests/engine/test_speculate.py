"""Speculation: the text is the one without it, to the last token; it only takes fewer steps, and guessing
ends where it doesn't pay."""

import json
import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_model import CONTEXT, VOCABULARY, make_model
from test_engine import idle, prompts_of

from ayllu import native
from ayllu.engine.draftmodel import DraftModel
from ayllu.engine.engine import Engine
from ayllu.engine.executors import make_executor
from ayllu.engine.executors.torch import TorchExecutor
from ayllu.engine.lookup import LONGEST, Lookup, longest_match
from ayllu.engine.request import Grammar, Sampled, SamplingParams, ThinkingBudget
from ayllu.engine.speculate import MOST_SEQUENCES, Costs, Speculation, accepted
from ayllu.errors import AylluWarning, RequestError
from ayllu.model.config import ModelConfig, RopeScaling, RopeSpec, dense_layer, with_attention
from ayllu.model.decoder import Decoder
from ayllu.model.weights import save_model
from ayllu.text.tokenizer import train_tokenizer


class Fixed(Costs):
    """Costs as told, so that what is guessed doesn't depend on the clock."""

    def __init__(self, base=1.0, slope=0.001):
        super().__init__()
        self.base, self.fixed = base, slope

    slope = property(lambda self: self.fixed)

    def measure(self, rows, seconds): ...
    def __call__(self, rows):
        return self.base + self.fixed * rows


class Guess:
    """Guesses what another run has given, wrong now and then."""

    seconds = 0.0

    def __init__(self, answers, wrong=10**9, depth=5):
        self.answers, self.wrong, self.depth, self.asked = answers, wrong, depth, 0

    def kind(self, sequence):
        return 0

    def draft(self, wanted):
        self.asked += 1
        return [self._of(sequence)[: min(depth, self.depth)] for sequence, depth in wanted]

    def forget(self, sequence): ...
    def _of(self, sequence):
        at = len(sequence.token_ids)
        answer = self.answers[tuple(sequence.prompt_ids)][at:]
        return [(t + 1) % VOCABULARY if (i + at) % self.wrong == 0 else t for i, t in enumerate(answer)]


def cheaply(engine):
    """Guessing costs next to nothing: as much as possible of it."""
    engine.scheduler.speculation.costs = Fixed()
    return engine


def draft_model(seed=0):
    return DraftModel(make_executor(make_model(seed)), CONTEXT)


def texts(completions):
    return [c.token_ids for c in completions]


def same(ours, plain):
    assert texts(ours) == texts(plain)
    assert [c.finish_reason for c in ours] == [c.finish_reason for c in plain]
    for one, other in zip(ours, plain, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=2e-4)


def clean(engine):
    """Nobody holds anything, in neither cache."""
    speculation = engine.scheduler.speculation
    pool = getattr(speculation.drafter, "pool", None)
    assert not speculation._records and not speculation._used and speculation.failure is None
    return idle(engine) and (pool is None or pool.held == 0)


def repetitive(n, seed):
    """Prompts that say the same again and again, in full or nearly."""
    dice = random.Random(seed)
    prompts = []
    for _ in range(n):
        piece = [dice.randrange(VOCABULARY) for _ in range(dice.randint(1, 9))]
        prompt = (piece * 20)[: dice.randint(1, 48)]
        for _ in range(dice.randint(0, 2)):
            prompt[dice.randrange(len(prompt))] = dice.randrange(VOCABULARY)
        prompts.append(prompt)
    return prompts


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


# ---- with everything else
@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    text = "the cat sat on the mat and the cat sat on the hat. " * 30 + '{"a": 1, "b": [2, 3], "c": "yes"} '
    tokenizer = train_tokenizer(iter([text] * 20), 300)
    config = ModelConfig(
        32, tokenizer.vocab_size, (dense_layer(2, 1, 16, 64, qk_norm=False),) * 2, 256, family="llama"
    )
    model = Decoder(config).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(2)
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.copy_(0.25 * torch.randn(weight.shape, generator=generator))
    path = tmp_path_factory.mktemp("model")
    save_model(model, path, bos=tokenizer.bos, eos=tokenizer.eos[0], pad=0)
    tokenizer.save(path)
    return path


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


# ---- the drafters
@settings(deadline=None, max_examples=300)
@given(ids=st.lists(st.integers(0, 2), max_size=60))
def test_the_longest_match_is_the_longest(ids):
    found, length = longest_match(np.array(ids, np.int32))
    expected = (0, 0)
    for end in range(1, len(ids)):  # the stretch before it goes on at `end`
        size = 0
        while size < min(end, LONGEST) and ids[end - 1 - size] == ids[-1 - size]:
            size += 1
        if size and size >= expected[1]:
            expected = (end, size)
    assert (found, length) == expected


def test_lookup_goes_on_where_the_text_repeats_itself(model):
    engine = Engine(model)
    sequence = engine.submit([9, 1, 2, 3, 1, 2, 3, 1, 2], SamplingParams(max_tokens=20))
    lookup = Lookup()
    assert lookup.kind(sequence) is not None
    assert lookup.draft([(sequence, 7)]) == [[3, 1, 2, 3, 1, 2, 3]]
    sequence.token_ids += [3, 50]
    assert lookup.kind(sequence) is None
    lookup.forget(sequence)
    assert not lookup._texts


def test_a_draft_model_reads_long_texts_in_pieces(model, monkeypatch):
    monkeypatch.setattr("ayllu.engine.draftmodel._STRETCH", 7)
    prompt = prompts_of(1, 4, 41)[0] + list(range(30))
    plain = Engine(model).generate([prompt], max_tokens=20, temperature=0.7, seed=1)
    engine = cheaply(Engine(model, speculate=draft_model()))
    same(engine.generate([prompt], max_tokens=20, temperature=0.7, seed=1), plain)
    assert engine.stats().accepted > 5 and clean(engine)


def test_a_draft_model_with_little_room_serves_whom_it_can(model):
    small = draft_model()
    small.pool.capacity = 7
    prompts = prompts_of(8, 12)
    plain = Engine(model).generate(prompts, max_tokens=40, temperature=0)
    engine = cheaply(Engine(model, speculate=small))
    same(engine.generate(prompts, max_tokens=40, temperature=0), plain)
    assert engine.stats().accepted > 0 and clean(engine)


def test_a_draft_model_that_fails_costs_no_text(model):
    broken = draft_model()
    broken.executor.step = lambda batch: 1 / 0
    engine = cheaply(Engine(model, speculate=broken))
    with pytest.warns(AylluWarning, match="speculation is off.*ZeroDivisionError"):
        done = engine.generate(prompts_of(3), max_tokens=10, temperature=0)
    same(done, Engine(model).generate(prompts_of(3), max_tokens=10, temperature=0))
    assert idle(engine) and broken.pool.held == 0 and engine.stats().drafted == 0


def test_another_vocabulary_is_refused(folder, model, tmp_path):
    with pytest.raises(RequestError, match="vocabulary"):
        Engine(model, speculate=folder)
    tokenizer = train_tokenizer(iter(["quite another text, und noch einer"] * 50), 300)
    other = Decoder(
        ModelConfig(
            32, Engine(folder).vocab_size, (dense_layer(2, 1, 16, 64, qk_norm=False),), 64, family="llama"
        )
    )
    save_model(other, tmp_path, bos=tokenizer.bos, eos=tokenizer.eos[0], pad=0)
    tokenizer.save(tmp_path)
    with pytest.raises(RequestError, match="vocabulary"):
        Engine(folder, speculate=tmp_path)


def test_angles_that_change_with_the_length_are_refused():
    rope = RopeSpec(16, scaling=RopeScaling("dynamic", 2.0, 32))
    layer = with_attention(dense_layer(2, 1, 16, 64), rope=rope)
    with pytest.raises(RequestError, match="speculation"):
        Engine(Decoder(ModelConfig(32, 50, (layer,), 64)), speculate="ngram")


@given(drafts=st.lists(st.integers(0, 2), max_size=6), data=st.data())
def test_guesses_count_up_to_the_first_wrong_one(drafts, data):
    n = len(drafts) + 1
    tokens = data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    got = [one.token for one in accepted(drafts, [Sampled(t, -1.0) for t in tokens])]
    assert got == tokens[: len(got)] and got[:-1] == drafts[: len(got) - 1]
    assert len(got) == n or got[-1] != drafts[len(got) - 1]
