"""The one loss against torch's cross-entropy: value, per-token losses, entropies and both gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ayllu import native
from ayllu.train import losses
from ayllu.train.losses import head_loss


def example(rows: int, vocab: int, width: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States, head, targets and weights of both signs, some of them 0."""
    g = torch.Generator().manual_seed(seed)
    weights_N = torch.randn(rows, generator=g) / rows
    weights_N[::5] = 0.0
    return (
        torch.randn(rows, width, generator=g),
        torch.randn(vocab, width, generator=g) * width**-0.5,
        torch.randint(vocab, (rows,), generator=g),
        weights_N,
    )


def both(
    states_NC: Tensor, head_VC: Tensor, targets_N: Tensor, weights_N: Tensor, kind: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Ours in `kind`, and torch's in float64 from the same (rounded) numbers."""
    x, w = states_NC.to(kind).clone().requires_grad_(), head_VC.clone().requires_grad_()
    total, losses_N, entropies_N = head_loss(x, w, targets_N, weights_N)
    total.backward()
    ours = {"total": total.detach(), "losses": losses_N, "entropies": entropies_N, "dx": x.grad, "dw": w.grad}

    x64 = states_NC.to(kind).double()
    w64 = head_VC.to(kind).double()
    x64.requires_grad_()
    w64.requires_grad_()
    logits_NV = x64 @ w64.T
    each_N = F.cross_entropy(logits_NV, targets_N, reduction="none")
    (each_N * weights_N.double()).sum().backward()
    entropies = torch.distributions.Categorical(logits=logits_NV.detach()).entropy()
    theirs = {
        "total": (each_N * weights_N.double()).sum().detach(),
        "losses": each_N.detach(),
        "entropies": entropies,
        "dx": x64.grad,
        "dw": w64.grad,
    }
    return ours, theirs  # type: ignore[return-value]


def deviation(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.double() - theirs).norm() / theirs.norm())


@settings(max_examples=12, deadline=None)
@given(rows=st.integers(1, 70), vocab=st.integers(2, 300), seed=st.integers(0, 10**6))
def test_in_float32_it_is_torchs(rows: int, vocab: int, seed: int) -> None:
    ours, theirs = both(*example(rows, vocab, 16, seed), torch.float32)
    for name in ("losses", "entropies", "total"):
        torch.testing.assert_close(ours[name].double(), theirs[name], atol=1e-5, rtol=1e-4)
    for name in ("dx", "dw"):
        torch.testing.assert_close(ours[name].double(), theirs[name], atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_in_pieces_it_is_the_same(kind: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the logits of all rows would be more than a gigabyte."""
    whole, _ = both(*example(70, 100, 16, 1), kind)
    monkeypatch.setattr(losses, "_LOGITS", 1700)  # 17 rows
    pieces, theirs = both(*example(70, 100, 16, 1), kind)
    for name in whole:
        torch.testing.assert_close(pieces[name], whole[name], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(pieces[name].double(), theirs[name], atol=1e-5, rtol=1e-3)


@pytest.mark.skipif(native.module() is None, reason="the native extension isn't built here")
@pytest.mark.parametrize(("rows", "vocab"), [(2, 33), (64, 517), (1030, 300), (2500, 1024)])
def test_the_fused_kernel_is_torchs_within_the_precision_of_bfloat16(rows: int, vocab: int) -> None:
    """More rows than a piece, a vocabulary that no vector width divides."""
    ours, theirs = both(*example(rows, vocab, 32, rows), torch.bfloat16)
    assert ours["losses"].dtype == torch.float32
    torch.testing.assert_close(ours["losses"].double(), theirs["losses"], atol=0.03, rtol=0.01)
    torch.testing.assert_close(ours["entropies"].double(), theirs["entropies"], atol=0.03, rtol=0.01)
    assert deviation(ours["dx"], theirs["dx"]) < 0.01
    assert deviation(ours["dw"], theirs["dw"]) < 0.02


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_position_without_weight_teaches_nothing(kind: torch.dtype) -> None:
    states_NC, head_VC, targets_N, weights_N = example(20, 50, 32, 3)
    ours, _ = both(states_NC, head_VC, targets_N, weights_N, kind)
    assert bool((ours["dx"][::5] == 0).all()) and bool((ours["dx"][1::5] != 0).any())
    changed = targets_N.clone()
    changed[::5] = (changed[::5] + 1) % 50
    again, _ = both(states_NC, head_VC, changed, weights_N, kind)
    assert torch.equal(ours["dw"], again["dw"])


def test_a_positive_advantage_raises_the_probability_and_a_negative_lowers_it() -> None:
    states_NC, head_VC, targets_N, _ = example(2, 50, 32, 4)
    weights_N = torch.tensor([0.5, -0.5])
    ours, _ = both(states_NC, head_VC, targets_N, weights_N, torch.float32)
    _, before_N, _ = head_loss(states_NC, head_VC, targets_N, weights_N)
    _, after_N, _ = head_loss(states_NC, head_VC - 0.1 * ours["dw"], targets_N, weights_N)
    assert after_N[0] < before_N[0] and after_N[1] > before_N[1]


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_no_rows_are_no_loss(kind: torch.dtype) -> None:
    head_VC = torch.randn(11, 32, requires_grad=True)
    states_NC = torch.zeros(0, 32, dtype=kind, requires_grad=True)
    loss, losses_N, entropies_N = head_loss(
        states_NC, head_VC, torch.zeros(0, dtype=torch.long), torch.zeros(0)
    )
    (loss + 0 * head_VC.sum()).backward()
    assert float(loss.detach()) == 0 and len(losses_N) == len(entropies_N) == 0
    assert head_VC.grad is not None and not head_VC.grad.any()
