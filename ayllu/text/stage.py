"""The first two stages of a run: `text` (documents, each drop with its reason) and `tokenizer`.

Both start clean when they are called again on a half-filled folder: they take seconds, and every file
is written whole or not at all. Their outputs hold no times and no machine names, so that equal inputs
give equal bytes.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ayllu.errors import BadFileError, CorpusEmptyError, InputNotFoundError, TooLittleTextError
from ayllu.files import write_json, write_text
from ayllu.stage import StageContext, bounded, free
from ayllu.text import clean, decontaminate, dedup, mix
from ayllu.text.document import Document, document_from_row, words
from ayllu.text.language import UNDETERMINED, Identifier, learn_from, usage
from ayllu.text.manifest import attribution, licence_table, make_manifest
from ayllu.text.readers import ABOUT, ROWS, corpus_files, hidden, read_corpus, read_lines, read_objects
from ayllu.text.tags import primary_tag
from ayllu.text.tokenizer import Tokenizer, train_tokenizer

CODE_VERSION = 3  # 3: leaks in one form, works in all sources and languages, tiny languages
LINES = (".txt", ".txt.gz", ".txt.xz")
PROBLEM_KEYS = ("prompt", "question", "problem", "text")  # of a JSONL file of evaluation problems
CONTRADICTION = 0.3  # nats per n-gram by which the recognised language must win over the label's


# ---- the text stage
@dataclass(frozen=True)
class TextSettings:
    """[text] of a recipe."""

    corpus: tuple[str, ...] = free(("data/default",), "files and folders of public text (JSONL, .txt, .md)")
    licence: str = free("", "licence of text that brings none, for example CC0-1.0; needed for .txt and .md")
    language: str = free("", "language of text that has no label; empty: recognise it")
    languages: tuple[str, ...] = free((), "keep only these languages; empty: all")
    evaluation: tuple[str, ...] = free((), "files of evaluation problems that must not be in the text")
    heldout: float = bounded(0.04, 0.001, 0.5, "share of each language's bytes held out, by whole works")
    near_duplicate: float = bounded(
        dedup.NEAR, dedup.NEAR, 1.0, "Jaccard similarity that counts as a duplicate"
    )


@dataclass(frozen=True)
class Dropped:
    """A document that was left out: the rule, what was measured, the threshold, what else explains it."""

    document: Document
    rule: str
    value: float
    threshold: float
    more: dict[str, Any]

    def row(self) -> dict[str, Any]:
        document = self.document
        head = {"id": document.id, "source": document.source, "language": document.language}
        return head | {"rule": self.rule, "value": self.value, "threshold": self.threshold} | self.more


def make_text(
    context: StageContext, settings: TextSettings, evaluation_texts: Iterable[str] = ()
) -> dict[str, Any]:
    """Read, clean, deduplicate, decontaminate, split; write the text stage's folder.

    `evaluation_texts`: problems that the run itself will be evaluated on, besides `settings.evaluation`.
    Writes documents.jsonl, dropped.jsonl, mixture.json, manifest.json, ATTRIBUTION.md. Returns the
    result for the report. Errors: those of `read_corpus`; CorpusEmptyError when nothing survives;
    TooLittleTextError when nothing can be held out.
    """
    progress = context.progress
    corpus = read_corpus(
        [context.root / path for path in settings.corpus],
        licence=settings.licence,
        language=settings.language,
    )
    if skipped := _not_read([context.root / path for path in settings.corpus]):
        names = ", ".join(skipped[:3]) + (", ..." if len(skipped) > 3 else "")
        files = "1 file is" if len(skipped) == 1 else f"{len(skipped)} files are"
        progress.say(f"{files} of a kind that is not read here, and left out: {names}")
    problems = [text for path in settings.evaluation for text in read_evaluation(context.root / path)]
    evaluation = decontaminate.index_evaluations([*problems, *evaluation_texts])
    progress.start(5, "steps")

    documents: list[Document] = []
    private: dict[str, dict[str, int]] = {}
    for document in corpus.documents:
        text, found = clean.remove_private(clean.normalise(document.text))
        documents.append(replace(document, text=text))
        if found:
            private[document.id] = found
    progress.update(1, "cleaned")

    dropped: list[Dropped] = []
    identifier = learn_from(documents)
    wanted = tuple(primary_tag(language) for language in settings.languages)
    documents, agreement = recognise(documents, identifier, wanted, dropped)
    progress.update(2, "languages recognised")
    documents, profiles = check_quality(documents, dropped)
    progress.update(3, "quality checked")
    documents = drop_leaks(documents, evaluation, dropped)
    progress.update(4, "evaluation problems looked for")
    documents = drop_duplicates(documents, settings.near_duplicate, dropped)
    progress.update(5, "duplicates found")
    if not documents:
        rules = Counter(d.rule for d in dropped)
        raise CorpusEmptyError(
            "no document of the corpus is left",
            why="dropped: " + ", ".join(f"{rule} {count}" for rule, count in rules.most_common()),
        )

    split = mix.hold_out(documents, share=settings.heldout, seed=context.seed)
    if not split.heldout:
        raise TooLittleTextError(
            "the corpus is too small to hold anything out",
            why="; ".join(split.notes),
            fix="give it at least two documents (or one text of more than 25,000 characters)",
        )
    by_rule = Counter(d.rule for d in dropped)
    by_source: dict[tuple[str, str], Counter[str]] = {}
    for drop in dropped:
        by_source.setdefault((drop.document.source, drop.document.language), Counter())[drop.rule] += 1
    mixture = mix.mixture_table(documents, split.heldout, by_source)
    manifest = make_manifest(
        files=corpus.files,
        kept=documents,
        heldout=split.heldout,
        dropped=dict(sorted(by_rule.items())),
        profiles=profiles,
        evaluation=evaluation,
        near=settings.near_duplicate,
        seed=context.seed,
    )
    rows = []
    for document in documents:
        row = document.row() | {"split": "heldout" if document.id in split.heldout else "train"}
        rows.append(row | ({"private": private[document.id]} if document.id in private else {}))
    write_rows(context.folder / "documents.jsonl", rows)
    write_rows(context.folder / "dropped.jsonl", [d.row() for d in dropped])
    write_json(context.folder / "mixture.json", mixture)
    write_text(context.folder / "ATTRIBUTION.md", attribution(documents))
    write_json(context.folder / "manifest.json", manifest)  # last: its presence says that all is there

    size = sum(d.bytes for d in documents)
    held = {key: manifest["heldout"][key] for key in ("documents", "bytes")}
    result: dict[str, Any] = {
        "read": len(corpus.documents),
        "kept": len(documents),
        "bytes": size,
        "heldout": held,
        "dropped": dict(sorted(by_rule.items())),
        "mixture": mixture,
        "licences": licence_table(documents),
        "languages": agreement,
        "private": dict(sum((Counter(found) for found in private.values()), Counter())),
        "evaluation": {
            "texts": len(evaluation.texts),
            "too_short": evaluation.too_short,
            "hits": [d.row() for d in dropped if d.rule == "evaluation_overlap"][:20],
        },
        "notes": list(split.notes),
    }
    progress.finish(
        f"{len(documents)} of {len(corpus.documents)} documents kept, {size / 1e6:.2f} MB "
        f"({held['bytes'] / 1e6:.2f} MB held out); dropped: "
        + (", ".join(f"{rule} {count}" for rule, count in by_rule.most_common()) or "none")
    )
    return result


def recognise(
    documents: list[Document], identifier: Identifier, wanted: tuple[str, ...], dropped: list[Dropped]
) -> tuple[list[Document], dict[str, dict[str, int]]]:
    """Give each document its language; drop contradictions, the unrecognisable, and unwanted languages.

    Returns the rest, and per language how many were labelled and how often the label was confirmed.
    """
    kept = []
    table: dict[str, dict[str, int]] = {}
    for document in documents:
        scores = identifier.scores(document.text)
        guess = identifier.guess(document.text)
        label = "" if document.language == UNDETERMINED else document.language
        language = label or guess.language
        counts = table.setdefault(language, {"documents": 0, "labelled": 0, "confirmed": 0})
        counts["documents"] += 1
        counts["labelled"] += bool(label)
        counts["confirmed"] += bool(label) and guess.language == label
        named = replace(document, language=language)
        seen = {"recognised": guess.language}
        if language == UNDETERMINED:
            # Not one word to judge by; a longer text always has a nearest language.
            dropped.append(Dropped(named, "language_unknown", guess.margin, CONTRADICTION, seen))
        elif (
            label in identifier.languages
            and guess.language not in (label, UNDETERMINED)
            and scores[guess.language] - scores[label] >= CONTRADICTION
        ):
            lead = round(scores[guess.language] - scores[label], 4)
            dropped.append(Dropped(named, "language_contradicts_label", lead, CONTRADICTION, seen))
        elif wanted and language not in wanted:
            dropped.append(Dropped(named, "language_unwanted", guess.margin, 0.0, seen))
        else:
            kept.append(named)
    return kept, dict(sorted(table.items()))


def check_quality(
    documents: list[Document], dropped: list[Dropped]
) -> tuple[list[Document], dict[str, clean.Profile]]:
    """Measure all, learn each language's profile, drop what breaks a rule."""
    usual = usage(documents)
    facts = []
    for document in documents:
        surprise = -usual.scores(document.text).get(document.language, 0.0)
        facts.append(clean.measure(document.text, surprise))
    profiles = clean.learn_profiles((d.language, f) for d, f in zip(documents, facts, strict=True))
    kept = []
    for document, fact in zip(documents, facts, strict=True):
        failed = clean.judge(fact, profiles[document.language])
        if failed is None:
            kept.append(document)
        else:
            dropped.append(Dropped(document, failed.rule, failed.value, failed.threshold, {}))
    return kept, profiles


