"""Qwen3 (dense): Llama's block with a norm on each query and key head (Yang et al. 2025, 2505.09388).

Our own models use this shape, so that transformers and vLLM load them without our code, and llama.cpp what
is exported. The keys are those of transformers' Qwen3Config. Queries, keys, values and outputs may have
biases.
"""

from __future__ import annotations

from typing import Any

from ayllu.model.config import ModelConfig
from ayllu.model.families import keys, llama, qwen2
from ayllu.model.families.names import llama_entries

ARCHITECTURES = ("Qwen3ForCausalLM",)
IGNORED = llama.IGNORED
DEFAULTS: dict[str, Any] = qwen2.DEFAULTS | {"head_dim": 128, "attention_bias": False}
entries = llama_entries


def config_from_hf(values: dict[str, Any]) -> ModelConfig:
    """ModelConfig from the content of config.json. Raises ModelFileDamagedError."""
    values = DEFAULTS | values
    bias = keys.flag(values, "attention_bias")
    attention = llama.attention_from_hf(values, bias=bias, out_bias=bias, qk_norm="rms")
    return llama.decoder_from_hf(values, qwen2.windowed_layers(values, attention), "qwen3")


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The architecture's keys of config.json. Raises RequestError for what they can't say."""
    attention, mlp = llama.attention_and_mlp(config)
    values = llama.decoder_to_hf(config, attention, mlp, ARCHITECTURES[0])
    values |= {"attention_bias": attention.bias}
    values |= keys.windows_to_hf([spec.window for spec in config.attentions])
    return keys.expressed(values, config, config_from_hf)
