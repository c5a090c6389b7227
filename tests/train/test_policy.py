"""Policy losses against numbers worked by hand and against finite differences, on-policy and off."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ayllu.model.config import ModelSettings
from ayllu.model.decoder import Decoder
from ayllu.train.policy import (
    POLICY_LOSSES,
    Clip,
    Tokens,
    log_probabilities,
    scaled_advantages,
    token_weights,
)
from ayllu.train.step import Batch, backward

# Two answers, of two tokens and of one; the first did well. Ratios by token: 1.5, 0.5, 1.1.
RATIOS = (1.5, 0.5, 1.1)
OLD = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64)
TOKENS = Tokens(
    new_N=OLD + torch.tensor(RATIOS, dtype=torch.float64).log(),
    old_N=OLD,
    advantage_N=torch.tensor([2.0, 2.0, -1.0], dtype=torch.float64),
    answer_N=torch.tensor([0, 0, 1]),
    scale=1 / 10,
)
S = math.sqrt(0.75)  # the first answer's ratio: exp(mean(log 1.5, log 0.5))


def values(name: str, tokens: Tokens = TOKENS, clip: Clip | None = None) -> list[float]:
    return token_weights(POLICY_LOSSES[name], tokens, clip).tolist()


def loss(name: str, tokens: Tokens = TOKENS) -> float:
    row = POLICY_LOSSES[name]
    return float(row.loss(tokens, row.clip))


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        # min(1.5 * 2, 1.2 * 2) + min(0.5 * 2, 0.8 * 2) + min(1.1 * -1, 1.1 * -1), over 10
        ("grpo", -(2.4 + 1.0 - 1.1) / 10),
        ("dr_grpo", -(2.4 + 1.0 - 1.1) / 10),
        ("dapo", -(2.56 + 1.0 - 1.1) / 3),
        (
            "cispo",
            -sum(r * a * float(p) for r, a, p in zip(RATIOS, (2, 2, -1), TOKENS.new_N, strict=True)) / 3,
        ),
        # s = 0.866 lies below 1 - 3e-4, but A > 0 takes the smaller; 1.1 with A < 0 likewise
        ("gspo", -(2 * S - 1.1) / 2),
    ],
)
def test_losses_worked_by_hand(name: str, wanted: float) -> None:
    assert loss(name) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("grpo", [0.0, 0.5 * 2 / 10, 1.1 * -1 / 10]),  # the first is beyond the bound: no gradient
        ("dapo", [0.0, 0.5 * 2 / 3, 1.1 * -1 / 3]),
        ("cispo", [1.5 * 2 / 3, 0.5 * 2 / 3, 1.1 * -1 / 3]),
        ("gspo", [2 * S / 2 / 2, 2 * S / 2 / 2, -1.1 / 2]),
    ],
)
def test_weights_worked_by_hand(name: str, wanted: list[float]) -> None:
    assert values(name) == pytest.approx(wanted)


def test_bounds_take_the_gradient_where_it_would_go_too_far() -> None:
    """Good answers that have become likelier, bad ones that have become rarer; never the other way."""
    ratios = torch.tensor([2.0, 0.5, 2.0, 0.5], dtype=torch.float64)
    tokens = Tokens(
        ratios.log(),
        torch.zeros(4, dtype=torch.float64),
        torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64),
        torch.arange(4),
        1.0,
    )
    for name in ("grpo", "dr_grpo", "dapo", "gspo"):
        assert [v == 0 for v in values(name, tokens)] == [True, False, False, True], name
    capped = values("cispo", tokens, Clip(1.0, 0.5))  # 2 is cut to 1.5 and keeps its gradient
    assert capped == pytest.approx([1.5 / 4, 0.5 / 4, -1.5 / 4, -0.5 / 4])
    wide = values("grpo", tokens, Clip(0.9, 9.0))
    assert wide == pytest.approx([2.0, 0.5, -2.0, -0.5])


@pytest.mark.parametrize("name", [name for name in POLICY_LOSSES if name != "cispo"])
def test_weights_are_finite_differences_of_the_loss(name: str) -> None:
    rng = torch.Generator().manual_seed(1)
    old = -torch.rand(9, generator=rng, dtype=torch.float64) * 3
    tokens = Tokens(
        old + torch.randn(9, generator=rng, dtype=torch.float64) * 0.3,
        old,
        torch.tensor([0.7, -1.2, 0.4], dtype=torch.float64).repeat_interleave(torch.tensor([2, 4, 3])),
        torch.tensor([0, 0, 1, 1, 1, 1, 2, 2, 2]),
        0.01,
    )
    step = 1e-6
    found = values(name, tokens)
    assert any(found)
    for n in range(9):
        nudge = torch.zeros(9, dtype=torch.float64)
        nudge[n] = step
        up, down = (loss(name, replace(tokens, new_N=tokens.new_N + sign * nudge)) for sign in (1, -1))
        assert found[n] == pytest.approx(-(up - down) / (2 * step), abs=1e-8)


def test_cispo_differentiates_the_log_probability_and_not_its_weight() -> None:
    """Its weights are those of A r log p with the ratio held fast."""
    wanted = [r * a / 3 for r, a in zip(RATIOS, (2, 2, -1), strict=True)]
    assert values("cispo") == pytest.approx(wanted)
    whole = torch.autograd.functional.jacobian(
        lambda new: ((new - OLD).exp() * TOKENS.advantage_N * new).mean(), TOKENS.new_N
    )
    assert not torch.allclose(whole, torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_on_policy_every_loss_is_the_plain_policy_gradient(name: str) -> None:
    tokens = replace(TOKENS, new_N=OLD)
    over = {"grpo": [10] * 3, "dr_grpo": [10] * 3, "dapo": [3] * 3, "cispo": [3] * 3, "gspo": [4, 4, 2]}[name]
    assert values(name, tokens) == pytest.approx([2 / over[0], 2 / over[1], -1 / over[2]])


def test_on_policy_weights_are_the_advantage_over_the_constant_to_the_bit() -> None:
    rng = np.random.default_rng(0)
    advantage = torch.from_numpy(rng.normal(size=1000))
    zeros, scale = torch.zeros(1000, dtype=torch.float64), 1.0 / (7 * 3 * 50)
    tokens = Tokens(zeros - 0.3, zeros - 0.3, advantage, torch.arange(1000), scale)
    assert torch.equal(token_weights(POLICY_LOSSES["grpo"], tokens), advantage * scale)


def test_advantages_by_hand() -> None:
    rewards = [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]
    centred = [[0.75, -0.25, -0.25, -0.25], [0.5, 0.5, -0.5, -0.5]]
    assert scaled_advantages(rewards, "none") == centred
    by_group = scaled_advantages(rewards, "group")
    assert by_group[1] == pytest.approx([1, 1, -1, -1])
    assert by_group[0] == pytest.approx([math.sqrt(3), *[-1 / math.sqrt(3)] * 3])
    batch = math.sqrt((0.75**2 + 3 * 0.25**2 + 4 * 0.5**2) / 8)
    assert scaled_advantages(rewards, "batch")[0][0] == pytest.approx(0.75 / batch)
    assert scaled_advantages([[1.0, 1.0]], "group") == [[0.0, 0.0]]


def test_log_probabilities_are_those_of_the_whole_vocabulary_in_float32() -> None:
    model = Decoder(ModelSettings(width=32, layers=1, head_dim=16, context=64).config(50)).initialise(0)
    rng = torch.Generator().manual_seed(0)
    tokens, targets = (torch.randint(50, (2, 12), generator=rng) for _ in range(2))
    weights = torch.zeros(2, 12)
    weights[0, 3:7] = weights[1, 9] = 1.0
    document = torch.ones(2, 12, dtype=torch.int64)
    found = log_probabilities(model, Batch(tokens, targets, weights, document), torch.float32)
    wanted = model(tokens, document_BT=document).log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    assert found.dtype == torch.float32 and not found.requires_grad
    assert torch.allclose(found[weights != 0], wanted[weights != 0], atol=1e-5)
    assert not found[weights == 0].any()


def test_exact_logits_are_those_of_the_log_probabilities() -> None:
    """In bfloat16 the head's products are rounded to eight bits; an update of RL must not be."""
    model = Decoder(ModelSettings(width=64, layers=1, context=64).config(512)).initialise(3)
    with torch.no_grad():
        model.head_weight.mul_(20.0)  # as sure of itself as a trained model
    generator = torch.Generator().manual_seed(4)
    tokens, targets = (torch.randint(512, (2, 48), generator=generator) for _ in range(2))
    batch = Batch(tokens, targets, torch.ones(2, 48))
    wanted = -float(log_probabilities(model, batch, torch.bfloat16).mean())
    exact = backward(model, batch, torch.bfloat16, exact_logits=True).nats
    rounded = backward(model, batch, torch.bfloat16).nats
    assert abs(exact - wanted) < 1e-5 * wanted < abs(rounded - wanted)
