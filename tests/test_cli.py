"""The command line: fast help and exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cyclopts import App

from ayllu import cli, verbs

ROOT = Path(__file__).parent.parent


def ayllu(*words: str, cwd: Path = ROOT, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ayllu", *words],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **({"stdin": subprocess.DEVNULL} | more),
    )


# ---- help
def test_help_is_fast() -> None:
    def once() -> float:
        began = time.perf_counter()
        assert ayllu("--help").returncode == 0
        return time.perf_counter() - began

    assert min(once() for _ in range(5)) < 0.2


def test_neither_help_nor_import_brings_torch() -> None:
    program = (
        "import sys, ayllu, ayllu.cli, ayllu.verbs_examine, ayllu.run\n"
        "try: ayllu.cli.main(['make', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules or 'tokenizers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_verb_explains_itself() -> None:
    overview = ayllu("--help").stdout
    assert ayllu().stdout == ayllu("-h").stdout == overview
    assert {name for name in cli.program() if not name.startswith("-")} == set(cli.VERBS)
    assert not any(isinstance(value, App) for value in vars(verbs).values()), "no list that has only some"
    for verb, text in cli.VERBS.items():
        assert f"{verb} " in overview and text in overview
        done = ayllu(verb, "--help")
        assert done.returncode == 0 and "Usage: ayllu " + verb in done.stdout and done.stderr == ""
        assert text in " ".join(done.stdout.split())


def test_no_colour_where_there_is_no_terminal() -> None:
    assert "\x1b" not in ayllu("--help").stdout


# ---- exit codes
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["rnu"], 2, 'Did you mean "run"'),
        (["make", "a.toml", "--utnil", "sft"], 2, "--until"),
        (["make"], 2, "RECIPE"),
        (["make", "a.toml", "--seed", "x"], 2, "--seed"),
        (["make", "missing.toml"], 4, "there is no recipe missing.toml"),
        (["make", "bad.toml"], 3, "line 1"),
        (["make", "key.toml"], 3, "did you mean 'seed'"),
        (["make", "range.toml"], 3, "from 0 to"),
        (["make", "good.toml", "--until", "slt"], 2, "did you mean sft"),
        (["run", "nothing", "hi"], 4, "there is no model 'nothing'"),
        (["run", "empty", "hi"], 4, "config.json"),
        (["serve", "nothing"], 4, "there is no model"),
        (["serve", "empty", "--port", "99999"], 4, "config.json"),
        (["chat", "nothing"], 4, "there is no model"),
        (["report", "empty"], 4, "not the folder of a run"),
        (["run", "empty", "hi", "there"], 2, "put quotes round the prompt"),
        (["run", "empty", "hi", "--tools", "sql=a.csv"], 2, "one tool more is --tool sql=a.csv"),
        (["eval", "empty", "--tasks", "lists", "bases"], 2, "put commas between the tasks"),
        (["make", "good.toml", "--until", "expert"], 2, "add a table [expert]"),
        (["make", "good.toml", "--out", "/proc/none/such"], 6, "can't be written"),
    ],
)
def test_exit_codes(tmp_path: Path, words: list[str], code: int, said: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.toml").write_text("seed = ")
    (tmp_path / "key.toml").write_text("sed = 1")
    (tmp_path / "range.toml").write_text("seed = -1")
    (tmp_path / "good.toml").write_text("seed = 1")
    done = ayllu(*words, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert said in done.stderr and done.stdout == ""
    assert done.stderr.startswith("ayllu: ") and "what to do: " in done.stderr
    assert len(done.stderr.splitlines()) <= 3 and "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_debug_shows_where() -> None:
    done = ayllu("--debug", "run", "nothing", "hi")
    assert done.returncode == 4 and "Traceback" in done.stderr and "there is no model" in done.stderr


def test_an_unforeseen_error_is_owned_up_to(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise KeyError("thing")

    monkeypatch.setattr("ayllu.run.make", broken)
    with pytest.raises(SystemExit) as caught:
        cli.main(["make", "a.toml"])
    err = capsys.readouterr().err
    assert caught.value.code == 1 and "mistake in Ayllu" in err and "Traceback" not in err


def test_version_as_json() -> None:
    done = ayllu("version", "--json")
    assert json.loads(done.stdout)["torch"].startswith("2.")
    assert ayllu("--version").stdout.strip() == json.loads(done.stdout)["ayllu"]


def test_a_reader_that_leaves_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", "from ayllu import cli; cli.main(['version'])"],
        cwd=ROOT,
        stdout=(write := os.pipe())[1],
        stderr=subprocess.PIPE,
        text=True,
    )
    for end in write:
        os.close(end)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0 and err == ""


def test_how_the_program_was_called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / ".venv/bin/ayllu")])
    assert verbs.own_name() == ".venv/bin/ayllu"
    monkeypatch.setattr(sys, "argv", [str(ROOT / "ayllu" / "__main__.py")])
    assert verbs.own_name().endswith(" -m ayllu")
