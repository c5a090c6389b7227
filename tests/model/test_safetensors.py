"""Our reader and writer of safetensors against the format's own library, and what makes a load safe: no
half file under a final name, no second copy in memory, no trust in a file that changes meanwhile."""

from __future__ import annotations

import errno
import json
import os
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shapes import CONFIGS, random_decoder

from ayllu import files
from ayllu.errors import DiskFullError, ModelFileDamagedError, ModelFileMissingError
from ayllu.model.formats.safetensors import INDEX, SINGLE, open_safetensors, save_safetensors
from ayllu.model.weights import load_model, save_model

CONTROL = {"bos": 0, "eos": 1, "pad": 12}
DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e5m2, torch.float8_e4m3fn),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
]


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Any bits at all, NaN included; true and false for bool."""
    count = dtype.itemsize * int(torch.tensor(shape).prod())
    raw = torch.randint(0, 256, (count,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return (raw % 2).bool().view(shape) if dtype == torch.bool else raw.view(dtype).view(shape)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


tensors = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter("__metadata__".__ne__),
    st.builds(
        random_tensor,
        st.lists(st.integers(0, 5), max_size=4).map(tuple),
        st.sampled_from(DTYPES),
        st.integers(0, 2**31),
    ),
    max_size=6,
)
many = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


# ---- the format's own library as judge
@many
@given(tensors)
def test_what_the_library_writes_we_read(tmp_path, given_tensors):
    safetensors.torch.save_file(given_tensors, tmp_path / SINGLE, metadata={"who": "wrote"})
    source = open_safetensors(tmp_path)
    assert source.entries.keys() == given_tensors.keys()
    for name, tensor in given_tensors.items():
        assert source.entries[name].shape == tuple(tensor.shape)
        assert source.read(name).dtype == tensor.dtype and bits(source.read(name)) == bits(tensor), name
    source.close()


@many
@given(tensors)
def test_what_we_write_is_what_the_library_writes_to_the_byte(tmp_path, given_tensors):
    types = {name: tensor.dtype for name, tensor in given_tensors.items()}
    save_safetensors(tmp_path, given_tensors, types)
    kept = (tmp_path / SINGLE).read_bytes()
    read_back = safetensors.torch.load(kept)
    assert {name: bits(t) for name, t in read_back.items()} == {n: bits(t) for n, t in given_tensors.items()}
    names = sorted(given_tensors, key=lambda name: (-types[name].itemsize, name))
    if len({types[name] for name in names}) < 2:  # it has an order of its own among types of one size
        assert kept == safetensors.torch.save(given_tensors, metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", DTYPES[:4])
@pytest.mark.parametrize("into", DTYPES[:4])
def test_converting_while_reading_and_while_writing(tmp_path, dtype, into):
    # Longer than a chunk, so that pieces must meet at the right places.
    tensor = torch.randn(700, 1001, generator=torch.Generator().manual_seed(1)).to(dtype)
    save_safetensors(tmp_path, {"a": tensor[:3], "w": tensor}, {"a": torch.float32, "w": dtype})
    source = open_safetensors(tmp_path)
    target = torch.empty(700, 1001, dtype=into)
    source.copy_to("w", target)
    assert torch.equal(target, tensor.to(into)) and torch.equal(source.read("w"), tensor)
    source.close()
    (tmp_path / "other").mkdir()
    save_safetensors(tmp_path / "other", {"w": tensor.T}, {"w": into})
    assert torch.equal(safetensors.torch.load_file(tmp_path / "other" / SINGLE)["w"], tensor.T.to(into))


def test_many_threads_read_the_same_file(tmp_path):
    given_tensors = {f"w{n}": torch.randn(500, 300) for n in range(20)}
    save_safetensors(
        tmp_path, given_tensors, dict.fromkeys(given_tensors, torch.float32), shard_bytes=3_000_000
    )
    source = open_safetensors(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        for name, tensor in zip(
            list(given_tensors) * 5, pool.map(source.read, list(given_tensors) * 5), strict=True
        ):
            assert torch.equal(tensor, given_tensors[name])
    source.close()


# ---- shards
def test_shards_are_those_of_hugging_face(tmp_path):
    """The index has the form that transformers reads; the same input gives the same files."""
    model = random_decoder(CONFIGS["two kv heads, own head"])
    for turn in ("one", "two"):
        (tmp_path / turn).mkdir()
        save_model(model, tmp_path / turn, **CONTROL, shard_bytes=60_000)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    index = json.loads((tmp_path / "one" / INDEX).read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert shards == [f"model-{n + 1:05}-of-{len(shards):05}.safetensors" for n in range(len(shards))]
    assert len(shards) > 3 and names == sorted([*shards, INDEX, "config.json"])
    total = 0
    for shard in shards:
        held = safetensors.torch.load_file(tmp_path / "one" / shard)
        assert held.keys() == {name for name, home in index["weight_map"].items() if home == shard}
        size = sum(t.numel() * t.itemsize for t in held.values())
        assert size <= 60_000 or len(held) == 1, "a shard is larger only when one tensor is"
        total += size
    assert total == index["metadata"]["total_size"] == 4 * sum(p.numel() for p in model.parameters())
    loaded = load_model(tmp_path / "one")
    for name, weight in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight), name


def test_transformers_loads_our_shards(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = random_decoder(CONFIGS["one kv head, tied"])
    save_model(model, tmp_path, **CONTROL, shard_bytes=30_000)
    judge = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(judge.get_input_embeddings().weight, model.embedding.weight)
    down = judge.model.layers[1].mlp.down_proj.weight
    assert torch.equal(down, model.state_dict()["blocks.1.mlp.down.weight"])


def test_saving_again_leaves_no_file_of_the_model_before(tmp_path):
    model, other = random_decoder(CONFIGS["one head"]), random_decoder(CONFIGS["one kv head, tied"])
    for given_model, shard_bytes in [(model, 10**9), (other, 40_000), (model, 90_000), (other, 10**9)]:
        save_model(given_model, tmp_path, **CONTROL, shard_bytes=shard_bytes)
        assert torch.equal(load_model(tmp_path).embedding.weight, given_model.embedding.weight)
        kept = {path.name for path in tmp_path.glob("model*")}
        index = tmp_path / INDEX
        named = (
            set(json.loads(index.read_text())["weight_map"].values()) | {INDEX}
            if index.exists()
            else {SINGLE}
        )
        assert kept == named


# ---- types
def test_a_file_of_mixed_types_comes_back_to_the_byte(tmp_path):
    """bfloat16 matrices, float32 and float16 here and there: "auto" computes in one type and forgets none."""
    model = random_decoder(CONFIGS["two kv heads, own head"])
    save_model(model, tmp_path, **CONTROL, dtype="bfloat16")
    path = tmp_path / SINGLE
    held = safetensors.torch.load_file(path)
    held["model.norm.weight"] = held["model.norm.weight"].float() * 1.001
    held["model.layers.1.self_attn.k_proj.weight"] = held["model.layers.1.self_attn.k_proj.weight"].half()
    held["model.layers.0.mlp.down_proj.weight"] = held["model.layers.0.mlp.down_proj.weight"].float() * 1.001
    save_safetensors(tmp_path, held, {name: tensor.dtype for name, tensor in held.items()})
    before = path.read_bytes()
    loaded = load_model(tmp_path, dtype="auto")
    (tmp_path / "again").mkdir()
    save_model(loaded, tmp_path / "again", **CONTROL)
    assert (tmp_path / "again" / SINGLE).read_bytes() == before


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_auto_takes_the_files_type(tmp_path, dtype):
    save_model(random_decoder(CONFIGS["one head"]), tmp_path, **CONTROL, dtype=dtype)
    before = (tmp_path / SINGLE).read_bytes()
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == dtype
    loaded = load_model(tmp_path, dtype="auto")
    assert (
        loaded.embedding.weight.dtype == getattr(torch, dtype) and loaded.norm.weight.dtype == torch.float32
    )
    save_model(loaded, tmp_path, **CONTROL)
    assert (tmp_path / SINGLE).read_bytes() == before


# ---- faults
class FullDisk:
    """The os module of files.py on a disk that fills up at some call."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in ("fsync", "replace"):
            return real

        def call(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **kwargs)

        return call


