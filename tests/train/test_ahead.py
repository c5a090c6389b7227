"""Batches that other processes make: the same as here, from any number on, also where a process dies."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest
import torch

from ayllu import machine
from ayllu.reason.practice import practice_texts
from ayllu.reason.transcript import Chat
from ayllu.text.tokenizer import Tokenizer, train_tokenizer
from ayllu.train import ahead as module
from ayllu.train.ahead import Ahead, ahead, pack_chunk
from ayllu.train.packing import CHUNK, Practice
from ayllu.train.step import Batch

SHARES = {"arithmetic": 0.5, "countdown3": 0.4, "dialogue": 0.1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(practice_texts(0), 400).save(made)
    return made


@pytest.fixture
def practice(folder: Path) -> Practice:
    return Practice(Chat(Tokenizer.load(folder)), SHARES, 2, 160, 7, budgets=0.2)


@pytest.fixture
def source(practice: Practice, folder: Path) -> Iterator[Ahead]:
    given: dict[str, Any] = {"root": str(folder), "gsm8k": []}
    with Ahead(practice, folder, given, workers=2, steps=3 * CHUNK) as made:
        yield made


def same(one: Batch, other: Batch) -> bool:
    names = ("tokens_BT", "targets_BT", "weights_BT", "document_BT")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


def test_others_make_the_same_batches(
    practice: Practice, source: Ahead, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = pack_chunk(practice, 1)
    monkeypatch.setattr(module, "pack_chunk", lambda *_: pytest.fail("was made here"))
    for number in (CHUNK + 3, CHUNK + 4, 2 * CHUNK, 3 * CHUNK - 1):  # a run that goes on somewhere
        assert same(source.batch(number, "cpu"), practice.batch(number, "cpu"))
    assert (here[0][3] == practice.batch(CHUNK + 3, "cpu").tokens_BT.numpy()).all()
    assert max(source._coming) == 2, "nothing is made beyond the last step"


def test_what_a_process_took_with_it_is_made_here(
    practice: Practice, source: Ahead, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, made = source.batch(0, "cpu"), list[int]()
    source.batch(CHUNK, "cpu"), source.batch(2 * CHUNK, "cpu")  # all that is to come has come
    for worker in source._workers:
        worker.kill()
        worker.wait()
    source._coming.clear()
    monkeypatch.setattr(module, "pack_chunk", lambda p, n: made.append(n) or pack_chunk(p, n))
    assert same(source.batch(0, "cpu"), first)
    assert same(source.batch(2 * CHUNK + 1, "cpu"), practice.batch(2 * CHUNK + 1, "cpu"))
    assert sorted(made) == [0, 1, 2] and len(source._workers) <= 2, "the dead aren't replaced"


def test_nobody_is_left_behind_and_nothing_is_made_for_nobody(
    practice: Practice, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"root": str(folder), "gsm8k": []}
    with pytest.raises(KeyboardInterrupt), Ahead(practice, folder, given, workers=2, steps=9999) as made:
        made.batch(0, "cpu")  # further chunks are being made meanwhile
        monkeypatch.setattr(module, "pack_chunk", lambda *_: pytest.fail("was made here"))
        raise KeyboardInterrupt
    assert all(worker.poll() is not None for worker in made._workers) and made._workers
    left = [future for future in made._coming.values() if not future.cancelled() and future.exception()]
    assert all(isinstance(future.exception(), CancelledError) for future in left)


@pytest.mark.parametrize(("device", "cores", "workers"), [("cpu", 16, 0), ("cuda", 2, 0), ("cuda", 16, 8)])
def test_only_beside_a_gpu_and_where_cores_are_idle(
    practice: Practice, folder: Path, monkeypatch: pytest.MonkeyPatch, device: str, cores: int, workers: int
) -> None:
    monkeypatch.setattr(machine, "physical_cores", lambda: cores)
    with ahead(practice, folder, {"root": ".", "gsm8k": []}, device=device, steps=9) as source:
        found = source._pool._max_workers if isinstance(source, Ahead) else 0
        assert found == workers and (workers or source is practice)
