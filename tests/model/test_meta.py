"""Meta's consolidated files: merged, renamed and reordered right, against transformers; and settings and
parts that make no sense."""

from __future__ import annotations

import base64
import json
import threading
from collections import OrderedDict

import pytest
import torch
from meta_folders import KINDS, LLAMA_1, LLAMA_2, LLAMA_3, LLAMA_31, cut, metas_own_logits, whole, write

from ayllu.errors import ModelFileDamagedError, ModelFileMissingError, RefusedError
from ayllu.exchange import import_model
from ayllu.model.formats.meta import open_meta
from ayllu.model.formats.storages import StorageFile

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()


# ---- what is there
def test_an_imported_model_knows_its_ids(tmp_path):
    """Meta's files don't say them: Llama 3's begin behind the ranks, and a turn ends as a text does."""
    ranks = b"".join(base64.b64encode(bytes([n])) + b" %d\n" % n for n in range(256))
    params = LLAMA_3 | {"vocab_size": 512}
    folder = write(tmp_path / "meta", params, cut(whole(params, 512), 1, by_vocabulary=True))
    (folder / "tokenizer.model").write_bytes(ranks)
    import_model(str(folder), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (256, 257)
    said = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert said["bos_token_id"] == 256 and {257, 265} <= set(said["eos_token_id"])
    judge = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert judge.generation_config.eos_token_id == said["eos_token_id"]
    (folder / "tokenizer.model").unlink()  # nobody knows: nothing is made up
    import_model(str(folder), tmp_path / "bare")
    assert not {"bos_token_id", "eos_token_id"} & set(json.loads((tmp_path / "bare/config.json").read_text()))


@pytest.mark.parametrize("parts", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_runs_the_merged_weights_as_meta_defines_them(kind, parts, tmp_path):
    params = KINDS[kind]
    weights = whole(params)
    folder = write(tmp_path, params, cut(weights, parts, by_vocabulary=kind.startswith("Llama 3")))
    values, source = open_meta(folder)
    judge = transformers.LlamaForCausalLM(transformers.LlamaConfig(**values)).eval()
    missing = judge.load_state_dict({name: source.read(name) for name in source.entries}, strict=True)
    assert not missing.missing_keys and not missing.unexpected_keys
    assert {n: tuple(t.shape) for n, t in judge.state_dict().items()} == {
        n: info.shape for n, info in source.entries.items()
    }
    if kind == "Llama 3.1":  # its scaling is transformers' business; see the values below
        return
    tokens_BT = torch.randint(92, (2, 19), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = judge(tokens_BT).logits
        assert theirs.std() > 0.3
        assert (theirs - metas_own_logits(params, weights, tokens_BT)).abs().max() < 1e-4
    source.close()


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_types_stay_and_are_converted_on_demand(dtype, parts, tmp_path):
    weights = {name: tensor.to(dtype) for name, tensor in whole(LLAMA_2).items()}
    _, source = open_meta(write(tmp_path, LLAMA_2, cut(weights, parts, by_vocabulary=False)))
    name = "model.layers.2.mlp.down_proj.weight"
    assert source.entries[name].dtype == dtype == source.read(name).dtype
    assert torch.equal(source.read(name), weights["layers.2.feed_forward.w2.weight"])
    wide = torch.empty(source.entries[name].shape)
    source.copy_to(name, wide)
    assert torch.equal(wide, weights["layers.2.feed_forward.w2.weight"].float())
    assert source.read("model.norm.weight").untyped_storage().nbytes() == 64 * dtype.itemsize


def test_many_threads_read_the_same(tmp_path):
    weights = whole(LLAMA_2)
    _, source = open_meta(write(tmp_path, LLAMA_2, cut(weights, 4, by_vocabulary=False)))
    wrong = []

    def work() -> None:
        for _ in range(30):
            if not torch.equal(source.read("model.embed_tokens.weight"), weights["tok_embeddings.weight"]):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("params", "wanted"),
    [
        (LLAMA_1, {"max_position_embeddings": 2048, "rope_theta": 1e4, "rope_scaling": None}),
        (LLAMA_2, {"max_position_embeddings": 4096, "num_key_value_heads": 4, "intermediate_size": 224}),
        (LLAMA_2 | {"rope_theta": 1e6}, {"max_position_embeddings": 16384, "rope_theta": 1e6}),
        (LLAMA_3, {"max_position_embeddings": 8192, "rope_theta": 5e5, "rope_scaling": None}),
        (LLAMA_31 | {"max_seq_len": 17, "max_batch_size": 3}, {"max_position_embeddings": 131072}),
    ],
)
def test_settings_in_other_words(params, wanted, tmp_path):
    values, _ = open_meta(write(tmp_path, params, cut(whole(params), 1, by_vocabulary=True)))
    assert {key: values[key] for key in wanted} == wanted
    assert values["vocab_size"] == 92 and values["tie_word_embeddings"] is False


@pytest.mark.parametrize(
    ("more", "factor"),
    [({}, 8.0), ({"rope_scaling_factor": 16}, 16.0), ({"dim": 2048, "n_layers": 16}, 32.0)],
)
def test_how_far_positions_are_stretched(more, factor, tmp_path):
    params = LLAMA_31 | more
    if "dim" in more:  # Llama 3.2's 1B in everything but the widths that cost memory
        params |= {"n_heads": 1024, "n_kv_heads": 1, "ffn_dim_multiplier": 0.001, "multiple_of": 1}
    weights = whole(params)
    values, _ = open_meta(write(tmp_path, params, [weights]))
    assert values["rope_scaling"]["factor"] == factor
    assert values["rope_scaling"]["original_max_position_embeddings"] == 8192


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("stored", ["twice", "once", "shared"])
def test_a_tied_head(stored, parts, tmp_path):
    weights = whole(LLAMA_3)
    weights["output.weight"] = weights["tok_embeddings.weight"].clone()
    pieces = cut(weights, parts, by_vocabulary=True)
    for piece in pieces:
        if stored == "once":
            del piece["output.weight"]
        elif stored == "shared":
            piece["output.weight"] = piece["tok_embeddings.weight"]
    values, source = open_meta(write(tmp_path, LLAMA_3, pieces))
    assert values["tie_word_embeddings"] is True and "lm_head.weight" not in source.entries
    pieces[-1].setdefault("output.weight", pieces[-1]["tok_embeddings.weight"].clone())
    pieces[-1]["output.weight"] = pieces[-1]["output.weight"].clone()
    pieces[-1]["output.weight"][-1, -1] += 1
    if stored == "once":
        for piece in pieces[:-1]:
            piece["output.weight"] = piece["tok_embeddings.weight"].clone()
    values, source = open_meta(write(tmp_path, LLAMA_3, pieces))
    assert values["tie_word_embeddings"] is False and "lm_head.weight" in source.entries


def test_leftovers_of_older_files(tmp_path):
    piece = OrderedDict(whole(LLAMA_1))
    piece["rope.freqs"] = torch.ones(4)
    piece["layers.1.attention.inner_attention.rope.freqs"] = torch.ones(4)
    piece._metadata = OrderedDict(version=1)  # type: ignore[attr-defined]  # what state_dict() leaves
    _, source = open_meta(write(tmp_path, LLAMA_1, [piece]))
    assert not [name for name in source.entries if "rope" in name]


def test_views_of_a_larger_storage(tmp_path):
    base = torch.arange(60.0).view(6, 10)
    torch.save({"a": base[1:4, 2:5], "b": base.T, "c": base[0, 0], "d": base[:0]}, tmp_path / "x.pth")
    file = StorageFile(tmp_path / "x.pth")
    assert torch.equal(file.read("a"), base[1:4, 2:5]) and file.read("a").is_contiguous()
    assert torch.equal(file.read("a", slice(1, 3)), base[2:4, 2:5])
    assert torch.equal(file.read("b"), base.T) and file.read("c") == 0 and file.read("d").shape == (0, 10)


# ---- what doesn't fit
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dim": 0}, "dim"),
        ({"dim": None}, "dim"),
        ({"dim": True}, "dim"),
        ({"dim": 2**40}, "dim"),
        ({"n_heads": 5}, "heads"),
        ({"n_kv_heads": 3}, "heads"),
        ({"n_layers": 4}, "lacks layers.3"),
        ({"n_layers": 1}, "doesn't have"),
        ({"n_layers": 10**6}, "n_layers"),
        ({"vocab_size": 93}, "tok_embeddings"),
        ({"vocab_size": -2}, "vocab_size"),
        ({"multiple_of": 64}, "feed_forward"),
        ({"multiple_of": 2.5}, "multiple_of"),
        ({"ffn_dim_multiplier": float("inf")}, "ffn_dim_multiplier"),
        ({"ffn_dim_multiplier": 10**400}, "ffn_dim_multiplier"),
        ({"norm_eps": float("nan")}, "norm_eps"),
        ({"norm_eps": "x"}, "norm_eps"),
        ({"rope_theta": -1}, "rope_theta"),
        ({"use_scaled_rope": "yes"}, "use_scaled_rope"),
        ({"n_kv_heads": 1}, "key-value heads"),
    ],
)
def test_settings_that_make_no_sense(change, words, tmp_path):
    folder = write(tmp_path, LLAMA_2, cut(whole(LLAMA_2), 2, by_vocabulary=False))
    (folder / "params.json").write_text(json.dumps(LLAMA_2 | change))
    with pytest.raises(ModelFileDamagedError, match=words):
        open_meta(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000, '{"a": ' + "1" * 5000 + "}"])
