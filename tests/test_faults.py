"""Runs that are killed, damaged, starved of disk or given bad text: the real command, the real stages.

The measure is always the same: the run ends in the weights of a run that nothing happened to.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import small_run

from ayllu.release import verify_model_folder, weights_sha256

TRAINED = ("pretrain", "sft", "rl")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small corpus, its recipe, and an unbroken run in `whole`."""
    folder = tmp_path_factory.mktemp("faults")
    small_run.corpus(folder)
    small_run.recipe(folder)
    done = small_run.make(folder, out="whole")
    assert done.returncode == 0, done.stderr
    return folder


def rows(run: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl; the last may be half written at the moment."""
    with contextlib.suppress(FileNotFoundError):
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
        return [json.loads(line) for line in lines]
    return []


def begun(run: Path, stage: str) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return stage in json.loads((run / ".clock.json").read_text())
    return False


def wait_for(process: subprocess.Popen[str], reached: Callable[[], bool]) -> bool:
    """Whether `reached` came true before the process ended."""
    end = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end:
        if reached():
            return True
        time.sleep(0.005)
    return False


def at_step(run: Path, stage: str, step: int) -> Callable[[], bool]:
    return lambda: any(row["stage"] == stage and row.get("step", 0) >= step for row in rows(run))


def kill(process: subprocess.Popen[str]) -> str:
    """kill -9; what it had printed."""
    process.send_signal(signal.SIGKILL)
    return process.communicate()[1]


def half_way(place: Path, name: str, stage: str, step: int) -> Path:
    """A copy of the unbroken run without `stage` and what follows, then begun again and killed in it."""
    run = copy_until(place, place / name, stage)
    process = small_run.start(place, "--until", stage, out=name)
    assert wait_for(process, at_step(run, stage, step)), process.communicate()[1]
    kill(process)
    return run


def copy_until(place: Path, run: Path, stage: str) -> Path:
    shutil.copytree(place / "whole", run, dirs_exist_ok=True)
    names = list(small_run.TABLES)
    for later in [*names[names.index(stage) :], "release", "model"]:
        shutil.rmtree(run / later)
    kept = [row for row in rows(run) if row["stage"] not in names[names.index(stage) :]]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    return run


def flip(path: Path, rng: random.Random) -> None:
    """Change one bit somewhere."""
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


# ---- kill -9
def test_killed_in_every_stage_it_ends_in_the_same_weights(place: Path) -> None:
    rng, run = random.Random(5), place / "killed"
    deaths: list[tuple[str, int]] = [(stage, 0) for stage in ("text", "tokenizer", "eval", "release")]
    deaths += [("pretrain", rng.randint(2, 40)), ("pretrain", rng.randint(41, 70))]
    deaths += [("sft", rng.randint(8, 30)), ("rl", rng.randint(3, 6))]
    deaths.sort(key=lambda death: ([*small_run.TABLES, "release"].index(death[0]), death[1]))
    said, killed = "", []
    for stage, step in deaths:
        process = small_run.start(place, out="killed")
        reached = at_step(run, stage, step) if step else lambda stage=stage: begun(run, stage)
        if wait_for(process, reached):
            time.sleep(rng.uniform(0, 0.05))
            killed.append(stage)
        said += kill(process)
    assert {"text", "tokenizer", *TRAINED, "eval"} <= set(killed)  # release may be quicker than the eye
    last = small_run.make(place, out="killed")
    assert last.returncode == 0, last.stderr
    said += last.stderr
    assert said.count("goes on from step") >= len(TRAINED)

    verify_model_folder(run / "model")
    broken, whole = small_run.report(run), small_run.report(place / "whole")
    assert broken["weights_sha256"] == whole["weights_sha256"] == weights_sha256(run / "model")
    assert broken["evals"] == whole["evals"] and broken["finished"]
    assert broken["pretrain"]["bits_per_byte"] == whole["pretrain"]["bits_per_byte"]
    for stage in TRAINED:
        assert weights_sha256(run / stage / "model") == weights_sha256(place / "whole" / stage / "model")
        mine = [row for row in rows(run) if row["stage"] == stage]
        assert [row["step"] for row in mine] == list(range(1, mine[0]["steps"] + 1))  # none twice, none lost
        others = [row for row in rows(place / "whole") if row["stage"] == stage]
        assert [without_time(row) for row in mine] == [without_time(row) for row in others]
    left = [p.name for p in run.rglob(".*") if p.name not in (".plan.json", ".clock.json", ".lock")]
    assert left == []  # no checkpoints, no half writes


def without_time(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "seconds"}


def test_ctrl_c_and_a_termination_signal_keep_what_is_done(place: Path) -> None:
    run = copy_until(place, place / "stopped", "sft")
    process = small_run.start(place, "--until", "sft", out="stopped")
    assert wait_for(process, at_step(run, "sft", 10))
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "it goes on where it stopped" in err and "Traceback" not in err
    again = small_run.make(place, "--until", "sft", out="stopped")
    assert again.returncode == 0 and "goes on from step" in again.stderr
    assert weights_sha256(run / "sft" / "model") == weights_sha256(place / "whole" / "sft" / "model")


def test_a_kill_between_the_last_marker_and_the_report_is_made_good(place: Path) -> None:
    run = place / "unreported"
    shutil.copytree(place / "whole", run)
    whole = small_run.report(run)
    (run / "report.json").write_text(json.dumps(whole | {"finished": False, "weights_sha256": None}))
    earlier = (run / "release" / "stage.json").stat().st_mtime_ns - 10**9
    os.utime(run / "report.json", ns=(earlier, earlier))
    done = small_run.make(place, out="unreported")
    assert done.returncode == 0 and "release done before" in done.stderr
    assert small_run.report(run)["finished"]
    assert small_run.report(run)["weights_sha256"] == whole["weights_sha256"]


# ---- damage
@pytest.mark.parametrize("part", ["weights.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_it_used(place: Path, part: str) -> None:
    run = half_way(place, f"flipped-{part}", "sft", 25)
    checkpoints = sorted((run / "sft" / ".checkpoints").glob("step-*"))
    assert len(checkpoints) == 2
    flip(checkpoints[-1] / part, random.Random(part))
    done = small_run.make(place, "--until", "sft", out=run.name)
    assert done.returncode == 0, done.stderr
    assert f"checkpoint {checkpoints[-1].name} is damaged" in done.stderr
    before = int(checkpoints[0].name.removeprefix("step-"))
    assert f"goes on from step {before} of" in done.stderr
    assert weights_sha256(run / "sft" / "model") == weights_sha256(place / "whole" / "sft" / "model")
    steps = [row["step"] for row in rows(run) if row["stage"] == "sft"]
    assert steps == list(range(1, len(steps) + 1))


def test_when_all_checkpoints_are_damaged_it_says_so_and_touches_nothing(place: Path) -> None:
    run = half_way(place, "all-flipped", "sft", 25)
    checkpoints = sorted((run / "sft" / ".checkpoints").glob("step-*"))
    for path in checkpoints:
        flip(path / "weights.safetensors", random.Random(1))
    done = small_run.make(place, "--until", "sft", out=run.name)
    assert done.returncode == 5
    assert "no checkpoint in" in done.stderr and "delete" in done.stderr and "Traceback" not in done.stderr
    assert sorted((run / "sft" / ".checkpoints").glob("step-*")) == checkpoints
    shutil.rmtree(run / "sft" / ".checkpoints")  # as it was told
    assert small_run.make(place, "--until", "sft", out=run.name).returncode == 0
    assert weights_sha256(run / "sft" / "model") == weights_sha256(place / "whole" / "sft" / "model")


# ---- no room, no right
@pytest.fixture
def disk(place: Path) -> Iterator[Path]:
    """A small disk of its own, mounted in `place`; skipped where mounting is not permitted."""
    folder = place / "disk"
    folder.mkdir(exist_ok=True)
    size = "size=16m"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", folder], capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    yield folder
    subprocess.run(["umount", folder], check=True)


def finish_after_a_full_disk(place: Path, run: Path, out: str) -> None:
    done = small_run.make(place, "--until", "sft", out=out)
    assert done.returncode == 0, done.stderr
    assert "goes on from step" in done.stderr
    assert weights_sha256(run / "sft" / "model") == weights_sha256(place / "whole" / "sft" / "model")


def test_a_full_disk_in_mid_run(place: Path, disk: Path) -> None:
    run = copy_until(place, disk / "run", "sft")
    process = small_run.start(place, "--until", "sft", out="disk/run")
    assert wait_for(process, at_step(run, "sft", 10))
    with open(disk / "ballast", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 6, err
    assert "no room to write" in err and "free some space" in err and "Traceback" not in err
    (disk / "ballast").unlink()
    finish_after_a_full_disk(place, run, "disk/run")


def test_a_limit_on_the_size_of_files_in_mid_run(place: Path) -> None:
    """The same for everybody, root or not: from now on no file may grow beyond 50 kB."""
    run = copy_until(place, place / "limited", "sft")
    process = small_run.start(place, "--until", "sft", out="limited")
    assert wait_for(process, at_step(run, "sft", 10))
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (50_000, 50_000))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 6, err
    assert "no room to write" in err and "Traceback" not in err
    finish_after_a_full_disk(place, run, "limited")


def test_a_read_only_disk_gives_answers_but_takes_no_run(place: Path, disk: Path) -> None:
    shutil.copytree(place / "whole", disk / "run")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    refused = small_run.make(place, out="disk/run")
    assert refused.returncode == 6
    assert "can't be written" in refused.stderr and "--out" in refused.stderr
    answered = subprocess.run(
        small_run.command("run", "disk/run", "What is 4 + 5?", "--max-tokens", "4", "--quiet"),
        cwd=place,
        env=small_run.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert answered.returncode == 0, answered.stderr


# ---- bad text
GOOD = {"id": "a", "text": "One two three.", "lang": "en", "source": "s", "license": "CC0-1.0"}
UNLICENSED = {key: value for key, value in GOOD.items() if key != "license"}


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        (None, 4, ["bad"]),
        (b"", 4, ["bad"]),
        (
            json.dumps(GOOD).encode() + b"\n" + json.dumps(UNLICENSED).encode(),
            5,
            ["rows.jsonl", "line 2", "licen"],
        ),
        (json.dumps(GOOD).encode()[:-20] + b"\xff\xfe", 5, ["rows.jsonl", "UTF-8"]),
    ],
    ids=["missing", "empty", "unlicensed", "latin"],
)
def test_bad_text_is_refused_and_an_older_result_kept(
    place: Path, tmp_path: Path, content: bytes | None, code: int, words: list[str]
) -> None:
    small_run.recipe(tmp_path, text={"corpus": ["bad"]})
    shutil.copytree(place / "whole", tmp_path / "run")
    if content is not None:
        (tmp_path / "bad").mkdir()
        (tmp_path / "bad" / "rows.jsonl").write_bytes(content)
    done = small_run.make(tmp_path)
    assert done.returncode == code, done.stderr
    message = done.stderr[done.stderr.index("ayllu: ") :]
    assert all(word in message for word in words), message
    assert "Traceback" not in message and len(message.splitlines()) <= 3
    models = [
        p.parent for p in (tmp_path / "run").rglob("manifest.json") if (p.parent / "config.json").exists()
    ]
    assert [weights_sha256(model) for model in models] == [weights_sha256(place / "whole" / "model")]


def test_too_little_text_for_one_batch(place: Path) -> None:
    small_run.recipe(place, pretrain={"rows": 2048, "length": 256})
    try:
        done = small_run.make(place, out="little")
    finally:
        small_run.recipe(place)
    assert done.returncode == 3
    assert "too few for one batch of 2048 rows of 256" in done.stderr and "lower rows" in done.stderr
    again = small_run.make(place, "--until", "pretrain", out="little")  # with smaller batches it goes on
    assert again.returncode == 0, again.stderr
    assert "text done before" in again.stderr and "tokenizer done before" in again.stderr
    assert weights_sha256(place / "little/pretrain/model") == weights_sha256(place / "whole/pretrain/model")
