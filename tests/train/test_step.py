"""One backward pass: the head looks only where the loss does, in whole blocks of rows, and filling these up
changes nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch

from ayllu.model.config import ModelSettings
from ayllu.model.decoder import Decoder
from ayllu.train import step
from ayllu.train.step import Batch, StepResult, backward, train_step

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


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_what_was_sampled_at_a_temperature_is_learnt_at_it(temperature: float, softcap: float | None) -> None:
    batch = replace(batch_of(100), temperature=temperature)
    config = replace(ModelSettings(width=32, layers=1, head_dim=16).config(VOCABULARY), logit_softcap=softcap)
    model, plain = Decoder(config).initialise(0), Decoder(config).initialise(0)
    result = backward(model, batch, torch.float32, exact_logits=True)
    log_p = (plain(batch.tokens_BT) / temperature).log_softmax(-1)
    losses = -log_p.gather(-1, batch.targets_BT[..., None])[..., 0]
    loss = (losses * batch.weights_BT).sum()
    loss.backward()
    assert result.loss == pytest.approx(float(loss.detach()), rel=1e-4, abs=1e-6)
    for (name, mine), (_, theirs) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("longest", [None, math.inf, 1e-3])
def test_a_gradient_is_measured_and_shortened_where_that_is_asked_for(longest: float | None) -> None:
    model = Decoder(ModelSettings(width=32, layers=1, head_dim=16).config(VOCABULARY)).initialise(0)
    gradients: list[float] = []

    class Watching:
        def step(self, lr_scale: float) -> None:
            squares = [float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None]
            gradients.append(math.sqrt(sum(squares)))

    batches = [batch_of(200, seed) for seed in (1, 2)]
    results = train_step(
        model,
        Watching(),
        batches,
        1.0,
        torch.float32,
        max_grad_norm=longest,  # type: ignore[arg-type]
    )
    assert len(results) == 2
    if longest is None:
        assert all(math.isnan(result.grad_norm) for result in results)
    else:
        whole = results[0].grad_norm
        assert whole == results[1].grad_norm > 1e-3, "of both batches together, before it is shortened"
        assert gradients[0] == pytest.approx(min(whole, longest), rel=1e-3)
