"""A run folder as it stands before its release, and fixtures of the released one, for tests of what is in it.

The fixtures ask for one another, so a test file that takes one imports those that it rests on, too: as
themselves (`folder as folder`), which tells ruff that a name nothing else mentions is meant.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ayllu.files import write_json
from ayllu.model.config import ModelSettings
from ayllu.model.decoder import Decoder
from ayllu.model.weights import save_model
from ayllu.progress import Progress
from ayllu.reason.transcript import Chat
from ayllu.release import ReleaseSettings, release
from ayllu.stage import StageContext
from ayllu.text.tokenizer import Tokenizer, train_tokenizer

TEXT = "What is 417 + 385? Use the numbers 3, 7 and 25 to make 46. Guten Tag, schöner Tag! నమస్కారం తెలుగు. "
MIXTURE = [
    {"source": "books", "language": "en", "documents": 65, "bytes": 1376819, "share": 0.7,
     "licences": ["public domain"], "dropped": 2},
    {"source": "wiki|source", "language": "te", "documents": 199, "bytes": 1345304, "share": 0.3,
     "licences": ["PDM-1.0", "CC0-1.0"], "dropped": 0},
]  # fmt: skip
EVALS = {
    "countdown3": {
        "sft": {"n": 1000, "correct": 412, "low": 0.3819, "high": 0.4428, "samples": []},
        "rl": {"n": 1000, "correct": 634, "low": 0.6037, "high": 0.6633, "samples": []},
    }
}
RESULTS: dict[str, dict[str, Any]] = {
    "text": {"mixture": MIXTURE, "dropped": {}},
    "tokenizer": {"vocab_size": 400},
    "pretrain": {"parameters": 123456, "bits_per_byte": 1.893, "xz_bits_per_byte": 2.214},
    "sft": {},
    "rl": {},
    "eval": EVALS,
}


def make_run(run: Path, *, results: dict[str, dict[str, Any]] = RESULTS) -> StageContext:
    """A run folder as it stands before its release: a real tokenizer and real (random) weights."""
    for name, result in results.items():
        (run / name).mkdir(parents=True)
        write_json(run / name / "stage.json", {"seconds": 12.0, "peak_memory_mb": 300.0, "result": result})
    (run / "recipe.toml").write_text('name = "demo"\nseed = 7\n\n[model]\nwidth = 64\ncontext = 256\n')
    (run / "text").mkdir(exist_ok=True)
    data = {"format": 1, "train": {"documents": 264, "bytes": 2722123, "sha256": "ab" * 32}, "licences": {}}
    write_json(run / "text" / "manifest.json", data)
    (run / "text" / "ATTRIBUTION.md").write_text("# Sources\n\nbooks: public domain\n")
    tokenizer = train_tokenizer(iter([TEXT] * 20), 400)
    (run / "tokenizer").mkdir(exist_ok=True)
    tokenizer.save(run / "tokenizer")
    torch.manual_seed(3)
    config = ModelSettings(width=64, layers=2, head_dim=16, context=256).config(tokenizer.vocab_size)
    (run / "rl" / "model").mkdir(parents=True, exist_ok=True)
    control = tokenizer.control
    ids = {"bos": control["<|bos|>"], "eos": control["<|end|>"], "pad": control["<|pad|>"]}
    save_model(Decoder(config), run / "rl" / "model", **ids)
    (run / "model").mkdir(exist_ok=True)
    names = ("text", "tokenizer", "pretrain", "sft", "rl", "eval")
    return StageContext(
        folder=run / "model", inputs={name: run / name for name in names}, seed=7, threads=1, device="cpu",
        progress=Progress("release", quiet=True), metrics=run / "metrics.jsonl", root=run,
    )  # fmt: skip


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> StageContext:
    return make_run(tmp_path_factory.mktemp("runs") / "demo")


@pytest.fixture(scope="module")
def result(context: StageContext) -> dict[str, Any]:
    return release(context, ReleaseSettings())


@pytest.fixture(scope="module")
def folder(context: StageContext, result: dict[str, Any]) -> Path:
    return context.folder


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def chat(folder: Path) -> Chat:
    return Chat(Tokenizer.load(folder))
