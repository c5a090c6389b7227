"""Scheduling: pieces of prompts, shared prefixes, preemption, priorities, twins, faults; no block is lost."""

import contextlib
import random

import pytest
import torch
from small_model import CONTEXT, VOCABULARY
from test_engine import idle, prompts_of, replay

from ayllu.engine.batch import BLOCK
from ayllu.engine.engine import Engine
from ayllu.engine.executors.torch import TorchExecutor
from ayllu.engine.request import SamplingParams
from ayllu.errors import ContextLengthError, EngineFailedError, QueueFullError, RequestError, ResourceError

GREEDY = {"max_tokens": 20, "temperature": 0}


def texts(completions):
    return [c.token_ids for c in completions]


@pytest.fixture(scope="module")
def prompts():
    shared = prompts_of(1, 50, 41)[0] + list(range(20))
    return [shared[:20] + p for p in prompts_of(12, 51)] + prompts_of(12, 52, 70)


@pytest.fixture(scope="module")
def alone(model, prompts):
    return [Engine(model, prefix_cache=False).generate([p], **GREEDY)[0].token_ids for p in prompts]


# ---- the same text, whatever happens on the way
@pytest.mark.parametrize("pieces", [1, 2, 5, 15, 16, 17, 33, 512])
def test_prompts_in_pieces_of_any_size(model, prompts, alone, pieces):
    engine = Engine(model, prefill_tokens=pieces)
    assert texts(engine.generate(prompts, **GREEDY)) == alone and idle(engine)


@pytest.mark.parametrize("native", [True, False])
def test_sixty_four_at_once_and_again_from_the_cache(model, prompts, alone, native):
    engine = Engine(model, executor=None if native else TorchExecutor(model))
    many = [prompts[n % len(prompts)] for n in range(64)]
    first, again = engine.generate(many, **GREEDY), engine.generate(many, **GREEDY)
    assert texts(first) == texts(again) == [alone[n % len(prompts)] for n in range(64)]
    for prompt, completion in zip(many, again, strict=True):
        assert completion.cached_tokens == (len(prompt) - 1) // BLOCK * BLOCK, "all full blocks but the end"
    assert engine.stats().cached >= sum(c.cached_tokens for c in again)


