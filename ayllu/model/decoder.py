"""The decoder: embed, blocks, norm, head (pre-norm Transformer; LLaMA, Touvron et al. 2023, section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ayllu.model.attention import Attention, LayerCache, Place
from ayllu.model.config import LayerSpec, ModelConfig
from ayllu.model.mlp import SwiGLU
from ayllu.model.norm import RMSNorm
from ayllu.model.rope import rope_tables
from ayllu.native import ops


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, spec: LayerSpec) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config, spec)
        self.mlp_norm = RMSNorm(config.width, config.norm_eps)
        self.mlp = SwiGLU(config, spec)

    def forward(self, x_BTC: Tensor, place: Place, cache: LayerCache | None) -> Tensor:
        """x_BTC -> the same shape."""
        x_BTC = x_BTC + self.attention(self.attention_norm(x_BTC), place, cache)
        return x_BTC + self.mlp(self.mlp_norm(x_BTC))


class Decoder(nn.Module):
    """`model(tokens_BT) -> logits_BTV`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(Block(config, spec) for spec in config.layers)
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head = None if config.tied else nn.Linear(config.width, config.vocab_size, bias=False)
        cos_PD, sin_PD = rope_tables(config.context, config.layers[0].head_dim, config.rope_theta)
        self.register_buffer("cos_PD", cos_PD, persistent=False)
        self.register_buffer("sin_PD", sin_PD, persistent=False)

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
                    weight.fill_(1.0)
                elif name.endswith(("attention.out.weight", "mlp.down.weight")):
                    weight.zero_()
                else:
                    std = 0.02 if name == "embedding.weight" else weight.shape[1] ** -0.5
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
        `positions_BT`: rotary positions; 0, 1, 2, ... when absent.
        `dtype`: compute in this type (weights are cast where they are used).
        """
        x_BTC = F.embedding(tokens_BT, self.embedding.weight)
        if dtype is not None:
            x_BTC = x_BTC.to(dtype)
        t = tokens_BT.shape[1]
        positions = slice(None, t) if positions_BT is None else positions_BT
        cos_BTD, sin_BTD = self.cos_PD[positions], self.sin_PD[positions]
        if positions_BT is None:
            cos_BTD, sin_BTD = cos_BTD[None], sin_BTD[None]
        if positions_BT is None and caches is None and ops.usable(x_BTC):
            place = Place(cos_BTD, sin_BTD, starts_BT=document_starts(tokens_BT, document_BT))
        elif document_BT is not None:
            causal_TT = torch.ones(t, t, dtype=torch.bool, device=tokens_BT.device).tril()
            same_BTT = document_BT[:, :, None] == document_BT[:, None, :]
            place = Place(cos_BTD, sin_BTD, mask_B1TT=(same_BTT & causal_TT)[:, None])
        else:
            place = Place(cos_BTD, sin_BTD)
        for index, block in enumerate(self.blocks):
            x_BTC = block(x_BTC, place, caches[index] if caches else None)
        return self.norm(x_BTC)

    def forward(self, tokens_BT: Tensor, **options: Tensor) -> Tensor:
        """tokens_BT -> logits_BTV (see `states` for the options)."""
        x_BTC = self.states(tokens_BT, **options)
        return F.linear(x_BTC, self.head_weight.to(x_BTC.dtype))


def document_starts(tokens_BT: Tensor, document_BT: Tensor | None) -> Tensor:
    """int32 (B, T): where the document of each position begins in its row (0 without documents)."""
    if document_BT is None:
        return torch.zeros_like(tokens_BT, dtype=torch.int32)
    position_T = torch.arange(document_BT.shape[1], dtype=torch.int32)
    new_BT = torch.ones_like(document_BT, dtype=torch.bool)
    new_BT[:, 1:] = document_BT[:, 1:] != document_BT[:, :-1]
    return torch.where(new_BT, position_T, 0).cummax(1).values.to(torch.int32)
