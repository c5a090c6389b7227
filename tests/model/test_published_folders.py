"""Folders as their publishers made them: configs with every key they have, names with and without prefixes,
tensors that the decoder has no use for. Figures: the papers and the config.json of each release."""

import json
import math
import re
import types

import pytest
import torch

from ayllu.errors import ModelFileDamagedError
from ayllu.model.decoder import Decoder
from ayllu.model.families import family, family_of
from ayllu.model.formats.safetensors import open_safetensors
from ayllu.model.formats.source import TensorInfo
from ayllu.model.formats.spelling import respelled

_YARN = {
    "beta_fast": 32,
    "beta_slow": 1,
    "factor": 40,
    "original_max_position_embeddings": 4096,
    "type": "yarn",
}
_DEEPSEEK = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "ep_size": 1,
    "hidden_act": "silu",
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "moe_layer_freq": 1,
    "pretraining_tp": 1,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000,
    "seq_aux": True,
    "tie_word_embeddings": False,
    "v_head_dim": 128,
}
V2_LITE = _DEEPSEEK | {
    "architectures": ["DeepseekV2ForCausalLM"],
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "rope_scaling": _YARN | {"mscale": 0.707, "mscale_all_dim": 0.707},
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "topk_group": 1,
    "topk_method": "greedy",
    "vocab_size": 102400,
}
V2 = V2_LITE | {
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "n_group": 8,
    "n_routed_experts": 160,
    "num_attention_heads": 128,
    "num_hidden_layers": 60,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "routed_scaling_factor": 16.0,
    "topk_group": 3,
    "topk_method": "group_limited_greedy",
}
V3 = _DEEPSEEK | {
    "architectures": ["DeepseekV3ForCausalLM"],
    "first_k_dense_replace": 3,
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "moe_intermediate_size": 2048,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "rope_scaling": _YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "vocab_size": 129280,
}
_LLAMA4_TEXT = {
    "attention_bias": False,
    "attention_chunk_size": 8192,
    "head_dim": 128,
    "hidden_size": 5120,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "num_attention_heads": 40,
    "num_experts_per_tok": 1,
    "num_hidden_layers": 48,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "vocab_size": 202048,
}
SCOUT = {
    "architectures": ["Llama4ForConditionalGeneration"],
    "vision_config": {"hidden_size": 1408},
    "text_config": _LLAMA4_TEXT
    | {
        "attn_temperature_tuning": 4,
        "interleave_moe_layer_step": 1,
        "max_position_embeddings": 10485760,
        "no_rope_layers": [],
        "num_local_experts": 16,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "use_qk_norm": True,
    },
}
MAVERICK = SCOUT | {
    "text_config": _LLAMA4_TEXT
    | {
        "interleave_moe_layer_step": 2,
        "max_position_embeddings": 1048576,
        "num_local_experts": 128,
        "rope_scaling": None,
        "use_qk_norm": False,
    }
}
GPT2_SMALL = {
    "architectures": ["GPT2LMHeadModel"],
    "activation_function": "gelu_new",
    "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-05,
    "n_ctx": 1024,
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "summary_type": "cls_index",
    "vocab_size": 50257,
}
GPT_NEO_1_3B = {
    "architectures": ["GPTNeoForCausalLM"],
    "attention_layers": ["global", "local"] * 12,
    "attention_types": [[["global", "local"], 12]],
    "hidden_size": 2048,
    "intermediate_size": None,
    "max_position_embeddings": 2048,
    "num_heads": 16,
    "num_layers": 24,
    "vocab_size": 50257,
    "window_size": 256,
}
PALM_540B = {
    "architectures": ["PalmForCausalLM"],
    "head_dim": 256,
    "hidden_size": 18432,
    "intermediate_size": 4 * 18432,
    "max_position_embeddings": 2048,
    "num_attention_heads": 48,
    "num_hidden_layers": 118,
    "vocab_size": 256000,
}
# Parameters as published, and how exactly.
COUNTS = {
    "DeepSeek-V2-Lite": (V2_LITE, 15.7e9, 0.005),
    "DeepSeek-V2": (V2, 236e9, 0.005),
    "DeepSeek-V3": (V3, 671e9, 0.001),
    "Llama 4 Scout": (SCOUT, 109e9, 0.02),  # its eyes count there, too
    "Llama 4 Maverick": (MAVERICK, 400e9, 0.01),
    "GPT-2 small": (GPT2_SMALL, 124_439_808, 0.0),
    "GPT-Neo 1.3B": (GPT_NEO_1_3B, 1_315_575_808, 0.0),
    "PaLM 540B": (PALM_540B, 540.35e9, 0.0005),
}


