"""The mixture: which documents are held out, and what share each source and language has.

Held-out text measures the model on works it has not read, so whole *works* are held out: two chapters
of one book never lie on different sides. The choice follows from a hash of the work's name and the
seed, not from the order of the files.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ayllu.text.document import Document


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

    Works are drawn in hash order; a work that would go beyond the share is passed over. Where every
    work is larger than that, the smallest one is taken, so that each language is measured. A language
    with a single work gives its last documents; with a single document nothing (both are noted).
    """
    languages: dict[str, dict[str, list[Document]]] = {}
    for document in documents:
        languages.setdefault(document.language, {}).setdefault(document.work, []).append(document)
    heldout: set[str] = set()
    notes: list[str] = []
    for language, works in sorted(languages.items()):
        size = {work: sum(d.bytes for d in parts) for work, parts in works.items()}
        budget = share * sum(size.values())
        if len(works) > 1:
            chosen: list[str] = []
            for work in sorted(works, key=lambda w: order_of(w, seed)):
                if size[work] <= budget:
                    chosen.append(work)
                    budget -= size[work]
            chosen = chosen or [min(works, key=lambda w: (size[w], w))]
            heldout.update(d.id for work in chosen for d in works[work])
            continue
        (parts,) = works.values()
        if len(parts) == 1:
            notes.append(f"{language}: one document only, nothing held out")
            continue
        notes.append(f"{language}: one work only, its last part is held out")
        for document in reversed(parts[1:]):
            heldout.add(document.id)
            budget -= document.bytes
            if budget <= 0:
                break
    return Split(frozenset(heldout), tuple(notes))


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
