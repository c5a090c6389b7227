"""SentencePiece's precompiled character map: which characters are replaced before text is cut.

The map is a double-array trie (Aoe 1989, in the layout of Darts-clone) from UTF-8 strings to places in a
pool of zero-ended replacements; at each position the longest key wins. Unicode's NFKC and SentencePiece's
own rules for white space are written this way. The trie is turned into a table once, level by level.
Endings that keys share are stored once, so cells may be visited several times; a count bounds the work
on a damaged trie.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable

import numpy as np

_MAX_DEPTH = 64  # bytes; the longest keys in use have about 20
_MAX_NODES = 500_000
_BYTES = [bytes((byte,)) for byte in range(256)]


def read_charsmap(blob: bytes) -> dict[str, str]:
    """All keys with their replacements. ValueError when the blob is malformed."""
    if len(blob) < 4:
        raise ValueError("the character map is cut short")
    (size,) = struct.unpack_from("<I", blob)
    if size % 4 or not 1024 <= size <= len(blob) - 4:
        raise ValueError("the character map's trie doesn't fit into it")
    units = np.frombuffer(blob, "<u4", size // 4, 4)
    pool = blob[4 + size :]
    table: dict[str, str] = {}
    node = np.array([int(_offsets(units[:1])[0])])  # where each node's children are based
    keys = [b""]
    visited = 0
    for _ in range(_MAX_DEPTH):
        next_nodes, next_keys = [], []
        for begin in range(0, len(node), 256):
            part = node[begin : begin + 256]
            child = part[:, None] ^ np.arange(256)[None, :]
            inside = child < len(units)
            unit = units[np.where(inside, child, 0)]
            matches = inside & ((unit & 0x800000FF) == np.arange(256)[None, :])
            matches[:, 0] = False  # the byte 0 leads to a value, not to a node
            rows, bytes_ = np.nonzero(matches)
            visited += len(rows)
            if visited > _MAX_NODES:
                raise ValueError("the character map's trie has a loop")
            base = child[rows, bytes_] ^ _offsets(unit[rows, bytes_])
            leaf = (unit[rows, bytes_] >> 8) & 1
            if np.any((leaf == 1) & (base >= len(units))):
                raise ValueError("the character map's trie points outside itself")
            values = units[np.where(leaf == 1, base, 0)] & 0x7FFFFFFF
            found = zip(*(column.tolist() for column in (rows, bytes_, base, leaf, values)), strict=True)
            for row, byte, at, has_leaf, value in found:
                key = keys[begin + row] + _BYTES[byte]
                if has_leaf:
                    table[key.decode()] = _pooled(pool, value)
                next_nodes.append(at)
                next_keys.append(key)
        if not next_nodes:
            return table
        node, keys = np.array(next_nodes), next_keys
    raise ValueError("the character map's trie is too deep")


def _offsets(units: np.ndarray) -> np.ndarray:
    wide = units.astype(np.int64)
    return (wide >> 10) << ((wide & 512) >> 6)


def _pooled(pool: bytes, at: int) -> str:
    end = pool.find(b"\0", at)
    if at >= len(pool) or end < 0:
        raise ValueError("a replacement lies outside the character map")
    return pool[at:end].decode()


def _one_of(characters: set[str]) -> str:
    """A regular expression for one of these characters."""
    return "[" + "".join(f"\\U{ord(sign):08x}" for sign in sorted(characters)) + "]"


def replacer(table: dict[str, str], kept: list[str]) -> Callable[[str], str]:
    """Text with the longest key at each place replaced; what is in `kept` is taken over as it is."""
    longest: dict[str, int] = {}
    for key in table:
        longest[key[0]] = max(longest.get(key[0], 0), len(key))
    rules = [re.escape(name) for name in sorted(kept, key=len, reverse=True)]
    # Nearly every letter begins some key (A with a combining ring), so what follows is looked at too.
    alone = {key for key in table if len(key) == 1}
    if alone:
        rules.append(_one_of(alone))
    if begins := {key[0] for key in table if len(key) > 1} - alone:
        rules.append(f"{_one_of(begins)}(?={_one_of({key[1] for key in table if len(key) > 1})})")
    if not rules:
        return lambda text: text
    pattern, untouched = re.compile("|".join(rules)), frozenset(kept)

    def replace(text: str) -> str:
        parts, at = [], 0
        while found := pattern.search(text, at):
            begin, end = found.span()
            if found.group() in untouched and end > begin:
                parts.append(text[at:end])
                at = end
                continue
            parts.append(text[at:begin])
            for size in range(longest[text[begin]], 0, -1):
                if (new := table.get(text[begin : begin + size])) is not None:
                    parts.append(new)
                    at = begin + min(size, len(text) - begin)
                    break
            else:
                parts.append(text[begin])
                at = begin + 1
        parts.append(text[at:])
        return "".join(parts)

    return replace
