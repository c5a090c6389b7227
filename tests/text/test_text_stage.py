"""The text and tokenizer stages: what they write, again and again the same, and their refusals."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ayllu.errors import (
    BadFileError,
    CorpusEmptyError,
    InputNotFoundError,
    LicenceMissingError,
    TooLittleTextError,
)
from ayllu.progress import Progress
from ayllu.stage import StageContext
from ayllu.text.document import Document
from ayllu.text.manifest import documents_digest
from ayllu.text.stage import (
    TextSettings,
    TokenizerSettings,
    make_text,
    make_tokenizer,
    one_thread,
    read_evaluation,
    read_kept,
)
from ayllu.text.tokenizer import Tokenizer

HERE = TextSettings(corpus=("corpus.jsonl",), heldout=0.1)
Make = Callable[..., StageContext]
Write = Callable[..., Path]


def content(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_what_is_written(sound_rows: list[dict[str, Any]], corpus: Write, context: Make) -> None:
    corpus(sound_rows)
    here = context("text")
    result = make_text(here, HERE)
    names = ["ATTRIBUTION.md", "documents.jsonl", "dropped.jsonl", "manifest.json", "mixture.json"]
    assert list(content(here.folder)) == names
    rows = [json.loads(line) for line in (here.folder / "documents.jsonl").read_text().splitlines()]
    assert {row["split"] for row in rows} == {"train", "heldout"}
    assert {row["lang"] for row in rows if row["split"] == "heldout"} == {"en", "de", "te"}
    assert all({"id", "text", "lang", "source", "license"} <= row.keys() for row in rows)
    assert result["kept"] == len(rows) == 60
    assert result["mixture"] == json.loads((here.folder / "mixture.json").read_text())
    assert sum(row["share"] for row in result["mixture"]) == pytest.approx(1, abs=0.001)
    assert result["languages"]["te"] == {"documents": 20, "labelled": 20, "confirmed": 20}


def test_the_manifest_is_true(sound_rows: list[dict[str, Any]], corpus: Write, context: Make) -> None:
    path = corpus(sound_rows)
    here = context("text")
    make_text(here, HERE)
    manifest = json.loads((here.folder / "manifest.json").read_text())
    assert manifest["corpus"] == [
        {
            "file": "corpus.jsonl",
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
    ]
    for split in ("train", "heldout"):
        documents = read_kept(here.folder, split)
        # recomputed by hand, as a reader of the manifest would
        lines = "".join(sorted(f"{d.id}\t{hashlib.sha256(d.text.encode()).hexdigest()}\n" for d in documents))
        assert manifest[split] == {
            "documents": len(documents),
            "bytes": sum(len(d.text.encode()) for d in documents),
            "sha256": hashlib.sha256(lines.encode()).hexdigest(),
        }
    assert manifest["licences"]["CC0-1.0"]["documents"] == 60
    assert set(manifest["rules"]["quality"]) == {"en", "de", "te"}
    assert "/" not in json.dumps(manifest["corpus"]), "no machine paths"


def test_a_changed_letter_changes_the_digest() -> None:
    def one(text: str) -> list[Document]:
        return [Document(id="a/1", text=text, source="a", licence="CC0-1.0")]

    assert documents_digest(one("Kuh")) != documents_digest(one("kuh"))


def test_attribution_names_authors_licences_and_origins(
    sound_rows: list[dict[str, Any]], corpus: Write, context: Make
) -> None:
    rows = [
        row | {"author": "Molla", "title": "Ramayanam", "repo": "https://example.org/te", "year": 1530}
        if row["lang"] == "te"
        else row
        for row in sound_rows
    ]
    rows[0] = rows[0] | {"machine_translated": True, "title": "<b>bold</b>\n# no heading"}
    rows[1] = rows[1] | {"license": "CC-BY-4.0", "author": "Anna\n# No heading", "title": "Letters"}
    corpus(rows)
    here = context("text")
    make_text(here, HERE)
    text = (here.folder / "ATTRIBUTION.md").read_text()
    assert "- Molla, Ramayanam, 1530 (20 documents)" in text
    assert "- Licence: CC0-1.0" in text and "- Origin: https://example.org/te" in text
    assert "- Machine-translated documents: 1" in text
    assert "\n# no heading" not in text.lower() and "<b>" not in text
    assert "- Anna # No heading, Letters (CC-BY-4.0)" in text, "whose licence is which can be told"
    assert "(CC0-1.0)" in text and "Ramayanam, 1530 (CC0" not in text, (
        "where a source has one, it says so once"
    )


def test_the_same_bytes_each_time_and_after_a_torn_run(
    sound_rows: list[dict[str, Any]], corpus: Write, context: Make
) -> None:
    corpus(sound_rows)
    here = context("text")
    first = make_text(here, HERE)
    before = content(here.folder)
    (here.folder / "manifest.json").unlink()  # as if killed before the end
    (here.folder / "documents.jsonl").write_text('{"half')
    assert make_text(here, HERE) == first
    assert content(here.folder) == before


def test_another_seed_changes_only_what_is_held_out(
    sound_rows: list[dict[str, Any]], corpus: Write, context: Make
) -> None:
    corpus(sound_rows)
    held = []
    for seed in (0, 1):
        here = context("text", seed=seed)
        make_text(here, HERE)
        held.append({d.id for d in read_kept(here.folder, "heldout")})
        assert len(read_kept(here.folder)) == 60
    assert held[0] != held[1]


def test_text_without_labels_is_recognised(
    sound_rows: list[dict[str, Any]], corpus: Write, context: Make
) -> None:
    corpus([{k: v for k, v in row.items() if k != "lang"} for row in sound_rows])
    here = context("text")
    result = make_text(here, HERE)
    for document in read_kept(here.folder):
        assert document.source == f"{document.language}-books"
    assert result["languages"]["de"] == {"documents": 20, "labelled": 0, "confirmed": 0}


def test_text_in_no_language_is_dropped(
    sound_rows: list[dict[str, Any]], corpus: Write, context: Make
) -> None:
    numbers = {"id": "n/1", "text": "1 2 3 " * 100, "source": "n", "license": "CC0-1.0"}
    corpus([*sound_rows, numbers, numbers | {"id": "n/2", "lang": "und"}])
    assert make_text(context("text"), HERE)["dropped"] == {"language_unknown": 2}


def test_only_the_wanted_languages(sound_rows: list[dict[str, Any]], corpus: Write, context: Make) -> None:
    corpus(sound_rows)
    here = context("text")
    result = make_text(here, TextSettings(corpus=("corpus.jsonl",), languages=("te",)))
    assert result["dropped"] == {"language_unwanted": 40}
    assert {d.language for d in read_kept(here.folder)} == {"te"}


def test_a_folder_of_ones_own(paragraphs: dict[str, list[str]], tmp_path: Path, context: Make) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    for number in range(10):
        text = "\n\n".join(paragraphs["de"][3 * number : 3 * number + 3])
        (folder / f"{number}.md").write_text(text, encoding="utf-8")
    here = context("text")
    with pytest.raises(LicenceMissingError, match=r"0\.md"):
        make_text(here, TextSettings(corpus=("notes",)))
    assert not list(here.folder.iterdir()), "a refused corpus leaves nothing behind"
    result = make_text(here, TextSettings(corpus=("notes",), licence="private"))
    assert result["kept"] == 10
    assert result["licences"].keys() == {"private"}
    assert result["languages"]["de"]["documents"] == 10


def test_files_that_are_not_read_are_told_and_change_nothing(
    paragraphs: dict[str, list[str]], tmp_path: Path, context: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    for number in range(10):
        text = "\n\n".join(paragraphs["de"][3 * number : 3 * number + 3])
        (folder / f"{number}.md").write_text(text, encoding="utf-8")
    here, settings = context("text"), TextSettings(corpus=("notes",), licence="private")
    here = replace(here, progress=Progress("text"))
    before, written = make_text(here, settings), content(here.folder)
    assert "not read" not in capsys.readouterr().err
    for name in ("SOURCE.md", ".hidden", "book.pdf", "a/b.docx", "c.html", "d.csv"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("text")
    assert make_text(here, settings) == before and content(here.folder) == written
    said = capsys.readouterr().err
    told = "4 files are of a kind that is not read here, and left out: a/b.docx, book.pdf, c.html, ..."
    assert said.count("left out") == 1 and told in said


def test_evaluation_files(
    sound_rows: list[dict[str, Any]], corpus: Write, tmp_path: Path, context: Make
) -> None:
    leak = sound_rows[0] | {"id": "leak/1", "text": sound_rows[5]["text"][::-1] + " What is 417 + 385?"}
    corpus([*sound_rows, leak | {"text": "Now then. What is 417 + 385? " + sound_rows[0]["text"]}])
    (tmp_path / "eval.jsonl").write_text(
        '{"prompt": "What is 417 + 385?"}\n{"question": "Why is it so cold?"}\n'
    )
    (tmp_path / "eval.txt").write_text("What is 1 + 2 + 3?\n\nHello!\n")
    assert read_evaluation(tmp_path / "eval.jsonl") == ["What is 417 + 385?", "Why is it so cold?"]
    settings = TextSettings(corpus=("corpus.jsonl",), evaluation=("eval.jsonl", "eval.txt"))
    result = make_text(context("text"), settings)
    assert (result["evaluation"]["texts"], result["evaluation"]["too_short"]) == (4, 1)
    assert [hit["id"] for hit in result["evaluation"]["hits"]] == ["leak/1"]
    for bad in ('{"answer": 5}', "[1]", "{"):
        (tmp_path / "bad.jsonl").write_text('{"prompt": "fine"}\n' + bad)
        with pytest.raises(BadFileError, match=r"bad\.jsonl, line 2"):
            read_evaluation(tmp_path / "bad.jsonl")
    (tmp_path / "eval.csv").write_text("1,What is 417 + 385?,802\n")
    with pytest.raises(BadFileError, match=r"eval\.csv.*can't be compared"):
        read_evaluation(tmp_path / "eval.csv")
    with pytest.raises(InputNotFoundError, match="evaluation file"):
        make_text(context("text"), TextSettings(corpus=("corpus.jsonl",), evaluation=("gone.txt",)))


def test_nothing_left(corpus: Write, context: Make) -> None:
    corpus([{"id": "a/1", "text": "Too short.", "lang": "en", "license": "CC0-1.0"}])
    with pytest.raises(CorpusEmptyError, match="no document of the corpus is left") as caught:
        make_text(context("text"), HERE)
    assert "too_short 1" in str(caught.value)


def test_a_single_document_is_too_little(
    sound_rows: list[dict[str, Any]], corpus: Write, context: Make
) -> None:
    corpus(sound_rows[:1])
    with pytest.raises(TooLittleTextError, match="too small to hold anything out"):
        make_text(context("text"), HERE)


# ---- tokenizer
def test_the_tokenizer_stage(sound_rows: list[dict[str, Any]], corpus: Write, context: Make) -> None:
    corpus(sound_rows)
    make_text(context("text"), HERE)
    here = context("tokenizer", needs=("text",))
    settings = TokenizerSettings(vocabulary=600)
    practice = [f"What is {n} + {n}? zyxomat" for n in range(1000)]
    result = make_tokenizer(here, settings, practice)
    assert list(content(here.folder)) == ["fairness.json", "tokenizer.json", "tokenizer_config.json"]
    before = content(here.folder)
    assert make_tokenizer(here, settings, iter(practice)) == result
    assert content(here.folder) == before
    tokenizer = Tokenizer.load(here.folder)
    assert result["vocabulary"] == tokenizer.vocab_size == 600
    # the report's numbers, recomputed
    for language, row in result["fairness"].items():
        held = [d for d in read_kept(here.inputs["text"], "heldout") if d.language == language]
        tokens = sum(len(tokenizer.encode(d.text)) for d in held)
        assert (row["tokens"], row["bytes"]) == (tokens, sum(d.bytes for d in held))
        assert result["bytes_per_token"][language] == pytest.approx(row["bytes"] / tokens, abs=1e-4)
    assert set(result["fairness"]) == {"en", "de", "te"}
    total = result["practice_characters"] + sum(len(d.text) for d in read_kept(here.inputs["text"], "train"))
    assert 0 < result["practice_characters"] <= 0.15 * total


def test_the_tokenizer_has_not_read_the_heldout_text(
    sound_rows: list[dict[str, Any]], corpus: Write, context: Make
) -> None:
    # Held-out works are the same whatever they say: a word that only they have can't become a piece.
    corpus(sound_rows)
    make_text(context("text"), HERE)
    held = {d.id for d in read_kept(context("text").folder, "heldout")}
    strange = "Xylozyg "
    corpus(
        [
            row | {"text": row["text"] + "\n\n" + strange * 3} if row["id"] in held else row
            for row in sound_rows
        ]
    )
    make_text(context("text"), HERE)
    assert {d.id for d in read_kept(context("text").folder, "heldout")} == held
    here = context("tokenizer", needs=("text",))
    make_tokenizer(here, TokenizerSettings(vocabulary=2000))
    tokenizer = Tokenizer.load(here.folder)
    assert len(tokenizer.encode(strange)) >= 3


def test_a_tokenizer_without_text(context: Make) -> None:
    context("text")
    with pytest.raises(InputNotFoundError, match="run the text stage first"):
        make_tokenizer(context("tokenizer", needs=("text",)), TokenizerSettings())


def test_the_threads_of_others_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for before in ("true", None):
        if before is None:
            monkeypatch.delenv("TOKENIZERS_PARALLELISM", raising=False)
        else:
            monkeypatch.setenv("TOKENIZERS_PARALLELISM", before)
        with one_thread():
            assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
        assert os.environ.get("TOKENIZERS_PARALLELISM") == before


# ---- the corpus that comes with the program
def test_the_default_corpus(context: Make) -> None:
    here = context("text")
    settings = TextSettings(corpus=(str(Path(__file__).parents[2] / "data" / "default"),))
    began = time.process_time()
    result = make_text(here, settings, [f"What is {a} + {b}?" for a in range(50) for b in range(40)])
    assert result["kept"] >= 0.99 * result["read"] == 0.99 * 531
    assert 200_000 <= result["heldout"]["bytes"] <= 320_000
    assert all(
        row["confirmed"] == row["labelled"] == row["documents"] for row in result["languages"].values()
    )
    assert all("CC0" in licence or "public domain" in licence for licence in result["licences"])
    work = {d.work for d in read_kept(here.folder, "heldout")}
    assert not work & {d.work for d in read_kept(here.folder, "train")}
    tokens = make_tokenizer(context("tokenizer", needs=("text",)), TokenizerSettings())
    assert tokens["vocabulary"] == 4096
    assert min(tokens["bytes_per_token"].values()) > 2.8
    assert tokens["bytes_per_token"]["te"] > 4.8
    # 4.5 s where it was written; the bar leaves room for slower machines
    assert time.process_time() - began < 40
