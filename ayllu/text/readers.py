"""From files to documents: JSONL (plain, .gz, .xz), and a person's own folder of .txt and .md files.

A reader refuses rather than guesses: text that is not UTF-8 is an error with the file and the byte,
a row without a licence an error with the file and the line. Nothing is skipped silently.
"""

from __future__ import annotations

import gzip
import json
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ayllu.errors import (
    BadFileError,
    CorpusEmptyError,
    CorpusNotFoundError,
    LicenceMissingError,
    NotUtf8Error,
)
from ayllu.files import sha256_file
from ayllu.text.document import Document, document_from_row
from ayllu.text.licences import misspelt
from ayllu.text.tags import primary_tag

ROWS = (".jsonl", ".jsonl.gz", ".jsonl.xz")
PLAIN = (".txt", ".md")
# Files that describe a folder rather than belong to its text.
ABOUT = ("SOURCE.md", "README.md", "LICENSE.md", "LICENCE.md", "LICENSE.txt", "LICENCE.txt", "ATTRIBUTION.md")
UNKNOWN = ("", "unknown", "none", "noassertion", "null", "n/a", "?", "-")  # words for no known licence
PART_CHARACTERS = 20_000  # a longer plain file is cut into parts of about this size, at paragraphs


@dataclass(frozen=True)
class CorpusFile:
    """One file that was read, to the hash."""

    name: str  # relative to the corpus path that the recipe names
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Corpus:
    """All documents of a run's sources, in file order, and the files they came from."""

    documents: tuple[Document, ...]
    files: tuple[CorpusFile, ...]


def read_corpus(paths: list[Path], *, licence: str = "", language: str = "") -> Corpus:
    """Read files and folders.

    `licence` is required for plain text and fills in for rows without one; `language` likewise labels
    what has no label. Errors: CorpusNotFoundError, CorpusEmptyError, LicenceMissingError,
    NotUtf8Error, BadFileError.
    """
    documents: list[Document] = []
    files: list[CorpusFile] = []
    for path in paths:
        found = corpus_files(path)
        base = path if path.is_dir() else path.parent
        for file in found:
            name = file.relative_to(base).as_posix()
            files.append(CorpusFile(name, file.stat().st_size, sha256_file(file)))
            if file.name.endswith(ROWS):
                documents.extend(read_rows(file, licence=licence, language=language))
            else:
                source = base.resolve().name or "folder"
                documents.extend(
                    read_plain(file, name=name, source=source, licence=licence, language=language)
                )
    _refuse_same_ids(documents)
    if not documents:
        raise CorpusEmptyError(
            f"the corpus holds no document: {', '.join(str(p) for p in paths) or 'no path was given'}",
            fix="put .jsonl, .jsonl.gz, .jsonl.xz, .txt or .md files there",
        )
    return Corpus(tuple(documents), tuple(files))


def corpus_files(path: Path) -> list[Path]:
    """The text files at `path` (a file, or a folder with all below it), sorted by name."""
    if not path.exists():
        raise CorpusNotFoundError(
            f"the corpus {path} does not exist", fix="check `corpus` in the recipe's [text] part"
        )
    if path.is_file():
        if not path.name.endswith(ROWS + PLAIN):
            raise BadFileError(
                f"{path}: don't know how to read this kind of file",
                fix=f"use one of {', '.join(ROWS + PLAIN)}",
            )
        return [path]
    files = [f for f in path.rglob("*") if f.is_file() and f.name.endswith(ROWS + PLAIN)]
    return sorted(f for f in files if f.name not in ABOUT and not hidden(f, path))


def hidden(file: Path, folder: Path) -> bool:
    """Whether `file` or a folder between it and `folder` is hidden (.git, .venv, .trash): nobody's text."""
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def read_rows(file: Path, *, licence: str = "", language: str = "") -> Iterator[Document]:
    """Documents of a JSONL file. Errors name the file and the line."""
    source = file.name.split(".jsonl")[0]
    for number, row in read_objects(file):
        if not isinstance(row.get("text"), str):
            raise BadFileError(f"{file}, line {number}: a row must have a `text` that is a string")
        row["license"] = str(row.get("license") or row.get("licence") or licence).strip()
        if not known(row["license"]):
            raise LicenceMissingError(
                f"{file}, line {number}: the document has no licence",
                why="text without a known licence can't enter a mixture",
                fix='give each row a "license", or set `licence` in the recipe if one holds for all',
            )
        _refuse_misspelt(row["license"], f"{file}, line {number}")
        if not (row.get("lang") or row.get("language")):
            row["lang"] = language
        else:
            row["lang"] = row.get("lang") or row["language"]
        yield document_from_row(row, source=source, number=number)