def understood(values: dict):
    module = family_of(values["architectures"][0])
    return module, module.config_from_hf(values)


@pytest.mark.parametrize("name", COUNTS)
def test_the_published_count_of_parameters(name):
    values, published, tolerance = COUNTS[name]
    module, config = understood(values)
    found = module.entries(config)
    count = sum(math.prod(piece.shape) for entry in found for piece in entry.pieces)
    assert abs(count - published) <= tolerance * published, f"{count:,}"
    with torch.device("meta"):
        state = Decoder(config).state_dict()
    filled = {entry.ours: sum(math.prod(piece.shape) for piece in entry.pieces) for entry in found}
    assert filled == {name: tensor.numel() for name, tensor in state.items()}


@pytest.mark.parametrize("name", COUNTS)
def test_a_published_config_comes_back(name):
    module, config = understood(COUNTS[name][0])
    written = json.loads(json.dumps(module.config_to_hf(config)))
    assert written["architectures"] == [module.ARCHITECTURES[0]]
    assert module.config_from_hf(written) == config


def test_the_scale_of_scores_under_yarn():
    """DeepSeek's own code: (128 + 64) ** -0.5 times the square of 0.1 * mscale * ln(40) + 1."""
    for values, mscale in ((V2_LITE, 0.707), (V3, 1.0)):
        expected = 192**-0.5 * (0.1 * mscale * math.log(40) + 1) ** 2
        assert understood(values)[1].layers[0].attention.score_scale == pytest.approx(expected, rel=1e-12)


def test_the_pattern_of_llama_4():
    scout, maverick = understood(SCOUT)[1], understood(MAVERICK)[1]
    for config in (scout, maverick):
        assert [spec.rope is None for spec in config.attentions] == [False, False, False, True] * 12
        assert [spec.chunk for spec in config.attentions] == [8192, 8192, 8192, None] * 12
        assert [spec.temperature is None for spec in config.attentions] == [True, True, True, False] * 12
    assert [hasattr(layer.mlp, "experts") for layer in maverick.layers] == [False, True] * 24
    assert {spec.qk_norm for spec in scout.attentions if spec.rope} == {"l2"}
    assert not any(spec.qk_norm for spec in maverick.attentions)


