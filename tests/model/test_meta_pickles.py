"""Pickles of Meta's consolidated files that would run code, make no sense or lie about their tensors: all are
refused."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from hostile_pickles import CANARY, NONSENSE, archive, programs, tensor_program

from ayllu.errors import ModelFileDamagedError, RefusedError
from ayllu.model.formats.storages import StorageFile


def test_the_bad_pickles_are_bad(tmp_path, monkeypatch):
    """Python's own unpickler does run the first of them: the canary is a real one."""
    canary = tmp_path / CANARY
    pickle.loads(programs(str(canary))["GLOBAL, REDUCE"])
    assert canary.exists()


@pytest.mark.parametrize("name", programs(CANARY))
def test_a_pickle_that_would_run_code(name, tmp_path, monkeypatch):
    canary = tmp_path / CANARY
    imports: list[str] = []
    real = __import__

    def watched(*words: Any, **more: Any) -> Any:
        imports.append(words[0])
        return real(*words, **more)

    path = archive(tmp_path / "x.pth", programs(str(canary))[name])
    monkeypatch.setattr("builtins.__import__", watched)
    with pytest.raises(RefusedError) as caught:
        StorageFile(path)
    monkeypatch.undo()
    assert "the pickle" in caught.value.why and str(path) in caught.value.what and caught.value.exit_code == 8
    assert not canary.exists() and not {"antigravity", "posix", "os"} & set(imports)


@pytest.mark.parametrize("name", NONSENSE)
def test_a_pickle_that_makes_no_sense(name, tmp_path):
    with pytest.raises(ModelFileDamagedError) as caught:
        StorageFile(archive(tmp_path / "x.pth", NONSENSE[name]))
    assert len(str(caught.value)) < 1000


def test_the_test_writes_tensors_that_are_read(tmp_path):
    data = torch.arange(16.0).numpy().tobytes()
    file = StorageFile(
        archive(tmp_path / "x.pth", tensor_program(shape=(2, 3), strides=(3, 1), offset=4), data=data)
    )
    assert torch.equal(file.read("t"), torch.arange(4.0, 10.0).view(2, 3))


@pytest.mark.parametrize(
    "lie",
    [
        {"count": 17},
        {"count": 15},
        {"count": 2**60},
        {"count": -16},
        {"count": True},
        {"count": None},
        {"key": "1"},
        {"key": "../x/data.pkl"},
        {"key": 0},
        {"kind": "DoubleStorage"},
        {"offset": 1},
        {"offset": -1},
        {"offset": 2**62},
        {"offset": 2**2000},
        {"offset": True},
        {"shape": (17,)},
        {"shape": (-16,)},
        {"shape": (2**62,)},
        {"shape": (2**40, 2**40), "strides": (0, 0)},
        {"shape": (2**20,), "strides": (0,)},
        {"shape": (16,), "strides": (2,)},
        {"shape": (16,), "strides": (-1,)},
        {"shape": (16, 1), "strides": (1,)},
        {"shape": 16},
        {"shape": (1,) * 100, "strides": (1,) * 100},
        {"shape": ((16,),), "strides": ((1,),)},
        {"shape": ("16",)},
    ],
)
def test_tensors_that_lie(lie, tmp_path):
    with pytest.raises(ModelFileDamagedError):
        StorageFile(archive(tmp_path / "x.pth", tensor_program(**lie)))


def test_few_numbers_shown_many_times(tmp_path):
    one = torch.zeros(1000)
    torch.save({str(n): one for n in range(50)}, tmp_path / "x.pth")
    with pytest.raises(ModelFileDamagedError, match="more numbers"):
        StorageFile(tmp_path / "x.pth")
