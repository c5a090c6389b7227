"""Models that come and leave by command: GGUF and Hugging Face folders, with their tokenizers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from ayllu import cli
from ayllu.errors import BadFileError, ModelFileDamagedError, RequestError, UsageError
from ayllu.exchange import export_model, import_model
from ayllu.files import new_folder, write_json
from ayllu.gguf import decimal, header_bytes, read_header, sampling_from_gguf
from ayllu.model.config import ModelSettings
from ayllu.model.decoder import Decoder
from ayllu.model.formats import blocks
from ayllu.model.weights import load_model, save_model
from ayllu.quantizing import quantize_model
from ayllu.serve.service import SamplingDefaults
from ayllu.text.gguf_vocabulary import files_from_gguf, gguf_values
from ayllu.text.tokenizer import CONTROL, Tokenizer, train_tokenizer
from ayllu.text.vocabularies.bytelevel import LLAMA3
from ayllu.text.vocabularies.gguf import from_metadata

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
            {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05},
            {
                "general.sampling.temp": 0.6, "general.sampling.top_k": 20, "general.sampling.top_p": 0.95,
                "general.sampling.min_p": 0.05,
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
        written = {k: decimal(v) for k, v in stored.items() if k.startswith("general.sampling")}
        assert written == metadata
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
    # Ours stand in front of all others: there a token that isn't in the vocabulary would get another id.
    assert {name: theirs.token_to_id(name) for name in ours.control} == ours.control
    twice = values | {"tokenizer.ggml.tokens": ["a", *values["tokenizer.ggml.tokens"][:-2], "a"]}
    with pytest.raises(ModelFileDamagedError, match="twice"):
        files_from_gguf(twice)
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


def test_a_link_to_somewhere_else_is_not_passed_on(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine", encoding="utf-8")
    strange = tmp_path / "strange"
    shutil.copytree(folder, strange)
    (strange / "chat_template.jinja").unlink()

    def to_gguf(source: str, out: Path) -> None:
        export_model(source, out.with_suffix(".gguf"))

    def pack(source: str, out: Path) -> None:
        quantize_model(source, out, tokens=64)

    for name in ("NOTICE", "README.md", "ATTRIBUTION.md", "chat_template.jinja"):
        (strange / name).symlink_to(tmp_path / "secret")
        for verb in (import_model, pack, *([to_gguf] if name != "NOTICE" else [])):
            with pytest.raises(BadFileError, match="points outside"):
                verb(str(strange), tmp_path / "out")
            assert not [p for p in tmp_path.iterdir() if p.name.startswith("out")]
        (strange / name).unlink()
    # The cache of a hub is links to one folder of the same model.
    hub, blobs = tmp_path / "models--x" / "snapshots" / "abc", tmp_path / "models--x" / "blobs"
    hub.mkdir(parents=True)
    blobs.mkdir()
    for path in [p for p in folder.iterdir() if p.is_file()]:
        shutil.copyfile(path, blobs / path.name)
        (hub / path.name).symlink_to(blobs / path.name)
    assert import_model(str(hub), tmp_path / "out")["tokenizer"]


def test_card_licence_and_templates_go_along(folder: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    head = 'language: en\nlicense: other\nlicense_name: "a-b"\nlicense_link: LICENSE-MODEL'
    (whole / "README.md").write_text(f"---\n{head}\n---\n# It\nlicense: no\n", encoding="utf-8")
    (whole / "ATTRIBUTION.md").write_text("# Whose text\n", encoding="utf-8")
    (whole / "additional_chat_templates").mkdir()
    beside = ("LICENSE-MODEL", "NOTICE.txt", "LICENCE.md", "additional_chat_templates/tool_use.jinja")
    for name in beside:
        (whole / name).write_text(f"{{# {name} #}}", encoding="utf-8")
    export_model(str(whole), tmp_path / "copy")
    assert all((tmp_path / "copy" / n).read_text() == (whole / n).read_text() for n in (*beside, "README.md"))
    export_model(str(whole), tmp_path / "a.gguf")
    export_model(str(tmp_path / "a.gguf"), tmp_path / "b.gguf")  # a file from a file
    for name in ("a.gguf", "b.gguf"):
        said = read_header(tmp_path / name).metadata
        assert (said["general.license"], said["general.license.name"]) == ("other", "a-b")
        assert said["tokenizer.chat_template.tool_use"] == (whole / beside[-1]).read_text()
    import_model(str(tmp_path / "b.gguf"), tmp_path / "back")
    back = tmp_path / "back"
    assert (back / "README.md").read_text().startswith('---\nlicense: "other"\nlicense_name: "a-b"\n')
    assert (back / "ATTRIBUTION.md").read_text() == "# Whose text\n"
    assert (back / beside[-1]).read_text() == (whole / beside[-1]).read_text()
    assert files_from_gguf(said | {"tokenizer.chat_template.../../x": "out"}).keys() <= {
        path.relative_to(back).as_posix() for path in back.rglob("*")
    }


def test_a_tokenizer_that_begins_with_bos_keeps_it(tmp_path: Path) -> None:
    """Llama 3's: its tokenizer.json puts BOS in front, its tokenizer_config.json says nothing, and in a GGUF
    file the name of the pattern says it."""
    import tokenizers

    inner = tokenizers.Tokenizer(tokenizers.models.BPE(ranked := {"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(LLAMA3), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", len(ranked))]
    )
    source = tmp_path / "llama"
    source.mkdir()
    inner.save(str(source / "tokenizer.json"))
    config = ModelSettings(width=64, layers=1, head_dim=32, context=64).config(5)
    save_model(Decoder(config).initialise(0), source, bos=3, eos=4, pad=4)
    assert Tokenizer.load(source).prefix == (3,)
    export_model(str(source), tmp_path / "a.gguf")
    assert read_header(tmp_path / "a.gguf").metadata["tokenizer.ggml.add_bos_token"] is True
    import_model(str(tmp_path / "a.gguf"), tmp_path / "back")
    assert Tokenizer.load(tmp_path / "back").prefix == Tokenizer.load(tmp_path / "a.gguf").prefix == (3,)
    values = gguf_values(source, 5)
    assert values is not None
    for whole in (True, False):  # as other programs write it: without the flag, and without our key
        told = {k: v for k, v in values.items() if whole or k != "tokenizer.huggingface.json"}
        del told["tokenizer.ggml.add_bos_token"]
        told |= {"tokenizer.ggml.bos_token_id": 3, "tokenizer.ggml.eos_token_id": 4}
        assert from_metadata(told, tmp_path / "x.gguf").prefix == (3,)
        again = tmp_path / f"again{whole}"
        again.mkdir()
        for name, content in files_from_gguf(told).items():
            (again / name).write_bytes(content)
        assert Tokenizer.load(again).prefix == (3,)


def test_a_long_tokenizer_comes_back(tmp_path: Path) -> None:
    """Llama 3's tokenizer.json has 17 million bytes."""
    text = "x" * 17_300_000
    (tmp_path / "long.gguf").write_bytes(header_bytes({"tokenizer.huggingface.json": text}, {}))
    assert read_header(tmp_path / "long.gguf").metadata == {"tokenizer.huggingface.json": text}


@pytest.mark.parametrize("key", ["general.sampling.temp", "general.sampling.top_k"])
@pytest.mark.parametrize("value", [np.array([0.0, 1.0], np.float32), "hot", float("inf"), True])
def test_sampling_that_is_no_number(tmp_path: Path, key: str, value: Any) -> None:
    with pytest.raises(ModelFileDamagedError, match="is no number"):
        sampling_from_gguf({key: value})


def test_a_folder_that_came_meanwhile_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(UsageError, match="exists already"), new_folder(out, replace=False) as folder:
        (folder / "made").write_text("x")
        out.mkdir()
        (out / "theirs").write_text("y")
    assert (out / "theirs").read_text() == "y" and [p.name for p in tmp_path.iterdir()] == ["out"]


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
        (["export", "{model}", "{out}", "--kind", "Q8_0"], 2, "is of a GGUF file"),
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
