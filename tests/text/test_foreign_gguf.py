"""Vocabularies in GGUF files: the same ids as from the files and libraries that they were made with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from foreign_vocabularies import MIXED, STORIES, hf_json, many, texts
from hypothesis import given

from ayllu.errors import AylluWarning, ModelFileDamagedError, ModelFileMissingError
from ayllu.text.tokenizer import Tokenizer
from ayllu.text.vocabularies import sentencepiece as our_sentencepiece
from ayllu.text.vocabularies.bytelevel import LLAMA3
from ayllu.text.vocabularies.gguf import from_metadata


def gguf_values(model: bytes) -> dict[str, Any]:
    """A SentencePiece model as llama.cpp's converter writes it."""
    judge = sentencepiece.SentencePieceProcessor(model_proto=model)
    parsed = our_sentencepiece.read_model(model)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [judge.id_to_piece(i) for i in range(judge.vocab_size())],
        "tokenizer.ggml.scores": [judge.get_score(i) for i in range(judge.vocab_size())],
        "tokenizer.ggml.token_type": [piece.type for piece in parsed.pieces],
        "tokenizer.ggml.remove_extra_whitespaces": parsed.remove_extra_spaces,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{{ messages }}",
    }


@many(1000)
@given(text=texts)
def test_gguf_sentencepiece_ids(stories: tuple[Tokenizer, Any], text: str) -> None:
    _, judge = stories
    found = _gguf_stories()
    assert Tokenizer(found.inner, found).encode(text) == judge.encode(text)
    assert (found.bos, found.eos, found.prefix) == (1, (2,), (1,))
    assert found.chat_templates == {"default": "{{ messages }}"}


def _gguf_stories(_kept: list[Any] = []) -> Any:  # noqa: B006 (built once)
    if not _kept:
        values = gguf_values((STORIES / "tokenizer.model").read_bytes())
        _kept.append(from_metadata(values, Path("stories.gguf")))
    return _kept[0]


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "default", "qwen35"])
def test_gguf_byte_pairs(
    ranks: dict[bytes, int], llama3: tuple[Tokenizer, Any], qwen: tuple[Tokenizer, Any], pre: str
) -> None:
    model = hf_json(ranks, LLAMA3)["model"]
    tokens = [*model["vocab"], "<|im_start|>", "<tool>", "   ", "[PAD9]"]
    values = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * len(model["vocab"]) + [3, 4, 4, 5],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
        "tokenizer.ggml.eos_token_id": 5,
        "tokenizer.ggml.eot_token_id": len(model["vocab"]),
    }
    found = from_metadata(values, Path("x.gguf"))
    ours, size = Tokenizer(found.inner, found), len(model["vocab"])
    for text in MIXED:
        if pre == "llama-bpe":
            assert ours.encode(text) == llama3[0].encode(text) or "   " in text
        if pre == "qwen2":
            assert ours.encode(text) == qwen[0].encode(text) or "   " in text
    assert ours.eos == (5, size) and ours.control == {"<|im_start|>": size, "<tool>": size + 1}
    text = "12 <|im_start|><tool>a   b[PAD9]"
    assert ours.decode(ours.encode(text)) == text
    assert not set(ours.encode(text)) & {size, size + 1, size + 3} and size + 2 in ours.encode(text)


def test_a_file_that_does_not_name_its_pattern_is_warned_of(ranks: dict[bytes, int]) -> None:
    model = hf_json(ranks, LLAMA3)["model"]
    values = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": list(model["vocab"]),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in model["merges"]],
    }  # fmt: skip
    with pytest.warns(AylluWarning, match=r"old\.gguf doesn't say how its text is split"):
        from_metadata(values, Path("old.gguf"))


def test_gguf_faults() -> None:
    sound = gguf_values((STORIES / "tokenizer.model").read_bytes())
    for key, value in {
        "model": "rwkv", "tokens": 7, "scores": [0.0], "token_type": [9] * 512, "bos_token_id": 512,
        "eos_token_id": "2", "add_bos_token": 3,
    }.items():  # fmt: skip
        with pytest.raises((ValueError, ModelFileDamagedError)):
            from_metadata({**sound, f"tokenizer.ggml.{key}": value}, Path("x.gguf"))
    with pytest.raises(ModelFileMissingError):
        Tokenizer.load(Path("nothing.gguf"))
