"""bench/same_text.py in small: greedy text alone, in a batch of 64 and after a prefix hit, bit for bit."""

import importlib.util
import random
import sys
from pathlib import Path

import pytest

from ayllu import native
from ayllu.engine.batch import BLOCK

pytestmark = pytest.mark.skipif(not native.available(), reason="no native extension on this machine")


def _bench(name):
    path = Path(__file__).parents[2] / "bench" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"bench_{name}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


same_text = _bench("same_text")


@pytest.mark.parametrize(("model", "weights", "cache"), [
    ("stories", "int8", "auto"),
    ("stories", "float32", "int8"),
    ("random", "int4", "int8"),
    ("random", "bfloat16", "auto"),
])  # fmt: skip
def test_greedy_text_is_the_same_alone_in_a_batch_and_after_a_hit(model, weights, cache, tmp_path):
    packed = same_text.opened(str(same_text.STORIES) if model == "stories" else model, weights)
    prompts = same_text.prompts_of(70, packed.config.vocab_size, 60)
    said = same_text.compare(packed, prompts, tokens=8, cache=cache, disk=tmp_path / "cache")
    assert said["identical"] == 70 and set(said["same_as_alone"].values()) == {70}
    long = sum(len(prompt) > BLOCK for prompt in prompts)
    hits = said["prompts_wholly_from_the_cache"]
    assert [hits[how] for how in hits] == [0, 0, long, long, long], "it was the cache that was compared"
    assert said["distinct_texts"] > 30


def test_a_difference_is_found(monkeypatch):
    packed = same_text.opened(str(same_text.STORIES), "float32")
    prompts = same_text.prompts_of(5, packed.config.vocab_size, 40)
    ways = same_text.ways

    def altered(*arguments):
        for number, (how, done) in enumerate(ways(*arguments)):
            if number == 2:
                done[random.Random(0).randrange(5)].token_ids[-1] ^= 1
            yield how, done

    monkeypatch.setattr(same_text, "ways", altered)
    assert same_text.compare(packed, prompts, tokens=4)["identical"] == 4
