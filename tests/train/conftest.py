"""What the tests of RL stand on."""

from __future__ import annotations

from pathlib import Path

import pytest
from rl_cases import TOKENIZER, context

from ayllu.model.config import ModelSettings
from ayllu.model.decoder import Decoder
from ayllu.train import rl as module
from ayllu.train.sft import save_into


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random SFT model and its tokenizer."""
    folder = tmp_path_factory.mktemp("sft")
    model = Decoder(ModelSettings(width=32, layers=1, head_dim=16, context=160).config(400)).initialise(0)
    save_into(context(folder, {}), model, TOKENIZER)
    TOKENIZER.save(folder)
    return {"tokenizer": folder, "sft": folder}


@pytest.fixture
def luck(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward that an untrained model gets now and then: for ids that add up to an odd number."""
    monkeypatch.setattr(module, "reward", lambda problem, t, answer, chat: float(sum(t.ids()) % 2))
    monkeypatch.setattr("ayllu.train.loop.CHECKPOINT_SECONDS", 0.0)
