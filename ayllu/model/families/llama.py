"""Llama 1, 2, 3 and 3.1 to 3.3: RMSNorm, RoPE, SwiGLU; from Llama 2 70B on grouped-query attention.

Touvron et al. 2023 (2302.13971, 2307.09288), Grattafiori et al. 2024 (2407.21783). The keys are those of
transformers' LlamaConfig. Many other models call themselves this architecture, so its biases and every
stretch of positions are read too. Llama 3.1's own stretch is the kind "llama3".
"""

from __future__ import annotations

from typing import Any

from ayllu.model.config import AttentionSpec, LayerSpec, MLPSpec, ModelConfig, RopeSpec
from ayllu.model.families import keys
from ayllu.model.families.names import llama_entries

ARCHITECTURES = ("LlamaForCausalLM", "LLaMAForCausalLM")
IGNORED = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)  # a table of older transformers
DEFAULTS: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
entries = llama_entries


def config_from_hf(values: dict[str, Any]) -> ModelConfig:
    """ModelConfig from the content of config.json. Raises ModelFileDamagedError."""
    values = DEFAULTS | values
    bias = keys.flag(values, "attention_bias")
    attention = attention_from_hf(values, bias=bias, out_bias=bias)
    mlp = MLPSpec(
        keys.size(values, "intermediate_size"),
        keys.activation(values),
        bias=keys.flag(values, "mlp_bias"),
    )
    layers = (LayerSpec(attention, mlp),) * keys.size(values, "num_hidden_layers", keys.MOST_LAYERS)
    return decoder_from_hf(values, layers, "llama")


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The architecture's keys of config.json. Raises RequestError for what they can't say."""
    attention, mlp = attention_and_mlp(config)
    values = decoder_to_hf(config, attention, mlp, ARCHITECTURES[0])
    values |= {"attention_bias": attention.bias, "mlp_bias": mlp.bias}
    return keys.expressed(values, config, config_from_hf)


# ---- what the families with Llama's keys share
def attention_from_hf(values: dict[str, Any], **more: Any) -> AttentionSpec:
    """Attention whose whole head is turned. `more`: fields of AttentionSpec."""
    heads, kv_heads, head_dim = keys.heads(values)
    rope = keys.rope(values, head_dim)
    if rope.dim != head_dim:
        raise keys.damaged(f"only {rope.dim} of {head_dim} channels have rotary positions")
    return AttentionSpec(heads, kv_heads, head_dim, rope, **more)


def decoder_from_hf(values: dict[str, Any], layers: tuple[LayerSpec, ...], family: str) -> ModelConfig:
    """The sizes round the layers."""
    return keys.checked(
        ModelConfig(
            width=keys.size(values, "hidden_size"),
            vocab_size=keys.size(values, "vocab_size"),
            layers=layers,
            context=keys.size(values, "max_position_embeddings"),
            norm_eps=keys.positive(values, "rms_norm_eps"),
            tied=keys.flag(values, "tie_word_embeddings"),
            family=family,
        )
    )


def attention_and_mlp(config: ModelConfig) -> tuple[AttentionSpec, MLPSpec]:
    """The first layer's parts, where they are of the kinds that these families have; else RequestError."""
    first = config.layers[0]
    return keys.part(config, first.attention, AttentionSpec), keys.part(config, first.mlp, MLPSpec)


def decoder_to_hf(
    config: ModelConfig, attention: AttentionSpec, mlp: MLPSpec, architecture: str
) -> dict[str, Any]:
    """The keys that every one of these families writes."""
    rope = keys.part(config, attention.rope, RopeSpec)
    return {
        "architectures": [architecture],
        "model_type": config.family,
        "hidden_size": config.width,
        "num_hidden_layers": len(config.layers),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "intermediate_size": mlp.hidden,
        "hidden_act": keys.activation_to_hf(mlp.activation),
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context,
        **keys.rope_to_hf(rope, attention.head_dim),
        "rms_norm_eps": config.norm_eps,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": config.tied,
        "initializer_range": 0.02,
        "use_cache": True,
    }
