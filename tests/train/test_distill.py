"""On-policy distillation: the divergence by hand and by autograd; a student that comes to its teacher."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ayllu.errors import RecipeValueError
from ayllu.model.config import ModelSettings
from ayllu.model.decoder import Decoder
from ayllu.model.weights import load_model
from ayllu.progress import Progress
from ayllu.reason.practice import practice_texts
from ayllu.reason.transcript import Chat
from ayllu.stage import StageContext
from ayllu.text.tokenizer import train_tokenizer
from ayllu.train import distill as module
from ayllu.train.distill import DistillSettings, backward_kl, distill, reverse_kl
from ayllu.train.sft import SftSettings, save_into, sft
from ayllu.train.step import Batch

TOKENIZER = train_tokenizer(practice_texts(0), 300)
CHAT = Chat(TOKENIZER)
SETTINGS = DistillSettings(
    steps=25, answers=16, max_tokens=24, length=128, lr=0.01, families={"arithmetic": 1.0}
)


def test_the_divergence_by_hand() -> None:
    student, teacher = (
        torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log(),
        torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log(),
    )
    wanted = [0.0, 0.9 * np.log(1.8) + 0.1 * np.log(0.2)]
    assert reverse_kl(student, teacher).tolist() == pytest.approx(wanted, abs=1e-6)
    assert reverse_kl(teacher, student)[1] != pytest.approx(wanted[1], abs=0.05)  # it isn't symmetric
    assert reverse_kl(student + 3.0, teacher - 1.0).tolist() == pytest.approx(wanted, abs=1e-6)


def model(width: int, seed: int, vocabulary: int = 300) -> Decoder:
    shape = ModelSettings(width=width, layers=1, head_dim=16, context=160)
    return Decoder(shape.config(vocabulary)).initialise(seed)


def test_the_gradient_is_that_of_the_mean_over_sampled_places() -> None:
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(300, (4, 20), generator=rng)
    weights = (torch.rand(4, 20, generator=rng) < 0.4).float()
    document = torch.ones(4, 20, dtype=torch.int64)
    student, teacher = model(32, 1).requires_grad_(True), model(32, 2)
    parts = [Batch(tokens[i : i + 2], tokens[i : i + 2], weights[i : i + 2], document[:2]) for i in (0, 2)]
    value, places = backward_kl(student, teacher, parts, torch.float32)
    found = [w.grad.clone() for w in student.parameters() if w.grad is not None]
    student.zero_grad()
    mask = weights.flatten() != 0
    logits = [m(tokens, document_BT=document).flatten(0, 1)[mask] for m in (student, teacher)]
    whole = reverse_kl(*logits).mean()
    whole.backward()
    wanted = [w.grad for w in student.parameters() if w.grad is not None]
    assert places == int(mask.sum()) and value == pytest.approx(float(whole.detach()), rel=1e-4)
    assert len(found) == len(wanted)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, wanted, strict=True))


def context(folder: Path, inputs: dict[str, Path]) -> StageContext:
    folder.mkdir(exist_ok=True)
    progress = Progress("distill", quiet=True)
    return StageContext(folder, inputs, 3, 1, "cpu", progress, folder / "metrics.jsonl", folder)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A teacher that has practised a little, and a smaller student that has not."""
    home = tmp_path_factory.mktemp("models")
    start = context(home / "start", {})
    save_into(start, model(64, 0), TOKENIZER)
    TOKENIZER.save(start.folder)
    teacher = context(home / "teacher", {"tokenizer": start.folder, "pretrain": start.folder})
    sft(teacher, SftSettings(steps=40, rows=8, length=128, calculator=0.0, countdown3=0.0, dialogue=0.0))
    student = context(home / "student", {})
    save_into(student, model(32, 7), TOKENIZER)
    return {"tokenizer": start.folder, "teacher": teacher.folder, "student": student.folder}


def test_a_small_student_comes_to_its_teacher(inputs: dict[str, Path], tmp_path: Path) -> None:
    here = context(tmp_path / "whole", inputs)
    assert distill(here, SETTINGS) == {"steps": 25}
    kl = [json.loads(line)["kl"] for line in here.metrics.read_text().splitlines()]
    assert np.mean(kl[-5:]) < 0.6 * np.mean(kl[:3]) and min(kl) >= 0
    assert load_model(here.folder / "model").config.width == 32


def test_a_broken_distillation_goes_on_identically(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SETTINGS, steps=4)
    monkeypatch.setattr("ayllu.train.loop.CHECKPOINT_SECONDS", 0.0)
    whole, broken = (context(tmp_path / name, inputs) for name in ("whole", "broken"))
    distill(whole, settings)
    rows, deaths = module.student_rows, [2]

    def mortal(engine: Any, chat: Any, wish: Any, seed: int, number: int) -> Any:
        if deaths and number == deaths[0]:
            deaths.clear()
            raise KeyboardInterrupt
        return rows(engine, chat, wish, seed, number)

    monkeypatch.setattr(module, "student_rows", mortal)
    with pytest.raises(KeyboardInterrupt):
        distill(broken, settings)
    distill(broken, settings)
    same = zip(*(load_model(c.folder / "model").parameters() for c in (whole, broken)), strict=True)
    assert all(torch.equal(a, b) for a, b in same)


def test_models_of_different_tokenizers_are_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    other = context(tmp_path / "other", {})
    save_into(other, model(32, 7, 310), TOKENIZER)
    with pytest.raises(RecipeValueError, match="pieces of vocabulary"):
        distill(context(tmp_path / "here", inputs | {"student": other.folder}), SETTINGS)
    with pytest.raises(RecipeValueError, match="every share is 0"):
        DistillSettings().check({})
