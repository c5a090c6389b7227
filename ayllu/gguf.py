"""The header of a GGUF file: what llama.cpp's one-file format says before the weights begin.

A file is magic, version, two counts, typed key-value pairs (hyperparameters and the vocabulary), one record
a tensor (name, dimensions, kind, offset), padding, and the tensors' bytes. Specification: docs/gguf.md of
ggml. The bytes of a kind come in blocks; how many numbers and bytes a block has is all that is needed here.

Files come from strangers, and the readers of others had overflows (CVE-2025-49847, CVE-2026-7482): every
count, length and offset is held against the bytes that are left before anything is read or allocated.
Arrays stay packed, so that a header never takes much more memory than its file.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np

from ayllu.errors import ModelFileDamagedError, ModelFileMissingError

MAGIC = b"GGUF"
ALIGNMENT = 32  # of tensors, unless general.alignment says otherwise

_MOST_PAIRS = 4096
_MOST_TENSORS = 2**16
_LONGEST_KEY = 65_535
_LONGEST_NAME = 256
_LONGEST_STRING = 2**26  # a chat template or a whole tokenizer.json (Llama 3's has 17 million bytes)
_MOST_NESTED = 256  # arrays inside arrays, in all
_DEEPEST = 4
_MOST_DIMENSIONS = 4


@dataclass(frozen=True)
class Kind:
    """How a tensor's numbers are stored: `numbers` of them in `size` bytes."""

    code: int
    name: str
    numbers: int
    size: int


KINDS = {
    name: Kind(code, name, numbers, size)
    for code, name, numbers, size in (
        (0, "F32", 1, 4), (1, "F16", 1, 2), (2, "Q4_0", 32, 18), (3, "Q4_1", 32, 20), (6, "Q5_0", 32, 22),
        (7, "Q5_1", 32, 24), (8, "Q8_0", 32, 34), (10, "Q2_K", 256, 84),
        (11, "Q3_K", 256, 110), (12, "Q4_K", 256, 144), (13, "Q5_K", 256, 176), (14, "Q6_K", 256, 210),
        (16, "IQ2_XXS", 256, 66), (17, "IQ2_XS", 256, 74), (18, "IQ3_XXS", 256, 98),
        (19, "IQ1_S", 256, 50), (20, "IQ4_NL", 32, 18), (21, "IQ3_S", 256, 110), (22, "IQ2_S", 256, 82),
        (23, "IQ4_XS", 256, 136), (24, "I8", 1, 1), (25, "I16", 1, 2), (26, "I32", 1, 4), (27, "I64", 1, 8),
        (28, "F64", 1, 8), (29, "IQ1_M", 256, 56), (30, "BF16", 1, 2), (34, "TQ1_0", 256, 54),
        (35, "TQ2_0", 256, 66), (39, "MXFP4", 32, 17), (40, "NVFP4", 64, 36),
        (41, "Q1_0", 128, 18),
    )
}  # fmt: skip
_BY_CODE = {kind.code: kind for kind in KINDS.values()}

# Types of metadata values. Numbers are little endian.
_NUMBERS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "|b1",
            10: "<u8", 11: "<i8", 12: "<f8"}  # fmt: skip
_CODES = {np.dtype(text).str: code for code, text in _NUMBERS.items()}
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY, _UINT64, _INT64 = 4, 5, 6, 7, 8, 9, 10, 11


# How a model is to be sampled: generation_config.json's names, llama.cpp's keys.
_SAMPLING = {name: f"general.sampling.{key}" for name, key in (
    ("temperature", "temp"), ("top_k", "top_k"), ("top_p", "top_p"), ("min_p", "min_p"),
)}  # fmt: skip


def sampling_to_gguf(generation: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a generation_config.json that say how to sample, as metadata."""
    wanted = dict(generation)
    if wanted.get("do_sample") is False:
        wanted = {"temperature": 0.0}
    found = {_SAMPLING[name]: value for name, value in wanted.items() if name in _SAMPLING}
    return {key: value for key, value in found.items() if type(value) in (int, float)}


def sampling_from_gguf(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The same back; temperature 0 is `do_sample` false, as Hugging Face writes it. ModelFileDamagedError."""
    found = {name: decimal(metadata[key]) for name, key in _SAMPLING.items() if key in metadata}
    for name, value in found.items():
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ModelFileDamagedError(f"the GGUF file's {_SAMPLING[name]} is no number")
    return {"do_sample": False} if found.get("temperature") == 0 else found


def decimal(value: Any) -> Any:
    """A float32 as the shortest decimal that gives it again: 1e-05 was meant, not 9.99999974e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) and abs(value) < 1e38 else value


class Strings(Sequence[str]):
    """Many strings in one piece of memory (a vocabulary has hundreds of thousands)."""

    def __init__(self, data: bytes | bytearray, ends: np.ndarray) -> None:
        self._data, self._ends = data, ends

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        start = int(self._ends[at - 1]) if at else 0
        return self._data[start : int(self._ends[at])].decode("utf-8")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor: its shape in row-major order (rows first), its kind, where its bytes are in the file."""

    kind: Kind
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True)
class GGUFHeader:
    """Metadata (numbers, booleans, strings; NumPy arrays, Strings, lists of arrays) and tensors by name."""

    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]
    data_offset: int


