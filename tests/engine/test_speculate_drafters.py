"""Those who guess, lookup in the text itself and a draft model: what they guess, whom they can serve, which
are refused, and which of their guesses count."""

import numpy as np
import pytest
from guesses import cheaply, clean, draft_model, same
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import idle, prompts_of

from ayllu.engine.engine import Engine
from ayllu.engine.lookup import LONGEST, Lookup, longest_match
from ayllu.engine.request import Sampled, SamplingParams
from ayllu.engine.speculate import accepted
from ayllu.errors import AylluWarning, RequestError
from ayllu.model.config import ModelConfig, RopeScaling, RopeSpec, dense_layer, with_attention
from ayllu.model.decoder import Decoder
from ayllu.model.weights import save_model
from ayllu.text.tokenizer import train_tokenizer


@settings(deadline=None, max_examples=300)
@given(ids=st.lists(st.integers(0, 2), max_size=60))
def test_the_longest_match_is_the_longest(ids):
    found, length = longest_match(np.array(ids, np.int32))
    expected = (0, 0)
    for end in range(1, len(ids)):  # the stretch before it goes on at `end`
        size = 0
        while size < min(end, LONGEST) and ids[end - 1 - size] == ids[-1 - size]:
            size += 1
        if size and size >= expected[1]:
            expected = (end, size)
    assert (found, length) == expected


def test_lookup_goes_on_where_the_text_repeats_itself(model):
    engine = Engine(model)
    sequence = engine.submit([9, 1, 2, 3, 1, 2, 3, 1, 2], SamplingParams(max_tokens=20))
    lookup = Lookup()
    assert lookup.kind(sequence) is not None
    assert lookup.draft([(sequence, 7)]) == [[3, 1, 2, 3, 1, 2, 3]]
    sequence.token_ids += [3, 50]
    assert lookup.kind(sequence) is None
    lookup.forget(sequence)
    assert not lookup._texts


def test_a_draft_model_reads_long_texts_in_pieces(model, monkeypatch):
    monkeypatch.setattr("ayllu.engine.draftmodel._STRETCH", 7)
    prompt = prompts_of(1, 4, 41)[0] + list(range(30))
    plain = Engine(model).generate([prompt], max_tokens=20, temperature=0.7, seed=1)
    engine = cheaply(Engine(model, speculate=draft_model()))
    same(engine.generate([prompt], max_tokens=20, temperature=0.7, seed=1), plain)
    assert engine.stats().accepted > 5 and clean(engine)


def test_a_draft_model_with_little_room_serves_whom_it_can(model):
    small = draft_model()
    small.pool.capacity = 7
    prompts = prompts_of(8, 12)
    plain = Engine(model).generate(prompts, max_tokens=40, temperature=0)
    engine = cheaply(Engine(model, speculate=small))
    same(engine.generate(prompts, max_tokens=40, temperature=0), plain)
    assert engine.stats().accepted > 0 and clean(engine)


def test_a_draft_model_that_fails_costs_no_text(model):
    broken = draft_model()
    broken.executor.step = lambda batch: 1 / 0
    engine = cheaply(Engine(model, speculate=broken))
    with pytest.warns(AylluWarning, match="speculation is off.*ZeroDivisionError"):
        done = engine.generate(prompts_of(3), max_tokens=10, temperature=0)
    same(done, Engine(model).generate(prompts_of(3), max_tokens=10, temperature=0))
    assert idle(engine) and broken.pool.held == 0 and engine.stats().drafted == 0


def test_another_vocabulary_is_refused(folder, model, tmp_path):
    with pytest.raises(RequestError, match="vocabulary"):
        Engine(model, speculate=folder)
    tokenizer = train_tokenizer(iter(["quite another text, und noch einer"] * 50), 300)
    other = Decoder(
        ModelConfig(
            32, Engine(folder).vocab_size, (dense_layer(2, 1, 16, 64, qk_norm=False),), 64, family="llama"
        )
    )
    save_model(other, tmp_path, bos=tokenizer.bos, eos=tokenizer.eos[0], pad=0)
    tokenizer.save(tmp_path)
    with pytest.raises(RequestError, match="vocabulary"):
        Engine(folder, speculate=tmp_path)


def test_angles_that_change_with_the_length_are_refused():
    rope = RopeSpec(16, scaling=RopeScaling("dynamic", 2.0, 32))
    layer = with_attention(dense_layer(2, 1, 16, 64), rope=rope)
    with pytest.raises(RequestError, match="speculation"):
        Engine(Decoder(ModelConfig(32, 50, (layer,), 64)), speculate="ngram")


@given(drafts=st.lists(st.integers(0, 2), max_size=6), data=st.data())
def test_guesses_count_up_to_the_first_wrong_one(drafts, data):
    n = len(drafts) + 1
    tokens = data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    got = [one.token for one in accepted(drafts, [Sampled(t, -1.0) for t in tokens])]
    assert got == tokens[: len(got)] and got[:-1] == drafts[: len(got) - 1]
    assert len(got) == n or got[-1] != drafts[len(got) - 1]
