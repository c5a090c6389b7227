"""Byte-level vocabularies: GPT-2's printable stand-ins for bytes, and the patterns that split text first.

A pattern cuts text into words before byte pairs are merged; each family has its own. They are facts
about the models (published in their tokenizer files) and must be exactly these for the same ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from ayllu.text.vocabularies.vocabulary import guarded

_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
QWEN2 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
# The nearest that llama.cpp has to our own pattern: letters keep their marks.
QWEN35 = QWEN2.replace(r"]?\p{L}+", r"]?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]", r"[^\s\p{L}\p{M}\p{N}]")


def _byte_signs() -> dict[str, int]:
    """GPT-2's printable stand-ins: bytes that are visible in Latin-1 stand for themselves, the other 68
    for U+0100, U+0101, ... in order."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in visible]
    return {chr(b): b for b in visible} | {chr(0x100 + i): b for i, b in enumerate(rest)}


BYTE_OF = _byte_signs()
_SIGN_OF = [sign for sign, _ in sorted(BYTE_OF.items(), key=lambda pair: pair[1])]


def signs(raw: bytes) -> str:
    """Bytes in their printable spelling."""
    return raw.decode("latin-1").translate(dict(enumerate(_SIGN_OF)))


def byte_level(
    vocabulary: dict[str, int],
    merges: Sequence[tuple[str, str]],
    pattern: str,
    path: Path | str,
    *,
    whole_words: bool = False,
    compose: bool = False,
    plain: Sequence[str] = (),
) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer. ModelFileDamagedError when merges and vocabulary don't fit together.

    `whole_words`: a word that is a piece is taken before any merge (tiktoken's rule); `compose`: text
    is brought into Unicode's NFC first (Qwen's); `plain`: pieces that are matched in text as they stand.
    """

    def build() -> tokenizers.Tokenizer:
        inner = tokenizers.Tokenizer(
            models.BPE(vocab=vocabulary, merges=list(merges), ignore_merges=whole_words)
        )
        inner.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        if compose:
            inner.normalizer = normalizers.NFC()
        inner.decoder = decoders.ByteLevel()
        if plain:
            inner.add_tokens([AddedToken(name, normalized=False) for name in plain])
        return inner

    return guarded(path, build)
