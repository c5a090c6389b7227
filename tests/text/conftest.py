"""Sound sentences in three languages to build corpora from, a stage context, and small vocabularies of other
models beside the libraries that judge them."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from foreign_vocabularies import STORIES, hf_json

from ayllu.progress import Progress
from ayllu.stage import StageContext
from ayllu.text.readers import read_corpus
from ayllu.text.tokenizer import Tokenizer, train_tokenizer
from ayllu.text.vocabularies.bytelevel import LLAMA3, QWEN2
from ayllu.text.vocabularies.tiktoken import reserved_names

DEFAULT_CORPUS = Path(__file__).parents[2] / "data" / "default"


@pytest.fixture(scope="session")
def paragraphs() -> dict[str, list[str]]:
    """Real paragraphs of 300 to 1200 characters per language, from the default corpus."""
    found: dict[str, list[str]] = {"en": [], "de": [], "te": []}
    for document in read_corpus([DEFAULT_CORPUS]).documents:
        if document.source in ("standardebooks-sherlock", "german-novels", "telugu-wikisource"):
            blocks = document.text.split("\n\n")
            if document.language == "te":
                lines = document.text.split("\n")
                blocks = ["\n".join(lines[i : i + 8]) for i in range(0, len(lines) - 8, 8)]
            found[document.language] += [b for b in blocks if 300 <= len(b) <= 1200][:12]
    return found


@pytest.fixture
def context(tmp_path: Path) -> Callable[..., StageContext]:
    """`context(name)`: a stage context whose folders lie in tmp_path."""

    def make(name: str, *, seed: int = 0, needs: tuple[str, ...] = ()) -> StageContext:
        folder = tmp_path / "run" / name
        folder.mkdir(parents=True, exist_ok=True)
        return StageContext(
            folder=folder,
            inputs={need: tmp_path / "run" / need for need in needs},
            seed=seed,
            threads=1,
            device="cpu",
            progress=Progress(name, quiet=True),
            metrics=tmp_path / "metrics.jsonl",
            root=tmp_path,
        )

    return make


@pytest.fixture
def corpus(tmp_path: Path) -> Callable[[Iterable[dict[str, Any]]], Path]:
    """Write rows as corpus.jsonl."""

    def write(rows: Iterable[dict[str, Any]]) -> Path:
        path = tmp_path / "corpus.jsonl"
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def sound_rows(paragraphs: dict[str, list[str]]) -> list[dict[str, Any]]:
    """60 sound documents: 20 works per language, each of three real paragraphs that occur only once."""
    rows = []
    for language, blocks in paragraphs.items():
        picked = random.Random(language).sample(blocks, 60)
        for number in range(20):
            rows.append(
                {
                    "id": f"{language}-books/{number:03d}",
                    "text": "\n\n".join(picked[3 * number : 3 * number + 3]),
                    "lang": language,
                    "source": f"{language}-books",
                    "license": "CC0-1.0",
                    "title": f"Work {number}",
                    "author": "Nobody",
                }
            )
    return rows


@pytest.fixture(scope="session")
def stories() -> tuple[Tokenizer, Any]:
    import sentencepiece  # here, as tiktoken below: most tests of the folder need no judge

    judge = sentencepiece.SentencePieceProcessor(model_file=str(STORIES / "tokenizer.model"))
    return Tokenizer.load(STORIES), judge


@pytest.fixture(scope="session")
def ranks(paragraphs: dict[str, list[str]]) -> dict[bytes, int]:
    """Byte pairs trained with tiktoken's own teaching code's rule: ours, ordered by when they were merged."""
    trained = train_tokenizer((b for blocks in paragraphs.values() for b in blocks[:60]), 1500)
    pieces = [trained.piece_bytes(i) for i in range(16, trained.vocab_size)]
    return {piece: rank for rank, piece in enumerate(pieces)}


@pytest.fixture(scope="session")
def llama3(ranks: dict[bytes, int], tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    import tiktoken

    folder = tmp_path_factory.mktemp("llama3")
    lines = [base64.b64encode(piece) + b" %d\n" % rank for piece, rank in ranks.items()]
    (folder / "tokenizer.model").write_bytes(b"".join(lines))
    special = {name: len(ranks) + i for i, name in enumerate(reserved_names())}
    judge = tiktoken.Encoding("small", pat_str=LLAMA3, mergeable_ranks=ranks, special_tokens=special)
    return Tokenizer.load(folder), judge


@pytest.fixture(scope="session")
def qwen(ranks: dict[bytes, int], tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("qwen")
    (folder / "tokenizer.json").write_text(json.dumps(hf_json(ranks, QWEN2)))
    spoken = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "split_special_tokens": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(spoken))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, len(ranks)]}))
    return Tokenizer.load(folder), transformers.AutoTokenizer.from_pretrained(folder)
