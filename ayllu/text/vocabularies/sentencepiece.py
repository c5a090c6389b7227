"""SentencePiece models (Kudo and Richardson 2018): `tokenizer.model` of Llama 1 and 2, Mistral and others.

The file is a protocol buffer: pieces with a score and a type, how they were trained, and how text is
normalised first: characters replaced by a precompiled map, extra spaces removed, a space put in front,
spaces written as U+2581. Then either byte-pair merges by score (Sennrich et al. 2016) or the unigram
language model's best path (Kudo 2018) cut the text, without any earlier split into words. What no
piece covers becomes bytes, where the vocabulary has them, or one <unk> for a run of such characters.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import tokenizers
from tokenizers import models

from ayllu.text.vocabularies import protobuf
from ayllu.text.vocabularies.charsmap import read_charsmap, replacer
from ayllu.text.vocabularies.vocabulary import (
    MAX_TOKENS,
    SPACE,
    Vocabulary,
    all_merges,
    damaged,
    guarded,
    is_markup,
    read_file,
    unreachable,
)


class Type(IntEnum):
    """What a piece is; the numbers of SentencePiece and of GGUF's tokenizer.ggml.token_type."""

    NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


@dataclass(frozen=True)
class Piece:
    """One piece; a higher score is joined earlier (BPE) or is likelier (unigram)."""

    text: str
    score: float
    type: int


@dataclass(frozen=True)
class PieceModel:
    """A SentencePiece model as data, wherever it was stored."""

    pieces: list[Piece]
    unigram: bool = False
    charsmap: bytes = b""
    dummy_prefix: bool = True
    remove_extra_spaces: bool = True
    escape_spaces: bool = True
    bos: int | None = None
    eos: int | None = None


def load_sentencepiece(path: Path) -> Vocabulary:
    """The vocabulary of a `tokenizer.model`. Errors: ModelFileDamagedError."""
    data = read_file(path)
    try:
        return build(read_model(data), path)
    except ValueError as error:  # UnicodeDecodeError too
        raise damaged(path, str(error)) from error


def read_model(data: bytes) -> PieceModel:
    """The protocol buffer as a PieceModel. ValueError when it is malformed or of another kind."""
    pieces: list[Piece] = []
    trained: dict[int, int | memoryview] = {}
    rules: dict[int, int | memoryview] = {}
    for number, value in protobuf.fields(memoryview(data)):
        if number == 1:
            pieces.append(_piece(protobuf.nested(value)))
            if len(pieces) > MAX_TOKENS:
                raise ValueError("it has too many pieces")
        elif number == 2:
            trained.update(protobuf.fields(protobuf.nested(value)))
        elif number == 3:
            rules.update(protobuf.fields(protobuf.nested(value)))
    kind = protobuf.number(trained.get(3, 1))
    if kind not in (1, 2):
        raise ValueError(f"its model type {kind} is neither unigram (1) nor BPE (2)")

    if protobuf.number(trained.get(24, 0)):
        raise ValueError("it puts spaces behind words, which no published language model does")

    def of_type(field: int, usual: str) -> int | None:
        name = protobuf.text(trained[field]) if field in trained else usual
        return next((i for i, p in enumerate(pieces) if p.text == name and p.type == Type.CONTROL), None)

    return PieceModel(
        pieces,
        unigram=kind == 1,
        charsmap=bytes(protobuf.nested(rules.get(2, memoryview(b"")))),
        dummy_prefix=bool(protobuf.number(rules.get(3, 1))),
        remove_extra_spaces=bool(protobuf.number(rules.get(4, 1))),
        escape_spaces=bool(protobuf.number(rules.get(5, 1))),
        bos=of_type(46, "<s>"),
        eos=of_type(47, "</s>"),
    )


def _piece(message: memoryview) -> Piece:
    text, score, kind = "", 0.0, int(Type.NORMAL)
    for number, value in protobuf.fields(message):
        if number == 1:
            text = protobuf.text(value)
        elif number == 2:
            score = protobuf.single(value)
        elif number == 3:
            kind = protobuf.number(value)
    return Piece(text, score, kind)


def build(model: PieceModel, path: Path | str) -> Vocabulary:
    """A PieceModel as a Vocabulary. ValueError or ModelFileDamagedError when it doesn't fit together."""
    _check(model)
    control: dict[str, int] = {}
    defined: dict[str, int] = {}
    for number, piece in enumerate(model.pieces):
        if piece.type == Type.CONTROL or (piece.type == Type.USER_DEFINED and is_markup(piece.text)):
            control[piece.text] = number
        elif piece.type == Type.USER_DEFINED:
            defined[piece.text] = number
    unknown = next(i for i, piece in enumerate(model.pieces) if piece.type == Type.UNKNOWN)
    fallback = [0] * 256
    # What lies under another name in the library's table says here what its text is.
    literal = {
        i: p.text.replace(SPACE, " ").encode() for i, p in enumerate(model.pieces) if p.type != Type.NORMAL
    }
    for number, piece in enumerate(model.pieces):
        if piece.type == Type.BYTE:
            value = int(piece.text[3:5], 16)
            fallback[value], literal[number] = number, bytes((value,))
    has_bytes = len({p.text for p in model.pieces if p.type == Type.BYTE}) == 256
    literal[unknown] = " \u2047 ".encode()  # SentencePiece's own sign for what it couldn't read
    cut = (_unigram if model.unigram else _bpe)(model, unknown, fallback if has_bytes else None, path)
    hidden = frozenset(i for i, p in enumerate(model.pieces) if p.type == Type.CONTROL)
    return Vocabulary(
        inner=cut.inner,
        spelling="sentencepiece",
        control=control,
        hidden=hidden,
        literal=literal,
        unknown=unknown,
        bos=model.bos,
        eos=() if model.eos is None else (model.eos,),
        prefix=() if model.bos is None else (model.bos,),
        drops_first_space=model.remove_extra_spaces or model.dummy_prefix,
        drops_more_spaces=model.remove_extra_spaces,
        encode=_encoder(model, defined, cut.encode),
    )


