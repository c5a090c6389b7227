"""DeepSeek V2 and V3, Llama 4, GPT-2 and GPT-Neo. PaLM, which has its own judge: test_palm.py."""

from case import Case

_TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}


def _stretched(kind: str, **more: object) -> dict[str, object]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10_000.0} | more}


_DEFAULT_ROPE = _stretched("default")

# Heads whose three widths are all different, an odd vocabulary, the first of three layers dense.
_DEEPSEEK = _TOKENS | {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 26,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 14,
    "moe_intermediate_size": 20,
    "n_routed_experts": 12,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 64,
}
_YARN = _stretched(
    "yarn",
    factor=4.0,
    original_max_position_embeddings=16,
    beta_fast=32,
    beta_slow=1,
    mscale=0.707,
    mscale_all_dim=0.707,
)
_V2 = _DEEPSEEK | {"n_group": 1, "topk_group": 1, "topk_method": "greedy", "norm_topk_prob": False}
_V2_GROUPS = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}

DEEPSEEK_V2 = {
    "plain queries, yarn, scores scaled (V2-Lite)": Case(
        _V2 | _YARN | {"q_lora_rank": None}, without=_DEFAULT_ROPE, length=60
    ),
    "queries through a latent, groups, weights scaled (V2)": Case(
        _V2 | _V2_GROUPS | {"routed_scaling_factor": 4.0}, without={"topk_method": "greedy"}
    ),
    "yarn with two temperatures beyond its original context": Case(
        _V2
        | {"qk_rope_head_dim": 12}
        | _stretched("yarn", factor=6.0, original_max_position_embeddings=10, mscale=0.7, mscale_all_dim=1.4),
        without=_stretched(
            "yarn", factor=6.0, original_max_position_embeddings=10, mscale=1.4, mscale_all_dim=1.4
        ),
        length=60,
    ),
    "biases, tied, experts in every layer": Case(
        _V2 | {"attention_bias": True, "tie_word_embeddings": True, "first_k_dense_replace": 0}
    ),
    "no experts, one head": Case(
        _V2 | {"first_k_dense_replace": 3, "num_attention_heads": 1, "num_key_value_heads": 1}
    ),
    "one group of three, one shared expert, large epsilon": Case(
        _V2
        | _V2_GROUPS
        | {"n_group": 3, "topk_group": 1, "n_shared_experts": 1, "rms_norm_eps": 1e-2, "vocab_size": 77},
        without={"rms_norm_eps": 1e-6},
    ),
}

_V3 = _DEEPSEEK | {"n_group": 4, "topk_group": 2, "n_shared_experts": 1, "num_mtp_layers": 0}

DEEPSEEK_V3 = {
    "groups by their two best, weights normalised and scaled (V3)": Case(
        _V3
        | _stretched("yarn", factor=4.0, original_max_position_embeddings=16, mscale=1.0, mscale_all_dim=1.0)
        | {"routed_scaling_factor": 2.5},
        without={"routed_scaling_factor": 1.0},
    ),
    "yarn beyond its original context": Case(_V3 | _YARN, without=_DEFAULT_ROPE, length=60),
    "rotary channels in halves, plain queries": Case(
        _V3 | {"rope_interleave": False, "q_lora_rank": None}, without={"rope_interleave": True}
    ),
    "weights as they are, one group, tied": Case(
        _V3 | {"norm_topk_prob": False, "n_group": 1, "topk_group": 1, "tie_word_embeddings": True},
        without={"norm_topk_prob": True},
    ),
    "biases, experts in every layer, three shared": Case(
        _V3 | {"attention_bias": True, "first_k_dense_replace": 0, "n_shared_experts": 3, "n_group": 6},
        without={"n_group": 2},
    ),
    "no experts": Case(_V3 | {"first_k_dense_replace": 5, "rms_norm_eps": 1e-3}),
}

