"""A real run in a few seconds, all seven stages of it, for tests of kills and faults.

The corpus is a part of the default one. What a test wants otherwise it says with `recipe(...)`.
"""

from __future__ import annotations

import json
import lzma
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DEFAULT = ROOT / "data" / "default" / "default-corpus.jsonl.xz"
DOCUMENTS = 40  # every so-many-th of the default corpus, so that all three languages are there

TABLES: dict[str, dict[str, Any]] = {
    "text": {"corpus": ["corpus"], "heldout": 0.03},
    "tokenizer": {"vocabulary": 500},
    "model": {"width": 32, "layers": 1, "context": 192, "head_dim": 16},
    "pretrain": {"tokens": 20_000, "rows": 4, "length": 64},
    "sft": {"steps": 40, "rows": 4, "length": 160},
    "rl": {
        "preflight": 0,  # it has learnt too little to be let through
        "steps": 8,
        "groups": 2,
        "size": 4,
        "rounds": 1,
        "max_tokens": 24,
        "anchor_rows": 1,
        "length": 160,
        "arithmetic": 1.0,
        "countdown3": 0.0,
    },
    "eval": {"n": 10, "max_tokens": 16},
}


def corpus(place: Path) -> None:
    """Write place/corpus/part.jsonl."""
    with lzma.open(DEFAULT, "rt", encoding="utf-8") as file:
        lines = file.readlines()
    (place / "corpus").mkdir()
    chosen = lines[:: len(lines) // DOCUMENTS]
    (place / "corpus" / "part.jsonl").write_text("".join(chosen), encoding="utf-8")


def recipe(place: Path, **changes: dict[str, Any]) -> Path:
    """Write place/small.toml: TABLES with `changes` to single settings."""
    lines = ["name = 'small'", "seed = 7", "threads = 1", "device = 'cpu'"]
    for table, settings in TABLES.items():
        lines += [f"[{table}]"]
        lines += [f"{k} = {json.dumps(v)}" for k, v in (settings | changes.get(table, {})).items()]
    path = place / "small.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "ayllu", *words]


def environment(**more: str) -> dict[str, str]:
    """What the command runs under: this checkout, many checkpoints."""
    return os.environ | {"PYTHONPATH": str(ROOT), "AYLLU_CHECKPOINT_SECONDS": "0.1"} | more


def start(place: Path, *words: str, out: str = "run", **env: str) -> subprocess.Popen[str]:
    """`ayllu make small.toml --out OUT` in `place`, not waited for."""
    return subprocess.Popen(
        command("make", "small.toml", "--out", out, *words),
        cwd=place,
        env=environment(**env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def make(place: Path, *words: str, out: str = "run", **env: str) -> subprocess.CompletedProcess[str]:
    """The same, to its end."""
    process = start(place, *words, out=out, **env)
    stdout, stderr = process.communicate(timeout=240)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def report(run: Path) -> dict[str, Any]:
    return json.loads((run / "report.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]
