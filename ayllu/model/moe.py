"""Mixture of experts: many MLPs, of which a router gives each token a few.

Sparsely gated experts (Shazeer et al. 2017, 1701.06538) in the forms that open models use: Mixtral
(2401.04088), DeepSeek-V2 with groups of experts and shared ones (2405.04434, section 2.2), DeepSeek-V3
with a bias that balances the load (2412.19437, section 2.1.2), Llama 4 with the weight on the input.

The computation is grouped: the (token, expert) pairs are sorted by expert, so that every expert that got
tokens multiplies its rows once, whatever the number of tokens. Results are put back by the inverse of
that order and summed per token; nothing is added atomically, so the same input gives the same bits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ayllu.model.config import MLPSpec, ModelConfig, MoESpec
from ayllu.model.mlp import MLP, gated


class MoE(nn.Module):
    """Router, experts (gate and up rows of all experts in one tensor) and the shared MLP, if any."""

    choice_bias: Tensor | None

    def __init__(self, config: ModelConfig, spec: MoESpec) -> None:
        super().__init__()
        self.spec = spec
        self.router = nn.Linear(config.width, spec.experts, bias=False)
        self.register_buffer("choice_bias", torch.zeros(spec.experts) if spec.choice_bias else None)
        self.gate_up = nn.Parameter(torch.empty(spec.experts, 2 * spec.hidden, config.width))
        self.down = nn.Parameter(torch.empty(spec.experts, config.width, spec.hidden))
        for stacked in (self.gate_up, self.down):
            nn.init.normal_(stacked, std=stacked.shape[-1] ** -0.5)
        shared = MLPSpec(spec.shared_hidden, spec.activation)
        self.shared = MLP(config.width, shared) if spec.shared_hidden else None

    def forward(self, x_BTC: Tensor) -> Tensor:
        """x_BTC -> the same shape."""
        spec = self.spec
        x_NC = x_BTC.flatten(0, -2)
        logits_NE = F.linear(x_NC.float(), self.router.weight.float())
        expert_NK, weight_NK = choose(logits_NE, spec, self.choice_bias)

        # Pair p belongs to token p // K. `order` sorts the pairs by expert.
        expert_P, order_P = expert_NK.flatten().sort(stable=True)
        rows_PC = x_NC[order_P // spec.active]
        if spec.weigh_input:
            rows_PC = (rows_PC * weight_NK.flatten()[order_P, None]).to(x_NC.dtype)
        y_PC = self.experts(rows_PC, expert_P)
        y_NKC = y_PC[order_P.argsort()].view(*expert_NK.shape, -1)
        if spec.weigh_input:
            y_NC = y_NKC.sum(1)
        else:
            y_NC = (y_NKC * weight_NK[:, :, None]).sum(1).to(x_NC.dtype)
        if self.shared is not None:
            y_NC = y_NC + self.shared(x_NC)
        return y_NC.view(x_BTC.shape)

    def experts(self, rows_PC: Tensor, expert_P: Tensor) -> Tensor:
        """rows_PC, each through the expert expert_P (ascending) -> the same shape."""
        counts_E = torch.bincount(expert_P, minlength=self.spec.experts)
        product = _fused if _can_fuse(rows_PC, self.spec) else _each
        hidden_PH = gated(product(rows_PC, self.gate_up, counts_E), self.spec.activation)
        return product(hidden_PH, self.down, counts_E)


def choose(logits_NE: Tensor, spec: MoESpec, choice_bias_E: Tensor | None) -> tuple[Tensor, Tensor]:
    """The router's decision: expert_NK (int64, best first) and weight_NK (float32, differentiable).

    Equal scores go to the expert with the lower number (a stable sort; `torch.topk` promises nothing).
    """
    scores_NE = logits_NE.softmax(-1) if spec.router == "softmax" else logits_NE.sigmoid()
    with torch.no_grad():
        # The plain choice is made among logits: scores of sure experts round to the same 1.0.
        plain = spec.groups == 1 and choice_bias_E is None
        ranked_NE = logits_NE if plain else scores_NE
        if choice_bias_E is not None:
            ranked_NE = ranked_NE + choice_bias_E.float()
        if spec.groups > 1:
            ranked_NE = ranked_NE.masked_fill(~_open(ranked_NE, spec), -torch.inf)
        expert_NK = _top(ranked_NE, spec.active)
    weight_NK = scores_NE.gather(1, expert_NK)
    if spec.normalise:
        weight_NK = weight_NK / (weight_NK.sum(-1, keepdim=True) + 1e-20)
    return expert_NK, weight_NK * spec.scale


def _top(scores: Tensor, count: int) -> Tensor:
    return scores.sort(dim=-1, descending=True, stable=True).indices[..., :count]


def _open(ranked_NE: Tensor, spec: MoESpec) -> Tensor:
    """bool (N, E): the experts of the groups that a token may use."""
    grouped_NGE = ranked_NE.unflatten(1, (spec.groups, -1))
    best = 2 if spec.group_score == "top2" else 1
    group_score_NG = grouped_NGE.topk(best, -1).values.sum(-1)
    open_NG = torch.zeros_like(group_score_NG, dtype=torch.bool)
    open_NG.scatter_(1, _top(group_score_NG, spec.active_groups), True)
    return open_NG[:, :, None].expand_as(grouped_NGE).flatten(1)


def _each(x_PI: Tensor, weight_EOI: Tensor, counts_E: Tensor) -> Tensor:
    """One product for every expert that has rows. `unbind` and not indexing: its gradient is written
    once, where each index would add a tensor as large as all experts together."""
    parts = zip(x_PI.split(counts_E.tolist()), weight_EOI.unbind(), strict=True)
    return torch.cat([F.linear(x_RI, w_OI.to(x_RI.dtype)) for x_RI, w_OI in parts if len(x_RI)])


def _fused(x_PI: Tensor, weight_EOI: Tensor, counts_E: Tensor) -> Tensor:
    """The same in one kernel, without asking the device for the counts."""
    ends_E = counts_E.cumsum(0).to(torch.int32)
    return F.grouped_mm(x_PI, weight_EOI.to(x_PI.dtype).transpose(1, 2), offs=ends_E)


def _can_fuse(x: Tensor, spec: MoESpec) -> bool:
    # The kernel takes bfloat16 rows of a multiple of 16 bytes, on Ampere and later.
    return (
        x.is_cuda
        and x.dtype == torch.bfloat16
        and hasattr(F, "grouped_mm")
        and x.shape[-1] % 8 == spec.hidden % 8 == 0
        and torch.cuda.get_device_capability(x.device) >= (8, 0)
    )
