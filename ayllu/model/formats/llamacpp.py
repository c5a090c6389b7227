"""What llama.cpp calls things: its architectures, their metadata keys and tensor names -> Hugging Face's.

GGUF fixes how values are written, llama.cpp what they mean (its gguf.md lists the keys). Llama, Mistral and
Mixtral are all its architecture `llama`, whose rotary pairs are neighbours (2i, 2i + 1), so that the rows of
queries and keys are in another order than Hugging Face's; `qwen2`, `qwen3` and `qwen3moe` keep that order.
The experts of a layer are one tensor. Llama 3's stretch of positions is a tensor of divisors, too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ayllu.errors import ModelFileDamagedError
from ayllu.gguf import decimal
from ayllu.model.families.keys import MOST_EXPERTS
from ayllu.model.families.names import EMBEDDING, HEAD, NORM
from ayllu.model.rope import yarn_mscale

DIVISORS = "rope_freqs.weight"  # of the rotary frequencies
_OUTER = {"token_embd.weight": EMBEDDING, "output_norm.weight": NORM, "output.weight": HEAD}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_MIXTRAL = ("block_sparse_moe", {"gate": "w1", "up": "w3", "down": "w2"})
_QWEN = ("mlp", {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"})
_NAME = re.compile(r"blk\.(\d+)\.(.+)\.(weight|bias)")
_EXPERTS = re.compile(r"ffn_(gate|up|down)(?:_exps|\.(\d+))")
# Our family -> the architecture that computes it.
ARCHITECTURE_OF = {
    "llama": "llama", "mistral": "llama", "mixtral": "llama",
    "qwen2": "qwen2", "qwen3": "qwen3", "qwen3_moe": "qwen3moe",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a Hugging Face tensor lies: rows of a tensor of the file, of one expert, and the number of heads
    whose rows are in the order of neighbours (0: the order is the same)."""

    stored: str
    shape: tuple[int, ...]
    expert: int = 0
    heads: int = 0


def places(
    architecture: str, shapes: Mapping[str, tuple[int, ...]], values: Mapping[str, Any]
) -> dict[str, Place]:
    """Hugging Face name -> place, for every tensor but the divisors; names that llama.cpp's architecture
    doesn't have stay as they are."""
    heads = {"attn_q": values["num_attention_heads"], "attn_k": values["num_key_value_heads"]}
    out: dict[str, Place] = {}
    for name, shape in shapes.items():
        match = _NAME.fullmatch(name)
        if name == DIVISORS:
            continue
        if match is None:
            out[_OUTER.get(name, name)] = Place(name, shape)
            continue
        layer, part, suffix = f"model.layers.{match[1]}.", match[2], match[3]
        moe, matrices = _MIXTRAL if architecture == "llama" else _QWEN
        expert = _EXPERTS.fullmatch(part)
        if part == "ffn_gate_inp":
            out[f"{layer}{moe}.gate.{suffix}"] = Place(name, shape)
        elif expert and expert[2]:  # one tensor an expert, as files of early 2024 have it
            out[f"{layer}{moe}.experts.{int(expert[2])}.{matrices[expert[1]]}.{suffix}"] = Place(name, shape)
        elif expert and len(shape) == 3:
            if shape[0] > MOST_EXPERTS:  # each becomes an entry of its own, whatever its size
                raise damaged(f"{name} has {shape[0]:,} experts")
            for index in range(shape[0]):
                theirs = f"{layer}{moe}.experts.{index}.{matrices[expert[1]]}.{suffix}"
                out[theirs] = Place(name, shape[1:], expert=index)
        else:
            turned = heads.get(part, 0) if architecture == "llama" else 0
            if turned and shape[0] % (2 * turned):
                raise damaged(f"{name} has {shape[0]} rows, which {turned} heads can't share")
            theirs = f"{layer}{_LAYER[part]}.{suffix}" if part in _LAYER else name
            out[theirs] = Place(name, shape, heads=turned)
    return out


