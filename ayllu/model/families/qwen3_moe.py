"""Qwen3 with experts (30B-A3B, 235B-A22B): Qwen3's attention, a softmax router over many small experts.

Yang et al. 2025 (2505.09388). The keys are those of transformers' Qwen3MoeConfig. Every
`decoder_sparse_step`-th layer has experts, but for those in `mlp_only_layers`. A sliding window is every
layer's.
"""

from __future__ import annotations

from typing import Any

from ayllu.model.config import AttentionSpec, LayerSpec, MLPSpec, ModelConfig, MoESpec
from ayllu.model.families import keys, llama
from ayllu.model.families.names import llama_entries

ARCHITECTURES = ("Qwen3MoeForCausalLM",)
IGNORED = llama.IGNORED
DEFAULTS: dict[str, Any] = {
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "decoder_sparse_step": 1,
    "moe_intermediate_size": 768,
    "num_experts_per_tok": 8,
    "norm_topk_prob": False,
}
entries = llama_entries


def config_from_hf(values: dict[str, Any]) -> ModelConfig:
    """ModelConfig from the content of config.json. Raises ModelFileDamagedError."""
    # Later releases of transformers 5 write num_local_experts for what was num_experts.
    experts = {"num_experts": values.get("num_local_experts", 128)}
    values = DEFAULTS | experts | values
    bias = keys.flag(values, "attention_bias")
    window = keys.optional_size(values, "sliding_window") if keys.flag(values, "use_sliding_window") else None
    attention = llama.attention_from_hf(values, bias=bias, out_bias=bias, qk_norm="rms", window=window)
    sparse = _sparse_layers(values)
    dense = LayerSpec(attention, MLPSpec(keys.size(values, "intermediate_size"), keys.activation(values)))
    layers = tuple(_with_experts(values, attention) if chosen else dense for chosen in sparse)
    return llama.decoder_from_hf(values, layers, "qwen3_moe")


def _sparse_layers(values: dict[str, Any]) -> list[bool]:
    """Which layers have experts."""
    count = keys.size(values, "num_hidden_layers", keys.MOST_LAYERS)
    step = keys.size(values, "decoder_sparse_step")
    dense = values.get("mlp_only_layers") or []
    if not isinstance(dense, list) or any(type(index) is not int for index in dense):
        raise keys.damaged("mlp_only_layers is not a list of whole numbers")
    any_experts = values["num_experts"] != 0
    return [any_experts and (index + 1) % step == 0 and index not in dense for index in range(count)]


def _with_experts(values: dict[str, Any], attention: AttentionSpec) -> LayerSpec:
    moe = MoESpec(
        experts=keys.size(values, "num_experts", keys.MOST_EXPERTS),
        active=keys.size(values, "num_experts_per_tok", keys.MOST_EXPERTS),
        hidden=keys.size(values, "moe_intermediate_size"),
        activation=keys.activation(values),
        normalise=keys.flag(values, "norm_topk_prob"),
    )
    return LayerSpec(attention, moe)


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The architecture's keys of config.json. Raises RequestError for what they can't say."""
    mlps = [spec.mlp for spec in config.layers]
    attention = keys.part(config, config.layers[0].attention, AttentionSpec)
    # Without layers of one kind its sizes mean nothing; a dense layer as wide as the chosen experts is
    # what the published models write then.
    moe = next((mlp for mlp in mlps if isinstance(mlp, MoESpec)), MoESpec(1, 1, 1))
    wide = MLPSpec(moe.active * moe.hidden, moe.activation)
    dense = next((mlp for mlp in mlps if isinstance(mlp, MLPSpec)), wide)
    values = llama.decoder_to_hf(config, attention, dense, ARCHITECTURES[0])
    values |= {
        "attention_bias": attention.bias,
        "use_sliding_window": attention.window is not None,
        "sliding_window": attention.window,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [index for index, mlp in enumerate(mlps) if isinstance(mlp, MLPSpec)],
        "moe_intermediate_size": moe.hidden,
        "num_experts": moe.experts,
        "num_experts_per_tok": moe.active,
        "norm_topk_prob": moe.normalise,
        "output_router_logits": False,
        "router_aux_loss_coef": 0.001,
    }
    return keys.expressed(values, config, config_from_hf)
