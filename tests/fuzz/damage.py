"""Ways to spoil a file: bits, cuts, splices, length fields, and JSON that is valid and lies."""

from __future__ import annotations

import json
import random
import struct
from typing import Any

NUMBERS = [
    0,
    1,
    2,
    7,
    255,
    2**15,
    2**16,
    2**24 + 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**62,
    2**63,
    2**64 - 1,
]
VALUES: list[Any] = [
    *(None, True, False, "", "x", "\0", "\ud800", "../x", [], {}, [[]], [None], {"a": 1}, -1, -(2**63), 0.5),
    *(1e308, float("inf"), float("nan"), 10**100, *NUMBERS),
]


def damaged(chance: random.Random, data: bytes, other: bytes) -> bytes:
    """A spoilt copy of `data`; pieces of `other` may appear in it."""
    ways = [_bits, _bytes, _cut, _piece_out, _piece_doubled, _piece_moved, _splice, _number, _number]
    if _json_part(data) is not None:
        ways += [_lie] * 8
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        data = chance.choice(ways)(chance, data, other) or b"\0"
    return data


def _place(chance: random.Random, data: bytes) -> int:
    """Somewhere; half of the time near the front, where headers are."""
    reach = len(data) if chance.random() < 0.5 else min(len(data), chance.choice([16, 64, 512, 4096]))
    return chance.randrange(max(1, reach))


def _bits(chance: random.Random, data: bytes, other: bytes) -> bytes:
    spoilt = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        spoilt[_place(chance, data)] ^= 1 << chance.randrange(8)
    return bytes(spoilt)


def _bytes(chance: random.Random, data: bytes, other: bytes) -> bytes:
    spoilt = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        spoilt[_place(chance, data)] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
    return bytes(spoilt)


def _cut(chance: random.Random, data: bytes, other: bytes) -> bytes:
    return data[: _place(chance, data)]


def _piece_out(chance: random.Random, data: bytes, other: bytes) -> bytes:
    at, size = _place(chance, data), chance.choice([1, 2, 4, 8, 64, 1000])
    return data[:at] + data[at + size :]


def _piece_doubled(chance: random.Random, data: bytes, other: bytes) -> bytes:
    at, size = _place(chance, data), chance.choice([1, 2, 4, 8, 64, 1000])
    return data[:at] + data[at : at + size] * chance.choice([2, 3, 50]) + data[at + size :]


def _piece_moved(chance: random.Random, data: bytes, other: bytes) -> bytes:
    spoilt, size = bytearray(data), chance.choice([4, 8, 32, 256])
    a, b = _place(chance, data), _place(chance, data)
    spoilt[b : b + size] = data[a : a + size]
    return bytes(spoilt)


def _splice(chance: random.Random, data: bytes, other: bytes) -> bytes:
    at, start, size = _place(chance, data), _place(chance, other), chance.choice([8, 64, 1000])
    return data[:at] + other[start : start + size] + data[at + chance.choice([0, size]) :]


def _number(chance: random.Random, data: bytes, other: bytes) -> bytes:
    """A length, count or offset that lies, in either width, anywhere."""
    size, code = chance.choice([(1, "<B"), (2, "<H"), (4, "<I"), (8, "<Q")])
    at = _place(chance, data)
    near = chance.choice([*NUMBERS, len(data), len(data) + 1, len(data) - 1, chance.randrange(2**16)])
    spoilt = bytearray(data)
    spoilt[at : at + size] = struct.pack(code, near % 256**size)
    return bytes(spoilt)


def _json_part(data: bytes) -> tuple[bytes, Any, bytes] | None:
    """What stands before, in and behind the file's JSON (of safetensors: without the length)."""
    if data[:1] == b"{":
        start, end = 0, len(data)
    elif data[8:9] == b"{":
        start, end = 8, 8 + struct.unpack("<Q", data[:8])[0]
    else:
        return None
    try:
        return data[:start], json.loads(data[start:end]), data[end:]
    except (ValueError, RecursionError):
        return None


def _lie(chance: random.Random, data: bytes, other: bytes) -> bytes:
    """JSON with values replaced, keys lost, doubled or exchanged."""
    parts = _json_part(data)
    if parts is None:
        return data
    before, value, behind = parts
    for _ in range(chance.randint(1, 3)):
        _change(chance, value)
    text = json.dumps(value).encode()
    if chance.random() < 0.03:
        text = text.replace(b"[", b"[" * 2000, 1)
    if chance.random() < 0.03:
        text = text.replace(b"{", b'{"x":' + b"9" * 5000 + b",", 1)
    return (struct.pack("<Q", len(text)) if before else b"") + text + behind


def _change(chance: random.Random, value: Any) -> None:
    """Walk to a random place and spoil what is there."""
    while True:
        if not isinstance(value, dict | list) or not value:
            return
        key = chance.choice(list(value)) if isinstance(value, dict) else chance.randrange(len(value))
        inner = value[key]
        if isinstance(inner, dict | list) and inner and chance.random() < 0.75:
            value = inner
            continue
        way = chance.randrange(6)
        if way == 0:
            del value[key]
        elif way == 1 and isinstance(value, dict):
            value[str(chance.choice(["x", "auto_map", "__metadata__", "a" * 500]))] = inner
        elif way == 2 and isinstance(inner, int) and not isinstance(inner, bool):
            value[key] = inner + chance.choice([-1, 1, inner, 2**32])
        elif way == 3 and isinstance(value, list):
            value.extend([inner] * chance.choice([1, 3, 200]))
        else:
            value[key] = chance.choice(VALUES)
        return
