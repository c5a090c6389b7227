"""DeepSeek-V3 and R1 (2412.19437): V2's latent attention, a sigmoid router with a bias for the choice.

Config keys and weight names are those of transformers' DeepseekV3Config. A group of experts counts by its
two best; the weights of the chosen ones are normalised, then scaled. `rope_interleave` says how rotary
channels are paired.

The published files hold one layer more than the config counts (model.layers.61), which predicts the token
after next during training (section 2.2). The decoder doesn't need it: it is left out. They are also stored
in FP8 with a scale for each block of 128 x 128, which is refused: releases in bfloat16 exist.
"""

from __future__ import annotations

from typing import Any

from ayllu.model.config import ModelConfig, MoESpec
from ayllu.model.families import deepseek, keys

ARCHITECTURES = ("DeepseekV3ForCausalLM",)
IGNORED = (*deepseek.IGNORED, r"model\.layers\.61\..*")
entries = deepseek.entries

_DEFAULTS: dict[str, Any] = {
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "vocab_size": 129280,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "first_k_dense_replace": 3,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
    "n_group": 8,
    "topk_group": 4,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "rope_interleave": True,
}
# What the architecture could also say and the decoder doesn't do.
_FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "moe_layer_freq": 1,
}


def config_from_hf(values: dict[str, Any]) -> ModelConfig:
    """ModelConfig from the content of config.json. Raises ModelFileDamagedError."""
    deepseek.refuse_quantised(values)
    keys.fixed(values, _FIXED)
    values = _DEFAULTS | values
    attention = deepseek.latent(values, interleaved=keys.flag(values, "rope_interleave"))
    return deepseek.decoder(values, attention, _experts, "deepseek_v3")


def _experts(values: dict[str, Any]) -> MoESpec:
    hidden = keys.size(values, "moe_intermediate_size")
    return deepseek.grouping(
        MoESpec(
            experts=keys.size(values, "n_routed_experts", keys.MOST_EXPERTS),
            active=keys.size(values, "num_experts_per_tok"),
            hidden=hidden,
            shared_hidden=hidden * (keys.optional_size(values, "n_shared_experts") or 0),
            router="sigmoid",
            choice_bias=True,
            groups=keys.size(values, "n_group"),
            active_groups=keys.size(values, "topk_group"),
            group_score="top2",
            normalise=keys.flag(values, "norm_topk_prob"),
            scale=keys.positive(values, "routed_scaling_factor"),
        )
    )


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The content of config.json. Raises RequestError for what the keys can't say."""
    values = deepseek.decoder_to_hf(config) | {
        "architectures": [ARCHITECTURES[0]],
        "model_type": "deepseek_v3",
        "rope_interleave": config.layers[0].attention.rope.interleaved,  # type: ignore[union-attr]
        "num_nextn_predict_layers": 0,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    }
    return keys.expressed(values, config, config_from_hf)
