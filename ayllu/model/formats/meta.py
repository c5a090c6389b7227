"""Meta's own form of Llama 1 to 3.3: params.json and consolidated.00.pth, consolidated.01.pth, ...

Each part belongs to one process of model-parallel inference (Megatron-LM, Shoeybi et al. 2019, as in
Meta's reference code and fairscale): column-parallel layers hold some of the output rows (wq, wk, wv,
w1, w3, output), row-parallel ones some of the input columns (wo, w2); the embedding is cut by channels
in Llama 1 and 2 and by vocabulary in Llama 3; norms are the same in all parts.

Meta rotates neighbouring channels (2i, 2i + 1), Hugging Face's layout the pairs (i, i + D/2), so that
the rows of wq and wk change places within each head. Everything is offered under Hugging Face names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ayllu.errors import BadFileError, ModelFileDamagedError, ModelFileMissingError, RefusedError
from ayllu.files import read_json
from ayllu.model.formats.source import TensorInfo
from ayllu.model.formats.storages import StorageFile

_COPY_AGAIN = "copy the whole model folder again"
_PART = re.compile(r"consolidated\.(\d\d)\.pth")
_MOST = 2**24  # no size is larger
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
# What the reference code sets for its own use, and what a run of it leaves behind.
_NOT_SHAPE = {"max_batch_size", "max_seq_len"}
_KNOWN = {
    "dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "ffn_dim_multiplier",
    "norm_eps", "rope_theta", "use_scaled_rope", "rope_scaling_factor",
}  # fmt: skip
# Rotary frequencies that Llama 1 and 2 stored beside the weights.
_IGNORED = re.compile(r"(layers\.\d+\.attention\.inner_attention\.)?rope\.freqs")

# Meta's name in a layer -> Hugging Face's, and the dimension along which parts are cut.
_LAYER = {
    "attention_norm": ("input_layernorm", None),
    "attention.wq": ("self_attn.q_proj", 0),
    "attention.wk": ("self_attn.k_proj", 0),
    "attention.wv": ("self_attn.v_proj", 0),
    "attention.wo": ("self_attn.o_proj", 1),
    "ffn_norm": ("post_attention_layernorm", None),
    "feed_forward.w1": ("mlp.gate_proj", 0),
    "feed_forward.w3": ("mlp.up_proj", 0),
    "feed_forward.w2": ("mlp.down_proj", 1),
}


@dataclass(frozen=True)
class _Sizes:
    """What params.json says about the shape."""

    dim: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    vocabulary: int

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


@dataclass(frozen=True)
class _Merged:
    """One tensor of the whole model: Meta's name for its parts, where they are cut, heads to reorder."""

    name: str
    shape: tuple[int, ...]
    cut: int | None
    heads: int = 0


def open_meta(folder: Path) -> tuple[dict[str, Any], MetaSource]:
    """Config values in Hugging Face's words, and the weights, from a folder of Meta's.

    Errors: ModelFileMissingError; ModelFileDamagedError; RefusedError for a pickle that would run code
    and for models that are no plain Llama (vision, adapters, quantised, Llama 4).
    """
    params = _params(folder / "params.json")
    parts = _parts(folder)
    files: list[StorageFile] = []
    try:
        for path in parts:
            files.append(StorageFile(path))
        vocabulary = _vocabulary(files, params)
        sizes = _sizes(params, vocabulary)
        source = MetaSource(files, sizes)
    except BaseException:
        for file in files:
            file.close()
        raise
    return _values(params, sizes, tied=source.tied), source