def test_preempted_sequences_come_out_the_same(model, prompts, alone):
    engine = Engine(model, cache_blocks=CONTEXT // BLOCK + 1)
    assert texts(engine.generate(prompts, **GREEDY)) == alone
    assert engine.stats().preemptions > 3 and idle(engine)
    seeded = {"max_tokens": 25, "temperature": 1.0, "seed": 7}
    roomy = Engine(model).generate(prompts, **seeded)
    assert texts(engine.generate(prompts, **seeded)) == texts(roomy)


def test_a_conversation_goes_on_from_what_was_computed(model):
    engine = Engine(model)
    prompt = prompts_of(1, 3, 60)[0] * 2
    prompt = prompt[:40]
    answer = engine.generate([prompt], max_tokens=20, temperature=0)[0]
    longer = [*prompt, *answer.token_ids, 5, 6, 7]
    done = engine.generate([longer], max_tokens=5, temperature=0)[0]
    assert done.cached_tokens == (len(prompt) + 20 - 1) // BLOCK * BLOCK, "generated blocks count, too"
    assert done.logprobs == pytest.approx(replay(model, longer, done.token_ids), abs=2e-4)


def test_salts_keep_users_apart(model):
    engine = Engine(model)
    prompt = list(range(50))

    def cached(salt):
        return engine.generate([prompt], max_tokens=2, cache_salt=salt)[0].cached_tokens

    assert [cached(salt) for salt in ("a", "b", "", "a", "b", "")] == [0, 0, 0, 48, 48, 48]


def test_new_weights_forget_the_old_blocks(model):
    engine = Engine(model)
    engine.generate([list(range(50))], max_tokens=2)
    engine.refresh()
    assert engine.generate([list(range(50))], max_tokens=2)[0].cached_tokens == 0


def test_log_probabilities_of_a_prompt_are_the_decoders(model):
    prompt = prompts_of(1, 9, 70)[0]
    for options in ({}, {"prefill_tokens": 7}, {"cache_blocks": 7}):
        engine = Engine(model, **options)
        for _ in range(2):  # with its blocks in the cache it must be read again
            done = engine.generate([prompt], max_tokens=3, temperature=0, prompt_logprobs=True, n=2)
            for one in done:
                assert one.prompt_logprobs[0] is None and len(one.prompt_logprobs) == len(prompt)
                expected = replay(model, prompt[:1], prompt[1:])
                assert one.prompt_logprobs[1:] == pytest.approx(expected, abs=2e-4)
            assert done[0].cached_tokens == 0


# ---- several completions of one prompt
@pytest.mark.parametrize("length", [1, 15, 16, 17, 32, 40])
@pytest.mark.parametrize("blocks", [None, 8])
def test_completions_of_one_prompt_share_its_blocks(model, length, blocks):
    prompt = prompts_of(1, length, 60)[0] * 40
    prompt = prompt[:length]
    engine = Engine(model, cache_blocks=blocks)
    done = engine.generate([prompt], max_tokens=9, seed=3, n=6)
    assert len({tuple(c.token_ids) for c in done}) > 1 and idle(engine)
    for one in done:
        assert one.logprobs == pytest.approx(replay(model, prompt, one.token_ids), abs=2e-4)
    if blocks is None:
        assert engine.stats().prefilled <= length + 5, "read once, the last token once more for each"


def test_the_best_are_the_likeliest(model):
    engine = Engine(model)
    every = engine.generate([[5, 6]], max_tokens=8, seed=1, n=8)
    best = engine.generate([[5, 6]], max_tokens=8, seed=1, n=2, best_of=8)
    means = sorted((sum(c.logprobs) / len(c.logprobs) for c in every), reverse=True)
    assert [sum(c.logprobs) / len(c.logprobs) for c in best] == pytest.approx(means[:2], abs=1e-4)
    with pytest.raises(RequestError, match="submit_many"):
        engine.submit([1], SamplingParams(n=2))


def test_a_twin_outlives_the_one_that_was_to_read(model):
    engine = Engine(model, prefill_tokens=8)
    sequences = engine.submit_many(list(range(40)), SamplingParams(max_tokens=4, n=3, temperature=0))
    engine.step()
    engine.cancel(sequences[0])
    while engine.busy:
        engine.step()
    assert sequences[1].token_ids == sequences[2].token_ids and len(sequences[1].token_ids) == 4
    assert idle(engine)


# ---- order
def test_long_prompts_don_t_keep_others_waiting(model):
    engine = Engine(model, prefill_tokens=8)
    quick = engine.submit([1, 2], SamplingParams(max_tokens=30))
    engine.step()
    engine.submit(list(range(80)), SamplingParams(max_tokens=2))
    for _ in range(10):
        before = len(quick.token_ids)
        engine.step()
        assert len(quick.token_ids) == before + 1


def test_decoding_doesn_t_keep_prompts_waiting(model):
    engine = Engine(model, prefill_tokens=4, max_sequences=40)
    for n in range(20):
        engine.submit([n + 1], SamplingParams(max_tokens=60))
    late = engine.submit([7, 8, 9], SamplingParams(max_tokens=1))
    for _ in range(30):
        engine.step()
    assert late.finished


def test_urgent_ones_go_first_and_push_others_out(model):
    engine = Engine(model, max_sequences=1)
    low = engine.submit([1], SamplingParams(max_tokens=9, temperature=0))
    engine.step()
    waiting = [engine.submit([n], SamplingParams(max_tokens=2, priority=n)) for n in (0, 5, 3)]
    order = []
    while engine.busy:
        engine.step()
        order += [s for s in [low, *waiting] if s.finished and s not in order]
    assert order == [waiting[1], waiting[2], low, waiting[0]]
    assert low.token_ids == Engine(model).generate([[1]], max_tokens=9, temperature=0)[0].token_ids


# ---- memory
def test_what_can_never_fit_is_refused_before_any_work(model):
    engine = Engine(model, cache_blocks=2)
    assert engine.context_length == 33
    with pytest.raises(ContextLengthError, match="cache"):
        engine.submit([1] * 30, SamplingParams(max_tokens=4))
    assert len(engine.generate([[1] * 30], max_tokens=3)[0].token_ids) == 3
    assert idle(engine) and engine.stats().prefilled == 30
    with pytest.raises(RequestError, match="cache_bytes"):
        Engine(model, cache_bytes=10)
    with pytest.raises(RequestError):
        Engine(model, cache_blocks=0)
    assert Engine(model, cache_bytes=10 * engine.executor.block_bytes).pool.capacity == 10


def test_a_machine_without_the_memory_that_was_promised(model):
    executor = TorchExecutor(model)
    reserve = executor.reserve

    def little(blocks):
        if blocks > 64:
            raise ResourceError("no memory")
        reserve(blocks)

    executor.reserve = little
    engine = Engine(model, executor=executor, cache_blocks=1000)
    prompts = [[n] * 50 for n in range(1, 40)]
    done = engine.generate(prompts, max_tokens=20, temperature=0)
    assert texts(done) == texts(Engine(model).generate(prompts, max_tokens=20, temperature=0))
    assert engine.pool.capacity == 64 and engine.stats().preemptions and idle(engine)


# ---- faults
@pytest.mark.parametrize("kind", [RuntimeError, MemoryError, ResourceError])
def test_a_step_that_fails_ends_only_its_own_sequences(model, kind):
    """The executor fails at its first call, its second, ...: the engine can always be used on."""
    executor = TorchExecutor(model)
    step, calls, bad = executor.step, [0], [0]

    def failing(batch):
        calls[0] += 1
        if calls[0] == bad[0]:
            raise kind("no more memory")
        return step(batch)

    executor.step = failing
    wanted = texts(Engine(model).generate([[3, 4], [5]], max_tokens=4, temperature=0))
    for bad[0] in range(1, 9):
        calls[0] = 0
        engine = Engine(model, executor=executor, max_sequences=2, prefill_tokens=16)
        params = SamplingParams(max_tokens=4, temperature=0)
        sequences = [engine.submit(p, params) for p in ([1] * 20, [3, 4], [5], [6])]
        with pytest.raises(EngineFailedError, match="no more memory"):
            while engine.busy:
                engine.step()
        failed = [s for s in sequences if s.finish_reason == "error"]
        assert failed and all(isinstance(s.error, EngineFailedError) for s in failed)
        while engine.busy:
            engine.step()
        assert all(s.finish_reason in ("length", "error") for s in sequences) and idle(engine)
        assert texts(engine.generate([[3, 4], [5]], max_tokens=4, temperature=0)) == wanted
    engine.close()


def test_generate_raises_the_failure_and_leaves_nothing(model):
    engine = Engine(model, executor=TorchExecutor(model))
    engine.executor.step = lambda batch: 1 / 0
    with pytest.raises(EngineFailedError, match="ZeroDivisionError"):
        engine.generate([[1], [2]], max_tokens=3)
    assert idle(engine)


# ---- nothing is lost
class Instant:
    """An executor that computes nothing: the next token follows from the last."""

    name, vocab_size, block_bytes, fingerprint = "instant", VOCABULARY, 1, ""

    def reserve(self, blocks): ...
    def copy_block(self, source, target): ...
    def refresh(self): ...
    def step(self, batch):
        return torch.nn.functional.one_hot(
            torch.from_numpy(batch.tokens_T[batch.wanted_L]).long() * 7 % VOCABULARY, VOCABULARY
        ).float()


@pytest.mark.parametrize("seed", range(4))
def test_ten_thousand_events_lose_no_block(model, seed):
    chance = random.Random(seed)
    engine = Engine(
        model, executor=Instant(), max_sequences=12, cache_blocks=24, prefill_tokens=40, max_waiting=30
    )
    live, preempted = [], 0
    for event in range(2500):
        draw = chance.random()
        if draw < 0.3:
            prompt = [chance.randrange(3)] * chance.randrange(1, 70)
            params = SamplingParams(
                max_tokens=chance.randrange(1, 25),
                temperature=0,
                n=chance.choice([1, 1, 1, 4]),
                priority=chance.choice([0, 0, 1]),
                cache_salt=chance.choice(["", "x"]),
                prompt_logprobs=chance.random() < 0.1,
            )
            with contextlib.suppress(QueueFullError):
                live += engine.submit_many(prompt, params)
        elif draw < 0.45 and live:
            engine.cancel(chance.choice(live))
        elif draw < 0.46 and engine.scheduler.running:
            engine.scheduler.preempt(chance.choice(list(engine.scheduler.running.values())))
        else:
            engine.step()
        live = [s for s in live if not s.finished]
        if event % 50 == 0:
            references = [0] * len(engine.pool.references)
            for sequence in engine.scheduler.running.values():
                for block in sequence.table:
                    references[block] += 1
            assert references == engine.pool.references
            assert not any(s.table for s in engine.scheduler.waiting)
            spare = set(engine.pool.free) | set(engine.pool.idle)
            assert spare == {b for b, count in enumerate(references) if count == 0}
    preempted = engine.stats().preemptions
    for _ in range(5000):
        if not engine.busy:
            break
        engine.step()
    assert idle(engine) and preempted > 10 and engine.stats().cached > 100
    assert engine.pool.available == 24
