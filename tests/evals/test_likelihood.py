"""Log-likelihoods by both ways are the decoder's own; windows count every token once."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ayllu
from ayllu.evals.items import Choice, Shots
from ayllu.evals.likelihood import (
    Pair,
    _single_is_cheaper,
    _singles,
    _whole,
    beginning,
    encode_pair,
    fits,
    log_probabilities,
    nats_of_texts,
    windows,
)
from ayllu.evals.subject import Subject
from ayllu.reason.foreign import Continuation

STORIES = Path(__file__).parents[1] / "fixtures" / "stories260K"
LONG = "Once upon a time there was a little girl named Lily. " * 8
WAYS = (" She liked cake.", " Zebra", " Tim", " She liked jam.")


@pytest.fixture(scope="module")
def engine():
    with ayllu.Engine(STORIES) as opened:
        yield opened


@pytest.fixture(scope="module")
def decoder():
    return ayllu.load(STORIES)


def own(decoder, pair):
    ids = [*pair.context, *pair.continuation]
    with torch.no_grad():
        log_p_TV = decoder(torch.tensor([ids])).float().log_softmax(-1)[0]
    begin = len(pair.context) - 1
    return [log_p_TV[begin + i, token].item() for i, token in enumerate(pair.continuation)]


@pytest.mark.parametrize("context", [LONG, "The dog", ""])
def test_both_ways_are_the_decoders_own(engine, decoder, context):
    pairs = [encode_pair(engine.tokenizer, context, way) for way in WAYS]
    whole, singles = _whole(engine, pairs), _singles(engine, pairs)
    for pair, nats in zip(pairs, whole, strict=True):
        asked = [singles[pair.context + pair.continuation[:i], t] for i, t in enumerate(pair.continuation)]
        assert nats == pytest.approx(own(decoder, pair), abs=1e-4)
        assert asked == pytest.approx(nats, abs=1e-5)
    assert log_probabilities(engine, [pairs])[0] == [pytest.approx(nats, abs=1e-5) for nats in whole]


def test_a_long_context_is_read_once_for_all_ways(engine):
    pairs = [encode_pair(engine.tokenizer, LONG + "The end.", way) for way in WAYS]
    assert _single_is_cheaper(pairs)
    assert not _single_is_cheaper([encode_pair(engine.tokenizer, "The dog", way) for way in WAYS])
    before = engine.stats().prefilled
    log_probabilities(engine, [pairs])
    read = engine.stats().prefilled - before
    assert read < 3 * len(pairs[0].context) < sum(len(p.context) + len(p.continuation) for p in pairs)


def test_groups_keep_their_order(engine):
    groups = [
        [encode_pair(engine.tokenizer, f"{name} ran.", way) for way in WAYS[:2]] for name in ("Tim", "Sue")
    ]
    done = []
    together = log_probabilities(engine, groups, done.append)
    assert done == [2]
    for group, found in zip(groups, together, strict=True):
        assert log_probabilities(engine, [group]) == [found]


def test_a_pair_is_parted_as_one_text(engine):
    tokenizer = engine.tokenizer
    pair = encode_pair(tokenizer, "The dog ", "ran")
    assert pair == encode_pair(tokenizer, "The dog", " ran"), "the space goes with what follows"
    assert [*pair.context, *pair.continuation] == [1, *tokenizer.encode("The dog ran")]
    empty = encode_pair(tokenizer, "", "The dog")
    assert empty.context == beginning(tokenizer) == (1,)


def test_what_fits_is_what_the_engine_takes(engine):
    context = (1,) + (5,) * 509
    just = Pair(context, (6,))
    assert fits(engine, just) and not fits(engine, Pair(context, (6, 7)))
    assert len(log_probabilities(engine, [[just]])[0][0]) == 1


@given(st.integers(1, 90), st.integers(3, 40), st.data())
def test_windows_count_every_token_once(count, length, draw):
    stride = draw.draw(st.integers(1, length - 1))
    ids, begin = list(range(1, count + 1)), (0,)
    found = windows(ids, begin, length, stride)
    assert [token for pair in found for token in pair.continuation] == ids
    for pair in found:
        assert len(pair.context) >= 1 and len(pair.context) + len(pair.continuation) <= length
        start = pair.context[0]
        assert [*pair.context, *pair.continuation] == list(
            range(start, start + len(pair.context + pair.continuation))
        )
    for pair in found[1:]:
        assert len(pair.context) >= length - stride


def test_bits_of_a_text_in_one_window_and_in_many(engine, decoder):
    ids = engine.tokenizer.encode(
        "Tim had a red ball and a small dog. One day, they went to the park to play."
    )
    exact = -sum(own(decoder, Pair((1,), tuple(ids))))
    (one,) = nats_of_texts(engine, [ids], (1,), length=511, stride=255)
    assert one == pytest.approx(exact, abs=1e-3)
    many = nats_of_texts(engine, [ids, ids], (1,), length=12, stride=4)
    assert many[0] == many[1] != one
    pieces = windows(ids, (1,), 12, 4)
    assert many[0] == pytest.approx(-sum(sum(own(decoder, piece)) for piece in pieces), abs=1e-3)
    assert abs(many[0] - one) < 0.5 * one, f"{many[0] / math.log(2):.1f} bits"


def test_a_row_that_does_not_fit_is_none_and_the_others_are_scored(engine):
    subject = Subject(engine, Continuation(engine.tokenizer))
    short = Choice("a", "", "", (("The dog", " ran"), ("The dog", " sat")), ("ran", "sat"), (0,))
    long = Choice("b", "", "", ((LONG * 6, " ran"), (LONG * 6, " sat")), ("ran", "sat"), (0,))
    ways = subject.ways([long, short], [Shots(), Shots()], lambda done: None)
    assert ways[0] is None and [way.characters for way in ways[1]] == [3, 3]
    assert all(way.alone is not None and len(way.alone) for way in ways[1])
