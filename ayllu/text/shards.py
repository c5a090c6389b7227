"""Token shards: all tokens of a split in one memory-mapped file, cut into training rows without waste.

Every document is `<|bos|>` and its tokens. Rows are consecutive windows, so that each token (but for the
last ones, fewer than a row) is a target exactly once an epoch: nothing is cropped, nothing is padded (greedy
packing that drops tails loses a third, nanochat's log of 2026-01-13). A document may go on in the next row;
attention never crosses a document's border.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ayllu.errors import BadFileError, TooLittleTextError
from ayllu.files import read_json, sha256_file, write_bytes, write_json
from ayllu.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Shard:
    """Tokens of one split as a flat uint16 or uint32 array (memory-mapped)."""

    tokens: np.ndarray
    bos: int

    def rows(self, length: int) -> int:
        """Rows of `length` targets in one epoch."""
        return (len(self.tokens) - 1) // length

    def batch(self, rows: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(tokens, targets, document) of the numbered rows, int64 (B, T); documents count up in a row."""
        windows = np.stack([self.tokens[r * length : (r + 1) * length + 1] for r in rows]).astype(np.int64)
        tokens, targets = windows[:, :-1], windows[:, 1:]
        return tokens, targets, (tokens == self.bos).cumsum(1)


def write_shard(path: Path, texts: Iterable[str], tokenizer: Tokenizer) -> dict[str, int | str]:
    """Tokenise documents into `path` (.bin) and describe them in `path`.json."""
    kind = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    bos = tokenizer.control["<|bos|>"]
    parts, count, size = [], 0, 0
    for ids, text in zip(tokenizer.encode_batch(listed := list(texts)), listed, strict=True):
        parts.append(np.array([bos, *ids], kind))
        count, size = count + 1, size + len(text.encode())
    tokens = np.concatenate(parts) if parts else np.zeros(0, kind)
    write_bytes(path, tokens.tobytes())
    about: dict[str, int | str] = {
        "documents": count,
        "bytes": size,
        "tokens": len(tokens),
        "dtype": tokens.dtype.name,
        "bos": bos,
        "sha256": sha256_file(path),
    }
    write_json(path.with_suffix(".json"), about)
    return about


def open_shard(path: Path, *, rows: int = 1, length: int = 1) -> Shard:
    """Map a shard. TooLittleTextError when it has fewer than `rows` rows of `length`."""
    about = read_json(path.with_suffix(".json"))
    if about["dtype"] not in ("uint16", "uint32") or path.stat().st_size % np.dtype(about["dtype"]).itemsize:
        raise BadFileError(
            f"{path} doesn't fit its description", fix="delete the stage's folder and run again"
        )
    tokens = np.memmap(path, about["dtype"], "r") if path.stat().st_size else np.zeros(0, about["dtype"])
    if len(tokens) != about["tokens"]:
        raise BadFileError(f"{path} has {len(tokens)} tokens instead of {about['tokens']}")
    shard = Shard(tokens, about["bos"])
    if shard.rows(length) < rows:
        raise TooLittleTextError(
            f"{len(tokens)} tokens are too few for one batch of {rows} rows of {length}",
            fix="bring more text, or lower rows and length in the recipe",
        )
    return shard
