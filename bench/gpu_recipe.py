"""Part `recipe` of bench/gpu.py: does a whole run train here, and does it go on where it was stopped?

recipes/miniature.toml, all stages of it, on the device: the way from text to a released model in small,
before a recipe takes hours on it. It is stopped twice, each time as soon as the stage has a checkpoint:
in SFT by Ctrl-C, as `timeout --signal=INT` does, and in RL by kill -9. Then the same command is given again.

A run is in order when both stages go on from a checkpoint, no step is left out or done twice, the losses of
pretraining and SFT have fallen, RL has learnt from some of its answers, and the released folder is whole.
(Weights aren't compared with those of an unbroken run: a GPU adds in no fixed order.)
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ayllu.errors import AylluError, RunStoppedError
from ayllu.files import make_folder, read_json, write_text
from ayllu.recipe import read_recipe, to_toml
from ayllu.release import verify_model_folder
from ayllu.report.summary import read_metrics
from ayllu.train.loop import CHECKPOINTS

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "data" / "default" / "default-corpus.jsonl.xz"
STOPS = (("sft", signal.SIGINT), ("rl", signal.SIGKILL))
DEADLINE = 500.0  # seconds of the whole part
# The miniature knows next to nothing after its SFT: of larger groups some have a right answer, and RL learns.
RL = {"groups": 8, "size": 16}
# For a dry run: the same stages in seconds, from forty documents. Steps enough that a stop finds some left,
# and few enough that RL, which can't learn anything then, doesn't say so and end.
TINY: dict[str, dict[str, Any]] = {
    "text": {"heldout": 0.03},
    "tokenizer": {"vocabulary": 500},
    "model": {"width": 32, "layers": 1, "head_dim": 16},
    "pretrain": {"tokens": 10_000, "rows": 4, "length": 64},
    "sft": {"steps": 100, "rows": 4, "length": 160},
    "rl": {"steps": 9, "groups": 4, "size": 4, "rounds": 1, "anchor_rows": 1, "length": 160},
    "eval": {"n": 10, "max_tokens": 16},
}


def recipe(wish: argparse.Namespace) -> dict[str, Any]:
    """`ok` and `faults`; `stages`: seconds of each; `resumed`: stage -> from which step of how many."""
    home = wish.out / "recipe"
    shutil.rmtree(home, ignore_errors=True)  # a run of before would be done before
    make_folder(home)
    written(home, wish)
    end, fault = time.monotonic() + DEADLINE, ""
    for stage, number in STOPS:
        fault = fault or interrupted(home, stage, number, end)
    fault = fault or finished(home, end)
    report = read_json(home / "run" / "report.json") if not fault else {}
    found = {
        "finished": bool(report.get("finished")),
        "stages": {name: stage["seconds"] for name, stage in report.get("stages", {}).items()},
        "resumed": resumed(home / "run"),
        "losses": losses(home / "run"),
        "machine": report.get("machine"),
    }
    faults = [fault] if fault else unsound(home / "run", report, found, learning=not wish.tiny)
    times = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in found["stages"].items())
    places = ", ".join(f"{stage} at {step} of {steps}" for stage, (step, steps) in found["resumed"].items())
    print(f"  {times or 'not finished'}; went on: {places or 'nowhere'}; {faults or 'in order'}", flush=True)
    return {"ok": not faults, "faults": faults, **found}


def written(home: Path, wish: argparse.Namespace) -> None:
    """home/miniature.toml: the project's miniature recipe for the device, smaller still for a dry run."""
    raw = read_recipe(ROOT / "recipes" / "miniature.toml") | {"device": wish.device.partition(":")[0]}
    raw["rl"] |= RL
    if wish.tiny:
        raw |= {table: raw.get(table, {}) | changes for table, changes in TINY.items()}
        with lzma.open(CORPUS, "rt", encoding="utf-8") as file:
            lines = file.readlines()
        write_text(home / "part.jsonl", "".join(lines[:: len(lines) // 40]))
        raw["text"] |= {"corpus": [str(home / "part.jsonl")]}
    write_text(home / "miniature.toml", to_toml(raw))


def begun(home: Path) -> subprocess.Popen[bytes]:
    """`ayllu make` of the recipe; what it prints is added to home/log.txt."""
    words = [sys.executable, "-m", "ayllu", "make", str(home / "miniature.toml"), "--out", str(home / "run")]
    with open(home / "log.txt", "ab") as log:
        # Checkpoints at every chance: the run is short, and the stops must find one.
        env = os.environ | {"AYLLU_CHECKPOINT_SECONDS": "0.1"}
        return subprocess.Popen(
            words, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log
        )


def interrupted(home: Path, stage: str, number: signal.Signals, end: float) -> str:
    """Give the command and send it the signal once `stage` has a checkpoint; what went wrong, or nothing."""
    folder = home / "run" / stage
    with begun(home) as process:
        try:
            while not any((folder / CHECKPOINTS).glob("step-*")):
                if process.poll() is not None:
                    return f"it ended before {stage} had a checkpoint: {last_words(home)}"
                if time.monotonic() > end:
                    return f"{stage} had no checkpoint in {DEADLINE:.0f} s: {last_words(home)}"
                time.sleep(0.005)
            process.send_signal(number)
            code = process.wait(max(60.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            return f"{number.name} in {stage} didn't end it"
        finally:
            process.kill()
    if (folder / "stage.json").is_file():
        return f"{stage} was done before {number.name} came"
    wanted = RunStoppedError.exit_code if number == signal.SIGINT else -number
    return "" if code == wanted else f"{number.name} in {stage}: exit code {code}, not {wanted}"


def finished(home: Path, end: float) -> str:
    """Give the command once more, to its end; what went wrong, or nothing."""
    with begun(home) as process:
        try:
            code = process.wait(max(1.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            return f"it wasn't done in {DEADLINE:.0f} s: {last_words(home)}"
        finally:
            process.kill()
    return "" if code == 0 else f"exit code {code}: {last_words(home)}"


def last_words(home: Path) -> str:
    return (home / "log.txt").read_text(encoding="utf-8", errors="replace")[-600:].strip()


def resumed(run: Path) -> dict[str, tuple[int, int]]:
    """Stage -> the step that it went on from, and how many it has, by the run's own log."""
    try:
        log = (run / "log.txt").read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    places = re.findall(r"^ *(\w+) goes on from step (\d+) of (\d+)$", log, re.M)
    return {stage: (int(step), int(steps)) for stage, step, steps in places}


def losses(run: Path) -> dict[str, tuple[float, float]]:
    """Stage -> mean loss of its first and of its last five steps."""
    rows = {
        stage: [row["loss"] for row in each if "loss" in row]
        for stage, each in read_metrics(run / "metrics.jsonl").items()
    }
    return {stage: (sum(v[:5]) / 5, sum(v[-5:]) / 5) for stage, v in rows.items() if len(v) >= 5}


def unsound(run: Path, report: Mapping[str, Any], found: Mapping[str, Any], *, learning: bool) -> list[str]:
    """What isn't as it should be in a run that has come to its end. `learning`: RL must have had something to
    learn from."""
    faults = [] if found["finished"] else [f"stages are missing: {report.get('missing')}"]
    faults += [f"{stage} began again" for stage, _ in STOPS if stage not in found["resumed"]]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for stage in ("pretrain", "sft", "rl"):
        rows = [row for row in lines if row["stage"] == stage]
        if not rows or [row["step"] for row in rows] != list(range(1, rows[0]["steps"] + 1)):
            faults.append(f"{stage}: steps are missing or stand there twice")
    if learning and not any(row.get("informative") for row in lines):
        faults.append("rl: no group was informative, so that nothing was learnt from answers")
    for stage in ("pretrain", "sft"):
        first, last = found["losses"].get(stage, (math.nan, math.nan))
        if not last < first:
            faults.append(f"{stage}: the loss went from {first:.3f} to {last:.3f}")
    try:
        verify_model_folder(run / "model")
    except AylluError as error:
        faults.append(str(error))
    return faults
