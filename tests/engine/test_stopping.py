"""Stop strings and streamed text against the plain definition, on any text cut in any way."""

import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import go_on, sequence

from ayllu.engine.request import SamplingParams, ThinkingBudget
from ayllu.engine.stopping import MAX_CHARACTERS, MAX_STRINGS, StopReader, StopStrings, text_until_stop
from ayllu.errors import RequestError
from ayllu.text.tokenizer import train_tokenizer

TEXT = "aab abab ఎలా ఉన్నారు? naïve 🙂🙂 <stop> ababab"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(iter([TEXT * 3]), 300)


def first_stop(text, stops):
    """Where the text ends by the definition: the first end of any stop string, the longest one there."""
    for end in range(1, len(text) + 1):
        if found := [s for s in stops if text[:end].endswith(s)]:
            return end - max(map(len, found))
    return None


texts = st.text(alphabet="ab <ఉ్🙂é", max_size=30)
stops = st.lists(st.text(alphabet="ab <ఉ్🙂é", min_size=1, max_size=5), max_size=4)


@settings(deadline=None, max_examples=300)
@given(text=texts, stops=stops, bytewise=st.booleans())
def test_text_ends_where_the_definition_says(tokenizer, text, stops, bytewise):
    ids = tokenizer.encode(text)
    if bytewise:
        byte = {tokenizer.piece_bytes(i): i for i in range(tokenizer.vocab_size)}
        ids = [byte[bytes((b,))] for b in text.encode()]
    reader = StopReader(tokenizer, SamplingParams(stop_strings=tuple(stops)))
    end = first_stop(text, stops)
    expected, out = text if end is None else text[:end], ""
    for token in ids:
        piece = reader.push(token)
        out += piece
        assert "\ufffd" not in piece and expected.startswith(out), "nothing comes out that must be taken back"
        if reader.stopped:
            assert reader.push(token) == ""
    # Nothing is held back without need: what isn't out begins a stop string or half a character.
    held = expected[len(out) :]
    assert reader.stopped or not held or any(s.startswith(held) for s in stops)
    assert out + reader.flush() == expected
    assert reader.stopped == (end is not None)
    assert text_until_stop(tokenizer, ids, SamplingParams(stop_strings=tuple(stops))) == expected


def test_min_tokens_and_thoughts_do_not_stop(tokenizer):
    bang, stop = tokenizer.encode("?"), ("?",)
    think, close = tokenizer.control["<|think|>"], tokenizer.control["<|/think|>"]
    late = StopReader(tokenizer, SamplingParams(stop_strings=stop, min_tokens=3))
    assert [late.push(bang[0]) for _ in range(3)] == ["?", "?", ""] and late.stopped
    params = SamplingParams(stop_strings=stop, thinking=ThinkingBudget(think, close))
    reader = StopReader(tokenizer, params)
    assert [reader.push(i) for i in (think, *bang, close)] == ["", "?", ""] and not reader.stopped
    assert reader.push(bang[0]) == "" and reader.stopped


def test_no_stop_string_reaches_across_a_control_token(tokenizer):
    (a,), (b,) = tokenizer.encode("a"), tokenizer.encode("b")
    reader = StopReader(tokenizer, SamplingParams(stop_strings=("ab",)))
    assert [reader.push(a), reader.push(tokenizer.control["<|answer|>"]), reader.push(b)] == ["", "a", "b"]


def test_half_a_character_at_the_end_is_marked(tokenizer):
    byte = {tokenizer.piece_bytes(i): i for i in range(tokenizer.vocab_size)}
    reader = StopReader(tokenizer, SamplingParams(stop_strings=("x",)))
    assert [reader.push(byte[bytes((b,))]) for b in "🙂".encode()[:3]] == [""] * 3
    assert reader.flush() == "\ufffd"


def test_the_work_is_linear(tokenizer):
    (a,) = tokenizer.encode("a")
    params = SamplingParams(stop_strings=("a" * 8000 + "b", "a" * 7000 + "c"))
    reader = StopReader(tokenizer, params)
    began = time.process_time()
    count = sum(len(reader.push(a)) for _ in range(100_000))
    assert time.process_time() - began < 10  # looking at every beginning anew would take minutes
    assert count == 92_000 and len(reader.flush()) == 8000


@pytest.mark.parametrize("strings", [["a"] * (MAX_STRINGS + 1), ["a" * (MAX_CHARACTERS + 1)]])
def test_too_many_are_refused(strings):
    with pytest.raises(RequestError):
        StopStrings(strings)


def test_a_sequence_stops_and_keeps_its_tokens(tokenizer):
    wanted = tokenizer.encode("abab <stop> ab")

    def logits(one):
        row = torch.zeros(tokenizer.vocab_size)
        row[wanted[len(one.token_ids)]] = 50.0
        return row

    one = sequence(
        tokenizer=tokenizer, vocab=tokenizer.vocab_size, stop_strings=("<st", "zzz"), temperature=0.0
    )
    go_on(one, logits)
    assert one.finish_reason == "stop" and one.token_ids == wanted[: len(one.token_ids)]
    assert text_until_stop(tokenizer, one.token_ids, one.params) == "abab "
    assert "<st" in tokenizer.decode(one.token_ids)
