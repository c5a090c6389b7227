"""The verbs bench and quantize, on models small enough for a test."""

import json
import shutil

import pytest

from ayllu import bench, cli, native
from ayllu.engine.packed import pack_model
from ayllu.errors import InputNotFoundError, UsageError
from ayllu.model import presets
from ayllu.model.config import AttentionSpec, LayerSpec, ModelConfig, MoESpec, RopeSpec, dense_layer
from ayllu.model.decoder import Decoder
from ayllu.model.presets import Preset
from ayllu.model.weights import save_model
from ayllu.text.tokenizer import train_tokenizer

pytestmark = pytest.mark.skipif(not native.available(), reason="no native extension on this machine")

SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 300,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
}


@pytest.fixture
def tiny(monkeypatch):
    """A preset of 100 thousand weights, and roofs that need no time."""
    known = {"tiny": Preset("tiny", "Tiny", "llama", SMALL, "0.1M", "this test")}
    monkeypatch.setattr(presets, "presets", lambda: known)
    monkeypatch.setattr(bench.machine, "measure_read_bandwidth", lambda **_: 4e9)
    monkeypatch.setattr(bench.machine, "measure_matmul", lambda *_, **__: 5e9)


def said_by(capsys, *words: str) -> dict:
    with pytest.raises(SystemExit) as done:
        cli.main([*words, "--json"])
    assert done.value.code == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("mode", ["decode", "prefill", "batch"])
@pytest.mark.parametrize("engine", [[], ["--engine"]])
def test_a_random_preset_is_measured(tiny, capsys, mode, engine):
    said = said_by(
        capsys,
        *["bench", mode, "--preset", "tiny", "--random", "--weights", "int4", "--cache", "int8"],
        *["--prompt-tokens", "70", "--tokens", "5", "--sequences", "3", "--runs", "3", "--threads", "1"],
        *engine,
    )
    assert "int4 weights, int8 cache" in said["executor"]
    rate = said["tokens_per_second"]
    assert 0 < rate["low"] <= rate["median"] <= rate["high"] and len(rate["runs"]) == 3
    roof, reached = (
        ("gflops", "roof_gflops") if mode == "prefill" else ("gb_per_second", "roof_gb_per_second")
    )
    assert said[reached]["median"] == pytest.approx(5 if mode == "prefill" else 4)
    assert said["fraction"]["median"] == pytest.approx(
        said[roof]["median"] / said[reached]["median"], rel=0.3
    )
    assert said["sequences"] == (3 if mode == "batch" else 1)
    assert bench.page(said)


def test_through_the_engine_a_text_begins_with_one_token(tiny, capsys):
    """So that the default of --context doesn't count against a short model."""
    words = [
        "bench",
        "decode",
        "--preset",
        "tiny",
        "--random",
        "--tokens",
        "5",
        "--runs",
        "1",
        "--context",
        "100000",
    ]
    assert said_by(capsys, *words, "--threads", "1", "--engine")["tokens_per_second"]["median"] > 0
    with pytest.raises(SystemExit) as done:
        cli.main([*words, "--threads", "1"])
    assert done.value.code == 2 and "more than the model's context" in capsys.readouterr().err


def test_what_a_decode_step_reads():
    dense = Decoder(ModelConfig(64, 160, (dense_layer(4, 2, 16, 96),) * 2, 64, tied=False)).initialise(0)
    packed = pack_model(dense, "bfloat16")
    table = packed.matrices["embedding"].data.numel()
    assert bench.read_bytes(packed, 1) == packed.nbytes - table
    spec = LayerSpec(AttentionSpec(4, 2, 16, RopeSpec(16, 1e4)), MoESpec(8, 2, 64))
    experts = pack_model(Decoder(ModelConfig(64, 160, (spec,), 64)).initialise(0), "bfloat16")
    held = sum(m.data.numel() for m in experts.matrices.values() if m.count > 1)
    assert bench.read_bytes(experts, 1) == experts.nbytes - held * 6 / 8
    assert bench.read_bytes(experts, 1000) == pytest.approx(experts.nbytes)


