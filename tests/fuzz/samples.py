"""The kinds of files that come from strangers: how a whole one is made, and who reads it.

A new format is one more row of KINDS.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ayllu.model.config import (
    LatentSpec,
    LayerSpec,
    ModelConfig,
    MoESpec,
    RopeScaling,
    RopeSpec,
    dense_layer,
    with_attention,
)
from ayllu.model.decoder import Decoder
from ayllu.model.formats.gguf import write_gguf
from ayllu.model.formats.safetensors import INDEX, SINGLE
from ayllu.model.weights import load_config, load_model, save_model
from ayllu.text.tokenizer import Tokenizer, train_tokenizer

FIXTURES = Path(__file__).parents[1] / "fixtures"
CONTROL = {"bos": 0, "eos": 1, "pad": 2}
WORDS = "Herds on the Andean commons: Lamas, Alpakas, Öl, నమస్కారం, 3 * 7 = 21. \n"

QWEN3 = ModelConfig(32, 67, (dense_layer(4, 2, 8, 24),) * 2, 48)
LLAMA = ModelConfig(
    32,
    96,
    (
        with_attention(
            dense_layer(4, 2, 8, 32, qk_norm=False),
            rope=RopeSpec(8, 5e5, scaling=RopeScaling("llama3", 8.0, 32)),
        ),
    )
    * 2,
    256,
    tied=False,
    family="llama",
)
MIXTRAL = replace(
    QWEN3,
    layers=(replace(dense_layer(4, 2, 8, 24, qk_norm=False), mlp=MoESpec(4, 2, 16)),) * 2,
    family="mixtral",
)
DEEPSEEK = ModelConfig(
    32,
    67,
    (
        LayerSpec(
            LatentSpec(4, 12, 8, 8, 4, 8, RopeSpec(4, interleaved=True)),
            MoESpec(
                8, 2, 16, shared_hidden=16, router="sigmoid", choice_bias=True, groups=4, active_groups=2,
                group_score="top2", scale=2.5,
            ),
        ),
    )
    * 2,
    48,
    tied=False,
    family="deepseek_v3",
)  # fmt: skip


def _folder(config: ModelConfig, **options: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        save_model(Decoder(config).initialise(0), folder, **CONTROL, **options)

    return make


def _meta(folder: Path) -> None:
    params = {"dim": 32, "n_layers": 1, "n_heads": 4, "multiple_of": 8, "norm_eps": 1e-6, "vocab_size": 64}
    hidden = 88
    shapes = {"tok_embeddings": (64, 32), "output": (64, 32), "norm": (32,)}
    shapes |= {f"layers.0.attention.{w}": (32, 32) for w in ("wq", "wk", "wv", "wo")}
    shapes |= {"layers.0.feed_forward.w1": (hidden, 32), "layers.0.feed_forward.w3": (hidden, 32)}
    shapes |= {"layers.0.feed_forward.w2": (32, hidden)}
    shapes |= {f"layers.0.{norm}": (32,) for norm in ("attention_norm", "ffn_norm")}
    (folder / "params.json").write_text(json.dumps(params))
    torch.save(
        {f"{n}.weight": torch.ones(shape) for n, shape in shapes.items()}, folder / "consolidated.00.pth"
    )


def _gguf(kind: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        write_gguf(Decoder(LLAMA).initialise(0), folder / "model.gguf", kind=kind)

    return make


def _tokenizer_json(folder: Path) -> None:
    train_tokenizer(iter([WORDS * 20]), 300).save(folder)


def _tokenizer_model(folder: Path) -> None:
    (folder / "tokenizer.model").write_bytes((FIXTURES / "stories260K" / "tokenizer.model").read_bytes())


def _tokenizer_ranks(folder: Path) -> None:
    pieces = [bytes([n]) for n in range(256)] + [word.encode() for word in ("th", "the", " the", "in", "ing")]
    lines = [base64.b64encode(piece) + b" " + str(rank).encode() for rank, piece in enumerate(pieces)]
    (folder / "tokenizer.model").write_bytes(b"\n".join(lines) + b"\n")


def _read_model(path: Path) -> None:
    load_config(path)
    load_model(path, dtype="auto")


def _read_tokenizer(path: Path) -> None:
    tokenizer = Tokenizer.load(path)
    tokenizer.decode(tokenizer.encode(WORDS))


@dataclass(frozen=True)
class Kind:
    """`make` fills a folder; `file` is the one that is spoilt; `read` gets the folder, or the file when
    `whole` is false."""

    name: str
    file: str
    make: Callable[[Path], None]
    read: Callable[[Path], None] = _read_model
    whole: bool = True


KINDS = [
    Kind("safetensors", SINGLE, _folder(QWEN3)),
    Kind("safetensors of experts", SINGLE, _folder(MIXTRAL, dtype="bfloat16")),
    Kind("shard index", INDEX, _folder(QWEN3, shard_bytes=8_000)),
    Kind("shard", "model-00002-of-00003.safetensors", _folder(QWEN3, shard_bytes=20_000)),
    Kind("config.json of Qwen3", "config.json", _folder(QWEN3)),
    Kind("config.json of Llama", "config.json", _folder(LLAMA)),
    Kind("config.json of Mixtral", "config.json", _folder(MIXTRAL)),
    Kind("config.json of DeepSeek", "config.json", _folder(DEEPSEEK)),
    Kind("params.json", "params.json", _meta),
    Kind("consolidated.pth", "consolidated.00.pth", _meta),
    Kind("GGUF F16", "model.gguf", _gguf("F16"), whole=False),
    Kind("GGUF Q8_0", "model.gguf", _gguf("Q8_0"), whole=False),
    Kind("tokenizer.json", "tokenizer.json", _tokenizer_json, _read_tokenizer),
    Kind("tokenizer.model", "tokenizer.model", _tokenizer_model, _read_tokenizer),
    Kind("tokenizer.model of ranks", "tokenizer.model", _tokenizer_ranks, _read_tokenizer),
]
