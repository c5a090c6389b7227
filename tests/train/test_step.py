"""One backward pass: the head looks only where the loss does, in whole blocks of rows, and filling these up
changes nothing."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch

from ayllu.model.config import ModelSettings
from ayllu.model.decoder import Decoder
from ayllu.train import step
from ayllu.train.step import Batch, StepResult, backward

ROWS, LENGTH, VOCABULARY = 4, 96, 50


def batch_of(trained: int, seed: int = 0) -> Batch:
    """`trained` tokens at random places have a weight."""
    generator = torch.Generator().manual_seed(seed)
    tokens, targets = torch.randint(VOCABULARY, (2, ROWS, LENGTH), generator=generator)
    weights = torch.zeros(ROWS * LENGTH)
    places = torch.randperm(ROWS * LENGTH, generator=generator)[:trained]
    weights[places] = torch.rand(trained, generator=generator) - 0.5
    return Batch(tokens, targets, weights.view(ROWS, LENGTH))


def passed(batch: Batch, block: int, dtype: torch.dtype = torch.float32) -> tuple[StepResult, dict[str, Any]]:
    config = ModelSettings(width=32, layers=1, head_dim=16).config(VOCABULARY)
    model = Decoder(config).initialise(0)
    with mock.patch.object(step, "_BLOCK", block):
        result = backward(model, batch, dtype)
    return result, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("trained", [1, 127, 128, 129, ROWS * LENGTH - 5, ROWS * LENGTH])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_filling_up_changes_nothing(trained: int, dtype: torch.dtype) -> None:
    batch = batch_of(trained)
    bare, wanted = passed(batch, 1, dtype)
    filled, found = passed(batch, 128, dtype)
    assert filled.tokens == ROWS * LENGTH and filled.trained == bare.trained == trained
    assert (filled.loss, filled.nats, filled.entropy) == pytest.approx(
        (bare.loss, bare.nats, bare.entropy), 1e-3
    )
    for name, gradient in wanted.items():
        torch.testing.assert_close(
            found[name], gradient, rtol=2e-2, atol=1e-3 * float(gradient.abs().max()) + 1e-9
        )


def test_the_head_meets_few_sizes() -> None:
    with mock.patch.object(step, "head_loss", wraps=step.head_loss) as head:
        for trained in range(1, 240, 7):
            passed(batch_of(trained, trained), 64)
    sizes = {call.args[0].shape[0] for call in head.call_args_list}
    assert sizes == {64, 128, 192, 256}
