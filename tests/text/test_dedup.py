"""Duplicates: against a comparison of all pairs, and by construction."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ayllu.text.dedup import (
    BANDS,
    NEAR,
    ROWS,
    band_keys,
    find_duplicates,
    jaccard,
    shingle_set,
    signature,
)
from ayllu.text.document import Document, words


def documents(*texts: str) -> list[Document]:
    return [Document(id=f"a/{n}", text=t, source="a", licence="CC0-1.0") for n, t in enumerate(texts)]


def true_jaccard(a: str, b: str) -> float:
    def shingles(text: str) -> set[tuple[str, ...]]:
        names = words(text)
        size = max(min(5, len(names)), 1)
        return {tuple(names[i : i + size]) for i in range(max(len(names) - size + 1, 0))}

    mine, other = shingles(a), shingles(b)
    return len(mine & other) / max(len(mine | other), 1)


def edit(text: str, share: float, rng: random.Random) -> str:
    return " ".join(f"edited{rng.randint(0, 999)}" if rng.random() < share else w for w in text.split())


word_lists = st.lists(st.sampled_from(["a", "b", "కారు", "ß"]), max_size=30)


@given(word_lists, word_lists)
def test_similarity_is_that_of_the_sets(a: list[str], b: list[str]) -> None:
    cache: dict[str, int] = {}
    mine, other = shingle_set(a, cache), shingle_set(b, cache)
    if len(a) >= 5 and len(b) >= 5:
        assert jaccard(mine, other) == pytest.approx(true_jaccard(" ".join(a), " ".join(b)))
    assert jaccard(mine, mine) == (1.0 if a else 0.0)
    assert len(np.unique(mine)) == len(mine)


def test_equal_minima_estimate_the_similarity() -> None:
    # Broder 1997: the share of agreeing minima is an unbiased estimate. 120 minima: sigma < 0.046 each.
    rng = np.random.default_rng(0)
    errors = []
    for similarity in (0.2, 0.5, 0.8):
        for _ in range(20):
            pool = rng.integers(0, 2**63, 2000, np.uint64)
            shared = int(2 * 1000 * similarity / (1 + similarity))
            a, b = np.unique(pool[:1000]), np.unique(pool[1000 - shared : 2000 - shared])
            errors.append(np.mean(signature(a) == signature(b)) - jaccard(a, b))
    assert abs(np.mean(errors)) < 0.02
    assert np.std(errors) < 0.06


def test_a_signature_does_not_depend_on_the_block_size() -> None:
    shingles = np.random.default_rng(0).integers(0, 2**63, 40_000, np.uint64)
    parts = [signature(shingles[i : i + 999]) for i in range(0, 40_000, 999)]
    assert (signature(shingles) == np.min(parts, axis=0)).all()
    assert len(band_keys(signature(shingles))) == BANDS and len(signature(shingles)) == BANDS * ROWS


def test_exact_duplicates_ignore_case_spacing_and_punctuation() -> None:
    (twin,) = find_duplicates(documents("The fox, it jumps!", "Something else here", "the  FOX it\njumps"))
    assert (twin.dropped, twin.kept, twin.similarity, twin.exact) == (2, 0, 1.0, True)
    (twin,) = find_duplicates(documents("Die Straße hinunter", "DIE STRASSE HINUNTER"))
    assert twin.exact


def test_each_dropped_document_names_a_kept_twin(paragraphs: dict[str, list[str]]) -> None:
    rng = random.Random(0)
    base = paragraphs["en"][:40]
    copies = [edit(text, 0.05, rng) for text in base] + [edit(edit(base[0], 0.05, rng), 0.05, rng)]
    twins = find_duplicates(documents(*base, *copies))
    dropped = {t.dropped for t in twins}
    assert all(t.kept not in dropped for t in twins)
    for twin in twins:
        texts = [*base, *copies]
        assert twin.similarity == pytest.approx(true_jaccard(texts[twin.dropped], texts[twin.kept]), abs=1e-4)
        assert twin.similarity >= NEAR


@pytest.mark.parametrize("language", ["en", "de", "te"])
def test_the_hashes_find_what_a_comparison_of_all_pairs_finds(
    paragraphs: dict[str, list[str]], language: str
) -> None:
    rng = random.Random(1)
    base = paragraphs[language][:60]
    texts = base + [edit(text, rng.choice([0.02, 0.05, 0.1, 0.2, 0.5]), rng) for text in base]
    wanted = {i for i in range(len(texts)) if any(true_jaccard(texts[i], texts[j]) >= NEAR for j in range(i))}
    found = {t.dropped for t in find_duplicates(documents(*texts))}
    assert found <= wanted, "a candidate is verified: none is accused falsely"
    assert len(found) >= 0.93 * len(wanted)


def test_near_one_finds_exact_duplicates_only(paragraphs: dict[str, list[str]]) -> None:
    text = paragraphs["en"][0]
    twins = find_duplicates(documents(text, text + " And more.", text), near=1.0)
    assert [(t.dropped, t.exact) for t in twins] == [(2, True)]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text("ab ", max_size=12), max_size=12))
def test_the_first_of_equals_stays(texts: list[str]) -> None:
    twins = find_duplicates(documents(*texts), near=1.0)
    dropped = {t.dropped for t in twins}
    kept = [" ".join(words(t)) for n, t in enumerate(texts) if n not in dropped]
    assert len(kept) == len(set(kept)) == len({" ".join(words(t)) for t in texts})


def test_the_same_documents_give_the_same_twins(paragraphs: dict[str, list[str]]) -> None:
    rng = random.Random(2)
    texts = [edit(paragraphs["de"][n % 5], 0.08, rng) for n in range(30)]
    assert find_duplicates(documents(*texts)) == find_duplicates(documents(*texts))
