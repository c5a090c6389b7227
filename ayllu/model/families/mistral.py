"""Mistral 7B, Nemo and Small: Llama's block with a sliding window, or without one from version 0.2 on.

Jiang et al. 2023 (2310.06825). Nemo and Small have heads that are not the width divided among them. The
keys are those of transformers' MistralConfig; the window is 4096 where the key is missing, and null
switches it off.
"""

from __future__ import annotations

from typing import Any

from ayllu.model.config import LayerSpec, MLPSpec, ModelConfig
from ayllu.model.families import keys, llama
from ayllu.model.families.names import llama_entries

ARCHITECTURES = ("MistralForCausalLM",)
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
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "sliding_window": 4096,
}
# Biases and windows that differ between layers are other architectures' (Ministral).
_FIXED: dict[str, Any] = {"attention_bias": False}
entries = llama_entries


def config_from_hf(values: dict[str, Any]) -> ModelConfig:
    """ModelConfig from the content of config.json. Raises ModelFileDamagedError."""
    values = DEFAULTS | values
    keys.fixed(values, _FIXED)
    if values.get("layer_types") is not None:
        raise keys.damaged("layer_types: windows that differ between layers are not this architecture's")
    attention = llama.attention_from_hf(values, window=keys.optional_size(values, "sliding_window"))
    mlp = MLPSpec(keys.size(values, "intermediate_size"), keys.activation(values))
    layers = (LayerSpec(attention, mlp),) * keys.size(values, "num_hidden_layers", keys.MOST_LAYERS)
    return llama.decoder_from_hf(values, layers, "mistral")


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The architecture's keys of config.json. Raises RequestError for what they can't say."""
    attention, mlp = llama.attention_and_mlp(config)
    values = llama.decoder_to_hf(config, attention, mlp, ARCHITECTURES[0])
    return keys.expressed(values | {"sliding_window": attention.window}, config, config_from_hf)
