"""A decoder as data: a list of LayerSpecs, so that patterns between layers are data, not branches.

Every family (Llama, Mistral, Qwen, DeepSeek, GPT, PaLM) is a value of these types; nothing below this
file asks for a family's name. `ModelSettings` is the small dial of a recipe: from width and depth
everything else is derived.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ayllu.errors import RecipeValueError
from ayllu.stage import bounded


# ---- positions
@dataclass(frozen=True)
class RopeScaling:
    """How rotary positions are stretched beyond the length of training. What each kind uses:

    linear   factor                                               (Chen et al. 2023, 2306.15595)
    dynamic  factor, original_context                             (NTK-aware, grows with the text)
    llama3   factor, original_context, low_freq, high_freq        (Llama 3.1, 2407.21783)
    yarn     factor, original_context, beta_*, truncate, mscale*  (Peng et al. 2023, 2309.00071)
    longrope original_context, factor, short, long                (Ding et al. 2024, 2402.13753)
    """

    kind: str
    factor: float = 1.0
    original_context: int = 0
    low_freq: float = 1.0
    high_freq: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    attention_factor: float | None = None  # on cosine and sine; None: what the kind's paper says
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()


@dataclass(frozen=True)
class RopeSpec:
    """Rotary positions of the first `dim` channels of a head; pairs are (i, i + dim/2), or (2i, 2i + 1)
    when `interleaved`."""

    dim: int
    theta: float = 10_000.0
    interleaved: bool = False
    scaling: RopeScaling | None = None


# ---- attention
@dataclass(frozen=True)
class Temperature:
    """Queries grow with their position: 1 + scale * log(1 + floor((position + 1) / floor)) (Llama 4)."""

    floor: float
    scale: float


@dataclass(frozen=True)
class CacheShape:
    """What one token leaves behind in one layer. `value_dim` 0: the values are the first
    `shared` channels of the keys (latent attention), stored once."""

    kv_heads: int
    key_dim: int
    value_dim: int
    shared: int = 0

    @property
    def elements(self) -> int:
        """Numbers per token."""
        return self.kv_heads * (self.key_dim + self.value_dim)


@dataclass(frozen=True)
class AttentionSpec:
    """Grouped-query attention (Ainslie et al. 2023): `kv_heads` divides `heads`; 1 is multi-query.

    `rope` None: no positions in this layer. `qk_norm`: "" none; "rms" a learned RMSNorm over each query
    and key head before RoPE (Qwen3; Henry et al. 2020); "l2" the same without weights after RoPE (Llama 4).
    `window`: a token sees itself and the `window - 1` before it. `chunk`: it sees only its own chunk of
    so many positions. `scale`: of the scores, head_dim ** -0.5 when None. `softcap`: scores become
    softcap * tanh(scores / softcap) (Gemma 2).
    """

    heads: int
    kv_heads: int
    head_dim: int
    rope: RopeSpec | None
    bias: bool = False
    out_bias: bool = False
    qk_norm: str = ""
    window: int | None = None
    chunk: int | None = None
    scale: float | None = None
    softcap: float | None = None
    temperature: Temperature | None = None

    @property
    def score_scale(self) -> float:
        """What query-key products are multiplied by."""
        return self.head_dim**-0.5 if self.scale is None else self.scale

    @property
    def cache(self) -> CacheShape:
        """What a token leaves behind."""
        return CacheShape(self.kv_heads, self.head_dim, self.head_dim)

    @property
    def out_channels(self) -> int:
        """Channels that go into the output projection."""
        return self.heads * self.head_dim


@dataclass(frozen=True)
class LatentSpec:
    """Multi-head latent attention (DeepSeek-V2, 2405.04434, section 2.1): keys and values are made from a
    latent of `kv_rank` channels, which is all that is cached, beside one rotary key of `rope_dim`.

    `q_rank`: queries go through a latent, too (None: they don't).
    """

    heads: int
    q_rank: int | None
    kv_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int
    rope: RopeSpec
    bias: bool = False
    scale: float | None = None
    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None

    @property
    def score_scale(self) -> float:
        """What query-key products are multiplied by."""
        return (self.nope_dim + self.rope_dim) ** -0.5 if self.scale is None else self.scale

    @property
    def cache(self) -> CacheShape:
        """What a token leaves behind: the latent and the rotary key, for all heads together."""
        return CacheShape(1, self.kv_rank + self.rope_dim, 0, shared=self.kv_rank)

    @property
    def out_channels(self) -> int:
        """Channels that go into the output projection."""
        return self.heads * self.v_dim


# ---- feed-forward
@dataclass(frozen=True)
class MLPSpec:
    """down(f(gate(x)) * up(x)) when gated (GLU variants, Shazeer 2020), else down(f(up(x))).

    `activation`: silu, gelu, gelu_tanh or relu2 (squared ReLU, So et al. 2021).
    """

    hidden: int
    activation: str = "silu"
    gated: bool = True
    bias: bool = False


@dataclass(frozen=True)
class MoESpec:
    """Mixture of gated experts: a router sends each token to `active` of `experts`.

    `router`: "softmax" (Mixtral, Qwen, DeepSeek-V2) or "sigmoid" (DeepSeek-V3, Llama 4). `choice_bias`: a
    bias that counts for the choice and not for the weight (V3, 2412.19437, section 2.1.2). `groups`: choose
    `active_groups` of them first, by their best expert ("max", V2) or the sum of their two best ("top2",
    V3). `normalise`: weights of the chosen sum to 1. `scale`: multiplies them. `weigh_input`: the weight
    goes on the expert's input (Llama 4). `shared_hidden`: an MLP that every token passes besides (0: none).
    """

    experts: int
    active: int
    hidden: int
    shared_hidden: int = 0
    activation: str = "silu"
    router: str = "softmax"
    choice_bias: bool = False
    groups: int = 1
    active_groups: int = 1
    group_score: str = "max"
    normalise: bool = True
    scale: float = 1.0
    weigh_input: bool = False


# ---- the whole
@dataclass(frozen=True)
class LayerSpec:
    """One block. Sequential: x + attention(norm(x)), then x + mlp(norm(x)). `parallel`: both read the same
    normed x and are added together (PaLM, 2204.02311, section 2)."""

    attention: AttentionSpec | LatentSpec
    mlp: MLPSpec | MoESpec
    parallel: bool = False


@dataclass(frozen=True)
class ModelConfig:
    """The whole decoder: sizes, layers, norms, positions.

    `norm`: "rms" or "layer" (with `norm_bias`). `positions`: entries of a learned position table (0: none).
    `logit_softcap`: logits become cap * tanh(logits / cap). `family`: whose config keys and weight names a
    saved folder gets, a file of `model/families/`.
    """

    width: int
    vocab_size: int
    layers: tuple[LayerSpec, ...]
    context: int
    norm: str = "rms"
    norm_bias: bool = False
    norm_eps: float = 1e-6
    tied: bool = True
    positions: int = 0
    logit_softcap: float | None = None
    family: str = "qwen3"

    @property
    def attentions(self) -> list[AttentionSpec | LatentSpec]:
        """The attention of each layer."""
        return [spec.attention for spec in self.layers]


def dense_layer(
    heads: int, kv_heads: int, head_dim: int, hidden: int, *, theta: float = 10_000.0, qk_norm: bool = True
) -> LayerSpec:
    """Qwen3's block, the one that our own models use."""
    attention = AttentionSpec(
        heads, kv_heads, head_dim, RopeSpec(head_dim, theta), qk_norm="rms" if qk_norm else ""
    )
    return LayerSpec(attention, MLPSpec(hidden))


def with_attention(layer: LayerSpec, **changes: object) -> LayerSpec:
    """The same layer with some fields of its attention replaced."""
    return replace(layer, attention=replace(layer.attention, **changes))  # type: ignore[arg-type]


@dataclass(frozen=True)
class ModelSettings:
    """The shape of the decoder. Head size, key-value heads and MLP width follow from the width."""

    width: int = bounded(128, 32, 4096, "channels of the residual stream; a multiple of 32")
    layers: int = bounded(4, 1, 64, "blocks")
    head_dim: int = bounded(32, 8, 128, "channels of one attention head; divides the width")
    context: int = bounded(512, 64, 32768, "longest conversation in tokens")

    def check(self, tables: Mapping[str, Any]) -> None:
        """RecipeValueError where sizes don't divide."""
        self.config(tables["tokenizer"].vocabulary)

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
        layer = dense_layer(heads, kv_heads, self.head_dim, hidden)
        return ModelConfig(self.width, vocab_size, (layer,) * self.layers, self.context)
