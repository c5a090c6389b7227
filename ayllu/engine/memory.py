"""How many blocks a cache gets when nobody says: what the machine has free, and no more than can be used."""

from __future__ import annotations

from pathlib import Path

import torch

from ayllu import machine
from ayllu.engine.batch import BLOCK
from ayllu.engine.blocks import blocks_for
from ayllu.errors import RequestError

_SHARE = 0.5  # of the free memory; the rest is for everybody else


def check_device(device: str) -> None:
    """Raises RequestError for a device that isn't here, before anything is loaded."""
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise RequestError(f"there is no device {device[:40]!r}", fix="choose cpu or cuda") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise RequestError(
            f"there is no device {device} here",
            why=f"torch {torch.__version__} finds {torch.cuda.device_count()} NVIDIA GPUs",
            fix="choose cpu",
        )


def free_bytes(device: str) -> int:
    """Memory that can be taken without pushing others out."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(torch.device(device))[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        free = machine.memory_bytes() // 2
    try:  # a container's limit
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        free = min(free, limit - used)
    except (OSError, ValueError):
        pass
    return max(0, free)


def cache_blocks(
    block_bytes: int, context: int, sequences: int, device: str, *, blocks: int | None, size: int | None
) -> tuple[int, str]:
    """(blocks, the reason) of a cache. `blocks` or `size` (bytes) as the user wants it. RequestError."""
    if blocks is not None and size is not None:
        raise RequestError("cache_blocks and cache_bytes say the same thing", fix="leave one of them out")
    for name, value in (("cache_blocks", blocks), ("cache_bytes", size)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise RequestError(f"{name} = {value!r:.100} can't be used", fix="use a whole number above 0")
    if blocks is not None:
        return blocks, "as told"
    if size is not None:
        if size < block_bytes:
            raise RequestError(
                f"cache_bytes = {size} is less than one block", fix=f"give it {block_bytes} bytes or more"
            )
        return size // block_bytes, "as told"
    wanted = blocks_for(context) * sequences
    possible = max(1, int(free_bytes(device) * _SHARE) // block_bytes)
    if wanted <= possible:
        return wanted, f"{sequences} sequences of {context} tokens"
    return possible, f"{_SHARE:.0%} of the free memory, {possible * BLOCK} tokens"
