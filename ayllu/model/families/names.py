"""Whose name is whose: how the weights of a family's files fill the decoder's.

A family lists one Entry for each of our tensors. Most are a piece or two under another name; fused
projections, stacked experts and the transposed matrices of GPT-2 are all the same rule: the pieces, one
after the other along their rows, fill our tensor. The rule is read in both directions.
"""

from __future__ import annotations

from dataclasses import dataclass

from ayllu.model.config import AttentionSpec, LayerSpec, MLPSpec, ModelConfig, MoESpec


@dataclass(frozen=True)
class Piece:
    """One tensor of a file, with its name and shape there. `transposed`: the file swaps the last two
    dimensions."""

    name: str
    shape: tuple[int, ...]
    transposed: bool = False


@dataclass(frozen=True)
class Entry:
    """Our tensor `ours`, seen as (rows, ...last dimensions), is its pieces concatenated along rows."""

    ours: str
    pieces: tuple[Piece, ...]


EMBEDDING, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


def llama_entries(config: ModelConfig) -> list[Entry]:
    """The names that nearly every family shares: those of LLaMA in transformers, dense or with experts
    called mlp.experts.N."""
    entries = outer_entries(config)
    for index, spec in enumerate(config.layers):
        ours, theirs = f"blocks.{index}.", f"model.layers.{index}."
        assert isinstance(spec.attention, AttentionSpec)
        entries += norm_entries(config, ours, theirs)
        entries += attention_entries(config, spec.attention, ours, theirs)
        entries += mlp_entries(config, spec, ours + "mlp.", theirs + "mlp.")
    return entries


def outer_entries(config: ModelConfig) -> list[Entry]:
    """Embedding, last norm, head."""
    width, vocab = config.width, config.vocab_size
    entries = [one("embedding.weight", EMBEDDING, vocab, width), one("norm.weight", NORM, width)]
    if not config.tied:
        entries.append(one("head.weight", HEAD, vocab, width))
    return entries


def norm_entries(config: ModelConfig, ours: str, theirs: str) -> list[Entry]:
    """The two norms of a block."""
    return [
        one(ours + "attention_norm.weight", theirs + "input_layernorm.weight", config.width),
        one(ours + "mlp_norm.weight", theirs + "post_attention_layernorm.weight", config.width),
    ]


def attention_entries(config: ModelConfig, spec: AttentionSpec, ours: str, theirs: str) -> list[Entry]:
    """q_proj, k_proj and v_proj fill our joint projection; o_proj is `out`."""
    ours, theirs = ours + "attention.", theirs + "self_attn."
    rows = [n * spec.head_dim for n in (spec.heads, spec.kv_heads, spec.kv_heads)]
    kinds = list(zip(("q_proj", "k_proj", "v_proj"), rows, strict=True))
    joint = tuple(Piece(f"{theirs}{kind}.weight", (n, config.width)) for kind, n in kinds)
    entries = [
        Entry(ours + "qkv.weight", joint),
        one(ours + "out.weight", theirs + "o_proj.weight", config.width, spec.out_channels),
    ]
    if spec.bias:
        entries.append(
            Entry(ours + "qkv.bias", tuple(Piece(f"{theirs}{kind}.bias", (n,)) for kind, n in kinds))
        )
    if spec.out_bias:
        entries.append(one(ours + "out.bias", theirs + "o_proj.bias", config.width))
    if spec.qk_norm == "rms":
        entries += [
            one(f"{ours}{x}_norm.weight", f"{theirs}{x}_norm.weight", spec.head_dim) for x in ("q", "k")
        ]
    return entries


def mlp_entries(config: ModelConfig, spec: LayerSpec, ours: str, theirs: str) -> list[Entry]:
    """A gated MLP, or experts with router `gate` and shared experts."""
    if isinstance(spec.mlp, MoESpec):
        return moe_entries(config, spec.mlp, ours, theirs)
    return dense_entries(config.width, spec.mlp, ours, theirs)


def dense_entries(width: int, spec: MLPSpec, ours: str, theirs: str) -> list[Entry]:
    """gate_proj and up_proj fill our joint projection; down_proj is `down`."""
    shapes = {"gate_proj": spec.hidden, "up_proj": spec.hidden}
    pieces = tuple(Piece(f"{theirs}{kind}.weight", (n, width)) for kind, n in shapes.items())
    entries = [
        Entry(ours + "gate_up.weight", pieces),
        one(ours + "down.weight", theirs + "down_proj.weight", width, spec.hidden),
    ]
    if spec.bias:
        biases = tuple(Piece(f"{theirs}{kind}.bias", (n,)) for kind, n in shapes.items())
        entries += [
            Entry(ours + "gate_up.bias", biases),
            one(ours + "down.bias", theirs + "down_proj.bias", width),
        ]
    return entries


def moe_entries(
    config: ModelConfig,
    spec: MoESpec,
    ours: str,
    theirs: str,
    *,
    names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> list[Entry]:
    """Router, one gated MLP an expert, shared experts as one wide MLP. `names`: the expert's matrices."""
    gate, up, down = names
    pairs = [
        Piece(f"{theirs}experts.{expert}.{kind}.weight", (spec.hidden, config.width))
        for expert in range(spec.experts)
        for kind in (gate, up)
    ]
    downs = [
        Piece(f"{theirs}experts.{expert}.{down}.weight", (config.width, spec.hidden))
        for expert in range(spec.experts)
    ]
    entries = [
        one(ours + "router.weight", theirs + "gate.weight", spec.experts, config.width),
        Entry(ours + "gate_up", tuple(pairs)),
        Entry(ours + "down", tuple(downs)),
    ]
    if spec.choice_bias:
        entries.append(one(ours + "choice_bias", theirs + "gate.e_score_correction_bias", spec.experts))
    if spec.shared_hidden:
        shared = MLPSpec(spec.shared_hidden, spec.activation)
        entries += dense_entries(config.width, shared, ours + "shared.", theirs + "shared_experts.")
    return entries


def one(ours: str, theirs: str, *shape: int, transposed: bool = False) -> Entry:
    """Our tensor is one of theirs; `shape` is that in the file."""
    return Entry(ours, (Piece(theirs, shape, transposed),))