def drop_leaks(
    documents: list[Document], evaluation: decontaminate.EvaluationIndex, dropped: list[Dropped]
) -> list[Document]:
    """Drop documents that hold an evaluation problem. Before duplicates: a leaky twin must not win."""
    kept = []
    for document in documents:
        hit = evaluation.find(document.text)
        if hit is None:
            kept.append(document)
        else:
            more = {"evaluation": hit.evaluation, "passage": hit.passage}
            dropped.append(Dropped(document, "evaluation_overlap", hit.tokens, hit.tokens, more))
    return kept


def drop_duplicates(documents: list[Document], near: float, dropped: list[Dropped]) -> list[Document]:
    """Drop exact and near duplicates; each names its twin."""
    twins = {twin.dropped: twin for twin in dedup.find_duplicates(documents, near=near)}
    for position, twin in twins.items():
        rule, threshold = ("exact_duplicate", 1.0) if twin.exact else ("near_duplicate", near)
        more = {"twin": documents[twin.kept].id}
        dropped.append(Dropped(documents[position], rule, twin.similarity, threshold, more))
    return [document for position, document in enumerate(documents) if position not in twins]


def _not_read(paths: list[Path]) -> list[str]:
    """Files in the corpus's folders that `read_corpus` passes over, by name; not those about a folder."""
    names: list[str] = []
    for folder in (path for path in paths if path.is_dir()):
        read = set(corpus_files(folder))
        names += sorted(
            file.relative_to(folder).as_posix()
            for file in folder.rglob("*")
            if file.is_file() and file not in read and file.name not in ABOUT and not hidden(file, folder)
        )
    return names