def test_random_weights_are_ordinary_numbers():
    config = ModelConfig(96, 300, (dense_layer(4, 2, 24, 100),) * 2, 64)
    packed = bench.random_packed(config, "int8")
    weight = packed.matrices["blocks.1.mlp.gate_up"].dequantised()
    assert weight.shape == (200, 96) and 0.015 < float(weight.std()) < 0.025


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["walk", "--preset", "tiny", "--random"], "walk"),
        (["decode"], "measured"),
        (["decode", "--preset", "tiny"], "random"),
        (["decode", "--preset", "tiny", "--random", "--tokens", "0"], "tokens"),
        (["decode", "--preset", "tiny", "--random", "--tokens", "300"], "context"),
        (["decode", "--preset", "tiny", "--random", "--threads", "9999"], "threads"),
        (["decode", "--preset", "tiny", "--random", "--weights", "int3"], "int3"),
    ],
    ids=str,
)
def test_what_can_t_be_measured(tiny, capsys, words, says):
    with pytest.raises(SystemExit) as done:
        cli.main(["bench", *words])
    assert done.value.code == 2 and says in capsys.readouterr().err


def test_a_preset_that_is_none():
    with pytest.raises(InputNotFoundError):
        bench.bench("decode", preset="lama-7", runs=1)


@pytest.fixture
def model(tmp_path):
    """A small model with a tokenizer of ours."""
    tokenizer = train_tokenizer(iter(["the quick brown fox 12 + 30", "jumps over the lazy dog"] * 4), 300)
    config = ModelConfig(64, tokenizer.vocab_size, (dense_layer(4, 2, 16, 96),) * 2, 128)
    folder = tmp_path / "model"
    folder.mkdir()
    save_model(Decoder(config).initialise(1), folder, bos=0, eos=1, pad=2)
    tokenizer.save(folder)
    (folder / "README.md").write_text("# Small\n")
    return folder


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_quantise_measure_and_bench(tiny, capsys, tmp_path, model, weights):
    text, out = tmp_path / "text.txt", tmp_path / "packed"
    text.write_text("The quick brown dog jumps over the lazy fox.\n" * 30)
    words = ["quantize", str(model), "--weights", weights, "--out", str(out), "--text", str(text)]
    said = said_by(capsys, *words)
    quality = said["quality"]["text"]
    assert quality["tokens"] > 200 and 0 <= quality["kl_mean"] < 0.1 and quality["top1_agreement"] > 0.5
    low, high = quality["perplexity_change_95"]
    assert low < quality["perplexity_change"] < high
    change = quality["perplexity"] / quality["perplexity_float32"] - 1
    assert change == pytest.approx(quality["perplexity_change"], abs=1e-9)
    assert said["bytes_after"] < said["bytes_before"]
    kept = json.loads((out / "quantization.json").read_text())
    assert kept["quality"] == said["quality"]
    card = (out / "README.md").read_text()
    assert card.startswith("# Small\n") and "## Quantised weights" in card and weights in card
    assert (out / "tokenizer.json").is_file() and not (out / "model.safetensors").exists()
    measured = said_by(capsys, "bench", "decode", str(out), "--tokens", "4", "--context", "20", "--runs", "1")
    assert measured["weights"] == weights and not measured["random"]
    with pytest.raises(SystemExit):
        cli.main(words)
    assert "exists already" in capsys.readouterr().err


def test_other_kinds_are_refused(model, tmp_path):
    from ayllu.quantizing import quantize_model

    with pytest.raises(UsageError, match="int2"):
        quantize_model(str(model), tmp_path / "out", weights="int2")
    assert not (tmp_path / "out").exists()


def test_packed_weights_are_not_exported_or_packed_again(model, tmp_path):
    from ayllu.engine.quantize import quantize_files
    from ayllu.exchange import export_model
    from ayllu.quantizing import quantize_model

    packed = tmp_path / "packed"
    shutil.copytree(model, packed)
    quantize_files(packed, "int8", packed)
    export_model(str(packed), tmp_path / "fine.gguf")  # the whole weights are there as well
    (packed / "model.safetensors").unlink()
    for work in (
        lambda out: export_model(str(packed), out / "m.gguf"),
        lambda out: export_model(str(packed), out / "m"),
        lambda out: quantize_model(str(packed), out / "q"),
    ):
        with pytest.raises(UsageError, match=r"packed weights only \(int8\)") as error:
            work(tmp_path / "out")
        assert error.value.fix == "name the model that was packed"
    assert not (tmp_path / "out").exists()
