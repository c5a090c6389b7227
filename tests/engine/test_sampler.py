"""Sampling on the torch path (cuts, other devices): exact against a slow reference."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ayllu.engine import sampler
from ayllu.engine.request import SamplingParams, Sequence
from ayllu.native import ops


def sequence(seed=0, position=0, **options):
    return Sequence(0, [1], SamplingParams(**options), 100, seed, token_ids=[0] * position)


def allowed(logits, params):
    """The ids that the cuts leave, one token after another from the likeliest."""
    p = (logits.double() / params.temperature).softmax(-1)
    order = sorted(range(len(p)), key=lambda i: (-float(p[i]), i))
    kept, mass = set(), 0.0
    for rank, token in enumerate(order):
        if params.top_k and rank >= params.top_k:
            break
        if mass < params.top_p and p[token] >= params.min_p * p[order[0]]:
            kept.add(token)
        mass += float(p[token])
    return kept, p


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 2**63 - 1),
    vocab=st.integers(1, 60),
    top_k=st.sampled_from([0, 1, 2, 7, 10**30]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 1e-9]),
    min_p=st.sampled_from([0.0, 0.05, 0.9]),
    temperature=st.sampled_from([0.2, 1.0, 3.0]),
)
def test_cuts_leave_what_they_say(seed, vocab, top_k, top_p, min_p, temperature):
    generator = torch.Generator().manual_seed(seed % 2**31)
    logits = 2 * torch.randn(1, vocab, generator=generator)
    one = sequence(seed, top_k=top_k, top_p=top_p, min_p=min_p, temperature=temperature)
    kept, _ = allowed(logits[0], one.params)
    drawn = set()
    for position in range(30):
        one.token_ids = [0] * position
        (token,), (logprob,) = sampler.sample(logits, [one])
        drawn.add(token)
        assert logprob == pytest.approx(float(logits.log_softmax(-1)[0, token]), abs=1e-5)
    assert drawn <= kept


def test_both_paths_draw_the_same_tokens(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(500, 333, generator=generator)
    rows = [sequence(n, n % 7, temperature=(0.0, 0.5, 1.0)[n % 3]) for n in range(500)]
    fused = sampler.sample(logits, rows)
    monkeypatch.setattr(ops, "decoding_usable", lambda _: False)
    plain = sampler.sample(logits, rows)
    assert sum(a != b for a, b in zip(fused[0], plain[0], strict=True)) <= 1, "but for a rounded border"
    assert np.allclose(fused[1], plain[1], atol=1e-4)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("temperature", [0.0, 1e-40, 1e-6])
def test_ties_and_cold_rows_take_the_lowest_id(monkeypatch, fused, temperature):
    if not fused:
        monkeypatch.setattr(ops, "decoding_usable", lambda _: False)
    logits = torch.zeros(3, 70)
    logits[1, 40:] = 1
    logits[2, 69] = 1
    rows = [sequence(n, temperature=temperature) for n in range(3)]
    assert sampler.sample(logits, rows)[0] == [0, 40, 69]


def test_a_cut_row_beside_greedy_ones():
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0]] * 3)
    rows = [sequence(temperature=0.0), sequence(top_k=1), sequence(top_p=0.01)]
    assert sampler.sample(logits, rows)[0] == [1, 1, 1]


def test_random_numbers_are_even_and_of_one_seed_and_position():
    n = 200_000
    seeds = np.arange(n, dtype=np.uint64) % np.uint64(1000)
    counters = np.arange(n, dtype=np.uint64) // np.uint64(1000)
    values = sampler.uniform(seeds, counters)
    assert values.min() > 0 and values.max() < 1 and len(set(values.tolist())) == n
    counts = np.histogram(values, 100, (0, 1))[0]
    assert ((counts - n / 100) ** 2 / (n / 100)).sum() < 99 + 5 * (2 * 99) ** 0.5
    table = values.reshape(-1, 1000)
    for one, other in ((table[1:], table[:-1]), (table[:, 1:], table[:, :-1])):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.01
    assert sampler.uniform(seeds[5:6], counters[5:6])[0] == values[5]
