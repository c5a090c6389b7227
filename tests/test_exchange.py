"""Models that come and leave by command: GGUF and Hugging Face folders, with their tokenizers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from ayllu import cli
from ayllu.errors import ModelFileDamagedError, RequestError, UsageError
from ayllu.exchange import export_model, import_model
from ayllu.files import write_json
from ayllu.gguf import header_bytes, read_header
from ayllu.model.config import ModelSettings
from ayllu.model.decoder import Decoder
from ayllu.model.formats import blocks
from ayllu.model.weights import load_model, save_model
from ayllu.serve.service import SamplingDefaults
from ayllu.text.gguf_vocabulary import files_from_gguf, gguf_values
from ayllu.text.tokenizer import CONTROL, Tokenizer, train_tokenizer

STORIES = Path(__file__).parent / "fixtures" / "stories260K"
TEXTS = [
    "What is 417 + 385? It's 802.",
    "Die Straße war naß, und wir gingen über die Brücke.\n\nZweiter Absatz: „Ja!“",
    "ఆవు పాలు ఇస్తుంది. కుక్క మొరుగుతుంది.",
    "def f(x):\n    return x[0] ** 2  # 🦙 👩‍👩‍👧\n\tprint('a-b', \"c\")\n",
    "  two spaces,\ttab <|user|> and 1234567890",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of our own shape with its tokenizer."""
    out = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(iter(TEXTS), 400)
    tokenizer.save(out)
    config = ModelSettings(width=64, layers=2, head_dim=32, context=128).config(410)
    model = Decoder(config).initialise(0)
    save_model(model, out, bos=0, eos=1, pad=12)
    write_json(
        out / "generation_config.json", {"bos_token_id": 0, "eos_token_id": [1, 8], "pad_token_id": 12}
    )
    (out / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    return out


def logits(path: Path) -> torch.Tensor:
    return load_model(path)(torch.arange(3, 60)[None])


# ---- our own models
def test_our_model_goes_out_and_comes_back(folder: Path, tmp_path: Path) -> None:
    said = export_model(str(folder), tmp_path / "a.gguf", kind="bf16")
    assert said["bytes"] == (tmp_path / "a.gguf").stat().st_size and said["tokenizer"]
    again = import_model(str(tmp_path / "a.gguf"), tmp_path / "back")
    assert again["kind"] == "bfloat16"
    for name, weight in load_model(folder).state_dict().items():
        assert torch.allclose(load_model(tmp_path / "back").state_dict()[name], weight, rtol=2**-8), name
    ours, theirs = Tokenizer.load(folder), Tokenizer.load(tmp_path / "back")
    assert [theirs.encode(text) for text in TEXTS] == [ours.encode(text) for text in TEXTS]
    assert theirs.control == ours.control
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (0, 1, 12)
    generation = json.loads((tmp_path / "back" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [1, 8]
    assert (tmp_path / "back" / "chat_template.jinja").read_text() == "{{ messages }}"
    judge = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype="float32")
    with torch.no_grad():
        difference = judge(torch.arange(3, 60)[None]).logits - logits(tmp_path / "back")
    assert difference.abs().max() < 1e-4


@pytest.mark.parametrize(
    ("sampling", "metadata"),
    [
        ({"do_sample": False}, {"general.sampling.temp": 0.0}),
        (
            {"temperature": 0.5, "top_k": 20, "top_p": 0.75, "min_p": 0.25},
            {
                "general.sampling.temp": 0.5, "general.sampling.top_k": 20, "general.sampling.top_p": 0.75,
                "general.sampling.min_p": 0.25,
            },
        ),
        ({}, {}),
    ],
)  # fmt: skip
def test_how_to_sample_goes_out_and_comes_back(
    folder: Path, tmp_path: Path, sampling: dict[str, Any], metadata: dict[str, Any]
) -> None:
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    write_json(path, json.loads(path.read_text()) | sampling)
    for way in ("once", "twice"):
        export_model(str(tmp_path / "model"), tmp_path / f"{way}.gguf")
        stored = read_header(tmp_path / f"{way}.gguf").metadata
        assert {k: v for k, v in stored.items() if k.startswith("general.sampling")} == metadata
        shutil.rmtree(tmp_path / "model")
        import_model(str(tmp_path / f"{way}.gguf"), tmp_path / "model")
    export_model(str(tmp_path / "once.gguf"), tmp_path / "thrice.gguf")  # a file from a file
    found = [SamplingDefaults.read(tmp_path / name) for name in ("model", "once.gguf", "thrice.gguf")]
    assert found[0] == found[1] == found[2]
    assert found[0].temperature == (
        0.0 if sampling.get("do_sample") is False else sampling.get("temperature", 1)
    )


def test_the_vocabulary_in_the_file(folder: Path) -> None:
    values = gguf_values(folder, 410)
    assert values is not None
    assert values["tokenizer.ggml.model"] == "gpt2" and values["tokenizer.ggml.pre"] == "qwen35"
    tokens, types = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    assert tokens[: len(CONTROL)] == list(CONTROL) and len(tokens) == len(types) == 410
    assert tokens[-1] == "[PAD409]" and types.tolist() == [3] * 16 + [1] * 384 + [5] * 10
    ids = {key: values[f"tokenizer.ggml.{key}_token_id"] for key in ("bos", "eos", "eot", "padding")}
    assert ids == {"bos": 0, "eos": 1, "eot": 8, "padding": 12}
    assert values["tokenizer.ggml.add_bos_token"] is False


def test_a_vocabulary_without_its_json(folder: Path) -> None:
    """What llama.cpp reads is enough for the same ids, but for the pattern's rare differences."""
    values = gguf_values(folder, 410)
    assert values is not None
    del values["tokenizer.huggingface.json"]
    import tokenizers

    theirs = tokenizers.Tokenizer.from_str(files_from_gguf(values)["tokenizer.json"].decode())
    theirs.encode_special_tokens = True
    ours = Tokenizer.load(folder)
    for text in TEXTS:
        assert theirs.encode(text, add_special_tokens=False).ids == ours.encode(text), text


# ---- models of others
def test_a_foreign_model_keeps_its_sentencepiece(tmp_path: Path) -> None:
    export_model(str(STORIES), tmp_path / "s.gguf", kind="Q8_0")
    metadata = read_header(tmp_path / "s.gguf").metadata
    assert metadata["tokenizer.ggml.model"] == "llama"
    import_model(str(tmp_path / "s.gguf"), tmp_path / "back")
    text = "Once upon a time, there was a little girl named Lily. ßäఆ 🦙"
    ours = Tokenizer.load(STORIES).encode(text)
    assert Tokenizer.load(tmp_path / "back").encode(text) == ours
    assert Tokenizer.load(tmp_path / "s.gguf").encode(text) == ours
    weights, original = load_model(tmp_path / "back").state_dict(), load_model(STORIES).state_dict()
    q = "blocks.0.attention.qkv.weight"
    assert torch.equal(weights[q], blocks.unpack("Q8_0", blocks.pack("Q8_0", original[q])))


def test_a_hugging_face_folder_is_copied_whole(folder: Path, tmp_path: Path) -> None:
    (folder / "LICENSE").write_text("free", encoding="utf-8")
    (folder / "run_me.py").write_text("raise SystemExit", encoding="utf-8")
    said = export_model(str(folder), tmp_path / "copy")  # a name that isn't one of a GGUF file
    assert said["format"] == "hf"
    assert (tmp_path / "copy" / "LICENSE").read_text() == "free"
    assert not (tmp_path / "copy" / "run_me.py").exists()
    for name in ("model.safetensors", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (folder / name).read_bytes()


def test_scores_of_sentencepiece_in_json(tmp_path: Path) -> None:
    """Llama 2's tokenizer.json: byte-pair merges of SentencePiece pieces, without the scores."""
    vocabulary = {"<unk>": 0, "<s>": 1, "<0x41>": 2, "▁": 3, "a": 4, "b": 5, "ab": 6, "▁ab": 7}
    said = {
        "added_tokens": [{"id": 1, "content": "<s>", "special": True}],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}]},
        "model": {
            "type": "BPE", "unk_token": "<unk>", "byte_fallback": True,
            "vocab": vocabulary, "merges": ["a b", ["▁", "ab"]],
        },
    }  # fmt: skip
    write_json(tmp_path / "tokenizer.json", said)
    values = gguf_values(tmp_path, 8)
    assert values is not None and values["tokenizer.ggml.add_space_prefix"] is True
    assert values["tokenizer.ggml.token_type"].tolist() == [2, 3, 6, 1, 1, 1, 1, 1]
    assert values["tokenizer.ggml.scores"][6:].tolist() == [0.0, -1.0]


