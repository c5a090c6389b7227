"""Muon and AdamW against their definitions; the learning rate's shape."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ayllu.model.config import (
    LatentSpec,
    LayerSpec,
    MLPSpec,
    ModelConfig,
    ModelSettings,
    MoESpec,
    RopeSpec,
)
from ayllu.model.decoder import Decoder
from ayllu.train import optim
from ayllu.train.optim import Optimizer, orthogonalise
from ayllu.train.schedule import lr_scale

CONFIG = ModelSettings(width=64, layers=2, head_dim=16, context=64).config(100)


def decoder() -> Decoder:
    """A decoder without zero matrices."""
    model = Decoder(CONFIG).initialise(0)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=g) * 0.1)
    return model


def with_gradients(model: Decoder, seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.grad = torch.randn(weight.shape, generator=g)
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}  # type: ignore[union-attr]


def copy(model: Decoder) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize("shape", [(3, 32, 96), (2, 96, 32), (1, 48, 64)])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_update_is_near_the_nearest_orthogonal_matrix(
    shape: tuple[int, ...], size: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optim, "compute_type", lambda device: dtype)  # as on machines with and without
    x_NRC = torch.randn(shape, generator=torch.Generator().manual_seed(2)) * size
    y_NRC = orthogonalise(x_NRC)
    assert y_NRC.dtype == dtype
    y_NRC = y_NRC.float()
    values = torch.linalg.svdvals(y_NRC)
    assert float(values.min()) > 0.6 and float(values.max()) < 1.3
    u, _, vt = torch.linalg.svd(x_NRC, full_matrices=False)
    ideal = u @ vt
    cosine = (y_NRC * ideal).sum((1, 2)) / (y_NRC.norm(dim=(1, 2)) * ideal.norm(dim=(1, 2)))
    assert float(cosine.min()) > 0.97


def test_a_gradient_of_zero_changes_nothing() -> None:
    assert not orthogonalise(torch.zeros(1, 8, 8)).any()


def test_adamw_is_torchs() -> None:
    mine, theirs = decoder(), decoder()
    ours = Optimizer(mine, muon_lr=0.0, adam_lr=0.01)
    reference = torch.optim.AdamW(
        theirs.parameters(), lr=0.01, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0
    )
    for step in range(5):
        scale = 1.0 - 0.1 * step
        with_gradients(mine, step)
        with_gradients(theirs, step)
        ours.step(scale)
        reference.param_groups[0]["lr"] = 0.01 * scale
        reference.step()
    for name, weight in theirs.named_parameters():
        torch.testing.assert_close(dict(mine.named_parameters())[name], weight, atol=1e-6, rtol=1e-5)


def test_muon_takes_the_matrices_of_the_blocks_and_nothing_else() -> None:
    model = decoder()
    optimizer = Optimizer(model, muon_lr=0.02, adam_lr=0.01)
    by_muon = {p for stack in optimizer.stacks.values() for p, _, _ in stack.grads}
    for name, weight in model.named_parameters():
        matrix_of_a_block = weight.dim() == 2 and name.startswith("blocks.")
        assert (weight in by_muon) == matrix_of_a_block == (name not in optimizer.adam)


def test_joint_projections_are_separate_matrices() -> None:
    """q, k and v lie in one tensor; each gets the update that it would get alone."""
    model = decoder()
    optimizer = Optimizer(model, muon_lr=0.02, adam_lr=0.01)
    before, gradients = copy(model), with_gradients(model, 3)
    name, rows = "blocks.1.attention.qkv.weight", [64, 32, 32]
    weight = dict(model.named_parameters())[name]
    weight.grad[:64] *= 1000.0  # q's gradient is a thousand times k's and v's
    optimizer.step(0.5)
    parts = zip(gradients[name].split(rows), (weight.detach() - before[name]).split(rows), strict=True)
    for gradient, change in parts:
        r, c = gradient.shape
        wanted = orthogonalise(gradient[None])[0].float() * max(1.0, r / c) ** 0.5 * -0.02 * 0.5
        assert float((change - wanted).norm() / wanted.norm()) < 0.08  # bfloat16
    gate_up = "blocks.0.mlp.gate_up.weight"
    change = dict(model.named_parameters())[gate_up].detach() - before[gate_up]
    for gradient, half in zip(gradients[gate_up].chunk(2), change.chunk(2), strict=True):
        wanted = (
            orthogonalise(gradient[None])[0].float() * (gradient.shape[0] / gradient.shape[1]) ** 0.5 * -0.01
        )
        assert float((half - wanted).norm() / wanted.norm()) < 0.08  # bfloat16
    assert all(weight.grad is None for weight in model.parameters())


LATENT = LatentSpec(4, 24, 32, 16, 8, 12, RopeSpec(8))
EXPERTS = MoESpec(experts=3, active=2, hidden=20, shared_hidden=28)
MIXED = ModelConfig(48, 50, (LayerSpec(LATENT, EXPERTS), LayerSpec(LATENT, MLPSpec(40, gated=False))), 32)


def test_every_expert_is_a_matrix_of_its_own() -> None:
    """Gate, up and down of each expert get the update that they would get alone; routers get AdamW's."""
    model = Decoder(MIXED).initialise(0)
    optimizer = Optimizer(model, muon_lr=0.02, adam_lr=0.01)
    before, gradients = copy(model), with_gradients(model, 3)
    weights = dict(model.named_parameters())
    stacks = {"blocks.0.mlp.gate_up": 6, "blocks.0.mlp.down": 3, "blocks.0.mlp.shared.gate_up.weight": 2}
    whole = ["blocks.0.attention.kv_up.weight", "blocks.0.attention.q_down.weight", "blocks.1.mlp.up.weight"]
    weights["blocks.0.mlp.gate_up"].grad[1] *= 1000.0  # one expert's gradient counts no more than another's
    weights["blocks.0.mlp.down"].grad[2] = 0.0  # an expert that got no token
    gradients["blocks.0.mlp.down"][2] = 0.0
    optimizer.step(0.5)
    assert "blocks.0.mlp.router.weight" in optimizer.adam
    assert not {*stacks, *whole} & optimizer.adam.keys()
    for name, count in (stacks | dict.fromkeys(whole, 1)).items():
        columns = weights[name].shape[-1]
        for gradient, change in zip(
            gradients[name].view(-1, columns).chunk(count),
            (weights[name].detach() - before[name]).view(-1, columns).chunk(count),
            strict=True,
        ):
            r, c = gradient.shape
            wanted = orthogonalise(gradient[None])[0].float() * max(1.0, r / c) ** 0.5 * -0.01
            assert float((change - wanted).norm()) < 0.08 * float(wanted.norm()) + 1e-6  # bfloat16
    assert all(weight.grad is None for weight in model.parameters())


