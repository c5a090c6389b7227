"""Metrics against brute force and published values."""

import itertools
import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ayllu.evals.metrics import Z_95, majority, mcnemar, pass_at_k, wilson

counts = st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts)
def test_wilson_ends_are_the_shares_that_the_sample_just_rejects(pair):
    """The definition: an end p solves |p_hat - p| = z sqrt(p (1-p) / n)."""
    correct, n = pair
    low, high = wilson(correct, n)
    share = correct / n
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert abs(share - end) == pytest.approx(
                Z_95 * math.sqrt(end * (1 - end) / n), rel=1e-6, abs=1e-9
            )


@given(counts)
def test_wilson_mirrors(pair):
    correct, n = pair
    low, high = wilson(correct, n)
    other = wilson(n - correct, n)
    assert (1 - high, 1 - low) == pytest.approx(other, abs=1e-12)


def test_wilson_known_values():
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)  # Newcombe 1998, table I, method 3
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=1e-4)


def test_wilson_covers():
    """Exact coverage by summing the binomial: near 95 % for middling shares."""
    n = 100
    for share in (0.1, 0.3, 0.5, 0.9):
        inside = sum(
            math.comb(n, c) * share**c * (1 - share) ** (n - c)
            for c in range(n + 1)
            if wilson(c, n)[0] <= share <= wilson(c, n)[1]
        )
        assert 0.93 < inside < 0.97


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_by_enumeration(triple):
    n, correct, k = triple
    samples = [True] * correct + [False] * (n - correct)
    draws = list(itertools.combinations(samples, k))
    assert pass_at_k(n, correct, k) == pytest.approx(float(Fraction(sum(map(any, draws)), len(draws))))


@given(st.integers(2, 200).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_pass_at_one_is_the_share_and_more_samples_never_hurt(pair):
    n, correct = pair
    assert pass_at_k(n, correct, 1) == pytest.approx(correct / n)
    values = [pass_at_k(n, correct, k) for k in range(1, n + 1)]
    assert values == sorted(values) and values[-1] == float(correct > 0)


@given(st.lists(st.sampled_from([None, "1", "2", "3"]), max_size=9))
def test_majority(answers):
    winner = majority(answers)
    given_ = [answer for answer in answers if answer is not None]
    if not given_:
        assert winner is None
        return
    most = max(given_.count(answer) for answer in given_)
    assert winner == next(answer for answer in given_ if given_.count(answer) == most)


@given(st.integers(0, 9), st.integers(0, 9))
def test_mcnemar_by_enumeration(gained, lost):
    n = gained + lost
    observed = abs(gained - lost)
    as_extreme = sum(abs(2 * sum(coins) - n) >= observed for coins in itertools.product((0, 1), repeat=n))
    assert mcnemar(gained, lost) == pytest.approx(as_extreme / 2**n)


def test_mcnemar_large():
    assert mcnemar(500, 500) == 1.0
    assert mcnemar(300, 100) < 1e-20
