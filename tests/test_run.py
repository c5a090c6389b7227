"""The run folder: done once, gone on with after a kill, made again when it no longer fits."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_run
import pytest

from ayllu import run as run_module
from ayllu import stages as stages_module
from ayllu.errors import (
    DiskFullError,
    FolderReadOnlyError,
    InputNotFoundError,
    ModelFileMissingError,
    RecipeKeyError,
    ResourceError,
    RunBusyError,
    UsageError,
)
from ayllu.files import locked
from ayllu.models import resolve_model
from ayllu.stages import what_changed

HERE = Path(__file__).parent
ROOT = HERE.parent


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("one")
    (tmp_path / "fake.toml").write_text("seed = 3\nthreads = 1\ndevice = 'cpu'\n")
    return tmp_path


def recipe(place: Path, text: str) -> Path:
    path = place / "fake.toml"
    path.write_text("threads = 1\ndevice = 'cpu'\n" + text)
    return path


def calls(place: Path) -> list[str]:
    path = place / "calls.txt"
    lines = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def start(place: Path, out: str = "out", *more: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(HERE / "fake_run.py"), "fake.toml", out, *more],
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def final(run: Path) -> str:
    return (run / "model" / "parts" / "mixed.txt").read_text()


def test_a_run_makes_everything_once(place: Path) -> None:
    done = fake_run.run(place / "fake.toml")
    run = place / "runs" / "fake"  # named after the file
    assert done["finished"] and done["run"] == "runs/fake" and done["model"] == "runs/fake/model"
    assert calls(place) == ["count", "mix", "pack"]
    complete = tomllib.loads((run / "recipe.toml").read_text())
    assert complete["count"] == {"steps": 12, "pause": 0.0, "corpus": "corpus", "fault": ""}
    assert complete["seed"] == 3 and complete["threads"] == 1 and complete["device"] == "cpu"
    marker = json.loads((run / "count" / "stage.json").read_text())
    assert marker["result"]["digest"] == (run / "count" / "chain.txt").read_text()
    assert set(marker["outputs"]) == {"chain.txt"} and marker["seconds"] > 0 and marker["peak_memory_mb"] > 5
    assert not (run / "model" / "stage.json").exists()  # a model folder holds a model only
    assert set(json.loads((run / "report.json").read_text())["stages"]) == {"count", "mix", "pack"}
    assert done["wall_seconds"] == pytest.approx(sum(done["stages"].values()), abs=0.01)

    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file() and "stage" in p.name}
    assert fake_run.run(place / "fake.toml") == done
    assert calls(place) == []
    assert before == {p: p.stat().st_mtime_ns for p in before}


def test_the_second_time_takes_no_time_and_no_torch(place: Path) -> None:
    assert start(place).wait(60) == 0
    began = time.monotonic()
    second = start(place)
    out, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    assert time.monotonic() - began < 2.0
    assert json.loads(out)["torch"] is False


def test_killed_at_random_points_it_ends_in_the_same(place: Path) -> None:
    recipe(place, "[count]\nsteps = 60\npause = 0.03\n")
    assert start(place, "unbroken").wait(60) == 0
    chance = random.Random(5)
    for _ in range(5):
        calls(place)
        process = start(place, "broken")
        while not (place / "calls.txt").exists():
            time.sleep(0.01)
        time.sleep(chance.uniform(0.0, 0.25))
        process.kill()
        assert process.wait(60) == -signal.SIGKILL
    calls(place)
    assert start(place, "broken").wait(60) == 0
    assert calls(place) == ["count", "mix", "pack"]
    assert final(place / "broken") == final(place / "unbroken")
    assert json.loads((place / "broken" / "count" / "stage.json").read_text())["starts"] == 6
    assert not (place / "broken" / "old").exists()


def killed_at(point: int, work: Callable[[], Any]) -> bool:
    """Run `work` in a child that kills itself just before its n-th change of the file system."""
    child = os.fork()
    if child == 0:
        left = [point]

        def hook(event: str, _: Any) -> None:
            if event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod"):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def kill_everywhere(place: Path) -> None:
    """At each change of the file system once, in a first run and in one that moves old results away."""
    os.chdir(place)
    stages_module.code_hash = lambda: "the same"  # type: ignore[assignment]  # spares reading all sources
    os.fsync = lambda _: None  # a kill, unlike a power cut, loses nothing that was written
    file, recipes = place / "fake.toml", {"first": "[count]\nsteps = 3\n", "second": "[count]\nsteps = 2\n"}
    for name, text in recipes.items():
        fake_run.run(recipe(place, text), place / name)
    for point in itertools.count(1):
        out, killed = place / f"out{point}", False
        for name, text in recipes.items():
            recipe(place, text)
            killed |= killed_at(point, lambda out=out: fake_run.run(file, out))
            fake_run.run(file, out)
            assert final(out) == final(place / name), f"killed at change {point} of the run for {name}"
        shutil.rmtree(out)
        if not killed:
            break
    print(point)


def test_killed_at_every_point_it_ends_in_the_same(place: Path) -> None:
    """SQLite's habit: fail at each call once. In a process of its own, which may be forked safely."""
    program = f"import pathlib, test_run; test_run.kill_everywhere(pathlib.Path({str(place)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{HERE}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > 30