def test_params_that_are_none(text, tmp_path):
    folder = write(tmp_path, LLAMA_1, [whole(LLAMA_1)])
    (folder / "params.json").write_text(text)
    with pytest.raises(ModelFileDamagedError):
        open_meta(folder)


@pytest.mark.parametrize(
    "key", ["moe_args", "vision_chunk_size", "quantization_args", "lora_args", "sliding_window", "hidden_dim"]
)
def test_other_architectures_are_refused(key, tmp_path):
    folder = write(tmp_path, LLAMA_1 | {key: 4}, [whole(LLAMA_1)])
    with pytest.raises(RefusedError, match=key):
        open_meta(folder)


@pytest.mark.parametrize("gone", ["params.json", "consolidated.00.pth", "consolidated.01.pth"])
def test_a_missing_file(gone, tmp_path):
    folder = write(tmp_path, LLAMA_2, cut(whole(LLAMA_2), 4, by_vocabulary=False))
    (folder / gone).unlink()
    with pytest.raises(ModelFileMissingError, match=gone):
        open_meta(folder)


def test_the_last_part_is_missing(tmp_path):
    folder = write(tmp_path, LLAMA_2, cut(whole(LLAMA_2), 4, by_vocabulary=False)[:2])
    with pytest.raises(ModelFileDamagedError, match="one of 2 parts"):
        open_meta(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.pop("layers.1.attention.wk.weight"),
        lambda p: p.update({"layers.1.attention.wk.weight": torch.zeros(15, 64)}),
        lambda p: p.update({"layers.1.attention.wk.weight": torch.zeros(64, 16)}),
        lambda p: p.update({"layers.1.attention.wk.weight": torch.zeros(16, 64, dtype=torch.int32)}),
        lambda p: p.update({"layers.1.attention.wk.weight": torch.zeros(16, 64).half()}),
        lambda p: p.update({"layers.1.attention.wk.bias": torch.zeros(16)}),
        lambda p: p.update({"norm.weight": torch.zeros(16)}),
        lambda p: p.update({"step": 3}),
        lambda p: p.update({"model": {"norm.weight": torch.zeros(16)}}),
        lambda p: p.update({7: torch.zeros(16)}),
    ],
)
def test_parts_that_don_t_fit(change, tmp_path):
    pieces = cut(whole(LLAMA_2), 2, by_vocabulary=False)
    change(pieces[1])
    with pytest.raises(ModelFileDamagedError):
        open_meta(write(tmp_path, LLAMA_2, pieces))


def test_the_old_format_is_refused_with_a_way_out(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(RefusedError, match=r"safetensors"):
        StorageFile(tmp_path / "x.pth")