def read_evaluation(path: Path) -> list[str]:
    """Problem texts of a file: JSONL (`prompt`, `question`, `problem` or `text`), or .txt with one per line.

    Errors: InputNotFoundError, NotUtf8Error, BadFileError with the line, or for another kind of file.
    """
    if not path.is_file():
        raise InputNotFoundError(f"the evaluation file {path} does not exist")
    if path.name.endswith(LINES):
        return read_lines(path)
    if not path.name.endswith(ROWS):  # a table's line holds a key and an answer too: nothing would match
        raise BadFileError(
            f"{path}: evaluation problems of this kind of file can't be compared",
            fix=f"use one of {', '.join(ROWS + LINES)}",
        )
    texts = []
    for number, row in read_objects(path):
        key = next((key for key in PROBLEM_KEYS if isinstance(row.get(key), str)), None)
        if key is None:
            raise BadFileError(f"{path}, line {number}: none of {', '.join(PROBLEM_KEYS)} is there")
        texts.append(row[key])
    return texts


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """JSONL, whole or not at all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_kept(folder: Path, split: str = "") -> list[Document]:
    """The documents of a finished text stage: of one split ("train" or "heldout"), or all."""
    path = folder / "documents.jsonl"
    if not path.is_file():
        raise InputNotFoundError(f"{path} is missing", fix="run the text stage first")
    return [
        document_from_row(row, source=row["source"], number=number)
        for number, row in read_objects(path)
        if split in ("", row["split"])
    ]


# ---- the tokenizer stage
@dataclass(frozen=True)
class TokenizerSettings:
    """[tokenizer] of a recipe."""

    vocabulary: int = bounded(4096, 300, 65536, "pieces in all: control tokens, 256 bytes, merges")
    balance: float = bounded(0.5, 0.0, 1.0, "a language's weight: its bytes to this power (1: as it is)")
    practice: float = bounded(0.15, 0.0, 0.5, "largest share of generated practice text")


def make_tokenizer(
    context: StageContext, settings: TokenizerSettings, practice_texts: Iterable[str] = ()
) -> dict[str, Any]:
    """Train the tokenizer on the train split and measure it on the held-out documents.

    Languages are sampled so that a small one counts for more than its share (as in XLM, Conneau &
    Lample 2019, with exponent `balance`). `practice_texts`: text that the later stages will generate
    (problems, dialogues), up to the share `practice`. Writes tokenizer.json, tokenizer_config.json and
    fairness.json. Returns the result for the report.
    """
    folder = context.inputs["text"]
    train = read_kept(folder, "train")
    if not train:
        raise TooLittleTextError("no text is left to train a tokenizer on")
    chosen, amounts = mix.balance_languages(train, settings.balance, context.seed)
    room = settings.practice / (1 - settings.practice) * sum(map(len, chosen))
    practice = list(mix.within(practice_texts, room))
    with one_thread():
        tokenizer = train_tokenizer(iter([*chosen, *practice]), settings.vocabulary)
        fairness = measure_fairness(tokenizer, read_kept(folder, "heldout"))
    tokenizer.save(context.folder)
    write_json(context.folder / "fairness.json", fairness)
    result = {
        "vocabulary": tokenizer.vocab_size,
        "trained_on_bytes": amounts,
        "practice_characters": sum(map(len, practice)),
        "bytes_per_token": {language: row["bytes_per_token"] for language, row in fairness.items()},
        "fairness": fairness,
    }
    context.progress.finish(
        f"{tokenizer.vocab_size} pieces; bytes per token on held-out text: "
        + ", ".join(f"{language} {row['bytes_per_token']:.2f}" for language, row in fairness.items())
    )
    return result


COUNTED = ("documents", "bytes", "characters", "words", "tokens")


def measure_fairness(tokenizer: Tokenizer, documents: list[Document]) -> dict[str, dict[str, Any]]:
    """Per language, on text that the tokenizer has not read: how much a token holds.

    A language whose tokens hold fewer characters pays more for the same answer, in time and in context.
    """
    table: dict[str, dict[str, Any]] = {}
    for document in documents:
        row = table.setdefault(document.language, dict.fromkeys(COUNTED, 0))
        row["documents"] += 1
        row["bytes"] += document.bytes
        row["characters"] += len(document.text)
        row["words"] += len(words(document.text))
        row["tokens"] += len(tokenizer.encode(document.text))
    for row in table.values():
        row["bytes_per_token"] = round(row["bytes"] / max(row["tokens"], 1), 4)
        row["characters_per_token"] = round(row["characters"] / max(row["tokens"], 1), 4)
        row["tokens_per_word"] = round(row["tokens"] / max(row["words"], 1), 4)
    return dict(sorted(table.items()))


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep the tokenizers library on one thread: equal text gives equal pieces, and a report equal times."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
