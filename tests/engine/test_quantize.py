"""Packed weights as files: the same numbers, mapped and shared, and damaged in every way."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import CONTEXT, VOCABULARY, make_model

from ayllu import native
from ayllu.engine import quantize
from ayllu.engine.batch import Batch
from ayllu.engine.executors.native import NativeExecutor
from ayllu.engine.packed import FORMATS, PackedModel, pack_model
from ayllu.engine.quantize import (
    file_name,
    open_model,
    open_packed,
    pack_files,
    packed_kinds,
    quantize_files,
    save_packed,
    verify_packed,
)
from ayllu.errors import AylluError, ModelFileDamagedError, ModelFileMissingError, RequestError
from ayllu.model.config import AttentionSpec, LayerSpec, ModelConfig, MoESpec, RopeSpec
from ayllu.model.decoder import Decoder
from ayllu.model.formats.gguf import write_gguf
from ayllu.model.weights import load_model, save_model

pytestmark = pytest.mark.skipif(not native.available(), reason="no native extension on this machine")


def moe_model() -> Decoder:
    """Experts, a bias-free router, a head of its own."""
    spec = LayerSpec(AttentionSpec(4, 2, 16, RopeSpec(16, 1e4), qk_norm="rms"), MoESpec(6, 2, 40))
    config = ModelConfig(64, 97, (spec,) * 2, 128, tied=False, family="qwen3_moe")
    return Decoder(config).initialise(3).requires_grad_(False).eval()


def save(model: Decoder, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    save_model(model, folder, bos=0, eos=1, pad=2)
    return folder


def weights_of(packed: PackedModel) -> dict[str, torch.Tensor]:
    matrices = {name: matrix.dequantised() for name, matrix in packed.matrices.items()}
    biases = {f"{n}.bias": m.bias for n, m in packed.matrices.items() if m.bias is not None}
    return matrices | biases | packed.vectors


def same(a: PackedModel, b: PackedModel) -> None:
    ours, theirs = weights_of(a), weights_of(b)
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name]), name


def logits_of(packed: PackedModel) -> torch.Tensor:
    executor = NativeExecutor(packed)
    executor.reserve(2)
    ids = np.arange(20, dtype=np.int32)
    return executor.step(Batch(ids % 90, ids, np.zeros_like(ids), np.array([[0, 1]], dtype=np.int32), ids))


@pytest.mark.parametrize("make", [make_model, moe_model])
@pytest.mark.parametrize("weights", ["int8", "int4", "bfloat16", "float32"])
def test_from_files_from_memory_and_from_a_live_model_the_same(tmp_path, make, weights):
    model = make()
    source, out, copy = save(model, tmp_path / "a"), tmp_path / "out", save(model, tmp_path / "copy")
    out.mkdir()
    (out / "config.json").write_bytes((source / "config.json").read_bytes())
    quantize_files(source, weights, out)
    assert packed_kinds(out) == [weights]
    opened, live = open_packed(out), pack_model(model, weights)
    same(opened, live)
    same(pack_files(source, weights), live)
    assert torch.equal(logits_of(opened), logits_of(live))
    verify_packed(out)
    save_packed(live, copy)
    same(open_packed(copy, weights), live)
    assert open_packed(copy, weights).fingerprint == opened.fingerprint


def test_the_router_and_a_narrow_models_ends_keep_their_digits(tmp_path):
    packed = pack_files(save(moe_model(), tmp_path / "a"), "int4")
    formats = {name: matrix.format for name, matrix in packed.matrices.items()}
    assert formats["blocks.0.mlp.router"] == FORMATS["float32"]
    assert formats["embedding"] == formats["head"] == FORMATS["int8"]
    assert formats["blocks.1.mlp.down"] == formats["blocks.0.attention.qkv"] == FORMATS["int4"]


@pytest.fixture
def folder(tmp_path):
    """A model that is there only in packed form."""
    out = save(make_model(), tmp_path / "model")
    quantize_files(out, "int8", out)
    (out / "model.safetensors").unlink()
    return out


def test_what_an_engine_gets(folder, tmp_path):
    plain = save(make_model(), tmp_path / "plain")
    assert isinstance(open_model(folder), PackedModel)
    assert isinstance(open_model(folder, "int8"), PackedModel)
    assert isinstance(open_model(plain), Decoder)
    assert isinstance(open_model(plain, "bfloat16"), Decoder)
    assert open_model(plain).embedding.weight.dtype == torch.float32
    loaded = open_model(plain, "int4")
    assert isinstance(loaded, PackedModel) and loaded.weights == "int4"
    with pytest.raises(RequestError, match="int8 weights, not int4") as error:
        open_model(folder, "int4")
    assert "ayllu quantize" in error.value.fix
    with pytest.raises(RequestError, match="float32"):
        open_model(folder, "float32")
    with pytest.raises(RequestError, match="CPU"):
        open_model(folder, device="cuda")


def test_a_gpu_gets_the_weights_that_it_computes_with(monkeypatch, tmp_path):
    plain, asked = save(make_model(), tmp_path / "plain"), []
    monkeypatch.setattr(quantize, "load_model", lambda path, **how: asked.append(how))
    for weights in ("auto", "bfloat16", "int8", "float32"):
        open_model(plain, weights, "cuda:0")
    assert all(how["device"] == "cuda:0" for how in asked)
    assert [how["dtype"] for how in asked] == ["bfloat16", "bfloat16", "bfloat16", "float32"]


def test_the_file_lies_as_the_kernels_want_it(folder):
    data = (folder / file_name("int8")).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert (8 + length) % 4096 == 0
    header = json.loads(data[8 : 8 + length])
    assert header.pop("__metadata__")["weights"] == "int8"
    assert all(entry["data_offsets"][0] % 64 == 0 for entry in header.values())
    safetensors = pytest.importorskip("safetensors.torch")
    judged = safetensors.load(data)
    packed = open_packed(folder)
    assert torch.equal(judged["embedding.packed"], packed.matrices["embedding"].data)
    assert torch.equal(judged["norm.weight"][:48], packed.vectors["norm.weight"])


def edited(path: Path, **changes: str | None) -> None:
    """Other metadata, in the same number of bytes."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] |= {k: v for k, v in changes.items() if v is not None}
    for key, value in changes.items():
        if value is None:
            del header["__metadata__"][key]
    path.write_bytes(data[:8] + json.dumps(header).encode().ljust(length)[:length] + data[8 + length :])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": "2"}, "version"),
        ({"version": None}, "version"),
        ({"format": "pt"}, "packed"),
        ({"lanes": "8"}, "lanes"),
        ({"group": "64"}, "group"),
        ({"weights": "int4"}, "weights"),
        ({"matrices": "{}"}, "config.json"),
        ({"matrices": "[" * 90}, "config.json"),
        ({"data_sha256": "x"}, "config.json"),
    ],
    ids=str,
)
def test_another_description_is_refused_with_the_way_out(folder, changes, says):
    edited(folder / file_name("int8"), **changes)
    with pytest.raises(ModelFileDamagedError, match=says) as error:
        open_packed(folder)
    assert error.value.fix


