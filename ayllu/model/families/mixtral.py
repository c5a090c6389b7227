"""Mixtral 8x7B and 8x22B: Mistral's attention, and in every layer a mixture of experts.

Jiang et al. 2024 (2401.04088): a softmax router chooses two of eight experts; their weights sum to 1. The
keys are those of transformers' MixtralConfig; the experts' matrices still have the names of Mistral's own
code, w1 (gate), w2 (down) and w3 (up).
"""

from __future__ import annotations

from typing import Any

from ayllu.model.config import AttentionSpec, LayerSpec, MLPSpec, ModelConfig, MoESpec
from ayllu.model.families import keys, llama
from ayllu.model.families.names import Entry, attention_entries, moe_entries, norm_entries, outer_entries

ARCHITECTURES = ("MixtralForCausalLM",)
IGNORED = llama.IGNORED
DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "sliding_window": None,
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
    "rope_theta": 1e6,
}
_FIXED: dict[str, Any] = {"attention_bias": False}


def config_from_hf(values: dict[str, Any]) -> ModelConfig:
    """ModelConfig from the content of config.json. Raises ModelFileDamagedError."""
    values = DEFAULTS | values
    keys.fixed(values, _FIXED)
    attention = llama.attention_from_hf(values, window=keys.optional_size(values, "sliding_window"))
    mlp = MoESpec(
        experts=keys.size(values, "num_local_experts", keys.MOST_EXPERTS),
        active=keys.size(values, "num_experts_per_tok", keys.MOST_EXPERTS),
        hidden=keys.size(values, "intermediate_size"),
        activation=keys.activation(values),
    )
    layers = (LayerSpec(attention, mlp),) * keys.size(values, "num_hidden_layers", keys.MOST_LAYERS)
    return llama.decoder_from_hf(values, layers, "mixtral")


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The architecture's keys of config.json. Raises RequestError for what they can't say."""
    first = config.layers[0]
    attention = keys.part(config, first.attention, AttentionSpec)
    moe = keys.part(config, first.mlp, MoESpec)
    values = llama.decoder_to_hf(config, attention, MLPSpec(moe.hidden, moe.activation), ARCHITECTURES[0])
    values |= {
        "sliding_window": attention.window,
        "num_local_experts": moe.experts,
        "num_experts_per_tok": moe.active,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    }
    return keys.expressed(values, config, config_from_hf)


def entries(config: ModelConfig) -> list[Entry]:
    """All weights, under the names of transformers' files."""
    out = outer_entries(config)
    for index, spec in enumerate(config.layers):
        ours, theirs = f"blocks.{index}.", f"model.layers.{index}."
        assert isinstance(spec.attention, AttentionSpec) and isinstance(spec.mlp, MoESpec)
        out += norm_entries(config, ours, theirs)
        out += attention_entries(config, spec.attention, ours, theirs)
        out += moe_entries(
            config, spec.mlp, ours + "mlp.", theirs + "block_sparse_moe.", names=("w1", "w3", "w2")
        )
    return out
