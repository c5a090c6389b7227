"""bench/train.py: the numbers belong together."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import small_run


def test_the_benchmark_of_training() -> None:
    words = ["bench/train.py", "recipes/miniature.toml", "--runs", "1", "--steps", "2", "--threads", "1"]
    done = subprocess.run(
        [sys.executable, *words, "--json"],
        cwd=small_run.ROOT,
        env=small_run.environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["rows"] == 8 and result["machine"]["threads"] == 1
    assert result["fraction"] == pytest.approx(
        result["flops_per_second"] / result["matmul_flops_per_second"], rel=1e-6
    )
    assert result["flops_per_second"] > result["tokens_per_second"] * 6 * 64 * 1024  # the head alone
