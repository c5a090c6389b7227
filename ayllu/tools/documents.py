"""The tool `documents`: search in a folder of texts, with citations; ranking by BM25 (Robertson and Zaragoza
2009, "The Probabilistic Relevance Framework", section 3.4).

A text is cut into passages at its empty lines, each with its file and lines, so that whoever reads an answer
can look it up. A term is a word in small letters; in Telugu the vowel signs belong to it. Since German and
Telugu add endings, and English a few, the first letters of a longer word count as a weaker term of their own:
`invoices` finds `invoice`, `Rechnungen` finds `Rechnung`, without a dictionary of any language.

Only regular files beneath the folder are read, links are not followed, everything is bounded. What stands in
the passages, and in the names of files, is somebody's text: the model reads it as a result, never as control
tokens, and quoted, so that no text can pass for another source's:

    [handbook.md:12-15]
    > An invoice is due
    > in 30 days.
"""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ayllu.errors import InputNotFoundError, UsageError
from ayllu.tools.tool import Tool, ToolError, cut, escaped

SUFFIXES = (".txt", ".md", ".rst", ".org")
MAX_FILES, MAX_FILE, MAX_TOTAL = 5000, 4 << 20, 64 << 20  # files; bytes of one; bytes of all
MAX_ENTRIES = 100_000  # files and folders that are looked at
MAX_LINES, MAX_PASSAGE = 12, 900  # of a passage: lines, characters
MAX_QUERY, MAX_SHOWN, SHOWN = 300, 520, 3  # characters; characters of a quoted passage; passages
MAX_RESULT = 2000  # characters of them all, which is what a Toolbox lets through uncut
K1, B = 1.2, 0.75
STEM, STEM_WEIGHT = 5, 0.4  # letters of the weaker term, its weight
# Letters and digits, and the signs that Python doesn't count among them: accents, vowel signs, joiners.
_WORD = re.compile(r"(?:[^\W_]|[\u0300-\u036f\u0900-\u0963\u0966-\u0dff\u200c\u200d])+")

_SPECIAL = re.compile(r"[\[\]\\]")  # what would end a citation, and what escapes it


@dataclass(frozen=True)
class Passage:
    """A stretch of a file: its path in the folder, first and last line (from 1), text."""

    file: str
    first: int
    last: int
    text: str

    @property
    def citation(self) -> str:
        """`handbook.md:12-15`. Brackets, backslashes and control characters of a name are escaped."""
        name = escaped(_SPECIAL.sub(r"\\\g<0>", self.file))
        return f"{name}:{self.first}" + (f"-{self.last}" if self.last > self.first else "")

    @property
    def quotation(self) -> str:
        """The citation in brackets; below it the text, cut, each line behind `> `."""
        text = cut(escaped(self.text, keep="\n\t"), MAX_SHOWN)
        return "\n".join([f"[{self.citation}]", *(f"> {line}" for line in text.split("\n"))])


def terms(text: str) -> Iterator[tuple[str, float]]:
    """The terms of a text with their weights."""
    for found in _WORD.finditer(unicodedata.normalize("NFKC", text).casefold()):
        word = found.group().replace("\u200c", "").replace("\u200d", "")
        yield word, 1.0
        if len(word) > STEM and not word.isdigit():
            yield word[:STEM] + "*", STEM_WEIGHT
        elif len(word) == STEM:
            yield word + "*", STEM_WEIGHT


def passages(file: str, text: str) -> Iterator[Passage]:
    """A file's passages: paragraphs, long ones in parts."""
    begun, last, lines, size = 0, 0, list[str](), 0
    for number, line in enumerate([*text.split("\n"), ""], 1):  # as editors count, which is no form feed's
        for part in _parts(line.rstrip()):
            full = len(lines) >= MAX_LINES or size + len(part) > MAX_PASSAGE
            if lines and (not part.strip() or full):
                yield Passage(file, begun, last, "\n".join(lines))
                lines, size = [], 0
            if part.strip():
                begun, last = begun if lines else number, number
                lines.append(part)
                size += len(part)