def test_decay_only_where_it_agrees_with_the_update() -> None:
    changes = []
    for decay in (0.0, 0.1):
        model = decoder()
        before = copy(model)
        optimizer = Optimizer(model, muon_lr=0.02, adam_lr=0.01, weight_decay=decay)
        with_gradients(model, 4)
        optimizer.step(1.0)
        changes.append({name: weight.detach() - before[name] for name, weight in model.named_parameters()})
    plain, decayed = changes
    name = "blocks.0.attention.out.weight"
    extra = decayed[name] - plain[name]
    agrees = plain[name] * before[name] < 0  # the update already makes the weight smaller
    torch.testing.assert_close(extra[agrees], -0.02 * 0.1 * before[name][agrees], atol=1e-6, rtol=1e-3)
    assert float(extra[~agrees].abs().max()) < 1e-7 and bool(agrees.any()) and bool((~agrees).any())
    assert torch.equal(plain["norm.weight"], decayed["norm.weight"])


def test_its_memory_is_all_of_it() -> None:
    """Copying `tensors()` and `steps` into a fresh optimizer continues identically."""
    one, two = decoder(), decoder()
    first = Optimizer(one, muon_lr=0.02, adam_lr=0.01, weight_decay=0.1)
    for step in range(3):
        with_gradients(one, step)
        first.step(1.0)
    second = Optimizer(two, muon_lr=0.02, adam_lr=0.01, weight_decay=0.1)
    two.load_state_dict(one.state_dict())
    for name, tensor in second.tensors().items():
        tensor.copy_(first.tensors()[name])
    second.steps = first.steps
    for model, optimizer in ((one, first), (two, second)):
        with_gradients(model, 9)
        optimizer.step(1.0)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@given(steps=st.integers(1, 3000), decay=st.floats(0.05, 0.95), warmup=st.floats(0.0, 0.05))
def test_the_rate_rises_stays_and_falls(steps: int, decay: float, warmup: float) -> None:
    scales = [lr_scale(n, steps, decay=decay, warmup=warmup) for n in range(steps)]
    assert all(0 < s <= 1 for s in scales)
    signs = [b - a for a, b in itertools.pairwise(scales) if b != a]
    assert signs == sorted(signs, key=lambda rise: rise < 0)  # all rises before all falls
    if steps >= 200:
        assert scales[steps // 20 + 1] == 1.0 or decay > 0.94
        assert scales[-1] <= 1.01 / (decay * steps)  # it ends near nothing


def test_the_rate_in_numbers() -> None:
    shape = [lr_scale(n, 100, warmup=0.04, decay=0.5, final=0.2) for n in (0, 1, 3, 20, 50, 75, 99)]
    assert shape == pytest.approx([0.25, 0.5, 1.0, 1.0, 1.0, 0.6, 0.216])
