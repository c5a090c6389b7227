"""Decontamination: no document may hold a problem that the model is evaluated on.

Two kinds of evidence, each an exact match of tokens (words and single signs; case, spacing, forms of
quotation marks and dashes, and invisible characters don't count), so that a flag can be shown side by
side with the problem and judged by eye:

- A **passage**: thirteen tokens in a row from an evaluation text (GPT-3, Brown et al. 2020, appendix C,
  used 13-grams). At least eight of them must be different: rows of dashes, tables of zeros and
  "1, 2, 3, 1, 2, 3" are not evidence. In an audit of such flags elsewhere 88 of 114 were false.
- A **whole short problem**: evaluation problems such as "What is 417 + 385?" have fewer than thirteen
  tokens. A part of one ("what is 417") means nothing, the whole of it means everything; so it must
  occur complete, numbers and signs included. Problems of fewer than five tokens or twelve characters
  are no evidence at all ("Hello!"), nor are long ones without a passage; they are counted, so that the
  report can say so.

Documents and problems are brought into the same form first (`compared`): a problem that was copied from a
page with soft hyphens, in decomposed letters or with a telephone number in it is the same problem.

Documents are tested as a whole: one hit drops the document and the hit is recorded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ayllu.text.clean import normalise, remove_private
from ayllu.text.document import codes, tokens

PASSAGE = 13  # tokens
DISTINCT = 8  # different tokens in a passage
SHORTEST_TOKENS, SHORTEST_CHARACTERS = 5, 12  # of a whole short problem
# One sign for all forms of it; the zero-width joiners go, since Telugu is written with and without them.
_ONE_FORM = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201a\u201b\u02bc\u2032`\u00b4", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033", '"')
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-")
    | dict.fromkeys("\u200c\u200d", "")
)


def one_form(text: str) -> str:
    """`text` without differences of case and of the forms of signs."""
    return text.translate(_ONE_FORM).casefold()


def compared(text: str) -> list[str]:
    """The tokens of `text` in the form in which texts are compared."""
    plain, _ = remove_private(normalise(text))
    return tokens(one_form(plain))


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
    too_short: int = 0  # texts that are no evidence, too short or too much alike in themselves
    digest: str = ""  # hex SHA-256 over the texts, for the manifest
    rows: dict[int, tuple[NDArray[np.uint64], NDArray[np.int64]]] = field(default_factory=dict)
    cache: dict[str, int] = field(default_factory=dict)  # token -> its code

    def find(self, text: str) -> Hit | None:
        """The first overlap of `text` with an evaluation text, longest kind first."""
        names = compared(text)
        code = codes(names, self.cache)
        for length in sorted(self.rows, reverse=True):
            hashes, owners = self.rows[length]
            mine = _hash_rows(code, length)
            place = np.minimum(np.searchsorted(hashes, mine), len(hashes) - 1)
            for start in np.flatnonzero(hashes[place] == mine):
                passage = names[start : start + length]
                owner = self.texts[int(owners[place[start]])]
                if _contains(compared(owner), passage):  # equal hashes are not yet equal words
                    return Hit(owner[:200], " ".join(passage), length)
        return None


def index_evaluations(texts: Iterable[str]) -> EvaluationIndex:
    """Index the problems' texts. Equal texts count once."""
    index = EvaluationIndex(texts=list(dict.fromkeys(texts)))
    index.digest = hashlib.sha256("\0".join(index.texts).encode()).hexdigest()
    found: dict[int, dict[int, int]] = {}
    for number, text in enumerate(index.texts):
        names = compared(text)
        length = min(PASSAGE, len(names))
        short = len(names) < SHORTEST_TOKENS or len(text.strip()) < SHORTEST_CHARACTERS
        rows = [] if short else _hash_rows(codes(names, index.cache), length).tolist()
        evidence = [
            value
            for start, value in enumerate(rows)
            if length < PASSAGE or len(set(names[start : start + length])) >= DISTINCT
        ]
        index.too_short += not evidence
        for value in evidence:
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
