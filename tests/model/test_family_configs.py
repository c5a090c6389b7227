"""config.json in and out for every family: published shapes, spellings, and whatever a stranger may write."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ayllu.errors import ModelFileDamagedError, RequestError
from ayllu.model.config import (
    AttentionSpec,
    LatentSpec,
    LayerSpec,
    MLPSpec,
    ModelConfig,
    MoESpec,
    RopeScaling,
    RopeSpec,
    Temperature,
    dense_layer,
    with_attention,
)
from ayllu.model.families import FAMILIES, family, family_of, keys
from ayllu.model.rope import frequencies

# What the published folders say, where it is short (their config.json on the Hub).
LLAMA_1 = {
    "architectures": ["LLaMAForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_sequence_length": 2048,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "rms_norm_eps": 1e-06,
    "vocab_size": 32000,
}
LLAMA_3_1 = LLAMA_1 | {
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
}


def rope_of(family_name: str, values: dict) -> RopeSpec:
    return family(family_name).config_from_hf(values).layers[0].attention.rope


def test_the_first_llama_lacks_most_keys():
    config = family_of("LLaMAForCausalLM").config_from_hf(LLAMA_1)
    attention = config.layers[0].attention
    assert (attention.heads, attention.kv_heads, attention.head_dim) == (32, 32, 128)
    assert attention.rope == RopeSpec(128, 10_000.0) and config.context == 2048 and not config.tied


def test_llama_3_1():
    scaling = RopeScaling("llama3", factor=8.0, original_context=8192, low_freq=1.0, high_freq=4.0)
    assert rope_of("llama", LLAMA_3_1) == RopeSpec(128, 500_000.0, scaling=scaling)


@pytest.mark.parametrize("kind", ["linear", "dynamic"])
def test_three_spellings_of_a_scaling(kind):
    spellings = [
        {"rope_theta": 5e5, "rope_scaling": {"type": kind, "factor": 2}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": kind, "factor": 2.0}},
        {"rope_parameters": {"rope_type": kind, "factor": 2.0, "rope_theta": 5e5}, "rope_scaling": None},
    ]
    ropes = [rope_of("llama", LLAMA_1 | spelling) for spelling in spellings]
    assert len(set(ropes)) == 1 and ropes[0].scaling.kind == kind and ropes[0].theta == 5e5


def test_the_original_context_where_it_is_not_given():
    values = LLAMA_1 | {"max_position_embeddings": 4096}
    dynamic = rope_of("llama", values | {"rope_scaling": {"type": "dynamic", "factor": 2.0}})
    assert dynamic.scaling.original_context == 4096
    yarn = {"rope_type": "yarn", "original_max_position_embeddings": 1024}
    assert rope_of("llama", values | {"rope_scaling": yarn}).scaling.factor == 4.0
    # Phi-3 keeps it beside the scaling.
    lists = {"short_factor": [1.0] * 64, "long_factor": [2.0] * 64}
    beside = {"original_max_position_embeddings": 2048, "rope_scaling": {"type": "longrope"} | lists}
    longrope = rope_of("llama", values | beside).scaling
    assert (longrope.factor, longrope.original_context) == (2.0, 2048)


REFUSED = {
    "unknown scaling": {"rope_scaling": {"type": "mrope", "factor": 2.0}},
    "a set of scalings": {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
    "part of a head": {"partial_rotary_factor": 0.5},
    "unknown activation": {"hidden_act": "tanh"},
    "odd head": {"head_dim": 33},
    "heads that don't share": {"num_key_value_heads": 5},
    "width that heads don't divide": {"hidden_size": 4097},
    "matrix for no machine": {"intermediate_size": 2**24, "hidden_size": 2**20},
    "llama3 upside down": {"rope_scaling": LLAMA_3_1["rope_scaling"] | {"high_freq_factor": 0.5}},
    "longrope list too short": {
        "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0], "factor": 2.0}
    },
    "endless number": {"num_attention_heads": 10**5000},
    "NaN": {"rms_norm_eps": float("nan")},
    "true is not 1": {"num_hidden_layers": True},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_decoder_does_not_do_is_refused(name):
    with pytest.raises(ModelFileDamagedError):
        family("llama").config_from_hf(LLAMA_1 | REFUSED[name])


def test_windows_by_layer():
    values = {
        "num_hidden_layers": 4,
        "use_sliding_window": True,
        "sliding_window": 64,
        "max_window_layers": 3,
    }
    windows = [spec.window for spec in family("qwen2").config_from_hf(values).attentions]
    assert windows == [None, None, None, 64]
    named = values | {"layer_types": ["sliding_attention", "full_attention"] * 2}
    assert [spec.window for spec in family("qwen3").config_from_hf(named).attentions] == [64, None] * 2
    for wrong in ({"layer_types": ["full_attention"]}, {"layer_types": [[]] * 4}, {"sliding_window": 0}):
        with pytest.raises(ModelFileDamagedError):
            family("qwen2").config_from_hf(values | wrong)
    with pytest.raises(ModelFileDamagedError):
        family("qwen2").config_from_hf(named | {"use_sliding_window": False})


def test_experts_under_either_name():
    for key in ("num_experts", "num_local_experts"):
        assert family("qwen3_moe").config_from_hf({key: 16}).layers[0].mlp.experts == 16
    too_many = {"num_experts": 4096, "num_hidden_layers": 1024, "hidden_size": 32, "moe_intermediate_size": 1}
    with pytest.raises(ModelFileDamagedError):
        family("qwen3_moe").config_from_hf(too_many)


PLAIN = ModelConfig(64, 101, (dense_layer(4, 2, 16, 48),) * 2, 128)
ROPE = RopeSpec(16)
# Each says something that Qwen3's keys have no word for.
INEXPRESSIBLE = {
    "softcap": with_attention(PLAIN.layers[0], softcap=30.0),
    "scale": with_attention(PLAIN.layers[0], scale=0.5),
    "neighbouring pairs": with_attention(PLAIN.layers[0], rope=RopeSpec(16, interleaved=True)),
    "no positions": with_attention(PLAIN.layers[0], rope=None),
    "temperature": with_attention(PLAIN.layers[0], temperature=Temperature(8.0, 0.1)),
    "chunk": with_attention(PLAIN.layers[0], chunk=8),
    "no norm": with_attention(PLAIN.layers[0], qk_norm=""),
    "bias on the output only": with_attention(PLAIN.layers[0], out_bias=True),
    "parallel": LayerSpec(PLAIN.layers[0].attention, PLAIN.layers[0].mlp, parallel=True),
    "plain MLP": LayerSpec(PLAIN.layers[0].attention, MLPSpec(48, gated=False)),
    "experts": LayerSpec(PLAIN.layers[0].attention, MoESpec(4, 2, 24)),
    "latent": LayerSpec(LatentSpec(4, None, 16, 8, 4, 8, RopeSpec(4)), MLPSpec(48)),
    "a dynamic scaling of another context": with_attention(
        PLAIN.layers[0], rope=RopeSpec(16, scaling=RopeScaling("dynamic", 2.0, original_context=64))
    ),
}


@pytest.mark.parametrize("name", INEXPRESSIBLE)
def test_a_model_that_the_family_cannot_express_is_not_written(name):
    layers = (PLAIN.layers[0], INEXPRESSIBLE[name])
    for order in (layers, layers[::-1]):
        with pytest.raises(RequestError):
            family("qwen3").config_to_hf(ModelConfig(64, 101, order, 128))


@pytest.mark.parametrize("change", [{"norm": "layer"}, {"positions": 128}, {"logit_softcap": 30.0}])
def test_nor_one_with_other_norms_or_positions(change):
    with pytest.raises(RequestError):
        family("qwen3").config_to_hf(ModelConfig(64, 101, PLAIN.layers, 128, **change))


# ---- properties
@st.composite
def ropes(draw, dim: int, context: int) -> RopeSpec:
    numbers, size = st.floats(0.01, 1000.0), st.integers(2, 2**20)
    lists = st.lists(numbers, min_size=dim // 2, max_size=dim // 2).map(tuple)
    extra = st.none() | numbers
    kinds = [
        st.none(),
        st.builds(RopeScaling, st.just("linear"), factor=numbers),
        st.builds(RopeScaling, st.just("dynamic"), factor=numbers, original_context=st.just(context)),
        st.builds(
            RopeScaling,
            st.just("llama3"),
            factor=numbers,
            original_context=size,
            low_freq=st.floats(0.1, 4.0),
            high_freq=st.floats(4.5, 64.0),
        ),
        st.builds(
            RopeScaling,
            st.just("yarn"),
            factor=numbers,
            original_context=size,
            beta_fast=numbers,
            beta_slow=numbers,
            truncate=st.booleans(),
            mscale=st.just(0.0) | numbers,
            mscale_all_dim=st.just(0.0) | numbers,
            attention_factor=extra,
        ),
        st.builds(
            RopeScaling,
            st.just("longrope"),
            factor=numbers,
            original_context=size,
            short=lists,
            long=lists,
            attention_factor=extra,
        ),
    ]
    return RopeSpec(dim, draw(st.floats(2.0, 1e9)), scaling=draw(st.one_of(kinds)))


@st.composite
def llama_like(draw) -> ModelConfig:
    """A model of one of the families with Llama's keys."""
    name = draw(st.sampled_from(["llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe"]))
    kv_heads, dim = draw(st.integers(1, 8)), 2 * draw(st.integers(2, 20))
    context = draw(st.integers(2, 2**20))
    bias = {"qwen2": st.just(True), "mistral": st.just(False), "mixtral": st.just(False)}
    biased = draw(bias.get(name, st.booleans()))
    window = st.none() | st.integers(1, 9999)
    shared = draw(st.none() if name == "llama" else window)
    attention = AttentionSpec(
        kv_heads * draw(st.integers(1, 8)),
        kv_heads,
        dim,
        draw(ropes(dim, context)),
        bias=biased,
        out_bias=biased and name != "qwen2",
        qk_norm="rms" if name.startswith("qwen3") else "",
        window=shared,
    )
    activation = draw(st.sampled_from(["silu", "gelu", "gelu_tanh", "relu2"]))
    dense = MLPSpec(
        draw(st.integers(1, 999)), activation, bias=draw(st.booleans()) if name == "llama" else False
    )
    experts = draw(st.integers(1, 64))
    normalise = draw(st.booleans()) if name == "qwen3_moe" else True
    moe = MoESpec(
        experts,
        draw(st.integers(1, experts)),
        draw(st.integers(1, 99)),
        activation=activation,
        normalise=normalise,
    )
    mlps = {"mixtral": st.just(moe), "qwen3_moe": st.sampled_from([dense, moe])}.get(name, st.just(dense))
    layers = [LayerSpec(attention, draw(mlps)) for _ in range(draw(st.integers(1, 5)))]
    if name in ("qwen2", "qwen3"):
        layers = [with_attention(layer, window=draw(st.sampled_from([shared, None]))) for layer in layers]
    return ModelConfig(
        draw(st.integers(1, 999)),
        draw(st.integers(1, 9999)),
        tuple(layers),
        context,
        norm_eps=draw(st.floats(1e-9, 1e-2)),
        tied=draw(st.booleans()),
        family=name,
    )


