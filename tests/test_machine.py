"""What the machine says of itself, and the two measured rates."""

from __future__ import annotations

import getpass
import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from ayllu import machine
from ayllu.errors import ResourceError


def test_describe_is_json_and_names_nobody() -> None:
    text = json.dumps(machine.describe(threads=2))
    described = json.loads(text)
    assert described["threads"] == 2
    assert described["physical_cores"] <= described["logical_processors"]
    assert described["torch"].startswith("2.")
    assert 0 < described["memory_gib"] < 1e5
    for private in (platform.node(), getpass.getuser(), str(Path.home()), str(Path.cwd())):
        assert len(private) < 3 or private not in text.split('"')


def test_describing_does_not_import_torch() -> None:
    program = "import ayllu.machine, sys; ayllu.machine.describe(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_cores_follow_the_affinity_of_the_process() -> None:
    if machine.logical_processors() < 2 or sys.platform != "linux":
        pytest.skip("needs two processors whose affinity can be set")
    program = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from ayllu.machine import *; print(physical_cores(), logical_processors())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]


def test_a_container_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_quota", lambda: 1.0)
    assert machine.physical_cores() == 1


def test_hardware_threads_of_one_core_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = tuple({"processor": str(i), "physical id": "0", "core id": str(i // 2)} for i in range(8))
    monkeypatch.setattr(machine, "_cpuinfo", lambda: blocks)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(machine, "_quota", lambda: float("inf"))
    assert machine.physical_cores() == 4


def test_a_wished_gpu_that_is_absent_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ResourceError, match="CUDA"):
        machine.choose_device("cuda")
    assert machine.choose_device("auto") == "cpu"
    assert machine.choose_device("cpu") == "cpu"
    with pytest.raises(ResourceError, match="cuda:7"):
        machine.choose_device("cuda:7")


def test_rates_are_plausible_and_scale_with_the_work() -> None:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        large = machine.measure_matmul(256, 256, 256, seconds=0.05)
        tiny = machine.measure_matmul(4, 4, 4, seconds=0.02)
        bandwidth = machine.measure_read_bandwidth(64, seconds=0.05)
    finally:
        torch.set_num_threads(before)
    assert 1e8 < large < 1e15
    assert tiny < large  # a call costs more than 128 operations
    assert 1e8 < bandwidth < 1e14


def test_peak_memory_is_counted_afresh() -> None:
    machine.reset_peak_memory()
    before = machine.peak_memory_mb()
    block = bytearray(b"\x01") * 80_000_000
    assert machine.peak_memory_mb() > before + 60
    del block
