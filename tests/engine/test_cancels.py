"""bench/cancels.py in small: cancels at random moments leave no block behind, and a leak would be seen."""

import importlib.util
import sys
from pathlib import Path

import pytest
from small_model import make_model

from ayllu.engine.engine import Engine


def _bench():
    path = Path(__file__).parents[2] / "bench" / "cancels.py"
    spec = importlib.util.spec_from_file_location("bench_cancels", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cancels = _bench()


def small_engine(model):
    return Engine(
        model, max_sequences=6, max_waiting=12, cache_blocks=30, prefill_tokens=24, speculate="ngram"
    )


@pytest.fixture(scope="module")
def roomy():
    return make_model(context=300)


def test_cancels_leave_nothing(roomy):
    said = cancels.cancel_many(small_engine(roomy), 300)
    assert said["cancels"] == 300 and said["leaked_blocks"] == 0
    assert min(said["cancelled_while"].values()) > 10, "at all moments"
    assert said["preemptions"] > 5 and said["tokens_from_the_cache"] > 100


def test_a_leak_is_seen(roomy, monkeypatch):
    engine = small_engine(roomy)
    release, count = engine.pool.release, 0

    def forgetful(block):
        nonlocal count
        count += 1
        if count != 50:
            release(block)

    monkeypatch.setattr(engine.pool, "release", forgetful)
    assert cancels.cancel_many(engine, 100)["leaked_blocks"] > 0
