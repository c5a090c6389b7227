"""The header of GGUF: the `gguf` package reads what we write and the reverse; every fault is typed."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from ayllu.errors import ModelFileDamagedError, ModelFileMissingError
from ayllu.gguf import KINDS, Strings, header_bytes, read_header


def judge_file(path: Path, metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> Path:
    """A file written by the gguf package."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, (value, kind, inner) in metadata.items():
        writer.add_key_value(key, value, kind, sub_type=inner)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_values_of_every_type_from_the_judges_file(tmp_path: Path) -> None:
    kind = gguf.GGUFValueType
    scalars: dict[str, tuple[Any, Any, Any]] = {
        "u8": (255, kind.UINT8, None), "i8": (-128, kind.INT8, None), "u16": (65535, kind.UINT16, None),
        "i16": (-32768, kind.INT16, None), "u32": (2**32 - 1, kind.UINT32, None),
        "i32": (-(2**31), kind.INT32, None), "u64": (2**64 - 1, kind.UINT64, None),
        "i64": (-(2**63), kind.INT64, None), "f32": (0.5, kind.FLOAT32, None),
        "f64": (0.1, kind.FLOAT64, None),
        "yes": (True, kind.BOOL, None), "no": (False, kind.BOOL, None), "text": ("ఆ ß 🦙", kind.STRING, None),
    }  # fmt: skip
    arrays: dict[str, tuple[Any, Any, Any]] = {
        "words": (["a", "", "ఆవు", "🦙"], kind.ARRAY, kind.STRING),
        "numbers": ([1, -2, 3], kind.ARRAY, kind.INT32),
        "halves": ([0.5, 1.5], kind.ARRAY, kind.FLOAT32),
        "flags": ([True, False], kind.ARRAY, kind.BOOL),
    }
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    header = read_header(judge_file(tmp_path / "a.gguf", scalars | arrays, {"t": array}))
    for key, (value, _, _) in scalars.items():
        assert header.metadata[key] == value and type(header.metadata[key]) is type(value)
    for key, (value, _, _) in arrays.items():
        assert list(header.metadata[key]) == value
    assert header.metadata["words"][1:3] == ["", "ఆవు"] and header.metadata["words"][-1] == "🦙"
    stored = header.tensors["t"]
    data = (tmp_path / "a.gguf").read_bytes()[stored.offset : stored.offset + stored.size]
    assert stored.shape == (3, 4) and data == array.tobytes()


def test_the_judge_reads_our_header(tmp_path: Path) -> None:
    values = {
        "general.architecture": "llama", "yes": True, "small": 7, "large": 2**40, "minus": -3,
        "very": -(2**40),
        "half": 0.5, "text": "ఆ", "words": ["a", "", "ఆవు"], "types": np.array([1, 3], np.int32),
        "scores": np.array([0.5, -1.0], np.float32),
    }  # fmt: skip
    tensors = {"a": (KINDS["F32"], (3,)), "b": (KINDS["Q8_0"], (2, 5, 64))}
    path = tmp_path / "a.gguf"
    path.write_bytes(header_bytes(values, tensors) + bytes(32) + bytes(2 * 5 * 68 + 24))
    reader = gguf.GGUFReader(path)
    for key, value in values.items():
        read = reader.get_field(key).contents()
        assert read == (value.tolist() if isinstance(value, np.ndarray) else value), key
    assert [t.name for t in reader.tensors] == ["a", "b"]
    assert reader.tensors[1].shape.tolist() == [64, 5, 2]
    assert reader.tensors[1].tensor_type == gguf.GGMLQuantizationType.Q8_0
    ours = read_header(path)
    assert ours.tensors["b"].offset == reader.tensors[1].data_offset
    assert {k: v for k, v in ours.metadata.items() if not isinstance(v, np.ndarray | Strings)} == {
        k: v for k, v in values.items() if not isinstance(v, np.ndarray | list)
    }


def small_file() -> bytes:
    head = header_bytes(
        {
            "general.architecture": "llama",
            "flag": True,
            "words": ["a", "bb"],
            "list": np.arange(3, dtype=np.int32),
        },
        {"a": (KINDS["F32"], (8,)), "b": (KINDS["F32"], (2, 4))},
    )
    return head + bytes(64)


def record(name: bytes, sizes: list[int], code: int, offset: int) -> bytes:
    return struct.pack(f"<Q{len(name)}sI{len(sizes)}QIQ", len(name), name, len(sizes), *sizes, code, offset)


def one_tensor(*records: bytes, pairs: bytes = b"", count: int = 0, data: int = 4096) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(records), count) + pairs + b"".join(records)
    return head + bytes(-len(head) % 32) + bytes(data)


def pair(key: bytes, code: int, value: bytes) -> bytes:
    return struct.pack(f"<Q{len(key)}sI", len(key), key, code) + value


