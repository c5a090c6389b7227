"""Duplicates: exact ones by hash, near ones by MinHash; each dropped document names its twin.

MinHash (Broder 1997, "On the resemblance and containment of documents"): under a random permutation
of all shingles, two sets have the same minimum with a probability equal to their Jaccard similarity.
Signatures are cut into bands (Indyk & Motwani 1998); documents that agree on a band are *candidates*,
and the true Jaccard similarity of their shingles decides. So the hashes can miss a pair but never
accuse one.

How similar is "near"? A shingle is five words. Replacing every tenth word leaves 0.9^5 = 59 % of the
shingles, a Jaccard similarity of 0.59 / (2 - 0.59) = 0.42. The threshold of 0.4 thus catches a text in
which a tenth of the words was edited; the 0.75 to 0.8 that is usual for web crawls would not. Unrelated
texts share almost no five-word shingle (below 0.05), so there is room.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ayllu.text.document import Document, codes, words

SHINGLE = 5  # words
BANDS, ROWS = 40, 3  # a pair of similarity s is a candidate with probability 1 - (1 - s^3)^40: 0.93 at 0.4
NEAR = 0.4  # Jaccard similarity from which a document is a near duplicate; with less the bands miss most
_BLOCK = 1 << 14  # shingles hashed at once: bounds the memory at 120 x 16384 x 8 bytes = 16 MB


@dataclass(frozen=True)
class Twin:
    """Why a document was dropped: the kept document that it repeats."""

    dropped: int  # position in the list
    kept: int
    similarity: float  # 1.0 for an exact duplicate
    exact: bool


def find_duplicates(documents: list[Document], *, near: float = NEAR) -> list[Twin]:
    """The documents that repeat an earlier one. The first of equals stays: the result depends only on
    the order of `documents`. `near` = 1 finds exact duplicates only."""
    kept: list[int] = []
    twins: list[Twin] = []
    exact: dict[bytes, int] = {}
    bands: dict[bytes, list[int]] = {}
    shingles: dict[int, NDArray[np.uint64]] = {}
    word_codes: dict[str, int] = {}
    for position, document in enumerate(documents):
        names = words(document.text)
        digest = hashlib.sha256(" ".join(names).casefold().encode()).digest()  # "STRASSE" is "Straße"
        if digest in exact:
            twins.append(Twin(position, exact[digest], 1.0, True))
            continue
        if near < 1:
            mine = shingle_set(names, word_codes)
            keys = band_keys(signature(mine))
            candidates = sorted({other for key in keys for other in bands.get(key, ())})
            similar = [(jaccard(mine, shingles[other]), -other) for other in candidates]
            best, other = max(similar, default=(0.0, 0))
            if best >= near:
                twins.append(Twin(position, -other, round(best, 4), False))
                continue
            shingles[position] = mine
            for key in keys:
                bands.setdefault(key, []).append(position)
        exact[digest] = position
        kept.append(position)
    return twins


def shingle_set(names: list[str], word_codes: dict[str, int]) -> NDArray[np.uint64]:
    """The distinct five-word shingles of a document as sorted 64-bit hashes. `word_codes` is a cache."""
    code = codes(names, word_codes)
    size = max(min(SHINGLE, len(code)), 1)
    mixed = np.zeros(max(len(code) - size + 1, 0), np.uint64)
    for i in range(size):
        mixed = _mix(mixed + code[i : i + len(mixed)])
    return np.unique(mixed)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser: every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _permutations() -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    rng = np.random.Generator(np.random.PCG64(1997))
    limit = np.iinfo(np.uint64).max
    factor_P = rng.integers(0, limit, BANDS * ROWS, np.uint64) | np.uint64(1)  # odd: a bijection modulo 2^64
    return factor_P, rng.integers(0, limit, BANDS * ROWS, np.uint64)


_FACTOR_P, _ADDEND_P = _permutations()


def signature(shingles_S: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The minimum of the shingles under each of the 120 permutations (all ones for no shingle)."""
    lowest_P = np.full(len(_FACTOR_P), np.iinfo(np.uint64).max, np.uint64)
    for start in range(0, len(shingles_S), _BLOCK):
        block_S = shingles_S[start : start + _BLOCK]
        hashed_PS = block_S[None, :] * _FACTOR_P[:, None] + _ADDEND_P[:, None]
        lowest_P = np.minimum(lowest_P, hashed_PS.min(1))
    return lowest_P


def band_keys(lowest_P: NDArray[np.uint64]) -> list[bytes]:
    """One key per band: its number and its three minima."""
    return [bytes([band]) + part.tobytes() for band, part in enumerate(lowest_P.reshape(BANDS, ROWS))]


def jaccard(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> float:
    """Shared shingles of all shingles of two sorted sets."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / max(len(a) + len(b) - shared, 1)
