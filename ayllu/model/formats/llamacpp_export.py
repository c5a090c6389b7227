"""A model in llama.cpp's words: metadata and tensors of the architecture that computes the same.

The other direction of llamacpp.py, and checked by it: what is written must read back as the same model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ayllu.errors import ModelFileDamagedError, RequestError
from ayllu.model.config import AttentionSpec, ModelConfig, MoESpec, with_attention
from ayllu.model.families import family_of
from ayllu.model.formats.llamacpp import ARCHITECTURE_OF, DIVISORS, decimal, values_of
from ayllu.model.rope import frequencies, yarn_mscale

# Our names in a block -> llama.cpp's, for tensors that are not joint.
_ALONE = {
    "attention_norm": "attn_norm",
    "attention.out": "attn_output",
    "attention.q_norm": "attn_q_norm",
    "attention.k_norm": "attn_k_norm",
    "mlp_norm": "ffn_norm",
    "mlp.router": "ffn_gate_inp",
    "mlp.down": "ffn_down",
}


def metadata_of(config: ModelConfig) -> dict[str, Any]:
    """The architecture's metadata for a model. Raises RequestError for what llama.cpp can't compute.

    A sliding window becomes the context: within it the model computes the same.
    """
    name = ARCHITECTURE_OF.get(config.family)
    attention, mlp = config.layers[0].attention, config.layers[0].mlp
    if name is None or not isinstance(attention, AttentionSpec) or attention.rope is None:
        raise _not_said(f"the family {config.family} has no architecture there that we write")
    values: dict[str, Any] = {
        "context_length": min([config.context, *(a.window for a in config.attentions if a.window)]),
        "embedding_length": config.width,
        "block_count": len(config.layers),
        "feed_forward_length": mlp.hidden,
        "attention.head_count": attention.heads,
        "attention.head_count_kv": attention.kv_heads,
        "attention.key_length": attention.head_dim,
        "attention.value_length": attention.head_dim,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.dimension_count": attention.rope.dim,
        "rope.freq_base": attention.rope.theta,
        "vocab_size": config.vocab_size,
    }
    scaling = attention.rope.scaling
    if scaling and scaling.kind in ("linear", "yarn"):
        values |= {"rope.scaling.type": scaling.kind, "rope.scaling.factor": scaling.factor}
    if scaling and scaling.kind == "yarn":
        values["rope.scaling.original_context_length"] = scaling.original_context
        values["rope.scaling.yarn_beta_fast"] = scaling.beta_fast
        values["rope.scaling.yarn_beta_slow"] = scaling.beta_slow
        if scaling.attention_factor is not None:
            usual = yarn_mscale(scaling.factor, 1.0)
            values["rope.scaling.attn_factor"] = scaling.attention_factor / usual
    if isinstance(mlp, MoESpec):
        values |= {"expert_count": mlp.experts, "expert_used_count": mlp.active}
        values |= {"expert_feed_forward_length": mlp.hidden} if name == "qwen3moe" else {}
    metadata = {"general.architecture": name} | {f"{name}.{key}": value for key, value in values.items()}
    _check_said(config, metadata)
    return metadata


def _check_said(config: ModelConfig, metadata: Mapping[str, Any]) -> None:
    """RequestError unless reading the metadata back gives the same model: the one check that llama.cpp has a
    word for everything that the config means."""
    divisors = divisors_of(config)
    try:
        values = values_of(metadata, _shapes(config), None if divisors is None else divisors.numpy())
        module = family_of(values["architectures"][0])
        assert module is not None
        read = module.config_from_hf(values)
    except ModelFileDamagedError as error:
        raise _not_said(error.why) from error
    if _essence(read, divisors) != _essence(config, divisors, metadata):
        raise _not_said("its metadata has no key for something that this model does")


def _essence(
    config: ModelConfig, divisors: Tensor | None, metadata: Mapping[str, Any] | None = None
) -> ModelConfig:
    """The config without what the file says another way or needs not say: family, context and windows (which
    become the context), divisors (a tensor), digits beyond float32."""
    context = config.context
    if metadata:
        context = metadata[f"{metadata['general.architecture']}.context_length"]
    layers = []
    for layer in config.layers:
        attention = layer.attention
        if isinstance(attention, AttentionSpec) and attention.rope is not None:
            rope, scaling = attention.rope, attention.rope.scaling
            if scaling is not None:
                short = {key: decimal(getattr(scaling, key)) for key in ("factor", "beta_fast", "beta_slow")}
                plain = scaling.attention_factor is None or math.isclose(
                    scaling.attention_factor, yarn_mscale(scaling.factor, 1.0), rel_tol=1e-6
                )
                factor = None if plain else round(float(scaling.attention_factor or 0), 5)
                scaling = replace(scaling, attention_factor=factor, **short)
            rope = replace(rope, theta=decimal(rope.theta), scaling=None if divisors is not None else scaling)
            layer = with_attention(layer, rope=rope, window=None)
        layers.append(layer)
    eps = decimal(config.norm_eps)
    return replace(config, family="", context=context, norm_eps=eps, layers=tuple(layers))


def divisors_of(config: ModelConfig) -> Tensor | None:
    """What rotary frequencies are divided by, float32 (dim/2), for the stretches that GGUF has as a tensor;
    None for others."""
    rope = config.layers[0].attention.rope
    scaling = rope.scaling if rope else None
    if rope is None or scaling is None:
        return None
    same = scaling.kind == "longrope" and scaling.short == scaling.long
    if scaling.kind != "llama3" and not same:
        return None
    stretched, factor = frequencies(rope, 0, torch.device("cpu"))
    if factor != 1.0:
        raise _not_said("it has an attention factor beside its stretched positions")
    return frequencies(replace(rope, scaling=None), 0, torch.device("cpu"))[0] / stretched


def _not_said(why: str) -> RequestError:
    return RequestError(
        "llama.cpp can't compute this model",
        why=why,
        fix="export it as a Hugging Face folder: --format hf",
    )


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Those of the tensors whose being there says something."""
    attention, mlp = config.layers[0].attention, config.layers[0].mlp
    out: dict[str, tuple[int, ...]] = {"token_embd.weight": (config.vocab_size, config.width)}
    if not config.tied:
        out["output.weight"] = out["token_embd.weight"]
    if isinstance(attention, AttentionSpec) and attention.bias:
        out["blk.0.attn_q.bias"] = (attention.heads * attention.head_dim,)
    if not isinstance(mlp, MoESpec) and mlp.bias:
        out["blk.0.ffn_gate.bias"] = (mlp.hidden,)
    return out


