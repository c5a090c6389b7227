"""A run of three quick stages, for tests of the run folder. As a program: fake_run.py RECIPE OUT [UNTIL]."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ayllu.errors import AylluError
from ayllu.files import append_line, make_folder, new_folder, read_json, write_json, write_text
from ayllu.run import make
from ayllu.stage import StageContext, bounded, free
from ayllu.stages import Extra, Stage

CODE_VERSION = 1


@dataclass(frozen=True)
class CountSettings:
    steps: int = bounded(12, 1, 1000, "links of the chain")
    pause: float = bounded(0.0, 0.0, 10.0, "seconds a link takes")
    corpus: str = free("corpus", "a folder of text files")
    fault: str = free("", "what goes wrong: disk, memory, other")


@dataclass(frozen=True)
class MixSettings:
    salt: str = free("s", "stirred in")


def count(context: StageContext, settings: CountSettings, words: Iterable[str] = ()) -> dict[str, Any]:
    """A chain of hashes; its state is saved at each link, and it goes on from there."""
    append_line(context.root / "calls.txt", "count")
    state_at = context.folder / "state.json"
    text = "".join(p.read_text() for p in sorted((context.root / settings.corpus).glob("*")))
    state = {"step": 0, "digest": f"{context.seed} {text} {list(words)}"}
    if state_at.exists():
        state = read_json(state_at)
    context.progress.start(settings.steps, "links", state["step"])
    while state["step"] < settings.steps:
        time.sleep(settings.pause)
        digest = hashlib.sha256(f"{state['digest']} {state['step']}".encode()).hexdigest()
        state = {"step": state["step"] + 1, "digest": digest}
        write_json(state_at, state)
        append_line(context.metrics, json.dumps({"stage": "count", "step": state["step"]}))
        context.progress.update(state["step"])
    if settings.fault == "disk":
        with open(context.folder / "large.bin", "wb") as file:
            for _ in range(64):
                file.write(bytes(1 << 20))
    if settings.fault == "memory":
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")
    if settings.fault == "other":
        raise RuntimeError("a mistake of ours")
    state_at.unlink()
    write_text(context.folder / "chain.txt", state["digest"])
    return {"digest": state["digest"]}


def mix(context: StageContext, settings: MixSettings) -> dict[str, Any]:
    """Starts clean, and replaces its whole folder at the end."""
    append_line(context.root / "calls.txt", "mix")
    chain = (context.inputs["count"] / "chain.txt").read_text()
    time.sleep(0.02)
    with new_folder(context.folder) as folder:
        write_text(folder / "mixed.txt", hashlib.sha256((settings.salt + chain).encode()).hexdigest())
    return {"salt": settings.salt, "threads": context.threads}


def pack(context: StageContext, settings: MixSettings) -> dict[str, Any]:
    append_line(context.root / "calls.txt", "pack")
    make_folder(context.folder / "parts")
    write_text(context.folder / "config.json", "{}")
    write_text(context.folder / "parts" / "mixed.txt", (context.inputs["mix"] / "mixed.txt").read_text())
    return {}


def words(settings: MixSettings, seed: int) -> list[str]:
    return [settings.salt[:1], str(seed)]


def report(folder: Path, recipe: dict[str, Any], stages: dict[str, dict[str, Any]]) -> None:
    write_json(folder / "report.json", {"stages": {name: m["seconds"] for name, m in stages.items()}})


TABLES = {"count": "fake_run:CountSettings", "mix": "fake_run:MixSettings", "pack": "fake_run:MixSettings"}
STAGES = (
    Stage(
        "count",
        "fake_run:count",
        "count",
        files=("corpus",),
        reads=("seed",),
        extras=(Extra("words", "mix", "fake_run:words", by_content=True),),
    ),
    Stage("mix", "fake_run:mix", "mix", needs=("count",)),
    Stage("pack", "fake_run:pack", "pack", needs=("mix",), output="model", reads=()),
)


def run(recipe: Path, out: Path | None = None, **more: Any) -> dict[str, Any]:
    return make(recipe, out=out, stages=STAGES, tables=TABLES, report="fake_run:report", quiet=True, **more)


if __name__ == "__main__":
    sys.modules["fake_run"] = sys.modules["__main__"]
    if limit := os.environ.get("FILE_LIMIT"):
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    try:
        done = run(Path(sys.argv[1]), Path(sys.argv[2]), until=(sys.argv[3:] or [None])[0])
    except AylluError as error:
        print(type(error).__name__, error, sep="\n", file=sys.stderr)
        sys.exit(error.exit_code)
    print(json.dumps(done | {"torch": "torch" in sys.modules}))
