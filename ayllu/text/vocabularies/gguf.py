"""The vocabulary inside a GGUF file: the metadata under `tokenizer.ggml.`.

"llama" is a SentencePiece model with its scores, "gpt2" byte-level BPE with its merges; for the latter
`pre` names the pattern that splits text into words (the GGUF specification, section "Tokenizer").
A file that carries a whole `tokenizer.json` under `tokenizer.huggingface.json` is read from that.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ayllu.errors import AylluWarning
from ayllu.gguf import read_header
from ayllu.text.vocabularies.bytelevel import BYTE_OF, GPT2, LLAMA3, QWEN2, QWEN35, byte_level
from ayllu.text.vocabularies.huggingface import from_json
from ayllu.text.vocabularies.sentencepiece import Piece, PieceModel, Type, build
from ayllu.text.vocabularies.vocabulary import (
    MAX_TOKENS,
    SPACE,
    Vocabulary,
    damaged,
    is_markup,
    unreachable,
)

# pre -> (pattern, whether whole words are looked up before merging, whether text is composed to NFC)
PATTERNS = {
    "default": (GPT2, False, False),
    "gpt-2": (GPT2, False, False),
    "llama-bpe": (LLAMA3, True, False),
    "llama3": (LLAMA3, True, False),
    "llama-v3": (LLAMA3, True, False),
    "qwen2": (QWEN2, False, True),
    "qwen35": (QWEN35, False, True),
}
BEGIN = ("llama-bpe", "llama3", "llama-v3")  # texts begin with BOS where nothing is said, as in llama.cpp
TEMPLATES = "additional_chat_templates"  # Hugging Face's folder for chat templates of other names
_KEY = "tokenizer.ggml."


def load_gguf(path: Path) -> Vocabulary:
    """The vocabulary of a GGUF file.

    Errors: ModelFileMissingError, ModelFileDamagedError.
    """
    values = read_header(path).metadata
    try:
        return from_metadata(values, path)
    except (ValueError, TypeError, OverflowError) as error:  # UnicodeDecodeError too
        raise damaged(path, str(error)) from error


def from_metadata(values: dict[str, Any], path: Path) -> Vocabulary:
    """The vocabulary of a GGUF header's metadata. ValueError or ModelFileDamagedError when malformed."""
    whole = values.get("tokenizer.huggingface.json")
    if isinstance(whole, str) and whole:
        found = from_json(whole.encode(), path)
    else:
        kind = _value(values, "model", str, "")
        if kind == "llama":
            found = _sentencepiece(values, path)
        elif kind == "gpt2":
            found = _byte_pairs(values, path)
        else:
            raise damaged(path, f"its vocabulary is of the kind {kind[:40]!r}; known are 'llama' and 'gpt2'")
    size = len(_array(values, "tokens"))
    found.bos = _id(values, "bos_token_id", size, found.bos)
    ends = [_id(values, f"{name}_token_id", size) for name in ("eos", "eot", "eom")]
    found.eos = tuple(dict.fromkeys(end for end in (*ends, *found.eos) if end is not None))
    # A whole tokenizer.json says by itself what a text begins with.
    begins = bool(found.prefix) or (not whole and _value(values, "pre", str, "") in BEGIN)
    adds = _value(values, "add_bos_token", bool, begins)
    found.prefix = (found.bos,) if adds and found.bos is not None else ()
    found.chat_templates = {
        key.removeprefix("tokenizer.chat_template").removeprefix(".") or "default": value
        for key, value in values.items()
        if isinstance(value, str) and key.split(".")[:2] == ["tokenizer", "chat_template"]
    }
    return found