def known(licence: str) -> bool:
    """Whether `licence` names one at all ("unknown" and "n/a" don't)."""
    return licence.strip().lower() not in UNKNOWN


def _refuse_misspelt(licence: str, where: str) -> None:
    """LicenceMissingError for a licence that doesn't exist and is nearly one that does."""
    if meant := misspelt(licence):
        raise LicenceMissingError(
            f"{where}: there is no licence {licence[:80]!r}",
            why="it would stand in the manifest, the card and the attribution",
            fix=f"did you mean {meant}? (words of your own are taken as they are, if they are not that near)",
        )


def read_plain(file: Path, *, name: str, source: str, licence: str, language: str = "") -> Iterator[Document]:
    """A .txt or .md file as one document, or as parts `#0`, `#1`, ... when it is long."""
    if not known(licence):
        raise LicenceMissingError(
            f"{file}, line 1: plain text brings no licence with it",
            why="text without a known licence can't enter a mixture",
            fix='set `licence` in the recipe (for example "CC0-1.0", or "private" for your own notes)',
        )
    _refuse_misspelt(licence, str(file))
    text = _decode(file, _uncompressed(file)).removeprefix("\ufeff").replace("\r\n", "\n")
    parts = cut_at_paragraphs(text, PART_CHARACTERS)
    for number, part in enumerate(parts):
        yield Document(
            id=f"{source}/{name}" + (f"#{number}" if len(parts) > 1 else ""),
            text=part,
            source=source,
            licence=licence.strip(),
            language=primary_tag(language),
            path=name,
        )


def cut_at_paragraphs(text: str, characters: int) -> list[str]:
    """`text` in parts of about `characters`; a paragraph (or, where there are none, a line) stays whole."""
    border = "\n\n" if "\n\n" in text else "\n"
    parts: list[str] = []
    held: list[str] = []
    size = 0
    for paragraph in text.split(border):
        held.append(paragraph)
        size += len(paragraph)
        if size >= characters:
            parts.append(border.join(held))
            held, size = [], 0
    rest = border.join(held)
    if parts and size < characters // 4:
        parts[-1] += border + rest if rest else ""
    elif rest.strip():
        parts.append(rest)
    return parts


def read_lines(file: Path) -> list[str]:
    """The lines of a UTF-8 file (.gz and .xz too) that are not blank."""
    return [line for _, line in _numbered_lines(file)]


def read_objects(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each line of a JSONL file. BadFileError names the line."""
    for number, line in _numbered_lines(file):
        try:
            row = json.loads(line)
            halved = "\\ud" in line.lower() and _lone_surrogate(row)
        except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
            raise BadFileError(f"{file}, line {number}: not valid JSON", why=str(error)) from error
        if halved:
            raise NotUtf8Error(
                f"{file}, line {number}: there is half a character (a lone \\ud800-\\udfff escape)",
                fix="write the file again as UTF-8",
            )
        if not isinstance(row, dict):
            raise BadFileError(f"{file}, line {number}: a row must be a JSON object")
        yield number, row


def _numbered_lines(file: Path) -> Iterator[tuple[int, str]]:
    # Not splitlines(): U+2028 and others may stand inside a JSON string.
    for number, line in enumerate(_decode(file, _uncompressed(file)).split("\n"), start=1):
        if line.strip():
            yield number, line


def _uncompressed(file: Path) -> bytes:
    data = file.read_bytes()
    try:
        if file.name.endswith(".xz"):
            return lzma.decompress(data)
        if file.name.endswith(".gz"):
            return gzip.decompress(data)
    except (lzma.LZMAError, zlib.error, EOFError, OSError, ValueError) as error:
        raise BadFileError(
            f"{file} is damaged", why=f"it can't be uncompressed: {error}", fix="copy or download it again"
        ) from error
    return data


def _decode(file: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise NotUtf8Error(
            f"{file} is not UTF-8: byte {error.start} (line {line}) is 0x{data[error.start]:02x}",
            why=error.reason,
            fix="convert it, for example: iconv -f ISO-8859-1 -t UTF-8 OLD > NEW",
        ) from error


def _lone_surrogate(row: Any) -> bool:
    """Whether any text of `row`, keys included, can't be written as UTF-8."""
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _refuse_same_ids(documents: list[Document]) -> None:
    seen: set[str] = set()
    for document in documents:
        if document.id in seen:
            raise BadFileError(
                f"two documents have the id {document.id!r}",
                why="a dropped document is reported by its id, so ids must be different",
                fix="give each row an id of its own, or name the same path only once",
            )
        seen.add(document.id)
