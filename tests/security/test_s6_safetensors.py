"""S6: a safetensors file is exactly what its format says, or refused (the audit by Trail of Bits, 2023).

Each case is a whole file with one lie. The file without the lie loads, so that it is the lie that is
refused.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from ayllu.errors import ModelFileDamagedError
from ayllu.model.formats.safetensors import open_safetensors
from ayllu.model.weights import load_model

BODY = bytes(range(48))
A = '{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}'
B = '{"dtype":"BF16","shape":[12],"data_offsets":[24,48]}'


def lying(text: str | bytes, body: bytes = BODY, length: int | None = None) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + body


def whole(a: str = A, b: str = B, more: str = "") -> str:
    return '{"a":' + a + ',"b":' + b + more + "}"


def a_with(**values: Any) -> str:
    return whole(json.dumps(json.loads(A) | values))


CASES: dict[str, bytes] = {
    # the length of the header
    "no file": b"",
    "a cut length": b"\x10\0\0",
    "header longer than the file": lying(whole(), length=10**6),
    "header longer than the limit": lying(whole(), length=100_000_001),
    "header of 2**63": lying(whole(), length=2**63),
    "header of 2**64 - 1": lying(whole(), length=2**64 - 1),
    "no header": lying(""),
    "header one byte short": lying(whole(), length=len(whole()) - 1),
    "header one byte long": lying(whole(), length=len(whole()) + 1),
    # its text
    "not JSON": lying("{" + "x" * 20 + "}"),
    "an array": lying("[]"),
    "space before": lying(" " + whole()),
    "text behind": lying(whole() + "{}"),
    "a byte order mark": lying(b"\xef\xbb\xbf" + whole().encode()),
    "not UTF-8": lying(whole().encode().replace(b'"a"', b'"\xff"')),
    "a lone surrogate in UTF-8": lying(whole().encode().replace(b'"a"', b'"\xed\xa0\x80"')),
    "an overlong sign": lying(whole().encode().replace(b'"a"', b'"\xc0\xaf"')),
    "UTF-16": lying(whole().encode("utf-16")),
    "endless nesting": lying('{"a":' + "[" * 100_000),
    "endless digits": lying(a_with().replace("24]", "2" * 5000 + "]", 1)),
    # names
    "a name twice": lying('{"a":' + A + ',"a":' + A.replace("[0,24]", "[24,48]") + "}"),
    "the same name, escaped": lying('{"a":' + A + ',"\\u0061":' + A.replace("[0,24]", "[24,48]") + "}"),
    "a key twice": lying(whole(A[:-1] + ',"dtype":"F32"}')),
    "metadata twice": lying(whole(more=',"__metadata__":{},"__metadata__":{}')),
    # metadata
    "metadata is a list": lying(whole(more=',"__metadata__":["a"]')),
    "metadata is null": lying(whole(more=',"__metadata__":null')),
    "metadata holds a number": lying(whole(more=',"__metadata__":{"a":1}')),
    "metadata holds an object": lying(whole(more=',"__metadata__":{"a":{"b":"c"}}')),
    "metadata holds a text twice": lying(whole(more=',"__metadata__":{"a":"b","a":"c"}')),
    # offsets
    "negative offsets": lying(a_with(data_offsets=[-24, 0])),
    "offsets swapped": lying(a_with(data_offsets=[24, 0])),
    "one offset": lying(a_with(data_offsets=[0])),
    "three offsets": lying(a_with(data_offsets=[0, 24, 48])),
    "fractional offsets": lying(a_with(data_offsets=[0, 24.0])),
    "offsets as text": lying(a_with(data_offsets=["0", "24"])),
    "offsets true and false": lying(a_with(data_offsets=[False, 24])),
    "an offset NaN": lying(whole().replace("[0,24]", "[0,NaN]")),
    "an offset infinite": lying(whole().replace("[0,24]", "[0,Infinity]")),
    "an offset 1e400": lying(whole().replace("[0,24]", "[0,1e400]")),
    "offsets beyond 2**64": lying(a_with(data_offsets=[2**64, 2**64 + 24])),
    "offsets out of the file": lying(whole(), BODY[:-1]),
    "overlap": lying(whole(b=B.replace("[24,48]", "[20,44]")), BODY[:44]),
    "the same bytes twice": lying(whole(b=B.replace("[24,48]", "[0,24]")), BODY[:24]),
    "a gap between": lying(whole(b=B.replace("[24,48]", "[28,52]")), BODY + b"gap!"),
    "a gap in front": lying(
        whole(A.replace("[0,24]", "[4,28]"), B.replace("[24,48]", "[28,52]")), BODY + b"gap!"
    ),
    "a tail": lying(whole(), BODY + b"\0"),
    "a ZIP as tail": lying(whole(), BODY + b"PK\x05\x06" + b"\0" * 18),
    "data without tensors": lying("{}"),
    # shapes and types
    "size isn't the shape": lying(a_with(shape=[2, 2])),
    "size isn't the type": lying(a_with(dtype="F16")),
    "negative shape": lying(a_with(shape=[-2, -3])),
    "a product that overflows to the size": lying(a_with(shape=[2**32, 2**32, 6])),
    "a shape of 2**63": lying(a_with(shape=[2**63])),
    "a huge shape of nothing": lying(a_with(shape=[0, 2**62, 2**62], data_offsets=[0, 0]), BODY[24:]),
    "a million dimensions": lying(a_with(shape=[1] * 1_000_000)),
    "a shape of fractions": lying(a_with(shape=[2.0, 3])),
    "a shape of true": lying(a_with(shape=[True, 6])),
    "no shape": lying(whole('{"dtype":"F32","data_offsets":[0,24]}')),
    "one key more": lying(a_with(encoding="gzip")),
    "a type that doesn't exist": lying(a_with(dtype="F31")),
    "a type in small letters": lying(a_with(dtype="f32")),
    "a type that is no text": lying(a_with(dtype=["F32"])),
    "a type that is a program": lying(a_with(dtype="__import__('os')")),
    "a tensor that is no object": lying(whole(a="[]")),
    "a tensor that is null": lying(whole(a="null")),
}


def test_without_a_lie_it_is_read(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(lying(whole(more=',"__metadata__":{"who":"we"}') + "   "))
    source = open_safetensors(tmp_path)
    assert source.read("a").shape == (2, 3) and source.read("b").view(-1)[0].item() != 0
    source.close()


@pytest.mark.parametrize("case", CASES)
def test_a_lie_is_refused(tmp_path, case):
    (tmp_path / "model.safetensors").write_bytes(CASES[case])
    with pytest.raises(ModelFileDamagedError) as caught:
        open_safetensors(tmp_path)
    error = caught.value
    assert error.exit_code == 5 and error.why and error.fix and "model.safetensors" in error.what
    assert (len(str(error)) < 1000 and str(error).isprintable()) or "\n" in str(error)


@pytest.mark.parametrize("sign", ["\x1b[2J", "\r", "\u202e", "\ud800", "\0", "\u2028"])
def test_what_a_file_says_can_t_play_with_the_terminal(folder, sign):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header[f"model.{sign}.weight"] = header.pop("model.norm.weight")
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + length :])
    with pytest.raises(ModelFileDamagedError) as caught:
        load_model(folder)
    header["model.norm.weight"] = header.pop(f"model.{sign}.weight")
    header[sign] = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data[8 + length :])
    with pytest.raises(ModelFileDamagedError, match="doesn't have") as foreign:
        load_model(folder)
    for error in (caught.value, foreign.value):
        assert all(line.isprintable() for line in str(error).split("\n"))


def test_open_files_are_closed_when_a_later_one_is_refused(tmp_path):
    """A loop over damaged models doesn't run out of file descriptors."""
    (tmp_path / "model.safetensors").write_bytes(CASES["a tail"])
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        with pytest.raises(ModelFileDamagedError):
            open_safetensors(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
