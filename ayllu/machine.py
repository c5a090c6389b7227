"""What this machine is, and how fast its two roads are: reading memory and multiplying matrices.

Decoding one token reads every weight once, so that its speed is bound by memory bandwidth; training
multiplies large matrices and is bound by arithmetic (the roofline: Williams, Waterman and Patterson
2009). A throughput means something only beside these two measured figures.

Nothing here says whose machine it is: no host name, no user, no path.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
import statistics
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ayllu.errors import ResourceError

if TYPE_CHECKING:
    import subprocess

# The instructions that decide which kernels can run, as /proc/cpuinfo spells them (x86 and Arm).
FEATURES = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16",
    "amx_bf16", "amx_int8", "neon", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip


@functools.cache
def _cpuinfo() -> tuple[dict[str, str], ...]:
    """One dict a logical processor, as Linux describes them; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    blocks = []
    for block in text.strip().split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines())
        blocks.append({key.strip(): value.strip() for key, _, value in pairs if key.strip()})
    return tuple(blocks)


def chip_name() -> str:
    """The processor's trade name, or its architecture where the system doesn't tell."""
    for block in _cpuinfo():
        if name := block.get("model name") or block.get("Hardware"):
            return name
    return platform.processor() or platform.machine()


def logical_processors() -> int:
    """Processors this process may run on."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota() -> float:
    """Processors' worth of time that the container grants (cgroup v2, v1), or infinity."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return float("inf") if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        folder = Path("/sys/fs/cgroup/cpu")
        limit_us = int((folder / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        period_us = int((folder / "cpu.cfs_period_us").read_text(encoding="ascii"))
        return limit_us / period_us if limit_us > 0 else float("inf")
    except (OSError, ValueError):
        return float("inf")


def physical_cores() -> int:
    """Cores this process may use: two hardware threads of one core share its multipliers and count once."""
    allowed = os.sched_getaffinity(0) if sys.platform == "linux" else set(range(os.cpu_count() or 1))
    cores = {
        (block.get("physical id", "0"), block["core id"])
        for block in _cpuinfo()
        if "core id" in block and int(block.get("processor", "-1")) in allowed
    }
    count = len(cores) or logical_processors()
    return max(1, min(count, int(min(_quota(), count) + 0.5)))


def memory_bytes() -> int:
    """Main memory, or the container's limit where that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(name).read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue
    return total


def cpu_features() -> list[str]:
    """Those of FEATURES that every allowed processor has."""
    for block in _cpuinfo():
        words = set((block.get("flags") or block.get("Features") or "").split())
        if words:
            return [name for name in FEATURES if name in words]
    return []


def product_type() -> str:
    """What the processors multiply fastest: `bfloat16` where all have AVX-512's products of it, else
    `float32` (ten times as fast where nothing has them; other processors' were not measured)."""
    return "bfloat16" if "avx512_bf16" in cpu_features() else "float32"


def cuda_may_be_here() -> bool:
    """Whether a CUDA device could be used, told without importing torch (which takes a second)."""
    return os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1") and (
        Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()
    )


def choose_device(wish: str) -> str:
    """`auto` -> `cuda` where torch can use one, else `cpu`; `cuda:1` stays. Raises ResourceError for an
    absent GPU."""
    if wish == "cpu" or (wish == "auto" and not cuda_may_be_here()):
        return "cpu"
    import torch

    if torch.cuda.is_available() and int(wish.partition(":")[2] or 0) < torch.cuda.device_count():
        return "cuda" if wish == "auto" else wish
    if wish == "auto":
        return "cpu"
    raise ResourceError(
        f"device = {wish!r}, but torch finds no such CUDA device",
        why="no NVIDIA GPU or driver here, or this torch was built without CUDA",
        fix="use device = 'auto' or 'cpu'",
    )


def package_version(name: str) -> str:
    """Version of an installed package without importing it; empty when it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def keep_memory() -> None:
    """Let freed memory stay with this process instead of going back to the kernel at once.

    A training step frees and takes the same large buffers again and again; with glibc's defaults each
    of them is mapped, zeroed page by page and unmapped every time, a third of the step (lab log). Does
    nothing where the C library has no mallopt.
    """
    trim_threshold, mmap_max = -1, -4  # malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)


def describe(threads: int = 0) -> dict[str, Any]:
    """The `machine` part of report.json. `threads` is what the run used (0: the physical cores)."""
    described: dict[str, Any] = {
        "chip": chip_name(),
        "architecture": platform.machine(),
        "physical_cores": physical_cores(),
        "logical_processors": logical_processors(),
        "memory_gib": round(memory_bytes() / 2**30, 1),
        "features": cpu_features(),
        "threads": threads or physical_cores(),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "python": platform.python_version(),
        "torch": package_version("torch"),
    }
    if "torch" in sys.modules and cuda_may_be_here():
        import torch

        if torch.cuda.is_available():
            described["gpu"] = torch.cuda.get_device_name(0)
            described["gpu_memory_gib"] = round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
    return described


def peak_memory_mb() -> float:
    """Largest resident memory since `reset_peak_memory` (or since the start), in 10^6 bytes."""
    try:
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def reset_peak_memory() -> None:
    """Start counting the peak afresh (Linux: proc(5), clear_refs). Elsewhere the process's peak stays.

    What was freed and kept (`keep_memory`) is given back first, so that it isn't counted again.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def _median_seconds(work: Any, synchronise: Any, seconds: float) -> float:
    """Median time of one call, from repeated runs of about `seconds` in total after a warm-up."""
    work()
    synchronise()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        began = time.perf_counter()
        work()
        synchronise()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def measure_matmul(
    m: int, k: int, n: int, dtype: str = "float32", *, device: str = "cpu", seconds: float = 0.2
) -> float:
    """FLOP/s of `a_MK @ b_KN` with torch's present thread count: 2·m·k·n operations over the median time."""
    import torch

    kind = getattr(torch, dtype)
    generator = torch.Generator(device=device).manual_seed(0)
    a_MK = torch.randn(m, k, generator=generator, device=device).to(kind)
    b_KN = torch.randn(k, n, generator=generator, device=device).to(kind)
    c_MN = torch.empty(m, n, dtype=kind, device=device)
    synchronise = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    with torch.no_grad():
        return 2.0 * m * k * n / _median_seconds(lambda: torch.mm(a_MK, b_KN, out=c_MN), synchronise, seconds)


def measure_read_bandwidth(megabytes: int = 256, *, device: str = "cpu", seconds: float = 0.3) -> float:
    """Bytes/s of reading memory once from end to end (a sum), with torch's present thread count.

    `megabytes` should be several times the last-level cache; the sum is of int64, which is cheap enough
    that memory, not arithmetic, is the limit.
    """
    import torch

    x_N = torch.ones(megabytes * 1_000_000 // 8, dtype=torch.int64, device=device)
    synchronise = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    with torch.no_grad():
        return x_N.numel() * 8 / _median_seconds(lambda: x_N.sum(), synchronise, seconds)


def end_worker(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that answers over its pipes, and close them."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what couldn't be written to a dead process is still to come
                pipe.close()
