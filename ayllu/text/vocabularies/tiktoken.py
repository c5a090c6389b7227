"""Llama 3's `tokenizer.model`: tiktoken's form of byte-level BPE, ranks without merges.

Each line is a piece in base64 and its rank, which is its id and the time at which it is joined. 256
reserved names follow behind the last rank (Llama 3 model card, and the reference code's list of names).
"""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import Path

from ayllu.text.vocabularies.bytelevel import LLAMA3, byte_level, signs
from ayllu.text.vocabularies.vocabulary import Vocabulary, all_merges, damaged, read_file

_LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2}) ([0-9]{1,8})")
_MAX_BYTES = 16 << 20
_MAX_PIECE = 2048  # bytes; the longest in use has 128

# Places 0 to 255 behind the ranks; what is not named is reserved_special_token_N, counted in order.
_NAMED = {
    0: "begin_of_text",
    1: "end_of_text",
    4: "finetune_right_pad_id",
    6: "start_header_id",
    7: "end_header_id",
    8: "eom_id",
    9: "eot_id",
    10: "python_tag",
}


def reserved_names() -> list[str]:
    """The 256 control tokens of Llama 3 (3.1's names) in order."""
    names, count = [], 0
    for place in range(256):
        if place in _NAMED:
            names.append(f"<|{_NAMED[place]}|>")
        else:
            names.append(f"<|reserved_special_token_{count}|>")
            count += 1
    return names


def looks_like_ranks(data: bytes) -> bool:
    """Whether a file begins like one of tiktoken's."""
    return _LINE.fullmatch(data[: 4 * _MAX_PIECE].split(b"\n", 1)[0].rstrip(b"\r")) is not None


def load_tiktoken(path: Path) -> Vocabulary:
    """The vocabulary of a rank file with Llama 3's pattern and names. Errors: ModelFileDamagedError."""
    ranks = read_ranks(read_file(path, _MAX_BYTES), path)
    vocabulary = {signs(raw): rank for raw, rank in ranks.items()}
    try:
        merges = all_merges(vocabulary, {p: rank for p, rank in vocabulary.items() if len(p) > 1})
    except ValueError as error:
        raise damaged(path, str(error)) from error
    inner = byte_level(vocabulary, merges, LLAMA3, path, whole_words=True)
    control = {name: len(ranks) + i for i, name in enumerate(reserved_names())}
    begin = control["<|begin_of_text|>"]
    ends = tuple(control[f"<|{name}|>"] for name in ("end_of_text", "eom_id", "eot_id"))
    return Vocabulary(
        inner=inner,
        spelling="bytes",
        control=control,
        hidden=frozenset(control.values()),
        bos=begin,
        eos=ends,
        prefix=(begin,),
    )


def read_ranks(data: bytes, path: Path | str) -> dict[bytes, int]:
    """Piece -> rank; ranks are 0, 1, 2, ... and all 256 bytes are there. Errors: ModelFileDamagedError."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        found = _LINE.fullmatch(line)
        if found is None:
            raise damaged(path, f"line {number} is not a piece in base64 and its rank")
        try:
            piece = base64.b64decode(found[1], validate=True)
        except binascii.Error as error:
            raise damaged(path, f"line {number}: {error}") from error
        if not 1 <= len(piece) <= _MAX_PIECE or piece in ranks:
            raise damaged(path, f"line {number}: the piece is too long or was there already")
        ranks[piece] = int(found[2])
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise damaged(path, "the ranks are not 0, 1, 2, ... without gaps")
    if not all(bytes((byte,)) in ranks for byte in range(256)):
        raise damaged(path, "not every byte is a piece")
    return ranks
