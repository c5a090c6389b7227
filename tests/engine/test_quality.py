"""The quality report: what it says of text that the model foretells, and of text that it doesn't."""

import random

import pytest
from small_model import VOCABULARY, make_model

from ayllu import native, quantizing
from ayllu.engine.engine import Engine
from ayllu.engine.packed import pack_model
from ayllu.engine.quality import Text, compare

pytestmark = pytest.mark.skipif(not native.available(), reason="no native extension on this machine")


def test_worse_than_chance_is_said():
    model = make_model()
    exact, packed = pack_model(model, "float32"), pack_model(model, "int8")
    rng = random.Random(0)
    own = Engine(model).generate([[n] for n in range(6)], max_tokens=60, temperature=0)
    texts = {
        "held_out_text": [Text([rng.randrange(VOCABULARY) for _ in range(80)]) for _ in range(3)],
        "conversations": [Text([n, *done.token_ids]) for n, done in enumerate(own)],
    }
    quality = {kind: compare(exact, packed, found) for kind, found in texts.items()}
    assert [q["worse_than_chance"] for q in quality.values()] == [True, False]
    assert quality["held_out_text"]["perplexity_float32"] > VOCABULARY
    assert all(q["kl_mean"] < 0.05 for q in quality.values())
    said = {"model": "m", "weights": "int8", "bits_per_weight": 8.5, "bytes_before": 4, "bytes_after": 1}
    said |= {"reference": "float32", "quality": quality}
    shown = quantizing.page(said).splitlines()
    assert [n for n, line in enumerate(shown) if "worse than chance" in line] == [5], (
        "the first text's last line"
    )
    assert "held-out text worse than chance" in quantizing._section(said)
