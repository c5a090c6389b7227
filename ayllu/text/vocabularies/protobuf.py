"""Protocol buffers' wire format, as much of it as a SentencePiece model needs.

A message is a row of fields; each begins with a varint that holds the field's number and its wire type:
0 varint, 1 eight bytes, 2 a length and so many bytes, 5 four bytes (Protocol Buffers, "Encoding").
Nothing is copied or recursed into before its length has been checked, so work and memory are bounded
by the file's size.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(number, value) of each field: an int for a varint, else the raw bytes. ValueError when malformed."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise ValueError("a field has the number 0")
        if kind == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field has the wire type {kind}")
        if size > end - at:
            raise ValueError("a field is longer than its message")
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(message) or shift > 63:
            raise ValueError("a number is cut short")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def text(value: int | memoryview) -> str:
    """A string field. ValueError when it is none or not UTF-8."""
    if isinstance(value, int):
        raise ValueError("a number stands where text should be")
    return str(value, "utf-8")


def nested(value: int | memoryview) -> memoryview:
    """A message or bytes field."""
    if isinstance(value, int):
        raise ValueError("a number stands where a message should be")
    return value


def number(value: int | memoryview) -> int:
    """A varint field."""
    if not isinstance(value, int):
        raise ValueError("bytes stand where a number should be")
    return value


def single(value: int | memoryview) -> float:
    """A 32-bit float field."""
    if isinstance(value, int) or len(value) != 4:
        raise ValueError("a float doesn't have four bytes")
    return float(struct.unpack("<f", value)[0])
