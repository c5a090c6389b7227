"""What a call into the sandbox costs. `python bench/sandbox.py`, or with --json.

Cold: a new Sandbox and its first call. Warm: `print(1)` in a Sandbox that is there. Bare: the same program
in a new interpreter without any wall (`python -I -S -c`). Calls a second: warm calls from as many threads as
cores.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from ayllu import machine
from ayllu.tools.sandbox import Sandbox


def milliseconds(action: Callable[[], object], times: int) -> dict[str, float]:
    """Median, quickest and 95th percentile of `times` runs, after one that isn't counted."""
    action()
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        action()
        taken.append(1000 * (time.perf_counter() - started))
    taken.sort()
    return {"median": statistics.median(taken), "least": taken[0], "p95": taken[int(0.95 * (len(taken) - 1))]}


def cold() -> None:
    """One Sandbox and one call."""
    with Sandbox() as sandbox:
        assert sandbox.run("print(1)").stdout == "1\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--calls", type=int, default=200)
    options = parser.parse_args()
    python = getattr(sys, "_base_executable", None) or sys.executable
    bare = [python, "-I", "-S", "-c", "print(1)"]
    found: dict[str, object] = {"cold_ms": milliseconds(cold, max(5, options.calls // 10))}
    found["bare_ms"] = milliseconds(
        lambda: subprocess.run(bare, capture_output=True, check=True), max(5, options.calls // 10)
    )
    with Sandbox() as sandbox:
        sandbox.run("1")
        time.sleep(0.5)  # it imports common modules while nobody asks
        before = resource.getrusage(resource.RUSAGE_SELF)
        cpu = [sandbox.run("print(1)").cpu_seconds for _ in range(20)]
        after = resource.getrusage(resource.RUSAGE_SELF)
        found["warm_ms"] = milliseconds(lambda: sandbox.run("print(1)"), options.calls)
        found["cpu_inside_ms"] = 1000 * statistics.median(cpu)
        found["cpu_host_ms"] = 50 * (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        cores = len(os.sched_getaffinity(0))
        started = time.perf_counter()
        threads = [
            threading.Thread(target=lambda: [sandbox.run("print(1)") for _ in range(options.calls // cores)])
            for _ in range(cores)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found["calls_a_second"] = options.calls // cores * cores / (time.perf_counter() - started)
        found["level"] = str(sandbox.level())
    found["machine"], found["load"] = machine.chip_name(), os.getloadavg()[0]
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        shown = {k: round(v, 1) for k, v in value.items()} if isinstance(value, dict) else value
        print(f"{name:16} {shown}")


if __name__ == "__main__":
    main()
