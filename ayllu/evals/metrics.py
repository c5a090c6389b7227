"""Scores with their uncertainty.

* the Wilson score interval of a proportion (Wilson 1927): sane at 0 and at 1, where the usual
  plus-minus interval collapses to nothing;
* pass@k without bias from n samples of which c are right (Chen et al. 2021, equation 1);
* maj@k: the answer that most of k samples give (self-consistency, Wang et al. 2022);
* McNemar's exact test (1947) for two models on the same problems: only the problems on which they
  differ tell them apart.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

Z_95 = 1.959963984540054  # the normal quantile of a two-sided 95 % interval


def wilson(correct: float, n: int, z: float = Z_95) -> tuple[float, float]:
    """The interval of a proportion `correct / n`, both ends in [0, 1]; (0, 1) when n is 0.

    `correct` may also be a sum of n values from 0 to 1: they vary less than rights and wrongs of the same
    mean do, so that the interval is wide enough for them."""
    assert 0 <= correct <= n
    if n == 0:
        return 0.0, 1.0
    share, spread = correct / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    # At the ends one limit is exact; rounding must not push it inside.
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == n else min(1.0, centre + half)
    return low, high


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The chance that k samples drawn without replacement from n (of which `correct` are right) hold
    a right one: 1 - C(n-c, k) / C(n, k)."""
    assert 0 <= correct <= n and 1 <= k <= n
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def majority(answers: Sequence[Hashable | None]) -> Hashable | None:
    """The most frequent answer; the earliest of equals; None (no answer) only when all are None."""
    votes = Counter(answer for answer in answers if answer is not None)
    return max(votes, key=lambda answer: votes[answer]) if votes else None


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p that two models are equally good: of the problems on which they differ,
    `gained` went from wrong to right and `lost` from right to wrong (a fair coin if they are equal)."""
    differing = gained + lost
    fewer = min(gained, lost)
    tail = sum(math.comb(differing, i) for i in range(fewer + 1))
    return min(1.0, 2 * tail / 2**differing)
