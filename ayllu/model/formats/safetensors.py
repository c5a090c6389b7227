"""safetensors: weights as a JSON header and raw bytes, one file or several with an index.

The format (huggingface/safetensors, README "Format"): eight bytes little-endian give the length of the
header, the header maps each name to its type, shape and two offsets into the rest, and the rest is the
tensors one after the other without gaps. Its safety lies in the strictness of the reader (the audit by
Trail of Bits, 2023, found files that are two formats at once), so that this one refuses whatever the
description doesn't allow.

Bytes are read with `preadv` straight into the tensor. A memory map would leave the file's pages in this
process beside the copies that joint projections need anyway, and a file that shrinks under a map kills
the process where a short read is an error.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ayllu.errors import BadFileError, ModelFileDamagedError, ModelFileMissingError
from ayllu.files import new_file, own_file, read_json, write_text
from ayllu.model.formats.source import TensorInfo

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000  # Hugging Face's usual size of a shard

_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _TYPES.items()}

_HEADER_LIMIT = 100_000_000  # the format's own
# A parsed header takes some twenty times its bytes. Real ones are a ten-thousandth of their file; a long
# header before little data only costs memory.
_SMALL_HEADER, _LEAST_RATIO = 8_000_000, 10
_INDEX_LIMIT = 32_000_000  # that of a model with 671 billion weights has 9
_DIMENSIONS, _ELEMENTS = 8, 2**60
_CHUNK = 1 << 20  # bytes; stays in the second-level cache between reading and converting
# torch hands a conversion of more elements to its own threads, which would fight with ours.
_SERIAL_ELEMENTS = 32_768
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors")
_COPY_AGAIN = "copy the whole model folder again"


# ---- reading
def open_safetensors(folder: Path) -> SafetensorsFolder:
    """The weights of a model folder: model.safetensors, or the shards that its index names.

    Every header is read and checked here. Errors: ModelFileMissingError, ModelFileDamagedError.
    """
    with contextlib.ExitStack() as opened:
        if (folder / SINGLE).is_file():
            file = opened.enter_context(SafetensorsFile(folder / SINGLE))
            homes = dict.fromkeys(file.entries, file)
        elif (folder / INDEX).is_file():
            homes = _open_shards(folder, opened)
        else:
            raise ModelFileMissingError(f"{folder / SINGLE} is missing", fix=_COPY_AGAIN)
        return SafetensorsFolder(homes, opened.pop_all())


class SafetensorsFile:
    """One open file: `entries`, and their bytes when asked for. May be used from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise _damaged(path, error.strerror or "it can't be opened") from error
        try:
            self._places, self.metadata = _read_header(path, self._handle)
        except BaseException:
            os.close(self._handle)
            raise
        self.entries = {name: info for name, (info, _) in self._places.items()}

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._handle)

    def place(self, name: str) -> int:
        """Where a tensor's bytes begin in the file."""
        return self._places[name][1]

    def copy_to(self, name: str, target: Tensor) -> None:
        """Fill `target`, of the same shape; contiguous. It may be of another type or on another device."""
        info, place = self._places[name]
        flat = target.view(-1)
        if target.dtype == info.dtype and target.device.type == "cpu":
            raw = flat.view(torch.uint8).numpy()
            for start in range(0, len(raw), _CHUNK):
                self._fill(name, raw[start : start + _CHUNK], place + start)
            return
        step = _SERIAL_ELEMENTS if target.device.type == "cpu" else _CHUNK
        piece = torch.empty(min(step, len(flat)), dtype=info.dtype)
        raw = piece.view(torch.uint8).numpy()
        for start in range(0, len(flat), step):
            count = min(step, len(flat) - start)
            size = count * info.dtype.itemsize
            self._fill(name, raw[:size], place + start * info.dtype.itemsize)
            flat[start : start + count].copy_(piece[:count])

    def _fill(self, name: str, raw: Any, place: int) -> None:
        done = 0
        while done < len(raw):
            try:
                got = os.preadv(self._handle, [raw[done:]], place + done)
            except OSError as error:
                raise _damaged(self.path, f"{_shown(name)}: {error.strerror}") from error
            if got == 0:  # it was whole when its header was read
                raise _damaged(self.path, f"it ends within {_shown(name)}")
            done += got


