"""Small models of the shapes that llama.cpp computes, with weights that half precision holds exactly."""

from __future__ import annotations

from typing import Any

import torch

from ayllu.model.config import ModelConfig
from ayllu.model.decoder import Decoder
from ayllu.model.families import family_of

SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 96,
    "hidden_act": "silu",
    "vocab_size": 131,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"]},
    "llama, tied, llama3": {
        "architectures": ["LlamaForCausalLM"],
        "tie_word_embeddings": True,
        "rope_scaling": LLAMA3,
    },
    "llama 3.1's own stretch": {
        "architectures": ["LlamaForCausalLM"],
        "rope_scaling": LLAMA3 | {"original_max_position_embeddings": 8192},
    },
    "llama, yarn": {"architectures": ["LlamaForCausalLM"], "rope_scaling": YARN},
    "llama, yarn, own temperature": {
        "architectures": ["LlamaForCausalLM"],
        "rope_scaling": YARN | {"attention_factor": 1.5},
    },
    "llama, linear": {
        "architectures": ["LlamaForCausalLM"],
        "rope_scaling": {"rope_type": "linear", "factor": 2.5},
    },
    "llama, biases": {"architectures": ["LlamaForCausalLM"], "attention_bias": True, "mlp_bias": True},
    "mistral": {"architectures": ["MistralForCausalLM"], "sliding_window": 128},
    "mixtral": {"architectures": ["MixtralForCausalLM"], "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"]},
    "qwen3, tied": {"architectures": ["Qwen3ForCausalLM"], "tie_word_embeddings": True},
    "qwen3_moe": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
    },
}


def config_of(name: str) -> ModelConfig:
    values = SIZES | MODELS[name]
    module = family_of(values["architectures"][0])
    assert module is not None
    return module.config_from_hf(values)


def random_model(config: ModelConfig, seed: int = 0) -> Decoder:
    """Weights that half precision holds exactly, so that F16 loses nothing."""
    generator = torch.Generator().manual_seed(seed)
    model = Decoder(config).eval().requires_grad_(False)
    for weight in model.parameters():
        centre = 1.0 if weight.dim() == 1 else 0.0
        weight.copy_((centre + 0.1 * torch.randn(weight.shape, generator=generator)).half())
    return model


def logits(model: Decoder, length: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, model.config.vocab_size, (2, length), generator=generator)
    with torch.no_grad():
        return model(tokens)
