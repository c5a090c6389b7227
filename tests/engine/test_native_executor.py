"""The native step against the torch decoder, and against itself: alone, in a batch, in pieces."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ayllu import native
from ayllu.engine.batch import Batch
from ayllu.engine.executors.native import NativeExecutor
from ayllu.engine.packed import matrices_of, supports
from ayllu.errors import RequestError
from ayllu.model.config import (
    AttentionSpec,
    LayerSpec,
    MLPSpec,
    ModelConfig,
    MoESpec,
    RopeScaling,
    RopeSpec,
    dense_layer,
)
from ayllu.model.decoder import Decoder

pytestmark = pytest.mark.skipif(not native.available(), reason="no native extension on this machine")

ATTENTION = AttentionSpec(4, 2, 24, RopeSpec(24, 5e4))
GROUPED = MoESpec(
    8,
    3,
    40,
    shared_hidden=56,
    router="sigmoid",
    choice_bias=True,
    groups=4,
    active_groups=2,
    group_score="top2",
    scale=1.7,
)
YARN = RopeSpec(12, 1e4, interleaved=True, scaling=RopeScaling("yarn", 4.0, 16))
CONFIGS = {
    "one kv head": ModelConfig(48, 131, (dense_layer(4, 1, 16, 72),) * 2, 200),
    "heads of their own": ModelConfig(64, 90, (dense_layer(5, 5, 8, 30),) * 2, 200, tied=False),
    "biases, window, chunk, no positions, uneven layers": ModelConfig(
        96,
        257,
        (
            LayerSpec(replace(ATTENTION, bias=True, out_bias=True, window=7), MLPSpec(100, bias=True)),
            LayerSpec(replace(ATTENTION, chunk=16, rope=None, scale=0.3), MLPSpec(64)),
        ),
        200,
        tied=False,
    ),
    "experts": ModelConfig(
        64,
        100,
        (LayerSpec(ATTENTION, GROUPED), LayerSpec(replace(ATTENTION, rope=YARN), MoESpec(6, 2, 40))),
        200,
        tied=False,
    ),
}
TABLES = np.arange(1, 10, dtype=np.int32).reshape(3, 3)


def random_model(config: ModelConfig, spread: float = 0.15) -> Decoder:
    generator = torch.Generator().manual_seed(0)
    model = Decoder(config).eval().requires_grad_(False)
    for weight in [*model.parameters(), *model.buffers()]:
        centre = 1.0 if weight.dim() == 1 else 0.0
        weight.copy_(centre + spread * torch.randn(weight.shape, generator=generator))
    return model


def batch(pieces: list[tuple[int, int, list[int]]], tables: np.ndarray = TABLES) -> Batch:
    """(row of the table, first position, tokens) of each sequence; all logits are wanted."""
    tokens = [t for _, _, ids in pieces for t in ids]
    positions = [first + i for _, first, ids in pieces for i in range(len(ids))]
    sequence = [row for row, _, ids in pieces for _ in ids]
    arrays = (np.array(a, np.int32) for a in (tokens, positions, sequence))
    return Batch(*arrays, tables, np.arange(len(tokens), dtype=np.int32))


def in_pieces(executor: NativeExecutor, tokens_ST: torch.Tensor, first: list[int]) -> torch.Tensor:
    """Prompts of different lengths in one batch, then token by token, all sequences together."""
    executor.reserve(10)
    rows, length = tokens_ST.shape
    out = torch.empty(rows, length, executor.vocab_size)
    logits = executor.step(batch([(r, 0, tokens_ST[r, :n].tolist()) for r, n in enumerate(first)]))
    for row, piece in enumerate(logits.split(first)):
        out[row, : first[row]] = piece
    for ahead in range(length):
        going = [r for r in range(rows) if first[r] + ahead < length]
        if going:
            pieces = [(r, first[r] + ahead, [int(tokens_ST[r, first[r] + ahead])]) for r in going]
            for row, got in zip(going, executor.step(batch(pieces)), strict=True):
                out[row, first[row] + ahead] = got
    return out


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("threads", [1, 2])
def test_float32_equals_the_decoder(name, threads):
    config = CONFIGS[name]
    model = random_model(config)
    tokens_ST = torch.randint(0, config.vocab_size, (3, 45), generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = in_pieces(NativeExecutor(model, "float32"), tokens_ST, [20, 13, 1])
    finally:
        torch.set_num_threads(before)
    want = model(tokens_ST)
    assert (got - want).abs().max() <= 5e-6 * want.abs().max()


@pytest.mark.parametrize(
    ("weights", "cache", "most"),
    [
        ("float32", "bfloat16", 0.02),
        ("bfloat16", "bfloat16", 0.03),
        ("int8", "int8", 0.06),
        ("int4", "bfloat16", 0.06),
    ],
)
@pytest.mark.parametrize("name", [n for n in CONFIGS if n != "experts"])  # rounding may change who is chosen
def test_rounded_weights_equal_a_decoder_with_those_weights(name, weights, cache, most):
    config = CONFIGS[name]
    model = random_model(config)
    executor = NativeExecutor(model, weights, cache=cache)
    tokens_ST = torch.randint(0, config.vocab_size, (3, 40), generator=torch.Generator().manual_seed(2))
    got = in_pieces(executor, tokens_ST, [17, 16, 1])
    for matrix_name, weight, _ in matrices_of(model):
        weight.copy_(executor.packed.matrices[matrix_name].dequantised())
    want = model(tokens_ST)
    assert (got - want).abs().max() <= most * want.abs().max()


@pytest.mark.parametrize(
    ("weights", "cache"),
    [("float32", "auto"), ("bfloat16", "auto"), ("int8", "auto"), ("int4", "auto"), ("float32", "int8")],
)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_bits_alone_and_in_a_batch(name, weights, cache):
    config = CONFIGS[name]
    executor = NativeExecutor(random_model(config), weights, cache=cache)
    tokens_ST = torch.randint(0, config.vocab_size, (3, 45), generator=torch.Generator().manual_seed(3))
    together = in_pieces(executor, tokens_ST, [20, 13, 1])
    other = NativeExecutor(executor.packed, cache=cache)
    other.reserve(5)
    table = np.array([[4, 1, 0]], np.int32)
    for at, token in enumerate(tokens_ST[0].tolist()):
        assert torch.equal(other.step(batch([(0, at, [token])], table))[0], together[0, at])
    for size in (1, 3, 8, 11):  # a prompt in chunks of any size
        for first in range(0, 45, size):
            chunk = tokens_ST[1, first : first + size].tolist()
            got = other.step(batch([(0, first, chunk)], table))
            assert torch.equal(got, together[1, first : first + size])


@pytest.mark.parametrize("weights", ["int8", "int4"])
@pytest.mark.parametrize("cache", ["float32", "int8"])
def test_levels_agree(weights, cache):
    """Whole numbers are multiplied in another way at each level, with the same result."""
    config = CONFIGS["one kv head"]
    model = random_model(config)
    tokens_ST = torch.randint(0, config.vocab_size, (3, 40), generator=torch.Generator().manual_seed(5))
    want = in_pieces(NativeExecutor(model, weights, cache=cache, level="portable"), tokens_ST, [17, 16, 1])
    for level in ("AVX2", "AVX-512"):
        try:
            executor = NativeExecutor(model, weights, cache=cache, level=level)
        except RuntimeError as error:
            assert "can't run" in str(error)
            continue
        got = in_pieces(executor, tokens_ST, [17, 16, 1])
        assert (got - want).abs().max() <= 0.02 * want.abs().max(), level


def test_blocks_travel():
    config = CONFIGS["one kv head"]
    executor = NativeExecutor(random_model(config), "int8", cache="int8")
    executor.reserve(4)
    tokens = list(range(20))
    table = np.array([[1, 2]], np.int32)
    executor.step(batch([(0, 0, tokens)], table))
    want = executor.step(batch([(0, 20, [7])], table))
    other = NativeExecutor(executor.packed, cache="int8")
    other.reserve(6)
    assert other.fingerprint == executor.fingerprint
    other.import_block(5, executor.export_block(1))
    other.import_block(3, executor.export_block(2))
    other.copy_block(5, 0)
    got = other.step(batch([(0, 20, [7])], np.array([[0, 3]], np.int32)))
    assert torch.equal(got, want)
    assert executor.export_block(1).numel() == executor.block_bytes


def test_refresh_takes_over_changed_weights():
    config = CONFIGS["experts"]
    model = random_model(config)
    executor = NativeExecutor(model, "float32")
    old = executor.fingerprint
    for weight in model.parameters():
        weight.mul_(1.1)
    executor.refresh()
    assert executor.fingerprint != old
    tokens_ST = torch.randint(0, config.vocab_size, (3, 20), generator=torch.Generator().manual_seed(4))
    want = model(tokens_ST)
    assert (in_pieces(executor, tokens_ST, [5, 5, 5]) - want).abs().max() <= 5e-6 * want.abs().max()


def test_growing_the_cache_keeps_it():
    executor = NativeExecutor(random_model(CONFIGS["one kv head"]), "float32")
    executor.reserve(2)
    table = np.array([[1]], np.int32)
    executor.step(batch([(0, 0, [3, 4, 5])], table))
    kept = executor.export_block(1)
    executor.reserve(50)
    assert torch.equal(executor.export_block(1), kept)


def test_what_it_cannot_do_is_said():
    config = ModelConfig(48, 64, (dense_layer(4, 2, 16, 72),), 100, logit_softcap=30.0)
    assert supports(config) is not None
    with pytest.raises(RequestError, match="native executor"):
        NativeExecutor(Decoder(config))