class SafetensorsFolder:
    """The tensors of a folder, wherever they lie: a TensorSource."""

    def __init__(self, homes: Mapping[str, SafetensorsFile], opened: contextlib.ExitStack) -> None:
        self._homes, self._opened = homes, opened
        self.entries: Mapping[str, TensorInfo] = {n: file.entries[n] for n, file in homes.items()}

    def read(self, name: str) -> Tensor:
        """The tensor, in its own type."""
        info = self.entries[name]
        tensor = torch.empty(info.shape, dtype=info.dtype)
        self.copy_to(name, tensor)
        return tensor

    def copy_to(self, name: str, target: Tensor) -> None:
        """Fill `target` (contiguous, of the tensor's shape, any float type)."""
        assert target.shape == self.entries[name].shape and target.is_contiguous()
        self._homes[name].copy_to(name, target)

    def close(self) -> None:
        """Close the files."""
        self._opened.close()


def _open_shards(folder: Path, opened: contextlib.ExitStack) -> dict[str, SafetensorsFile]:
    """Each tensor's file, by the index."""
    path = folder / INDEX
    try:
        index = read_json(path, limit=_INDEX_LIMIT)
    except BadFileError as error:
        raise _damaged(path, error.why) from error
    except OSError as error:
        raise _damaged(path, str(error)) from error
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
        raise _damaged(path, "it has no weight_map from tensors to files")
    files: dict[str, SafetensorsFile] = {}
    first_home: dict[str, str] = {}
    for file_name in sorted(set(names.values())):
        shard = shard_path(folder, file_name)
        if not shard.is_file():
            raise ModelFileMissingError(f"{folder / file_name} is missing", fix=_COPY_AGAIN)
        files[file_name] = opened.enter_context(SafetensorsFile(shard))
        for name in files[file_name].entries:
            if (other := first_home.setdefault(name, file_name)) != file_name:
                raise _damaged(path, f"{_shown(name)} is in {other} and in {file_name}")
    for name, file_name in names.items():
        if name not in files[file_name].entries:
            raise _damaged(path, f"{_shown(name)} is not in {file_name}")
    return {name: files[file_name] for name, file_name in names.items()}


def shard_path(folder: Path, name: str) -> Path:
    """Where the index's file `name` lies. Refused unless it is a plain file name inside `folder`."""
    if not _PLAIN_NAME.fullmatch(name):
        raise _damaged(folder / INDEX, f"it names the file {_shown(name)}")
    try:
        return own_file(folder, name)
    except BadFileError as error:
        raise _damaged(folder / INDEX, f"{_shown(name)} is a link that leaves the folder") from error


def _read_header(path: Path, handle: int) -> tuple[dict[str, tuple[TensorInfo, int]], dict[str, str]]:
    """Name -> shape and type, and where its bytes begin in the file; the metadata. ModelFileDamagedError."""
    size = os.fstat(handle).st_size
    if size < 8:
        raise _damaged(path, f"it has {size} bytes")
    (length,) = struct.unpack("<Q", os.pread(handle, 8, 0))
    room = size - 8 - length
    if length > _HEADER_LIMIT or room < 0:
        raise _damaged(path, f"its header would have {length:,} bytes, the file has {size:,}")
    if length > _SMALL_HEADER and length * _LEAST_RATIO > room:
        raise _damaged(path, f"a header of {length:,} bytes for {room:,} bytes of weights")
    raw = os.pread(handle, length, 8)
    if not raw.startswith(b"{"):
        raise _damaged(path, "its header is not a JSON object")
    try:
        # The parser gives up on endless nesting with RecursionError and on endless digits with ValueError.
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is not valid: {error}"[:300]) from error
    del raw
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path, "its metadata is not text")
    placed = sorted(
        (_entry(path, name, value) for name, value in header.items()), key=lambda entry: entry[:2]
    )
    end = 0
    for begin, past, name, _ in placed:
        if begin != end:
            fault = "overlaps the tensor before" if begin < end else "follows a gap"
            raise _damaged(path, f"{_shown(name)} {fault}")
        end = past
    if end != room:
        raise _damaged(path, f"its tensors have {end:,} bytes, the file holds {room:,}")
    return {name: (info, 8 + length + begin) for begin, _, name, info in placed}, metadata


