"""The flags that run, chat and serve share: from the command line to the engine."""

import contextlib
import json
import subprocess
import sys

import pytest

from ayllu import cli
from ayllu.engine.draftmodel import DraftModel
from ayllu.engine.engine import Engine
from ayllu.engine.lookup import Lookup
from ayllu.errors import CutOffError, UsageError
from ayllu.model.config import ModelConfig, dense_layer
from ayllu.model.decoder import Decoder
from ayllu.model.weights import save_model
from ayllu.serve import app
from ayllu.serve.options import EngineOptions, bytes_of
from ayllu.text.tokenizer import train_tokenizer

WORDS = ["--weights", "int8", "--cache", "int8", "--cache-folder-size", "1.5 MB", "--device", "cpu"]


@pytest.mark.parametrize(("size", "count"), [
    ("1", 1), ("500MB", 500_000_000), ("8GB", 8 * 10**9), ("8g", 8 * 10**9), ("1.5 kB", 1500),
    ("2GiB", 2 << 30), ("1TB", 10**12),
])  # fmt: skip
def test_sizes(size, count):
    assert bytes_of(size) == count


@pytest.mark.parametrize(
    "size", ["", "0", "0.1", "-1", "GB", "8 PB", "8GBB", "1e9", "nan", "9" * 30, "९GB x"]
)
def test_sizes_that_are_none(size):
    with pytest.raises(UsageError, match="no size"):
        bytes_of(size)


@pytest.mark.parametrize("device", ["", "gpu", "cuda:x", "cpu0", "cuda:-1", "mps; rm"])
def test_devices_that_are_none(device):
    with pytest.raises(UsageError, match="device"):
        EngineOptions(device=device).arguments()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = ModelConfig(32, 300, (dense_layer(2, 1, 16, 48),), 96)
    model = Decoder(config).initialise(0).requires_grad_(False).eval()
    folder = tmp_path_factory.mktemp("runs") / "model"
    folder.mkdir()
    save_model(model, folder, bos=0, eos=1, pad=2)
    train_tokenizer(iter(["abc abd 12 + 30 = 42"] * 20), model.config.vocab_size).save(folder)
    return folder


def test_an_engine_has_what_was_asked_for(folder, tmp_path):
    asked = EngineOptions("int8", "int8", tmp_path / "kept", "1MB", "ngram")
    with Engine(folder, **asked.arguments()) as engine:
        assert "int8 weights, int8 cache" in engine.executor.name
        assert engine.disk.folder == tmp_path / "kept" and engine.disk.limit == 1_000_000
        assert isinstance(engine.scheduler.speculation.drafter, Lookup)
    with Engine(folder, **EngineOptions(speculate=str(folder)).arguments()) as engine:
        assert isinstance(engine.scheduler.speculation.drafter, DraftModel) and engine.disk is None


@pytest.mark.parametrize("verb", ["run", "chat", "serve"])
def test_the_flags_reach_the_engine(verb, folder, tmp_path, monkeypatch):
    got = []

    @contextlib.contextmanager
    def talk(*_, engine, **__):
        got.append(engine)
        raise SystemExit(7)
        yield

    def serve(*_, options):
        got.append(options)
        raise SystemExit(7)

    monkeypatch.setattr("ayllu.talk.load_talk", talk)
    monkeypatch.setattr(app, "serve", serve)
    prompt = ["hi"] * (verb == "run")
    for speculate, means in (("ngram", "ngram"), (str(folder.parent), str(folder)), (None, None)):
        words = [*WORDS, "--cache-folder", str(tmp_path / "c")] + ["--speculate", str(speculate)] * bool(
            speculate
        )
        with pytest.raises(SystemExit) as ended:
            cli.main([verb, str(folder), *prompt, *words])
        assert ended.value.code == 7
        assert got.pop() == EngineOptions("int8", "int8", tmp_path / "c", "1.5 MB", means, "cpu")


@pytest.mark.parametrize(("flag", "value", "code", "said"), [
    ("--weights", "int3", 2, "int3"),
    ("--cache", "int2", 2, "int2"),
    ("--cache-folder-size", "much", 2, "no size"),
    ("--cache-folder", "nowhere/at/all", 4, "does not exist"),
    ("--speculate", "nothing", 4, "no model"),
    ("--device", "abacus", 2, "abacus"),
    ("--wieghts", "int8", 2, "Did you mean --weights"),
])  # fmt: skip
def test_what_cannot_be_is_said_in_words(flag, value, code, said, folder, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", str(folder), "hi", flag, value])
    assert (ended.value.code, said in capsys.readouterr().err) == (code, True)


def test_help_tells_them_and_brings_no_torch():
    program = (
        "import sys, json; from ayllu import cli\n"
        "try: cli.main([sys.argv[1], '--help'])\n"
        "except SystemExit: print(json.dumps('torch' in sys.modules))"
    )
    for verb in ("run", "chat", "serve"):
        done = subprocess.run(
            [sys.executable, "-c", program, verb], capture_output=True, text=True, check=True
        )
        *shown, torch = done.stdout.splitlines()
        assert json.loads(torch) is False
        for name in (
            "--weights",
            "--cache",
            "--cache-folder",
            "--cache-folder-size",
            "--speculate",
            "--device",
        ):
            assert any(f"{name} " in line for line in shown), name


def test_cut_off_says_by_what():
    assert CutOffError.exit_code == 1
    assert "--max-tokens" in CutOffError(5, 5).fix and "context" in CutOffError(5, None).why
