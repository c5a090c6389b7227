"""The main job for real: recipes/miniature.toml through the command line, once, and what a user then has."""

from __future__ import annotations

import json
import math
import subprocess
import time
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import small_run
import torch

import ayllu
from ayllu.release import verify_model_folder, weights_sha256
from ayllu.report.summary import STAGES

FAMILIES = ("arithmetic", "calculator", "countdown3")


@dataclass(frozen=True)
class Done:
    """A finished run and what it printed."""

    folder: Path
    stdout: str
    stderr: str

    @property
    def report(self) -> dict[str, Any]:
        return small_run.report(self.folder)


def ayllu_command(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        small_run.command(*words),
        cwd=small_run.ROOT,
        env=small_run.environment(**env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("miniature") / "run"
    done = ayllu_command(
        "make", "recipes/miniature.toml", "--out", str(folder), AYLLU_CHECKPOINT_SECONDS="20"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return Done(folder, done.stdout, done.stderr)


def test_each_stage_says_what_it_does_and_what_came_out(miniature: Done) -> None:
    lines = miniature.stderr.splitlines()
    for stage in STAGES:
        mine = [line.split(maxsplit=1)[1] for line in lines if line.split()[0] == stage]
        assert mine[0] == "begins"
        assert mine[-1].startswith("done in ")
        assert len(mine) > 2, f"{stage} says nothing of its result"
    for stage in ("pretrain", "sft", "rl", "eval"):
        assert any("% " in line and " left" in line for line in lines if line.split()[0] == stage)
    assert [line.split()[0] for line in lines if line.endswith(" begins")] == list(STAGES)
    assert "Traceback" not in miniature.stderr and "Warning" not in miniature.stderr
    for way in (
        f"ayllu run {miniature.folder} ",
        f"ayllu chat {miniature.folder}",
        f"ayllu serve {miniature.folder}",
    ):
        assert way in miniature.stdout
    assert str(miniature.folder / "model") in miniature.stdout


def test_the_report_has_every_number(miniature: Done) -> None:
    report = miniature.report
    assert report["finished"] and report["seed"] == 1
    assert set(report["stages"]) == set(STAGES)
    assert all(stage["seconds"] >= 0 and stage["peak_memory_mb"] > 0 for stage in report["stages"].values())
    assert report["wall_seconds"] == pytest.approx(
        sum(s["seconds"] for s in report["stages"].values()), abs=0.1
    )
    assert 0 < report["pretrain"]["bits_per_byte"] < 8 and 0 < report["pretrain"]["xz_bits_per_byte"] < 8
    for family in FAMILIES:
        for when in ("sft", "rl"):
            row = report["evals"][family][when]
            assert row["n"] == 30 and 0 <= row["correct"] <= row["n"]
            assert 0 <= row["low"] <= row["correct"] / row["n"] <= row["high"] <= 1
    assert report["machine"]["physical_cores"] >= 1 and report["machine"]["threads"] == 1
    assert report["weights_sha256"] == weights_sha256(miniature.folder / "model")
    assert report["pretrain"]["fraction"] > 0 and report["pretrain"]["tokens_per_second"] > 0
    assert {row["language"] for row in report["text"]["mixture"]} == {"de", "en", "te"}
    assert all(row["licences"] for row in report["text"]["mixture"])
    shown = {(row["family"], row["when"]) for row in report["samples"]}
    assert shown == {(family, "after RL") for family in report["evals"]}
    page = (miniature.folder / "report.html").read_text(encoding="utf-8")
    assert "not there" not in page and f"{report['tokenizer']['vocabulary']:,} pieces" in page


def test_training_taught_something(miniature: Done) -> None:
    rows = [json.loads(line) for line in (miniature.folder / "metrics.jsonl").read_text().splitlines()]
    for stage in ("pretrain", "sft"):
        losses = [row["loss"] for row in rows if row["stage"] == stage]
        assert sum(losses[-10:]) / 10 < 0.85 * losses[0], stage
    vocabulary = miniature.report["tokenizer"]["vocabulary"]
    first = next(row["loss"] for row in rows if row["stage"] == "pretrain")
    assert first == pytest.approx(math.log(vocabulary), abs=0.1)  # nothing is known at first
    assert miniature.report["pretrain"]["bits_per_byte"] < 4.0


class Page(HTMLParser):
    """Collects what a browser would fetch or run."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.wanted: list[str] = []
        self.tags: set[str] = set()
        self.styles: list[str] = []
        self.in_style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.in_style = tag == "style"
        for name, value in attrs:
            if name in ("src", "srcset", "data", "poster", "action") or (name == "href" and tag != "a"):
                self.wanted.append(f"{tag} {name}={value}")
            if name == "style":
                self.styles.append(value or "")
            if name.startswith("on"):
                self.wanted.append(f"{tag} {name}")

    def handle_data(self, data: str) -> None:
        if self.in_style:
            self.styles.append(data)

    def handle_endtag(self, tag: str) -> None:
        self.in_style = False


def test_the_page_stands_alone(miniature: Done) -> None:
    text = (miniature.folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.wanted == []
    assert not page.tags & {"script", "iframe", "object", "embed", "link", "img"}
    assert page.styles and not any("url(" in s or "@import" in s for s in page.styles)
    assert f"{miniature.report['pretrain']['bits_per_byte']:.3f}" in text
    assert "svg" in page.tags and "table" in page.tags


def test_the_model_loads_elsewhere_with_the_same_logits(miniature: Done) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = miniature.folder / "model"
    verify_model_folder(folder)
    ours, theirs = ayllu.load(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = ayllu.load_tokenizer(folder)
    ids = tokenizer.encode("What is 417 + 385? Grüß Gott, నమస్కారం! " * 6)
    assert AutoTokenizer.from_pretrained(folder)("What is 417 + 385?")["input_ids"] == tokenizer.encode(
        "What is 417 + 385?"
    )
    with torch.no_grad():
        tokens_BT = torch.tensor([ids[:100], ids[20:120]])
        torch.testing.assert_close(ours(tokens_BT), theirs(tokens_BT).logits, atol=1e-4, rtol=0)


def test_the_second_time_there_is_nothing_to_do(miniature: Done) -> None:
    def state() -> dict[str, int]:
        kept = [p for p in miniature.folder.rglob("*") if p.is_file() and p.name not in ("log.txt", ".lock")]
        volatile = (".plan.json", "recipe.toml")
        return {str(p): p.stat().st_mtime_ns for p in kept if p.name not in volatile}

    before, began = state(), time.monotonic()
    again = ayllu_command("make", "recipes/miniature.toml", "--out", str(miniature.folder))
    assert time.monotonic() - began < 5
    assert again.returncode == 0 and again.stdout == miniature.stdout
    assert [line.split()[1:3] for line in again.stderr.splitlines()] == [["done", "before,"]] * len(STAGES)
    assert state() == before


def test_a_question_is_answered(miniature: Done) -> None:
    done = ayllu_command("run", str(miniature.folder), "What is 4 + 5?", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["finish_reason"] in ("stop", "length") and said["tokens"] > 0
    assert (said["answer"] or said["reasoning"] or said["calls"]) and done.stderr == ""


def test_the_run_is_described_to_the_hash(miniature: Done) -> None:
    manifest = json.loads((miniature.folder / "model" / "manifest.json").read_text())
    assert manifest["recipe"]["sft"]["steps"] == 250 and manifest["recipe"]["seed"] == 1
    assert manifest["weights_sha256"] == miniature.report["weights_sha256"]
    assert "public domain" in (miniature.folder / "text" / "ATTRIBUTION.md").read_text().lower()


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    """With two threads, which share every sum between them."""
    small_run.corpus(tmp_path)
    small_run.recipe(tmp_path, pretrain={"tokens": 3_000}, sft={"steps": 8})
    for out in ("one", "two"):
        words = ("--until", "sft", "--threads", "2")
        made = small_run.make(tmp_path, *words, out=out, AYLLU_CHECKPOINT_SECONDS="60")
        assert made.returncode == 0, made.stderr
    one, two = (weights_sha256(tmp_path / out / "sft" / "model") for out in ("one", "two"))
    assert one == two != weights_sha256(tmp_path / "one" / "pretrain" / "model")
