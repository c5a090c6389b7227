"""What a vocabulary is, whichever file it came from.

Two spellings of bytes are in use. GPT-2's (Radford et al. 2019): a piece is written with 256 printable
stand-ins, one a byte. SentencePiece's (Kudo and Richardson 2018): a piece is text, with U+2581 for a
space, and 256 pieces named <0x00> to <0xFF> for characters that no piece has.

Control tokens (begin of text, end of turn, roles) are names with ids that no text may produce. Some
vocabularies list them among the ordinary pieces; there they are stored under a name with a plain space
in front, which neither spelling can contain (`unreachable`), so that no rule of the tokenizer finds them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import tokenizers

from ayllu.errors import ModelFileDamagedError

T = TypeVar("T")

SPACE = "\u2581"  # SentencePiece's sign for a space
MAX_TOKENS = 4_000_000  # four times the largest vocabulary published
MAX_FILE_BYTES = 256 << 20

# A name that is markup: <s>, <|im_end|>, </think>, [INST]. Added tokens of this form are control tokens
# even where the file doesn't call them special (Qwen's <tool_call>, say).
_MARKUP = re.compile(r"<[^<>\s][^<>]{0,126}>|\[/?[A-Z][A-Z0-9_]{0,62}\]|<[|｜][^<>]{1,124}[|｜]>")


@dataclass
class Vocabulary:
    """Pieces and the rules that cut text into them.

    `inner` encodes (after `prepare`, where the library has no exact rule of its own); `spelling` is
    "bytes" (GPT-2) or "sentencepiece". `control` are the names that text never becomes, `hidden` the ids
    that have no text, `literal` the text of pieces that are spelt as they are. `prefix` goes in front
    of a text that a model is to continue; generation ends at any of `eos`.
    """

    inner: tokenizers.Tokenizer
    spelling: str
    control: dict[str, int]
    hidden: frozenset[int]
    literal: dict[int, bytes] = field(default_factory=dict)
    unknown: int | None = None
    bos: int | None = None
    eos: tuple[int, ...] = ()
    prefix: tuple[int, ...] = ()
    drops_first_space: bool = False  # decoding takes away the space that encoding put in front
    drops_more_spaces: bool = False  # and those of further pieces that are nothing but a space
    encode: Callable[[str], list[int]] | None = None  # where `inner` alone is not exact
    continuation: tokenizers.Tokenizer | None = (
        None  # encodes what follows a control token, where that differs
    )
    chat_templates: dict[str, str] = field(default_factory=dict)  # GGUF keeps them with the vocabulary


def is_markup(name: str) -> bool:
    """Whether an added token's name is of the form that only control tokens have."""
    return _MARKUP.fullmatch(name) is not None


def unreachable(name: str) -> str:
    """The name under which a control token lies in a table of pieces: no text is ever cut into it."""
    return " " + name


def damaged(path: Path | str, why: str) -> ModelFileDamagedError:
    """The error for a vocabulary that can't be read."""
    return ModelFileDamagedError(
        f"{path} is not a tokenizer that can be read", why=why[:300], fix="copy the whole model folder again"
    )


def read_file(path: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    """A vocabulary file's bytes. ModelFileDamagedError when it is larger than any real one."""
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise damaged(path, str(error)) from error
    if len(data) > limit:
        raise damaged(path, f"it is larger than {limit >> 20} MiB")
    return data


def guarded(path: Path | str, build: Callable[[], T]) -> T:
    """`build()` with the library's own complaints as ModelFileDamagedError.

    The library raises plain Exception for a malformed file, and where its Rust code panics, an exception
    that does not derive from Exception.
    """
    try:
        return build()
    except ModelFileDamagedError:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise damaged(path, str(error)) from error
        raise


def all_merges(
    pieces: dict[str, int], rank: dict[str, float], limit: int = 24_000_000
) -> list[tuple[str, str]]:
    """Every way to join two pieces into a third, in the order in which they are to be joined.

    SentencePiece and tiktoken join whatever neighbours form a known piece, the best-ranked first; the
    library wants the pairs spelt out. `rank`: lower is joined earlier; only pieces that it names are
    results. Work is linear in the characters of all pieces; ValueError above `limit`.
    """
    if sum(map(len, rank)) > limit:
        raise ValueError("the pieces have too many characters together")
    found: list[tuple[float, int, int, str, str]] = []
    for piece, order in rank.items():
        for cut in range(1, len(piece)):
            left = piece[:cut]
            if left in pieces and (right := piece[cut:]) in pieces:
                found.append((order, pieces[left], pieces[right], left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]
