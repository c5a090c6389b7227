"""From a container's pieces to the decoder's tensors, by the families' rule (families/names.py), in place.

Each piece is copied straight to its part of our tensor, several at a time: on a warm page cache a load is
bound by copying and by the kernel handing out pages, which one core does at little more than a gigabyte a
second.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any

import torch
from torch import Tensor

from ayllu.model.families.names import Entry, Piece
from ayllu.model.formats.source import TensorSource

_MOST_THREADS = 8  # more don't copy faster


def fill(state: Mapping[str, Tensor], entries: list[Entry], source: TensorSource) -> list[str]:
    """Copy every piece to its place in `state`; the names of those that hold NaN or infinity."""
    assert {entry.ours for entry in entries} == state.keys(), "entries() are not the decoder's tensors"
    work = [pair for entry in entries for pair in places(entry, state[entry.ours])]
    # The largest first, so that no thread begins one when the others are done.
    work.sort(key=lambda pair: -pair[1].numel())
    threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(threads) as pool:
        jobs = {pool.submit(_copy, source, piece, target): piece.name for piece, target in work}
        done, _ = wait(jobs, return_when=FIRST_EXCEPTION)
        pool.shutdown(wait=True, cancel_futures=True)
    for job in done:
        if job.exception() is not None:
            job.result()
    return sorted(name for job, name in jobs.items() if not job.result())


def places(entry: Entry, ours: Tensor) -> list[tuple[Piece, Tensor]]:
    """Each piece with the part of our tensor that it fills, in our orientation.

    Pieces that follow each other along rows follow each other in memory, so that flat offsets do.
    """
    flat, start, places = ours.view(-1), 0, []
    for piece in entry.pieces:
        shape = (*piece.shape[:-2], piece.shape[-1], piece.shape[-2]) if piece.transposed else piece.shape
        count = math.prod(piece.shape)
        places.append((piece, flat[start : start + count].view(shape)))
        start += count
    assert start == len(flat), f"the pieces of {entry.ours} don't fill it"
    return places


def _copy(source: TensorSource, piece: Piece, target: Tensor) -> bool:
    """Fill `target`; whether all of it is finite."""
    if piece.transposed:
        target.copy_(source.read(piece.name).transpose(-2, -1))
    elif target.device.type == "cpu":
        source.copy_to(piece.name, target)
    else:
        target.copy_(source.read(piece.name))
    return _finite(target)


# Of each type: the integer type of its size, and the bits of infinity. Above them there is only NaN.
_INFINITY: dict[torch.dtype, tuple[torch.dtype, int]] = {
    torch.bfloat16: (torch.int16, 0x7F80),
    torch.float16: (torch.int16, 0x7C00),
    torch.float32: (torch.int32, 0x7F800000),
}


def _finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite.

    On the CPU by two passes without memory of their own, at the speed of reading: as signed integers the
    largest is a positive number, as unsigned ones a negative number.
    """
    if tensor.device.type != "cpu":
        return bool(torch.isfinite(tensor).all())
    integers, infinity = _INFINITY[tensor.dtype]
    signed = tensor.detach().reshape(-1).view(integers).numpy()
    if not len(signed):
        return True
    bits = signed.itemsize * 8
    unsigned = signed.view(f"u{signed.itemsize}")
    return all(
        bool(part.max() < infinity and other.max() < infinity + (1 << bits - 1))
        for part, other in zip(_split(signed), _split(unsigned), strict=True)
    )


def _split(values: Any) -> list[Any]:
    """In parts that stay in the cache between two passes."""
    step = 1 << 18
    return [values[start : start + step] for start in range(0, len(values), step)]
