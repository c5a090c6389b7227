"""A decoder, an engine and the folder of a model that speaks, for each test module."""

from pathlib import Path

import pytest
import torch
from small_model import make_model

from ayllu.engine.engine import Engine
from ayllu.model.config import ModelConfig, dense_layer
from ayllu.model.decoder import Decoder
from ayllu.model.weights import save_model
from ayllu.text.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def model() -> Decoder:
    return make_model()


@pytest.fixture
def engine(model: Decoder) -> Engine:
    return Engine(model, max_sequences=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = "the cat sat on the mat and the cat sat on the hat. " * 30 + '{"a": 1, "b": [2, 3], "c": "yes"} '
    tokenizer = train_tokenizer(iter([text] * 20), 300)
    config = ModelConfig(
        32, tokenizer.vocab_size, (dense_layer(2, 1, 16, 64, qk_norm=False),) * 2, 256, family="llama"
    )
    model = Decoder(config).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(2)
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.copy_(0.25 * torch.randn(weight.shape, generator=generator))
    path = tmp_path_factory.mktemp("model")
    save_model(model, path, bos=tokenizer.bos, eos=tokenizer.eos[0], pad=0)
    tokenizer.save(path)
    return path
