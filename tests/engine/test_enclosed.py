"""Text between two control tokens follows its grammar, whatever the model wants; the rest is free."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import go_on, sample_one, sequence

from ayllu.engine import sampler
from ayllu.engine.enclosed import Enclosure
from ayllu.engine.request import Enclosed, Grammar, Row, SamplingParams, ThinkingBudget
from ayllu.errors import RequestError
from ayllu.text.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer(iter(['add {"a":12,"b":"xyz"} say true false నమస్కారం']), 320)
VOCAB = TOKENIZER.vocab_size
OPEN, CLOSE, END = (TOKENIZER.control[name] for name in ("<|tool|>", "<|/tool|>", "<|end|>"))
FORM = r"(true|ab{2,4}|[12]{3}|నమ)!?"
RULE = Enclosed(OPEN, CLOSE, Grammar("regex", FORM))


def noise(seed, plus=()):
    """Logits that know nothing of any grammar, new at every place; `plus` tokens are wanted more."""

    def logits(one):
        generator = torch.Generator().manual_seed(1000 * seed + len(one.token_ids))
        row = 2.0 * torch.randn(VOCAB, generator=generator)
        row[list(plus)] += 4.0
        return row

    return logits


def run(seed, *, rule=RULE, plus=(OPEN, CLOSE), limit=60, **options):
    one = sequence(seed, tokenizer=TOKENIZER, vocab=VOCAB, limit=limit, enclosed=rule, **options)
    return go_on(one, noise(seed, plus))


def enclosed_texts(ids):
    """The texts between the marks, and whether the last one was cut off."""
    texts, at = [], 0
    while OPEN in ids[at:]:
        begin = ids.index(OPEN, at)
        end = ids.index(CLOSE, begin) if CLOSE in ids[begin:] else len(ids)
        texts.append(b"".join(map(TOKENIZER.piece_bytes, ids[begin + 1 : end])))
        at = end
    return texts, CLOSE not in ids[at:] and OPEN in ids


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), temperature=st.sampled_from([0.0, 1.0, 5.0]), stops=st.booleans())
def test_what_is_enclosed_fits_and_nothing_is_closed_that_was_not_opened(seed, temperature, stops):
    one = run(seed, temperature=temperature, stop_ids=(CLOSE,) if stops else ())
    assert one.error is None
    opened = 0
    for token in one.token_ids:
        assert token != CLOSE or opened
        opened = 1 if token == OPEN else 0 if token == CLOSE else opened
    texts, cut_off = enclosed_texts(one.token_ids)
    for text in texts[: len(texts) - cut_off]:
        assert re.fullmatch(FORM, text.decode()), text
    if stops and CLOSE in one.token_ids:
        assert one.token_ids.index(CLOSE) == len(one.token_ids) - 1 and one.finish_reason == "stop"


def test_it_begins_anew_each_time():
    texts = [text for seed in range(5) for text in enclosed_texts(run(seed, limit=120).token_ids)[0]]
    assert len(texts) > 20 and len(set(texts)) > 5


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_outside_nothing_changes(seed, temperature):
    """Up to the first mark the tokens are those of an unconstrained sequence, and log-probabilities are those
    of the model without a mask everywhere."""

    def logits(one):
        row = noise(seed)(one)
        row[CLOSE], row[OPEN] = -40.0, 30.0 if len(one.token_ids) == 20 else -40.0
        return row

    options = {"tokenizer": TOKENIZER, "vocab": VOCAB, "temperature": temperature, "limit": 40}
    free = go_on(sequence(seed, **options), logits)
    held = go_on(sequence(seed, enclosed=RULE, **options), logits)
    assert held.token_ids[:21] == free.token_ids[:21] and held.token_ids[20] == OPEN
    assert held.token_ids[21:] != free.token_ids[21:] and len(held.token_ids) == 40
    again = sequence(seed)
    for token, logprob in zip(held.token_ids, held.logprobs, strict=True):
        assert logprob == pytest.approx(float(logits(again).log_softmax(-1)[token]), abs=1e-4)
        again.token_ids.append(token)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), depth=st.integers(1, 8))
def test_a_mask_after_drafts_is_the_mask_after_those_tokens(seed, depth):
    """Speculation asks about places ahead; looking there changes nothing."""
    ids = run(seed, limit=30).token_ids
    for begin in range(0, len(ids) - depth, 3):
        ahead, stepped = Enclosure(RULE, TOKENIZER, VOCAB), Enclosure(RULE, TOKENIZER, VOCAB)
        for token in ids[:begin]:
            ahead.accept(token)
            stepped.accept(token)
        looks = [ahead.mask(ids[begin : begin + k]) for k in range(depth)]
        for look, token in zip(looks, ids[begin : begin + depth], strict=True):
            here = stepped.mask()
            assert (look is None) == (here is None)
            assert look is None or np.array_equal(look, here)
            stepped.accept(token)


NOTHING = Enclosed(OPEN, CLOSE, None)


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 10**6), temperature=st.sampled_from([0.0, 1.0, 5.0]), least=st.sampled_from([0, 30])
)
def test_where_nothing_may_be_enclosed_nothing_is_opened(seed, temperature, least):
    options = {"temperature": temperature, "min_tokens": least, "stop_ids": (END,)}
    one = run(seed, rule=NOTHING, **options)
    assert one.error is None and not {OPEN, CLOSE} & set(one.token_ids) and len(one.token_ids) >= least
    unasked = sequence(seed, vocab=VOCAB, limit=60, enclosed=NOTHING, **options)  # and it needs no tokenizer
    assert go_on(unasked, noise(seed, (OPEN, CLOSE))).token_ids == one.token_ids
    drafted = sample_one(noise(seed, (OPEN,))(one), one, drafts=(OPEN, 70))
    assert drafted.token not in (OPEN, CLOSE)


def test_rows_of_a_batch_are_held_as_each_alone():
    """Outside of enclosures all rows are written to at once; inside, and without any, each for itself."""
    generator = torch.Generator().manual_seed(1)
    for temperature in (0.0, 1.0):
        options = {"tokenizer": TOKENIZER, "vocab": VOCAB, "temperature": temperature}
        rules = [RULE, None, NOTHING, RULE, NOTHING, RULE]
        every = [sequence(n, enclosed=rule, **options) for n, rule in enumerate(rules)]
        every[3].append(OPEN, 0.0)  # it stands inside
        every[5].params = SamplingParams(temperature=temperature, enclosed=RULE, min_tokens=5)
        logits = 2.0 * torch.randn(len(every), VOCAB, generator=generator)
        logits[:, [OPEN, CLOSE]] += 6.0
        together = sampler.sample(logits.clone(), [Row(one) for one in every])
        alone = [sample_one(row, one) for row, one in zip(logits.clone(), every, strict=True)]
        assert [got.token for got in together] == [got.token for got in alone]
        assert [got.logprob for got in together] == pytest.approx([got.logprob for got in alone], abs=1e-5)
        assert together[2].token not in (OPEN, CLOSE) and together[0].token != CLOSE


def test_drafts_that_do_not_fit_are_no_failure():
    one = sequence(tokenizer=TOKENIZER, vocab=VOCAB, enclosed=RULE)
    one.append(OPEN, 0.0)
    sample_one(torch.zeros(VOCAB), one, drafts=TOKENIZER.encode("z"))
    assert one.state.error is None


def test_thinking_and_a_least_length_do_not_reach_inside():
    """A budget that runs out while a call is written closes nothing in the middle of it."""
    think, close = TOKENIZER.control["<|think|>"], TOKENIZER.control["<|/think|>"]
    budget = ThinkingBudget(think, close, maximum=3, opened=True)
    for seed in range(12):
        one = run(seed, thinking=budget, min_tokens=30, stop_ids=(END, CLOSE), plus=(OPEN,))
        if OPEN in one.token_ids and one.finish_reason == "stop":
            (text,), _ = enclosed_texts(one.token_ids)
            assert re.fullmatch(FORM, text.decode())
    assert any(OPEN in run(seed, thinking=budget, plus=(OPEN,)).token_ids[:3] for seed in range(12))


def test_json_in_a_wide_head():
    """More logits than pieces: none of the extra ones is ever drawn inside."""
    form = 'start: "add " %json ' + json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}})
    rule = Enclosed(OPEN, CLOSE, Grammar("lark", form))
    one = sequence(0, tokenizer=TOKENIZER, vocab=VOCAB + 50, limit=10, enclosed=rule)
    one.append(OPEN, 0.0)
    row = torch.zeros(VOCAB + 50)
    row[VOCAB:] = 50.0
    for _ in range(4):
        got = sample_one(row, one)
        assert got.token < VOCAB
        one.append(got.token, got.logprob)
    assert TOKENIZER.decode(one.token_ids).startswith("add ")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"enclosed": Enclosed(3, 10**6, RULE.grammar)}, "vocabulary ends"),
        ({"enclosed": Enclosed(OPEN, CLOSE, Grammar("regex", "("))}, "regex"),
    ],
)
def test_what_can_not_be_held_is_refused_before_any_work(options, why):
    with pytest.raises(RequestError, match=why):
        sequence(tokenizer=TOKENIZER, vocab=VOCAB, **options)


def test_settings_are_checked():
    for wrong in ((-1, 3), (3, 3), ("a", 3)):
        with pytest.raises(RequestError):
            Enclosed(*wrong, RULE.grammar)
    with pytest.raises(RequestError):
        Enclosed(1, 2, "regex")
    with pytest.raises(RequestError, match="leave one out"):
        SamplingParams(grammar=RULE.grammar, enclosed=RULE)
    with pytest.raises(RequestError, match="tokenizer"):
        sequence(vocab=VOCAB, enclosed=RULE)
