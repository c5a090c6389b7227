"""Sampling: exact against slow references and transformers' own, on both paths; a row is its own affair."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import sample_one, sequence

from ayllu.engine import cuts, sampler
from ayllu.engine.request import Row, Sequence
from ayllu.errors import RequestError
from ayllu.native import ops


def draw(logits, sequences):
    return [s.token for s in sampler.sample(logits, [Row(s) for s in sequences])]


def allowed(logits, params):
    """The ids that the cuts leave, one token after another from the likeliest."""
    p = (logits.double() / params.temperature).softmax(-1)
    order = sorted(range(len(p)), key=lambda i: (-float(logits[i]), i))
    if params.top_k:
        order = order[: params.top_k]
    whole = sum(float(p[i]) for i in order)
    kept, mass = set(), 0.0
    for token in order:
        if (params.top_p == 1 or mass < params.top_p * whole) and p[token] >= params.min_p * p[order[0]]:
            kept.add(token)
        mass += float(p[token])
    return kept


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 2**63 - 1),
    vocab=st.integers(1, 60),
    top_k=st.sampled_from([0, 1, 2, 7, 10**30]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 1e-9]),
    min_p=st.sampled_from([0.0, 0.05, 0.9]),
    temperature=st.sampled_from([0.2, 1.0, 3.0]),
    first=st.sampled_from([1, 4, 1024]),
    reaches=st.sampled_from([(0.5, 2.0, np.inf), (10.0, np.inf)]),
)
def test_cuts_leave_what_they_say(seed, vocab, top_k, top_p, min_p, temperature, first, reaches):
    generator = torch.Generator().manual_seed(seed % 2**31)
    logits = 2 * torch.randn(1, vocab, generator=generator)
    one = sequence(seed, top_k=top_k, top_p=top_p, min_p=min_p, temperature=temperature)
    drawn = set()
    patch = pytest.MonkeyPatch()  # rows that lie deeper than the first look
    patch.setattr(cuts, "_FIRST", first)
    patch.setattr(cuts, "_REACHES", reaches)
    try:
        ids, weights = cuts.kept(logits[0].numpy(), one.params, temperature)
        p_V = sampler.probabilities(logits, [Row(one)])[0]
        for position in range(12):
            one.token_ids = [0] * position
            got = sample_one(logits[0], one)
            drawn.add(got.token)
            assert got.logprob == pytest.approx(float(logits.log_softmax(-1)[0, got.token]), abs=1e-5)
    finally:
        patch.undo()
    kept = allowed(logits[0], one.params)
    assert set(p_V.nonzero()[:, 0].tolist()) == kept
    assert set(ids.tolist()) == kept and drawn <= kept
    assert np.allclose(weights / weights.sum(), p_V[ids], atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    top_k=st.sampled_from([0, 1, 3, 20]),
    top_p=st.sampled_from([1.0, 0.9, 0.3]),
    min_p=st.sampled_from([0.0, 0.1]),
    temperature=st.sampled_from([0.5, 1.0, 1.7]),
    repetition=st.sampled_from([1.0, 1.3, 0.8]),
)
def test_the_distribution_is_that_of_transformers(seed, top_k, top_p, min_p, temperature, repetition):
    from transformers.generation import logits_process as hf

    vocab = 50
    logits = 3 * torch.randn(1, vocab, generator=torch.Generator().manual_seed(seed))
    options = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "temperature": temperature}
    one = sequence(prompt=(3, 5, 5), repetition_penalty=repetition, vocab=vocab, **options)
    for token in (7, 9):
        one.append(token, -1.0)
    ids = torch.tensor([[3, 5, 5, 7, 9]])
    steps = [hf.TemperatureLogitsWarper(temperature)]
    if repetition != 1:
        steps.insert(0, hf.RepetitionPenaltyLogitsProcessor(repetition))
    steps += [hf.TopKLogitsWarper(top_k)] if top_k else []
    steps += [hf.TopPLogitsWarper(top_p)] if top_p < 1 else []
    steps += [hf.MinPLogitsWarper(min_p)] if min_p else []
    theirs = logits.clone()
    for step in steps:
        theirs = step(ids, theirs)
    ours = sampler.probabilities(logits, [Row(one)])
    assert torch.allclose(ours, theirs.softmax(-1), atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), data=st.data())
def test_penalties_and_biases_are_as_documented(seed, data):
    vocab = 12
    token = st.integers(0, vocab - 1)
    prompt = data.draw(st.lists(token, min_size=1, max_size=6))
    output = data.draw(st.lists(token, max_size=8))
    bias = tuple(data.draw(st.lists(st.tuples(token, st.floats(-5, 5)), max_size=4)))
    options = {
        "repetition_penalty": data.draw(st.sampled_from([1.0, 1.5, 0.5])),
        "presence_penalty": data.draw(st.sampled_from([0.0, 0.7, -1.0])),
        "frequency_penalty": data.draw(st.sampled_from([0.0, 0.4, -0.3])),
        "logit_bias": bias,
    }
    logits = 2 * torch.randn(vocab, generator=torch.Generator().manual_seed(seed))
    wanted = logits.double().tolist()
    for i in range(vocab):
        if i in prompt or i in output:
            r = options["repetition_penalty"]
            wanted[i] = wanted[i] / r if wanted[i] > 0 else wanted[i] * r
        wanted[i] -= options["frequency_penalty"] * output.count(i)
        wanted[i] -= options["presence_penalty"] * (i in output)
        wanted[i] += sum(b for t, b in bias if t == i)
    expected = torch.tensor(wanted).softmax(-1).float()
    cut = data.draw(st.integers(0, len(output)))  # the rest as drafts
    one = sequence(prompt=prompt, vocab=vocab, **options)
    for t in output[:cut]:
        one.append(t, 0.0)
    rows = [Row(one, tuple(output[cut:]))]
    for _ in range(2):  # looking changes nothing
        assert torch.allclose(sampler.probabilities(logits[None], rows)[0], expected, atol=1e-6)


def chi_square(counts, p):
    """How many standard deviations a chi-square lies above its mean; outcomes under 5 expected are joined."""
    n = counts.sum()
    rare = p * n < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    p = np.append(p[~rare], p[rare].sum())
    assert counts[-1] == 0 or p[-1] > 0
    counts, p = counts[p > 0], p[p > 0]
    if len(p) < 2:
        return 0.0
    statistic = ((counts - n * p) ** 2 / (n * p)).sum()
    return (statistic - (len(p) - 1)) / (2 * (len(p) - 1)) ** 0.5


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 12},
        {"top_p": 0.8, "temperature": 1.4},
        {"min_p": 0.1, "presence_penalty": 1.0},
        {"repetition_penalty": 1.6, "frequency_penalty": 0.5, "logit_bias": ((3, 2.0), (4, -2.0))},
    ],
)
@pytest.mark.parametrize("fused", [True, False])
def test_draws_have_the_distribution(monkeypatch, options, fused):
    if not fused:
        monkeypatch.setattr(ops, "usable", lambda _: False)
    vocab, n = 40, 6_000
    logits = 2 * torch.randn(vocab, generator=torch.Generator().manual_seed(5))
    sequences = [sequence(seed, prompt=(1, 2), vocab=vocab, **options) for seed in range(n // 4)]
    counts, drawn = np.zeros(vocab), []
    for _ in range(4):
        first = sequences[0]
        p = sampler.probabilities(logits[None], [Row(first)])[0].double().numpy()
        drawn = draw(logits.expand(len(sequences), -1), sequences)
        counts += np.bincount(drawn, minlength=vocab)
        for one in sequences:  # the same text in all, so that all have the same distribution
            one.append(9, 0.0)
        if options.keys() & {"presence_penalty", "repetition_penalty"}:
            assert chi_square(np.bincount(drawn, minlength=vocab).astype(float), p) < 5
            counts[:] = 0
    if counts.any():
        assert chi_square(counts, p) < 5


def test_neighbouring_seeds_and_places_are_independent():
    logits = torch.zeros(1, 16)
    table = np.array(
        [[draw(logits, [sequence(seed, at)])[0] for at in range(40)] for seed in range(40)], float
    )
    for one, other in ((table[1:], table[:-1]), (table[:, 1:], table[:, :-1])):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.1


def test_both_paths_draw_the_same_tokens(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(500, 333, generator=generator)
    rows = [Row(sequence(n, n % 7, temperature=(0.0, 0.5, 1.0)[n % 3])) for n in range(500)]
    fused = sampler.sample(logits, rows)
    monkeypatch.setattr(ops, "usable", lambda _: False)
    plain = sampler.sample(logits, rows)
    same = [a.token == b.token for a, b in zip(fused, plain, strict=True)]
    assert sum(same) >= 499, "but for a rounded border"
    for a, b in zip(fused, plain, strict=True):
        assert a.token != b.token or a.logprob == pytest.approx(b.logprob, abs=1e-4)


@pytest.mark.parametrize("path", ["fused", "plain", "special"])
@pytest.mark.parametrize("temperature", [0.0, 1e-40, 1e-6])
def test_ties_and_cold_rows_take_the_lowest_id(monkeypatch, path, temperature):
    if path == "plain":
        monkeypatch.setattr(ops, "usable", lambda _: False)
    logits = torch.zeros(3, 70)
    logits[1, 40:] = 1
    logits[2, 69] = 1
    options = {"top_p": 0.9} if path == "special" else {}
    rows = [sequence(n, temperature=temperature, **options) for n in range(3)]
    assert draw(logits, rows) == [0, 40, 69]


def test_equals_at_the_border_of_a_cut_are_the_lowest_ids():
    logits = torch.tensor([[1.0, 3.0, 1.0, 1.0, 0.0]])
    kept = partial(sampler.probabilities, logits)
    for options in ({"top_k": 3}, {"top_p": 0.79}):
        assert kept([Row(sequence(**options))])[0].nonzero()[:, 0].tolist() == [0, 1, 2]


# ---- a row is its own affair
def special_rows(vocab):
    make = partial(sequence, vocab=vocab)
    return [
        make(1, top_k=3),
        make(2, top_p=0.5, temperature=1.3),
        make(3, repetition_penalty=1.8, top_logprobs=4),
        make(4, min_tokens=5, stop_ids=(7,)),
        make(5, logit_bias=((0, 100.0),)),
        make(6, min_p=0.2, presence_penalty=1.0),
        make(7, temperature=0.0, frequency_penalty=1.0),
    ]


@pytest.mark.parametrize("fused", [True, False])
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6))
def test_neighbours_change_no_bit(fused, seed):
    vocab, patch = 1500, pytest.MonkeyPatch()
    if not fused:
        patch.setattr(ops, "usable", lambda _: False)
    try:
        rng = np.random.default_rng(seed)
        sequences = [sequence(n, n % 5, temperature=(0.0, 0.7, 1.0)[n % 3]) for n in range(9)]
        sequences += special_rows(vocab)
        logits = 2 * torch.randn(len(sequences), vocab, generator=torch.Generator().manual_seed(seed))
        rows = [Row(s) for s in sequences]
        alone = [sampler.sample(logits[i : i + 1], [row])[0] for i, row in enumerate(rows)]
        order = rng.permutation(len(rows))[: rng.integers(1, len(rows) + 1)].tolist()
        together = sampler.sample(logits[order], [rows[i] for i in order])
        assert together == [alone[i] for i in order]
    finally:
        patch.undo()


def test_a_row_that_fails_touches_nobody():
    vocab = 40
    logits = torch.randn(3, vocab, generator=torch.Generator().manual_seed(0))
    others = [sequence(1), sequence(2, top_p=0.7)]
    stuck = sequence(3, min_tokens=3, stop_ids=tuple(range(vocab)), vocab=vocab)
    got = sampler.sample(logits, [Row(others[0]), Row(stuck), Row(others[1])])
    assert stuck.state.error is not None and stuck.state.error.code == "grammar_failed"
    assert stuck.state.accept(0) == "error"
    assert [got[0], got[2]] == sampler.sample(logits[[0, 2]], [Row(s) for s in others])


# ---- what a sequence gets
def test_min_tokens_holds_every_stop_back():
    logits = torch.zeros(20)
    logits[[4, 6]] = 50.0
    one = sequence(min_tokens=3, stop_ids=(4, 6, 999), vocab=20, temperature=0.0)
    for _ in range(3):
        one.append(sample_one(logits, one).token, 0.0)
    assert not one.finished and not {4, 6} & set(one.token_ids)
    one.append(sample_one(logits, one).token, 0.0)
    assert one.token_ids[-1] == 4 and one.finish_reason == "stop"
    drafted = sequence(min_tokens=3, stop_ids=(4, 6), vocab=20, temperature=0.0)
    assert sample_one(logits, drafted, drafts=(1, 1)).token not in (4, 6)
    assert sample_one(logits, drafted, drafts=(1, 1, 1)).token == 4


@settings(deadline=None, max_examples=40)
@given(values=st.lists(st.sampled_from([0.0, 1.0, 2.0, -3.0]), min_size=1, max_size=12), k=st.integers(1, 15))
def test_top_logprobs_are_of_the_unmodified_model(values, k):
    logits = torch.tensor(values)
    options = {"logit_bias": ((0, -50.0),), "temperature": 0.3, "top_k": 2}
    got = sample_one(logits, sequence(top_logprobs=k, vocab=len(values), **options))
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
    assert [token for token, _ in got.top] == order
    expected = logits.log_softmax(-1)
    assert [value for _, value in got.top] == pytest.approx([float(expected[i]) for i in order], abs=1e-6)
    assert got.logprob == pytest.approx(float(expected[got.token]), abs=1e-6)


def test_plain_requests_keep_no_state():
    assert sequence(vocab=50, temperature=0.3, top_k=4, top_p=0.5, stop_ids=(3,)).state is None


@pytest.mark.parametrize(
    "options",
    [
        {"logit_bias": ((50, 1.0),)},
        {"stop_strings": ("x",)},  # there is no tokenizer
        {"stop_strings": ("x" * 20_000,)},
    ],
)
def test_what_does_not_fit_the_model_is_refused(options):
    with pytest.raises(RequestError):
        sequence(vocab=50, **options)


def test_best_of_ranks_by_the_mean():
    def done(reason, *logprobs):
        one = Sequence(0, [1], sequence().params, 9, 0)
        one.logprobs, one.finish_reason = list(logprobs), reason
        return one

    long, short, failed = done("stop", *[-1.0] * 50), done("stop", -2.0), done("error", -0.1)
    assert sampler.best([short, failed, long], 2) == [long, short]
    assert sampler.best([failed, short], 2) == [short, failed]
    assert sampler.mean_logprob(done("stop")) == 0


def test_random_numbers_are_even():
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
