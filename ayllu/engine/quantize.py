"""Packed weights as a file: mapped into memory as they are, by as many processes as like.

The container is safetensors (huggingface/safetensors, README "Format"), so that its header is checked like
any other's: every matrix is a row of bytes in the layout of native/packed.h, every vector float32 padded to
whole lines. The header is filled up with spaces to a page's border, and all sizes are multiples of 64 bytes,
so that the kernels stream from the mapping itself: nothing is unpacked or copied at start, and the pages are
those of the system's file cache, the same for all processes.

Packing goes tensor by tensor from the model's files straight into the place in memory (or in the new file)
where it stays. Blocks of a GGUF file whose kind has the same numbers (Q8_0, Q4_0) are taken over exactly.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ayllu.engine.packed import (
    ALIGNMENT,
    FORMATS,
    LANES,
    Packed,
    PackedModel,
    aligned,
    core,
    format_of,
    matrices_of,
    repack,
    supports,
    vectors_of,
)
from ayllu.errors import ModelFileDamagedError, ModelFileMissingError, RequestError
from ayllu.files import new_file, sha256_file, sha256_json
from ayllu.model.config import ModelConfig
from ayllu.model.decoder import Decoder
from ayllu.model.families.names import Entry
from ayllu.model.formats.filling import fill
from ayllu.model.formats.safetensors import INDEX, SINGLE, SafetensorsFile
from ayllu.model.formats.source import TensorSource
from ayllu.model.weights import load_config, load_model, open_checked, shell_of, warn_of_odd

KINDS = ("int8", "int4", "bfloat16", "float32")
_VERSION = "1"
_GROUP = "32"
_PAGE = 4096
_BLOCKS = {"Q8_0": "int8", "Q4_0": "int4"}  # of GGUF: the same numbers in another order


# ---- what lies where
@dataclass(frozen=True)
class Slot:
    """A matrix's place among the bytes of all weights; `count` experts."""

    rows: int
    columns: int
    count: int
    format: str
    data: int
    size: int
    bias: int | None


@dataclass(frozen=True)
class Layout:
    """Where each weight of a decoder lies when it is packed as `weights`: offsets into one run of bytes."""

    config: ModelConfig
    weights: str
    matrices: dict[str, Slot]
    vectors: dict[str, tuple[int, int]]  # offset, numbers
    size: int


def layout_of(config: ModelConfig, weights: str) -> Layout:
    """Raises RequestError for weights of another kind and for decoders that the native step can't run."""
    if weights not in KINDS:
        raise RequestError(f"weights = {weights!r} is not one of {', '.join(KINDS)}")
    if reason := supports(config):
        raise RequestError(f"packed weights don't do {reason}", fix="use float32 or bfloat16 weights")
    shell, end = shell_of(config), 0
    matrices: dict[str, Slot] = {}
    for name, weight, bias in matrices_of(shell):
        kind = format_of(name, weights, config)
        rows, columns = weight.shape[-2:]
        count = weight.shape[0] if weight.dim() == 3 else 1
        size = count * core().packed_bytes(rows, columns, FORMATS[kind])
        place = None if bias is None else end + size
        matrices[name] = Slot(rows, columns, count, kind, end, size, place)
        end += size + (0 if bias is None else _padded(rows) * 4)
    vectors = {}
    for name, vector in vectors_of(shell).items():
        vectors[name] = (end, len(vector))
        end += _padded(len(vector)) * 4
    return Layout(config, weights, matrices, vectors, end)


def over(layout: Layout, memory: Tensor, fingerprint: str = "") -> PackedModel:
    """The model whose weights are these bytes (uint8, `layout.size`, on a 64-byte border); views."""
    assert len(memory) == layout.size and memory.data_ptr() % ALIGNMENT == 0

    def floats(offset: int, count: int) -> Tensor:
        return memory[offset : offset + 4 * count].view(torch.float32)

    matrices = {}
    for name, slot in layout.matrices.items():
        data = memory[slot.data : slot.data + slot.size]
        bias = None if slot.bias is None else floats(slot.bias, _padded(slot.rows))
        matrices[name] = Packed(data, slot.rows, slot.columns, FORMATS[slot.format], bias, slot.count)
    vectors = {name: floats(offset, count) for name, (offset, count) in layout.vectors.items()}
    return PackedModel(layout.config, layout.weights, matrices, vectors, fingerprint)