# Five layers: the fourth has no positions. Heads that don't fill the width.
_LLAMA4 = _TOKENS | {
    "vocab_size": 131,
    "hidden_size": 48,
    "intermediate_size": 20,
    "intermediate_size_mlp": 56,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "num_local_experts": 5,
    "max_position_embeddings": 64,
    "attention_chunk_size": 7,
    "floor_scale": 4,
    "attn_scale": 0.5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
}


def _llama4(without: dict | None = None, length: int = 40, **keys: object) -> Case:
    return Case(_LLAMA4 | keys, without or {}, model_type="llama4_text", length=length)


LLAMA4 = {
    "experts in every layer, norms after the rotation (Scout)": _llama4(without={"use_qk_norm": False}),
    "experts in every second layer, no norms (Maverick)": _llama4(
        interleave_moe_layer_step=2, use_qk_norm=False, without={"use_qk_norm": True}
    ),
    "chunks shorter than the text": _llama4(without={"attention_chunk_size": 64}, length=50),
    "queries grow with the text": _llama4(without={"attn_temperature_tuning": False}),
    "llama3 beyond its original context, queries don't grow": _llama4(
        attn_temperature_tuning=False,
        attention_chunk_size=30,
        **_stretched(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=16,
        ),
        without={"attn_temperature_tuning": True},
        length=60,
    ),
    "three experts a token, biases, tied": _llama4(
        num_experts_per_tok=3, attention_bias=True, tie_word_embeddings=True, rms_norm_eps=1e-3
    ),
    "every kind of layer by its name": _llama4(
        no_rope_layers=[0, 1, 1, 0, 1],
        layer_types=[
            "chunked_attention",
            "full_attention",
            "chunked_attention",
            "full_attention",
            "chunked_attention",
        ],
        moe_layers=[1, 4],
        without={"layer_types": None},
    ),
    "no experts": _llama4(moe_layers=[], hidden_act="gelu"),
}

_GPT2 = _TOKENS | {"vocab_size": 131, "n_embd": 48, "n_layer": 3, "n_head": 6, "n_positions": 64}

GPT2 = {
    "as published": Case(_GPT2),
    "untied, another width inside, large epsilon": Case(
        _GPT2 | {"tie_word_embeddings": False, "n_inner": 50, "layer_norm_epsilon": 1e-2},
        without={"layer_norm_epsilon": 1e-5},
    ),
    "scores divided by the layer's number": Case(
        _GPT2 | {"scale_attn_by_inverse_layer_idx": True},
        without={"scale_attn_by_inverse_layer_idx": False},
    ),
    "scores not divided, the exact GELU": Case(
        _GPT2 | {"scale_attn_weights": False, "activation_function": "gelu"},
        without={"scale_attn_weights": True},
    ),
    "one head, text as long as the positions": Case(
        _GPT2 | {"n_head": 1, "n_layer": 1, "vocab_size": 77, "n_positions": 41}
    ),
}

_NEO = _TOKENS | {
    "vocab_size": 131,
    "hidden_size": 48,
    "num_layers": 4,
    "num_heads": 6,
    "max_position_embeddings": 64,
    "attention_types": [[["global", "local"], 2]],
    "window_size": 7,
}
_ALL_GLOBAL = {"attention_types": [[["global"], 4]]}

GPT_NEO = {
    "every second layer banded (GPT-3)": Case(_NEO, without=_ALL_GLOBAL),
    "all layers dense": Case(_NEO | _ALL_GLOBAL | {"intermediate_size": 50}),
    "patterns one after the other, untied": Case(
        _NEO | {"attention_types": [[["local"], 2], [["global", "local"], 1]], "tie_word_embeddings": False},
        without=_ALL_GLOBAL,
    ),
    "band of one token, one head": Case(
        _NEO | {"window_size": 1, "num_heads": 1, "activation_function": "gelu"}, without={"window_size": 2}
    ),
    "band as long as the text": Case(_NEO | {"window_size": 39}, without=_ALL_GLOBAL),
}

TABLE = {
    "deepseek_v2": DEEPSEEK_V2,
    "deepseek_v3": DEEPSEEK_V3,
    "llama4": LLAMA4,
    "gpt2": GPT2,
    "gpt_neo": GPT_NEO,
}
