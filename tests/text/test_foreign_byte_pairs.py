"""Byte pairs of other models: the same ids as tiktoken itself, and as transformers for tokenizer.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiktoken
from foreign_vocabularies import many, texts
from hypothesis import given

from ayllu.text.tokenizer import Tokenizer


def test_llama3_names(llama3: tuple[Tokenizer, tiktoken.Encoding]) -> None:
    ours, judge = llama3
    base = judge.n_vocab - 256
    assert [
        ours.control[n] - base for n in ("<|begin_of_text|>", "<|eot_id|>", "<|reserved_special_token_247|>")
    ] == [0, 9, 255]
    assert ours.prefix == (base,) and set(ours.eos) == {base + 1, base + 8, base + 9}
    for name in ours.control:
        assert not set(ours.encode(f"a{name} {name}")) & set(ours.control.values())


@many(1500)
@given(text=texts)
def test_tiktoken_ids(llama3: tuple[Tokenizer, tiktoken.Encoding], text: str) -> None:
    ours, judge = llama3
    ids = judge.encode(text, disallowed_special=())
    assert ours.encode(text) == ids
    assert ours.decode(ids) == text


@many(1000)
@given(text=texts)
def test_tokenizer_json_ids(qwen: tuple[Tokenizer, Any], text: str) -> None:
    ours, judge = qwen
    assert ours.encode(text) == judge(text, add_special_tokens=False)["input_ids"]


def test_tokenizer_json_conventions(qwen: tuple[Tokenizer, Any], ranks: dict[bytes, int]) -> None:
    ours, judge = qwen
    size = len(ranks)
    assert ours.control == {
        "<|im_start|>": size,
        "<|im_end|>": size + 1,
        "<think>": size + 2,
        "</think>": size + 3,
    }
    assert ours.eos == (3, size, size + 1) and ours.bos is None and ours.prefix == ()
    assert ours.encode("a   b") == judge("a   b", add_special_tokens=False)["input_ids"]
    assert size + 4 in ours.encode("a   b"), "an added token that is no markup is a piece of text"
    assert not set(ours.encode("<think>x</think><|im_end|>")) & set(ours.control.values())
    assert ours.decode([size + 2, *ours.encode("x"), size + 3, size + 1]) == "<think>x</think>"


@pytest.mark.parametrize("kind", ["unigram", "whole words"])
def test_a_tokenizer_json_that_would_find_its_control_tokens(kind: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Inner
    from tokenizers import decoders, models, pre_tokenizers

    if kind == "unigram":
        inner = Inner(
            models.Unigram([("<unk>", 0.0), ("</s>", 0.0), *((c, -9.0) for c in "▁</s>ax"[:7])][:8], 0)
        )
        inner.pre_tokenizer = pre_tokenizers.Metaspace()
        inner.decoder = decoders.Metaspace()
    else:
        pieces = ["<unk>", "</s>", "<", "/", "s", ">", "a", "Ġ"]
        inner = Inner(models.BPE({p: i for i, p in enumerate(pieces)}, [], ignore_merges=True))
        inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["</s>", "<unk>"])
    (tmp_path / "tokenizer.json").write_text(inner.to_str())
    ours = Tokenizer.load(tmp_path)
    assert ours.control["</s>"] == 1
    for text in ("</s>", "a</s>", "</s></s>"):
        assert 1 not in ours.encode(text)
