"""A decoder and an engine for each test module."""

import pytest
from small_model import make_model

from ayllu.engine.engine import Engine
from ayllu.model.decoder import Decoder


@pytest.fixture(scope="module")
def model() -> Decoder:
    return make_model()


@pytest.fixture
def engine(model: Decoder) -> Engine:
    return Engine(model, max_sequences=8)
