"""Readers: what they accept, and each refusal with its file, line or byte."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ayllu.errors import (
    BadFileError,
    CorpusEmptyError,
    CorpusNotFoundError,
    LicenceMissingError,
    NotUtf8Error,
)
from ayllu.text.licences import KNOWN, misspelt
from ayllu.text.readers import cut_at_paragraphs, read_corpus

ROW = {"id": "a/1", "text": "Guten Tag.", "lang": "de", "source": "a", "license": "CC0-1.0"}


def lines(*rows: object) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


@pytest.mark.parametrize(
    ("name", "pack"), [("a.jsonl", bytes), ("a.jsonl.gz", gzip.compress), ("a.jsonl.xz", lzma.compress)]
)
def test_jsonl_plain_and_packed(tmp_path: Path, name: str, pack: type[bytes]) -> None:
    second = ROW | {"id": "a/2", "text": "line\u2028separator\nand\x85others"}
    (tmp_path / name).write_bytes(pack(lines(ROW) + b"\n" + lines(second)))
    corpus = read_corpus([tmp_path])
    assert [d.id for d in corpus.documents] == ["a/1", "a/2"]
    assert corpus.documents[1].text == second["text"]
    assert [(f.name, f.bytes) for f in corpus.files] == [(name, (tmp_path / name).stat().st_size)]


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b.jsonl", "sub/a.jsonl", "a.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(lines(ROW | {"id": name}))
    assert [d.id for d in read_corpus([tmp_path]).documents] == ["a.jsonl", "b.jsonl", "sub/a.jsonl"]


def test_a_folder_of_ones_own_text(tmp_path: Path) -> None:
    folder = tmp_path / "notes"
    (folder / "2024").mkdir(parents=True)
    (folder / "2024" / "trip.md").write_bytes(b"\xef\xbb\xbf# Cusco\r\n\r\nWe went up.")
    (folder / "SOURCE.md").write_text("about the folder, not of it")
    (folder / "picture.png").write_bytes(b"\x89PNG")
    (document,) = read_corpus([folder], licence="private", language="en").documents
    assert document.id == "notes/2024/trip.md"
    assert (document.source, document.licence, document.language) == ("notes", "private", "en")
    assert document.text.startswith("# Cusco")


def test_a_long_file_becomes_parts_of_one_work(tmp_path: Path) -> None:
    text = "\n\n".join(f"Paragraph {n}. " + "word " * 50 for n in range(500))
    (tmp_path / "book.txt").write_text(text)
    documents = read_corpus([tmp_path / "book.txt"], licence="CC0-1.0").documents
    assert len(documents) > 3
    assert len({d.work for d in documents}) == 1
    assert "\n\n".join(d.text for d in documents) == text


@given(st.lists(st.text("ab .", max_size=30), max_size=30), st.integers(1, 50))
def test_cutting_loses_nothing(blocks: list[str], size: int) -> None:
    text = "\n\n".join(blocks)
    border = "\n\n" if "\n\n" in text else "\n"
    assert border.join(cut_at_paragraphs(text, size)).strip() == text.strip()


# ---- refusals
def test_a_missing_corpus(tmp_path: Path) -> None:
    with pytest.raises(CorpusNotFoundError, match=r"nowhere does not exist") as caught:
        read_corpus([tmp_path / "nowhere"])
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("content", [None, b"", b"\n\n"])
def test_an_empty_corpus(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(CorpusEmptyError, match="holds no document") as caught:
        read_corpus([tmp_path])
    assert caught.value.exit_code == 4


def test_no_corpus_at_all() -> None:
    with pytest.raises(CorpusEmptyError, match="no path was given"):
        read_corpus([])


@pytest.mark.parametrize("licence", [None, "", "  ", "unknown", "NOASSERTION"])
def test_a_row_without_a_licence_names_file_and_line(tmp_path: Path, licence: str | None) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(ROW) + b"\n" + lines(ROW | {"id": "a/2", "license": licence}))
    with pytest.raises(LicenceMissingError, match=r"a\.jsonl, line 3: .* no licence") as caught:
        read_corpus([tmp_path])
    assert caught.value.exit_code == 5


def test_the_recipes_licence_fills_in(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines({"text": "a"}, ROW))
    assert [d.licence for d in read_corpus([tmp_path], licence="CC-BY-4.0").documents] == [
        "CC-BY-4.0",
        "CC0-1.0",
    ]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("CC-BT-4.0", "CC-BY-4.0"),
        ("CC-BY-AS-4.0", "CC-BY-SA-4.0"),
        ("Apche-2.0", "Apache-2.0"),
        ("MIT OR Apace-2.0", "Apache-2.0"),
        ("MITT", "MIT"),
        ("Unlicence", "Unlicense"),
    ],
)
def test_a_misspelt_licence_is_refused(tmp_path: Path, written: str, meant: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(ROW, ROW | {"id": "a/2", "license": written}))
    with pytest.raises(LicenceMissingError, match=r"a\.jsonl, line 2: there is no licence") as caught:
        read_corpus([tmp_path])
    assert caught.value.fix.startswith(f"did you mean {meant}?")
    (tmp_path / "a.jsonl").unlink()
    (tmp_path / "notes.txt").write_text("Guten Tag.")
    with pytest.raises(LicenceMissingError, match="there is no licence"):
        read_corpus([tmp_path], licence=written)


def test_licences_in_other_words_are_taken_as_they_are() -> None:
    for good in (
        *KNOWN, "private", "public domain", "public domain (author died before 1956)", "cc-by-4.0",
        "CC BY 4.0", "apache-2.0", "GPL-3.0-or-later", "PDM-1.0 (public domain)", "public domain OR CC0-1.0",
        "odc-by", "cc0", "CC-BY-2.5-IT", "LicenseRef-ours", "llama3", "openrail", "MIT AND CC-BY-SA-4.0",
        "EUPL-1.3", "own work", "LGPL-2.1-only WITH Classpath-exception-2.0", "http://example.org/licence",
        "other", "mixed", "LGPL-2.0+", "AGPL-1.0",
    ):  # fmt: skip
        assert misspelt(good) == "", good


@pytest.mark.parametrize("licence", ["", "  ", "unknown", "N/A"])
def test_plain_text_without_a_licence(tmp_path: Path, licence: str) -> None:
    (tmp_path / "a.txt").write_text("Hello")
    with pytest.raises(LicenceMissingError, match=r"a\.txt, line 1"):
        read_corpus([tmp_path], licence=licence)


def test_hidden_files_and_folders_are_nobodys_text(tmp_path: Path) -> None:
    folder = tmp_path / ".notes"  # which is asked for by name
    for name in ("a.md", ".trash/b.md", "sub/.venv/lib/c.txt", ".d.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("We went up.")
    assert [d.path for d in read_corpus([folder], licence="private").documents] == ["a.md"]


def test_paragraphs_stay_whole_with_other_line_ends(tmp_path: Path) -> None:
    text = "\n\n".join(f"Paragraph {n}.\n" + "word " * 50 for n in range(500))
    (tmp_path / "book.txt").write_bytes(text.replace("\n", "\r\n").encode())
    documents = read_corpus([tmp_path], licence="CC0-1.0").documents
    assert len(documents) > 3 and all(d.text.startswith("Paragraph") for d in documents)


def test_empty_names_are_none(tmp_path: Path) -> None:
    rows = [ROW | {"id": "", "source": "", "title": ""}, ROW | {"id": "", "source": "", "text": ""}]
    (tmp_path / "a.jsonl").write_bytes(lines(*rows))
    first, second = read_corpus([tmp_path]).documents
    assert (first.id, first.source, second.id, second.text) == ("a/00001", "a", "a/00002", "")
    assert first.row()["source"] == "a"


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_text_that_is_not_utf8_names_file_and_byte(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'{"text": "x"}\nGr\xfc\xdfe')
    with pytest.raises(NotUtf8Error, match=rf"{name} is not UTF-8: byte 16 \(line 2\) is 0xfc") as caught:
        read_corpus([tmp_path], licence="CC0-1.0")
    assert caught.value.exit_code == 5
    assert "iconv" in str(caught.value)


@pytest.mark.parametrize("field", ["text", "title", "author", "id", "source", "more"])
def test_half_a_character_in_an_escape(tmp_path: Path, field: str) -> None:
    row = json.dumps(ROW | {field: "\ud83d", "other": "\U0001f999"})
    assert "\\ud83d" in row
    (tmp_path / "a.jsonl").write_text(row + "\n")
    with pytest.raises(NotUtf8Error, match="line 1"):
        read_corpus([tmp_path])


@pytest.mark.parametrize(
    "line",
    [
        b'{"text": ', b"[1]", b'"text"', b'{"text": 5, "license": "CC0-1.0"}', b"{}",
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=["cut off", "list", "text", "number", "empty", "long number", "deep"],
)  # fmt: skip
def test_a_bad_line_names_its_number(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(ROW) + line + b"\n")
    with pytest.raises(BadFileError, match=r"a\.jsonl, line 2"):
        read_corpus([tmp_path])


@pytest.mark.parametrize(("name", "pack"), [("a.jsonl.gz", gzip.compress), ("a.jsonl.xz", lzma.compress)])
@pytest.mark.parametrize(
    "damage",
    [lambda d: d[:-9], lambda d: b"junk" + d, lambda d: d[:20] + b"\xff" * 12 + d[32:]],
    ids=["cut off", "no header", "inside"],
)
def test_a_damaged_archive(tmp_path: Path, name: str, pack: type[bytes], damage: type[bytes]) -> None:
    (tmp_path / name).write_bytes(damage(pack(lines(ROW) * 50)))
    with pytest.raises(BadFileError, match="is damaged"):
        read_corpus([tmp_path])


def test_an_unknown_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(BadFileError, match="this kind of file"):
        read_corpus([tmp_path / "a.pdf"])


def test_the_same_id_twice(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(ROW, ROW))
    with pytest.raises(BadFileError, match="two documents have the id 'a/1'"):
        read_corpus([tmp_path])
