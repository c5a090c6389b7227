"""The released folder: others load it and get the same, and its manifest notices every change."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from released import RESULTS, make_run
from released import chat as chat
from released import context as context
from released import folder as folder
from released import result as result
from released import theirs as theirs

from ayllu.engine.engine import Engine
from ayllu.errors import DiskFullError, ModelFileDamagedError, ModelFileMissingError
from ayllu.files import read_json, sha256_file, write_json
from ayllu.model.config import ModelSettings
from ayllu.model.decoder import Decoder
from ayllu.model.weights import load_model, save_model
from ayllu.reason.transcript import Chat
from ayllu.reason.verify import HEAD, Verifier, load_verifier, save_head
from ayllu.release import ReleaseSettings, release, verify_model_folder, weights_sha256
from ayllu.stage import StageContext
from ayllu.text.tokenizer import CONTROL, Tokenizer
from ayllu.train.sft import save_into


# ---- the folder
def test_folder_holds_what_others_expect_and_no_code(folder: Path, result: dict[str, Any]) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
        "generation_config.json", "README.md", "LICENSE", "ATTRIBUTION.md", "manifest.json", "report.json",
    }  # fmt: skip
    assert "auto_map" not in (folder / "config.json").read_text()
    assert result["weights_sha256"] == sha256_file(folder / "model.safetensors")
    assert result["files"] == len(names)


def test_a_verifier_travels_with_its_model(tmp_path: Path) -> None:
    here = make_run(tmp_path / "demo")
    made = Verifier(load_model(here.inputs["rl"] / "model"))
    torch.nn.init.normal_(made.head.weight)
    inputs = here.inputs | {"verifier": tmp_path / "demo" / "verifier"}
    inputs["verifier"].mkdir()
    save_into(replace(here, folder=inputs["verifier"]), made.decoder, Tokenizer.load(inputs["tokenizer"]))
    with pytest.raises(ModelFileMissingError, match=r"verifier\.safetensors"):
        release(replace(here, inputs=inputs), ReleaseSettings())
    save_head(made, inputs["verifier"] / "model")
    release(replace(here, inputs=inputs), ReleaseSettings())
    listed = read_json(here.folder / "manifest.json")["files"]
    assert {f"verifier/{name}" for name in ("config.json", "model.safetensors", HEAD)} <= set(listed)
    assert torch.equal(load_verifier(here.folder).head.weight, made.head.weight)
    (here.folder / "verifier" / "verifier.safetensors").unlink()
    with pytest.raises(ModelFileMissingError, match=r"verifier\.safetensors"):
        verify_model_folder(here.folder)


def test_a_distilled_model_travels_with_its_teacher_and_the_card_says_how_good_it_is(tmp_path: Path) -> None:
    row = {"n": 200, "low": 0.1, "high": 0.2, "mean_tokens": 30.0}
    distilled = {
        "parameters": {"teacher": 3_200_000, "student": 412_345},
        "evals": {
            "countdown3": {
                name: row | {"correct": n} for name, n in (("teacher", 176), ("sft", 62), ("student", 121))
            }
        },
    }
    ways = {"one": 0.719, "majority": 0.803, "weighted": 0.831, "best_of": 0.842, "any": 0.846}
    judging = {"samples": 8, "temperature": 0.7, "heldout": {"problems": 299, "accuracy": 0.95, **ways}}
    results = RESULTS | {"distill": distilled, "verifier": judging}
    here = make_run(tmp_path / "demo", results=results)
    release(here, ReleaseSettings())
    assert "verifier" not in (here.folder / "README.md").read_text()  # left behind by an older recipe
    with open(here.folder.parent / "recipe.toml", "a") as file:
        file.write("\n[verifier]\n\n[distill]\nlimit = 512\n")
    inputs = here.inputs | {"distill": tmp_path / "demo" / "distill"}
    with pytest.raises(ModelFileMissingError, match=r"distill.*config\.json"):
        release(replace(here, inputs=inputs), ReleaseSettings())
    tokenizer = Tokenizer.load(here.inputs["tokenizer"])
    small = Decoder(ModelSettings(width=32, layers=1, head_dim=16, context=256).config(tokenizer.vocab_size))
    save_into(replace(here, folder=inputs["distill"]), small, tokenizer)
    release(replace(here, inputs=inputs), ReleaseSettings())
    assert "student/chat_template.jinja" in read_json(here.folder / "manifest.json")["files"]
    assert load_model(here.folder / "student").config.width == 32
    card = (here.folder / "README.md").read_text()
    assert "412k" in card and "| countdown3 | 200 | 88.0% (10.0% – 20.0%) | 31.0%" in card
    shares = ("71.9% (66.6% – 76.7%)", "80.3% (", "83.1% (", "84.2% (", "84.6% (")
    assert all(share in card for share in shares) and "8 answers (temperature 0.7) to each of 299" in card
    report = read_json(here.folder / "report.json")
    assert report["distill"]["parameters"]["student"] == 412_345 and report["stages"]["distill"]
    assert report["finished"] and "at most 512 tokens" in card


def test_manifest_lists_every_file_and_the_data(folder: Path, context: StageContext) -> None:
    manifest = read_json(folder / "manifest.json")
    assert set(manifest["files"]) == {p.name for p in folder.iterdir()} - {"manifest.json"}
    for name, entry in manifest["files"].items():
        assert entry == {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
    assert manifest["data_manifest_sha256"] == sha256_file(context.inputs["text"] / "manifest.json")
    assert manifest["data"]["train"]["documents"] == 264
    assert manifest["recipe"]["seed"] == 7
    verify_model_folder(folder)


def test_by_default_the_weights_are_those_of_rl_to_the_byte(folder: Path, context: StageContext) -> None:
    made = context.inputs["rl"] / "model" / "model.safetensors"
    assert (folder / "model.safetensors").read_bytes() == made.read_bytes()
    assert read_json(folder / "config.json")["dtype"] == "float32"
    card = (folder / "README.md").read_text()
    assert "Its weights are stored in float32." in card and "rounded" not in card


@pytest.fixture(scope="module")
def halved(tmp_path_factory: pytest.TempPathFactory) -> StageContext:
    """A release in bfloat16 and files of at most a megabyte: of 1.6 million weights, which takes several."""
    here = make_run(tmp_path_factory.mktemp("runs") / "demo")
    size = Tokenizer.load(here.inputs["tokenizer"]).vocab_size
    config = ModelSettings(width=256, layers=2, head_dim=32, context=256).config(size)
    save_model(Decoder(config).initialise(5), here.inputs["rl"] / "model", bos=0, eos=1, pad=2)
    release(here, ReleaseSettings(dtype="bfloat16", max_shard_size=1))
    return here


def test_weights_in_fewer_bits_and_several_files(halved: StageContext) -> None:
    source, folder = halved.inputs["rl"] / "model", halved.folder
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) >= 3 and all(path.stat().st_size < 1 << 20 for path in shards)
    whole = (source / "model.safetensors").stat().st_size
    assert sum(path.stat().st_size for path in shards) == pytest.approx(whole / 2, rel=0.01)
    made, released = load_model(source), load_model(folder, dtype="bfloat16")
    for (name, wanted), found in zip(made.named_parameters(), released.parameters(), strict=True):
        assert torch.equal(wanted.bfloat16(), found.bfloat16()), name
    assert read_json(folder / "config.json")["dtype"] == "bfloat16"
    listed = read_json(folder / "manifest.json")["files"]
    for path in [*shards, folder / "model.safetensors.index.json"]:
        assert listed[path.name] == {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    assert read_json(folder / "manifest.json")["weights_sha256"] == weights_sha256(folder)
    report, card = read_json(folder / "report.json"), (folder / "README.md").read_text()
    assert report["weights_dtype"] == "bfloat16" and "Its weights are stored in bfloat16." in card
    assert "They were rounded to bfloat16 after they had been examined." in card


def test_a_shard_that_is_missing_or_altered_is_named(halved: StageContext, tmp_path: Path) -> None:
    for path in halved.folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ModelFileDamagedError, match=re.escape(shard.name)):
        verify_model_folder(tmp_path)
    shard.unlink()
    with pytest.raises(ModelFileMissingError, match=re.escape(shard.name)):
        verify_model_folder(tmp_path)


def test_transformers_and_the_engine_read_several_files(halved: StageContext) -> None:
    from transformers import AutoModelForCausalLM

    judge = AutoModelForCausalLM.from_pretrained(halved.folder, dtype=torch.float32)
    tokens_BT = torch.randint(0, judge.config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits_BTV = load_model(halved.folder)(tokens_BT)
        torch.testing.assert_close(logits_BTV, judge(tokens_BT).logits, atol=2e-5, rtol=1e-4)
    with Engine(halved.folder) as engine:
        (done,) = engine.generate([tokens_BT[0].tolist()], max_tokens=1, temperature=0)
    assert done.token_ids[0] == int(logits_BTV[0, -1].argmax())


def test_transformers_gives_the_same_logits(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    judge = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens_BT = torch.randint(0, judge.config.vocab_size, (3, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected_BTV, logits_BTV = judge(tokens_BT).logits, load_model(folder)(tokens_BT)
    torch.testing.assert_close(logits_BTV, expected_BTV, atol=2e-5, rtol=1e-4)


def test_transformers_knows_where_a_turn_ends(folder: Path, theirs: Any) -> None:
    from transformers import GenerationConfig

    control = Tokenizer.load(folder).control
    generation = GenerationConfig.from_pretrained(folder)
    assert generation.eos_token_id == [control["<|end|>"], control["<|/tool|>"]]
    assert theirs.eos_token_id == control["<|end|>"]
    assert generation.pad_token_id == theirs.pad_token_id == control["<|pad|>"]
    assert generation.bos_token_id == theirs.bos_token_id == control["<|bos|>"]
    assert generation.do_sample is False
    assert set(theirs.all_special_ids) >= {control[name] for name in CONTROL}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text())
def test_transformers_encodes_plain_text_alike(theirs: Any, chat: Chat, text: str) -> None:
    if any(name in text for name in CONTROL):
        return  # a plain tokenizer call parses them; the template's tests are in test_release_template.py
    assert theirs(text, add_special_tokens=False)["input_ids"] == chat.tokenizer.encode(text)


def test_a_second_release_gives_the_same_and_removes_leftovers(tmp_path: Path) -> None:
    context = make_run(tmp_path / "demo")
    first = release(context, ReleaseSettings())
    (context.folder / "model.safetensors").write_bytes(b"half")
    (context.folder / ".README.md.part").write_text("half")
    (context.folder / "old.bin").write_bytes(b"x")
    (context.folder / "sub").mkdir()
    assert release(context, ReleaseSettings()) == first
    assert len(list(context.folder.iterdir())) == first["files"]


def test_a_release_that_was_killed_is_no_model_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ayllu.release as module

    context = make_run(tmp_path / "demo")
    release(context, ReleaseSettings())
    copies = []

    def copy(source: Path, target: Path) -> None:
        copies.append(target.name)
        if len(copies) == 2:
            raise DiskFullError(f"no room to write {target}")
        original(source, target)

    original = module._copy
    monkeypatch.setattr(module, "_copy", copy)
    with pytest.raises(DiskFullError):
        release(context, ReleaseSettings())
    with pytest.raises(ModelFileMissingError, match=r"manifest\.json"):
        verify_model_folder(context.folder)


@pytest.mark.parametrize(
    "name",
    ["rl/model/config.json", "rl/model/model.safetensors", "tokenizer/tokenizer.json", "text/manifest.json"],
)
def test_a_missing_input_is_named(tmp_path: Path, name: str) -> None:
    context = make_run(tmp_path / "demo")
    (tmp_path / "demo" / name).unlink()
    with pytest.raises(ModelFileMissingError, match=re.escape(Path(name).name)):
        release(context, ReleaseSettings())


def test_a_model_smaller_than_its_tokenizer_is_refused(tmp_path: Path) -> None:
    context = make_run(tmp_path / "demo")
    small = Decoder(ModelSettings(width=32, layers=1, head_dim=16, context=256).config(100))
    save_model(small, context.inputs["rl"] / "model", bos=0, eos=1, pad=12)
    with pytest.raises(ModelFileDamagedError, match="knows 100 tokens"):
        release(context, ReleaseSettings())


# ---- the manifest notices
@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


NAMES = [
    "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
    "generation_config.json", "README.md", "LICENSE", "ATTRIBUTION.md", "report.json",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_missing_cut_or_altered_file_is_named(copied: Path, name: str) -> None:
    whole = (copied / name).read_bytes()
    (copied / name).write_bytes(whole[:-1])
    with pytest.raises(ModelFileDamagedError, match=re.escape(name)):
        verify_model_folder(copied)
    middle = len(whole) // 2
    (copied / name).write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    with pytest.raises(ModelFileDamagedError, match=re.escape(name)):
        verify_model_folder(copied)
    (copied / name).unlink()
    with pytest.raises(ModelFileMissingError, match=re.escape(name)):
        verify_model_folder(copied)
    (copied / name).write_bytes(whole)
    verify_model_folder(copied)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"files": {}}', '{"files": []}', '{"files": {"a": 1}}', '{"files": {"a": {}}}', "\xff"],
)
def test_a_manifest_that_is_none_is_refused(copied: Path, content: str) -> None:
    (copied / "manifest.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ModelFileDamagedError, match=r"manifest\.json"):
        verify_model_folder(copied)


@pytest.mark.parametrize(
    "name", ["model-00002.safetensors", "model.safetensors.index.json", "modeling.py", "x.bin"]
)
def test_weights_and_code_that_were_added_are_refused(copied: Path, name: str) -> None:
    (copied / name).write_text("{}")
    with pytest.raises(ModelFileDamagedError, match=re.escape(name)):
        verify_model_folder(copied)


def test_a_manifest_that_points_outside_is_refused(copied: Path) -> None:
    from ayllu.errors import BadFileError

    manifest = read_json(copied / "manifest.json")
    manifest["files"]["../secret"] = {"bytes": 1, "sha256": "00"}
    write_json(copied / "manifest.json", manifest)
    with pytest.raises(BadFileError, match="outside"):
        verify_model_folder(copied)


def test_a_note_of_the_owners_is_let_be(copied: Path) -> None:
    (copied / "NOTES.txt").write_text("mine")
    verify_model_folder(copied)
