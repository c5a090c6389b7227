"""A decoder as data: a list of LayerSpecs, so that patterns between layers are data, not branches.

`ModelSettings` is the small dial of a recipe: from width and depth everything else is derived.
"""

from __future__ import annotations

from dataclasses import dataclass

from ayllu.errors import RecipeValueError
from ayllu.stage import bounded


@dataclass(frozen=True)
class LayerSpec:
    """One block: norm, attention, norm, gated MLP, each added to the residual stream.

    Grouped-query attention (Ainslie et al. 2023): `kv_heads` divides `heads`. `qk_norm` is an
    RMSNorm over each query and key head before RoPE (Qwen3; Henry et al. 2020).
    """

    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    qk_norm: bool = True


@dataclass(frozen=True)
class ModelConfig:
    """The whole decoder: sizes, layers, positions."""

    width: int
    vocab_size: int
    layers: tuple[LayerSpec, ...]
    context: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    tied: bool = True

    def parameters(self) -> int:
        """Weights in all, the embedding counted once when tied."""
        per_layer = 0
        for spec in self.layers:
            attention = 2 * self.width * spec.head_dim * (spec.heads + spec.kv_heads)
            norms = 2 * self.width + (2 * spec.head_dim if spec.qk_norm else 0)
            per_layer += attention + 3 * self.width * spec.hidden + norms
        return per_layer + self.width + self.vocab_size * self.width * (1 if self.tied else 2)

    def train_flops_per_token(self, length: int) -> float:
        """Floating-point operations of forward and backward for one token in a row of `length`.

        6 for each weight of a matrix product (the embedding look-up is none, the head is one), and
        12 * length * width for scores and values, halved by causality (PaLM, appendix B).
        """
        matrices = sum(
            2 * self.width * s.head_dim * (s.heads + s.kv_heads) + 3 * self.width * s.hidden
            for s in self.layers
        )
        scores = sum(6 * length * s.heads * s.head_dim for s in self.layers)
        return 6.0 * (matrices + self.width * self.vocab_size) + scores


@dataclass(frozen=True)
class ModelSettings:
    """The shape of the decoder. Head size, key-value heads and MLP width follow from the width."""

    width: int = bounded(128, 32, 4096, "channels of the residual stream; a multiple of 32")
    layers: int = bounded(4, 1, 64, "blocks")
    head_dim: int = bounded(32, 8, 128, "channels of one attention head; divides the width")
    context: int = bounded(512, 64, 32768, "longest conversation in tokens")

    def config(self, vocab_size: int) -> ModelConfig:
        """The full description for a vocabulary. Raises RecipeValueError where sizes don't divide."""
        if self.width % self.head_dim or self.width % 32:
            raise RecipeValueError(
                f"model.width = {self.width} doesn't fit head_dim = {self.head_dim}",
                fix="choose a width that is a multiple of 32 and of head_dim",
            )
        heads = self.width // self.head_dim
        # SwiGLU with 8/3 of the width has the weights of a plain MLP with 4 (Shazeer 2020); rounded
        # up to a multiple of 64 for the matrix kernels. Half as many key-value heads as heads, or the
        # next smaller number that divides them.
        hidden = -(-self.width * 8 // 3 // 64) * 64
        kv_heads = next((n for n in range(heads // 2, 0, -1) if heads % n == 0), 1)
        spec = LayerSpec(heads, kv_heads, self.head_dim, hidden)
        return ModelConfig(self.width, vocab_size, (spec,) * self.layers, self.context)