def test_time_is_added_up_over_interruptions(place: Path) -> None:
    recipe(place, "[count]\nsteps = 40\npause = 0.05\n")
    process = start(place)
    time.sleep(1.2)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "RunStoppedError" in err and "same command" in err
    entry = json.loads((place / "out" / ".clock.json").read_text())["count"]
    assert entry["seconds"] > 0.2
    process = start(place)
    assert process.wait(60) == 0
    marker = json.loads((place / "out" / "count" / "stage.json").read_text())
    assert marker["starts"] == 2 and marker["seconds"] >= 40 * 0.05


def test_ctrl_c_stops_cleanly(place: Path) -> None:
    recipe(place, "[count]\nsteps = 200\npause = 0.05\n")
    process = start(place)
    while not (place / "calls.txt").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "Traceback" not in err


def test_a_changed_setting_makes_that_stage_and_the_later_ones_again(place: Path) -> None:
    run = place / "runs" / "fake"
    fake_run.run(place / "fake.toml")
    first, _ = final(run), calls(place)
    fake_run.run(recipe(place, "seed = 3\n[mix]\nsalt = 'spice'\n"))
    assert calls(place) == ["mix", "pack"]
    assert final(run) != first
    old = {p.name.split("-")[0]: p for p in (run / "old").iterdir()}
    assert set(old) == {"mix", "pack"}
    assert (old["pack"] / "model" / "parts" / "mixed.txt").read_text() == first  # kept, not deleted
    assert json.loads((old["mix"] / "stage.json").read_text())["basis"]["settings"]["mix"]["salt"] == "s"
    assert "mix.salt s -> spice" in (run / "log.txt").read_text()
    fake_run.run(recipe(place, "seed = 3\n"))  # and back again
    assert final(run) == first


def test_a_mistake_that_stops_an_early_stage_leaves_the_finished_model(place: Path) -> None:
    run = place / "runs" / "fake"
    fake_run.run(place / "fake.toml")
    first, _ = final(run), calls(place)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        fake_run.run(recipe(place, "seed = 3\n[count]\nfault = 'other'\n"))
    assert final(run) == first  # only the stage that was tried has moved to old/
    assert {p.name.split("-")[0] for p in (run / "old").iterdir()} == {"count"}
    calls(place)
    fake_run.run(recipe(place, "seed = 3\n"))
    assert final(run) == first and calls(place) == ["count"]  # the mistake undone, the rest still holds


def test_what_an_extra_gives_counts_by_its_content(place: Path) -> None:
    fake_run.run(place / "fake.toml")
    calls(place)
    fake_run.run(recipe(place, "seed = 3\n[mix]\nsalt = 'other'\n"))  # another first letter: other words
    assert calls(place) == ["count", "mix", "pack"]


@pytest.mark.parametrize(
    ("change", "again"),
    [("seed", ["count", "mix", "pack"]), ("corpus", ["count", "mix", "pack"]), ("threads", ["mix", "pack"])],
)
def test_what_a_stage_depends_on(place: Path, change: str, again: list[str]) -> None:
    fake_run.run(place / "fake.toml")
    calls(place)
    if change == "corpus":
        (place / "corpus" / "b.txt").write_text("two")
    fake_run.run(place / "fake.toml", **({change: 2} if change != "corpus" else {}))
    assert calls(place) == again


