"""A document: text that knows its licence and where it came from.

Provenance is a hard type here, not a comment in a readme: a row without a licence can't become a
`Document`, so that no text of unknown right ever reaches a mixture. The row keys of the JSONL form
(`lang`, `license`, `repo`) are those of the corpora people have; the field names are ours.
"""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ayllu.text.tags import primary_tag

# field of Document -> key of a JSONL row, where they differ
ROW_KEY = {"language": "lang", "licence": "license", "origin": "repo"}
_TEXT_FIELDS = (
    "id", "text", "language", "source", "licence", "origin", "commit", "path", "title", "author", "date",
)  # fmt: skip


@dataclass(frozen=True)
class Document:
    """One text. Only `id`, `text`, `source` and `licence` are always known."""

    id: str  # "source/number", or "source/number#part" for a part of a longer work
    text: str
    source: str
    licence: str  # SPDX identifier, or "public domain (why)"
    language: str = ""  # BCP 47 primary tag ("te"); empty: not labelled
    origin: str = ""  # repository or address
    commit: str = ""
    path: str = ""  # inside the origin
    title: str = ""
    author: str = ""
    year: int | None = None
    date: str = ""
    machine_translated: bool = False

    @property
    def bytes(self) -> int:
        """Length of the text in UTF-8."""
        return len(self.text.encode("utf-8"))

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the text in UTF-8."""
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()

    @property
    def work(self) -> str:
        """The work this is a part of: chapters share it. Held-out text is chosen by work.

        A title names a work (the 86 sections of one epic have ids of their own but one title);
        without a title it is the id up to '#'.
        """
        name = f"{self.author}: {self.title}" if self.title else self.id.split("#")[0]
        return f"{self.source}: {name}"

    def row(self) -> dict[str, Any]:
        """The JSONL form: only what is known (and the text, even when it is empty)."""
        row: dict[str, Any] = {"id": self.id, "text": self.text}
        for name in (*_TEXT_FIELDS, "year", "machine_translated"):
            value = getattr(self, name)
            if value != "" and value is not None and value is not False:
                row[ROW_KEY.get(name, name)] = value
        return row


def document_from_row(row: dict[str, Any], *, source: str, number: int) -> Document:
    """A `Document` from a JSONL row that has a text and a licence (the reader checks both).

    `source` and `number` name the document where the row does not.
    """
    values: dict[str, Any] = {}
    for name in _TEXT_FIELDS:
        value = row.get(ROW_KEY.get(name, name))
        if value not in (None, ""):  # an empty name is none, but an empty text is one
            values[name] = str(value)
    values.setdefault("text", "")
    values.setdefault("source", source)
    values.setdefault("id", f"{values['source']}/{number:05d}")
    values["language"] = primary_tag(values.get("language", ""))
    if isinstance(row.get("year"), int):
        values["year"] = row["year"]
    values["machine_translated"] = bool(row.get("machine_translated"))
    return Document(**values)


# ---- words
@functools.cache
def _word_pattern() -> re.Pattern[str]:
    """Letters and digits *with their combining marks*.

    Python's `\\w` leaves combining marks out, which would cut a Telugu word at every vowel sign. The
    two joiners belong to words too: they choose between forms of a conjunct.
    """
    marks = [c for c in range(0x300, 0xFFFF) if unicodedata.category(chr(c)).startswith("M")]
    spans: list[list[int]] = []
    for code in marks:
        if spans and spans[-1][1] == code - 1:
            spans[-1][1] = code
        else:
            spans.append([code, code])
    ranges = "".join(f"{re.escape(chr(a))}-{re.escape(chr(b))}" for a, b in spans)
    return re.compile(rf"[\w{ranges}\u200c\u200d]+")


def words(text: str) -> list[str]:
    """The words of `text`, in lower case, without punctuation."""
    return _word_pattern().findall(text.lower())


def tokens(text: str) -> list[str]:
    """Words and single signs, in lower case: `what is 417 + 385 ?` (for exact comparison of passages)."""
    return _token_pattern().findall(text.lower())


@functools.cache
def _token_pattern() -> re.Pattern[str]:
    return re.compile(rf"{_word_pattern().pattern}|\S")


def codes(names: list[str], cache: dict[str, int]) -> NDArray[np.uint64]:
    """A 64-bit hash of each word, the same on every machine. `cache` keeps those of words seen before."""
    code = np.empty(len(names), np.uint64)
    for i, name in enumerate(names):
        value = cache.get(name)
        if value is None:
            value = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
            cache[name] = value
        code[i] = value
    return code
