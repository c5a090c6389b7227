"""Llama 4 (Scout, Maverick; Meta 2025), its text part.

Most layers have rotary positions and see only their own chunk of the text; every fourth has no positions,
sees everything and turns its queries up as the text grows. Queries and keys of the rotary layers may be
normed after the rotation, without weights. Experts stand in every layer (Scout) or every second
(Maverick), one of them for a token besides the shared one, with the router's weight on the input.

Keys and names are those of transformers' Llama4TextConfig. The published folders wrap it: they call
themselves Llama4ForConditionalGeneration, hold the text part in `text_config` and under `language_model.`,
and besides it eyes and a projector, which are left out. We write the text model alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ayllu.model.config import AttentionSpec, LayerSpec, MLPSpec, ModelConfig, MoESpec, RopeSpec, Temperature
from ayllu.model.families import keys, llama, names
from ayllu.model.families.deepseek import experts_of, refuse_quantised
from ayllu.model.families.names import Entry, Piece, one

ARCHITECTURES = ("Llama4ForCausalLM", "Llama4ForConditionalGeneration")
IGNORED = (r"vision_model\..*", r"multi_modal_projector\..*", r".*rotary_emb\.inv_freq")
SPELLINGS = ((r"language_model\.(.*)", r"\1"),)

_DEFAULTS: dict[str, Any] = {
    "vocab_size": 202048,
    "hidden_size": 5120,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "num_experts_per_tok": 1,
    "num_local_experts": 16,
    "interleave_moe_layer_step": 1,
    "use_qk_norm": True,
    "rope_theta": 500000.0,
    "no_rope_layer_interval": 4,
    "attention_chunk_size": 8192,
    "attn_temperature_tuning": True,
    "floor_scale": 8192,
    "attn_scale": 0.1,
    "attention_bias": False,
}


def config_from_hf(values: dict[str, Any]) -> ModelConfig:
    """ModelConfig from the content of config.json. Raises ModelFileDamagedError."""
    refuse_quantised(values)
    if "text_config" in values:
        values = values["text_config"]
        if not isinstance(values, dict):
            raise keys.damaged("text_config is not a set of values")
        refuse_quantised(values)
    values = _DEFAULTS | values
    count = keys.size(values, "num_hidden_layers", keys.MOST_LAYERS)
    rotary = _rotary_layers(values, count)
    chunks = _chunks(values, rotary)
    with_experts = _expert_layers(values, count)
    layers = [
        LayerSpec(_attention(values, turns, chunk), _experts(values) if sparse else _dense(values))
        for turns, chunk, sparse in zip(rotary, chunks, with_experts, strict=True)
    ]
    return llama.decoder_from_hf(values, tuple(layers), "llama4")


def _rotary_layers(values: dict[str, Any], count: int) -> list[bool]:
    """Despite its name, `no_rope_layers` has a 1 where a layer has rotary positions. Empty: the default."""
    given = values.get("no_rope_layers")
    if not given:
        interval = keys.size(values, "no_rope_layer_interval")
        return [(index + 1) % interval != 0 for index in range(count)]
    if not isinstance(given, list) or len(given) < count or any(n not in (0, 1) for n in given):
        raise keys.damaged(f"no_rope_layers is not a list of {count} ones and zeros")
    return [n == 1 for n in given[:count]]


def _chunks(values: dict[str, Any], rotary: list[bool]) -> list[int | None]:
    words = values.get("layer_types")
    if words is None:
        words = ["chunked_attention" if turns else "full_attention" for turns in rotary]
    if not isinstance(words, list) or len(words) != len(rotary):
        raise keys.damaged(f"layer_types is not a list of {len(rotary)} words")
    chunk = keys.size(values, "attention_chunk_size") if "chunked_attention" in words else None
    known = {"chunked_attention": chunk, "full_attention": None}
    return [keys.choice({"layer_types": word}, "layer_types", known) for word in words]


def _expert_layers(values: dict[str, Any], count: int) -> list[bool]:
    given = values.get("moe_layers")
    if given is None:
        step = keys.size(values, "interleave_moe_layer_step")
        return [(index + 1) % step == 0 for index in range(count)]
    if not isinstance(given, list) or any(type(n) is not int for n in given):
        raise keys.damaged("moe_layers is not a list of whole numbers")
    return [index in given for index in range(count)]


def _attention(values: dict[str, Any], rotary: bool, chunk: int | None) -> AttentionSpec:
    heads, kv_heads, head_dim = keys.heads(values)
    bias = keys.flag(values, "attention_bias")
    rope = keys.rope(values, head_dim, interleaved=True)
    if rope.dim != head_dim:
        raise keys.damaged(f"only {rope.dim} of {head_dim} channels have rotary positions")
    # Early copies of the published configs have a number here.
    tuned = values["attn_temperature_tuning"] if type(values["attn_temperature_tuning"]) is not int else True
    temperature = None
    if keys.flag({"attn_temperature_tuning": tuned}, "attn_temperature_tuning") and not rotary:
        temperature = Temperature(keys.positive(values, "floor_scale"), keys.positive(values, "attn_scale"))
    return AttentionSpec(
        heads,
        kv_heads,
        head_dim,
        rope if rotary else None,
        bias=bias,
        out_bias=bias,
        qk_norm="l2" if rotary and keys.flag(values, "use_qk_norm") else "",
        chunk=chunk,
        temperature=temperature,
    )


def _experts(values: dict[str, Any]) -> MoESpec:
    hidden = keys.size(values, "intermediate_size")
    return MoESpec(
        experts=keys.size(values, "num_local_experts", keys.MOST_EXPERTS),
        active=keys.size(values, "num_experts_per_tok"),
        hidden=hidden,
        shared_hidden=hidden,
        activation=keys.activation(values),
        router="sigmoid",
        normalise=False,
        weigh_input=True,
    )


def _dense(values: dict[str, Any]) -> MLPSpec:
    return MLPSpec(keys.size(values, "intermediate_size_mlp"), keys.activation(values))


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The content of config.json. Raises RequestError for what the keys can't say."""
    attentions = [keys.part(config, spec, AttentionSpec) for spec in config.attentions]
    dense = next((layer.mlp for layer in config.layers if isinstance(layer.mlp, MLPSpec)), None)
    experts = experts_of(config) or MoESpec(1, 1, 1)
    mlp = dense or MLPSpec(experts.hidden, experts.activation)
    # Without a rotary layer the rotation's values mean nothing; the same for the other kinds of layers.
    rope = next((a.rope for a in attentions if a.rope), RopeSpec(attentions[0].head_dim, interleaved=True))
    first = attentions[0]
    temperature = next((a.temperature for a in attentions if a.temperature), None)
    values = llama.decoder_to_hf(config, replace(first, rope=rope), mlp, ARCHITECTURES[0])
    values |= {
        "model_type": "llama4_text",
        "intermediate_size": experts.hidden,
        "intermediate_size_mlp": mlp.hidden,
        "attention_bias": first.bias,
        "num_local_experts": experts.experts,
        "num_experts_per_tok": experts.active,
        "moe_layers": [i for i, layer in enumerate(config.layers) if isinstance(layer.mlp, MoESpec)],
        "no_rope_layers": [int(a.rope is not None) for a in attentions],
        "layer_types": ["full_attention" if a.chunk is None else "chunked_attention" for a in attentions],
        "attention_chunk_size": next((a.chunk for a in attentions if a.chunk), None),
        "use_qk_norm": any(a.qk_norm for a in attentions),
        "attn_temperature_tuning": temperature is not None,
    }
    if temperature is not None:
        floor = int(temperature.floor) if temperature.floor.is_integer() else temperature.floor
        values |= {"floor_scale": floor, "attn_scale": temperature.scale}
    return keys.expressed(values, config, config_from_hf)


def entries(config: ModelConfig) -> list[Entry]:
    """All weights. Experts are stored together, each matrix transposed."""
    width, found = config.width, names.outer_entries(config)
    for index, layer in enumerate(config.layers):
        assert isinstance(layer.attention, AttentionSpec)
        ours, theirs = f"blocks.{index}.", f"model.layers.{index}."
        found += names.norm_entries(config, ours, theirs)
        found += names.attention_entries(config, layer.attention, ours, theirs)
        ours, theirs, spec = ours + "mlp.", theirs + "feed_forward.", layer.mlp
        if isinstance(spec, MLPSpec):
            found += names.dense_entries(width, spec, ours, theirs)
            continue
        stacked = {"gate_up": (width, 2 * spec.hidden), "down": (spec.hidden, width)}
        found.append(one(ours + "router.weight", theirs + "router.weight", spec.experts, width))
        for name, shape in stacked.items():
            piece = Piece(f"{theirs}experts.{name}_proj", (spec.experts, *shape), transposed=True)
            found.append(Entry(ours + name, (piece,)))
        shared = MLPSpec(spec.shared_hidden, spec.activation)
        found += names.dense_entries(width, shared, ours + "shared.", theirs + "shared_expert.")
    return found
