"""Decontamination: no document may hold a problem that the model is evaluated on.

Two kinds of evidence, each an exact match of tokens (words and single signs, in lower case, spacing
ignored), so that a flag can be shown side by side with the problem and judged by eye:

- A **passage**: thirteen tokens in a row from an evaluation text (GPT-3, Brown et al. 2020, appendix C,
  used 13-grams). At least eight of them must be different: rows of dashes, tables of zeros and
  "1, 2, 3, 1, 2, 3" are not evidence. In an audit of such flags elsewhere 88 of 114 were false.
- A **whole short problem**: evaluation problems such as "What is 417 + 385?" have fewer than thirteen
  tokens. A part of one ("what is 417") means nothing, the whole of it means everything; so it must
  occur complete, numbers and signs included. Problems of fewer than five tokens or twelve characters
  are no evidence at all ("Hello!"); they are counted, so that the report can say so.

Documents are tested as a whole: one hit drops the document and the hit is recorded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ayllu.text.document import codes, tokens

PASSAGE = 13  # tokens
DISTINCT = 8  # different tokens in a passage
SHORTEST_TOKENS, SHORTEST_CHARACTERS = 5, 12  # of a whole short problem


@dataclass(frozen=True)
class Hit:
    """An overlap of a document with an evaluation text."""

    evaluation: str  # the evaluation text, its first 200 characters
    passage: str  # the tokens that both have
    tokens: int


@dataclass
class EvaluationIndex:
    """The evaluation texts, ready to be looked up: per length the sorted hashes of their token rows."""

    texts: list[str] = field(default_factory=list)
    too_short: int = 0  # texts that are no evidence
    digest: str = ""  # hex SHA-256 over the texts, for the manifest
    rows: dict[int, tuple[NDArray[np.uint64], NDArray[np.int64]]] = field(default_factory=dict)
    cache: dict[str, int] = field(default_factory=dict)  # token -> its code

    def find(self, text: str) -> Hit | None:
        """The first overlap of `text` with an evaluation text, longest kind first."""
        names = tokens(text)
        code = codes(names, self.cache)
        for length in sorted(self.rows, reverse=True):
            hashes, owners = self.rows[length]
            mine = _hash_rows(code, length)
            place = np.minimum(np.searchsorted(hashes, mine), len(hashes) - 1)
            for start in np.flatnonzero(hashes[place] == mine):
                passage = names[start : start + length]
                owner = self.texts[int(owners[place[start]])]
                if _contains(tokens(owner), passage):  # equal hashes are not yet equal words
                    return Hit(owner[:200], " ".join(passage), length)
        return None


def index_evaluations(texts: Iterable[str]) -> EvaluationIndex:
    """Index the problems' texts. Equal texts count once."""
    index = EvaluationIndex(texts=list(dict.fromkeys(texts)))
    index.digest = hashlib.sha256("\0".join(index.texts).encode()).hexdigest()
    found: dict[int, dict[int, int]] = {}
    for number, text in enumerate(index.texts):
        names = tokens(text)
        if len(names) < SHORTEST_TOKENS or len(text.strip()) < SHORTEST_CHARACTERS:
            index.too_short += 1
            continue
        length = min(PASSAGE, len(names))
        for start, value in enumerate(_hash_rows(codes(names, index.cache), length).tolist()):
            if length < PASSAGE or len(set(names[start : start + length])) >= DISTINCT:
                found.setdefault(length, {}).setdefault(value, number)
    for length, owner in found.items():
        hashes = np.array(sorted(owner), np.uint64)
        index.rows[length] = hashes, np.array([owner[int(h)] for h in hashes], np.int64)
    return index


def _hash_rows(code: NDArray[np.uint64], length: int) -> NDArray[np.uint64]:
    """A hash of each row of `length` tokens: a polynomial with an odd factor, modulo 2^64."""
    count = max(len(code) - length + 1, 0)
    total = np.zeros(count, np.uint64)
    for i in range(length):
        total = total * np.uint64(0x9E3779B97F4A7C15) + code[i : i + count]
    return total


def _contains(names: list[str], passage: list[str]) -> bool:
    size = len(passage)
    return any(names[i : i + size] == passage for i in range(len(names) - size + 1))
