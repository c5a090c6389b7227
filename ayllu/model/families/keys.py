"""Typed reading of config.json: what a stranger wrote becomes numbers that are safe to build with.

A value may be missing, of another type, NaN, negative or larger than any machine; each of them is a
ModelFileDamagedError that names the key. Families merge their defaults in first (`DEFAULTS | values`), so
that a missing key means what it means in transformers; the functions here read what is there then.

Rotary positions have had three spellings: `rope_theta` with `rope_scaling` ({"type": ...}, later
{"rope_type": ...}), and since transformers 5 one `rope_parameters` with all of it. All are read; we write
`rope_theta` and `rope_scaling`, which transformers 4 and 5, vLLM and llama.cpp's converter understand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ayllu.errors import ModelFileDamagedError, RequestError
from ayllu.model.config import AttentionSpec, LatentSpec, ModelConfig, MoESpec, RopeScaling, RopeSpec

T = TypeVar("T")
Values = dict[str, Any]

MOST = 2**24  # no size is larger: neither a vocabulary nor a context
MOST_LAYERS = 1024
MOST_EXPERTS = 4096  # in one layer
_MOST_EXPERTS = 2**17  # in all layers together (DeepSeek-V3 has 14,848)
_MOST_ELEMENTS = 2**36  # of one matrix or table
_LEAST = 1e-30  # of a number above 0
_MOST_FACTOR = 1e6  # of a stretch: the longest published is 64

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",  # the same formula with its constant written out
    "relu2": "relu2",
}
_TO_HF = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "relu2": "relu2"}


# ---- single values
def damaged(why: str) -> ModelFileDamagedError:
    """The error for a config that can't be built."""
    return ModelFileDamagedError("config.json lacks a value or has a wrong one", why=why)


def size(values: Values, key: str, most: int = MOST) -> int:
    """A whole number from 1 to `most`."""
    value = values.get(key)
    if type(value) is not int or not 0 < value <= most:
        raise damaged(f"{key} is {shown(value)}, not a whole number from 1 to {most}")
    return value


def optional_size(values: Values, key: str, most: int = MOST) -> int | None:
    """Like `size`; null or missing is None."""
    return None if values.get(key) is None else size(values, key, most)


def positive(values: Values, key: str, most: float = 1e30) -> float:
    """A number above 0, as a float that can be divided by."""
    value: Any = values.get(key)
    # Compared as it is: an integer of JSON may be too large for a float. NaN compares false.
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not _LEAST <= value <= most:
        raise damaged(f"{key} is {shown(value)}, not a number from {_LEAST:g} to {most:g}")
    return float(value)


def optional_positive(values: Values, key: str, most: float = 1e30) -> float | None:
    """Like `positive`; null or missing is None."""
    return None if values.get(key) is None else positive(values, key, most)


def flag(values: Values, key: str) -> bool:
    """true or false."""
    value = values.get(key)
    if not isinstance(value, bool):
        raise damaged(f"{key} is {shown(value)}, not true or false")
    return value


def choice(values: Values, key: str, options: Mapping[str, T]) -> T:
    """One of the words in `options` -> what it stands for."""
    value = values.get(key)
    if not isinstance(value, str) or value not in options:
        raise damaged(f"{key} is {shown(value)}, only {', '.join(options)} are known")
    return options[value]


def fixed(values: Values, wanted: Values) -> None:
    """Keys that say what the decoder doesn't do must have these values, where they are present."""
    for key, value in wanted.items():
        given = values.get(key, value)
        if type(given) is not type(value) or given != value:
            raise damaged(f"{key} is {shown(given)}, only {value!r} is known")


def numbers(values: Values, key: str, count: int) -> tuple[float, ...]:
    """A list of `count` positive numbers."""
    value = values.get(key)
    if not isinstance(value, list) or len(value) != count:
        raise damaged(f"{key} is not a list of {count} numbers")
    return tuple(positive({key: item}, key) for item in value)


