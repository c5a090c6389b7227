"""A few thousand damaged files of every kind get typed errors; and the fuzz finds what it is for."""

from __future__ import annotations

import random
import time

import pytest

from .damage import damaged
from .rounds import run
from .samples import KINDS

LOT = 800


@pytest.mark.parametrize("first", range(0, 3 * LOT, LOT))
def test_damaged_files_get_typed_errors(first):
    done = run(first, LOT, time.monotonic() + 600)
    assert not done.failures, done.failures[0]
    assert done.cases == LOT and done.next_seed == first + LOT
    assert done.refused > LOT / 2, "most damage is noticed"
    assert done.read > LOT / 50, "and some is harmless: the samples are not refused as such"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("raises", "KeyError: 'an untyped error'"),
        ("takes gigabytes", "MemoryError"),
        ("takes megabytes", "MiB for a file of"),
        ("hangs", "more than 1 seconds"),
        ("crashes", "Segmentation fault"),
    ],
)
def test_it_finds(kind, words):
    done = run(0, 3, time.monotonic() + 300, [kind], worker="tests.fuzz.faulty")
    assert done.cases == 3 and done.next_seed == 3
    assert {failure["seed"] for failure in done.failures} == {0, 1, 2}
    assert words in done.failures[0]["failure"]


def test_it_lets_typed_errors_pass():
    done = run(0, 3, time.monotonic() + 300, ["refuses"], worker="tests.fuzz.faulty")
    assert (done.cases, done.refused, done.failures) == (3, 3, [])


def test_it_stops_in_time_and_says_where():
    done = run(70, 1000, time.monotonic() + 0.5)
    assert done.next_seed == 70 + done.cases < 1070


def test_a_seed_is_one_damage():
    data, other = bytes(range(256)), b"other" * 9
    spoilt = [damaged(random.Random(seed), data, other) for seed in range(200)]
    assert spoilt == [damaged(random.Random(seed), data, other) for seed in range(200)]
    assert len(set(spoilt)) > 150


def test_every_kind_has_its_name():
    assert len({kind.name for kind in KINDS}) == len(KINDS)
