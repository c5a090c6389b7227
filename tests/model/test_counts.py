"""What is counted from a description against what a decoder built from it has and does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from ayllu.model import counts
from ayllu.model.config import (
    AttentionSpec,
    LatentSpec,
    LayerSpec,
    MLPSpec,
    ModelConfig,
    MoESpec,
    RopeSpec,
)
from ayllu.model.decoder import Decoder

ROPE = RopeSpec(8)
PLAIN = AttentionSpec(6, 2, 8, ROPE)
BIASED = AttentionSpec(4, 4, 12, None, bias=True, out_bias=True)
NORMED = AttentionSpec(4, 1, 8, ROPE, qk_norm="rms", window=9)
L2 = AttentionSpec(4, 2, 8, ROPE, qk_norm="l2", chunk=7)
LATENT = LatentSpec(3, None, 20, 10, 8, 6, ROPE)
LATENT_QUERIES = LatentSpec(3, 14, 20, 10, 8, 6, ROPE, bias=True)
GATED, UNGATED = MLPSpec(44), MLPSpec(36, "gelu", gated=False, bias=True)
BIASED_GATED = MLPSpec(28, bias=True)
EXPERTS = MoESpec(5, 2, 12, choice_bias=True)
SHARED = MoESpec(4, 1, 16, shared_hidden=24, router="sigmoid", weigh_input=True)


def model(*layers: LayerSpec, **more: object) -> ModelConfig:
    return ModelConfig(48, 67, layers, 64, **more)  # type: ignore[arg-type]


CONFIGS = {
    "plain": model(LayerSpec(PLAIN, GATED)),
    "untied, two kinds": model(LayerSpec(NORMED, GATED), LayerSpec(L2, BIASED_GATED), tied=False),
    "GPT-2's": model(LayerSpec(BIASED, UNGATED), norm="layer", norm_bias=True, positions=64),
    "PaLM's": model(*[LayerSpec(AttentionSpec(6, 1, 8, ROPE), GATED, parallel=True)] * 2, norm="layer"),
    "experts": model(LayerSpec(PLAIN, GATED), LayerSpec(PLAIN, EXPERTS), LayerSpec(PLAIN, SHARED)),
    "latent": model(LayerSpec(LATENT, SHARED), LayerSpec(LATENT_QUERIES, EXPERTS), tied=False),
}


def built(config: ModelConfig) -> Decoder:
    with torch.device("meta"):
        return Decoder(config)


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_the_decoder(name):
    config = CONFIGS[name]
    weights = dict(built(config).named_parameters())
    assert counts.parameters(config) == sum(w.numel() for w in weights.values())
    tables = ("embedding.weight", "head.weight", "positions.weight")
    assert counts.embedding_parameters(config) == sum(w.numel() for n, w in weights.items() if n in tables)
    unused = sum(
        w.numel() * (spec.mlp.experts - spec.mlp.active) // spec.mlp.experts
        for index, spec in enumerate(config.layers)
        for n, w in weights.items()
        if n in (f"blocks.{index}.mlp.gate_up", f"blocks.{index}.mlp.down") and isinstance(spec.mlp, MoESpec)
    )
    assert counts.active_parameters(config) == counts.parameters(config) - unused
    assert (unused > 0) == (name in ("experts", "latent"))


@pytest.mark.parametrize("name", CONFIGS)
def test_operations_are_those_that_torch_counts(name):
    """Matrix products of a forward pass, as torch's own counter sees them; attention apart."""
    config = CONFIGS[name]
    decoder = Decoder(config).initialise(0).eval()
    tokens_BT = torch.randint(67, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        decoder(tokens_BT)
    seen = counter.get_flop_counts()["Global"]
    products = sum(n for op, n in seen.items() if str(op) in ("aten.mm", "aten.addmm", "aten._grouped_mm"))
    assert products == 32 * counts.forward_flops_per_token(config, 0)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("length", [1, 8, 20, 64])
def test_the_average_token_sees_what_the_masks_leave(name, length):
    """Against the masks themselves, token by token (a token's own place counts half)."""
    config = CONFIGS[name]
    scores = counts.forward_flops_per_token(config, length) - counts.forward_flops_per_token(config, 0)
    wanted = 0.0
    for spec in config.attentions:
        channels = (
            2 * spec.heads * spec.head_dim
            if isinstance(spec, AttentionSpec)
            else spec.heads * (spec.nope_dim + spec.rope_dim + spec.v_dim)
        )
        seen = 0.0
        for at in range(length):
            first = at - spec.window if spec.window else 0
            if spec.chunk:
                first = at // spec.chunk * spec.chunk
            seen += at + 0.5 - max(0, first) - (0.5 if first > 0 and spec.window else 0)
        wanted += 2 * channels * seen / length
    assert scores == pytest.approx(wanted, rel=0.03)
    assert counts.train_flops_per_token(config, length) == 3 * counts.forward_flops_per_token(config, length)


def test_training_takes_six_operations_a_weight_and_scores():
    config = CONFIGS["plain"]
    matrices = sum(w.numel() for n, w in built(config).named_parameters() if w.dim() == 2)
    assert counts.train_flops_per_token(config, 0) == 6 * matrices  # the tied table once, as the head
    scores = counts.train_flops_per_token(config, 50) - counts.train_flops_per_token(config, 0)
    # Scores and values: 2 products of 2 operations, forward once and backward twice, half masked.
    assert scores == pytest.approx(3 * 2 * 2 * 25 * 6 * 8)


def test_bytes_of_weights():
    config = model(LayerSpec(AttentionSpec(4, 4, 16, ROPE), MLPSpec(96)))
    vectors = 3 * 48 * 4
    whole = 67 * 48 + 3 * 64 * 48 + 48 * 64 + 2 * 96 * 48 + 48 * 96
    filled = 48 * 64 + 48 * 96  # rows of 64 and 96: whole groups of 32; 48 is none
    assert counts.weight_bytes(config, "float32") == 4 * whole + vectors == 4 * counts.parameters(config)
    assert counts.weight_bytes(config, "bfloat16") == 2 * whole + vectors
    assert counts.weight_bytes(config, "int8") == 2 * (whole - filled) + filled * 34 // 32 + vectors
    assert counts.weight_bytes(config, "int4") == 2 * (whole - filled) + filled * 18 // 32 + vectors


def test_a_token_reads_its_own_experts_and_the_head():
    config = CONFIGS["latent"]
    read = counts.weight_bytes(config, "float32", active=True)
    assert read == 4 * (counts.active_parameters(config) - 67 * 48)  # own head; the table is looked up
    tied = CONFIGS["plain"]
    assert counts.weight_bytes(tied, "float32", active=True) == 4 * counts.parameters(tied)


def test_the_cache_ends_at_windows_and_chunks():
    config = CONFIGS["untied, two kinds"]  # one layer with a window of 9, one with chunks of 7
    kept = [min(n, 9) * 1 * 16 + min(n, 7) * 2 * 16 for n in range(1, 65)]
    assert [counts.cache_elements(config, n) for n in range(1, 65)] == kept
    assert counts.cache_elements(CONFIGS["latent"], 10) == 2 * 10 * (20 + 8)
    assert (
        counts.cache_bytes(config, 5, "bfloat16")
        == 2 * kept[4]
        == 5 * counts.cache_growth(config, "bfloat16")
    )


@given(room=st.integers(0, 10_000), name=st.sampled_from(sorted(CONFIGS)))
def test_the_longest_cache_fits_and_one_more_token_doesn_t(room, name):
    config = CONFIGS[name]
    longest = counts.longest_cache(config, room, "float32")
    assert 0 <= longest <= config.context
    assert counts.cache_bytes(config, longest, "float32") <= room
    if longest < config.context:
        assert counts.cache_bytes(config, longest + 1, "float32") > room
