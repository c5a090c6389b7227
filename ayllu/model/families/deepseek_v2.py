"""DeepSeek-V2 and V2-Lite (2405.04434): latent attention, fine-grained experts beside shared ones.

Config keys and weight names are those of transformers' DeepseekV2Config. Rotary channels are pairs of
neighbours. The weights of the chosen experts are those of the softmax over all experts, scaled but never
normalised: the published code and transformers disagree about what `norm_topk_prob` true would mean, no
published model has it, and it is refused.
"""

from __future__ import annotations

from typing import Any

from ayllu.model.config import ModelConfig, MoESpec
from ayllu.model.families import deepseek, keys

ARCHITECTURES = ("DeepseekV2ForCausalLM",)
IGNORED = deepseek.IGNORED
entries = deepseek.entries

_DEFAULTS: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 102400,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "first_k_dense_replace": 0,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "moe_intermediate_size": 1407,
    "routed_scaling_factor": 1.0,
    "topk_method": "greedy",
}
# What the architecture could also say and the decoder doesn't do.
_FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "mlp_bias": False,
    "norm_topk_prob": False,
    "scoring_func": "softmax",
    "moe_layer_freq": 1,
}


def config_from_hf(values: dict[str, Any]) -> ModelConfig:
    """ModelConfig from the content of config.json. Raises ModelFileDamagedError."""
    deepseek.refuse_quantised(values)
    keys.fixed(values, _FIXED)
    values = _DEFAULTS | values
    return deepseek.decoder(values, deepseek.latent(values, interleaved=True), _experts, "deepseek_v2")


def _experts(values: dict[str, Any]) -> MoESpec:
    grouped = keys.choice(values, "topk_method", {"greedy": False, "group_limited_greedy": True})
    hidden = keys.size(values, "moe_intermediate_size")
    return deepseek.grouping(
        MoESpec(
            experts=keys.size(values, "n_routed_experts", keys.MOST_EXPERTS),
            active=keys.size(values, "num_experts_per_tok"),
            hidden=hidden,
            shared_hidden=hidden * (keys.optional_size(values, "n_shared_experts") or 0),
            groups=keys.size(values, "n_group") if grouped else 1,
            active_groups=keys.size(values, "topk_group") if grouped else 1,
            normalise=False,
            scale=keys.positive(values, "routed_scaling_factor"),
        )
    )


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The content of config.json. Raises RequestError for what the keys can't say."""
    values = deepseek.decoder_to_hf(config) | {
        "architectures": [ARCHITECTURES[0]],
        "model_type": "deepseek_v2",
    }
    if (experts := deepseek.experts_of(config)) is not None:
        values["topk_method"] = "group_limited_greedy" if experts.groups > 1 else "greedy"
        values["scoring_func"] = "softmax"
    return keys.expressed(values, config, config_from_hf)
