"""Makes the folder importable: small_folder.py is shared by the tests of what is refused. Their names are
the numbers of the cases: S1 pickles, S2 code in a config, S6 safetensors headers, S7 names, S8 half files."""

from pathlib import Path

import pytest
from small_folder import make_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole, small model folder."""
    return make_folder(tmp_path / "model")