def _entry(path: Path, name: str, value: Any) -> tuple[int, int, str, TensorInfo]:
    """Begin and end among the data, name, shape and type of one line of the header."""

    def wrong(what: str) -> ModelFileDamagedError:
        return _damaged(path, f"{_shown(name)} {what}")

    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise wrong("isn't described by dtype, shape and data_offsets")
    kind, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    dtype = _TYPES.get(kind) if isinstance(kind, str) else None
    if dtype is None:
        raise wrong(f"is of the unknown type {_shown(kind)}")
    if not isinstance(shape, list) or len(shape) > _DIMENSIONS or not all(_natural(n) for n in shape):
        raise wrong(f"has the shape {_shown(shape)}")
    # Without the zeros: what torch computes of a shape must not overflow even if nothing is stored.
    if math.prod(n for n in shape if n) > _ELEMENTS:
        raise wrong(f"has the shape {_shown(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_natural(n) for n in offsets):
        raise wrong(f"has the offsets {_shown(offsets)}")
    begin, end = offsets
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise wrong(f"is {shape} of {kind}, which are not {end - begin:,} bytes")
    return begin, end, name, TensorInfo(tuple(shape), dtype)


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands there twice")
    return found


def _no_constant(word: str) -> Any:
    raise ValueError(f"{word} is not a number")


def _shown(value: Any) -> str:
    """A value of a file in a message: short, and nothing that a terminal would obey."""
    text = ascii(value) if isinstance(value, str) else ascii(str(value)[:200])[1:-1]
    return text[:200]


def _damaged(path: Path, why: str) -> ModelFileDamagedError:
    return ModelFileDamagedError(f"{path} is damaged", why=why, fix=_COPY_AGAIN)


# ---- writing
def save_safetensors(
    folder: Path,
    tensors: Mapping[str, Tensor],
    types: Mapping[str, torch.dtype],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write `tensors`, each converted to its type of `types`, into `folder`, piece by piece.

    Above `shard_bytes` there are several files, filled in the order of `tensors`, and an index in Hugging
    Face's form; a tensor is never divided. All files are complete before the first takes its name. The old
    index goes before its shards are replaced, so that a folder where this stops half-way is incomplete and
    never a mixture.
    """
    sizes = {name: tensor.numel() * types[name].itemsize for name, tensor in tensors.items()}
    shards: list[list[str]] = [[]]
    room = shard_bytes
    for name, size in sizes.items():
        if size > room and shards[-1]:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= size
    count = len(shards)
    files = (
        [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)] if count > 1 else [SINGLE]
    )
    old = [path for path in folder.glob("model*.safetensors") if path.name not in files]
    with contextlib.ExitStack() as stack:
        for file_name, names in zip(files, shards, strict=True):
            file = stack.enter_context(new_file(folder / file_name))
            _write(file, {name: tensors[name] for name in names}, types)
        (folder / INDEX).unlink(missing_ok=True)
    if count > 1:
        homes = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": homes}
        write_text(folder / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")
    for path in old:
        path.unlink()


def _write(file: BinaryIO, tensors: Mapping[str, Tensor], types: Mapping[str, torch.dtype]) -> None:
    # Wide types first, so that every tensor begins at a multiple of its element's size.
    names = sorted(tensors, key=lambda name: (-types[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].numel() * types[name].itemsize
        shape = list(tensors[name].shape)
        header[name] = {"dtype": _NAMES[types[name]], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for name in names:
        for piece in _pieces(tensors[name].detach(), types[name]):
            file.write(piece.contiguous().view(-1).view(torch.uint8).numpy())


def _pieces(tensor: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """`tensor` in parts of its rows, each on the CPU and of the wanted type."""
    if tensor.dim() == 0:
        tensor = tensor[None]
    if len(tensor) == 0:
        return
    rows = max(1, 16 * _CHUNK // max(1, tensor[0].numel() * dtype.itemsize))
    for part in tensor.split(rows):
        yield part.to(device="cpu", dtype=dtype)
