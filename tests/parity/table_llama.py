"""Llama and the families with its keys: Mistral, Mixtral, Qwen2, Qwen3, Qwen3-MoE."""

from case import Case

# Heads that don't fill the width (6 * 12 != 48), an odd vocabulary, three layers, grouped queries.
_SMALL = {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
_DEFAULT_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}}
# The two lists of longrope: one number for each of the 6 pairs of a head.
_SHORT, _LONG = [1.0, 1.1, 1.0, 1.3, 1.2, 1.5], [1.0, 2.0, 3.5, 5.0, 8.0, 9.0]


def _stretched(kind: str, **more: object) -> dict[str, object]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0} | more}


_EXPERTS = {"num_experts": 7, "num_experts_per_tok": 3, "moe_intermediate_size": 20}

LLAMA = {
    "grouped queries, tied": Case(_SMALL | {"tie_word_embeddings": True}),
    "as many key-value heads, width = heads x head_dim": Case(
        _SMALL | {"num_key_value_heads": 6, "head_dim": 8, "vocab_size": 97, "rms_norm_eps": 1e-3}
    ),
    "one key-value head, biases everywhere": Case(
        _SMALL | {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True, "head_dim": 14}
    ),
    "gelu, another rotary base": Case(
        _SMALL | {"hidden_act": "gelu", "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}},
        without=_DEFAULT_ROPE,
    ),
    "linear": Case(_SMALL | _stretched("linear", factor=4.0), without=_DEFAULT_ROPE, length=60),
    # The frequencies grow with the text beyond max_position_embeddings: see Case.longest. One token less,
    # because transformers goes back to the original frequencies only below that length.
    "dynamic beyond its context": Case(
        _SMALL | {"max_position_embeddings": 24} | _stretched("dynamic", factor=3.0),
        without=_DEFAULT_ROPE,
        length=60,
        longest=23,
    ),
    "llama3 beyond its original context": Case(
        _SMALL
        | {"max_position_embeddings": 128, "head_dim": 16}
        | _stretched(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=16,
        ),
        without=_DEFAULT_ROPE,
        length=90,
    ),
    "yarn beyond its original context": Case(
        _SMALL
        | {"max_position_embeddings": 128}
        | _stretched("yarn", factor=4.0, original_max_position_embeddings=32),
        without=_DEFAULT_ROPE,
        length=100,
    ),
    "yarn with every key": Case(
        _SMALL
        | {"max_position_embeddings": 128, "head_dim": 32}
        | _stretched(
            "yarn",
            factor=6.0,
            original_max_position_embeddings=20,
            beta_fast=8.0,
            beta_slow=0.5,
            mscale=0.7,
            mscale_all_dim=1.3,
            truncate=False,
        ),
        without=_stretched("yarn", factor=6.0, original_max_position_embeddings=20),
        length=80,
    ),
    # Beyond the original context all positions use the long list, within it all use the short one, so
    # nothing here is shorter than the 16 tokens where it changes.
    "longrope beyond its original context": Case(
        _SMALL
        | {"max_position_embeddings": 64}
        | _stretched(
            "longrope",
            short_factor=_SHORT,
            long_factor=_LONG,
            original_max_position_embeddings=16,
            factor=4.0,
        ),
        without=_DEFAULT_ROPE,
        length=50,
        shortest=17,
    ),
    "longrope within its original context": Case(
        _SMALL
        | {"max_position_embeddings": 256}
        | _stretched(
            "longrope",
            short_factor=_SHORT,
            long_factor=_LONG,
            original_max_position_embeddings=64,
            factor=4.0,
            attention_factor=1.25,
        ),
        without=_DEFAULT_ROPE,
        length=50,
    ),
}

MISTRAL = {
    "window shorter than the text, gelu": Case(
        _SMALL | {"sliding_window": 7, "hidden_act": "gelu_pytorch_tanh"}, without={"sliding_window": None}
    ),
    "no window, heads wider than the width (Nemo)": Case(
        _SMALL | {"sliding_window": None, "head_dim": 20, "rope_theta": 1e6}
    ),
    "window of one token": Case(_SMALL | {"sliding_window": 1}, without={"sliding_window": 2}),
    "window as long as the text, tied": Case(
        _SMALL | {"sliding_window": 39, "tie_word_embeddings": True}, without={"sliding_window": None}
    ),
    "yarn and a window": Case(
        _SMALL
        | {"sliding_window": 11, "max_position_embeddings": 128}
        | _stretched("yarn", factor=4.0, original_max_position_embeddings=32),
        without={"sliding_window": None},
        length=70,
    ),
}

MIXTRAL = {
    "two of eight": Case(_SMALL | {"num_local_experts": 8, "head_dim": None, "num_key_value_heads": 3}),
    "one of three, tied": Case(
        _SMALL | {"num_local_experts": 3, "num_experts_per_tok": 1, "tie_word_embeddings": True}
    ),
    "all of four, window": Case(
        _SMALL | {"num_local_experts": 4, "num_experts_per_tok": 4, "sliding_window": 9},
        without={"sliding_window": None},
    ),
    "three of five, gelu, linear": Case(
        _SMALL
        | {"num_local_experts": 5, "num_experts_per_tok": 3, "hidden_act": "gelu"}
        | _stretched("linear", factor=2.0),
        without={"hidden_act": "silu"},
    ),
}

QWEN2 = {
    "biases on queries, keys and values, tied": Case(
        _SMALL | {"head_dim": 8, "tie_word_embeddings": True, "rope_theta": 1e6}
    ),
    "windows from the second layer on": Case(
        _SMALL | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
        without={"max_window_layers": 2},
    ),
    "windows on layers that are named": Case(
        _SMALL
        | {
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        without={"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]},
    ),
    "a window that is switched off": Case(_SMALL | {"sliding_window": 6, "max_window_layers": 0}),
    "yarn (Qwen2.5 beyond 32k)": Case(
        _SMALL | _stretched("yarn", factor=2.0, original_max_position_embeddings=16),
        without=_DEFAULT_ROPE,
        length=60,
    ),
}

QWEN3 = {
    "norms on queries and keys, tied": Case(_SMALL | {"tie_word_embeddings": True}),
    "biases, one key-value head": Case(_SMALL | {"attention_bias": True, "num_key_value_heads": 1}),
    "windows on some layers": Case(
        _SMALL | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
        without={"use_sliding_window": False},
    ),
    "yarn, another rotary base, large epsilon": Case(
        _SMALL
        | {"rms_norm_eps": 1e-2}
        | {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e6,
                "factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
        without={"rms_norm_eps": 1e-6},
        length=60,
    ),
    "dynamic beyond its context": Case(
        _SMALL | {"max_position_embeddings": 32} | _stretched("dynamic", factor=2.0),
        without=_DEFAULT_ROPE,
        length=50,
        longest=31,
    ),
}

QWEN3_MOE = {
    "three of seven, normalised": Case(
        _SMALL | _EXPERTS | {"norm_topk_prob": True}, without={"norm_topk_prob": False}
    ),
    "weights as they are, tied": Case(_SMALL | _EXPERTS | {"tie_word_embeddings": True}),
    "every second layer, biases": Case(
        _SMALL | _EXPERTS | {"decoder_sparse_step": 2, "attention_bias": True}
    ),
    "dense first layer, window": Case(
        _SMALL
        | _EXPERTS
        | {"mlp_only_layers": [0], "use_sliding_window": True, "sliding_window": 8, "norm_topk_prob": True},
        without={"use_sliding_window": False},
    ),
    "one expert of one, head_dim from the width": Case(
        {key: value for key, value in _SMALL.items() if key != "head_dim"}
        | {"num_experts": 1, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
    ),
}

TABLE = {
    "llama": LLAMA,
    "mistral": MISTRAL,
    "mixtral": MIXTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "qwen3_moe": QWEN3_MOE,
}
