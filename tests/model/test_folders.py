"""Model folders: what goes in comes out; what is damaged, cut, foreign or absurd gets a typed error."""

import json
import random
import re
import struct
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from shapes import CONFIGS, random_decoder, random_tokens

from ayllu.errors import (
    AylluError,
    AylluWarning,
    ModelFileDamagedError,
    ModelFileMissingError,
    RecipeValueError,
    RequestError,
)
from ayllu.model.config import ModelSettings
from ayllu.model.families import qwen3
from ayllu.model.families.names import EMBEDDING, HEAD
from ayllu.model.weights import load_config, load_model, save_model

CONTROL = {"bos": 0, "eos": 1, "pad": 12}
CONFIG = CONFIGS["two kv heads, own head"]


@pytest.fixture
def folder(tmp_path):
    save_model(random_decoder(CONFIG), tmp_path, **CONTROL)
    return tmp_path


@pytest.mark.parametrize("name", CONFIGS)
def test_saved_and_loaded_and_saved_is_the_same_to_the_byte(name, tmp_path):
    model = random_decoder(CONFIGS[name])
    files = ("config.json", "model.safetensors")
    contents = []
    for turn in range(2):
        folder = tmp_path / str(turn)
        folder.mkdir()
        save_model(model, folder, **CONTROL)
        contents.append([(folder / file).read_bytes() for file in files])
        model = load_model(folder)
    assert contents[0] == contents[1]
    assert model.config == CONFIGS[name]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_loading_in_a_type(folder, dtype):
    model, exact = load_model(folder, dtype=dtype), random_decoder(CONFIG)
    assert model.embedding.weight.dtype == getattr(torch, dtype)
    assert model.norm.weight.dtype == torch.float32
    tokens_BT = random_tokens(CONFIG, 2, 20)
    with torch.no_grad():
        far = (model(tokens_BT).float() - exact(tokens_BT)).abs().max()
    assert far < {"float32": 1e-6, "bfloat16": 0.5, "float16": 0.05}[dtype]


def test_an_unknown_type_is_refused(folder):
    with pytest.raises(RequestError, match="float32, bfloat16, float16"):
        load_model(folder, dtype="load")


def test_smaller_types_on_disk_are_read(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({name: tensor.bfloat16() for name, tensor in tensors.items()}, path)
    embedding = load_model(folder).embedding.weight
    assert torch.equal(embedding, tensors[EMBEDDING].bfloat16().float())


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_missing_file(folder, file):
    (folder / file).unlink()
    with pytest.raises(ModelFileMissingError, match=file):
        load_model(folder)


def test_a_missing_folder(tmp_path):
    with pytest.raises(ModelFileMissingError):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize("keep", [0, 4, 100, 5000, -1])
def test_a_cut_file(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelFileDamagedError, match=r"model\.safetensors"):
        load_model(folder)


def _rewrite(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("lack", lambda t: t.pop(Q)),
        ("doesn't have", lambda t: t.update({"model.layers.1.self_attn.q_proj.bias": torch.zeros(48)})),
        ("asks for", lambda t: t.update({Q: t[Q][:-1].clone()})),
        ("asks for", lambda t: t.update({Q: t[Q][:, :-1].clone()})),
        ("asks for", lambda t: t.update({Q: t[Q].T.contiguous()})),
        ("asks for", lambda t: t.update({Q: t[Q].flatten()})),
        ("asks for", lambda t: t.update({Q: t[Q].int()})),
        ("asks for", lambda t: t.update({Q: t[Q].to(torch.float8_e4m3fn)})),
    ],
)
def test_tensors_that_don_t_fit(folder, words, change):
    _rewrite(folder, change)
    with pytest.raises(ModelFileDamagedError, match=words):
        load_model(folder)


def test_a_tied_head_may_be_stored_too(tmp_path):
    model = random_decoder(CONFIGS["one kv head, tied"])
    save_model(model, tmp_path, **CONTROL)
    _rewrite(tmp_path, lambda t: t.update({HEAD: t[EMBEDDING].clone()}))
    assert torch.equal(load_model(tmp_path).embedding.weight, model.embedding.weight)


# ---- config.json
ABSURD = [0, -1, True, 1.5, 2**24 + 1, 2**62, 10**30, 10**400, "8", None, [], {}, float("nan"), float("inf")]
SIZES = [
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
]
OTHERS = {
    "architectures": [None, [], ["GemmaForCausalLM"], "Qwen3ForCausalLM", [["x"]], ["Qwen3ForCausalLM"] * 2],
    "rope_theta": [0, -1.0, True, "x", 10**400, float("inf")],
    "rms_norm_eps": [0, -1.0, None, "x", 10**400, float("nan")],
    "tie_word_embeddings": [1, "true", None],
    "hidden_act": ["tanh", 1],
    "attention_bias": [True],
    "use_sliding_window": [1, "true"],
    "rope_scaling": [{"rope_type": "yarn", "factor": 0}, {"type": "linear"}, {"type": "new"}, "yarn", [1]],
    "rope_parameters": [{"rope_type": "llama3"}],
}
WRONG = [(key, value) for key in SIZES for value in ABSURD] + [
    (key, value) for key, values in OTHERS.items() for value in values
]