class _Keys:
    """Typed reading of the architecture's metadata: what a stranger wrote, or ModelFileDamagedError."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        self.metadata, self.architecture = metadata, architecture

    def size(self, key: str, otherwise: int | None = None) -> int | None:
        """A whole number above 0, or `otherwise` where the key is missing."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        if value is None:
            return otherwise
        if type(value) is not int or not 0 < value < 2**32:
            raise damaged(f"{key} is {str(value)[:80]}, not one whole number above 0")
        return value

    def number(self, key: str, otherwise: float | None = None) -> float | None:
        """A number above 0."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        if value is None:
            return otherwise
        if type(value) not in (int, float) or not 0 < value < 1e30:
            raise damaged(f"{key} is {str(value)[:80]}, not a number above 0")
        return decimal(float(value))


def values_of(
    metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], divisors: np.ndarray | None
) -> dict[str, Any]:
    """The content of config.json from a header. Raises ModelFileDamagedError.

    `divisors`: the tensor of that name, where there is one. Whether the values fit together is for the
    family to say.
    """
    name = metadata.get("general.architecture")
    known = sorted(set(ARCHITECTURE_OF.values()))
    if not isinstance(name, str) or name not in known:
        raise damaged(
            f"its architecture is {str(name)[:80]!r}; known are {', '.join(known)}",
            fix="take the model's Hugging Face folder instead",
        )
    keys = _Keys(metadata, name)
    if len(embedding := shapes.get("token_embd.weight", ())) != 2:
        raise damaged("it has no token embedding")
    heads, width = keys.size("attention.head_count"), keys.size("embedding_length")
    if heads is None or width is None:
        raise damaged("it doesn't say how many heads or channels it has")
    head_dim = keys.size("attention.key_length", width // heads)
    assert head_dim is not None
    if keys.size("attention.value_length", head_dim) != head_dim:
        raise damaged("its keys and values have different sizes")
    if (turning := keys.size("rope.dimension_count", head_dim)) != head_dim:
        raise damaged(f"only {turning} of {head_dim} channels have rotary positions")
    values: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": keys.size("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.size("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "intermediate_size": keys.size("feed_forward_length", keys.size("expert_feed_forward_length")),
        "hidden_act": "silu",
        "vocab_size": embedding[0],
        "max_position_embeddings": keys.size("context_length"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.number("rope.freq_base", 10_000.0),
        "rope_scaling": _scaling_of(keys, divisors, head_dim),
        "tie_word_embeddings": "output.weight" not in shapes,
        **_family_values(name, keys, shapes),
    }
    for key, theirs in {"bos": "bos", "eos": "eos", "pad": "padding"}.items():
        token = metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        if type(token) is int and 0 <= token < embedding[0]:
            values[f"{key}_token_id"] = token
    return values


def _family_values(name: str, keys: _Keys, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """What the family's config has besides the sizes."""
    bias = {"attention_bias": "blk.0.attn_q.bias" in shapes}
    experts = keys.metadata.get("llama.expert_count", 0)
    if name == "llama" and not (type(experts) is int and experts == 0):
        return {
            "architectures": ["MixtralForCausalLM"],
            "model_type": "mixtral",
            "num_local_experts": keys.size("expert_count"),
            "num_experts_per_tok": keys.size("expert_used_count"),
            "sliding_window": None,
        } | bias
    if name == "llama":
        bias |= {"mlp_bias": "blk.0.ffn_gate.bias" in shapes}
        return {"architectures": ["LlamaForCausalLM"], "model_type": "llama"} | bias
    if name == "qwen3moe":
        return {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "num_experts": keys.size("expert_count"),
            "num_experts_per_tok": keys.size("expert_used_count"),
            "moe_intermediate_size": keys.size("expert_feed_forward_length"),
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "norm_topk_prob": True,
            "use_sliding_window": False,
        } | bias
    family = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}[name]
    said = {"architectures": [family], "model_type": name, "use_sliding_window": False}
    return said if name == "qwen2" else said | bias


def _scaling_of(keys: _Keys, divisors: np.ndarray | None, head_dim: int) -> dict[str, Any] | None:
    """`rope_scaling` of config.json."""
    kind = keys.metadata.get(f"{keys.architecture}.rope.scaling.type", "none")
    if not isinstance(kind, str):
        raise damaged("rope.scaling.type is not text")
    # Before the two keys of today there was one for linear stretching.
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0))
    assert factor is not None
    if divisors is not None:
        if kind != "none" or factor != 1.0 or len(divisors) != head_dim // 2:
            raise damaged("its rotary positions are stretched in two ways, or not for every channel")
        return _divided(divisors.astype(np.float64), keys.number("rope.freq_base") or 10_000.0, head_dim)
    if kind == "yarn":
        original = keys.size("rope.scaling.original_context_length", keys.size("context_length"))
        said = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
        for key in ("beta_fast", "beta_slow"):
            if (beta := keys.number(f"rope.scaling.yarn_{key}")) is not None:
                said[key] = beta
        extra = keys.number("rope.scaling.attn_factor")
        return said if extra is None else said | {"attention_factor": extra * yarn_mscale(factor, 1.0)}
    if kind not in ("none", "linear"):
        raise damaged(
            f"its rotary positions are stretched by {str(kind)[:80]!r}, which is not read from GGUF"
        )
    return {"rope_type": "linear", "factor": factor} if factor != 1.0 else None


def _divided(divisors: np.ndarray, theta: float, head_dim: int) -> dict[str, Any]:
    """The kind of stretch that a tensor of divisors came from: llama3 where one fits, else longrope.

    1/divisor = blend + (1 - blend)/factor, where blend is linear in the turns that a channel makes within
    the original context, cut off at 0 and 1. Only two of its three parameters can be told apart, so that
    low_freq_factor is taken to be 1, as in every published model.
    """
    if not (np.isfinite(divisors).all() and (divisors > 0).all()):
        raise damaged("its rotary divisors are not numbers above 0")
    factor = round(float(divisors.max()), 4)
    turns = theta ** (-np.arange(head_dim // 2) * 2 / head_dim) / (2 * math.pi)  # of a channel, a token
    candidates = [(8192, 4.0)]  # Llama 3.1's
    if factor > 1.0:
        blend = (1 / divisors - 1 / factor) / (1 - 1 / factor)
        between = np.flatnonzero((blend > 1e-4) & (blend < 1 - 1e-4))
        if len(between):
            first, last = between[0], between[-1]
            candidates.append((round((3 * blend[first] + 1) / turns[first]), 4.0))
            if turns[first] > turns[last]:
                slope = (blend[first] - blend[last]) / (turns[first] - turns[last])
                start = blend[first] - slope * turns[first]
                if start < 0 < slope:
                    high = round(float(1 - 1 / start), 3)
                    candidates.append((round(slope * (high - 1)), high))
    for original, high in candidates:
        expected = np.clip((original * turns - 1) / (high - 1), 0, 1)
        if (
            high > 1
            and original > 0
            and np.allclose(1 / (expected + (1 - expected) / factor), divisors, rtol=1e-4)
        ):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    listed = [decimal(float(number)) for number in divisors]
    same = {"short_factor": listed, "long_factor": listed, "factor": 1.0, "attention_factor": 1.0}
    return {"rope_type": "longrope", **same}


def damaged(why: str, fix: str = "") -> ModelFileDamagedError:
    """The error for a header that can't be made a model."""
    return ModelFileDamagedError("the GGUF file holds a model that can't be read", why=why, fix=fix)
