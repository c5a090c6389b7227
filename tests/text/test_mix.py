"""Held-out works, the mixture table, balanced languages."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ayllu.text.document import Document
from ayllu.text.mix import balance_languages, hold_out, mixture_table, within


def make(language: str, work: int, part: int, size: int, source: str = "books") -> Document:
    return Document(
        id=f"{source}-{language}/{work}#{part}",
        text="x" * size,
        source=f"{source}-{language}",
        licence="CC0-1.0" if work % 2 else "CC-BY-4.0",
        language=language,
    )


shapes = st.lists(
    st.tuples(
        st.sampled_from(["en", "de", "te"]), st.integers(0, 12), st.integers(0, 4), st.integers(1, 500)
    ),
    min_size=1,
    max_size=60,
    unique_by=lambda shape: shape[:3],
)


@given(shapes, st.floats(0.01, 0.5), st.integers(0, 3))
def test_works_never_straddle_and_no_language_is_left_out(shape: list, share: float, seed: int) -> None:
    documents = [make(*s) for s in shape]
    split = hold_out(documents, share=share, seed=seed)
    by_language: dict[str, list[Document]] = {}
    for document in documents:
        by_language.setdefault(document.language, []).append(document)
    for language, group in by_language.items():
        held = [d for d in group if d.id in split.heldout]
        train = [d for d in group if d.id not in split.heldout]
        assert train, "something is left to learn from"
        works = {d.work for d in group}
        if len(works) > 1:
            assert held
            assert not {d.work for d in held} & {d.work for d in train}
            smallest = min(sum(d.bytes for d in group if d.work == w) for w in works)
            budget = share * sum(d.bytes for d in group)
            assert sum(d.bytes for d in held) <= max(budget, smallest) + 1e-6
        else:
            assert any(note.startswith(f"{language}: one ") for note in split.notes)
            assert bool(held) == (len(group) > 1)


@given(shapes, st.integers(0, 3), st.randoms())
def test_the_choice_does_not_depend_on_the_order_of_files(shape: list, seed: int, random: object) -> None:
    # Several works only: of a single work the last part is held out, and that is a matter of order.
    documents = [make(*s) for s in shape] + [make(lang, 99, 0, 9) for lang in ("en", "de", "te")]
    documents += [make(lang, 98, 0, 9) for lang in ("en", "de", "te")]
    shuffled = documents.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert hold_out(documents, share=0.1, seed=seed) == hold_out(shuffled, share=0.1, seed=seed)


def test_another_seed_holds_out_other_works() -> None:
    documents = [make("en", work, part, 50) for work in range(40) for part in range(3)]
    splits = {hold_out(documents, share=0.1, seed=seed).heldout for seed in range(5)}
    assert len(splits) > 1
    assert all(len(held) == 12 for held in splits)


def novel(part: int, *, language: str = "de", source: str = "novels", title: str = "Effi Briest") -> Document:
    return Document(
        id=f"{source}/{title}#{part}", text="x" * 100, source=source, licence="CC0-1.0", language=language,
        title=title, author="Theodor Fontane",
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_editions_and_translations_lie_on_one_side(seed: int) -> None:
    titles = [f"Novel {n}" for n in range(6)]
    documents = [novel(0, title=t, source=s) for t in titles for s in ("novels", "other")]
    documents += [novel(n, title=t, language="en") for t in titles[:4] for n in (1, 2)]
    documents += [novel(3, title=titles[5], language="nl"), novel(4, title=titles[5], language="nl")]
    split = hold_out(documents, share=0.2, seed=seed)
    sides = {title: {d.id in split.heldout for d in documents if d.title == title} for title in titles}
    assert all(len(side) == 1 for side in sides.values())
    for language in ("de", "en"):
        assert any(d.id in split.heldout for d in documents if d.language == language)
        assert any(d.id not in split.heldout for d in documents if d.language == language)
    assert any(note.startswith("nl: ") for note in split.notes), "its only work is another language's, too"


@pytest.mark.parametrize("seed", range(8))
def test_a_small_part_in_another_language_does_not_hold_out_most_of_the_first(seed: int) -> None:
    large = [replace(novel(n, title="Large"), text="x" * 6000) for n in range(10)]
    small = [novel(0, title=f"Small {n}") for n in range(400)]
    others = [novel(n, title=f"Te {n}", language="te") for n in range(9)]
    others.append(novel(0, title="Large", language="te"))
    split = hold_out([*large, *small, *others], share=0.05, seed=seed)
    held = sum(d.bytes for d in [*large, *small] if d.id in split.heldout)
    assert 0 < held <= 0.05 * 100_000 and not split.notes[:-1]


def test_one_work_in_two_languages_still_gives_its_last_parts() -> None:
    """A long file with a foreign appendix, or a book with its translation, and nothing else."""
    parts = [novel(n, language="de" if n < 8 else "en") for n in range(10)]
    split = hold_out(parts, share=0.1, seed=0)
    assert split.heldout == {parts[7].id, parts[9].id}
    assert split.notes == (
        "de: one work only, its last part is held out", "en: one work only, its last part is held out"
    )  # fmt: skip


def test_one_title_by_two_authors_is_two_works() -> None:
    documents = [replace(novel(0, title="Poems"), id=f"p/{n}", author=f"Author {n}") for n in range(50)]
    assert len(hold_out(documents, share=0.1, seed=0).heldout) == 5


def test_what_large_works_hold_out_is_said() -> None:
    documents = [make("de", work, 0, 1000 + work) for work in range(2)]
    split = hold_out(documents, share=0.04, seed=0)
    assert split.notes == ("de: its works are large, 50% of it is held out",)


def test_many_works_are_drawn_in_moderate_time() -> None:
    documents = [make("en", work, 0, 100 + work % 7) for work in range(20_000)]
    begun = time.process_time()
    held = hold_out(documents, share=0.3, seed=0).heldout
    assert time.process_time() - begun < 3, "looking at all that wait for each work drawn takes minutes"
    assert 5_900 < len(held) < 6_100


def test_every_source_gives_its_share() -> None:
    documents = [make("en", w, 0, 10, source) for source in ("a", "b", "c") for w in range(100)]
    held = hold_out(documents, share=0.1, seed=0).heldout
    assert Counter(name[0] for name in held) == {"a": 10, "b": 10, "c": 10}


def test_the_table_adds_up() -> None:
    documents = [make("en", 1, 0, 100), make("en", 2, 0, 200), make("te", 1, 0, 100)]
    table = mixture_table(
        documents,
        frozenset({documents[0].id}),
        {("books-te", "te"): Counter(too_short=2, gibberish=1), ("gone", "de"): Counter(too_short=1)},
    )
    assert [(r["source"], r["documents"], r["bytes"], r["share"], r["dropped"]) for r in table] == [
        ("books-en", 2, 300, 0.75, 0),
        ("books-te", 1, 100, 0.25, 3),
        ("gone", 0, 0, 0.0, 1),
    ]
    assert table[0]["heldout_bytes"] == 100
    assert table[0]["licences"] == ["CC-BY-4.0", "CC0-1.0"]
    assert table[1]["dropped_by_rule"] == {"gibberish": 1, "too_short": 2}


def test_languages_are_balanced_by_the_power_of_their_bytes() -> None:
    documents = [make("en", w, 0, 100) for w in range(900)] + [make("te", w, 0, 100) for w in range(100)]
    for balance, ratio in ((0.0, 1.0), (0.5, 3.0), (1.0, 9.0)):
        texts, amounts = balance_languages(documents, balance, 0)
        assert sum(map(len, texts)) == sum(amounts.values())
        assert abs(amounts["en"] / amounts["te"] / ratio - 1) < 0.1
    assert balance_languages(documents, 0.5, 0) == balance_languages(documents[::-1], 0.5, 0)


def test_one_note_in_another_language_takes_nothing_from_the_others() -> None:
    documents = [make("de", w, 0, 1000) for w in range(500)] + [make("nl", 0, 0, 200)]
    for balance in (0.0, 0.5, 1.0):
        assert balance_languages(documents, balance, 0)[1] == {"de": 500_000, "nl": 200}


def test_every_language_gives_at_least_one_document() -> None:
    documents = [make("en", 0, 0, 10_000), make("te", 0, 0, 5)]
    assert set(balance_languages(documents, 0.0, 0)[1]) == {"en", "te"}
    assert min(balance_languages(documents, 0.0, 0)[1].values()) > 0


def test_practice_texts_stop_at_their_room() -> None:
    assert list(within(["aaa", "bbb", "ccc"], 7)) == ["aaa", "bbb"]
    assert list(within(iter(["aaa"]), 0)) == []
