"""Stop strings and token counts as properties: however the text is cut, the outcome is the same."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ayllu.reason.transcript import Chat, Reader
from ayllu.serve.stops import StopStrings
from ayllu.serve.tally import Tally

letters = st.text("ab", max_size=12)


@given(st.lists(letters, max_size=8), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_chunks_do_not_matter(chunks, stops):
    reader, text = StopStrings(stops), "".join(chunks)
    shown = ""
    for chunk in chunks:
        shown += reader.push(chunk)
        assert not any(stop in shown for stop in stops), "no part of a stop string is ever shown"
    shown += reader.flush()
    ends = [text.find(stop) for stop in stops if stop in text]
    assert reader.hit == bool(ends)
    if not ends:
        assert shown == text
    else:
        # What is shown ends where the first stop string that is complete begins.
        done = min(text.find(stop) + len(stop) for stop in stops if stop in text)
        assert text.startswith(shown) and len(shown) <= done
        assert any(text.startswith(stop, len(shown)) for stop in stops)


@given(st.text(max_size=20))
def test_nothing_is_held_without_stops(text):
    assert StopStrings([]).push(text) == text


@given(st.text(max_size=30))
def test_token_bytes_are_the_text(tokenizer, text):
    assert b"".join(tokenizer.piece_bytes(i) for i in tokenizer.encode(text)) == text.encode()


@given(st.text(max_size=20), st.text(max_size=20), st.integers(0, 60))
def test_every_token_of_the_answer_is_given_once(tokenizer, thought, answer, cut):
    control = tokenizer.control
    thinking = [control["<|think|>"], *tokenizer.encode(thought), control["<|/think|>"]]
    ids = [*thinking, control["<|answer|>"], *tokenizer.encode(answer), control["<|end|>"]]
    tally, reader = Tally(tokenizer), Reader(Chat(tokenizer))
    given_out, done = [], 0
    for end in (min(cut, len(ids)), len(ids)):
        said = "".join(text for kind, text in reader.read(ids[:end], last=end == len(ids)) if kind == "say")
        for place in reader.said[done:]:
            tally.push(ids[place], -1.0)
        done = len(reader.said)
        given_out += tally.shown(said)
    given_out += tally.rest()
    assert reader.thinking == len(thinking)
    assert bytes(b for entry in given_out for b in entry.bytes) == answer.encode()