def activation(values: Values, key: str = "hidden_act") -> str:
    """The decoder's name of an activation."""
    return choice(values, key, ACTIVATIONS)


def activation_to_hf(name: str) -> str:
    """transformers' name of one of the decoder's activations."""
    return _TO_HF[name]


def shown(value: object) -> str:
    """A value for an error message, short; containers and endless digits by their kind only."""
    if isinstance(value, str):
        return repr(value[:80])
    if value is None or isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**64):
        return repr(value)
    return f"a {'huge number' if isinstance(value, int) else type(value).__name__}"


# ---- attention
def heads(values: Values) -> tuple[int, int, int]:
    """(heads, key-value heads, channels of a head). Missing key-value heads: as many as heads (multi-head
    attention, before 2023); missing head_dim: the width divided among the heads."""
    count = size(values, "num_attention_heads")
    kv_heads = optional_size(values, "num_key_value_heads") or count
    head_dim = optional_size(values, "head_dim")
    if head_dim is None:
        width = size(values, "hidden_size")
        if width % count:
            raise damaged(f"hidden_size {width} is not a multiple of {count} heads, and head_dim is missing")
        head_dim = width // count
    return count, kv_heads, head_dim


def windows(values: Values, layers: int) -> list[int | None]:
    """The sliding window of each layer (Qwen2 and Qwen3): `layer_types` says which layers have one; where
    it is missing, those from `max_window_layers` on do."""
    window = optional_size(values, "sliding_window") if flag(values, "use_sliding_window") else None
    types = values.get("layer_types")
    if types is None:
        first = values.get("max_window_layers")
        if window is None:
            return [None] * layers
        if type(first) is not int or not 0 <= first <= MOST:
            raise damaged(f"max_window_layers is {shown(first)}, not a whole number from 0 on")
        return [window if index >= first else None for index in range(layers)]
    if not isinstance(types, list) or len(types) != layers:
        raise damaged(f"layer_types is not a list of {layers} words")
    known = {"full_attention": None, "sliding_attention": window}
    if window is None and "sliding_attention" in types:
        raise damaged("layer_types has sliding_attention, and sliding_window is missing or switched off")
    return [choice({"layer_types": word}, "layer_types", known) for word in types]


def windows_to_hf(given: list[int | None]) -> dict[str, Any]:
    """The keys that `windows` reads. vLLM and older readers know only max_window_layers, newer ones read
    layer_types; both are written, and say the same where full layers come first."""
    width = next((window for window in given if window is not None), None)
    if width is None:
        return {"use_sliding_window": False}
    return {
        "use_sliding_window": True,
        "sliding_window": width,
        "max_window_layers": next(index for index, window in enumerate(given) if window is not None),
        "layer_types": ["full_attention" if window is None else "sliding_attention" for window in given],
    }


# ---- rotary positions
def rope(values: Values, head_dim: int, *, interleaved: bool = False) -> RopeSpec:
    """Rotary positions of a head of `head_dim` channels, in any of the three spellings.

    What each kind needs and what a missing key means: transformers, modeling_rope_utils.py.
    """
    said: Any = next((values[key] for key in ("rope_scaling", "rope_parameters") if values.get(key)), {})
    if not isinstance(said, dict) or any(isinstance(value, dict) for value in said.values()):
        # transformers 5 may nest one set a kind of layer; none of our families have that.
        raise damaged("the scaling of rotary positions is not one set of values")
    # Like transformers: what stands in the set counts more than what stands beside it.
    beside = {"rope_theta": 10_000.0, "partial_rotary_factor": 1.0} | _present(values)
    merged = beside | _present(said)
    theta = positive(merged, "rope_theta")
    dim = int(head_dim * positive(merged, "partial_rotary_factor", 1.0))
    if dim < 2 or dim % 2:
        raise damaged(f"{dim} rotary channels: they are turned in pairs")
    kind = choice({"rope_type": said.get("rope_type", said.get("type", "default"))}, "rope_type", _KINDS)
    return RopeSpec(dim, theta, interleaved, kind and kind(values, said, dim, theta))


