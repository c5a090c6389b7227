"""What DeepSeek-V2 and V3 share: latent attention in every layer, dense layers first, experts in the rest.

Not a family itself. The norms, the embedding and the MLPs have LLaMA's names; the attention has its own.
With YaRN the scores are multiplied by the square of its temperature for `mscale_all_dim`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ayllu.errors import ModelFileDamagedError
from ayllu.model.config import LatentSpec, LayerSpec, MLPSpec, ModelConfig, MoESpec, RopeSpec
from ayllu.model.families import keys
from ayllu.model.families.names import Entry, mlp_entries, norm_entries, one, outer_entries
from ayllu.model.rope import yarn_mscale

IGNORED = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)


def refuse_quantised(values: Mapping[str, Any]) -> None:
    """Raises ModelFileDamagedError for weights that are stored in blocks of 8 bits or fewer."""
    said = values.get("quantization_config")
    if said:
        kind = said.get("quant_method") if isinstance(said, dict) else said
        raise ModelFileDamagedError(
            "the weights of this folder are quantised",
            why=f"config.json has a quantization_config ({keys.shown(kind)}): matrices and their scales",
            fix="use a release in bfloat16, or convert it first (for DeepSeek-V3: fp8_cast_bf16.py of its "
            "repository) and remove quantization_config",
        )


def latent(values: dict[str, Any], *, interleaved: bool) -> LatentSpec:
    """The attention of every layer."""
    heads = keys.size(values, "num_attention_heads")
    if (keys.optional_size(values, "num_key_value_heads") or heads) != heads:
        raise keys.damaged("num_key_value_heads is not num_attention_heads: latent attention has one number")
    nope, turned = keys.size(values, "qk_nope_head_dim"), keys.size(values, "qk_rope_head_dim")
    rope = keys.rope(values, turned, interleaved=interleaved)
    if rope.dim != turned:
        raise keys.damaged("partial_rotary_factor is not 1: qk_rope_head_dim says which channels turn")
    return LatentSpec(
        heads=heads,
        q_rank=keys.optional_size(values, "q_lora_rank"),
        kv_rank=keys.size(values, "kv_lora_rank"),
        nope_dim=nope,
        rope_dim=turned,
        v_dim=keys.size(values, "v_head_dim"),
        rope=rope,
        bias=keys.flag(values, "attention_bias"),
        scale=score_scale(nope, rope),
    )


def score_scale(nope: int, rope: RopeSpec) -> float | None:
    """LatentSpec.scale: None, or with YaRN's temperature where `mscale_all_dim` asks for it."""
    if rope.scaling is None or not rope.scaling.mscale_all_dim:
        return None
    return (nope + rope.dim) ** -0.5 * yarn_mscale(rope.scaling.factor, rope.scaling.mscale_all_dim) ** 2


def grouping(spec: MoESpec) -> MoESpec:
    """The same, when the groups can be formed and hold enough experts. Raises ModelFileDamagedError."""
    size = spec.experts // spec.groups
    enough = spec.active_groups <= spec.groups and spec.active <= spec.active_groups * size
    if spec.experts % spec.groups or not enough or (spec.group_score == "top2" and size < 2):
        raise keys.damaged(
            f"{spec.active} of {spec.experts} experts in {spec.active_groups} of {spec.groups} groups "
            "can't be chosen"
        )
    return spec


def decoder(
    values: dict[str, Any], attention: LatentSpec, experts: Callable[[dict[str, Any]], MoESpec], family: str
) -> ModelConfig:
    """The whole: the first layers dense, the others with `experts(values)`."""
    layers, dense = keys.size(values, "num_hidden_layers", keys.MOST_LAYERS), values["first_k_dense_replace"]
    if type(dense) is not int or not 0 <= dense <= keys.MOST:
        raise keys.damaged(f"first_k_dense_replace is {keys.shown(dense)}, not a whole number from 0 on")
    dense = min(dense, layers)
    first = LayerSpec(attention, MLPSpec(keys.size(values, "intermediate_size")))
    rest = [LayerSpec(attention, experts(values))] if dense < layers else []
    return keys.checked(
        ModelConfig(
            width=keys.size(values, "hidden_size"),
            vocab_size=keys.size(values, "vocab_size"),
            layers=(first,) * dense + tuple(rest) * (layers - dense),
            context=keys.size(values, "max_position_embeddings"),
            norm_eps=keys.positive(values, "rms_norm_eps"),
            tied=keys.flag(values, "tie_word_embeddings"),
            family=family,
        )
    )