def test_every_absurd_value_is_refused(folder):
    path = folder / "config.json"
    values = json.loads(path.read_text())
    for key, value in WRONG:
        path.write_text(json.dumps(values | {key: value}))
        with pytest.raises(ModelFileDamagedError):
            load_model(folder)
    # Other missing keys have a default in transformers, and then here.
    for key in [*SIZES[:-1], "architectures"]:
        path.write_text(json.dumps({name: value for name, value in values.items() if name != key}))
        with pytest.raises(ModelFileDamagedError):
            load_model(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": 4},  # 6 heads
        {"head_dim": 9},  # rotary pairs
        {"vocab_size": 2**24, "hidden_size": 2**24},
        {"max_position_embeddings": 2**24, "head_dim": 2**20},
        {"vocab_size": 258},  # not what the weights have
        {"num_hidden_layers": 4},
    ],
)
def test_sizes_that_don_t_go_together(folder, changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelFileDamagedError):
        load_model(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", "[" * 100_000, '{"a": ' + "1" * 5000 + "}", "\udcff"]
)
def test_a_config_that_is_no_config(folder, text):
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelFileDamagedError):
        load_config(folder)


# ---- random damage: whatever happens is an AylluError, or a model that loads
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_random_damage_to_the_header(folder, seed):
    chance = random.Random(seed)
    whole = folder / "whole"
    path = folder / "model.safetensors"
    if not whole.exists():
        whole.write_bytes(path.read_bytes())
    data = bytearray(whole.read_bytes())
    length = struct.unpack("<Q", data[:8])[0]
    kind = chance.randrange(4)
    if kind == 0:  # bytes of the length and the header
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(8 + length)] = chance.randrange(256)
    elif kind == 1:  # a header that is JSON but lies
        header = json.loads(data[8 : 8 + length])
        name = chance.choice([n for n in header if n != "__metadata__"])
        key = chance.choice(["dtype", "shape", "data_offsets"])
        lies = {
            "dtype": ["F64", "I8", "BOOL", "F8_E4M3", "F4", "C64", "U64", "X", None, "BF16"],
            "shape": [[], [0], [-1], [2**40, 2**40], [2**63], "x", [1.5], None],
            "data_offsets": [[0, 0], [4, 0], [0, 2**40], [-4, 0], [2**63, 2**63], [0], None],
        }
        header[name][key] = chance.choice(lies[key])
        text = json.dumps(header).encode()
        data = bytearray(struct.pack("<Q", len(text)) + text + data[8 + length :])
    elif kind == 2:  # a length that lies
        data[:8] = struct.pack("<Q", chance.choice([0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1]))
    else:  # pieces cut out or doubled
        at, n = chance.randrange(len(data)), chance.randint(1, 64)
        data[at : at + n] = data[at : at + n] * chance.choice([0, 2])
    path.write_bytes(data)
    try:
        load_model(folder)
    except AylluError as error:
        assert error.fix and str(folder) in str(error)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    at=st.floats(0, 1, exclude_max=True),
    kept=st.sampled_from(["float32", "bfloat16", "float16"]),
    loaded=st.sampled_from(["float32", "bfloat16", "auto"]),
    value=st.sampled_from(["nan", "-nan", "inf", "-inf"]),
)
def test_not_a_number_anywhere_is_loaded_with_a_warning(folder, at, kept, loaded, value):
    """One element of any tensor; the warning names that tensor. Without it there is no warning."""
    save_model(random_decoder(CONFIG), folder, **CONTROL, dtype=kept)
    with warnings.catch_warnings():
        warnings.simplefilter("error", AylluWarning)
        load_model(folder, dtype=loaded)
    tensors = load_file(folder / "model.safetensors")
    name = sorted(tensors)[int(at * len(tensors))]
    flat = tensors[name].view(-1)
    flat[int(at * len(flat))] = -torch.tensor(float("nan")) if value == "-nan" else float(value)
    save_file(tensors, folder / "model.safetensors")
    with pytest.warns(AylluWarning, match=re.escape(name) + " holds NaN or infinity; "):
        model = load_model(folder, dtype=loaded)
    assert sum(int((~torch.isfinite(weight)).sum()) for weight in model.state_dict().values()) == 1


def test_a_number_too_large_for_the_wanted_type_is_warned_of(folder):
    _rewrite(folder, lambda t: t[EMBEDDING].view(-1)[5:6].fill_(1e6))
    with pytest.warns(AylluWarning, match="embed_tokens"):
        load_model(folder, dtype="float16")


# ---- the dial of a recipe
@given(width=st.integers(1, 16), head_dim=st.sampled_from([8, 16, 32, 64]), vocab=st.integers(2, 5000))
def test_the_dial_gives_shapes_that_fit(width, head_dim, vocab):
    config = ModelSettings(width=32 * width, layers=1, head_dim=head_dim).config
    if 32 * width % head_dim:
        with pytest.raises(RecipeValueError):
            config(vocab)
        return
    made = config(vocab)
    spec = made.layers[0].attention
    assert spec.heads * spec.head_dim == made.width and spec.heads % spec.kv_heads == 0
    assert qwen3.config_from_hf(qwen3.config_to_hf(made)) == made
