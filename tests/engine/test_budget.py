"""Thinking budgets: never longer, never shorter, never twice; with and without a model's own will."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import go_on, sample_one, sequence

from ayllu.engine.budget import CLOSE_RANK
from ayllu.engine.request import ThinkingBudget
from ayllu.errors import RequestError

OPEN, CLOSE, STOP, VOCAB = 5, 6, 2, 40


def budget(**options):
    return ThinkingBudget(OPEN, CLOSE, **options)


def wild(seed):
    """Logits that change with every token, with the control tokens among the likely ones."""

    def logits(one):
        generator = torch.Generator().manual_seed(seed * 1000 + len(one.token_ids))
        row = torch.randn(VOCAB, generator=generator)
        row[[OPEN, CLOSE, STOP]] += 1.5
        return row

    return logits


def thoughts(ids, opened):
    """Tokens between the control tokens; None where none opened."""
    if not opened and OPEN not in ids:
        return None
    start = 0 if opened else ids.index(OPEN) + 1
    end = ids.index(CLOSE, start) if CLOSE in ids[start:] else len(ids)
    return ids[start:end]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    minimum=st.integers(0, 12),
    more=st.integers(0, 12) | st.none(),
    soft=st.integers(0, 12) | st.none(),
    opened=st.booleans(),
    temperature=st.sampled_from([0.0, 1.0, 2.0]),
)
def test_thinking_stays_within_its_bounds(seed, minimum, more, soft, opened, temperature):
    maximum = None if more is None else minimum + more
    soft = None if soft is None else minimum + (soft if more is None else min(soft, more))
    limits = budget(minimum=minimum, maximum=maximum, soft=soft, opened=opened)
    options = {"thinking": limits, "temperature": temperature, "stop_ids": (STOP,)}
    one = go_on(sequence(seed, vocab=VOCAB, limit=45, **options), wild(seed))
    ids, done = one.token_ids, thoughts(one.token_ids, opened)
    assert one.error is None
    if done is None:
        assert minimum == 0  # else it is made to think
        return
    assert not opened or maximum != 0 or ids[0] == CLOSE
    whole = len(ids) < 45 or CLOSE in ids
    assert len(done) >= minimum or not whole
    assert maximum is None or len(done) <= maximum
    if not opened:
        assert ids[0] == OPEN, "a sequence thinks at its beginning or not at all"
    assert ids.count(OPEN) == (0 if opened else 1), "and once"
    if maximum is not None and len(ids) > maximum + 1:
        assert CLOSE in ids or STOP in ids
    # A model that may stop in its thoughts doesn't before the minimum.
    if STOP in done:
        assert done.index(STOP) >= minimum


def test_the_hard_close_is_the_control_token_whatever_the_model_wants():
    logits = torch.full((VOCAB,), -30.0)
    logits[9] = 30.0
    for opened in (True, False):
        one = sequence(vocab=VOCAB, temperature=0.0, limit=12, thinking=budget(maximum=4, opened=opened))
        if not opened:
            one.append(OPEN, 0.0)
        go_on(one, lambda _: logits)
        at = len(one.token_ids) - one.token_ids[::-1].index(CLOSE) - 1
        assert one.token_ids[at - 4 :] == [9] * 4 + [CLOSE] + [9] * (12 - at - 1)
        assert one.logprobs[at] == pytest.approx(float(logits.log_softmax(-1)[CLOSE]))


def test_the_soft_close_comes_where_the_end_is_likely():
    unlikely = torch.arange(VOCAB, 0, -1).float()
    unlikely[CLOSE] = -100.0
    likely = unlikely.clone()
    likely[CLOSE] = float(likely.sort(descending=True).values[CLOSE_RANK - 1]) + 0.01  # just enough
    barely_not = unlikely.clone()
    barely_not[CLOSE] = float(barely_not.sort(descending=True).values[CLOSE_RANK - 1]) - 0.01
    options = {"thinking": budget(soft=3, maximum=20, opened=True), "temperature": 0.0, "vocab": VOCAB}
    one = sequence(**options)
    for at in range(3):
        assert sample_one(likely, one).token != CLOSE, at
        one.append(0, 0.0)
    assert sample_one(likely, one).token == CLOSE
    assert sample_one(barely_not, one).token != CLOSE
    assert sample_one(unlikely, one).token != CLOSE


def test_no_thinking():
    logits = torch.zeros(VOCAB)
    logits[OPEN] = 40.0
    one = go_on(sequence(vocab=VOCAB, limit=20, thinking=budget(maximum=0)), lambda _: logits)
    assert OPEN not in one.token_ids
    opened = go_on(sequence(vocab=VOCAB, limit=20, thinking=budget(maximum=0, opened=True)), lambda _: logits)
    assert opened.token_ids[0] == CLOSE and OPEN not in opened.token_ids


def test_drafts_move_nothing():
    logits = torch.zeros(VOCAB)
    one = sequence(vocab=VOCAB, temperature=0.0, thinking=budget(maximum=3))
    assert sample_one(logits, one, drafts=(OPEN, 1, 1, 1)).token == CLOSE
    assert sample_one(logits, one, drafts=(OPEN, 1, 1)).token != CLOSE
    assert sample_one(logits, one, drafts=(OPEN, 1, CLOSE)).token != CLOSE
    assert one.state.thinking.count == 0 and one.state.count == 0
    one.append(OPEN, 0.0)
    assert sample_one(logits, one, drafts=(1, 1, 1)).token == CLOSE


@pytest.mark.parametrize("ids", [(3, 3), (3, VOCAB), (VOCAB, 3)])
def test_control_tokens_that_cannot_be_are_refused(ids):
    with pytest.raises(RequestError):
        sequence(vocab=VOCAB, thinking=ThinkingBudget(*ids))
