"""GPT-Neo (EleutherAI 2021): the open model with the shape of GPT-3 (Brown et al. 2020, 2005.14165).

GPT-3 is GPT-2 with "alternating dense and locally banded sparse attention patterns" (section 2.1). Here
every second layer, or any that `attention_types` names, sees only the last `window_size` tokens. Scores are
not divided by the root of the head's size, and queries, keys and values have no bias. Keys and names are
those of transformers' GPTNeoConfig.
"""

from __future__ import annotations

from typing import Any

from ayllu.model.config import AttentionSpec, LayerSpec, MLPSpec, ModelConfig
from ayllu.model.families import gpt2, keys
from ayllu.model.families.names import Entry, Piece, one

ARCHITECTURES = ("GPTNeoForCausalLM",)
IGNORED = (r"transformer\.h\.\d+\.attn\.attention\.(masked_)?bias", r"lm_head\.weight")  # as in gpt2.py

_DEFAULTS: dict[str, Any] = {
    "vocab_size": 50257,
    "max_position_embeddings": 2048,
    "hidden_size": 2048,
    "num_layers": 24,
    "num_heads": 16,
    "window_size": 256,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": True,
}


def config_from_hf(values: dict[str, Any]) -> ModelConfig:
    """ModelConfig from the content of config.json. Raises ModelFileDamagedError."""
    values = _DEFAULTS | values
    width, heads = keys.size(values, "hidden_size"), keys.size(values, "num_heads")
    mlp = MLPSpec(
        keys.optional_size(values, "intermediate_size") or 4 * width,
        keys.activation(values, "activation_function"),
        gated=False,
        bias=True,
    )
    layers = [
        LayerSpec(
            AttentionSpec(
                heads, heads, gpt2.head_size(width, heads), None, out_bias=True, scale=1.0, window=window
            ),
            mlp,
        )
        for window in _windows(values)
    ]
    return gpt2.gpt_decoder(values, layers, width, keys.size(values, "max_position_embeddings"), "gpt_neo")


def _windows(values: dict[str, Any]) -> list[int | None]:
    """The window of each layer: `attention_types` is a list of (kinds, how many times)."""
    count = keys.size(values, "num_layers", keys.MOST_LAYERS)
    kinds = {"global": None, "local": keys.size(values, "window_size")}
    given = values.get("attention_types")
    if given is None:
        given = [[["global", "local"], 12]]
    windows: list[int | None] = []
    for item in given if isinstance(given, list) else [given]:
        if not isinstance(item, list) or len(item) != 2 or not isinstance(item[0], list):
            raise keys.damaged("attention_types is not a list of [kinds, count]")
        times = keys.size({"attention_types": item[1]}, "attention_types", keys.MOST_LAYERS)
        pattern = [keys.choice({"attention_types": kind}, "attention_types", kinds) for kind in item[0]]
        if len(windows) + len(pattern) * times > count:
            raise keys.damaged(f"attention_types has more than num_layers = {count} layers")
        windows += pattern * times
    if len(windows) != count:
        raise keys.damaged(f"attention_types has {len(windows)} layers, num_layers is {count}")
    return windows


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
    """The content of config.json. Raises RequestError for what the keys can't say."""
    attentions = [keys.part(config, spec, AttentionSpec) for spec in config.attentions]
    mlp = keys.part(config, config.layers[0].mlp, MLPSpec)
    kinds = ["global" if spec.window is None else "local" for spec in attentions]
    pattern = kinds[:2] if kinds == kinds[:2] * (len(kinds) // 2) else kinds
    values = {
        "architectures": [ARCHITECTURES[0]],
        "model_type": "gpt_neo",
        "hidden_size": config.width,
        "num_layers": len(config.layers),
        "num_heads": attentions[0].heads,
        "intermediate_size": mlp.hidden,
        "attention_types": [[pattern, len(kinds) // len(pattern)]],
        "attention_layers": kinds,
        "window_size": next((spec.window for spec in attentions if spec.window), config.context),
        "max_position_embeddings": config.positions,
        "vocab_size": config.vocab_size,
        "activation_function": gpt2.activation_to_hf(mlp.activation),
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tied,
    }
    return keys.expressed(values, config, config_from_hf)


def entries(config: ModelConfig) -> list[Entry]:
    """All weights."""
    width, found = config.width, gpt2.outer_entries(config)
    for index, layer in enumerate(config.layers):
        assert isinstance(layer.mlp, MLPSpec)
        ours, theirs = f"blocks.{index}.", f"transformer.h.{index}."
        found += gpt2.norm_entries(width, ours + "attention_norm", theirs + "ln_1")
        found += gpt2.norm_entries(width, ours + "mlp_norm", theirs + "ln_2")
        joint = (Piece(f"{theirs}attn.attention.{kind}_proj.weight", (width, width)) for kind in "qkv")
        found.append(Entry(ours + "attention.qkv.weight", tuple(joint)))
        for name, other, inputs, outputs in (
            ("attention.out", "attn.attention.out_proj", width, width),
            ("mlp.up", "mlp.c_fc", width, layer.mlp.hidden),
            ("mlp.down", "mlp.c_proj", layer.mlp.hidden, width),
        ):
            found.append(one(f"{ours}{name}.weight", f"{theirs}{other}.weight", outputs, inputs))
            found.append(one(f"{ours}{name}.bias", f"{theirs}{other}.bias", outputs))
    return found
