"""GPT-2 (Radford et al. 2019): learned positions, LayerNorm before each half of a block, biases everywhere.

Config keys and weight names are those of transformers' GPT2Config. Matrices are stored transposed (the
release called them convolutions of width 1), queries, keys and values as one. OpenAI's own four folders
leave out the `transformer.` before every name and keep the causal masks as if they were weights.
"""

from __future__ import annotations

from typing import Any

from ayllu.model.config import AttentionSpec, LayerSpec, MLPSpec, ModelConfig
from ayllu.model.families import keys
from ayllu.model.families.names import Entry, one

ARCHITECTURES = ("GPT2LMHeadModel",)
# The causal masks, and the head of those who store it though it is the embedding.
IGNORED = (r"transformer\.h\.\d+\.attn\.(masked_)?bias", r"lm_head\.weight")
SPELLINGS = ((r"((?:wte|wpe|ln_f|h\.\d+)\..*)", r"transformer.\1"),)

_DEFAULTS: dict[str, Any] = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
}


def config_from_hf(values: dict[str, Any]) -> ModelConfig:
    """ModelConfig from the content of config.json. Raises ModelFileDamagedError."""
    keys.fixed(values, {"add_cross_attention": False})
    values = _DEFAULTS | values
    width, heads = keys.size(values, "n_embd"), keys.size(values, "n_head")
    mlp = MLPSpec(
        keys.optional_size(values, "n_inner") or 4 * width,
        keys.activation(values, "activation_function"),
        gated=False,
        bias=True,
    )
    head_dim = head_size(width, heads)
    scaled = keys.flag(values, "scale_attn_weights")
    deeper = keys.flag(values, "scale_attn_by_inverse_layer_idx")
    layers = []
    for index in range(keys.size(values, "n_layer", keys.MOST_LAYERS)):
        scale = (head_dim**-0.5 if scaled else 1.0) / (index + 1 if deeper else 1)
        plain = scale == head_dim**-0.5
        attention = AttentionSpec(
            heads, heads, head_dim, None, bias=True, out_bias=True, scale=None if plain else scale
        )
        layers.append(LayerSpec(attention, mlp))
    return gpt_decoder(values, layers, width, keys.size(values, "n_positions"), "gpt2")


def head_size(width: int, heads: int) -> int:
    """Channels of a head. Raises ModelFileDamagedError where they don't divide."""
    if width % heads:
        raise keys.damaged(f"{heads} heads don't divide {width} channels")
    return width // heads


def gpt_decoder(
    values: dict[str, Any], layers: list[LayerSpec], width: int, context: int, family: str
) -> ModelConfig:
    """The sizes round the layers, as GPT-2 and GPT-Neo have them."""
    return keys.checked(
        ModelConfig(
            width=width,
            vocab_size=keys.size(values, "vocab_size"),
            layers=tuple(layers),
            context=context,
            norm="layer",
            norm_bias=True,
            norm_eps=keys.positive(values, "layer_norm_epsilon"),
            tied=keys.flag(values, "tie_word_embeddings"),
            positions=context,
            family=family,
        )
    )


def activation_to_hf(name: str) -> str:
    """GPT's own word for its approximation of GELU."""
    return {"gelu_tanh": "gelu_new"}.get(name) or keys.activation_to_hf(name)


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The content of config.json. Raises RequestError for what the keys can't say."""
    attentions = [keys.part(config, spec, AttentionSpec) for spec in config.attentions]
    first, second = attentions[0], attentions[min(1, len(attentions) - 1)]
    mlp = keys.part(config, config.layers[0].mlp, MLPSpec)
    values = {
        "architectures": [ARCHITECTURES[0]],
        "model_type": "gpt2",
        "n_embd": config.width,
        "n_layer": len(config.layers),
        "n_head": first.heads,
        "n_inner": mlp.hidden,
        "n_positions": config.positions,
        "n_ctx": config.positions,
        "vocab_size": config.vocab_size,
        "activation_function": activation_to_hf(mlp.activation),
        "layer_norm_epsilon": config.norm_eps,
        "scale_attn_weights": first.score_scale == first.head_dim**-0.5,
        "scale_attn_by_inverse_layer_idx": first.score_scale != second.score_scale,
        "tie_word_embeddings": config.tied,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    }
    return keys.expressed(values, config, config_from_hf)


def entries(config: ModelConfig) -> list[Entry]:
    """All weights."""
    width, found = config.width, outer_entries(config)
    for index, layer in enumerate(config.layers):
        assert isinstance(layer.mlp, MLPSpec)
        ours, theirs = f"blocks.{index}.", f"transformer.h.{index}."
        found += norm_entries(width, ours + "attention_norm", theirs + "ln_1")
        found += norm_entries(width, ours + "mlp_norm", theirs + "ln_2")
        for name, other, inputs, outputs in (
            ("attention.qkv", "attn.c_attn", width, 3 * width),
            ("attention.out", "attn.c_proj", width, width),
            ("mlp.up", "mlp.c_fc", width, layer.mlp.hidden),
            ("mlp.down", "mlp.c_proj", layer.mlp.hidden, width),
        ):
            weight = f"{theirs}{other}.weight"
            found.append(one(f"{ours}{name}.weight", weight, inputs, outputs, transposed=True))
            found.append(one(f"{ours}{name}.bias", f"{theirs}{other}.bias", outputs))
    return found


def outer_entries(config: ModelConfig) -> list[Entry]:
    """Embedding, positions, last norm, head."""
    found = [
        one("embedding.weight", "transformer.wte.weight", config.vocab_size, config.width),
        one("positions.weight", "transformer.wpe.weight", config.positions, config.width),
        *norm_entries(config.width, "norm", "transformer.ln_f"),
    ]
    if not config.tied:
        found.append(one("head.weight", "lm_head.weight", config.vocab_size, config.width))
    return found


def norm_entries(width: int, ours: str, theirs: str) -> list[Entry]:
    """Weight and bias of a LayerNorm."""
    return [one(f"{ours}.{kind}", f"{theirs}.{kind}", width) for kind in ("weight", "bias")]
