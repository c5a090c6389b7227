"""PaLM (Chowdhery et al. 2022, 2204.02311, section 2): multi-query attention beside the MLP, not before it.

SwiGLU, RoPE, one key-value head, no biases (LayerNorm included), input and output embeddings shared.
Attention and MLP read the same norm and are added together. Google never published weights or a format, so
that the config's keys and the names of the weights are ours, in the style of LLaMA; channels turn in
halves. The logits of the paper are scaled by 1/sqrt(width) (section 5, "weight initialization"), a
constant that the last norm's weight holds here: saved weights need no key for it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ayllu.model.config import AttentionSpec, LayerSpec, MLPSpec, ModelConfig
from ayllu.model.families import keys, llama
from ayllu.model.families.names import Entry, attention_entries, dense_entries, one, outer_entries

ARCHITECTURES = ("PalmForCausalLM",)
IGNORED: tuple[str, ...] = ()

_DEFAULTS: dict[str, Any] = {"layer_norm_epsilon": 1e-6}
# What the paper says and no key can change.
_FIXED: dict[str, Any] = {
    "num_key_value_heads": 1,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "rope_scaling": None,
    "tie_word_embeddings": True,
}


def config_from_hf(values: dict[str, Any]) -> ModelConfig:
    """ModelConfig from the content of config.json. Raises ModelFileDamagedError."""
    keys.fixed(values, _FIXED)
    values = _DEFAULTS | values | _FIXED
    values["rms_norm_eps"] = keys.positive(values, "layer_norm_epsilon")
    mlp = MLPSpec(keys.size(values, "intermediate_size"))
    layer = LayerSpec(llama.attention_from_hf(values), mlp, parallel=True)
    count = keys.size(values, "num_hidden_layers", keys.MOST_LAYERS)
    return replace(llama.decoder_from_hf(values, (layer,) * count, "palm"), norm="layer")


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The content of config.json. Raises RequestError for what the keys can't say."""
    attention, mlp = llama.attention_and_mlp(config)
    values = llama.decoder_to_hf(config, attention, mlp, ARCHITECTURES[0])
    values["layer_norm_epsilon"] = values.pop("rms_norm_eps")
    return keys.expressed(values, config, config_from_hf)


def entries(config: ModelConfig) -> list[Entry]:
    """All weights. A block has one norm."""
    found = outer_entries(config)
    for index, layer in enumerate(config.layers):
        assert isinstance(layer.attention, AttentionSpec) and isinstance(layer.mlp, MLPSpec)
        ours, theirs = f"blocks.{index}.", f"model.layers.{index}."
        found.append(one(ours + "attention_norm.weight", theirs + "input_layernorm.weight", config.width))
        found += attention_entries(config, layer.attention, ours, theirs)
        found += dense_entries(config.width, layer.mlp, ours + "mlp.", theirs + "mlp.")
    return found
