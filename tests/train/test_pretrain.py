"""Pretraining's measures against plain computations: every token once, bits per byte, xz, throughput."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from ayllu import machine
from ayllu.errors import TooLittleTextError
from ayllu.model.config import ModelSettings
from ayllu.model.counts import train_flops_per_token
from ayllu.model.decoder import Decoder
from ayllu.progress import Progress
from ayllu.stage import StageContext
from ayllu.text.shards import open_shard, write_shard
from ayllu.text.tokenizer import Tokenizer, train_tokenizer
from ayllu.train import pretrain as module
from ayllu.train.pretrain import PretrainSettings, bits_per_byte, throughput, xz_bits_per_byte

TEXTS = [
    f"Document {n}: the year {1000 + 7 * n} was a good year for number {n * n}. Grüße! " * 3
    for n in range(40)
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(iter(TEXTS), 330)


def context(folder: Path, seed: int = 1) -> StageContext:
    return StageContext(folder, {}, seed, 1, "cpu", Progress("t", quiet=True), folder / "m.jsonl", folder)


@pytest.mark.parametrize(("rows", "length"), [(4, 16), (7, 33), (1, 100)])
def test_every_token_is_a_target_once_an_epoch(
    tmp_path: Path, tokenizer: Tokenizer, rows: int, length: int
) -> None:
    write_shard(tmp_path / "train.bin", TEXTS, tokenizer)
    shard = open_shard(tmp_path / "train.bin", rows=rows, length=length)
    settings = PretrainSettings(rows=rows, length=length)
    per_epoch, seen = shard.rows(length), Counter[bytes]()
    position = {shard.tokens[r * length : (r + 1) * length + 1].tobytes(): r for r in range(per_epoch)}
    assert len(position) == per_epoch, "rows must differ to be told apart"
    for step in range(per_epoch):  # that many steps are `rows` epochs
        batch = module._batch(shard, step, settings, context(tmp_path))
        assert float(batch.weights_BT.sum()) == pytest.approx(1.0, abs=1e-5)
        assert torch.equal(batch.tokens_BT[:, 1:], batch.targets_BT[:, :-1])
        for tokens, targets in zip(batch.tokens_BT, batch.targets_BT, strict=True):
            seen[torch.cat([tokens, targets[-1:]]).numpy().astype(shard.tokens.dtype).tobytes()] += 1
    assert seen.keys() == position.keys() and set(seen.values()) == {rows}
    assert len(shard.tokens) - 1 - per_epoch * length < length  # less than one row is left over


def test_epochs_are_shuffled_otherwise_and_the_seed_counts(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_shard(tmp_path / "train.bin", TEXTS, tokenizer)
    shard = open_shard(tmp_path / "train.bin")
    settings = PretrainSettings(rows=shard.rows(16), length=16)
    first, second = (module._batch(shard, n, settings, context(tmp_path)).tokens_BT for n in (0, 1))
    other = module._batch(shard, 0, settings, context(tmp_path, seed=2)).tokens_BT
    assert not torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(first.sort(0).values.sort(1).values, second.sort(0).values.sort(1).values)


def test_documents_are_told_apart(tmp_path: Path, tokenizer: Tokenizer) -> None:
    about = write_shard(tmp_path / "train.bin", TEXTS, tokenizer)
    assert about["documents"] == len(TEXTS) and about["bytes"] == sum(len(t.encode()) for t in TEXTS)
    shard = open_shard(tmp_path / "train.bin")
    tokens, _, document = shard.batch(np.arange(shard.rows(16)), 16)
    flat, bos = tokens.flatten(), tokenizer.control["<|bos|>"]
    assert (flat == bos).sum() in (len(TEXTS), len(TEXTS) - 1)
    pieces = np.split(flat, np.flatnonzero(flat == bos)[1:])
    assert [tokenizer.decode(p.tolist()) for p in pieces[:-1]] == TEXTS[: len(pieces) - 1]
    changes = document[:, 1:] != document[:, :-1]
    assert np.array_equal(changes, tokens[:, 1:] == bos)


def test_too_little_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_shard(tmp_path / "train.bin", ["short"], tokenizer)
    with pytest.raises(TooLittleTextError, match="too few for one batch of 2 rows of 64"):
        open_shard(tmp_path / "train.bin", rows=2, length=64)


@pytest.mark.parametrize(("tokens", "times"), [(3_000, ""), (62_464, "21 times")])
def test_text_that_is_read_too_often_is_told(
    tmp_path: Path, tokenizer: Tokenizer, capsys, monkeypatch, tokens: int, times: str
) -> None:
    monkeypatch.setattr(module, "throughput", lambda *_: {})  # it takes seconds
    for stage in ("text", "tokenizer"):
        (tmp_path / stage).mkdir()
    tokenizer.save(tmp_path / "tokenizer")
    rows = [{"text": text, "split": "train" if n else "heldout"} for n, text in enumerate(TEXTS)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "text" / "documents.jsonl").write_text(lines, encoding="utf-8")
    here = dataclasses.replace(
        context(tmp_path / "pretrain"),
        progress=Progress("pretrain"),
        inputs={stage: tmp_path / stage for stage in ("text", "tokenizer")},
    )
    here.folder.mkdir()
    shape = ModelSettings(width=32, layers=1, head_dim=16, context=64)
    module.pretrain(here, PretrainSettings(tokens=tokens, rows=16, length=64), shape)
    said = capsys.readouterr().err
    assert ("times over" in said) == bool(times) and times in said


def random_model(tokenizer: Tokenizer, length: int) -> Decoder:
    config = ModelSettings(width=32, layers=2, head_dim=16, context=64).config(tokenizer.vocab_size)
    model = Decoder(dataclasses.replace(config, context=length)).initialise(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)) * 0.1)
    return model


@pytest.mark.parametrize("length", [16, 33, 512])
def test_bits_per_byte_token_by_token(tokenizer: Tokenizer, length: int) -> None:
    """Against one forward pass a token: each sees its whole document, or at least half a context."""
    model, texts = random_model(tokenizer, length), [TEXTS[0][:120], TEXTS[3][:35], "x", TEXTS[5]]
    bits = 0.0
    for text in texts:
        ids = [tokenizer.control["<|bos|>"], *tokenizer.encode(text)]
        for at in range(1, len(ids)):
            # The first window that holds the token: windows begin every half context.
            begin = next(b for b in range(0, len(ids), length // 2) if at <= b + length)
            assert at - begin >= min(at, length - length // 2)
            with torch.no_grad():
                log_p_V = model(torch.tensor([ids[begin:at]]))[0, -1].log_softmax(-1)
            bits -= float(log_p_V[ids[at]]) / math.log(2)
    wanted = bits / sum(len(text.encode()) for text in texts)
    assert bits_per_byte(model, tokenizer, texts, "cpu") == pytest.approx(wanted, rel=1e-4)


def test_a_model_that_knows_nothing_needs_the_bits_of_its_vocabulary(tokenizer: Tokenizer) -> None:
    model = random_model(tokenizer, 64)
    with torch.no_grad():
        model.head_weight.zero_()
    tokens = sum(len(tokenizer.encode(text)) for text in TEXTS)
    size = sum(len(text.encode()) for text in TEXTS)
    wanted = tokens * math.log2(tokenizer.vocab_size) / size
    assert bits_per_byte(model, tokenizer, TEXTS, "cpu") == pytest.approx(wanted, rel=1e-5)


@pytest.mark.skipif(shutil.which("xz") is None, reason="no xz command here")
def test_xz_is_what_the_command_makes() -> None:
    data = "\n".join(TEXTS).encode()
    done = subprocess.run(
        ["xz", "-9e", "--stdout", "--check=crc64"], input=data, capture_output=True, check=True
    )
    assert xz_bits_per_byte(TEXTS) == pytest.approx(8 * len(done.stdout) / len(data), rel=1e-3)


def test_throughput_is_a_share_of_what_the_products_alone_would_reach(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a machine of 10^9 operations a second for every shape, it is plain arithmetic."""
    shapes = []

    def measured(m: int, k: int, n: int, dtype: str) -> float:
        shapes.append((m, k, n, dtype))
        return 1e9

    monkeypatch.setattr(machine, "measure_matmul", measured)
    config = ModelSettings(width=64, layers=3, head_dim=16, context=64).config(100)
    speed = throughput(config, 4, 32, 1000.0, torch.bfloat16)
    assert speed["matmul_flops_per_second"] == pytest.approx(1e9)
    assert speed["flops_per_second"] == pytest.approx(train_flops_per_token(config, 32) * 1000.0)
    assert speed["fraction"] == pytest.approx(speed["flops_per_second"] / 1e9)
    assert (128, 64, 100, "bfloat16") in shapes and len(shapes) == 15
