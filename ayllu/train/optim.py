"""Muon for the matrices of the blocks, AdamW for embeddings, heads and norms.

Muon (Jordan et al. 2024): momentum, then the update is replaced by the nearest orthogonal matrix,
found by a Newton-Schulz iteration. Small models learn from about 1.4 times fewer tokens than with
AdamW alone (Wen et al. 2025, arXiv 2509.02046). Joint projections (q, k, v; gate, up) are separate
matrices for Muon, and so is each expert of a mixture; a router, whose rows score the experts one by one,
goes to AdamW like a head. AdamW: Loshchilov & Hutter 2019.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ayllu.model.config import AttentionSpec, MoESpec
from ayllu.model.decoder import Decoder
from ayllu.train.precision import compute_type

# Quintic coefficients of the original; five iterations bring singular values near 1.
_A, _B, _C = 3.4445, -4.7750, 2.0315


def orthogonalise(update_NRC: Tensor, iterations: int = 5) -> Tensor:
    """Each matrix of the stack -> about U V^T of its singular value decomposition, in `compute_type`."""
    x = update_NRC.to(compute_type(update_NRC.device.type))
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.transpose(1, 2)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        xxt = x @ x.transpose(1, 2)
        polynomial = torch.baddbmm(xxt, xxt, xxt, beta=_B, alpha=_C)
        x = torch.baddbmm(x, polynomial, x, beta=_A)
    return x.transpose(1, 2) if tall else x


@dataclass
class _Stack:
    """Equally shaped matrices (views into parameters), treated together."""

    names: list[str] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    grads: list[tuple[Tensor, int, int]] = field(default_factory=list)  # parameter, first row, last row
    momentum: Tensor | None = None


class Optimizer:
    """`step(scale)` updates the weights from their gradients; `tensors()` is all of its memory.

    With `muon_lr` 0 AdamW takes the matrices too: the noisy gradients of RL have few directions worth
    following, and orthogonalising makes all directions equally large.
    """

    def __init__(
        self,
        model: Decoder,
        *,
        muon_lr: float,
        adam_lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.95),
    ) -> None:
        self.muon_lr, self.adam_lr, self.weight_decay = muon_lr, adam_lr, weight_decay
        self.momentum, self.betas, self.steps = momentum, betas, 0
        self.stacks: dict[tuple[int, int], _Stack] = {}
        self.adam: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        cuts = _joint_rows(model)
        for name, weight in model.named_parameters():
            if muon_lr and _is_matrix(name, weight):
                first, rows_RC = 0, _as_rows(weight.detach())
                for rows in cuts.get(name, [len(rows_RC)]):
                    stack = self.stacks.setdefault((rows, rows_RC.shape[1]), _Stack())
                    stack.names.append(f"{name}[{first}]")
                    stack.weights.append(rows_RC[first : first + rows])
                    stack.grads.append((weight, first, first + rows))
                    first += rows
            else:
                self.adam[name] = (weight, torch.zeros_like(weight), torch.zeros_like(weight))
        for (rows, columns), stack in self.stacks.items():
            stack.momentum = torch.zeros(len(stack.weights), rows, columns, device=stack.weights[0].device)

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """One update with learning rates times `scale`; gradients are dropped afterwards."""
        self.steps += 1
        for stack in self.stacks.values():
            self._muon(stack, scale)
        self._adamw(scale)

    def _muon(self, stack: _Stack, scale: float) -> None:
        gradient = torch.stack([_as_rows(p.grad)[i:j] for p, i, j in stack.grads])
        for p, _, last in stack.grads:
            if last * p.shape[-1] == p.numel():
                p.grad = None
        assert stack.momentum is not None
        stack.momentum.lerp_(gradient, 1 - self.momentum)
        update = orthogonalise(gradient.lerp_(stack.momentum, self.momentum)).float()  # Nesterov
        rows, columns = update.shape[1:]
        update.mul_(max(1.0, rows / columns) ** 0.5)
        if self.weight_decay:  # cautious: only where it agrees with the update's direction
            weights = torch.stack(stack.weights)
            update.add_(weights * ((update * weights) > 0), alpha=self.weight_decay)
        for weight, change in zip(stack.weights, update, strict=True):
            weight.add_(change, alpha=-self.muon_lr * scale)

    def _adamw(self, scale: float) -> None:
        first, second = self.betas
        for weight, m, v in self.adam.values():
            gradient = weight.grad
            if gradient is None:
                continue
            m.lerp_(gradient, 1 - first)
            v.lerp_(gradient.square(), 1 - second)
            m_hat = m / (1 - first**self.steps)
            v_hat = v / (1 - second**self.steps)
            weight.sub_(m_hat / (v_hat.sqrt() + 1e-10), alpha=self.adam_lr * scale)
            weight.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """Momenta by name (live tensors, for saving and loading in place)."""
        out = {}
        for (rows, columns), stack in self.stacks.items():
            assert stack.momentum is not None
            out[f"muon.{rows}x{columns}"] = stack.momentum
        for name, (_, m, v) in self.adam.items():
            out[f"adam.m.{name}"], out[f"adam.v.{name}"] = m, v
        return out


def _is_matrix(name: str, weight: Tensor) -> bool:
    """Whether a parameter is Muon's: a matrix of a block, or the stacked matrices of its experts."""
    return weight.dim() >= 2 and name.startswith("blocks.") and not name.endswith("router.weight")


def _as_rows(x: Tensor) -> Tensor:
    """A view of matrices below one another (R, C): a matrix is itself, stacked experts follow each other."""
    return x.flatten(0, -2)


def _joint_rows(model: Decoder) -> dict[str, list[int]]:
    """Rows of the separate matrices inside the joint projections and the stacked experts."""
    cuts = {}
    for index, layer in enumerate(model.config.layers):
        attention, mlp = layer.attention, layer.mlp
        if isinstance(attention, AttentionSpec):
            heads = (attention.heads, attention.kv_heads, attention.kv_heads)
            cuts[f"blocks.{index}.attention.qkv.weight"] = [n * attention.head_dim for n in heads]
        if isinstance(mlp, MoESpec):
            cuts[f"blocks.{index}.mlp.gate_up"] = [mlp.hidden] * (2 * mlp.experts)
            cuts[f"blocks.{index}.mlp.down"] = [model.config.width] * mlp.experts
            cuts[f"blocks.{index}.mlp.shared.gate_up.weight"] = [mlp.shared_hidden] * 2
        elif mlp.gated:
            cuts[f"blocks.{index}.mlp.gate_up.weight"] = [mlp.hidden] * 2
    return cuts
