"""Published shapes have their published sizes."""

from __future__ import annotations

import time

import pytest
import torch

from ayllu.errors import InputNotFoundError
from ayllu.model import counts
from ayllu.model.config import LatentSpec, MoESpec
from ayllu.model.decoder import Decoder
from ayllu.model.presets import number, preset, presets

NAMES = list(presets())


def unit(text: str) -> float:
    """What the last published digit stands for: "6.7B" -> 0.1e9."""
    digits = text[:-1].partition(".")[2]
    return number("1" + text[-1]) / 10 ** len(digits)


@pytest.mark.parametrize("name", NAMES)
def test_the_count_is_the_published_one(name):
    found = preset(name)
    ours, published = counts.parameters(found.config()) + found.besides, number(found.total)
    # Within 1 %, or the same in the digits that were published (Qwen3's 1.72 billion are called 1.7).
    assert abs(ours / published - 1) <= 0.01 or abs(ours - published) <= unit(found.total) / 2
    assert found.source and found.title


@pytest.mark.parametrize("name", [name for name in NAMES if preset(name).active])
def test_the_active_weights_are_the_published_ones(name):
    """To the last published digit; publishers differ in whether a table that is looked up is active."""
    found = preset(name)
    config, published = found.config(), number(found.active)
    active = counts.active_parameters(config)
    looked_up = 0 if config.tied else config.vocab_size * config.width
    assert min(abs(active - published), abs(active - looked_up - published)) <= unit(found.active)
    assert active < 0.4 * counts.parameters(config)


@pytest.mark.parametrize("name", [name for name in NAMES if not preset(name).active])
def test_a_model_that_says_no_active_weights_uses_all(name):
    config = preset(name).config()
    assert counts.active_parameters(config) == counts.parameters(config)


def test_those_that_are_asked_for_are_there():
    wanted = [
        *(f"llama-{size}" for size in ("7b", "13b", "33b", "65b")),
        *(f"llama-2-{size}" for size in ("7b", "13b", "70b")),
        *("llama-3-8b", "llama-3-70b", "llama-3.1-405b", "llama-3.2-1b", "llama-3.2-3b"),
        *("llama-4-scout", "llama-4-maverick", "llama-4-behemoth"),
        *("mistral-7b", "mixtral-8x7b", "mixtral-8x22b", "deepseek-v3", "gpt-3-175b", "palm-540b"),
        *(f"qwen2.5-{size}" for size in ("0.5b", "1.5b", "3b", "7b", "14b", "32b", "72b")),
        *(f"qwen3-{size}" for size in ("0.6b", "1.7b", "4b", "8b", "14b", "32b", "235b-a22b")),
    ]
    assert not set(wanted) - set(NAMES)
    assert [name for name in NAMES if preset(name).estimate] == ["llama-4-behemoth"]


def test_shapes_that_are_known_otherwise():
    """A few facts from the papers' text rather than from configs."""
    llama = preset("llama-2-70b").config()
    assert {(a.heads, a.kv_heads) for a in llama.attentions} == {(64, 8)}  # grouped queries, section 2.2
    v3 = preset("deepseek-v3").config()
    assert [isinstance(layer.mlp, MoESpec) for layer in v3.layers] == [False] * 3 + [True] * 58
    assert all(isinstance(a, LatentSpec) and a.cache.elements == 576 for a in v3.attentions)
    assert (
        preset("deepseek-v2-lite").config().attentions[0].q_rank is None
    )  # appendix B: queries aren't compressed
    gpt3 = preset("gpt-3-175b").config()
    assert [bool(a.window) for a in gpt3.attentions[:4]] == [
        False,
        True,
        False,
        True,
    ]  # alternating, section 2.1
    palm = preset("palm-540b").config()
    assert all(layer.parallel and layer.attention.kv_heads == 1 for layer in palm.layers)
    maverick = preset("llama-4-maverick").config()
    assert sum(isinstance(layer.mlp, MoESpec) for layer in maverick.layers) == 24  # every second
    assert [a.rope is None for a in maverick.attentions[:8]] == [False, False, False, True] * 2
    assert all(a.window == 4096 for a in preset("mistral-7b").config().attentions)
    assert all(a.window is None for a in preset("mistral-nemo-12b").config().attentions)
    assert preset("llama-3.2-1b").config().attentions[0].rope.scaling.factor == 32


@pytest.mark.parametrize(
    "name", ["llama-4-behemoth", "deepseek-v3", "gpt-3-175b", "palm-540b", "llama-3.2-1b"]
)
def test_a_decoder_of_that_shape_has_as_many_without_memory(name):
    config, began = preset(name).config(), time.perf_counter()
    with torch.device("meta"):
        decoder = Decoder(config)
    assert sum(w.numel() for w in decoder.parameters()) == counts.parameters(config)
    assert time.perf_counter() - began < 30


@pytest.mark.parametrize(
    ("typo", "meant"), [("lama-7b", "llama-7b"), ("gpt3-175b", "gpt-3-175b"), ("Qwen3-8", "qwen3-8b")]
)
def test_a_typo_names_the_nearest(typo, meant):
    with pytest.raises(InputNotFoundError, match=typo) as caught:
        preset(typo)
    assert meant in caught.value.fix


def test_nothing_is_near_to_nonsense():
    with pytest.raises(InputNotFoundError) as caught:
        preset("%%%%")
    assert "lists the presets" in caught.value.fix