def read_header(path: Path | str) -> GGUFHeader:
    """The checked header of the GGUF file `path` (versions 2 and 3, little endian).

    Errors: ModelFileMissingError when there is no such file, ModelFileDamagedError for every fault.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileMissingError(f"{path} is missing", fix="name a GGUF file")
    try:
        with open(path, "rb") as file:
            return _Reader(path, file, path.stat().st_size).header()
    except OSError as error:
        raise ModelFileDamagedError(f"{path} can't be read", why=str(error)) from error


class _Reader:
    """Reads one header; `left` counts the bytes that the file still has."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size, self.left = path, file, size, size
        self.nested = 0

    def header(self) -> GGUFHeader:
        if self.take(4) != MAGIC:
            raise self.damaged("it doesn't begin with GGUF", fix="name a GGUF file")
        version = self.number("<u4")
        if version not in (2, 3):
            swapped = version in (2 << 24, 3 << 24)
            why = "it is big endian" if swapped else f"its version is {version}, known are 2 and 3"
            raise self.damaged(why, fix="convert the original model with a current llama.cpp")
        tensors, pairs = self.number("<u8"), self.number("<u8")
        # The shortest pair has 13 bytes (length, type, one byte), the shortest tensor record 32.
        if pairs > _MOST_PAIRS or tensors > _MOST_TENSORS or 13 * pairs + 32 * tensors > self.left:
            raise self.damaged(f"it claims {pairs} metadata values and {tensors} tensors")
        metadata: dict[str, Any] = {}
        for _ in range(pairs):
            key = self.string(_LONGEST_KEY)
            if not key or key in metadata:
                raise self.damaged(f"the metadata key {key[:80]!r} is empty or appears twice")
            metadata[key] = self.value(self.number("<u4"), 0)
        records: dict[str, tuple[Kind, tuple[int, ...], int]] = {}
        for _ in range(tensors):
            name, record = self.record()
            if name in records:
                raise self.damaged(f"the tensor {name[:80]!r} appears twice")
            records[name] = record
        return self.placed(metadata, records)

    # ---- bytes
    def take(self, count: int) -> bytes:
        if count > self.left:
            raise self.damaged(f"it ends {count - self.left} bytes too early")
        data = self.file.read(count)
        if len(data) != count:
            raise self.damaged("it became shorter while it was read")
        self.left -= count
        return data

    def number(self, dtype: str) -> Any:
        return np.frombuffer(self.take(np.dtype(dtype).itemsize), dtype)[0].item()

    def string(self, longest: int = _LONGEST_STRING) -> str:
        length = int.from_bytes(self.take(8), "little")
        if length > longest:
            raise self.damaged(f"a string of {length} bytes stands where at most {longest} are possible")
        return self.text(self.take(length))

    def text(self, data: bytes) -> str:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged("a string is not UTF-8") from error

    # ---- metadata
    def value(self, code: int, depth: int) -> Any:
        if code == _BOOL:
            flag = self.take(1)[0]
            if flag > 1:
                raise self.damaged(f"a boolean has the value {flag}")
            return bool(flag)
        if code in _NUMBERS:
            return self.number(_NUMBERS[code])
        if code == _STRING:
            return self.string()
        if code == _ARRAY:
            return self.array(depth)
        raise self.damaged(f"a metadata value has the type {code}")

    def array(self, depth: int) -> Any:
        code, count = self.number("<u4"), self.number("<u8")
        if code in _NUMBERS:
            dtype = np.dtype(_NUMBERS[code])
            if count > self.left // dtype.itemsize:
                raise self.damaged(f"an array claims {count} values")
            data = self.take(count * dtype.itemsize)
            if code == _BOOL and data.strip(b"\0\1"):
                raise self.damaged("an array of booleans has other values")
            return np.frombuffer(data, dtype)
        if code == _STRING:
            return self.strings(count)
        if code != _ARRAY:
            raise self.damaged(f"an array has values of the type {code}")
        self.nested += count
        if self.nested > _MOST_NESTED or depth >= _DEEPEST:
            raise self.damaged("its arrays are nested too deeply")
        return [self.array(depth + 1) for _ in range(count)]

    def strings(self, count: int) -> Strings:
        if count > self.left // 8:
            raise self.damaged(f"an array claims {count} strings")
        data, ends = bytearray(), np.empty(count, np.int64)
        for index in range(count):
            piece = self.take(int.from_bytes(self.take(8), "little"))
            if not piece.isascii():
                self.text(piece)
            data += piece
            ends[index] = len(data)
        return Strings(data, ends)

    # ---- tensors
    def record(self) -> tuple[str, tuple[Kind, tuple[int, ...], int]]:
        name = self.string(_LONGEST_NAME)
        dimensions = self.number("<u4")
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise self.damaged(f"{name[:80]!r} has {dimensions} dimensions")
        sizes = np.frombuffer(self.take(8 * dimensions), "<u8").tolist()
        code, offset = self.number("<u4"), self.number("<u8")
        kind = _BY_CODE.get(code)
        if kind is None:
            raise self.damaged(
                f"{name[:80]!r} is stored in the kind number {code}, which is not known",
                fix="convert the original model to Q8_0 or F16 with llama.cpp and name that file",
            )
        if min(sizes) < 1 or prod(sizes) // kind.numbers > self.size // kind.size or sizes[0] % kind.numbers:
            raise self.damaged(f"{name[:80]!r} has the sizes {sizes}, which {kind.name} can't have here")
        return name, (kind, tuple(reversed(sizes)), offset)

    def placed(
        self, metadata: dict[str, Any], records: dict[str, tuple[Kind, tuple[int, ...], int]]
    ) -> GGUFHeader:
        """Where the tensors are, once it is sure that they lie in the file, aligned and apart."""
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or not 8 <= alignment <= 65_536 or alignment & (alignment - 1):
            raise self.damaged(f"general.alignment is {str(alignment)[:80]}, not a power of two")
        start = -(-(self.size - self.left) // alignment) * alignment
        tensors, end = {}, 0
        for name, (kind, shape, offset) in sorted(records.items(), key=lambda item: item[1][2]):
            size = prod(shape) // kind.numbers * kind.size
            if offset % alignment or offset < end:
                raise self.damaged(f"{name[:80]!r} is not aligned or overlaps another tensor")
            end = offset + size
            if start + end > self.size:
                raise self.damaged(
                    f"{name[:80]!r} ends {start + end - self.size} bytes behind the end of the file",
                    fix="download the file again: it was cut short",
                )
            tensors[name] = StoredTensor(kind, shape, start + offset, size)
        return GGUFHeader(metadata, {name: tensors[name] for name in records}, start)

    def damaged(self, why: str, fix: str = "download the file again") -> ModelFileDamagedError:
        return ModelFileDamagedError(f"{self.path} is not a whole GGUF file", why=why, fix=fix)


# ---- writing
def header_bytes(metadata: Mapping[str, Any], tensors: Mapping[str, tuple[Kind, tuple[int, ...]]]) -> bytes:
    """A version 3 header with its padding; the tensors follow in the given order, each padded to ALIGNMENT.

    Values: bool, int (the narrowest of uint32, int32, uint64, int64 that holds it), float (float32), str,
    sequences of str, NumPy arrays. Shapes are row-major; a row's length must be whole blocks of its kind.
    """
    parts = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_text(key), *_encoded(value)]
    offset = 0
    for name, (kind, shape) in tensors.items():
        assert shape[-1] % kind.numbers == 0, (name, kind.name, shape)
        sizes = tuple(reversed(shape))
        parts.append(_text(name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes))
        parts.append(struct.pack("<IQ", kind.code, offset))
        size = prod(shape) // kind.numbers * kind.size
        offset += size + padding(size)
    header = b"".join(parts)
    return header + bytes(padding(len(header)))


def padding(size: int) -> int:
    """Bytes from `size` to the next multiple of ALIGNMENT."""
    return -size % ALIGNMENT


def _text(value: str) -> bytes:
    data = value.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _encoded(value: Any) -> Iterator[bytes]:
    """A value with its type in front."""
    if isinstance(value, bool):
        yield struct.pack("<I?", _BOOL, value)
    elif isinstance(value, int):
        narrow = -(2**31) <= value < 2**32
        code = (_UINT32 if narrow else _UINT64) if value >= 0 else (_INT32 if narrow else _INT64)
        yield struct.pack("<I", code) + np.array(value, _NUMBERS[code]).tobytes()
    elif isinstance(value, float):
        yield struct.pack("<If", _FLOAT32, value)
    elif isinstance(value, str):
        yield struct.pack("<I", _STRING) + _text(value)
    elif isinstance(value, np.ndarray):
        stored = value.astype(value.dtype.newbyteorder("<"), copy=False)
        yield struct.pack("<IIQ", _ARRAY, _CODES[stored.dtype.str], stored.size) + stored.tobytes()
    else:
        yield struct.pack("<IIQ", _ARRAY, _STRING, len(value))
        yield from (_text(piece) for piece in value)
