"""What went in, to the hash: manifest.json for machines, ATTRIBUTION.md for people.

The manifest travels with the weights. From it anyone who has the corpus can say whether a model was
made from exactly that text, under which licences, and by which rules.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from ayllu.text import clean, decontaminate, dedup
from ayllu.text.document import Document
from ayllu.text.readers import CorpusFile


def documents_digest(documents: Iterable[Document]) -> str:
    """Hex SHA-256 over the sorted lines `id<TAB>sha256`: the set of texts, whatever their order."""
    lines = sorted(f"{document.id}\t{document.sha256}\n" for document in documents)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def licence_table(documents: Iterable[Document]) -> dict[str, dict[str, int]]:
    """Documents and bytes per licence."""
    table: dict[str, dict[str, int]] = {}
    for document in documents:
        entry = table.setdefault(document.licence, {"documents": 0, "bytes": 0})
        entry["documents"] += 1
        entry["bytes"] += document.bytes
    return dict(sorted(table.items()))


def make_manifest(
    *,
    files: Iterable[CorpusFile],
    kept: list[Document],
    heldout: frozenset[str],
    dropped: dict[str, int],
    profiles: dict[str, clean.Profile],
    evaluation: decontaminate.EvaluationIndex,
    near: float,
    seed: int,
) -> dict[str, Any]:
    """The manifest as a JSON value. It has no times and no machine names: equal runs give equal bytes."""
    train = [d for d in kept if d.id not in heldout]
    held = [d for d in kept if d.id in heldout]
    return {
        "format": 1,
        "seed": seed,
        "corpus": [{"file": f.name, "bytes": f.bytes, "sha256": f.sha256} for f in files],
        "train": _summary(train),
        "heldout": _summary(held),
        "licences": licence_table(kept),
        "dropped": dropped,
        "rules": {
            "version": clean.VERSION,
            "quality": {
                language: {
                    rule.name: {
                        bound: round(limit(profile), 4)
                        for bound, limit in (("low", rule.low), ("high", rule.high))
                        if limit is not None and limit(profile) != float("inf")
                    }
                    for rule in clean.RULES
                }
                for language, profile in profiles.items()
            },
            "near_duplicate": {"jaccard": near, "shingle_words": dedup.SHINGLE, "bands": dedup.BANDS,
                               "rows": dedup.ROWS},
            "evaluation_overlap": {
                "passage_tokens": decontaminate.PASSAGE,
                "distinct_tokens": decontaminate.DISTINCT,
                "texts": len(evaluation.texts),
                "texts_too_short": evaluation.too_short,
                "sha256": evaluation.digest,
            },
        },
    }  # fmt: skip


def _summary(documents: list[Document]) -> dict[str, Any]:
    return {
        "documents": len(documents),
        "bytes": sum(d.bytes for d in documents),
        "sha256": documents_digest(documents),
    }


def attribution(documents: Iterable[Document]) -> str:
    """ATTRIBUTION.md: per source its licences, origin and commit, and the works with their authors.

    Where a source has several licences, origins or commits, each work says its own."""
    sources: dict[str, list[Document]] = {}
    for document in documents:
        sources.setdefault(document.source, []).append(document)
    lines = ["# Attribution", "", "The text that this model was made from. Every document has a licence.", ""]
    for source, group in sorted(sources.items()):
        lines += [f"## {_plain(source)}", ""]
        several = []
        for name in ("licence", "origin", "commit"):
            values = sorted({getattr(d, name) for d in group} - {""})
            if len(values) > 1:
                several.append(name)
            if values:
                lines.append(f"- {name.capitalize()}: {'; '.join(map(_plain, values))}")
        translated = sum(d.machine_translated for d in group)
        if translated:
            lines.append(f"- Machine-translated documents: {translated}")
        lines += [f"- Documents: {len(group)}, {sum(d.bytes for d in group)} bytes", ""]
        works: dict[str, int] = {}
        for document in group:
            work = _work_line(document, several)
            works[work] = works.get(work, 0) + 1
        for work, count in sorted(works.items()):
            lines.append(f"- {work}" + (f" ({count} documents)" if count > 1 else ""))
        lines.append("")
    return "\n".join(lines)


def _work_line(document: Document, several: list[str]) -> str:
    """Author, title and year; then what not all of its source have in common."""
    name = document.title or document.path or document.id
    when = str(document.year or document.date or "")
    line = ", ".join(_plain(part) for part in (document.author, name, when) if part)
    own = ", ".join(_plain(value) for value in (getattr(document, field) for field in several) if value)
    return f"{line} ({own})" if own else line


def _plain(text: str) -> str:
    """A name can hold anything; in a list line it must not start new Markdown."""
    return " ".join(text.split()).replace("<", "&lt;")
