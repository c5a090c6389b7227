"""SentencePiece vocabularies of other models: the same ids and texts as sentencepiece itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from foreign_vocabularies import MIXED, STORIES, many, texts, trained
from hypothesis import given

from ayllu.text.tokenizer import StreamDecoder, Tokenizer

# The normalisers, byte fallback, the two algorithms, user-defined pieces: each with and without.
LLAMA_LIKE: dict[str, Any] = {
    "model_type": "bpe",
    "byte_fallback": True,
    "split_digits": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
}
SENTENCEPIECE: dict[str, dict[str, Any]] = {
    "llama": LLAMA_LIKE,
    "bpe, unknown characters": {
        "model_type": "bpe",
        "character_coverage": 0.99,
        "normalization_rule_name": "identity",
    },
    "bpe, own pieces": {
        **LLAMA_LIKE,
        "user_defined_symbols": ["<ok>", "▁▁▁▁", "Haus", "\t"],
        "control_symbols": ["<c>"],
    },
    "bpe, nfkc, no space in front": {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "nmt_nfkc_cf",
        "add_dummy_prefix": False,
    },
    "unigram": {"model_type": "unigram", "character_coverage": 0.99},
    "unigram, bytes": {**LLAMA_LIKE, "model_type": "unigram", "vocab_size": 1400},
    "unigram, own pieces": {
        "model_type": "unigram",
        "user_defined_symbols": ["Haus", "▁▁"],
        "normalization_rule_name": "identity",
        "byte_fallback": True,
        "vocab_size": 1400,
    },
}


@pytest.fixture(scope="session", params=list(SENTENCEPIECE))
def pair(
    request: pytest.FixtureRequest, paragraphs: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, sentencepiece.SentencePieceProcessor]:
    folder = tmp_path_factory.mktemp("spm")
    model = trained(paragraphs, **SENTENCEPIECE[request.param])
    (folder / "tokenizer.model").write_bytes(model)
    return Tokenizer.load(folder), sentencepiece.SentencePieceProcessor(model_proto=model)


def without_markup(judge: sentencepiece.SentencePieceProcessor, text: str) -> str:
    """The one deliberate difference: user-defined pieces that look like markup are not read from text."""
    return text.replace("<ok>", "(ok)")


def test_sentencepiece_ids_on_mixed_text(
    pair: tuple[Tokenizer, sentencepiece.SentencePieceProcessor], paragraphs: dict[str, list[str]]
) -> None:
    ours, judge = pair
    for text in [*MIXED, *(block for blocks in paragraphs.values() for block in blocks[-10:])]:
        assert ours.encode(text) == judge.encode(text), text
    assert ours.vocab_size == judge.vocab_size()
    assert (ours.bos, ours.eos) == (judge.bos_id(), (judge.eos_id(),))


@many(900)
@given(text=texts)
def test_sentencepiece_ids(pair: tuple[Tokenizer, sentencepiece.SentencePieceProcessor], text: str) -> None:
    ours, judge = pair
    text = without_markup(judge, text)
    ids = judge.encode(text)
    assert ours.encode(text) == ids
    assert not set(ids) & set(ours.control.values())


@many(100)
@given(text=texts)
def test_sentencepiece_text(pair: tuple[Tokenizer, sentencepiece.SentencePieceProcessor], text: str) -> None:
    ours, judge = pair
    ids = ours.encode(text)
    assert ours.decode([ours.bos or 0, *ids, *ours.eos]) == judge.decode(ids)
    stream = StreamDecoder(ours)
    assert "".join(map(stream.push, ids)) + stream.flush() == judge.decode(ids)


def test_markup_typed_as_text_stays_text(paragraphs: dict[str, list[str]], tmp_path: Path) -> None:
    options = SENTENCEPIECE["bpe, own pieces"]
    (tmp_path / "tokenizer.model").write_bytes(trained(paragraphs, **options))
    ours = Tokenizer.load(tmp_path)
    assert {"<s>", "</s>", "<c>", "<ok>"} <= ours.control.keys()
    for name in ours.control:
        for text in (name, f"a{name}b", f" {name} ", name * 3, name[:-1], name[1:]):
            assert not set(ours.encode(text)) & set(ours.control.values())
            assert ours.decode(ours.encode(text)) == text
    assert "Haus" in [ours.decode([i]) for i in ours.encode("Haus")], (
        "an ordinary piece of the user's is read"
    )


def test_a_stream_that_goes_on_keeps_its_first_space() -> None:
    tokenizer = Tokenizer.load(STORIES)
    ids = tokenizer.encode("a time")
    assert StreamDecoder(tokenizer).push(ids[0]) == "a"
    assert StreamDecoder(tokenizer, continues=True).push(ids[0]) == " a"


# ---- a real file
def test_stories_conventions(stories: tuple[Tokenizer, Any]) -> None:
    ours, _ = stories
    assert (ours.vocab_size, ours.bos, ours.eos, ours.prefix) == (512, 1, (2,), (1,))
    assert not ours.native


@many(1000)
@given(text=texts)
def test_stories_ids(stories: tuple[Tokenizer, Any], text: str) -> None:
    ours, judge = stories
    assert ours.encode(text) == judge.encode(text)
