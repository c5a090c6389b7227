"""`ayllu show`, through the real command: presets, folders, files, names that aren't there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ayllu.model import counts
from ayllu.model.config import ModelSettings
from ayllu.model.decoder import Decoder
from ayllu.model.presets import presets
from ayllu.model.weights import save_model

ROOT = Path(__file__).parent.parent


def show(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ayllu", "show", *words],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def told(*words: str, cwd: Path = ROOT) -> Any:
    done = show(*words, "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("words", [(), ("--list",)])
def test_the_list(words):
    done = show(*words)
    assert done.returncode == 0 and not done.stderr
    assert all(f"\n{name} " in done.stdout for name in presets())
    assert [row["name"] for row in told(*words)] == list(presets())


@pytest.mark.parametrize("name", ["gpt-3-175b", "llama-4-behemoth", "deepseek-v3"])
def test_the_largest_are_shown_in_seconds(name):
    began = time.perf_counter()
    done = show(name)
    assert done.returncode == 0 and not done.stderr
    assert time.perf_counter() - began < 30  # on a busy machine; mostly importing torch
    for word in (
        "parameters",
        "active a token",
        "embedding",
        "int4",
        "cache a token",
        "operations",
        "published",
    ):
        assert word in done.stdout
    assert ("estimate" in done.stdout) == (name == "llama-4-behemoth")
    assert max(map(len, done.stdout.splitlines())) < 180


def test_a_preset_in_numbers():
    said = told("llama-7b", "--length", "1000")
    assert said["parameters"] == {"total": 6738415616, "active": 6738415616, "embedding": 2 * 32000 * 4096}
    assert said["weight_bytes"]["bfloat16"] == pytest.approx(2 * 6738415616, rel=1e-3)
    assert said["weight_bytes"]["int4"] == pytest.approx(6738415616 * 4.5 / 8, rel=1e-3)
    assert said["cache_bytes_per_token"]["bfloat16"] == 2 * 2 * 32 * 4096
    assert said["cache_bytes"]["bfloat16"] == 1000 * 2 * 2 * 32 * 4096
    assert said["flops_per_token"] == 2 * (6738415616 - 32000 * 4096 - 65 * 4096) + 32 * 2 * 2 * 500 * 4096
    assert said["train_flops_per_token"] == 3 * said["flops_per_token"]
    assert said["layers"] == [{"times": 32, "layers": [
        {"count": 1, "attention": "32 heads of 128, RoPE 10,000", "mlp": "gated MLP 11,008 (silu)"}
    ]}]  # fmt: skip
    assert abs(said["deviation"]) < 0.01 and "2302.13971" in said["published"]["source"]


def test_patterns_are_said_once():
    layers = told("llama-4-maverick")["layers"]
    assert [(group["times"], len(group["layers"])) for group in layers] == [(12, 4)]
    behemoth = told("llama-4-behemoth")["layers"]  # 94 layers: 23 fours and a rest
    assert [(g["times"], [run["count"] for run in g["layers"]]) for g in behemoth] == [(23, [3, 1]), (1, [2])]
    deepseek = told("deepseek-v3")["layers"]
    assert [(g["times"], [run["count"] for run in g["layers"]]) for g in deepseek] == [(1, [3, 58])]
    assert "latent of 512" in deepseek[0]["layers"][0]["attention"]


def test_what_fits_follows_from_the_memory():
    for name in ("qwen3-0.6b", "llama-4-behemoth"):
        said = told(name)
        for fit in said["machine"].values():
            assert fit["bandwidth"] is None
            for kind, found in fit["formats"].items():
                left = int(0.9 * fit["bytes"]) - said["weight_bytes"][kind]
                assert found["fits"] == (left > 0) and found["tokens_per_second"] is None
                if 0 < found["cache_tokens"] < said["context"]:
                    grown = (found["cache_tokens"] + 1) * said["cache_bytes_per_token"]["bfloat16"]
                    assert grown > left


def test_a_measured_rate():
    fit = told("gpt2", "--measure")["machine"]["memory"]
    assert 1e8 < fit["bandwidth"] < 1e13
    rates = [found["tokens_per_second"] for found in fit["formats"].values()]
    assert rates == sorted(rates) and rates[0] == pytest.approx(
        fit["bandwidth"] / (4 * 124439808 - 4 * 1024 * 768)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "mine"
    path.mkdir()
    config = ModelSettings(width=64, layers=2, head_dim=16, context=128).config(300)
    save_model(Decoder(config).initialise(0), path, bos=0, eos=1, pad=2)
    return path, config


def test_a_folder(folder):
    path, config = folder
    said = told(str(path))
    assert said["parameters"]["total"] == counts.parameters(config)
    assert said["family"] == "qwen3" and "published" not in said
    assert "2 layers: 4 heads, 2 key-value of 16" in show(str(path)).stdout
    assert told(".", cwd=path)["parameters"] == said["parameters"]
    assert told("mine", cwd=path.parent)["parameters"] == said["parameters"]


def test_a_name_under_models_counts_more_than_a_preset(folder, tmp_path):
    path, config = folder
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "llama-7b").symlink_to(path)
    assert told("llama-7b", cwd=tmp_path)["parameters"]["total"] == counts.parameters(config)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("lama-7b",), 4, "llama-7b"),
        (("no/such/folder",), 4, "no/such/folder"),
        (("tests",), 4, "config.json"),
        (("pyproject.toml",), 5, "pyproject.toml"),
        (("llama-7b", "--length", "0"), 2, "from 1 to 2048"),
        (("llama-7b", "--length", "2049"), 2, "from 1 to 2048"),
        (("llama-7b", "--length", "x"), 2, "length"),
        (("llama-7b", "more"), 2, "more"),
        (("",), 4, ""),
    ],
)
def test_what_can_t_be_shown(words, code, said):
    done = show(*words)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr and "Traceback" not in done.stderr
