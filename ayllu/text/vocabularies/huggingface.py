"""Hugging Face's `tokenizer.json`: the library's own form, with its added tokens.

Added tokens are matched in text before anything else, which is how a user's text could forge a control
token. Special ones are never matched here; ones that are not marked special but named like markup
(<tool_call>, </think>) neither. Others, such as runs of spaces, are ordinary pieces.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, pre_tokenizers

from ayllu.text.vocabularies.vocabulary import (
    SPACE,
    Vocabulary,
    damaged,
    guarded,
    is_markup,
    read_file,
    unreachable,
)


def load_huggingface(path: Path) -> Vocabulary:
    """The vocabulary of a tokenizer.json. Errors: ModelFileDamagedError."""
    return from_json(read_file(path), path)


def from_json(data: bytes, path: Path | str) -> Vocabulary:
    """The vocabulary of a tokenizer.json's content."""
    inner = guarded(path, lambda: tokenizers.Tokenizer.from_buffer(data))
    added = inner.get_added_tokens_decoder()
    control = {t.content: number for number, t in added.items() if t.special or is_markup(t.content)}
    prefix = _prefix(inner, path)
    leaks = _reachable(inner, control)
    if leaks:
        inner = guarded(path, lambda: _hidden_away(data, leaks))
        kept = {t.content: number for number, t in inner.get_added_tokens_decoder().items()}
        if kept != {t.content: number for number, t in added.items() if t.content not in leaks}:
            raise damaged(path, "its added tokens have no firm ids")
    inner.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in control if t not in leaks]
    )
    inner.encode_special_tokens = True
    inner.no_truncation()
    inner.no_padding()
    spelling, drops = _spelling(inner, path)
    literal = {number: t.content.encode() for number, t in added.items()}
    if spelling == "sentencepiece":
        for byte in range(256):
            if (number := inner.token_to_id(f"<0x{byte:02X}>")) is not None and number not in added:
                literal[number] = bytes((byte,))
    return Vocabulary(
        inner=inner,
        spelling=spelling,
        control=control,
        hidden=frozenset(n for n, t in added.items() if t.special),
        literal=literal,
        prefix=prefix,
        drops_first_space=drops,
        continuation=_continuation(inner),
    )


def _reachable(inner: tokenizers.Tokenizer, control: dict[str, int]) -> set[str]:
    """Control tokens that the model itself could cut text into, because it looks whole words up."""
    kind = type(inner.model).__name__
    if kind == "BPE" and not inner.model.ignore_merges:
        return set()
    usual = inner.get_vocab(with_added_tokens=False)
    return {name for name in control if name in usual}


def _hidden_away(data: bytes, names: set[str]) -> tokenizers.Tokenizer:
    """The same tokenizer with these pieces under names that no text has."""
    value: dict[str, Any] = json.loads(data)
    model = value["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {unreachable(k) if k in names else k: v for k, v in model["vocab"].items()}
    else:
        model["vocab"] = [[unreachable(k) if k in names else k, score] for k, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = unreachable(model["unk_token"])
    value["added_tokens"] = [t for t in value["added_tokens"] if t["content"] not in names]
    value["post_processor"] = None
    return tokenizers.Tokenizer.from_str(json.dumps(value))


def _part(part: Any) -> dict[str, Any]:
    """A normaliser, pre-tokenizer or decoder as the JSON that it is stored as."""
    return {} if part is None else json.loads(part.__getstate__())


def _steps(part: dict[str, Any], of: str) -> list[dict[str, Any]]:
    return part.get(of, []) if part.get("type") == "Sequence" else [part]


def _spelling(inner: tokenizers.Tokenizer, path: Path | str) -> tuple[str, bool]:
    """How pieces are spelt, and whether decoding drops the first space."""
    steps = _steps(_part(inner.decoder), "decoders")
    kinds = {step.get("type") for step in steps}
    if "ByteLevel" in kinds:
        return "bytes", False
    if kinds & {"Metaspace", "ByteFallback"}:
        metaspace = next((step for step in steps if step.get("type") == "Metaspace"), None)
        if metaspace and metaspace.get("replacement", SPACE) != SPACE:
            raise damaged(path, "its sign for a space is not U+2581")
        strips = any(s.get("type") == "Strip" and s.get("start") == 1 for s in steps)
        return "sentencepiece", strips or bool(metaspace and metaspace.get("prepend_scheme") != "never")
    raise damaged(
        path, "its decoder is neither byte-level nor SentencePiece's; language models have one of these"
    )


def _prefix(inner: tokenizers.Tokenizer, path: Path | str) -> tuple[int, ...]:
    """What the file's own template puts in front of a text."""
    found = guarded(path, lambda: inner.encode("a", add_special_tokens=True))
    front = 0
    while front < len(found.ids) and found.special_tokens_mask[front]:
        front += 1
    return tuple(found.ids[:front])


def _continuation(inner: tokenizers.Tokenizer) -> tokenizers.Tokenizer | None:
    """For files that put a space in front of the whole text only: the same without it.

    What follows a control token is not the beginning of a text. The model (and its memory) is shared.
    """
    metaspace = _part(inner.pre_tokenizer)
    if metaspace.get("type") != "Metaspace" or metaspace.get("prepend_scheme") != "first":
        return None
    other = tokenizers.Tokenizer(inner.model)
    if inner.normalizer is not None:
        other.normalizer = inner.normalizer
    other.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement=metaspace["replacement"], prepend_scheme="never", split=metaspace.get("split", True)
    )
    for _, token in sorted(inner.get_added_tokens_decoder().items()):
        (other.add_special_tokens if token.special else other.add_tokens)([token])
    other.encode_special_tokens = True
    return other