DAMAGED = {
    "empty": (b"", "early"),
    "another format": (b"PK\3\4" + bytes(100), "begin with GGUF"),
    "version 1": (b"GGUF" + struct.pack("<III", 1, 0, 0), "version is 1"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big endian"),
    "endless pairs": (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63) + bytes(100), "claims"),
    "endless tensors": (b"GGUF" + struct.pack("<IQQ", 3, 2**64 - 1, 0) + bytes(100), "claims"),
    "endless key": (one_tensor(pairs=struct.pack("<Q", 2**60) + bytes(50), count=1), "string of"),
    "endless string": (one_tensor(pairs=pair(b"k", 8, struct.pack("<Q", 2**64 - 1)), count=1), "string of"),
    "endless array": (one_tensor(pairs=pair(b"k", 9, struct.pack("<IQ", 10, 2**61)), count=1), "claims"),
    "endless words": (one_tensor(pairs=pair(b"k", 9, struct.pack("<IQ", 8, 2**62)), count=1), "claims"),
    "endless nesting": (
        one_tensor(pairs=pair(b"k", 9, struct.pack("<IQ", 9, 1) * 100), count=1), "nested too deeply",
    ),
    "a forest of arrays": (
        one_tensor(pairs=pair(b"k", 9, struct.pack("<IQ", 9, 10**6)), count=1), "nested too deeply",
    ),
    "type of a value": (one_tensor(pairs=pair(b"k", 13, bytes(8)), count=1), "type 13"),
    "type of an array": (one_tensor(pairs=pair(b"k", 9, struct.pack("<IQ", 99, 1)), count=1), "type 99"),
    "boolean of two": (one_tensor(pairs=pair(b"k", 7, b"\2"), count=1), "boolean"),
    "booleans of two": (one_tensor(pairs=pair(b"k", 9, struct.pack("<IQ", 7, 2) + b"\1\2"), count=1), "bool"),
    "no UTF-8": (one_tensor(pairs=pair(b"k", 8, struct.pack("<Q", 1) + b"\xff"), count=1), "UTF-8"),
    "no UTF-8 in words": (
        one_tensor(pairs=pair(b"k", 9, struct.pack("<IQQ", 8, 1, 1) + b"\xff"), count=1), "UTF-8",
    ),
    "a key twice": (one_tensor(pairs=pair(b"k", 7, b"\1") * 2, count=2), "twice"),
    "alignment of three": (
        one_tensor(pairs=pair(b"general.alignment", 4, struct.pack("<I", 24)), count=1), "power of two",
    ),
    "alignment of text": (
        one_tensor(pairs=pair(b"general.alignment", 8, struct.pack("<Q", 0)), count=1), "power of two",
    ),
    "a tensor twice": (one_tensor(record(b"a", [8], 0, 0), record(b"a", [8], 0, 32)), "twice"),
    "no dimension": (one_tensor(record(b"a", [], 0, 0)), "0 dimensions"),
    "five dimensions": (one_tensor(record(b"a", [1] * 5, 0, 0)), "5 dimensions"),
    "a size of zero": (one_tensor(record(b"a", [8, 0], 0, 0)), "sizes"),
    "sizes that overflow": (one_tensor(record(b"a", [2**33, 2**33, 2**33], 0, 0)), "sizes"),
    "half a block": (one_tensor(record(b"a", [48], 8, 0)), "sizes"),
    "unknown kind": (one_tensor(record(b"a", [32], 200, 0)), "kind number 200"),
    "removed kind": (one_tensor(record(b"a", [32], 4, 0)), "kind number 4"),
    "beyond the end": (one_tensor(record(b"a", [1040], 0, 0)), "behind the end"),
    "offset beyond the end": (one_tensor(record(b"a", [8], 0, 2**63)), "behind the end"),
    "not aligned": (one_tensor(record(b"a", [8], 0, 4)), "aligned"),
    "overlap": (one_tensor(record(b"a", [64], 0, 0), record(b"b", [64], 0, 128)), "overlaps"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_headers(tmp_path: Path, name: str) -> None:
    data, said = DAMAGED[name]
    path = tmp_path / "a.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelFileDamagedError) as caught:
        read_header(path)
    assert said in caught.value.why and caught.value.fix


def test_cut_anywhere(tmp_path: Path) -> None:
    path, data = tmp_path / "a.gguf", small_file()
    path.write_bytes(data)
    assert list(read_header(path).tensors) == ["a", "b"]
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(ModelFileDamagedError):
            read_header(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileMissingError):
        read_header(tmp_path / "none.gguf")


def test_a_header_takes_no_more_than_twice_its_file(tmp_path: Path) -> None:
    words = [f"w{index}" for index in range(50_000)]
    flags = np.ones(300_000, np.bool_)
    path = tmp_path / "a.gguf"
    path.write_bytes(header_bytes({"words": words, "flags": flags}, {}))
    read_header(path)
    tracemalloc.start()
    header = read_header(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(header.metadata["words"]) == 50_000 and peak <= 2 * path.stat().st_size
