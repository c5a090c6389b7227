"""Whatever is asked for: refused with a typed error before any work, or served; neighbours don't notice."""

import random
from dataclasses import fields

import pytest
from small_model import VOCABULARY
from test_engine import idle

from ayllu.engine.engine import Engine
from ayllu.engine.request import SamplingParams, ThinkingBudget
from ayllu.errors import RequestError

NASTY = [
    0, -1, 1, 2, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**30, 10**400, -(2**63), 1.5, 1e308,
    1e-308, 1e-45, -0.0, float("nan"), float("inf"), -float("inf"), 1 + 2j, True, None, "x", "", b"x",
    "\ud800", [], (), {}, (1,), ("a",), ("\ud800",), (2**64,), ((1, 2.0),), ((2**70, 1.0),),
    ((1, float("nan")),), ((1, 100),),
]  # fmt: skip
FIELDS = [field.name for field in fields(SamplingParams) if field.name not in ("grammar", "thinking")]


@pytest.mark.parametrize("seed", range(4))
def test_random_requests_are_served_or_refused_and_the_neighbours_stay_the_same(model, seed):
    rng = random.Random(seed)
    engine = Engine(model, max_sequences=4)
    usual = SamplingParams(max_tokens=10, seed=1)
    (alone,) = engine.generate([[30, 31, 32]], usual)
    refused = 0
    for _ in range(120):
        neighbour = engine.submit([30, 31, 32], usual)
        engine.step()
        wish = {"max_tokens": 3} | {name: rng.choice(NASTY) for name in rng.sample(FIELDS, rng.randint(1, 3))}
        steps, held = engine.stats().steps, engine.pool.held
        try:
            if rng.random() < 0.1:
                wish["thinking"] = ThinkingBudget(*rng.sample(NASTY, 3))
            engine.submit_many([40, 41] * rng.randint(1, 20), SamplingParams(**wish))
        except RequestError:
            refused += 1
            assert (engine.stats().steps, engine.pool.held) == (steps, held), "no work was done"
        while engine.busy:
            engine.step()
        assert neighbour.token_ids == alone.token_ids and neighbour.logprobs == alone.logprobs, wish
        assert idle(engine)
    assert 40 < refused < 120


@pytest.mark.parametrize("salt", ["\ud800", "\0", "ä" * 10_000])
def test_a_salt_may_be_any_string(model, salt):
    engine = Engine(model, cache_salt=salt)
    prompt = list(range(40))
    for wanted in (0, 32):
        (done,) = engine.generate([prompt], max_tokens=2, cache_salt=salt)
        assert done.cached_tokens == wanted
    assert engine.generate([prompt], max_tokens=2)[0].cached_tokens == 0


@pytest.mark.parametrize(("options", "says"), [
    ({"weights": "int3"}, "int3"),
    ({"weights": "int8" * 1000}, "int8"),
    ({"device": "cuda:99"}, "cuda:99"),
    ({"device": "abacus"}, "abacus"),
    ({"cache_bytes": 0}, "cache_bytes"),
    ({"cache_bytes": 1}, "one block"),
    ({"cache_blocks": 2, "cache_bytes": 1 << 20}, "same thing"),
    ({"cache_blocks": True}, "cache_blocks"),
    ({"cache": "int2"}, "int2"),
])  # fmt: skip
def test_engines_that_cannot_be(model, options, says):
    with pytest.raises(RequestError, match=says):
        Engine(model, **options)


def test_a_folder_isn_t_read_for_an_engine_that_cannot_be(tmp_path):
    for options in ({"weights": "int3"}, {"device": "cuda:99"}):
        with pytest.raises(RequestError):
            Engine(tmp_path / "nothing", **options)


def test_numbers_at_the_edge_of_the_vocabulary(engine):
    for ids in ([VOCABULARY], [2**31], [2**63], [2**70], [-(2**70)]):
        with pytest.raises(RequestError):
            engine.submit(ids, SamplingParams(max_tokens=1))
    engine.generate([[VOCABULARY - 1, 0]], max_tokens=1)