def _parts(line: str) -> Iterator[str]:
    """A line; a long one (many texts have a paragraph on each) in parts that end with a word if they can."""
    at = 0
    while len(line) - at > MAX_PASSAGE:
        end = line.rfind(" ", at + MAX_PASSAGE // 2, at + MAX_PASSAGE) + 1 or at + MAX_PASSAGE
        yield line[at:end]
        at = end
    yield line[at:]


class Documents:
    """An index of the texts in a folder. `skipped`: files that weren't read, with the reason."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputNotFoundError(
                f"there is no folder {str(self.folder)!r} of documents", fix="name one that is there"
            )
        self.passages: list[Passage] = []
        self.files: list[str] = []
        self.skipped: dict[str, str] = {}
        for name, text in self._texts():
            self.files.append(name)
            self.passages += passages(name, text)
        self._postings: dict[str, tuple[array[int], array[float]]] = {}  # passages; how often in each
        self._lengths: list[float] = []
        for number, passage in enumerate(self.passages):
            counts: Counter[str] = Counter()
            for term, weight in terms(f"{passage.text}\n{Path(passage.file).stem}"):
                counts[term] += weight  # type: ignore[assignment]
            self._lengths.append(sum(counts.values()))
            for term, count in counts.items():
                places, often = self._postings.setdefault(term, (array("I"), array("d")))
                places.append(number)
                often.append(count)
        self._mean = sum(self._lengths) / len(self._lengths) if self._lengths else 1.0

    def _texts(self) -> Iterator[tuple[str, str]]:
        total = 0
        every = list(itertools.islice(self.folder.rglob("*"), MAX_ENTRIES + 1))
        if len(every) > MAX_ENTRIES:
            raise UsageError(
                f"{self.folder} holds more than {MAX_ENTRIES:,} files and folders",
                fix="name a smaller folder",
            )
        for path in sorted(every):
            if path.suffix.lower() not in SUFFIXES:
                continue
            name = path.relative_to(self.folder).as_posix()
            if any(
                part.is_symlink()
                for part in (path, *path.parents)
                if part != self.folder and self._below(part)
            ):
                self.skipped[name] = "a link"
            elif not path.is_file():
                continue
            elif (size := path.stat().st_size) > MAX_FILE:
                self.skipped[name] = "too large"
            elif total + size > MAX_TOTAL or len(self.files) >= MAX_FILES:
                self.skipped[name] = "the folder has too many documents"
            else:
                try:
                    text = path.read_bytes().decode("utf-8-sig")
                except (UnicodeDecodeError, OSError):
                    self.skipped[name] = "not UTF-8 text"
                    continue
                total += size
                yield name, text

    def _below(self, path: Path) -> bool:
        return path.is_relative_to(self.folder)

    def search(self, query: str, most: int = SHOWN) -> list[tuple[Passage, float]]:
        """The best passages with their scores, falling; equals in the order of the files."""
        scores: Counter[int] = Counter()
        count = len(self.passages)
        for term in {term for term, _ in terms(query)}:
            places, found = self._postings.get(term, (array("I"), array("d")))
            rarity = math.log(1 + (count - len(places) + 0.5) / (len(places) + 0.5))
            for number, often in zip(places, found, strict=True):
                length = self._lengths[number] / self._mean
                scores[number] += rarity * often * (K1 + 1) / (often + K1 * (1 - B + B * length))  # type: ignore
        best = sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:most]
        return [(self.passages[number], score) for number, score in best]


def documents_tool(documents: Documents) -> Tool:
    """The tool `documents` over one folder."""

    def run(arguments: dict[str, Any]) -> str:
        if not any(True for _ in terms(arguments["query"])):
            raise ToolError("the query has no words")
        shown = [passage.quotation for passage, _ in documents.search(arguments["query"])]
        # Long names: rather fewer passages than a cut in the middle, which could part a text from its source.
        while len(text := "\n\n".join(shown)) > MAX_RESULT and len(shown) > 1:
            shown.pop()
        return text or "(nothing found)"

    return Tool(
        name="documents",
        description="Searches the user's documents. Gives passages, each after its file and lines, quoted.",
        parameters={
            "type": "object",
            "properties": {"query": {"type": "string", "maxLength": MAX_QUERY, "description": "a few words"}},
            "required": ["query"],
        },
        run=run,
    )
