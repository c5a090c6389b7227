"""GGUF files as a source of weights, and a model written as one (for llama.cpp and what stands on it).

The header is ayllu/gguf.py's, the meaning of names and keys llamacpp.py's, the packing of numbers
blocks.py's. The file is mapped, and a tensor is unpacked a few megabytes at a time into the memory that it
is meant for. Rows keep their blocks, so that a row can be moved without unpacking it: the reordering of
queries and keys and the splitting of experts are the same for packed and unpacked weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ayllu.errors import RequestError
from ayllu.files import new_file
from ayllu.gguf import KINDS, GGUFHeader, StoredTensor, header_bytes, padding, read_header
from ayllu.model.decoder import Decoder
from ayllu.model.formats import blocks
from ayllu.model.formats.llamacpp import DIVISORS, damaged, places, values_of
from ayllu.model.formats.llamacpp_export import metadata_of, tensors_of
from ayllu.model.formats.source import TensorInfo

EXPORTED = ("F16", "BF16", "Q8_0", "Q4_0")
_FILE_TYPE = {"F16": 1, "Q4_0": 2, "Q8_0": 7, "BF16": 32}  # general.file_type: what most tensors are
_CHUNK = 2**20  # numbers that are unpacked at a time


def open_gguf(path: Path | str) -> tuple[dict[str, Any], GGUFSource]:
    """The content of a config.json and the weights, both as Hugging Face has them.

    Errors: ModelFileMissingError, ModelFileDamagedError (an architecture or a kind that isn't read, too).
    """
    path = Path(path)
    header = read_header(path)
    shapes = {name: tensor.shape for name, tensor in header.tensors.items()}
    mapped = np.memmap(path, np.uint8, mode="c") if header.tensors else np.empty(0, np.uint8)
    divisors = None
    if (stored := header.tensors.get(DIVISORS)) is not None:
        if stored.kind.name != "F32" or len(stored.shape) != 1:
            raise damaged(f"{DIVISORS} is not a list of F32 numbers")
        divisors = np.frombuffer(_bytes_of(mapped, stored).tobytes(), "<f4")
    values = values_of(header.metadata, shapes, divisors)
    return values, GGUFSource(mapped, header, values)


class GGUFSource:
    """The tensors of a GGUF file under Hugging Face names (formats/source.py), unpacked or as they are."""

    def __init__(self, mapped: np.ndarray, header: GGUFHeader, values: Mapping[str, Any]) -> None:
        shapes = {name: tensor.shape for name, tensor in header.tensors.items()}
        self._mapped, self._tensors = mapped, header.tensors
        self._places = places(str(header.metadata["general.architecture"]), shapes, values)
        self._entries = {}
        for name, place in self._places.items():
            kind = header.tensors[place.stored].kind.name
            blocks.require(kind)
            if place.heads and len(place.shape) == 1 and kind not in blocks.PLAIN:
                raise damaged(f"{place.stored} is a vector in blocks")
            self._entries[name] = TensorInfo(place.shape, blocks.PLAIN.get(kind, torch.float32))

    @property
    def entries(self) -> Mapping[str, TensorInfo]:
        """All tensors by name."""
        return self._entries

    def read(self, name: str) -> Tensor:
        """The numbers: in their own type where they are stored plainly, in float32 where they are packed."""
        info = self._entries[name]
        target = torch.empty(info.shape, dtype=info.dtype)
        self.copy_to(name, target)
        return target

    def copy_to(self, name: str, target: Tensor) -> None:
        """Unpack into `target`, a few megabytes at a time."""
        place = self._places[name]
        kind = self._tensors[place.stored].kind.name
        raw_RN = self._raw(name)
        target_RK = target.view(len(raw_RN), -1)
        order = neighbours_to_halves(len(raw_RN), place.heads) if place.heads else None
        step = max(1, _CHUNK // target_RK.shape[1])
        for start in range(0, len(raw_RN), step):
            rows = slice(start, start + step)
            chunk_RN = raw_RN[rows] if order is None else raw_RN[order[rows]]
            target_RK[rows] = blocks.unpack(kind, chunk_RN).to(target.dtype)

    def kind(self, name: str) -> str:
        """How a tensor is stored: the kind's name."""
        return self._tensors[self._places[name].stored].kind.name

    def packed(self, name: str) -> tuple[str, Tensor]:
        """The kind's name and the stored blocks, uint8 (rows, bytes of a row), in memory of their own."""
        place = self._places[name]
        raw_RN = self._raw(name)
        if place.heads:
            raw_RN = raw_RN[neighbours_to_halves(len(raw_RN), place.heads)]
        return self._tensors[place.stored].kind.name, raw_RN.clone()

    def close(self) -> None:
        """Let go of the file."""
        self._mapped = np.empty(0, np.uint8)

    def _raw(self, name: str) -> Tensor:
        """The stored bytes of a tensor, (rows, bytes of a row), still in the file. A vector is one row, but
        for a vector whose elements are moved like rows."""
        place = self._places[name]
        stored = self._tensors[place.stored]
        data = torch.from_numpy(_bytes_of(self._mapped, stored))
        if len(stored.shape) == 3:
            data = data.view(stored.shape[0], -1)[place.expert] if len(place.shape) == 2 else data
        rows = place.shape[0] if len(place.shape) > 1 or place.heads else 1
        return data.view(rows, -1)


def _bytes_of(mapped: np.ndarray, stored: StoredTensor) -> np.ndarray:
    return mapped[stored.offset : stored.offset + stored.size]


def neighbours_to_halves(rows: int, heads: int) -> Tensor:
    """Which stored row comes where: within each head, the even rows first, then the odd ones."""
    return torch.arange(rows).view(heads, -1, 2).transpose(1, 2).reshape(-1)


def halves_to_neighbours(rows: int, heads: int) -> Tensor:
    """The opposite order, for writing."""
    return torch.arange(rows).view(heads, 2, -1).transpose(1, 2).reshape(-1)


# ---- out
def write_gguf(
    model: Decoder,
    path: Path | str,
    *,
    kind: str = "F16",
    vocabulary: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write `model` as one GGUF file that llama.cpp loads; `path` is whole or as it was.

    kind: F16, BF16, Q8_0 or Q4_0, for matrices. Norms, biases and routers are F32; matrices whose rows are
        not whole blocks of 32 stay F16.
    vocabulary: the `tokenizer.*` values (text/vocabulary.py makes them); without it the file has none.
    metadata: further values, such as general.name.
    Errors: RequestError for another kind, for weights too large for it and for a model that llama.cpp can't
    compute; DiskFullError, FolderReadOnlyError.
    """
    if kind not in EXPORTED:
        raise RequestError(f"kind = {kind!r} is not one of {', '.join(EXPORTED)}")
    values = metadata_of(model.config)
    tensors = tensors_of(model.config, model.state_dict())
    kinds = {name: _kind_of(name, tensor, kind) for name, (tensor, _) in tensors.items()}
    head = header_bytes(
        values
        | {"general.file_type": _FILE_TYPE[kind], "general.quantization_version": 2}
        | dict(vocabulary or {"tokenizer.ggml.model": "none"})
        | dict(metadata or {}),
        {name: (KINDS[kinds[name]], tuple(tensor.shape)) for name, (tensor, _) in tensors.items()},
    )
    with new_file(Path(path)) as file:
        file.write(head)
        for name, (tensor, heads) in tensors.items():
            size = 0
            try:
                for chunk in _packed(kinds[name], tensor, heads):
                    size += file.write(memoryview(chunk.numpy()).cast("B"))
            except RequestError as error:
                error.what = f"{name}: {error.what}"
                raise
            file.write(bytes(padding(size)))


def _kind_of(name: str, tensor: Tensor, kind: str) -> str:
    if tensor.dim() == 1 or "ffn_gate_inp" in name:
        return "F32"
    return kind if tensor.shape[-1] % KINDS[kind].numbers == 0 else "F16"


def _packed(kind: str, tensor: Tensor, heads: int) -> Iterator[Tensor]:
    """The bytes of a tensor, some rows at a time."""
    for matrix in tensor.detach() if tensor.dim() == 3 else [tensor.detach()]:
        # A vector is one row, unless its elements are moved like rows.
        matrix_RK = matrix[:, None] if heads and matrix.dim() == 1 else matrix
        matrix_RK = matrix_RK if matrix_RK.dim() == 2 else matrix_RK[None]
        order = halves_to_neighbours(len(matrix_RK), heads) if heads else torch.arange(len(matrix_RK))
        step = max(1, _CHUNK // matrix_RK.shape[1])
        for start in range(0, len(matrix_RK), step):
            yield blocks.pack(kind, matrix_RK[order[start : start + step]].cpu())
