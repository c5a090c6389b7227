"""A finished run for the tests of the report: its stages, evaluations, samples and metrics; and what a reader
sees of the page and its charts."""

from __future__ import annotations

import copy
import html.parser
import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from ayllu.report.summary import STAGES

MACHINE = {"chip": "A small processor", "physical_cores": 2, "memory_gib": 8.0, "features": ["avx2", "fma"]}
RECIPE = {
    "name": "demo",
    "seed": 7,
    "text": {"corpus": "data/default", "near": 0.8},
    "pretrain": {"layers": 4, "width": 128, "steps": 600},
}


SAMPLES = [
    {
        "prompt": "What is 417238 + 385112?",
        "wanted": "802350",
        "correct": True,
        "why": "",
        "spans": [
            ["system", "tools: calculator"],
            ["user", "What is 417238 + 385112?"],
            ["think", "These are large numbers: the calculator is surer."],
            ["call", 'calculator {"expression":"417238+385112"}'],
            ["result", "802350"],
            ["say", "802350"],
        ],
    },
    {
        "prompt": "Use 3, 7 and 25 to make 46.",
        "wanted": "",
        "correct": False,
        "why": "7 is used twice",
        "spans": [
            ["user", "Use 3, 7 and 25 to make 46."],
            ["think", "25+7=32 32+3=35 no\n25-3=22 22*7=154 no\n7*3=21 21+25=46 yes"],
            ["say", "7 * 3 + 7"],
        ],
    },
]


def evals(correct_before: int, correct_after: int) -> dict[str, dict[str, Any]]:
    """One family's rows, with intervals, as an evaluation writes them."""
    rows: dict[str, dict[str, Any]] = {}
    for when, correct in (("sft", correct_before), ("rl", correct_after)):
        low, high = max(correct / 1000 - 0.03, 0.0), min(correct / 1000 + 0.03, 1.0)
        rows[when] = {"n": 1000, "correct": correct, "low": low, "high": high, "calls": 0, "valid_calls": 0}
    return rows | {"gain": {"gained": correct_after - correct_before + 9, "lost": 9, "p": 0.0012}}


def samples(*families: str) -> list[dict[str, Any]]:
    """The list that the eval stage writes beside its families."""
    return [
        {"family": family, "when": when, **copy.deepcopy(sample)}
        for family in families
        for when in ("after SFT", "after RL")
        for sample in SAMPLES
    ]


def finished_stages() -> dict[str, dict[str, Any]]:
    """Seven stages with results of a realistic shape."""
    results: dict[str, dict[str, Any]] = {
        "text": {
            "kept": 481,
            "dropped": {"near_duplicate": 12, "exact_duplicate": 31, "digits": 4, "leak": 3},
            "mixture": [
                ("en", "classic-books-en", 65, 1376819, 0.267, ["public domain"], 0),
                ("en", "python-peps", 22, 322103, 0.063, ["CC0-1.0"], 5),
                ("de", "german-laws", 45, 415290, 0.081, ["public domain"], 31),
                ("de", "german-novels", 63, 592714, 0.115, ["public domain"], 2),
                ("te", "telugu-wikisource", 199, 1345304, 0.261, ["PDM-1.0"], 12),
            ],
        },
        "tokenizer": {
            "vocabulary": 4096,
            "fairness": {
                "en": {"bytes_per_token": 3.71, "characters_per_token": 3.69, "tokens_per_word": 1.52},
                "de": {"bytes_per_token": 3.42, "characters_per_token": 3.37, "tokens_per_word": 1.93},
                "te": {"bytes_per_token": 6.88, "characters_per_token": 2.58, "tokens_per_word": 3.05},
            },
        },
        "pretrain": {
            "parameters": 1_312_896,
            "tokens": 2_457_600,
            "bits_per_byte": 1.893,
            "xz_bits_per_byte": 2.214,
            "tokens_per_second": 13_412.0,
            "flops_per_second": 1.06e11,
            "matmul_flops_per_second": 2.31e11,
            "fraction": 0.459,
        },
        "sft": {"loss": 0.08},
        "rl": {"weights_sha256": "ab" * 32},
        "eval": {
            "arithmetic": evals(981, 986),
            "calculator": evals(993, 996),
            "countdown3": evals(412, 634),
            "samples": samples("arithmetic", "calculator", "countdown3"),
        },
        "release": {"weights_sha256": "cd" * 32, "data_manifest_sha256": "ef" * 32},
    }
    keys = ("language", "source", "documents", "bytes", "share", "licences", "dropped")
    results["text"]["mixture"] = [dict(zip(keys, row, strict=True)) for row in results["text"]["mixture"]]
    seconds = {
        "text": 9.1,
        "tokenizer": 4.2,
        "pretrain": 190,
        "sft": 214,
        "rl": 170,
        "eval": 41,
        "release": 2.5,
    }
    return {
        name: {"seconds": float(seconds[name]), "peak_memory_mb": 300.0 + 90 * i, "result": results[name]}
        for i, name in enumerate(STAGES)
    }


def metrics_lines(steps: int = 300) -> list[str]:
    """Curves such as a run writes, deterministic noise included."""
    rows: list[dict[str, Any]] = []
    for i in range(1, 2 * steps + 1):
        noise = math.sin(i * 12.9898) * 0.12
        row = {
            "stage": "pretrain",
            "step": i,
            "steps": 600,
            "tokens": i * 4096,
            "loss": 8.3 * i**-0.16 + noise,
        }
        if i % 100 == 0:
            row["bits_per_byte"] = 1.55 + 3.2 * math.exp(-i / 160)
        rows.append(row)
        rows.append(
            {"stage": "sft", "step": i, "steps": 600, "loss": 2.4 * math.exp(-i / 90) + 0.06 + abs(noise) / 5}
        )
    for i in range(1, steps // 3 + 1):
        noise = math.sin(i * 78.233) * 0.08
        share = 0.38 + 0.27 * (1 - math.exp(-i / 40))
        rows.append(
            {
                "stage": "rl",
                "step": i,
                "steps": 100,
                "reward": share + noise + 0.02,
                "reward_arithmetic": 0.9 + noise / 9,
                "reward_countdown3": share + noise,
                "pass_rate": min(share + noise, 1.0),
                "length": 92 - 0.2 * i + 70 * noise,
                "informative": 0.75 - 0.002 * i + noise,
                "entropy": 0.5 * math.exp(-i / 80) + abs(noise) / 2,
                "truncated": max(0.09 - 0.001 * i + noise / 3, 0.0),
            }
        )
    return [json.dumps(row) for row in rows]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with metrics, not yet a report."""
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("\n".join(metrics_lines()) + "\n", encoding="utf-8")
    return folder


class Reader(html.parser.HTMLParser):
    """What a browser would see: tags, attributes, text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def points_of(svg: str) -> list[list[tuple[float, float]]]:
    """Coordinates of every path of a chart."""
    paths = [node.attrib["d"] for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("path")]
    return [[tuple(map(float, pair.split(","))) for pair in d[1:].split()] for d in paths]  # type: ignore[misc]