class MetaSource:
    """The tensors of all parts, merged, under Hugging Face names (see formats/source.py)."""

    def __init__(self, files: list[StorageFile], sizes: _Sizes) -> None:
        self._files, self._sizes = files, sizes
        self._merged = self._plan()
        self._check()
        self._entries = {
            name: TensorInfo(merged.shape, files[0].tensors[merged.name].storage.dtype)
            for name, merged in self._merged.items()
        }
        head = self._merged.get("lm_head.weight")
        self.tied = head is None or self._same("lm_head.weight", "model.embed_tokens.weight")
        if self.tied:
            self._entries.pop("lm_head.weight", None)

    @property
    def entries(self) -> Mapping[str, TensorInfo]:
        """All tensors by name."""
        return self._entries

    def read(self, name: str) -> Tensor:
        """The merged tensor in its own type."""
        info = self._entries[name]
        target = torch.empty(info.shape, dtype=info.dtype)
        self.copy_to(name, target)
        return target

    def copy_to(self, name: str, target: Tensor) -> None:
        """Fill `target`, part by part: besides it there is never more than one part in memory."""
        merged = self._merged[name]
        if merged.cut is None:
            target.copy_(self._part(0, merged))
            return
        at = 0
        for index in range(len(self._files)):
            part = self._part(index, merged)
            target.narrow(merged.cut, at, part.shape[merged.cut]).copy_(part)
            at += part.shape[merged.cut]

    def close(self) -> None:
        """Let go of the files."""
        for file in self._files:
            file.close()

    def _part(self, index: int, merged: _Merged) -> Tensor:
        part = self._files[index].read(merged.name)
        if not merged.heads:
            return part
        # Whole heads lie in a part: (head, pair, left or right) -> (head, left or right, pair).
        d = self._sizes.head_dim
        return part.view(-1, d // 2, 2, part.shape[1]).transpose(1, 2).reshape(part.shape)

    def _plan(self) -> dict[str, _Merged]:
        sizes, c = self._sizes, self._sizes.dim
        q, kv = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
        shapes: dict[str, tuple[int, ...]] = {
            "attention_norm": (c,), "ffn_norm": (c,),
            "attention.wq": (q, c), "attention.wk": (kv, c), "attention.wv": (kv, c), "attention.wo": (c, q),
            "feed_forward.w1": (sizes.hidden, c), "feed_forward.w3": (sizes.hidden, c),
            "feed_forward.w2": (c, sizes.hidden),
        }  # fmt: skip
        heads = {"attention.wq": sizes.heads, "attention.wk": sizes.kv_heads}
        table = (sizes.vocabulary, c)
        rows = self._stored(0, "tok_embeddings.weight")[0]
        plan = {
            "model.embed_tokens.weight": _Merged(
                "tok_embeddings.weight", table, 0 if rows != sizes.vocabulary else 1
            ),
            "model.norm.weight": _Merged("norm.weight", (c,), None),
        }
        if "output.weight" in self._files[0].tensors:
            plan["lm_head.weight"] = _Merged("output.weight", table, 0)
        for layer in range(sizes.layers):
            for ours, (theirs, cut) in _LAYER.items():
                plan[f"model.layers.{layer}.{theirs}.weight"] = _Merged(
                    f"layers.{layer}.{ours}.weight", shapes[ours], cut, heads.get(ours, 0)
                )
        return plan

    def _stored(self, index: int, name: str) -> tuple[int, ...]:
        file = self._files[index]
        if name not in file.tensors:
            raise ModelFileDamagedError(f"{file.path} lacks {name}", fix=_COPY_AGAIN)
        return file.tensors[name].shape

    def _check(self) -> None:
        """Every part holds exactly its share of every tensor."""
        parts, first = len(self._files), self._files[0]
        if self._sizes.kv_heads % parts:
            raise ModelFileDamagedError(
                f"{parts} parts can't share {self._sizes.kv_heads} key-value heads",
                fix="take the same model in fewer parts",
            )
        for merged in self._merged.values():
            wanted = tuple(
                n // parts if at == merged.cut and n % parts == 0 else n for at, n in enumerate(merged.shape)
            )
            for index, file in enumerate(self._files):
                shape = self._stored(index, merged.name)
                dtype = file.tensors[merged.name].storage.dtype
                same = dtype == first.tensors[merged.name].storage.dtype
                if shape != wanted or dtype not in _FLOATS or not same:
                    raise ModelFileDamagedError(
                        f"{file.path}: {merged.name} is {shape} {dtype}",
                        why=f"one of {parts} parts of {merged.shape} would be {wanted}",
                        fix=_COPY_AGAIN,
                    )
        known = {merged.name for merged in self._merged.values()}
        for file in self._files:
            for name in file.tensors.keys() - known:
                if not _IGNORED.fullmatch(name):
                    raise ModelFileDamagedError(
                        f"{file.path} holds {name[:80]!r}, which this architecture doesn't have"
                    )

    def _same(self, one: str, other: str) -> bool:
        """Whether two tables are equal. Llama 3.2 ties head and embedding, yet stores both."""
        first, second = self._merged[one], self._merged[other]
        if self._entries[one] != self._entries[other] or (len(self._files) > 1 and first.cut != second.cut):
            return False  # cut differently: Llama 1 and 2, which never tie
        rows = self._stored(0, first.name)[0]
        return all(
            torch.equal(file.read(first.name, block), file.read(second.name, block))
            for block in (slice(at, at + 1024) for at in range(0, rows, 1024))
            for file in self._files
        )


# ---- params.json
def _params(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ModelFileMissingError(f"{path} is missing", fix=_COPY_AGAIN)
    try:
        params = read_json(path)
    # The parser gives up on endless digits with ValueError and on endless nesting with RecursionError.
    except (BadFileError, ValueError, RecursionError, OSError) as error:
        why = error.why if isinstance(error, BadFileError) else str(error)
        raise ModelFileDamagedError(f"{path} is damaged", why=why, fix=_COPY_AGAIN) from error
    if not isinstance(params, dict):
        raise ModelFileDamagedError(f"{path} holds no settings", fix=_COPY_AGAIN)
    foreign = sorted(params.keys() - _KNOWN - _NOT_SHAPE)
    if foreign:
        raise RefusedError(
            f"{path} has {', '.join(repr(key[:40]) for key in foreign[:4])}: no plain Llama 1 to 3.3",
            why="a model that is read as something else computes something else",
            fix="take the same model as a Hugging Face folder (config.json and *.safetensors)",
        )
    return params


def _parts(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.glob("consolidated.*.pth") if _PART.fullmatch(path.name))
    if not found:
        raise ModelFileMissingError(f"{folder} has no consolidated.00.pth", fix=_COPY_AGAIN)
    wanted = [folder / f"consolidated.{index:02}.pth" for index in range(len(found))]
    if found != wanted:
        missing = next(path for path in wanted if path not in found)
        raise ModelFileMissingError(f"{missing} is missing", why="other parts are there", fix=_COPY_AGAIN)
    return found


def _vocabulary(files: list[StorageFile], params: dict[str, Any]) -> int:
    """Llama 1 and 2 write -1, which is the tokenizer's business; the embedding knows it."""
    if params.get("vocab_size", -1) != -1:
        return _size(params, "vocab_size")
    table = files[0].tensors.get("tok_embeddings.weight")
    if table is None or len(table.shape) != 2:
        raise ModelFileDamagedError(f"{files[0].path} lacks tok_embeddings.weight", fix=_COPY_AGAIN)
    rows, columns = table.shape
    return rows * len(files) if columns == params.get("dim") else rows


def _sizes(params: dict[str, Any], vocabulary: int) -> _Sizes:
    dim, heads = _size(params, "dim"), _size(params, "n_heads")
    given = params.get("n_kv_heads")
    kv_heads = heads if given is None else _size(params, "n_kv_heads")
    if dim % heads or heads % kv_heads or dim // heads % 2:
        raise _damaged(f"{heads} heads and {kv_heads} key-value heads in {dim} channels")
    # Two thirds of 4 * dim, times the multiplier, rounded down each time, then up (the reference code).
    hidden = 2 * 4 * dim // 3
    if params.get("ffn_dim_multiplier") is not None:
        hidden = int(_positive(params, "ffn_dim_multiplier", most=64.0) * hidden)
    multiple = _size(params, "multiple_of")
    hidden = multiple * -(-hidden // multiple)
    if not 0 < hidden <= _MOST or not 0 < vocabulary <= _MOST:
        raise _damaged(f"an MLP of {hidden} channels, a vocabulary of {vocabulary}")
    return _Sizes(dim, _size(params, "n_layers", 1024), heads, kv_heads, hidden, vocabulary)


def _values(params: dict[str, Any], sizes: _Sizes, *, tied: bool) -> dict[str, Any]:
    """The settings in the words of Hugging Face's LlamaConfig."""
    theta = 10_000.0 if params.get("rope_theta") is None else _positive(params, "rope_theta")
    eps = 1e-5 if params.get("norm_eps") is None else _positive(params, "norm_eps")
    scaled = params.get("use_scaled_rope", False)
    if not isinstance(scaled, bool):
        raise _damaged(f"use_scaled_rope is {str(scaled)[:80]}")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": sizes.dim,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "intermediate_size": sizes.hidden,
        "hidden_act": "silu",
        "vocab_size": sizes.vocabulary,
        "max_position_embeddings": _context(params, sizes, theta, eps, scaled=scaled),
        "rms_norm_eps": eps,
        "rope_theta": theta,
        "rope_scaling": _scaling(params, sizes) if scaled else None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
    }


def _scaling(params: dict[str, Any], sizes: _Sizes) -> dict[str, Any]:
    """Llama 3.1's stretched positions. The factor isn't in params.json: 8, and 32 for the two sizes of
    Llama 3.2, which nothing but their shape tells apart (Hugging Face's configs of the same models)."""
    small = (sizes.dim, sizes.layers) in ((2048, 16), (3072, 28))
    given = params.get("rope_scaling_factor")
    return {
        "rope_type": "llama3",
        "factor": (32.0 if small else 8.0) if given is None else _positive(params, "rope_scaling_factor"),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def _context(params: dict[str, Any], sizes: _Sizes, theta: float, eps: float, *, scaled: bool) -> int:
    """How long a text may be, which params.json doesn't say; the model cards do, by generation."""
    if scaled:
        return 131_072  # Llama 3.1 to 3.3
    if theta == 1_000_000.0:
        return 16_384  # Code Llama
    if theta == 500_000.0:
        return 8192  # Llama 3
    # Llama 2 raised the norms' epsilon, but the largest Llama 1 has the same; that one has all its key heads.
    second = eps == 1e-5 and (sizes.dim < 8192 or params.get("n_kv_heads") is not None)
    return 4096 if second else 2048


def _damaged(why: str) -> ModelFileDamagedError:
    return ModelFileDamagedError("params.json lacks a value or has a wrong one", why=why, fix=_COPY_AGAIN)


def _size(params: dict[str, Any], key: str, most: int = _MOST) -> int:
    value = params.get(key)
    if type(value) is not int or not 0 < value <= most:
        raise _damaged(f"{key} is {str(value)[:80]}, not a whole number from 1 to {most}")
    return value


def _positive(params: dict[str, Any], key: str, most: float = 1e30) -> float:
    value = params.get(key)
    # Compared as it is: an integer of JSON may be too large for a float.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise _damaged(f"{key} is {str(value)[:80]}, not a number above 0")
    return float(value)
