"""Qwen2 and Qwen2.5: Llama's block with biases on queries, keys and values.

Yang et al. 2024 (2407.10671, 2412.15115). The keys are those of transformers' Qwen2Config: layers from
`max_window_layers` on (or those that `layer_types` names) may have a sliding window.
"""

from __future__ import annotations

from typing import Any

from ayllu.model.config import AttentionSpec, LayerSpec, MLPSpec, ModelConfig, with_attention
from ayllu.model.families import keys, llama
from ayllu.model.families.names import llama_entries

ARCHITECTURES = ("Qwen2ForCausalLM",)
IGNORED = llama.IGNORED
DEFAULTS: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_FIXED: dict[str, Any] = {"use_mrope": False}
entries = llama_entries


def config_from_hf(values: dict[str, Any]) -> ModelConfig:
    """ModelConfig from the content of config.json. Raises ModelFileDamagedError."""
    values = DEFAULTS | values
    keys.fixed(values, _FIXED)
    attention = llama.attention_from_hf(values, bias=True)
    return llama.decoder_from_hf(values, windowed_layers(values, attention), "qwen2")


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The architecture's keys of config.json. Raises RequestError for what they can't say."""
    attention, mlp = llama.attention_and_mlp(config)
    values = llama.decoder_to_hf(config, attention, mlp, ARCHITECTURES[0])
    # Its biases are not a choice: there is no key for them.
    del values["attention_bias"]
    values |= keys.windows_to_hf([spec.window for spec in config.attentions])
    return keys.expressed(values, config, config_from_hf)


def windowed_layers(values: dict[str, Any], attention: AttentionSpec) -> tuple[LayerSpec, ...]:
    """Dense layers of which some have a sliding window."""
    mlp = MLPSpec(keys.size(values, "intermediate_size"), keys.activation(values))
    windows = keys.windows(values, keys.size(values, "num_hidden_layers", keys.MOST_LAYERS))
    layer = LayerSpec(attention, mlp)
    return tuple(layer if window is None else with_attention(layer, window=window) for window in windows)
