"""S8: nothing has its final name before it is whole (ollama#17178: a file was in use before its hash was
known). What we write is written aside, synced, and renamed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from small_folder import CONFIG, make_folder

from ayllu.model.decoder import Decoder
from ayllu.model.formats import safetensors
from ayllu.model.weights import load_model, save_model

CONTROL = {"bos": 0, "eos": 1, "pad": 2}


@pytest.mark.parametrize("shard_bytes", [10**9, 8_000])
def test_while_a_model_is_written_only_temporary_names_exist(tmp_path, monkeypatch, shard_bytes):
    """Looked at after every piece that goes to the disk."""
    seen: list[set[str]] = []
    pieces = safetensors._pieces

    def watched(*args):
        for piece in pieces(*args):
            seen.append({path.name for path in tmp_path.iterdir()})
            yield piece

    monkeypatch.setattr(safetensors, "_pieces", watched)
    save_model(Decoder(CONFIG).initialise(0), tmp_path, **CONTROL, shard_bytes=shard_bytes)
    assert len(seen) >= 20
    assert all(name.startswith(".") and name.endswith(".part") for names in seen for name in names)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("shard_bytes", [10**9, 8_000])
def test_an_error_in_the_middle_leaves_the_model_before(tmp_path, monkeypatch, shard_bytes):
    folder = make_folder(tmp_path / "model", shard_bytes=shard_bytes)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    pieces = safetensors._pieces

    def broken(tensor, dtype):
        yield from pieces(tensor, dtype)
        if len(tensor) == 24:
            raise KeyboardInterrupt

    monkeypatch.setattr(safetensors, "_pieces", broken)
    with pytest.raises(KeyboardInterrupt):
        save_model(Decoder(CONFIG).initialise(1), folder, **CONTROL, shard_bytes=shard_bytes)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


WRITER = """
import sys
from pathlib import Path
from ayllu.model.config import ModelConfig, dense_layer
from ayllu.model.decoder import Decoder
from ayllu.model.weights import save_model

config = ModelConfig(256, 4000, (dense_layer(4, 2, 64, 512),) * 2, 64)
models = [Decoder(config).initialise(n) for n in (0, 1)]
for turn in range(10**6):
    save_model(models[turn % 2], Path(sys.argv[1]), bos=0, eos=1, pad=2)
"""


def test_a_reader_beside_a_busy_writer_sees_whole_models_also_when_it_is_killed(tmp_path):
    """One process writes two models in turn, over each other; whenever the folder is read, it holds the one
    or the other. So it does when the writer was killed at some point of its work."""
    seen = set()
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)]) as writer:
        try:
            deadline = time.monotonic() + 120
            while not (tmp_path / "config.json").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            for _ in range(40):
                seen.add(float(load_model(tmp_path).embedding.weight[5, 7]))
        finally:
            os.kill(writer.pid, signal.SIGKILL)
    model = load_model(tmp_path)
    with torch.no_grad():
        both = {float(Decoder(model.config).initialise(n).embedding.weight[5, 7]) for n in (0, 1)}
    assert float(model.embedding.weight[5, 7]) in both and seen <= both