@given(llama_like())
@settings(deadline=None)
def test_a_config_that_was_written_reads_the_same(config):
    module = family(config.family)
    values = module.config_to_hf(config)
    assert values["architectures"] == [module.ARCHITECTURES[0]] and "rope_theta" in values
    assert module.config_from_hf(values) == config


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-2, 70)
    | st.integers(10**18, 10**40)
    | st.just(10**400)
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(
        ["linear", "dynamic", "yarn", "longrope", "llama3", "default", "silu", "chunked_attention"]
    )
)
ROPE_KEYS = [
    *("rope_type", "type", "rope_theta", "partial_rotary_factor", "factor", "attention_factor"),
    *("original_max_position_embeddings", "low_freq_factor", "high_freq_factor", "truncate"),
    *("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "short_factor", "long_factor"),
]
GARBAGE = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(ROPE_KEYS), inner, max_size=6)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("name", FAMILIES)
def test_garbage_is_an_error_that_says_so(name):
    module = family(name)
    known = sorted(
        {*getattr(module, "DEFAULTS", getattr(module, "_DEFAULTS", {})), "rope_scaling", "rope_parameters"}
        | {"layer_types", "mlp_only_layers", "original_max_position_embeddings", "partial_rotary_factor"}
    )

    @given(st.dictionaries(st.sampled_from(known), GARBAGE, max_size=3))
    @settings(deadline=None)
    def holds(values):
        try:
            config = module.config_from_hf(values)
        except ModelFileDamagedError as error:
            assert len(str(error)) < 2000
            return
        assert module.entries(config)
        # What was let in can be computed with.
        for rope in {spec.rope for spec in config.attentions if spec.rope is not None}:
            frequencies(rope, 4096, torch.device("cpu"))

    holds()


def test_an_error_names_the_key():
    with pytest.raises(ModelFileDamagedError, match="vocab_size"):
        keys.size({}, "vocab_size")
    assert family_of("NoSuchModel") is None


@pytest.mark.parametrize("scaling", [{"beta_slow": 1e-320}, {"beta_fast": float("inf")}, {"mscale": -1}])
def test_numbers_beyond_any_sense(scaling):
    with pytest.raises(ModelFileDamagedError, match=next(iter(scaling))):
        rope_of("llama", LLAMA_1 | {"rope_scaling": {"type": "yarn", "factor": 2.0} | scaling})