def decoder_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The keys of config.json that both write."""
    attention = keys.part(config, config.layers[0].attention, LatentSpec)
    mlps = [layer.mlp for layer in config.layers]
    dense = [mlp for mlp in mlps if isinstance(mlp, MLPSpec)]
    experts = experts_of(config)
    values: dict[str, Any] = {
        "hidden_size": config.width,
        "num_hidden_layers": len(config.layers),
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.heads,
        "q_lora_rank": attention.q_rank,
        "kv_lora_rank": attention.kv_rank,
        "qk_nope_head_dim": attention.nope_dim,
        "qk_rope_head_dim": attention.rope_dim,
        "v_head_dim": attention.v_dim,
        "attention_bias": attention.bias,
        "hidden_act": "silu",
        "intermediate_size": dense[0].hidden if dense else 4 * config.width,
        "first_k_dense_replace": len(dense),
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
    } | keys.rope_to_hf(attention.rope, attention.rope_dim)
    if experts is not None:
        values |= {
            "n_routed_experts": experts.experts,
            "num_experts_per_tok": experts.active,
            "moe_intermediate_size": experts.hidden,
            "n_shared_experts": experts.shared_hidden // experts.hidden or None,
            "n_group": experts.groups,
            "topk_group": experts.active_groups,
            "norm_topk_prob": experts.normalise,
            "routed_scaling_factor": experts.scale,
            "moe_layer_freq": 1,
        }
    return values


def experts_of(config: ModelConfig) -> MoESpec | None:
    """The first layer's experts that has any."""
    return next((layer.mlp for layer in config.layers if isinstance(layer.mlp, MoESpec)), None)


def entries(config: ModelConfig) -> list[Entry]:
    """All weights."""
    found = outer_entries(config)
    for index, layer in enumerate(config.layers):
        ours, theirs = f"blocks.{index}.", f"model.layers.{index}."
        assert isinstance(layer.attention, LatentSpec)
        found += norm_entries(config, ours, theirs)
        found += _latent_entries(config.width, layer.attention, ours + "attention.", theirs + "self_attn.")
        found += mlp_entries(config, layer, ours + "mlp.", theirs + "mlp.")
    return found


def _latent_entries(width: int, spec: LatentSpec, ours: str, theirs: str) -> list[Entry]:
    queries, down = spec.heads * (spec.nope_dim + spec.rope_dim), spec.kv_rank + spec.rope_dim
    table = {
        "kv_down": ("kv_a_proj_with_mqa", (down, width)),
        "kv_norm": ("kv_a_layernorm", (spec.kv_rank,)),
        "kv_up": ("kv_b_proj", (spec.heads * (spec.nope_dim + spec.v_dim), spec.kv_rank)),
        "out": ("o_proj", (width, spec.out_channels)),
    }
    if spec.q_rank is None:
        table["q"] = ("q_proj", (queries, width))
    else:
        table["q_down"] = ("q_a_proj", (spec.q_rank, width))
        table["q_norm"] = ("q_a_layernorm", (spec.q_rank,))
        table["q_up"] = ("q_b_proj", (queries, spec.q_rank))
    found = [one(f"{ours}{name}.weight", f"{theirs}{other}.weight", *n) for name, (other, n) in table.items()]
    if spec.bias:
        biased = [name for name in ("q_down", "kv_down", "out") if name in table]
        found += [one(f"{ours}{n}.bias", f"{theirs}{table[n][0]}.bias", table[n][1][0]) for n in biased]
    return found
