"""Qwen3 (dense): RMSNorm, grouped-query attention with query-key norm, RoPE, SwiGLU.

Our own models use this shape, so that transformers, vLLM and llama.cpp load them without our code.
The config's keys are those of transformers' Qwen3Config. Its releases before 5 (and vLLM, llama.cpp)
keep the rotary base as `rope_theta`, later ones as `rope_parameters`; we write the first, which all of
them read, and read both.

What this architecture could also say and the decoder doesn't do (other activations, biases, sliding
windows, stretched positions) is refused: a model that computes something else is worse than none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ayllu.errors import ModelFileDamagedError
from ayllu.model.config import LayerSpec, ModelConfig

ARCHITECTURE = "Qwen3ForCausalLM"

_MOST = 2**24  # no size is larger: neither a vocabulary nor a context
_MOST_LAYERS = 1024
_MOST_ELEMENTS = 2**36  # of one matrix or table
# Keys that must have this value where they are present.
_FIXED: dict[str, Any] = {"hidden_act": "silu", "attention_bias": False, "use_sliding_window": False}


def config_from_hf(values: dict[str, Any]) -> ModelConfig:
    """ModelConfig from the content of config.json. Raises ModelFileDamagedError."""
    for key, wanted in _FIXED.items():
        if values.get(key, wanted) != wanted:
            raise _damaged(f"{key} is {values[key]!r}, only {wanted!r} is known")
    spec = LayerSpec(
        heads=_size(values, "num_attention_heads"),
        kv_heads=_size(values, "num_key_value_heads"),
        head_dim=_size(values, "head_dim"),
        hidden=_size(values, "intermediate_size"),
    )
    layers = _size(values, "num_hidden_layers", _MOST_LAYERS)
    tied = values.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise _damaged(f"tie_word_embeddings is {tied!r}")
    config = ModelConfig(
        width=_size(values, "hidden_size"),
        vocab_size=_size(values, "vocab_size"),
        layers=(spec,) * layers,
        context=_size(values, "max_position_embeddings"),
        rope_theta=_rope_theta(values),
        norm_eps=_positive(values, "rms_norm_eps"),
        tied=tied,
    )
    if spec.heads % spec.kv_heads or spec.head_dim % 2:
        raise _damaged(f"{spec.heads} heads, {spec.kv_heads} key-value heads of {spec.head_dim} channels")
    joint = (spec.heads + 2 * spec.kv_heads) * spec.head_dim
    rows = max(config.vocab_size, joint, 2 * spec.hidden)
    if max(rows * config.width, config.context * spec.head_dim) > _MOST_ELEMENTS:
        raise _damaged("a matrix of these sizes fits no machine")
    return config


def _damaged(why: str) -> ModelFileDamagedError:
    return ModelFileDamagedError("config.json lacks a value or has a wrong one", why=why)


def _size(values: dict[str, Any], key: str, most: int = _MOST) -> int:
    value = values.get(key)
    if type(value) is not int or not 0 < value <= most:
        raise _damaged(f"{key} is {str(value)[:80]}, not a whole number from 1 to {most}")
    return value


def _positive(values: dict[str, Any], key: str) -> float:
    value = values.get(key)
    # Compared as it is: an integer of JSON may be too large for a float.
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e30
    if not isinstance(value, int | float) or not good:
        raise _damaged(f"{key} is {str(value)[:80]}, not a number above 0")
    return float(value)


def _rope_theta(values: dict[str, Any]) -> float:
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default")) if isinstance(rope, dict) else rope
    if kind != "default":
        raise _damaged(f"positions are stretched ({str(kind)[:80]}), which the decoder doesn't do")
    return _positive(values if "rope_theta" in values else rope, "rope_theta")


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
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def names(config: ModelConfig) -> dict[str, list[tuple[str, int]]]:
    """Our weight name -> the family's names with their rows, in order (joint projections have several)."""
    out = {
        "embedding.weight": [(EMBEDDING, config.vocab_size)],
        "norm.weight": [("model.norm.weight", config.width)],
    }
    if not config.tied:
        out["head.weight"] = [(HEAD, config.vocab_size)]
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


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The family's names -> their shapes."""
    out: dict[str, tuple[int, ...]] = {}
    for ours, parts in names(config).items():
        block = config.layers[int(ours.split(".")[1])] if ours.startswith("blocks.") else config.layers[0]
        columns = {
            "attention.out.weight": block.heads * block.head_dim,
            "mlp.down.weight": block.hidden,
        }.get(ours.split(".", 2)[-1], config.width)
        for name, rows in parts:
            out[name] = (rows,) if "norm" in ours else (rows, columns)
    return out


def weights_to_hf(config: ModelConfig, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our weights -> the family's, joint projections taken apart."""
    out = {}
    for ours, parts in names(config).items():
        pieces = state[ours].detach().split([rows for _, rows in parts])
        out.update({name: piece.contiguous() for (name, _), piece in zip(parts, pieces, strict=True)})
    return out


def weights_from_hf(config: ModelConfig, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The family's weights -> ours. All names of `names` must be there, with fitting shapes."""
    out = {}
    for ours, parts in names(config).items():
        pieces = [tensors[name] for name, _ in parts]
        out[ours] = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    return out
