"""The mixture: which documents are held out, and what share each source and language has.

Held-out text measures the model on works it has not read, so whole *works* are held out: two chapters of one
book never lie on different sides, nor do its editions in two sources and its translations under one title. (A
language with a single work is the exception: it gives its last documents, and a note says so.) The choice
follows from a hash of the work's name and the seed, not from the order of the files.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ayllu.text.document import Document

TINY = 0.01  # of the largest language's bytes: a language that doesn't set how much the others give


@dataclass(frozen=True)
class Split:
    """Ids of the held-out documents, and notes on languages where the rule could not be kept."""

    heldout: frozenset[str]
    notes: tuple[str, ...]


def order_of(work: str, seed: int) -> bytes:
    """Where a work stands in the draw."""
    return hashlib.sha256(f"{seed}\0{work}".encode()).digest()


def hold_out(documents: Iterable[Document], *, share: float, seed: int) -> Split:
    """Choose about `share` of the bytes of each language.

    Works are drawn in hash order, from the source that lacks most to its own share first, so that the
    held-out text resembles the rest; a work that would go beyond the share of any language that has it is
    passed over. Where every work is larger than that, the smallest one is taken, so that each language is
    measured. A work that is there in several languages is held out in all of them or in none. A language
    with a single work gives its last documents, unless others decide about that work; with a single document
    nothing (all noted).
    """
    languages: dict[str, dict[str, list[Document]]] = {}
    names: dict[tuple[str, str], str] = {}
    for document in sorted(documents, key=lambda d: d.source):
        work = names.setdefault(_identity(document), document.work)  # that of its first source
        languages.setdefault(document.language, {}).setdefault(work, []).append(document)
    sizes = {
        language: {work: sum(d.bytes for d in parts) for work, parts in works.items()}
        for language, works in languages.items()
    }
    total = {language: sum(size.values()) for language, size in sizes.items()}
    room = {language: share * amount for language, amount in total.items()}
    chosen: set[str] = set()

    def sides(work: str) -> list[str]:
        return [language for language, size in sizes.items() if work in size]

    def fits(work: str) -> bool:
        return all(sizes[language][work] <= room[language] for language in sides(work))

    def take(work: str) -> None:
        chosen.add(work)
        for language in sides(work):
            room[language] -= sizes[language][work]

    for language, works in sorted(languages.items()):
        if len(works) > 1:
            _draw(works, sizes[language], chosen, fits, take, share=share, seed=seed)
            if chosen.isdisjoint(works):
                free = [
                    work
                    for work in works
                    if all(sizes[other][work] <= room[other] for other in sides(work) if other != language)
                ]
                take(min(free or works, key=lambda w: (sizes[language][w], w)))
    heldout: set[str] = set()
    notes: list[str] = []
    for language, works in sorted(languages.items()):
        heldout.update(d.id for work, parts in works.items() if work in chosen for d in parts)
        held = sum(sizes[language][work] for work in chosen if work in works)
        (only, parts), *others = works.items()
        if held == total[language]:
            notes.append(f"{language}: all of it is held out, with works that other languages have too")
        elif others and held > 2 * share * total[language]:
            notes.append(f"{language}: its works are large, {held / total[language]:.0%} of it is held out")
        elif not others and any(len(languages[other]) > 1 for other in sides(only)):
            notes.append(f"{language}: one work only, which other languages decide about: nothing held out")
        elif not others and len(parts) == 1:
            notes.append(f"{language}: one document only, nothing held out")
        elif not others:
            notes.append(f"{language}: one work only, its last part is held out")
            heldout.update(_last(parts, share * total[language]))
    return Split(frozenset(heldout), tuple(notes))


def _identity(document: Document) -> tuple[str, str]:
    """What makes two documents parts of one work: author and title, wherever they were found."""
    if document.author and document.title:
        return document.author.casefold(), document.title.casefold()
    return "", document.work


def _last(parts: list[Document], budget: float) -> list[str]:
    """The ids of the last documents of a work, but never its first."""
    found = []
    for document in reversed(parts[1:]):
        found.append(document.id)
        budget -= document.bytes
        if budget <= 0:
            break
    return found


def _draw(
    works: dict[str, list[Document]],
    size: dict[str, int],
    chosen: set[str],
    fits: Callable[[str], bool],
    take: Callable[[str], None],
    *,
    share: float,
    seed: int,
) -> None:
    """Take works of one language worth at most `share` of its bytes, together with those `chosen` already."""
    waiting: dict[str, list[str]] = {}  # per source, its works in the order of the draw
    for work in sorted(works, key=lambda w: order_of(w, seed)):
        waiting.setdefault(works[work][0].source, []).append(work)
    lacks = {
        source: share * sum(size[w] for w in drawn) - sum(size[w] for w in drawn if w in chosen)
        for source, drawn in waiting.items()
    }
    # What doesn't fit now never will, as the room only shrinks: one pass over each source.
    coming = {source: iter([w for w in drawn if w not in chosen]) for source, drawn in waiting.items()}
    while lacks:
        source = max(lacks, key=lambda s: (lacks[s], s))
        found = next((w for w in coming[source] if fits(w)), None) if lacks[source] > 0 else None
        if found is None:
            del lacks[source]
            continue
        take(found)
        lacks[source] -= size[found]


def mixture_table(
    kept: Iterable[Document], heldout: frozenset[str], dropped: Mapping[tuple[str, str], Counter[str]]
) -> list[dict[str, Any]]:
    """One row per source and language, largest first.

    `dropped` counts the dropped documents per (source, language) and rule. `share` is the share of the
    kept bytes.
    """
    rows: dict[tuple[str, str], dict[str, Any]] = {}

    def row(source: str, language: str) -> dict[str, Any]:
        return rows.setdefault(
            (source, language),
            {
                "source": source,
                "language": language,
                "documents": 0,
                "bytes": 0,
                "characters": 0,
                "share": 0.0,
                "heldout_documents": 0,
                "heldout_bytes": 0,
                "licences": set(),
                "machine_translated": 0,
                "dropped": 0,
                "dropped_by_rule": {},
            },
        )

    for document in kept:
        entry, size = row(document.source, document.language), document.bytes
        entry["documents"] += 1
        entry["bytes"] += size
        entry["characters"] += len(document.text)
        entry["licences"].add(document.licence)
        entry["machine_translated"] += document.machine_translated
        if document.id in heldout:
            entry["heldout_documents"] += 1
            entry["heldout_bytes"] += size
    for (source, language), rules in dropped.items():
        entry = row(source, language)
        entry["dropped"] = rules.total()
        entry["dropped_by_rule"] = dict(sorted(rules.items()))
    total = max(sum(entry["bytes"] for entry in rows.values()), 1)
    for entry in rows.values():
        entry["share"] = round(entry["bytes"] / total, 4)
        entry["licences"] = sorted(entry["licences"])
    return sorted(rows.values(), key=lambda entry: (-entry["bytes"], entry["source"], entry["language"]))


def balance_languages(
    documents: list[Document], balance: float, seed: int
) -> tuple[list[str], dict[str, int]]:
    """Texts such that language weights are bytes ** balance, and the bytes per language.

    Nothing is repeated: the language that is most under-represented gives all it has, the others give whole
    documents in the order of a hash. Every language gives at least one document. A language with less than a
    hundredth of the largest one's bytes gives all it has and sets no measure: one note in a foreign language
    (or one that was recognised wrongly) would leave the others next to nothing.
    """
    languages: dict[str, list[Document]] = {}
    for document in documents:
        languages.setdefault(document.language, []).append(document)
    have = {language: sum(d.bytes for d in group) for language, group in languages.items()}
    counting = [amount for amount in have.values() if amount >= TINY * max(have.values())]
    scale = min(amount / max(amount, 1) ** balance for amount in counting)
    texts: list[str] = []
    amounts: dict[str, int] = {}
    for language, group in sorted(languages.items()):
        target, taken = scale * have[language] ** balance, 0
        for document in sorted(group, key=lambda d: order_of(d.id, seed)):
            if taken and taken + document.bytes > target * 1.05:
                continue
            texts.append(document.text)
            taken += document.bytes
        amounts[language] = taken
    return texts, amounts


def within(texts: Iterable[str], characters: float) -> Iterator[str]:
    """Texts from the front as long as they fit into `characters`."""
    for text in texts:
        characters -= len(text)
        if characters < 0:
            return
        yield text