@pytest.mark.parametrize("after", range(30))
def test_a_disk_that_fills_up_leaves_the_old_model_or_an_incomplete_one_and_no_mixture(
    tmp_path, monkeypatch, after
):
    old, new = random_decoder(CONFIGS["one head"]), random_decoder(CONFIGS["one head"], seed=1)
    save_model(old, tmp_path, **CONTROL, shard_bytes=150_000)
    monkeypatch.setattr(files, "os", FullDisk(after))
    try:
        save_model(new, tmp_path, **CONTROL, shard_bytes=150_000)
        whole = True
    except DiskFullError:
        whole = False
    monkeypatch.undo()
    assert not list(tmp_path.glob(".*.part")), "no temporary file is left"
    try:
        found = load_model(tmp_path).state_dict()
    except ModelFileMissingError:
        assert not whole
        return
    expected = [m.state_dict() for m in ((new,) if whole else (old, new))]
    assert any(all(torch.equal(found[name], state[name]) for name in state) for state in expected)


def test_a_file_that_shrinks_after_its_header_was_read(tmp_path):
    save_safetensors(tmp_path, {"w": torch.ones(1000)}, {"w": torch.float32})
    source = open_safetensors(tmp_path)
    os.truncate(tmp_path / SINGLE, 2000)
    with pytest.raises(ModelFileDamagedError, match="ends within 'w'"):
        source.read("w")
    source.close()