def test_a_file_cut_short_anywhere(folder):
    path = folder / file_name("int8")
    data = path.read_bytes()
    for end in (0, 7, 8, 100, 4095, 4096, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(ModelFileDamagedError):
            open_packed(folder)
    path.write_bytes(data + b"\0")
    with pytest.raises(ModelFileDamagedError):
        open_packed(folder)
    path.unlink()
    with pytest.raises(ModelFileMissingError):
        open_packed(folder)


def test_flipped_bytes_of_the_header_never_crash(folder):
    path = folder / file_name("int8")
    data = path.read_bytes()
    used = len(data[8:4096].rstrip()) + 8
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(data)
        damaged[int(rng.integers(used))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(damaged))
        try:
            logits_of(open_packed(folder))
        except AylluError:
            continue
    # What still opened had another hash in its header, or the same meaning.


def test_another_models_config_is_refused(folder, tmp_path):
    other = Decoder(ModelConfig(48, VOCABULARY, make_model().config.layers[:1], CONTEXT)).initialise(0)
    config = save(other, tmp_path / "other") / "config.json"
    (folder / "config.json").write_bytes(config.read_bytes())
    with pytest.raises(ModelFileDamagedError, match="config"):
        open_packed(folder)


def test_altered_weights_are_found_by_their_hash(folder):
    path = folder / file_name("int8")
    verify_packed(folder)
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(bytes(data))
    open_packed(folder)
    with pytest.raises(ModelFileDamagedError, match="altered"):
        verify_packed(folder)


@pytest.mark.parametrize(("kind", "weights"), [("Q8_0", "int8"), ("Q4_0", "int4")])
@pytest.mark.parametrize("make", [make_model, moe_model])
def test_blocks_of_a_gguf_file_are_taken_over_exactly(tmp_path, kind, weights, make):
    config = make().config
    wide = ModelConfig(128, 97, config.layers, 128, tied=config.tied, family=config.family)
    model = Decoder(wide).initialise(5).requires_grad_(False)
    write_gguf(model, tmp_path / "m.gguf", kind=kind)
    stored = load_model(tmp_path / "m.gguf").state_dict()
    packed = pack_files(tmp_path / "m.gguf", weights)
    for name, matrix in packed.matrices.items():
        if matrix.format == FORMATS[weights] and matrix.columns % 32 == 0:
            key = name if name in stored else f"{name}.weight"
            assert torch.equal(matrix.dequantised(), stored[key].float()), name


SHARING = """
import sys
from pathlib import Path
from ayllu.engine.quantize import open_packed
packed = open_packed(Path(sys.argv[1]))
for matrix in packed.matrices.values():
    matrix.data.sum()
print("ready", flush=True)
sys.stdin.readline()
found, inside = {}, False
for line in Path("/proc/self/smaps").read_text().splitlines():
    head = line.split()
    if "-" in head[0] and not head[0].endswith(":"):
        inside = "ayllu.safetensors" in line
    elif inside and line.endswith("kB"):
        found[head[0][:-1]] = found.get(head[0][:-1], 0) + int(head[1])
print(found["Rss"], found["Pss"], found["Private_Dirty"], flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux tells what is shared")
def test_two_processes_share_the_pages(folder):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([sys.executable, "-c", SHARING, str(folder)], **pipes) for _ in range(2)]
    assert [process.stdout.readline() for process in both] == ["ready\n"] * 2
    for process in both:  # smaps (proc(5)): resident, its share of the resident, its own
        process.stdin.write("\n")
        process.stdin.flush()
        resident, share, own = map(int, process.stdout.readline().split())
        assert resident > 30 and own == 0, "nothing was copied"
        assert share <= 0.6 * resident, "half of the pages belongs to the other"
    for process in both:
        process.communicate("\n", timeout=30)