def _sentencepiece(values: dict[str, Any], path: Path) -> Vocabulary:
    tokens, scores, types = _array(values, "tokens"), _array(values, "scores"), _array(values, "token_type")
    if not len(tokens) == len(scores) == len(types) <= MAX_TOKENS:
        raise ValueError("it doesn't have one score and one type for each piece")
    pieces = [Piece(str(t), float(s), int(k)) for t, s, k in zip(tokens, scores, types, strict=True)]
    model = PieceModel(
        pieces,
        dummy_prefix=_value(values, "add_space_prefix", bool, True),
        remove_extra_spaces=_value(values, "remove_extra_whitespaces", bool, False),
        bos=_id(values, "bos_token_id", len(pieces)),
        eos=_id(values, "eos_token_id", len(pieces)),
    )
    return build(model, path)


def _byte_pairs(values: dict[str, Any], path: Path) -> Vocabulary:
    tokens, types = _array(values, "tokens"), _array(values, "token_type", needed=False)
    if len(types) not in (0, len(tokens)) or len(tokens) > MAX_TOKENS:
        raise ValueError("it doesn't have one type for each piece")
    if _KEY + "pre" not in values:  # files of before May 2024
        warnings.warn(
            f"{path} doesn't say how its text is split into words: it is done as GPT-2 does it, and "
            "may differ from the model's own way",
            AylluWarning,
            stacklevel=2,
        )
    pre = _value(values, "pre", str, "default")
    if pre not in PATTERNS:
        raise damaged(path, f"its pattern for words is {pre[:40]!r}; known are {', '.join(sorted(PATTERNS))}")
    pattern, whole_words, compose = PATTERNS[pre]
    merges = []
    for merge in _array(values, "merges"):
        left, gap, right = str(merge).partition(" ")
        if not (left and gap and right):
            raise ValueError(f"the merge {str(merge)[:40]!r} is not two pieces")
        merges.append((left, right))
    vocabulary: dict[str, int] = {}
    control: dict[str, int] = {}
    plain: list[str] = []
    literal: dict[int, bytes] = {}
    hidden: set[int] = set()
    for number, name in enumerate(map(str, tokens)):
        kind = int(types[number]) if len(types) else Type.NORMAL
        special = kind in (Type.CONTROL, Type.UNKNOWN)
        if special or kind == Type.UNUSED or (kind == Type.USER_DEFINED and is_markup(name)):
            if kind != Type.UNUSED:
                control[name] = number
            name = unreachable(name)
        elif kind == Type.USER_DEFINED:
            plain.append(name.replace(SPACE, " "))
            literal[number], name = plain[-1].encode(), plain[-1]
        elif not set(name) <= BYTE_OF.keys():
            raise ValueError(f"the piece {name[:40]!r} is not spelt in bytes")
        if special or kind == Type.UNUSED:
            hidden.add(number)
        elif name.startswith(" "):
            literal.setdefault(number, name[1:].encode())
        if name in vocabulary:
            raise ValueError(f"the piece {name[:40]!r} is there twice")
        vocabulary[name] = number
    inner = byte_level(
        vocabulary, merges, pattern, path, whole_words=whole_words, compose=compose, plain=plain
    )
    return Vocabulary(
        inner=inner,
        spelling="bytes",
        control=control,
        hidden=frozenset(hidden),
        literal=literal,
        bos=_id(values, "bos_token_id", len(tokens)),
        prefix=(),
    )


def _value(values: dict[str, Any], name: str, kind: type, usual: Any) -> Any:
    found = values.get(_KEY + name)
    if found is None:
        return usual
    if not isinstance(found, kind):
        raise ValueError(f"{_KEY}{name} is of the wrong type")
    return found


def _array(values: dict[str, Any], name: str, *, needed: bool = True) -> Sequence[Any]:
    found = values.get(_KEY + name)
    if found is None and not needed:
        return ()
    if found is None or isinstance(found, str | bytes) or not hasattr(found, "__len__"):
        raise ValueError(f"{_KEY}{name} is not an array")
    return found


def _id(values: dict[str, Any], name: str, size: int, usual: int | None = None) -> int | None:
    found = values.get(_KEY + name)
    if found is None:
        return usual
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < size:
        raise ValueError(f"{_KEY}{name} is not the id of a piece")
    return found