def tensors_of(config: ModelConfig, state: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, int]]:
    """llama.cpp's names -> our weights (views, no copies) and the heads whose rows become neighbours."""
    turned = ARCHITECTURE_OF[config.family] == "llama"
    out = {"token_embd.weight": (state["embedding.weight"], 0)}
    if (divisors := divisors_of(config)) is not None:
        out[DIVISORS] = (divisors, 0)
    for index, spec in enumerate(config.layers):
        ours, theirs, attention = f"blocks.{index}.", f"blk.{index}.", spec.attention
        assert isinstance(attention, AttentionSpec)
        counts = [attention.heads, attention.kv_heads, attention.kv_heads]
        for suffix in ("weight", "bias"):
            joint = state.get(f"{ours}attention.qkv.{suffix}")
            if joint is None:
                continue
            pieces = joint.split([count * attention.head_dim for count in counts])
            for part, piece, heads in zip("qkv", pieces, (*counts[:2], 0), strict=True):
                out[f"{theirs}attn_{part}.{suffix}"] = (piece, heads if turned else 0)
        for part, name in _ALONE.items():
            for suffix in ("weight", "bias"):
                if (tensor := state.get(f"{ours}{part}.{suffix}")) is not None:
                    out[f"{theirs}{name}.{suffix}"] = (tensor, 0)
        if isinstance(spec.mlp, MoESpec):
            gate, up = state[f"{ours}mlp.gate_up"].chunk(2, dim=1)
            experts = {"gate": gate, "up": up, "down": state[f"{ours}mlp.down"]}
            out |= {f"{theirs}ffn_{part}_exps.weight": (tensor, 0) for part, tensor in experts.items()}
            continue
        for suffix in ("weight", "bias"):
            if (joint := state.get(f"{ours}mlp.gate_up.{suffix}")) is not None:
                gate, up = joint.chunk(2)
                out |= {f"{theirs}ffn_gate.{suffix}": (gate, 0), f"{theirs}ffn_up.{suffix}": (up, 0)}
    out["output_norm.weight"] = (state["norm.weight"], 0)
    if not config.tied:
        out["output.weight"] = (state["head.weight"], 0)
    return out
