"""Weights that come and go: Hugging Face folders, Meta folders and GGUF files in, Hugging Face folders out.

The way in is one for all. A container (`formats/`) gives config values and named tensors, a family
(`families/`) says what they mean, and everything is compared before memory is taken: the tensors must be
exactly those that the config asks for, with their shapes and float types. Then the decoder is built
without memory (torch's meta device), each of its tensors is allocated once and filled where it lies, so
that a load needs little more memory than the weights. Nothing in a folder is ever run.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ayllu.errors import (
    AylluWarning,
    BadFileError,
    ModelFileDamagedError,
    ModelFileMissingError,
    RefusedError,
    RequestError,
)
from ayllu.files import read_json, write_json
from ayllu.model import families
from ayllu.model.config import ModelConfig
from ayllu.model.decoder import Decoder
from ayllu.model.families.names import EMBEDDING, HEAD, Entry
from ayllu.model.formats.filling import fill, places
from ayllu.model.formats.safetensors import INDEX, SHARD_BYTES, SINGLE, open_safetensors, save_safetensors
from ayllu.model.formats.source import TensorInfo, TensorSource
from ayllu.model.formats.spelling import respelled

_COPY_AGAIN = "copy the whole model folder again"
_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_STORED = {*_TYPES.values(), torch.float64}
_CONFIG_LIMIT = 4_000_000  # bytes of config.json; a long one has ten thousand
# Suffixes under which weights are kept as pickles, which can run any code (or .npy, which may hold one).
_PICKLED = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".msgpack", ".h5"}


# ---- in
def open_weights(path: Path | str) -> tuple[dict[str, Any], TensorSource]:
    """Config values (Hugging Face's keys) and tensors (its names) of a model folder, a Meta folder with
    params.json, or a .gguf file. The caller closes the source.

    Errors: ModelFileMissingError, ModelFileDamagedError; BadFileError where the weights are pickles;
    RefusedError where the config names code.
    """
    path = Path(path)
    if _is_gguf(path):
        from ayllu.model.formats.gguf import open_gguf

        return open_gguf(path)
    if _is_meta(path):
        from ayllu.model.formats.meta import open_meta

        return open_meta(path)
    values = _read_config(path)
    if not (path / SINGLE).is_file() and not (path / INDEX).is_file():
        _refuse_pickles(path)
    return values, open_safetensors(path)


def load_config(path: Path | str) -> ModelConfig:
    """The config of a model folder or file; of a folder, config.json alone is read. Errors: those of
    `open_weights`."""
    path = Path(path)
    if not _is_gguf(path) and not _is_meta(path):
        return _understood(path, _read_config(path))[1]
    values, source = open_weights(path)
    source.close()
    return _understood(path, values)[1]


def load_model(path: Path | str, *, dtype: str = "float32", device: str = "cpu") -> Decoder:
    """The Decoder of a model folder or file, ready to run.

    Matrices and biases are in `dtype`, norms and the bias of an expert's choice in float32. "auto" takes
    the matrices' type from the file and keeps in mind how each tensor was stored, so that saving writes
    the same bytes again. Not-a-number and infinity are loaded, with an AylluWarning that names the tensor.
    Errors: those of `open_weights`, ModelFileDamagedError for tensors that don't fit the config;
    RequestError for an unknown `dtype`.
    """
    if dtype not in _TYPES and dtype != "auto":
        raise RequestError(f"dtype = {dtype!r} is not one of {', '.join(_TYPES)}, auto")
    config, entries, source = open_checked(path)
    try:
        kind = _TYPES.get(dtype) or _stored_type(entries, source.entries)
        model = shell_of(config)
        state = {
            name: torch.empty(shell.shape, dtype=_type_of(name, kind), device=device)
            for name, shell in model.state_dict().items()
        }
        odd = fill(state, entries, source)
        if dtype == "auto":
            model.stored_types = {p.name: source.entries[p.name].dtype for e in entries for p in e.pieces}
    finally:
        source.close()
    warn_of_odd(path, odd)
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()


def open_checked(path: Path | str) -> tuple[ModelConfig, list[Entry], TensorSource]:
    """The config, which tensors of the file fill which of ours, and the file, when they fit each other. The
    caller closes the source. Errors: those of `open_weights`, ModelFileDamagedError."""
    values, source = open_weights(path)
    try:
        family, config = _understood(Path(path), values)
        source = respelled(source, getattr(family, "SPELLINGS", ()))
        entries = family.entries(config)
        _check(Path(path), source.entries, entries, config, family.IGNORED)
    except BaseException:
        source.close()
        raise
    return config, entries, source


def warn_of_odd(path: Path | str, odd: list[str]) -> None:
    """AylluWarning for tensors that hold NaN or infinity."""
    if odd:
        others = f" (and {len(odd) - 1} other tensors)" if len(odd) > 1 else ""
        warnings.warn(
            f"{path}: {odd[0]} holds NaN or infinity{others}; the model's answers may be nonsense",
            AylluWarning,
            stacklevel=3,
        )


def shell_of(config: ModelConfig) -> Decoder:
    """A Decoder whose tensors have shapes and no memory (torch's meta device)."""
    with torch.device("meta"), _WithoutInit():
        return Decoder(config)


class _WithoutInit(TorchFunctionMode):
    """Leaves out the filling of new weights. Without memory it does nothing, and torch imports its whole
    symbolic algebra for it, two seconds of a load."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def cast_matrices(model: Decoder, dtype: torch.dtype) -> Decoder:
    """Matrices and biases to `dtype`, in place. What needs float32's digits and is small keeps its type:
    norms and the bias of an expert's choice."""
    for name, weight in model.named_parameters():
        weight.data = weight.data.to(_type_of(name, dtype))
    model.stored_types = {}
    return model


def _type_of(name: str, dtype: torch.dtype) -> torch.dtype:
    """The type in which our tensor `name` computes when matrices are in `dtype`."""
    owner = name.rpartition(".")[0]
    return torch.float32 if owner.endswith("norm") or name.endswith("choice_bias") else dtype


# ---- what a path holds
def _is_gguf(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() == ".gguf"


def _is_meta(path: Path) -> bool:
    return (path / "params.json").is_file() and not (path / "config.json").is_file()


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if folder.is_file():
        _refuse_pickles(folder)
        raise BadFileError(
            f"{folder} is not a model", fix="name a model folder, a folder with params.json, or a .gguf file"
        )
    if not folder.exists():
        raise ModelFileMissingError(f"there is no model {folder}", fix="check the path")
    if not path.is_file():
        inside = (folder / "model" / "config.json").is_file()
        fix = f"the model of this run is {folder / 'model'}" if inside else _COPY_AGAIN
        raise ModelFileMissingError(f"{path} is missing", fix=fix)
    try:
        values = read_json(path, limit=_CONFIG_LIMIT)
    except (BadFileError, OSError) as error:
        why = error.why if isinstance(error, BadFileError) else str(error)
        raise ModelFileDamagedError(f"{path} is damaged", why=why, fix=_COPY_AGAIN) from error
    if not isinstance(values, dict):
        raise ModelFileDamagedError(f"{path} is damaged", why="it is not an object", fix=_COPY_AGAIN)
    if "auto_map" in values:
        raise RefusedError(
            f"{path} names Python code to run (auto_map)",
            why="a model's weights are data; code that comes with them could do anything",
            fix="Ayllu runs no code from a model folder; where its architecture is one that Ayllu has, "
            "delete the key auto_map and load again",
        )
    return values


def _refuse_pickles(path: Path) -> None:
    """BadFileError when `path` is, or its files are, weights in a form that can run code."""
    files = [path] if path.is_file() else sorted(path.iterdir())
    pickled = [file.name for file in files if file.suffix.lower() in _PICKLED]
    if pickled:
        raise BadFileError(
            f"{path} has weights only as {pickled[0]!r}, which is not read",
            why="such files are pickles (or may hold some): opening one can run any code",
            fix="get the model as safetensors (most publishers have both), "
            "or convert it where nothing can be lost",
        )


def _understood(path: Path, values: dict[str, Any]) -> tuple[ModuleType, ModelConfig]:
    """The family and config that config values mean."""
    named = values.get("architectures")
    good = isinstance(named, list) and len(named) == 1 and isinstance(named[0], str)
    family = families.family_of(named[0]) if good and named is not None else None
    if family is None:
        known = sorted(name for module in families.FAMILIES.values() for name in module.ARCHITECTURES)
        raise ModelFileDamagedError(
            f"{path} names the architecture {ascii(named)[:200]}",
            why=f"known are {', '.join(known)}",
            fix="load a model of one of these families",
        )
    if values.get("quantization_config"):
        raise ModelFileDamagedError(
            f"{path} holds weights that others have quantised",
            why="their packed formats are not read",
            fix="use the bfloat16 or float16 release of the model, or a GGUF file",
        )
    try:
        return family, family.config_from_hf(values)
    except ModelFileDamagedError as error:
        why = f"{error.what}: {error.why}" if error.why else error.what
        raise ModelFileDamagedError(
            f"{path} has a config that can't be used", why=why, fix=error.fix or _COPY_AGAIN
        ) from error


def _check(
    path: Path,
    found: Mapping[str, TensorInfo],
    entries: list[Entry],
    config: ModelConfig,
    ignored: tuple[str, ...],
) -> None:
    """ModelFileDamagedError unless `found` is what the config asks for: no more, no less, floats."""

    def damaged(what: str) -> ModelFileDamagedError:
        return ModelFileDamagedError(f"{path}: {what}", why="it doesn't fit its config.json", fix=_COPY_AGAIN)

    wanted = {piece.name: piece.shape for entry in entries for piece in entry.pieces}
    # A tied head may be stored too (others do that); it is the embedding.
    optional = {HEAD: wanted[EMBEDDING]} if config.tied and EMBEDDING in wanted else {}
    if missing := sorted(wanted.keys() - found.keys()):
        raise damaged(f"the weights lack {missing[0]}")
    for name, info in sorted(found.items()):
        shape = wanted.get(name, optional.get(name))
        if shape is None:
            if any(re.search(pattern, name) for pattern in ignored):
                continue
            raise damaged(f"the weights hold {ascii(name)[:200]}, which this architecture doesn't have")
        if info.shape != shape or info.dtype not in _STORED:
            raise damaged(f"{name} is {info.shape} {info.dtype}, the config asks for {shape} in floats")


def _stored_type(entries: list[Entry], found: Mapping[str, TensorInfo]) -> torch.dtype:
    """The type that holds all matrices as they are stored (float64, which nobody computes in, as float32)."""
    kinds = {
        found[piece.name].dtype
        for entry in entries
        for piece in entry.pieces
        if _type_of(entry.ours, torch.float16) != torch.float32
    }
    return kinds.pop() if len(kinds) == 1 and torch.float64 not in kinds else torch.float32


# ---- out
def save_model(
    model: Decoder,
    folder: Path,
    *,
    bos: int,
    eos: int,
    pad: int,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write config.json and model.safetensors (or shards with an index) into `folder`.

    `dtype` None: each tensor as it was stored when the model was loaded with "auto", otherwise all in the
    type of the embedding. Files appear under their names when they are complete. Errors: RequestError where
    the family can't express the model; DiskFullError, FolderReadOnlyError.
    """
    if dtype is not None and dtype not in _TYPES:
        raise RequestError(f"dtype = {dtype!r} is not one of {', '.join(_TYPES)}")
    family = families.family(model.config.family)
    values = family.config_to_hf(model.config)
    stored = getattr(model, "stored_types", {}) if dtype is None else {}
    kind = _TYPES[dtype] if dtype is not None else model.embedding.weight.dtype
    state = model.state_dict()
    tensors: dict[str, Tensor] = {}
    types: dict[str, torch.dtype] = {}
    for entry in family.entries(model.config):
        for piece, part in places(entry, state[entry.ours].contiguous()):
            tensors[piece.name] = part.transpose(-2, -1) if piece.transposed else part
            plain = torch.float32 if entry.ours.endswith("choice_bias") else kind
            types[piece.name] = stored.get(piece.name, plain)
    save_safetensors(folder, tensors, types, shard_bytes=shard_bytes)
    values |= {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}
    values["dtype"] = str(types.get(EMBEDDING, kind)).removeprefix("torch.")
    write_json(folder / "config.json", values)