def _present(values: Values) -> Values:
    """What is not null."""
    return {key: value for key, value in values.items() if value is not None}


def _linear(values: Values, said: Values, dim: int, theta: float) -> RopeScaling:
    return RopeScaling("linear", factor=positive(said, "factor", _MOST_FACTOR))


def _dynamic(values: Values, said: Values, dim: int, theta: float) -> RopeScaling:
    if dim <= 2:
        raise damaged("dynamic scaling needs more than 2 rotary channels")
    # transformers takes the context itself for the original one, whatever else the config says.
    context = size(values, "max_position_embeddings")
    return RopeScaling("dynamic", factor=positive(said, "factor", _MOST_FACTOR), original_context=context)


def _llama3(values: Values, said: Values, dim: int, theta: float) -> RopeScaling:
    low, high = positive(said, "low_freq_factor"), positive(said, "high_freq_factor")
    if high < low:
        raise damaged(f"high_freq_factor {high} is below low_freq_factor {low}")
    return RopeScaling(
        "llama3",
        factor=positive(said, "factor", _MOST_FACTOR),
        original_context=_original(values, said),
        low_freq=low,
        high_freq=high,
    )


def _yarn(values: Values, said: Values, dim: int, theta: float) -> RopeScaling:
    if theta <= 1:
        raise damaged(f"rope_theta is {theta}: yarn needs one above 1")
    # Missing, null and 0 all mean the paper's value to transformers.
    mscales = {key: _or_none(said, key) for key in ("mscale", "mscale_all_dim")}
    betas = {key: _or_none(said, key) for key in ("beta_fast", "beta_slow")}
    return RopeScaling(
        "yarn",
        factor=_factor(values, said),
        original_context=_original(values, said),
        beta_fast=betas["beta_fast"] or 32.0,
        beta_slow=betas["beta_slow"] or 1.0,
        truncate=flag({"truncate": True} | said, "truncate"),
        mscale=mscales["mscale"] or 0.0,
        mscale_all_dim=mscales["mscale_all_dim"] or 0.0,
        attention_factor=optional_positive(said, "attention_factor"),
    )