def _check(model: PieceModel) -> None:
    names = {piece.text for piece in model.pieces}
    if len(names) != len(model.pieces) or "" in names:
        raise ValueError("two pieces have the same name, or one has none")
    if sum(piece.type == Type.UNKNOWN for piece in model.pieces) != 1:
        raise ValueError("there is not exactly one piece for what is unknown")
    for piece in model.pieces:
        if piece.type not in Type.__members__.values():
            raise ValueError(f"a piece has the type {piece.type}")
        if not -1e30 < piece.score < 1e30:
            raise ValueError("a piece's score is not a number")
        if piece.type == Type.BYTE and not re.fullmatch("<0x[0-9A-F]{2}>", piece.text):
            raise ValueError(f"the piece {piece.text[:40]!r} is no byte")


@dataclass(frozen=True)
class _Cut:
    inner: tokenizers.Tokenizer
    encode: Callable[[str], list[int]]


def _names(model: PieceModel) -> list[str]:
    """The pieces' names; those that text must not reach are given unreachable ones."""
    return [p.text if p.type == Type.NORMAL else unreachable(p.text) for p in model.pieces]


def _bpe(model: PieceModel, unknown: int, fallback: list[int] | None, path: Path | str) -> _Cut:
    names = _names(model)
    if fallback is not None:  # the library looks for the bytes by their names; no merge leads there
        names = [p.text if p.type == Type.BYTE else name for name, p in zip(names, model.pieces, strict=True)]
    vocabulary = {name: number for number, name in enumerate(names)}
    usual = {p.text: i for i, p in enumerate(model.pieces) if p.type == Type.NORMAL}
    merges = all_merges(usual, {text: -model.pieces[i].score for text, i in usual.items() if len(text) > 1})
    inner = guarded(
        path,
        lambda: tokenizers.Tokenizer(
            models.BPE(
                vocab=vocabulary,
                merges=merges,
                unk_token=names[unknown],
                fuse_unk=True,
                byte_fallback=fallback is not None,
            )
        ),
    )
    return _Cut(inner, lambda text: inner.encode(text, add_special_tokens=False).ids)


def _unigram(model: PieceModel, unknown: int, fallback: list[int] | None, path: Path | str) -> _Cut:
    # A piece that no text reaches must not pull down the smallest score, from which the penalty for an
    # unknown character is counted.
    usual = [p.score for p in model.pieces if p.type == Type.NORMAL]
    top = max(usual, default=0.0)
    rows = []
    for name, piece in zip(_names(model), model.pieces, strict=True):
        if piece.type == Type.USER_DEFINED and not is_markup(piece.text):
            rows.append((piece.text, len(piece.text) * max(top, 0.0) - 0.1))  # SentencePiece's own rule
        else:
            rows.append((name, piece.score if piece.type == Type.NORMAL else top))
    inner = guarded(
        path, lambda: tokenizers.Tokenizer(models.Unigram(rows, unk_id=unknown, byte_fallback=False))
    )

    def encode(text: str) -> list[int]:
        found = inner.encode(text, add_special_tokens=False)
        if fallback is None or unknown not in found.ids:
            return found.ids
        ids: list[int] = []
        for number, (begin, end) in zip(found.ids, found.offsets, strict=True):
            if number == unknown:
                ids += [fallback[byte] for byte in text[begin:end].encode()]
            else:
                ids.append(number)
        return ids

    return _Cut(inner, encode)


def _encoder(
    model: PieceModel, defined: dict[str, int], cut: Callable[[str], list[int]]
) -> Callable[[str], list[int]]:
    """Normalise, set the user-defined pieces apart, cut the rest."""
    normalise = _normaliser(model, list(defined))
    if not defined or model.unigram:  # there the best path decides about them, too
        return lambda text: cut(normalise(text))
    apart = re.compile("(" + "|".join(re.escape(d) for d in sorted(defined, key=len, reverse=True)) + ")")

    def encode(text: str) -> list[int]:
        ids: list[int] = []
        for part in apart.split(normalise(text)):
            if part:
                ids += [defined[part]] if part in defined else cut(part)
        return ids

    return encode


def _normaliser(model: PieceModel, defined: list[str]) -> Callable[[str], str]:
    table = read_charsmap(model.charsmap) if model.charsmap else {}
    replace = replacer(table, defined) if table else None
    space = SPACE if model.escape_spaces else " "

    def normalise(text: str) -> str:
        if not text:
            return ""
        if replace is not None:
            text = replace(text)
        if model.remove_extra_spaces:
            text = re.sub(" {2,}", " ", text.lstrip(" "))
            if not text:
                return ""
        if model.dummy_prefix:
            text = " " + text
        text = text.replace(" ", space)
        # The last strip takes away signs that a person typed, too.
        return text.rstrip(space) if model.remove_extra_spaces else text

    return normalise