REFUSED = {
    "norm_topk_prob of V2": V2 | {"norm_topk_prob": True},
    "groups that don't divide": V2 | {"n_group": 7},
    "more active groups than groups": V3 | {"topk_group": 9},
    "too few experts in the active groups": V3 | {"topk_group": 1, "n_group": 64},
    "no two best in a group of one": V3 | {"n_group": 256, "topk_group": 8},
    "more active experts than experts": V2_LITE | {"num_experts_per_tok": 65},
    "a router unknown to V3": V3 | {"scoring_func": "softmax"},
    "grouped latent attention": V3 | {"num_key_value_heads": 8},
    "dense layers before the first": V3 | {"first_k_dense_replace": -1},
    "dense layers as a truth": V3 | {"first_k_dense_replace": True},
    "chunks without a size": {
        "architectures": SCOUT["architectures"],
        "text_config": {"attention_chunk_size": None},
    },
    "a text part that is none": SCOUT | {"text_config": 7},
    "too few layers named": SCOUT | {"text_config": {"no_rope_layers": [1, 0]}},
    "a kind of layer nobody knows": SCOUT
    | {"text_config": {"num_hidden_layers": 1, "layer_types": ["sliding_attention"]}},
    "experts in a layer called one": SCOUT | {"text_config": {"moe_layers": "1"}},
    "heads that don't divide": GPT2_SMALL | {"n_head": 11},
    "cross attention": GPT2_SMALL | {"add_cross_attention": True},
    "fewer layers than patterns": GPT_NEO_1_3B | {"num_layers": 23},
    "endless patterns": GPT_NEO_1_3B | {"attention_types": [[["global"], 10**12]]},
    "patterns that are none": GPT_NEO_1_3B | {"attention_types": ["global"]},
    "a stretched PaLM": PALM_540B | {"rope_scaling": {"type": "linear", "factor": 2.0}},
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_decoder_does_not_do_is_refused(name):
    with pytest.raises(ModelFileDamagedError):
        understood(REFUSED[name])


def test_quantised_weights_are_refused_with_a_way_out():
    quantised = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    inside = SCOUT | {"text_config": SCOUT["text_config"] | {"quantization_config": quantised}}
    for values in (V3 | {"quantization_config": quantised}, inside):
        with pytest.raises(ModelFileDamagedError, match="quantised") as caught:
            understood(values)
        assert "fp8" in caught.value.why and "bfloat16" in caught.value.fix


def test_the_layer_for_training_alone_is_left_out():
    """V3's 62nd: names as they are in its model.safetensors.index.json."""
    module, config = understood(V3)
    wanted = {piece.name for entry in module.entries(config) for piece in entry.pieces}
    for name in ("eh_proj.weight", "shared_head.head.weight", "mlp.experts.0.up_proj.weight", "enorm.weight"):
        assert any(re.search(pattern, f"model.layers.61.{name}") for pattern in module.IGNORED)
    assert not any(re.search(pattern, name) for pattern in module.IGNORED for name in wanted)


# ---- names
def filled(module, config, source) -> Decoder:
    """The entries' rule, written out: pieces, turned where they are transposed, one below the other."""
    state = {}
    model = Decoder(config)
    for name, tensor in model.state_dict().items():
        (entry,) = [entry for entry in module.entries(config) if entry.ours == name]
        pieces = [source.read(p.name).mT if p.transposed else source.read(p.name) for p in entry.pieces]
        state[name] = torch.cat([piece.reshape(-1, *tensor.shape[1:]) for piece in pieces]).view(tensor.shape)
    model.load_state_dict(state)
    return model.eval()


def assert_same(judge, folder, tokens_BT):
    values = json.loads((folder / "config.json").read_text())
    module, config = understood(values)
    source = respelled(open_safetensors(folder), module.SPELLINGS)
    wanted = {piece.name for entry in module.entries(config) for piece in entry.pieces}
    for name in source.entries.keys() - wanted:
        assert any(re.search(pattern, name) for pattern in module.IGNORED), name
    with torch.no_grad():
        difference = filled(module, config, source)(tokens_BT) - judge(tokens_BT).logits
    source.close()
    assert difference.abs().max() < 1e-5


def test_llama_4_with_eyes(tmp_path):
    transformers = pytest.importorskip("transformers")
    text = _LLAMA4_TEXT | {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
    }
    text |= {"intermediate_size": 12, "intermediate_size_mlp": 20, "num_hidden_layers": 4, "vocab_size": 61}
    text |= {"num_local_experts": 3, "attention_chunk_size": 5, "pad_token_id": None}
    eyes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    eyes |= {"vision_output_dim": 16, "image_size": 28, "projector_input_dim": 16, "projector_output_dim": 16}
    torch.manual_seed(0)
    config = transformers.Llama4Config(text_config=text, vision_config=eyes)
    judge = transformers.Llama4ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for weight in judge.parameters():
            weight.copy_(torch.randn(weight.shape) * 0.2 + (weight.dim() == 1))
    judge.save_pretrained(tmp_path)
    assert_same(judge, tmp_path, torch.randint(0, 61, (2, 13)))


def test_gpt_2_without_its_prefix_and_with_its_masks(tmp_path):
    transformers = pytest.importorskip("transformers")
    from safetensors.torch import load_file, save_file

    config = transformers.GPT2Config(
        n_embd=24, n_layer=2, n_head=3, vocab_size=61, n_positions=32, pad_token_id=None
    )
    torch.manual_seed(0)
    judge = transformers.GPT2LMHeadModel(config).eval()
    judge.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert all(name.startswith("transformer.") for name in tensors)
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    bare |= {f"h.{i}.attn.bias": torch.ones(1, 1, 32, 32).tril() for i in range(2)}
    tokens_BT = torch.randint(0, 61, (2, 20))
    assert_same(judge, tmp_path, tokens_BT)
    save_file(bare, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_same(judge, tmp_path, tokens_BT)


def test_one_tensor_under_two_spellings_is_refused():
    info = TensorInfo((2, 2), torch.float32)
    source = types.SimpleNamespace(entries={"wte.weight": info, "transformer.wte.weight": info})
    with pytest.raises(ModelFileDamagedError, match="twice"):
        respelled(source, family("gpt2").SPELLINGS)
    assert respelled(source, ()) is source
