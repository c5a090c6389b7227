"""Archives of Meta's consolidated files that lie, are damaged or are cut: typed errors, and nothing is left
open."""

from __future__ import annotations

import io
import os
import random
import zipfile
from pathlib import Path

import pytest
import torch
from hostile_pickles import CANARY, NONSENSE, archive, programs, tensor_program
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from meta_folders import LLAMA_1, LLAMA_2, cut, whole, write

from ayllu.errors import AylluError, ModelFileDamagedError
from ayllu.model.formats.meta import open_meta
from ayllu.model.formats.storages import StorageFile


def test_compressed_entries_are_refused_before_they_are_unpacked(tmp_path):
    path = archive(
        tmp_path / "x.pth", tensor_program(count=2**26), data=bytes(2**28), compression=zipfile.ZIP_DEFLATED
    )
    assert path.stat().st_size < 2**20
    with pytest.raises(ModelFileDamagedError, match="compressed"):
        StorageFile(path)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["x/data/0"], r"data\.pkl"),
        (["x/data.pkl", "y/data.pkl"], r"data\.pkl"),
        (["data.pkl"], r"data\.pkl"),
        (["x/data.pkl"], "missing or cut"),
        (["x/data.pkl", "../data/0"], "missing or cut"),
    ],
)
def test_entries_that_are_not_torchs(names, words, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as file:
        for name in names:
            file.writestr(name, tensor_program() if name.endswith("pkl") else bytes(64))
    with pytest.raises(ModelFileDamagedError, match=words):
        StorageFile(tmp_path / "x.pth")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_the_same_name_twice(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as file:
        for name in ("x/data.pkl", "x/data/0", "x/data/0"):
            file.writestr(name, tensor_program() if name.endswith("pkl") else bytes(64))
    with pytest.raises(ModelFileDamagedError):
        StorageFile(tmp_path / "x.pth")


def test_big_endian_numbers(tmp_path):
    path = archive(tmp_path / "x.pth", tensor_program())
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("x/byteorder", "big")
    with pytest.raises(ModelFileDamagedError, match="little-endian"):
        StorageFile(path)


def test_entries_that_overlap(tmp_path):
    path = archive(tmp_path / "x.pth", tensor_program())
    data = path.read_bytes()
    at = data.rindex(b"PK\x01\x02")  # the directory's entry of data/0: pretend that it lies at the pickle
    path.write_bytes(data[: at + 42] + bytes(4) + data[at + 46 :])
    with pytest.raises(ModelFileDamagedError):
        StorageFile(path)


@pytest.mark.parametrize("text", [b"", b"PK", b"\x93NUMPY", b"GGUF", b"<html>", bytes(1000)])
def test_no_archive_at_all(text, tmp_path):
    (tmp_path / "x.pth").write_bytes(text)
    with pytest.raises(ModelFileDamagedError):
        StorageFile(tmp_path / "x.pth")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = write(tmp_path_factory.mktemp("meta"), LLAMA_1, [whole(LLAMA_1, vocabulary=8)])
    return folder, (folder / "consolidated.00.pth").read_bytes()


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_random_damage_gives_typed_errors_or_a_model(saved, seed):
    folder, whole_file = saved
    chance = random.Random(seed)
    data = bytearray(whole_file)
    start = whole_file.index(b"\x80\x02")
    regions = [  # local header and pickle; the directory; anywhere
        (0, whole_file.index(b"PK\x03\x04", start)),
        (whole_file.index(b"PK\x01\x02"), len(data)),
        (0, len(data)),
    ]
    first, last = chance.choice(regions)
    kind = chance.randrange(3)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(first, last)
        if kind == 0:
            data[at] = chance.randrange(256)
        elif kind == 1:
            data[at] ^= 1 << chance.randrange(8)
        else:
            n = chance.randint(1, 32)
            data[at : at + n] = data[at : at + n] * chance.choice([0, 2])
            last = min(last, len(data))
    try:
        file = StorageFile(_in_memory(folder, bytes(data)))
        for name in file.tensors:
            file.read(name)
        file.close()
    except AylluError as error:
        assert str(error)


def _in_memory(folder: Path, data: bytes) -> Path:
    path = folder / "damaged.pth"
    path.write_bytes(data)
    return path


def test_a_file_that_is_cut_while_it_is_open(saved, tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(saved[1])
    file = StorageFile(path)
    os.truncate(path, 2000)
    with pytest.raises(ModelFileDamagedError, match="shorter"):
        for name in file.tensors:
            file.read(name)


def test_nothing_is_left_open(saved, tmp_path):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for program in (NONSENSE["empty"], programs(CANARY)["GLOBAL, REDUCE"], tensor_program(key="9")):
        with pytest.raises(AylluError):
            StorageFile(archive(tmp_path / "x.pth", program))
    with pytest.raises(AylluError):
        open_meta(write(tmp_path / "m", LLAMA_2, cut(whole(LLAMA_2), 2, by_vocabulary=False)[:1] * 2 + [{}]))
    _, source = open_meta(saved[0])
    source.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_torch_reads_these_archives_too(tmp_path):
    """What the tests above damage is the real form."""
    data = torch.arange(16.0).numpy().tobytes()
    path = archive(tmp_path / "x.pth", tensor_program(), data=data)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("x/version", "3\n")
    loaded = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
    assert torch.equal(loaded["t"], torch.arange(16.0))
