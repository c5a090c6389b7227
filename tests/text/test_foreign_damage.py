"""Vocabularies of other models that are damaged give typed errors, and hostile text takes linear time."""

from __future__ import annotations

import base64
import json
import random
import time
from pathlib import Path

import pytest
from foreign_vocabularies import STORIES, hf_json, trained

from ayllu.errors import ModelFileDamagedError
from ayllu.text.tokenizer import Tokenizer
from ayllu.text.vocabularies.bytelevel import QWEN2


@pytest.mark.parametrize("kind", ["sentencepiece", "charsmap", "ranks", "json"])
def test_damaged_files_give_typed_errors(
    kind: str, paragraphs: dict[str, list[str]], ranks: dict[bytes, int], tmp_path: Path
) -> None:
    if kind == "ranks":
        lines = [base64.b64encode(piece) + b" %d\n" % rank for piece, rank in list(ranks.items())[:400]]
        sound, name = b"".join(lines), "tokenizer.model"
    elif kind == "json":
        sound, name = json.dumps(hf_json(dict(list(ranks.items())[:400]), QWEN2)).encode(), "tokenizer.json"
    elif kind == "charsmap":
        sound, name = trained(paragraphs, model_type="bpe", vocab_size=400), "tokenizer.model"
    else:
        sound, name = (STORIES / "tokenizer.model").read_bytes(), "tokenizer.model"
    chance = random.Random(kind)
    refused = 0
    for _ in range(20 if kind == "charsmap" else 150):
        data = bytearray(sound)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(data))
            match chance.randrange(4):
                case 0:
                    data[at] = chance.randrange(256)
                case 1:
                    del data[at : at + chance.randint(1, 200)]
                case 2:
                    data[at:at] = data[chance.randrange(len(data)) :][: chance.randint(1, 200)]
                case _:
                    data = data[:at] or bytearray(b"x")
        (tmp_path / name).write_bytes(data)
        try:
            tokenizer = Tokenizer.load(tmp_path)
            ids = tokenizer.encode("Once upon a time </s> ü\n  <|eot_id|>")
            assert not set(ids) & set(tokenizer.control.values())
        except ModelFileDamagedError:
            refused += 1
    assert refused > 3


def test_a_damaged_file_of_json_beside_it(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes((STORIES / "tokenizer.model").read_bytes())
    for content in ("[", "[]", '{"eos_token_id": "x"}', '{"eos_token_id": [true]}', "[" * 100_000):
        (tmp_path / "generation_config.json").write_text(content)
        with pytest.raises(ModelFileDamagedError):
            Tokenizer.load(tmp_path)


def test_a_trie_with_a_loop() -> None:
    from ayllu.text.vocabularies.charsmap import read_charsmap

    # Every child leads back to the root.
    trie = b"".join(((byte << 10) | byte).to_bytes(4, "little") for byte in range(256))
    with pytest.raises(ValueError, match="loop"):
        read_charsmap(len(trie).to_bytes(4, "little") + trie + b"a\0")
    with pytest.raises(ValueError, match="fit"):
        read_charsmap((4 * len(trie)).to_bytes(4, "little") + trie)


HOSTILE = [
    *" \n\ta A1'!éక్🦙▁\u0301\u00a0\x00\u200d<", "'s", " \n", "a ", "1a", "!\n", "<s>", "ab",
]  # fmt: skip


@pytest.mark.parametrize("which", ["stories", "llama3", "qwen"])
def test_time_is_linear_in_hostile_text(which: str, request: pytest.FixtureRequest) -> None:
    # 25 strings of each of two sizes; four times the text may take about four times as long.
    tokenizer: Tokenizer = request.getfixturevalue(which)[0]
    total = 0.0
    for unit in HOSTILE:
        times = []
        for size in (10_000, 40_000):
            text = (unit * size)[:size] + "x"
            began = time.process_time()
            tokenizer.encode(text)
            times.append(time.process_time() - began)
        total += sum(times)
        assert times[1] < 12 * times[0] + 0.05, unit
    assert total < 15
