"""A model folder of a few kilobytes, for tests that damage it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ayllu.model.config import ModelConfig, dense_layer
from ayllu.model.decoder import Decoder
from ayllu.model.weights import save_model

CONFIG = ModelConfig(32, 67, (dense_layer(4, 2, 8, 24),) * 2, 48)


def make_folder(folder: Path, **options: Any) -> Path:
    """A new folder with config.json and weights."""
    folder.mkdir(parents=True)
    save_model(Decoder(CONFIG).initialise(0), folder, bos=0, eos=1, pad=2, **options)
    return folder


def change_config(folder: Path, **values: Any) -> None:
    """Add or replace keys of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
