"""The decoder: embed, blocks, norm, head (pre-norm Transformer; LLaMA, Touvron et al. 2023, section 2.2).

One module for every family: what differs between them stands in the config.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ayllu.model.attention import Attention, LayerCache, Place
from ayllu.model.config import AttentionSpec, LayerSpec, MLPSpec, ModelConfig
from ayllu.model.latent import LatentAttention
from ayllu.model.mlp import MLP
from ayllu.model.moe import MoE
from ayllu.model.norm import block_norm
from ayllu.native import ops


class Block(nn.Module):
    """Attention and feed-forward, each added to the residual stream, one after the other or side by side."""

    def __init__(self, config: ModelConfig, spec: LayerSpec) -> None:
        super().__init__()
        self.parallel = spec.parallel
        self.attention_norm = block_norm(config)
        self.attention: Attention | LatentAttention
        if isinstance(spec.attention, AttentionSpec):
            self.attention = Attention(config, spec.attention)
        else:
            self.attention = LatentAttention(config, spec.attention)
        self.mlp_norm = None if spec.parallel else block_norm(config)
        self.mlp = MLP(config.width, spec.mlp) if isinstance(spec.mlp, MLPSpec) else MoE(config, spec.mlp)

    def forward(self, x_BTC: Tensor, place: Place, cache: LayerCache | None) -> Tensor:
        """x_BTC -> the same shape."""
        normed_BTC = self.attention_norm(x_BTC)
        if self.mlp_norm is None:
            return x_BTC + self.attention(normed_BTC, place, cache) + self.mlp(normed_BTC)
        x_BTC = x_BTC + self.attention(normed_BTC, place, cache)
        return x_BTC + self.mlp(self.mlp_norm(x_BTC))


class Decoder(nn.Module):
    """`model(tokens_BT) -> logits_BTV`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Embedding(config.positions, config.width) if config.positions else None
        self.blocks = nn.ModuleList(Block(config, spec) for spec in config.layers)
        self.norm = block_norm(config)
        self.head = None if config.tied else nn.Linear(config.width, config.vocab_size, bias=False)

    @property
    def head_weight(self) -> Tensor:
        """The (V, C) matrix that turns states into logits."""
        return self.embedding.weight if self.head is None else self.head.weight

    def initialise(self, seed: int) -> Decoder:
        """Random weights from `seed`: normal with deviation 1/sqrt(inputs), outputs of blocks zero.

        Zero outputs make every block the identity at first (modded-nanogpt, record 5).
        """
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if weight.dim() < 2:
                    weight.fill_(0.0 if name.endswith("bias") else 1.0)
                elif name.endswith(("attention.out.weight", "down.weight", "mlp.down")):
                    weight.zero_()
                else:
                    std = 0.02 if name == "embedding.weight" else weight.shape[-1] ** -0.5
                    weight.copy_(torch.randn(weight.shape, generator=generator) * std)
        return self

    def states(
        self,
        tokens_BT: Tensor,
        *,
        positions_BT: Tensor | None = None,
        document_BT: Tensor | None = None,
        caches: Sequence[LayerCache] | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Final normed states (B, T, C), before the head.

        `document_BT`: tokens attend only to earlier tokens with the same number (packed rows).
        `positions_BT`: 0, 1, 2, ... when absent, from the start of each document where a layer cares.
        `dtype`: compute in this type (weights are cast where they are used).
        """
        x_BTC = F.embedding(tokens_BT, self.embedding.weight)
        if dtype is not None:
            x_BTC = x_BTC.to(dtype)
        place = self._place(tokens_BT, positions_BT, document_BT, fused=caches is None and ops.usable(x_BTC))
        if self.positions is not None:
            x_BTC = x_BTC + F.embedding(place.positions_BT, self.positions.weight).to(x_BTC.dtype)
        for index, block in enumerate(self.blocks):
            x_BTC = block(x_BTC, place, caches[index] if caches else None)
        return self.norm(x_BTC)

    def logits(self, states: Tensor) -> Tensor:
        """States (..., C) -> logits (..., V)."""
        return self._capped(F.linear(states, self.head_weight.to(states.dtype)))

    def exact_logits(self, states_NC: Tensor) -> Tensor:
        """States -> logits_NV in float32, as the sums are kept on a GPU: a logit of 16 in bfloat16 is known
        to an eighth. Elsewhere `logits`."""
        if states_NC.is_cuda and states_NC.dtype == torch.bfloat16:
            head_VC = self.head_weight.to(states_NC.dtype)
            return self._capped(torch.mm(states_NC, head_VC.T, out_dtype=torch.float32))
        return self.logits(states_NC).float()

    def _capped(self, logits: Tensor) -> Tensor:
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def forward(self, tokens_BT: Tensor, **options: Tensor) -> Tensor:
        """tokens_BT -> logits_BTV (see `states` for the options)."""
        return self.logits(self.states(tokens_BT, **options))

    def _place(
        self, tokens_BT: Tensor, positions_BT: Tensor | None, document_BT: Tensor | None, *, fused: bool
    ) -> Place:
        given = positions_BT is not None
        if positions_BT is None:
            positions_BT = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)[None]
            # Rotary positions only count by their differences; other kinds must begin with the document.
            if document_BT is not None and self._counts_from_zero():
                positions_BT = positions_BT - document_starts(tokens_BT, document_BT)
                given = True
        starts_BT = document_starts(tokens_BT, document_BT) if fused and not given else None
        return Place(positions_BT, document_BT, starts_BT)

    def _counts_from_zero(self) -> bool:
        return self.positions is not None or any(
            spec.chunk is not None or getattr(spec, "temperature", None) is not None
            for spec in self.config.attentions
        )


def document_starts(tokens_BT: Tensor, document_BT: Tensor | None) -> Tensor:
    """int32 (B, T): where the document of each position begins in its row (0 without documents)."""
    if document_BT is None:
        return torch.zeros_like(tokens_BT, dtype=torch.int32)
    position_T = torch.arange(document_BT.shape[1], dtype=torch.int32, device=document_BT.device)
    new_BT = torch.ones_like(document_BT, dtype=torch.bool)
    new_BT[:, 1:] = document_BT[:, 1:] != document_BT[:, :-1]
    return torch.where(new_BT, position_T, 0).cummax(1).values.to(torch.int32)
