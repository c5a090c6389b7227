"""What several tests of evaluations share: made-up test sets, a model of our own form, rows, walls."""

import contextlib

import pytest
import torch
from invented import gsm8k_long, lines, write

from ayllu.errors import RefusedError
from ayllu.model.config import ModelSettings
from ayllu.model.decoder import Decoder
from ayllu.model.weights import save_model
from ayllu.reason.practice import RESAMPLED
from ayllu.text.tokenizer import train_tokenizer
from ayllu.tools.sandbox import Sandbox


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """All sets; whoever changes them changes a copy."""
    return write(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="session")
def ours(tmp_path_factory):
    """A model of our own form that has learnt nothing."""
    folder = tmp_path_factory.mktemp("ours")
    tokenizer = train_tokenizer(iter(["What is 12 + 3? The otter keeps the pond. ABCDE"] * 4), 320)
    torch.manual_seed(0)
    config = ModelSettings(width=32, layers=1, head_dim=16, context=512).config(tokenizer.vocab_size)
    control = tokenizer.control
    ids = {"bos": control["<|bos|>"], "eos": control["<|end|>"], "pad": control["<|pad|>"]}
    save_model(Decoder(config), folder, **ids)
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def resampled(tmp_path_factory):
    """Rows for the family that is made from GSM8K's; before and after there are none, as in a new process."""
    folder, before = tmp_path_factory.mktemp("rows"), RESAMPLED.pools
    lines(folder / "train.jsonl", gsm8k_long())
    assert RESAMPLED.read([folder])["templates"] == len(gsm8k_long())
    yield
    RESAMPLED.pools = before


@pytest.fixture(scope="module")
def walls():
    """Skips on a machine that can't hold programs in."""
    with contextlib.suppress(RefusedError), Sandbox():
        return
    pytest.skip("model-written code is not run on this machine")