def _longrope(values: Values, said: Values, dim: int, theta: float) -> RopeScaling:
    original = _original(values, said)
    if original < 2:
        raise damaged("longrope needs an original context of 2 or more")
    return RopeScaling(
        "longrope",
        factor=_factor(values, said),
        original_context=original,
        attention_factor=optional_positive(said, "attention_factor"),
        short=numbers(said, "short_factor", dim // 2),
        long=numbers(said, "long_factor", dim // 2),
    )


_Reader = Callable[[Values, Values, int, float], RopeScaling]
_KINDS: dict[str, _Reader | None] = {
    "default": None,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}


def _or_none(said: Values, key: str) -> float | None:
    value = said.get(key)
    return None if type(value) in (int, float) and value == 0 else optional_positive(said, key, _MOST_FACTOR)


def _original(values: Values, said: Values) -> int:
    """The context before it was stretched. A key beside the scaling (Phi-3) counts more than one in it;
    where neither is there, it is the context itself."""
    key = "original_max_position_embeddings"
    for place in (values, said):
        if place.get(key) is not None:
            return size(place, key)
    return size(values, "max_position_embeddings")


def _factor(values: Values, said: Values) -> float:
    """How far positions are stretched; where it is missing, what the two contexts say."""
    if said.get("factor") is not None:
        return positive(said, "factor", _MOST_FACTOR)
    return size(values, "max_position_embeddings") / _original(values, said)


def rope_to_hf(spec: RopeSpec, head_dim: int) -> dict[str, Any]:
    """The keys of config.json that `rope` reads back as `spec`."""
    values: dict[str, Any] = {"rope_theta": spec.theta, "rope_scaling": None}
    if spec.dim != head_dim:
        values["partial_rotary_factor"] = spec.dim / head_dim
    if (scaling := spec.scaling) is None:
        return values
    said: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind in ("llama3", "yarn", "longrope"):
        said["original_max_position_embeddings"] = scaling.original_context
    if scaling.kind == "llama3":
        said |= {"low_freq_factor": scaling.low_freq, "high_freq_factor": scaling.high_freq}
    if scaling.kind == "yarn":
        said |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
        # Written where they say something: older readers know fewer keys.
        said |= {key: n for key in ("mscale", "mscale_all_dim") if (n := getattr(scaling, key))}
        said |= {} if scaling.truncate else {"truncate": False}
    if scaling.kind == "longrope":
        said |= {"short_factor": list(scaling.short), "long_factor": list(scaling.long)}
    if scaling.attention_factor is not None:
        said["attention_factor"] = scaling.attention_factor
    return values | {"rope_scaling": said}


# ---- the whole
def checked(config: ModelConfig) -> ModelConfig:
    """The same config, when its sizes fit together and on a machine. Raises ModelFileDamagedError."""
    experts = 0
    rows = [config.vocab_size, config.positions]
    for spec in {id(layer): layer for layer in config.layers}.values():
        attention, mlp = spec.attention, spec.mlp
        if isinstance(attention, AttentionSpec):
            if attention.heads % attention.kv_heads:
                raise damaged(f"{attention.heads} heads can't share {attention.kv_heads} key-value heads")
            rows.append((attention.heads + 2 * attention.kv_heads) * attention.head_dim)
        elif isinstance(attention, LatentSpec):
            channels = attention.nope_dim + attention.rope_dim + attention.v_dim
            rows.append(attention.heads * channels)
            if attention.heads * channels * max(attention.q_rank or 0, attention.kv_rank) > _MOST_ELEMENTS:
                raise damaged("a matrix of these sizes fits no machine")
        if isinstance(mlp, MoESpec):
            if mlp.active > mlp.experts:
                raise damaged(f"{mlp.active} of {mlp.experts} experts can't be chosen")
            rows += [2 * mlp.hidden * mlp.experts, 2 * mlp.shared_hidden]
        else:
            rows.append(2 * mlp.hidden)
        rope_spec = attention.rope
        if rope_spec is not None and config.context * rope_spec.dim > _MOST_ELEMENTS:
            raise damaged("a table of rotary positions of this size fits no machine")
    for spec in config.layers:
        experts += spec.mlp.experts if isinstance(spec.mlp, MoESpec) else 0
    if max(rows) * config.width > _MOST_ELEMENTS or experts > _MOST_EXPERTS:
        raise damaged("a matrix of these sizes fits no machine")
    return config


def part(config: ModelConfig, given: object, kind: type[T]) -> T:
    """`given`, when it is of the kind that the family has; else RequestError."""
    if not isinstance(given, kind):
        raise RequestError(
            f"the family {config.family} can't express this model",
            why=f"it has {kind.__name__} where the model has {type(given).__name__}",
        )
    return given


def expressed(
    values: dict[str, Any], config: ModelConfig, config_from_hf: Callable[[dict[str, Any]], ModelConfig]
) -> dict[str, Any]:
    """`values`, when reading them gives `config` again; else RequestError.

    The one check that a family's keys can say all that a config means: whatever they have no word for is
    missing when they are read back.
    """
    family = config.family
    try:
        same = config_from_hf(values) == config
    except ModelFileDamagedError as error:
        raise RequestError(f"the family {family} can't express this model", why=error.why) from error
    if not same:
        raise RequestError(
            f"the family {family} can't express this model",
            why="its config.json has no key for something that this model does",
            fix="save it as a family that does the same, or start from one of this family's presets",
        )
    return values