MEASURE = """
import sys
from ayllu.model.weights import load_model

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key + ":"))

load_model(sys.argv[2])
before = status("VmRSS")
model = load_model(sys.argv[1], dtype=sys.argv[3])
weights = sum(weight.numel() * weight.itemsize for weight in model.state_dict().values())
print((status("VmHWM") - before) / weights)
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_takes_little_more_memory_than_the_weights(tmp_path, dtype):
    from ayllu.model.config import ModelConfig, dense_layer

    save_model(random_decoder(CONFIGS["one head"]), tmp_path, **CONTROL)
    large = ModelConfig(512, 20_000, (dense_layer(8, 2, 64, 4096),) * 6, 512, tied=False)
    (tmp_path / "large").mkdir()
    save_model(random_decoder(large), tmp_path / "large", **CONTROL, dtype="bfloat16")
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "large"), str(tmp_path), dtype]
    ratio = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 0.9 < ratio < 1.1


def test_a_hugging_face_cache_is_links_and_loads(tmp_path):
    """snapshots/REVISION/NAME -> ../../blobs/HASH; any other link that leaves the folder is refused."""
    blobs, folder = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123abcd"
    blobs.mkdir(parents=True), folder.mkdir(parents=True)
    model = random_decoder(CONFIGS["one head"])
    save_model(model, folder, **CONTROL, shard_bytes=150_000)
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / f"{number:040}")
        path.symlink_to(Path("..") / ".." / "blobs" / f"{number:040}")
    assert torch.equal(load_model(folder).embedding.weight, model.embedding.weight)
    shard = next(folder.glob("model-00001-*"))
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(shard.read_bytes())
    shard.unlink()
    shard.symlink_to(outside)
    with pytest.raises(ModelFileDamagedError, match="leaves the folder"):
        load_model(folder)


def test_a_long_header_before_little_data_is_refused(tmp_path):
    text = b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}' + b" " * 9_000_000 + b"}"
    (tmp_path / SINGLE).write_bytes(struct.pack("<Q", len(text)) + text + b"\0")
    with pytest.raises(ModelFileDamagedError, match="for 1 bytes of weights"):
        open_safetensors(tmp_path)
