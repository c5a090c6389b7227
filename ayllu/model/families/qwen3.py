"""Qwen3 (dense): RMSNorm, grouped-query attention with query-key norm, RoPE, SwiGLU.

Our own models use this shape, so that transformers, vLLM and llama.cpp load them without our code.
The config's keys are those of transformers' Qwen3Config.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ayllu.errors import ModelFileDamagedError
from ayllu.model.config import LayerSpec, ModelConfig

ARCHITECTURE = "Qwen3ForCausalLM"


def config_from_hf(values: dict[str, Any]) -> ModelConfig:
    """ModelConfig from the content of config.json. Raises ModelFileDamagedError."""
    try:
        spec = LayerSpec(
            heads=values["num_attention_heads"],
            kv_heads=values["num_key_value_heads"],
            head_dim=values["head_dim"],
            hidden=values["intermediate_size"],
        )
        theta = values.get("rope_theta") or values["rope_parameters"]["rope_theta"]
        config = ModelConfig(
            width=values["hidden_size"],
            vocab_size=values["vocab_size"],
            layers=(spec,) * values["num_hidden_layers"],
            context=values["max_position_embeddings"],
            rope_theta=float(theta),
            norm_eps=float(values["rms_norm_eps"]),
            tied=bool(values["tie_word_embeddings"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileDamagedError("config.json lacks a value or has a wrong one", why=repr(error)) from error
    sizes = (spec.heads, spec.kv_heads, spec.head_dim, spec.hidden, config.width, config.vocab_size, config.context)
    if not all(isinstance(n, int) and 0 < n < 2**24 for n in sizes) or not config.layers:
        raise ModelFileDamagedError("config.json has an impossible size", why=f"{sizes}")
    return config


def config_to_hf(config: ModelConfig, *, bos: int, eos: int, pad: int) -> dict[str, Any]:
    """The content of config.json."""
    spec = config.layers[0]
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "qwen3",
        "hidden_size": config.width,
        "num_hidden_layers": len(config.layers),
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_dim,
        "intermediate_size": spec.hidden,
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "rms_norm_eps": config.norm_eps,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "tie_word_embeddings": config.tied,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": pad,
        "dtype": "float32",
    }


_LAYER = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.out.weight": "self_attn.o_proj.weight",
    "attention.q_norm.weight": "self_attn.q_norm.weight",
    "attention.k_norm.weight": "self_attn.k_norm.weight",
    "mlp_norm.weight": "post_attention_layernorm.weight",
    "mlp.down.weight": "mlp.down_proj.weight",
}
_JOINT = {
    "attention.qkv.weight": ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"),
    "mlp.gate_up.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
}
_TOP = {"embedding.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight", "head.weight": "lm_head.weight"}


def names(config: ModelConfig) -> dict[str, list[tuple[str, int]]]:
    """Our weight name -> the family's names with their rows, in order (joint projections have several)."""
    out = {"embedding.weight": [(_TOP["embedding.weight"], config.vocab_size)], "norm.weight": [(_TOP["norm.weight"], config.width)]}
    if not config.tied:
        out["head.weight"] = [(_TOP["head.weight"], config.vocab_size)]
    for index, spec in enumerate(config.layers):
        rows = {
            "attention_norm.weight": config.width,
            "attention.out.weight": config.width,
            "attention.q_norm.weight": spec.head_dim,
            "attention.k_norm.weight": spec.head_dim,
            "mlp_norm.weight": config.width,
            "mlp.down.weight": config.width,
        }
        for ours, theirs in _LAYER.items():
            out[f"blocks.{index}.{ours}"] = [(f"model.layers.{index}.{theirs}", rows[ours])]
        joint_rows = {
            "attention.qkv.weight": [n * spec.head_dim for n in (spec.heads, spec.kv_heads, spec.kv_heads)],
            "mlp.gate_up.weight": [spec.hidden, spec.hidden],
        }
        for ours, theirs_all in _JOINT.items():
            pairs = zip(theirs_all, joint_rows[ours], strict=True)
            out[f"blocks.{index}.{ours}"] = [(f"model.layers.{index}.{name}", n) for name, n in pairs]
    return out


def weights_to_hf(config: ModelConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our weights -> the family's, joint projections taken apart."""
    out = {}
    for ours, parts in names(config).items():
        pieces = state[ours].detach().split([rows for _, rows in parts])
        out.update({name: piece.contiguous() for (name, _), piece in zip(parts, pieces, strict=True)})
    return out


def weights_from_hf(config: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The family's weights -> ours. Raises ModelFileDamagedError for a missing name."""
    out = {}
    for ours, parts in names(config).items():
        missing = [name for name, _ in parts if name not in tensors]
        if missing:
            raise ModelFileDamagedError(f"the weights lack {missing[0]}", fix="copy the whole model folder again")
        pieces = [tensors[name] for name, _ in parts]
        out[ours] = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    return out
