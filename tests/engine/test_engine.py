"""The engine: what a sequence gets doesn't depend on who runs beside it, log-probabilities are the
decoder's own, and every block comes back.

The reference executor's matrix products may differ in the last bit with the number of rows; the test model
has clear favourites, so that its texts must still be the same. The native executor's are the same to the bit.
"""

from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from paged import Paged
from small_model import CONTEXT, VOCABULARY, make_model

from ayllu.engine.batch import BLOCK
from ayllu.engine.engine import Engine
from ayllu.engine.executors.torch import TorchExecutor
from ayllu.engine.request import SamplingParams
from ayllu.errors import ContextLengthError, QueueFullError, RequestError
from ayllu.model.weights import save_model
from ayllu.text.tokenizer import train_tokenizer

quick = settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])


def prompts_of(n, seed=0, longest=40):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest, (n,), generator=generator).tolist()
    return [torch.randint(0, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def replay(model, prompt, token_ids):
    """The decoder's log-probabilities of the tokens, in one pass without a cache."""
    ids = [*prompt, *token_ids]
    with torch.no_grad():
        log_p_TV = model(torch.tensor([ids]))[0].float().log_softmax(-1)
    return [float(log_p_TV[at - 1, ids[at]]) for at in range(len(prompt), len(ids))]


def run_with_arrivals(engine, prompts, params, every):
    """Submit one prompt each `every` steps."""
    sequences, steps = [], 0
    while len(sequences) < len(prompts) or engine.busy:
        if len(sequences) < len(prompts) and steps % every == 0:
            at = len(sequences)
            sequences.append(engine.submit(prompts[at], params[at]))
        engine.step()
        steps += 1
    return sequences


def idle(engine):
    """Nothing runs, waits or is stored."""
    return not engine.busy and engine.pool.held == 0 and not any(engine.pool.references)


# ---- decoding is the decoder
def test_steps_give_the_logits_of_one_full_pass(model):
    prompts = prompts_of(5, seed=1)
    paged = Paged(Engine(model).executor, 5, 60)
    logits = [paged.step(dict(enumerate(prompts)))]
    for step in range(20):
        logits.append(paged.step({row: [(7 * step + row) % VOCABULARY] for row in range(5)}))
    for row, prompt in enumerate(prompts):
        ids = [*prompt, *((7 * step + row) % VOCABULARY for step in range(20))]
        with torch.no_grad():
            full_TV = model(torch.tensor([ids]))[0]
        assert (full_TV - torch.cat([step[row] for step in logits])).abs().max() < 1e-4


@quick
@given(seed=st.integers(0, 10**6), n=st.integers(1, 12), temperature=st.sampled_from([0.0, 0.7, 1.0]))
def test_replay_gives_the_reported_log_probabilities(model, seed, n, temperature):
    engine = Engine(model, max_sequences=5, prefill_tokens=64)
    prompts = prompts_of(n, seed)
    done = engine.generate(prompts, max_tokens=30, temperature=temperature, seed=seed, top_k=seed % 3)
    for prompt, completion in zip(prompts, done, strict=True):
        assert completion.logprobs == pytest.approx(replay(model, prompt, completion.token_ids), abs=2e-4)
        assert completion.prompt_tokens == len(prompt)


@pytest.mark.parametrize("every", [1, 3])
def test_greedy_is_the_same_alone_and_in_a_crowd(model, every):
    prompts = prompts_of(32, seed=3)
    params = [SamplingParams(max_tokens=10 + 3 * (n % 8), temperature=0) for n in range(32)]
    alone = [Engine(model).generate([prompt], p)[0] for prompt, p in zip(prompts, params, strict=True)]
    for size, together in ((32, every), (5, every)):
        crowd = run_with_arrivals(Engine(model, max_sequences=size), prompts, params, together)
        assert [s.token_ids for s in crowd] == [c.token_ids for c in alone]
    assert len({tuple(c.token_ids[-5:]) for c in alone}) > 20
    for prompt, completion in zip(prompts[:4], alone, strict=False):
        ids = list(prompt)
        for token in completion.token_ids:
            with torch.no_grad():
                assert int(model(torch.tensor([ids]))[0, -1].argmax()) == token
            ids.append(token)


def test_a_seed_gives_the_same_text_whoever_else_runs(model):
    prompts = prompts_of(20, seed=4)
    params = [SamplingParams(max_tokens=25, temperature=1.1, seed=100 + n) for n in range(20)]
    alone = [
        Engine(model).generate([prompt], p)[0].token_ids for prompt, p in zip(prompts, params, strict=True)
    ]
    crowd = run_with_arrivals(Engine(model, max_sequences=6), prompts, params, 2)
    assert [s.token_ids for s in crowd] == alone
    back = Engine(model).generate(prompts[::-1], params[::-1])
    assert [c.token_ids for c in back[::-1]] == alone


def test_seeds_make_a_difference_and_no_seed_is_random(engine):
    texts = {tuple(engine.generate([[5, 6]], max_tokens=12, seed=n)[0].token_ids) for n in range(8)}
    assert len(texts) == 8
    free = engine.generate([[5, 6]] * 8, max_tokens=12)
    assert len({tuple(c.token_ids) for c in free}) == 8


# ---- endings
def test_stop_ids_end_a_sequence_and_are_kept(model, engine):
    free = engine.generate([[1, 2, 3]], max_tokens=30, temperature=0)[0]
    assert (free.finish_reason, len(free.token_ids)) == ("length", 30)
    stop = free.token_ids[7]
    done = engine.generate([[1, 2, 3]], max_tokens=30, temperature=0, stop_ids=(VOCABULARY + 5, stop))[0]
    first = free.token_ids.index(stop)
    assert done.token_ids == free.token_ids[: first + 1] and done.finish_reason == "stop"
    assert len(done.logprobs) == len(done.token_ids)
    last = engine.generate([[1, 2, 3]], max_tokens=first + 1, temperature=0, stop_ids=(stop,))[0]
    assert last.finish_reason == "stop", "a stop at the limit is a stop"


@pytest.mark.parametrize("length", [1, 63, 64, 65, CONTEXT - 1])
def test_up_to_the_last_place_of_the_context(model, length):
    prompt = [n % VOCABULARY for n in range(length)]
    done = Engine(model).generate([prompt], temperature=0)[0]
    assert (len(done.token_ids), done.finish_reason) == (CONTEXT - length, "length")
    # The very last token is sampled, but never read again.
    assert done.logprobs == pytest.approx(replay(model, prompt, done.token_ids), abs=2e-4)


def test_one_token_too_many_is_refused_before_any_work(engine):
    for prompt, options in (
        ([1] * CONTEXT, {}),
        ([1] * (CONTEXT + 1), {}),
        ([1] * 10, {"max_tokens": CONTEXT - 9}),
        ([1] * (CONTEXT - 1), {"max_tokens": 2}),
    ):
        with pytest.raises(ContextLengthError, match=str(CONTEXT)):
            engine.submit(prompt, SamplingParams(**options))
        assert idle(engine)
    engine.submit([1] * 10, SamplingParams(max_tokens=CONTEXT - 10))


@pytest.mark.parametrize("prompt", [[], [-1], [VOCABULARY], [5, 10**9]])
def test_prompts_that_are_none(engine, prompt):
    with pytest.raises(RequestError):
        engine.submit(prompt, SamplingParams())
    assert idle(engine)


def test_one_refused_prompt_leaves_nothing_behind(engine):
    with pytest.raises(ContextLengthError):
        engine.generate([[1], [2], [3] * CONTEXT, [4]], max_tokens=3)
    assert idle(engine)


def test_a_full_queue(model):
    engine = Engine(model, max_sequences=1, max_waiting=2)
    params = SamplingParams(max_tokens=3)
    first = engine.submit([1], params)
    engine.step()
    engine.submit([2], params)
    engine.submit([3], params)
    with pytest.raises(QueueFullError):
        engine.submit([4], params)
    engine.cancel(first)
    engine.step()
    engine.submit([4], params)
    engine.close()
    assert idle(engine)
    with pytest.raises(QueueFullError):
        engine.generate([[1]] * 5, params)
    assert idle(engine)


BAD = [
    *({"temperature": value} for value in (-0.1, 10.5, float("nan"), float("inf"), "hot", None, True)),
    *({"max_tokens": value} for value in (0, -1, 1.5, "8", True)),
    *({"top_k": value} for value in (-1, 2.0, None, "x")),
    *({"top_p": value} for value in (0, -0.5, 1.01, float("nan"), None)),
    *({"min_p": value} for value in (-0.1, 1, float("nan"), "x")),
    *({"seed": value} for value in (-1, 2**63, 0.5, "x")),
    *({"stop_ids": value} for value in ([1], (1.5,), ("a",), 3)),
]


@pytest.mark.parametrize("values", BAD, ids=str)
def test_bad_values_are_refused(values):
    with pytest.raises(RequestError, match=next(iter(values))):
        SamplingParams(**values)


def test_unknown_weights_are_refused(model):
    with pytest.raises(RequestError, match="float32"):
        Engine(model, weights="int3")


# ---- coming and going
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_order_of_submit_step_and_cancel(model, data):
    slots = data.draw(st.integers(1, 5))
    engine = Engine(model, max_sequences=slots, max_waiting=6, prefill_tokens=30)
    live, done = [], []
    for _ in range(data.draw(st.integers(1, 40))):
        action = data.draw(st.sampled_from(["submit", "submit", "step", "step", "step", "cancel"]))
        if action == "submit":
            prompt = prompts_of(1, data.draw(st.integers(0, 30)), 20)[0]
            params = SamplingParams(max_tokens=data.draw(st.integers(1, 12)), seed=1)
            try:
                live.append((prompt, engine.submit(prompt, params)))
            except QueueFullError:
                assert len(engine.scheduler.waiting) == 6
        elif action == "step":
            before = {id(s): len(s.token_ids) for _, s in live}
            for sequence in engine.step():
                assert len(sequence.token_ids) == before[id(sequence)] + 1
        elif live:
            _, sequence = live[data.draw(st.integers(0, len(live) - 1))]
            engine.cancel(sequence)
            engine.cancel(sequence)  # a second time changes nothing
            assert sequence.finish_reason is not None
        done += [pair for pair in live if pair[1].finished]
        live = [pair for pair in live if not pair[1].finished]
        running = engine.scheduler.running.values()
        assert len(running) <= slots and not any(s.finished for s in running)
        holders = Counter(block for s in running for block in s.table)
        assert holders == Counter(dict(enumerate(engine.pool.references)))
        assert all(s.length - s.computed == 1 for s in running if s.token_ids and s.computed)
        assert {id(s) for s in [*running, *engine.scheduler.waiting]} == {id(s) for _, s in live}
    while engine.busy:
        engine.step()
    assert idle(engine)
    for prompt, sequence in (done + live)[:5]:
        assert sequence.logprobs == pytest.approx(replay(model, prompt, sequence.token_ids), abs=2e-4)


def test_a_closed_engine_holds_nothing(model):
    with Engine(model, max_sequences=3) as engine:
        sequences = [engine.submit([n], SamplingParams()) for n in range(1, 8)]
        for _ in range(4):
            engine.step()
    assert idle(engine) and {s.finish_reason for s in sequences} == {"cancelled"}
    assert engine.step() == []


def test_first_come_first_served(model):
    engine = Engine(model, max_sequences=2)
    sequences = [engine.submit([n], SamplingParams(max_tokens=4)) for n in range(1, 7)]
    order = []
    while engine.busy:
        engine.step()
        order += [s.id for s in sequences if s.finished and s.id not in order]
    assert order == [s.id for s in sequences]


# ---- weights
def test_a_live_model_in_bfloat16_follows_after_refresh():
    model = make_model(7)
    engine = Engine(model, weights="bfloat16")

    def greedy():
        return engine.generate([[3, 1, 4]] * 2, max_tokens=8, temperature=0)[1]

    before = greedy()
    assert before.logprobs == pytest.approx(replay(model, [3, 1, 4], before.token_ids), abs=0.15)
    with torch.no_grad():
        for weight, other in zip(model.parameters(), make_model(8).parameters(), strict=True):
            weight.copy_(other)
    assert greedy().token_ids == before.token_ids, "not before it is told"
    engine.refresh()
    after = greedy()
    assert after.token_ids != before.token_ids
    assert after.logprobs == pytest.approx(replay(model, [3, 1, 4], after.token_ids), abs=0.15)
    assert all(weight.dtype == torch.float32 for weight in model.parameters()), "the model itself stays"


def test_a_float32_engine_shares_the_weights():
    model = make_model(7)
    engine = Engine(model, executor=TorchExecutor(model), prefix_cache=False)
    assert engine.executor.model is model
    with torch.no_grad():
        model.embedding.weight.mul_(-1)
    done = engine.generate([[3, 1]], max_tokens=5, temperature=0)[0]
    assert done.logprobs == pytest.approx(replay(model, [3, 1], done.token_ids), abs=2e-4)


def test_weights_can_t_change_under_a_running_sequence(engine):
    engine.submit([1], SamplingParams())
    with pytest.raises(AssertionError, match="running"):
        engine.refresh()


def test_memory_does_not_grow_with_what_is_over(model):
    engine = Engine(model, max_sequences=4)
    for seed in range(20):
        engine.generate(prompts_of(8, seed), max_tokens=20)
    assert len(engine.pool.references) == engine.pool.capacity == 4 * CONTEXT // BLOCK
    assert len(engine.pool.named) <= engine.pool.capacity and not engine._assembler._tables


# ---- text
def test_streamed_text_is_whole_characters_and_the_whole_text(tmp_path):
    tokenizer = train_tokenizer(iter(["నమస్కారం గ్రహం", "Grüße aus dem Dorf 12", "🦙🏔️"] * 3), 300)
    config = make_model().config
    model = make_model()
    model = type(model)(type(config)(**{**config.__dict__, "vocab_size": tokenizer.vocab_size})).initialise(2)
    save_model(model, tmp_path, bos=0, eos=1, pad=12)
    tokenizer.save(tmp_path)
    with Engine(tmp_path) as engine:
        ids = tokenizer.encode("నమ")
        broken = 0
        for seed in range(8):
            pieces = list(engine.stream("నమ", max_tokens=40, temperature=1.0, seed=seed))
            done = engine.generate([ids], max_tokens=40, temperature=1.0, seed=seed, stop_ids=(1,))[0]
            assert "".join(pieces) == tokenizer.decode(done.token_ids)
            assert all(pieces) and idle(engine)
            broken += len(pieces) < len(done.token_ids)
        assert broken, "some tokens were only parts of a character"
        stream = engine.stream(ids, max_tokens=40, seed=1)
        next(stream)
        stream.close()
        assert idle(engine), "a reader who leaves frees the slot"


def test_an_engine_without_a_tokenizer_can_t_stream_text(engine):
    with pytest.raises(RequestError, match="tokenizer"):
        next(engine.stream("x"))


def test_log_probabilities_are_left_out_on_demand():
    with Engine(make_model()) as engine:
        with_them, without = (
            engine.generate([[1, 2, 3]], max_tokens=5, temperature=0, logprobs=wanted)[0]
            for wanted in (True, False)
        )
    assert with_them.token_ids == without.token_ids
    assert len(with_them.logprobs) == 5 and without.logprobs == []