# ---- what can't be done says so
def test_a_folder_without_a_tokenizer(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((folder / name).read_bytes())
    assert export_model(str(bare), tmp_path / "a.gguf")["tokenizer"] is False
    assert read_header(tmp_path / "a.gguf").metadata["tokenizer.ggml.model"] == "none"
    assert import_model(str(tmp_path / "a.gguf"), tmp_path / "back")["tokenizer"] is False


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["export", "{model}", "{out}.gguf", "--kind", "Q3_K"], 2, "--kind"),
        (["export", "{model}", "{out}", "--format", "onnx"], 2, "--format"),
        (["export", "{model}", "{model}", "--format", "gguf"], 2, "one file"),
        (["export", "{model}", "{bad}"], 2, "exists already"),
        (["export", "{model}", "{model}"], 2, "exists already"),
        (["export", "nothing", "{out}"], 4, "there is no model"),
        (["import", "{model}", "{model}"], 2, "exists already"),
        (["import", "{bad}", "{out}"], 5, "GGUF"),
    ],
)
def test_exit_codes(folder: Path, tmp_path: Path, words: list[str], code: int, said: str) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(10))
    places = {"model": folder, "out": tmp_path / "out", "bad": tmp_path / "bad.gguf"}
    done = subprocess.run(
        [sys.executable, "-m", "ayllu", *(word.format(**places) for word in words)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert said in done.stderr and done.stdout == "" and not (tmp_path / "out").exists()


def test_the_result_as_json(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.program()(["export", str(folder), str(tmp_path / "a.gguf"), "--kind", "Q8_0", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert said["kind"] == "Q8_0" and said["parameters"] == sum(
        weight.numel() for weight in load_model(folder).parameters()
    )


DAMAGED: list[dict[str, Any]] = [
    {"model": {"type": "Unigram", "vocab": []}},
    {"model": {"type": "BPE", "vocab": {"a": 500}, "merges": []}},
    {"model": {"type": "BPE", "vocab": {"a": "b"}, "merges": []}},
    {"model": {"type": "BPE", "vocab": {"a": 1}, "merges": []}, "added_tokens": [{"id": 2}]},
    {"model": {"type": "BPE", "vocab": {"a": 1}, "merges": [7]}},
    {"model": {"type": "BPE", "vocab": {"a": 1}, "merges": []}, "pre_tokenizer": {"type": "Whitespace"}},
    {"model": 5},
]


@pytest.mark.parametrize("said", DAMAGED)
def test_tokenizers_that_cant_be_written(tmp_path: Path, said: dict[str, Any]) -> None:
    write_json(tmp_path / "tokenizer.json", said)
    with pytest.raises((RequestError, ModelFileDamagedError)):
        gguf_values(tmp_path, 100)


@pytest.mark.parametrize(
    "values",
    [
        {"model": "wordpiece"},
        {"model": "gpt2", "tokens": ["a"], "token_type": ["x"]},
        {"model": "gpt2", "tokens": ["a", "b"], "token_type": [1]},
        {"model": "gpt2", "tokens": ["a"], "pre": "unheard-of"},
        {"model": "llama", "tokens": ["a"], "token_type": [1]},
        {"model": "llama", "tokens": 7},
    ],
)
def test_vocabularies_that_cant_be_read(values: dict[str, Any]) -> None:
    with pytest.raises(ModelFileDamagedError):
        files_from_gguf({f"tokenizer.ggml.{key}": value for key, value in values.items()})


def test_an_import_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(header_bytes({"general.architecture": "llama"}, {}))
    with pytest.raises(ModelFileDamagedError):
        import_model(str(tmp_path / "a.gguf"), tmp_path / "out")
    (tmp_path / "full").mkdir()
    with pytest.raises(UsageError):
        import_model(str(tmp_path / "a.gguf"), tmp_path / "full")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "full"]