def _padded(count: int) -> int:
    """Numbers of whole lines."""
    return -(-count // LANES) * LANES


# ---- from a model's files
def pack_files(path: Path | str, weights: str) -> PackedModel:
    """The weights of a model folder or file, packed into memory one tensor at a time. Errors: those of
    `load_model`, RequestError."""
    config, entries, source = open_checked(path)
    try:
        layout = layout_of(config, weights)
        packed = over(layout, aligned(layout.size))
        warn_of_odd(path, _fill(packed, entries, source))
    finally:
        source.close()
    return packed


def _fill(packed: PackedModel, entries: list[Entry], source: TensorSource) -> list[str]:
    """Pack every tensor into its place; the names of those that hold NaN or infinity."""
    biases = {entry.ours: entry for entry in entries if entry.ours.endswith(".bias")}
    odd: list[str] = []

    def read(entry: Entry) -> Tensor:
        stored = {source.entries[piece.name].dtype for piece in entry.pieces}
        kind = torch.bfloat16 if stored == {torch.bfloat16} else torch.float32
        shape = _shape_of(entry)
        tensor = torch.empty(shape, dtype=kind)
        odd.extend(fill({entry.ours: tensor}, [entry], source))
        return tensor

    for entry in entries:
        name = entry.ours.removesuffix(".weight")
        if (matrix := packed.matrices.get(name)) is not None:
            bias = biases.get(f"{name}.bias")
            if _take_over(matrix, entry, source):
                if bias is not None and matrix.bias is not None:
                    matrix.bias[: matrix.rows] = read(bias)
                continue
            weight = read(entry).view(matrix.count, matrix.rows, matrix.columns)
            repack(matrix, weight if matrix.count > 1 else weight[0], None if bias is None else read(bias))
        elif (vector := packed.vectors.get(entry.ours)) is not None:
            vector.copy_(read(entry).view(-1))
        else:
            assert entry.ours in biases, entry.ours
    return odd


def _shape_of(entry: Entry) -> tuple[int, ...]:
    """(rows of all pieces, columns); a vector's length."""
    shapes = [(*p.shape[:-2], p.shape[-1], p.shape[-2]) if p.transposed else p.shape for p in entry.pieces]
    if len(shapes[0]) == 1:
        return (sum(shape[0] for shape in shapes),)
    return (sum(int(np.prod(shape[:-1])) for shape in shapes), shapes[0][-1])


def _take_over(matrix: Packed, entry: Entry, source: TensorSource) -> bool:
    """Whether the matrix could be taken over from blocks that have the same numbers."""
    blocks_of = getattr(source, "packed", None)
    stored = getattr(source, "kind", None)
    if blocks_of is None or stored is None or any(piece.transposed for piece in entry.pieces):
        return False
    if any(FORMATS.get(_BLOCKS.get(stored(p.name), ""), -1) != matrix.format for p in entry.pieces):
        return False
    blocks_RN = torch.cat([blocks_of(piece.name)[1] for piece in entry.pieces])
    for index, part_RN in enumerate(blocks_RN.chunk(matrix.count)):
        assert len(part_RN) == matrix.rows
        address = part_RN.data_ptr()
        core().pack_blocks(address, matrix.rows, matrix.columns, matrix.format, matrix.describe(index)[0])
    return True


# ---- the file
def file_name(weights: str) -> str:
    """Of the packed file in its model folder."""
    return f"model.{weights}.ayllu.safetensors"


def packed_kinds(folder: Path) -> list[str]:
    """The kinds of weights that a folder holds in packed form."""
    return [kind for kind in KINDS if (folder / file_name(kind)).is_file()]


def packed_only(path: Path) -> list[str]:
    """The kinds of packed weights of a folder that has no others; none for any other model."""
    plain = any((path / name).is_file() for name in (SINGLE, INDEX, "params.json"))
    return [] if plain else packed_kinds(path)


def save_packed(packed: PackedModel, folder: Path, *, source_sha256: str = "") -> Path:
    """Write a packed model's weights into `folder`. Errors: DiskFullError, FolderReadOnlyError."""
    layout = layout_of(packed.config, packed.weights)

    def copy(target: PackedModel) -> None:
        for name, matrix in packed.matrices.items():
            target.matrices[name].data.copy_(matrix.data)
            if (bias := target.matrices[name].bias) is not None and matrix.bias is not None:
                bias.copy_(matrix.bias)
        for name, vector in packed.vectors.items():
            target.vectors[name].copy_(vector)

    return _write(layout, folder, source_sha256, copy)


def quantize_files(path: Path, weights: str, folder: Path) -> Path:
    """Pack the weights of the model `path` into a file in `folder`, one tensor at a time. Errors: those of
    `pack_files`, DiskFullError, FolderReadOnlyError."""
    config, entries, source = open_checked(path)
    try:
        layout = layout_of(config, weights)

        def put(target: PackedModel) -> None:
            warn_of_odd(path, _fill(target, entries, source))

        return _write(
            layout,
            folder,
            weights_hash(path),
            put,
        )
    finally:
        source.close()


def _write(layout: Layout, folder: Path, source_sha256: str, put: Any) -> Path:
    path = folder / file_name(layout.weights)
    metadata = {
        "format": "ayllu-packed",
        "version": _VERSION,
        "weights": layout.weights,
        "lanes": str(LANES),
        "group": _GROUP,
        "matrices": json.dumps({name: slot.format for name, slot in layout.matrices.items()}),
        "source_sha256": source_sha256,
        "data_sha256": "0" * 64,
    }
    start = len(_header(layout, metadata))
    with new_file(path) as file:
        os.posix_fallocate(file.fileno(), 0, start + layout.size)  # a full disk is an error now, not a signal
        with mmap.mmap(file.fileno(), start + layout.size) as mapped:
            memory = torch.from_numpy(np.frombuffer(mapped, np.uint8)[start:])
            put(over(layout, memory))
            metadata["data_sha256"] = hashlib.sha256(memory.numpy()).hexdigest()
            del memory
            mapped[:start] = _header(layout, metadata)
            mapped.flush()
    return path


def _parts(layout: Layout) -> dict[str, tuple[str, int, int]]:
    """Name in the file -> type, elements, offset; in order of offsets."""
    parts = {}
    for name, slot in layout.matrices.items():
        parts[f"{name}.packed"] = ("U8", slot.size, slot.data)
        if slot.bias is not None:
            parts[f"{name}.bias"] = ("F32", _padded(slot.rows), slot.bias)
    for name, (offset, count) in layout.vectors.items():
        parts[name] = ("F32", _padded(count), offset)
    return parts


def _header(layout: Layout, metadata: Mapping[str, str]) -> bytes:
    """Length and header, to a page's border."""
    table: dict[str, Any] = {"__metadata__": dict(metadata)}
    for name, (kind, count, offset) in _parts(layout).items():
        end = offset + count * {"U8": 1, "F32": 4}[kind]
        table[name] = {"dtype": kind, "shape": [count], "data_offsets": [offset, end]}
    text = json.dumps(table, separators=(",", ":")).encode()
    length = len(text) + -(8 + len(text)) % _PAGE
    return length.to_bytes(8, "little") + text.ljust(length)


def open_packed(folder: Path, weights: str = "auto") -> PackedModel:
    """The packed weights of a folder, mapped: nothing is read before it is used.

    The header is held against config.json and the layout. The weights themselves are not hashed at start
    (`verify_packed` does); whoever shortens the file under a running process ends that process.
    Errors: ModelFileMissingError; ModelFileDamagedError; RequestError where the folder has another kind.
    """
    kinds = packed_kinds(folder)
    kind = (kinds[0] if kinds else "int8") if weights == "auto" else weights
    if not kinds:
        raise ModelFileMissingError(f"{folder / file_name(kind)} is missing", fix=_pack_again(folder, kind))
    if kind not in kinds:
        raise RequestError(
            f"{folder} holds {' and '.join(kinds)} weights, not {kind}",
            why="what is packed can't become more exact or smaller again",
            fix=f"ask for weights = {kinds[0]}, or quantise the original model: {_pack_again(folder, kind)}",
        )
    path, config = folder / file_name(kind), load_config(folder)
    layout = layout_of(config, kind)
    with SafetensorsFile(path) as file:
        start, metadata = _checked(path, file, layout), file.metadata
        with open(path, "rb") as handle:
            mapped = mmap.mmap(handle.fileno(), start + layout.size, access=mmap.ACCESS_COPY)
    if hasattr(mapped, "madvise"):
        mapped.madvise(mmap.MADV_WILLNEED)  # a cold disk begins to read at once
    memory = torch.from_numpy(np.frombuffer(mapped, np.uint8)[start:])
    return over(layout, memory, metadata["data_sha256"])


def verify_packed(folder: Path, weights: str = "auto") -> None:
    """Hash all weights. ModelFileDamagedError where they aren't what was written."""
    packed = open_packed(folder, weights)
    layout = layout_of(packed.config, packed.weights)
    path = folder / file_name(packed.weights)
    with open(path, "rb") as file:
        file.seek(path.stat().st_size - layout.size)
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != packed.fingerprint:
        raise ModelFileDamagedError(
            f"{path} has been altered", why="its SHA-256 isn't that of its header", fix="copy it again"
        )


def _checked(path: Path, file: SafetensorsFile, layout: Layout) -> int:
    """Where the weights begin, once the header is sure to describe this layout."""
    kind, again = layout.weights, _pack_again(path.parent, layout.weights)

    def refuse(why: str) -> ModelFileDamagedError:
        return ModelFileDamagedError(f"{path} can't be used", why=why, fix=again)

    metadata = file.metadata
    if metadata.get("format") != "ayllu-packed":
        raise refuse("it doesn't hold packed weights")
    if metadata.get("version") != _VERSION:
        said = ascii(metadata.get("version"))[:40]
        raise refuse(f"it is of version {said}, and this program reads version {_VERSION}")
    wanted = {"weights": kind, "lanes": str(LANES), "group": _GROUP}
    for key, value in wanted.items():
        if metadata.get(key) != value:
            raise refuse(f"its {key} is {ascii(metadata.get(key))[:40]}, not {value}")
    formats = {name: slot.format for name, slot in layout.matrices.items()}
    try:
        same = json.loads(metadata.get("matrices", "")) == formats
    except (ValueError, RecursionError):
        same = False
    digest = metadata.get("data_sha256", "")
    if not same or len(digest) != 64 or digest.strip("0123456789abcdef"):
        raise refuse("its description doesn't fit its config.json")
    parts = _parts(layout)
    if extra := sorted(file.entries.keys() ^ parts.keys()):
        raise refuse(f"{ascii(extra[0])[:200]} is missing or too much")
    start = min(file.place(name) - offset for name, (_, _, offset) in parts.items())
    for name, (stored, count, offset) in parts.items():
        info = file.entries[name]
        dtype = torch.uint8 if stored == "U8" else torch.float32
        if info.shape != (count,) or info.dtype != dtype or file.place(name) != start + offset:
            raise refuse(f"{name} doesn't have its {count:,} numbers in its place")
    if start % ALIGNMENT:
        raise refuse("its weights don't begin on a 64-byte border")
    return start


def _pack_again(folder: Path, kind: str) -> str:
    return f"ayllu quantize MODEL --weights {kind if kind in FORMATS else 'int8'} --out {folder}"


def weights_hash(path: Path) -> str:
    """SHA-256 of a model's weights: of its file, or over the files' hashes by name."""
    if path.is_file():
        return sha256_file(path)
    files = sorted([*path.glob("*.safetensors"), *path.glob("*.pth")])
    hashes = {file.name: sha256_file(file) for file in files}
    return next(iter(hashes.values())) if len(hashes) == 1 else sha256_json(hashes)


# ---- for the engine
def open_model(path: Path | str, weights: str = "auto", device: str = "cpu") -> Decoder | PackedModel:
    """What an engine computes with: packed weights where the folder has them or `weights` asks for them on a
    CPU, a Decoder otherwise, elsewhere in bfloat16 unless float32 is asked for. Errors: those of
    `open_packed`, `pack_files` and `load_model`."""
    path = Path(path)
    kinds = packed_kinds(path)
    if kinds and (weights in ("auto", *kinds) or packed_only(path)):
        if device != "cpu":
            raise RequestError(
                f"{path} holds weights that are packed for a CPU", fix="use the original model there"
            )
        return open_packed(path, weights)
    if device == "cpu" and weights in ("int8", "int4"):
        return pack_files(path, weights)
    whole = device == "cpu" or weights == "float32"
    return load_model(path, dtype="float32" if whole else "bfloat16", device=device)
