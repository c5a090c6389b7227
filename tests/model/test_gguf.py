"""Models as GGUF files: out and in again, against the `gguf` package, damaged, and what can't be written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_models import MODELS, SIZES, config_of, logits, random_model
from hypothesis import given, settings
from hypothesis import strategies as st

from ayllu.errors import AylluError, ModelFileDamagedError, RequestError
from ayllu.gguf import KINDS, header_bytes, read_header
from ayllu.model.config import with_attention
from ayllu.model.decoder import Decoder
from ayllu.model.families import family
from ayllu.model.formats import blocks
from ayllu.model.formats.gguf import (
    EXPORTED,
    halves_to_neighbours,
    neighbours_to_halves,
    open_gguf,
    write_gguf,
)
from ayllu.model.formats.llamacpp import places, values_of
from ayllu.model.weights import load_model


@pytest.mark.parametrize("name", MODELS)
def test_a_model_comes_back(tmp_path: Path, name: str) -> None:
    model = random_model(config_of(name))
    write_gguf(model, tmp_path / "a.gguf", kind="F16")
    back = load_model(tmp_path / "a.gguf")
    # A window became the context; Mistral's shape without one is Llama's.
    assert back.config.context == (128 if name == "mistral" else 256)
    expected = model.config
    if name == "mistral":
        layers = tuple(with_attention(layer, window=None) for layer in expected.layers)
        expected = replace(expected, family="llama", context=128, layers=layers)
    if "temperature" not in name:
        assert back.config == expected
    ours, theirs = model.state_dict(), back.state_dict()
    assert ours.keys() == theirs.keys()
    for key, weight in ours.items():
        assert torch.equal(weight, theirs[key]), key
    assert torch.allclose(logits(model), logits(back), atol=1e-5)


@pytest.mark.parametrize("kind", EXPORTED)
@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_the_judge_reads_our_file(tmp_path: Path, kind: str, name: str) -> None:
    model = random_model(config_of(name))
    write_gguf(model, tmp_path / "a.gguf", kind=kind, metadata={"general.name": "small"})
    reader = gguf.GGUFReader(tmp_path / "a.gguf")
    assert reader.get_field("general.name").contents() == "small"
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    q = tensors["blk.1.attn_q.weight"]
    assert q.tensor_type.name == kind and tensors["blk.0.attn_norm.weight"].tensor_type.name == "F32"
    rows = model.state_dict()["blocks.1.attention.qkv.weight"][:128].numpy()
    if name == "llama":  # neighbours: channel i of the first half, then channel i of the second
        rows = rows.reshape(4, 2, 16, 64).swapaxes(1, 2).reshape(128, 64)
    expected = gguf.quantize(rows, gguf.GGMLQuantizationType[kind])
    assert np.array_equal(q.data.view(np.uint8).ravel(), expected.view(np.uint8).ravel())
    if name == "qwen3_moe":
        assert tensors["blk.0.ffn_gate_inp.weight"].tensor_type.name == "F32"
        up = tensors["blk.0.ffn_up_exps.weight"]
        ours = model.state_dict()["blocks.0.mlp.gate_up"][:, 32:].numpy()
        assert up.shape.tolist() == [64, 32, 4]
        judged = gguf.quantize(np.ascontiguousarray(ours), gguf.GGMLQuantizationType[kind])
        assert np.array_equal(up.data.view(np.uint8).ravel(), judged.view(np.uint8).ravel())


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("name", ["llama, biases", "mixtral", "qwen2"])
def test_packed_weights_are_the_stored_ones(tmp_path: Path, kind: str, name: str) -> None:
    model = random_model(config_of(name))
    write_gguf(model, tmp_path / "a.gguf", kind=kind)
    _, source = open_gguf(tmp_path / "a.gguf")
    packed = 0
    for tensor, info in source.entries.items():
        stored_kind, raw = source.packed(tensor)
        numbers = blocks.unpack(stored_kind, raw).reshape(info.shape)
        assert torch.equal(numbers, source.read(tensor)), tensor
        target = torch.empty(info.shape, dtype=torch.bfloat16)
        source.copy_to(tensor, target)
        assert torch.equal(target, numbers.to(torch.bfloat16))
        packed += stored_kind == kind
    assert packed > 10
    q = model.state_dict()["blocks.0.attention.qkv.weight"][:128]
    stored = source.read("model.layers.0.self_attn.q_proj.weight")
    assert torch.equal(stored, blocks.unpack(kind, blocks.pack(kind, q)))
    source.close()


# Mistral and Mixtral are llama.cpp's `llama`, which transformers' reader doesn't turn back into them.
@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith(("mistral", "mixtral"))])
def test_transformers_reads_our_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Names, rows of queries and keys, experts: another reader of GGUF computes the same. It gets the config
    from us, because it misses some of llama.cpp's keys (the width of a head among them)."""
    import transformers

    # It asks for accelerate and then doesn't use it.
    monkeypatch.setattr(transformers.modeling_utils, "is_accelerate_available", lambda *_: True)
    model = random_model(config_of(name))
    write_gguf(model, tmp_path / "a.gguf", kind="F16")
    values = SIZES | MODELS[name]
    values.pop("architectures")
    kind = getattr(transformers, MODELS[name]["architectures"][0])
    judge = kind.from_pretrained(
        tmp_path, gguf_file="a.gguf", config=kind.config_class(**values), dtype=torch.float32
    )
    tokens = torch.randint(0, 131, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (judge(tokens).logits - logits(model)).abs().max() < 1e-4


def test_experts_in_files_of_their_own(tmp_path: Path) -> None:
    """Files of early 2024 have one tensor an expert."""
    model = random_model(config_of("mixtral"))
    write_gguf(model, tmp_path / "new.gguf", kind="F16")
    reader = gguf.GGUFReader(tmp_path / "new.gguf")
    writer = gguf.GGUFWriter(tmp_path / "old.gguf", "llama")
    for field in reader.fields.values():
        if field.name.startswith("llama."):
            writer.add_key_value(field.name, field.contents(), field.types[0])
    for tensor in reader.tensors:
        data = np.array(tensor.data)
        if "_exps" in tensor.name:
            for index in range(4):
                writer.add_tensor(tensor.name.replace("_exps", f".{index}"), data[index])
        else:
            writer.add_tensor(tensor.name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert torch.equal(logits(load_model(tmp_path / "old.gguf")), logits(load_model(tmp_path / "new.gguf")))


def test_rows_that_are_no_whole_blocks_stay_half(tmp_path: Path) -> None:
    values = SIZES | MODELS["qwen3, tied"] | {"intermediate_size": 72}
    model = random_model(family("qwen3").config_from_hf(values))
    write_gguf(model, tmp_path / "a.gguf", kind="Q4_0")
    kinds = {name: t.kind.name for name, t in read_header(tmp_path / "a.gguf").tensors.items()}
    assert kinds["blk.0.ffn_down.weight"] == "F16" and kinds["blk.0.ffn_up.weight"] == "Q4_0"
    assert torch.isfinite(logits(load_model(tmp_path / "a.gguf"))).all()


def test_divisors_that_are_no_llama3(tmp_path: Path) -> None:
    """Any tensor of divisors is read: as a list of them where Llama 3's formula doesn't give them."""
    model = random_model(config_of("llama 3.1's own stretch"))
    write_gguf(model, tmp_path / "a.gguf", kind="F16")
    divisors = np.linspace(1, 7, 16, dtype=np.float32)
    data = bytearray((tmp_path / "a.gguf").read_bytes())
    stored = read_header(tmp_path / "a.gguf").tensors["rope_freqs.weight"]
    data[stored.offset : stored.offset + stored.size] = divisors.tobytes()
    (tmp_path / "b.gguf").write_bytes(data)
    back = load_model(tmp_path / "b.gguf")
    scaling = back.config.attentions[0].rope.scaling  # type: ignore[union-attr]
    assert scaling is not None and scaling.kind == "longrope"
    assert np.allclose(scaling.long, divisors) and scaling.short == scaling.long
    write_gguf(back, tmp_path / "c.gguf", kind="F16")
    assert torch.equal(logits(load_model(tmp_path / "c.gguf")), logits(back))


@given(st.integers(1, 5), st.integers(1, 9))
def test_the_two_orders_undo_each_other(heads: int, pairs: int) -> None:
    rows = 2 * heads * pairs
    there, back = halves_to_neighbours(rows, heads), neighbours_to_halves(rows, heads)
    assert torch.equal(there[back], torch.arange(rows))


# ---- what can't be done says so
@pytest.mark.parametrize(
    "changes",
    [{"softcap": 30.0}, {"chunk": 16}, {"scale": 0.5}, {"qk_norm": "l2"}, {"rope": None}, {"bias": True}],
)
def test_models_that_llama_cpp_cant_compute(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = config_of("llama")
    layers = tuple(with_attention(layer, **changes) for layer in config.layers)
    path = tmp_path / "a.gguf"
    path.write_bytes(b"old")
    with pytest.raises(RequestError, match=r"llama\.cpp can't compute"):
        write_gguf(Decoder(replace(config, layers=layers)), path)
    assert path.read_bytes() == b"old"


def test_layers_that_differ_and_experts_that_count_differently(tmp_path: Path) -> None:
    config = config_of("llama")
    mixed = replace(
        config,
        layers=(config.layers[0], replace(config.layers[1], mlp=replace(config.layers[1].mlp, hidden=32))),
    )
    loose = config_of("qwen3_moe")
    loose = replace(
        loose,
        layers=tuple(replace(layer, mlp=replace(layer.mlp, normalise=False)) for layer in loose.layers),  # type: ignore[arg-type, call-arg]
    )
    for wrong in (mixed, loose, replace(config, family="gpt2")):
        with pytest.raises(RequestError, match=r"llama\.cpp can't compute"):
            write_gguf(Decoder(wrong), tmp_path / "a.gguf")


def test_a_failed_export_leaves_the_old_file(tmp_path: Path) -> None:
    model = random_model(config_of("llama"))
    model.blocks[1].mlp.down.weight[0, 0] = 1e6
    path = tmp_path / "a.gguf"
    path.write_bytes(b"old")
    with pytest.raises(RequestError, match=r"blk\.1\.ffn_down\.weight"):
        write_gguf(model, path, kind="F16")
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(RequestError, match="Q3_K"):
        write_gguf(model, path, kind="Q3_K")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("general.architecture", np.array([1, 2], np.int32)),
        ("llama.expert_count", np.array([8, 8], np.int32)),
        ("llama.rope.scaling.type", np.array([1, 2], np.int32)),
        ("tokenizer.ggml.padding_token_id", -1),
    ],
)
def test_arrays_and_negative_ids_where_a_word_or_a_number_belongs(
    tmp_path: Path, key: str, value: Any
) -> None:
    path = tmp_path / "a.gguf"
    write_gguf(random_model(config_of("llama")), path)
    header = read_header(path)
    metadata = header.metadata | {key: value}
    shapes = {name: tensor.shape for name, tensor in header.tensors.items()}
    if key.endswith("token_id"):
        assert "pad_token_id" not in values_of(metadata, shapes, None)
        return
    with pytest.raises(ModelFileDamagedError):
        values_of(metadata, shapes, None)


def test_a_small_file_with_a_million_experts() -> None:
    shapes = {"blk.0.ffn_gate_exps.weight": (50_000_000, 1, 1)}
    with pytest.raises(ModelFileDamagedError, match="50,000,000 experts"):
        places("llama", shapes, {"num_attention_heads": 1, "num_key_value_heads": 1})


def test_a_kind_and_an_architecture_that_arent_read(tmp_path: Path) -> None:
    head = {"general.architecture": "llama", "llama.attention.head_count": 1, "llama.embedding_length": 32}
    path = tmp_path / "a.gguf"
    path.write_bytes(header_bytes(head, {"token_embd.weight": (KINDS["IQ4_NL"], (2, 32))}) + bytes(64))
    with pytest.raises(ModelFileDamagedError, match="IQ4_NL") as caught:
        open_gguf(path)
    assert "Q8_0" in caught.value.fix
    path.write_bytes(header_bytes({"general.architecture": "mamba"}, {}))
    with pytest.raises(ModelFileDamagedError) as caught:
        open_gguf(path)
    assert "mamba" in caught.value.why and "qwen3moe" in caught.value.why


# ---- damage
@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damaged_files_give_typed_errors_only(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    whole = _whole_model(tmp_path_factory)
    end = data.draw(st.sampled_from([len(whole), len(whole) - 1, 4000, 900]))
    damaged = bytearray(whole[:end])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(damaged), 3000) - 1))
        damaged[at] = data.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(damaged)
    try:
        model = load_model(path)
    except AylluError:
        return
    assert isinstance(model, Decoder)


_CACHE: dict[str, bytes] = {}


def _whole_model(factory: pytest.TempPathFactory) -> bytes:
    if "model" not in _CACHE:
        path = factory.mktemp("whole") / "a.gguf"
        write_gguf(random_model(config_of("llama, tied, llama3")), path, kind="Q8_0")
        _CACHE["model"] = path.read_bytes()
    return _CACHE["model"]