def test_a_new_code_version_counts_and_a_comment_does_not(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_run.run(place / "fake.toml")
    calls(place)
    monkeypatch.setattr(stages_module, "code_hash", lambda: "a comment was written")
    fake_run.run(place / "fake.toml")
    assert calls(place) == []
    monkeypatch.setattr(stages_module, "code_hash", lambda: "and now the code was changed")
    monkeypatch.setattr(fake_run, "CODE_VERSION", 2)
    fake_run.run(place / "fake.toml")
    assert calls(place) == ["count", "mix", "pack"]


@pytest.mark.parametrize("how", ["altered", "missing", "marker"])
def test_damage_is_noticed_and_mended(place: Path, how: str) -> None:
    fake_run.run(place / "fake.toml")
    run = place / "runs" / "fake"
    first, _ = final(run), calls(place)
    victim = run / "mix" / "mixed.txt"
    if how == "altered":
        victim.write_text("x" * 64)
    elif how == "missing":
        victim.unlink()
    else:
        (run / "mix" / "stage.json").write_text('{"stage": "mi')
    fake_run.run(place / "fake.toml")
    assert calls(place) == ["mix"]  # made again to the same bytes, so that pack still holds
    assert final(run) == first
    assert (run / "mix" / "mixed.txt").read_text() == first


def test_a_half_done_stage_of_other_settings_is_not_gone_on_with(place: Path) -> None:
    recipe(place, "[count]\nsteps = 500\npause = 0.05\n")
    process = start(place)
    while not (place / "out" / "metrics.jsonl").exists():  # written after state.json
        time.sleep(0.02)
    process.kill()
    process.wait()
    fake_run.run(recipe(place, "[count]\nsteps = 5\n"), place / "out")
    fake_run.run(place / "fake.toml", place / "fresh")
    assert final(place / "out") == final(place / "fresh")
    old = list((place / "out" / "old").iterdir())
    assert len(old) == 1 and (old[0] / "state.json").exists() and (old[0] / "metrics.jsonl").exists()
    rows = [json.loads(line) for line in (place / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]


def test_the_report_lives_while_a_stage_is_at_work(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is written before the first stage is done; that it can't be written for a while stops nothing."""
    seen, real = list[int](), fake_run.report

    def recording(folder: Path, recipe: dict[str, Any], stages: dict[str, Any]) -> None:
        seen.append(len(stages))
        if len(seen) == 1:
            raise DiskFullError("full")
        real(folder, recipe, stages)

    monkeypatch.setattr(fake_run, "report", recording)
    monkeypatch.setattr(run_module, "LIVE", 0.02)
    assert fake_run.run(recipe(place, "[count]\nsteps = 12\npause = 0.05\n"))["finished"]
    assert seen[:3] == [0, 0, 0] and seen[-1] == 3 and sorted(seen) == seen


def test_until_stops_after_a_stage(place: Path) -> None:
    done = fake_run.run(place / "fake.toml", until="mix")
    assert calls(place) == ["count", "mix"]
    assert not done["finished"] and done["model"] is None
    assert fake_run.run(place / "fake.toml")["finished"]
    assert calls(place) == ["pack"]


def test_until_says_nothing_of_later_stages_that_are_of_another_recipe(place: Path) -> None:
    assert fake_run.run(place / "fake.toml")["finished"]
    recipe(place, "[count]\nsteps = 4\n")
    done = fake_run.run(place / "fake.toml", until="count")
    assert not done["finished"] and done["model"] is None and list(done["stages"]) == ["count"]


def test_a_stage_that_the_recipe_does_not_have_is_told_how_to_get(place: Path) -> None:
    with pytest.raises(UsageError) as caught:
        fake_run.run(place / "fake.toml", until="expert")
    assert "add a table [expert]" in str(caught.value)


def test_an_unknown_stage_is_refused(place: Path) -> None:
    with pytest.raises(UsageError, match="did you mean count"):
        fake_run.run(place / "fake.toml", until="cuont")


def test_two_at_once_are_refused(place: Path) -> None:
    (place / "out").mkdir()
    with locked(place / "out" / ".lock"), pytest.raises(RunBusyError, match="in use"):
        fake_run.run(place / "fake.toml", place / "out")
    recipe(place, "[count]\nsteps = 200\npause = 0.05\n")
    first = start(place)
    while not (place / "calls.txt").exists():
        time.sleep(0.02)
    second = start(place)
    _, err = second.communicate(timeout=30)
    assert second.returncode == 1 and "RunBusyError" in err
    first.kill()
    first.wait()


def test_a_bad_recipe_leaves_no_trace(place: Path) -> None:
    with pytest.raises(RecipeKeyError, match="did you mean 'steps'"):
        fake_run.run(recipe(place, "[count]\nstep = 3\n"))
    assert not (place / "runs").exists()


def test_a_folder_of_something_else_is_not_touched(place: Path) -> None:
    (place / "letters").mkdir()
    (place / "letters" / "a.txt").write_text("dear")
    with pytest.raises(UsageError, match="not the folder of a run"):
        fake_run.run(place / "fake.toml", place / "letters")
    assert [p.name for p in (place / "letters").iterdir()] == ["a.txt"]
    with pytest.raises(FolderReadOnlyError, match="is a file"):
        fake_run.run(place / "fake.toml", place / "letters" / "a.txt")


def test_a_folder_that_cannot_be_written(place: Path) -> None:
    folder = place / "closed"
    folder.mkdir(mode=0o500)
    out = (
        Path("/sys/ayllu") if os.access(folder, os.W_OK) else folder / "run"
    )  # root writes anywhere but in /sys
    with pytest.raises(FolderReadOnlyError) as caught:
        fake_run.run(place / "fake.toml", out)
    assert caught.value.exit_code == 6 and "--out" in caught.value.fix


def test_a_full_disk_in_mid_run_loses_nothing(place: Path) -> None:
    recipe(place, "[count]\nfault = 'disk'\n")
    process = start(place, FILE_LIMIT=str(8 << 20))
    _, err = process.communicate(timeout=60)
    assert (
        process.returncode == DiskFullError.exit_code and "DiskFullError" in err and "free some space" in err
    )
    assert json.loads((place / "out" / "count" / "state.json").read_text())["step"] == 12
    assert start(place).wait(60) == 0  # with room again, it ends
    fake_run.run(place / "fake.toml", place / "fresh")
    assert final(place / "out") == final(place / "fresh")


def test_too_little_memory_is_said_and_other_mistakes_are_not_hidden(place: Path) -> None:
    with pytest.raises(ResourceError, match="not enough memory for the stage count"):
        fake_run.run(recipe(place, "[count]\nfault = 'memory'\n"))
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        fake_run.run(recipe(place, "[count]\nfault = 'other'\n"))


def test_a_changed_basis_in_words() -> None:
    old = {"settings": {"a": {"x": 1}}, "files": {"c/d.txt": "1"}, "needs": {"text": "f"}, "code": {"m:f": 1}}
    new = {"settings": {"a": {"x": 2}}, "files": {"c/d.txt": "2"}, "needs": {"text": "g"}, "code": {"m:f": 1}}
    assert what_changed(old, new) == "the input c/d.txt, what text makes, a.x 1 -> 2"


def test_model_names(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def folder(name: str, *files: str) -> Path:
        path = place / name
        path.mkdir(parents=True)
        for file in files:
            (path / file).write_text("{}")
        return path

    folder("plain", "config.json")
    folder("models/llama-small", "config.json")
    folder("runs/demo", "recipe.toml")
    assert resolve_model("plain") == Path("plain")
    assert resolve_model(str(place / "plain")) == place / "plain"
    assert resolve_model("llama-small") == Path("models/llama-small")
    with pytest.raises(InputNotFoundError, match="not made its model"):
        resolve_model("runs/demo")
    folder("runs/demo/model", "config.json")
    assert resolve_model("runs/demo") == Path("runs/demo/model")
    with pytest.raises(InputNotFoundError, match="did you mean models/llama-small"):
        resolve_model("lama-small")
    with pytest.raises(ModelFileMissingError, match="is a file"):
        resolve_model("plain/config.json")
    with pytest.raises(ModelFileMissingError, match=r"no config\.json"):
        resolve_model(str(folder("empty")))
    for hostile in ("../plain/..", "models/../../etc/passwd-not", "\n"):
        with pytest.raises((InputNotFoundError, ModelFileMissingError)):
            resolve_model(hostile)


def test_results_are_plain_values(place: Path) -> None:
    fake_run.run(place / "fake.toml")
    marker: dict[str, Any] = json.loads((place / "runs/fake/mix/stage.json").read_text())
    assert marker["result"] == {"salt": "s", "threads": 1}
