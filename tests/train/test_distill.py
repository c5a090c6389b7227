"""On-policy distillation: the divergence by hand and by autograd; a student that comes to its teacher."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ayllu.engine.engine import Engine
from ayllu.errors import RecipeValueError
from ayllu.model.config import ModelSettings
from ayllu.model.decoder import Decoder
from ayllu.model.weights import load_model
from ayllu.progress import Progress
from ayllu.reason.practice import practice_texts
from ayllu.reason.transcript import Chat
from ayllu.stage import StageContext
from ayllu.stages import stages_of
from ayllu.text.tokenizer import train_tokenizer
from ayllu.train import distill as module
from ayllu.train import sft as sft_module
from ayllu.train.distill import DistillSettings, backward_kl, distill, reverse_kl
from ayllu.train.sft import SftSettings, save_into, sft
from ayllu.train.step import Batch

TOKENIZER = train_tokenizer(practice_texts(0), 300)
CHAT = Chat(TOKENIZER)
SETTINGS = DistillSettings(
    width=32, layers=1, head_dim=16, sft_steps=2, steps=25, answers=16, max_tokens=24, length=128, lr=0.01,
    heldout=12,
)  # fmt: skip
PRACTICE = SftSettings(steps=40, rows=8, length=128, calculator=0.0, countdown3=0.0)


def test_the_divergence_by_hand() -> None:
    student, teacher = (
        torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log(),
        torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log(),
    )
    wanted = [0.0, 0.9 * np.log(1.8) + 0.1 * np.log(0.2)]
    assert reverse_kl(student, teacher).tolist() == pytest.approx(wanted, abs=1e-6)
    assert reverse_kl(teacher, student)[1] != pytest.approx(wanted[1], abs=0.05)  # it isn't symmetric
    assert reverse_kl(student + 3.0, teacher - 1.0).tolist() == pytest.approx(wanted, abs=1e-6)


def model(width: int, seed: int) -> Decoder:
    shape = ModelSettings(width=width, layers=1, head_dim=16, context=160)
    return Decoder(shape.config(300)).initialise(seed)


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


def test_heads_are_in_float32_where_the_blocks_are_in_bfloat16() -> None:
    """Two heads that differ by less than bfloat16 can tell: their divergence is known to a hundredth."""
    rng = torch.Generator().manual_seed(0)
    tokens = torch.randint(300, (2, 20), generator=rng)
    student, teacher = model(32, 1).requires_grad_(True), model(32, 1)
    noise = 1 + 3e-3 * torch.randn(300, 1, generator=rng)
    with torch.no_grad():
        student.embedding.weight *= 10  # logits of some size, as those of trained models
        teacher.embedding.weight.copy_(student.embedding.weight * noise)
    batch = Batch(tokens, tokens, torch.ones(2, 20), torch.ones(2, 20, dtype=torch.int64))
    value, _ = backward_kl(student, teacher, [batch], torch.bfloat16)
    with torch.no_grad():
        log_p = []
        for each in (student, teacher):
            states = each.states(tokens, document_BT=batch.document_BT, dtype=torch.bfloat16)
            log_p.append((states.double() @ each.head_weight.double().T).log_softmax(-1))
        wanted = float((log_p[0].exp() * (log_p[0] - log_p[1])).sum(-1).mean())
    assert value == pytest.approx(wanted, rel=0.01) and wanted > 1e-6
    gradient = student.embedding.weight.grad
    assert gradient is not None and gradient.isfinite().all()


def context(folder: Path, inputs: dict[str, Path]) -> StageContext:
    folder.mkdir(exist_ok=True)
    progress = Progress("distill", quiet=True)
    return StageContext(folder, inputs, 3, 1, "cpu", progress, folder / "metrics.jsonl", folder)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A teacher that has practised a little."""
    home = tmp_path_factory.mktemp("models")
    start = context(home / "start", {})
    save_into(start, model(64, 0), TOKENIZER)
    TOKENIZER.save(start.folder)
    teacher = context(home / "teacher", {"tokenizer": start.folder, "pretrain": start.folder})
    sft(teacher, PRACTICE)
    return {"tokenizer": start.folder, "rl": teacher.folder}


def test_a_small_student_comes_to_its_teacher(inputs: dict[str, Path], tmp_path: Path) -> None:
    here = context(tmp_path / "whole", inputs)
    found = distill(here, SETTINGS, PRACTICE)
    kl = [json.loads(line)["kl"] for line in here.metrics.read_text().splitlines()]
    assert len(kl) == 25  # and no row of the student's practice
    assert np.mean(kl[-5:]) < 0.6 * np.mean(kl[:3]) and min(kl) >= 0
    student = load_model(here.folder / "model")
    assert student.config.width == 32 and student.config.context == 160
    assert found["parameters"]["student"] == sum(w.numel() for w in student.parameters())
    assert found["parameters"]["teacher"] > found["parameters"]["student"]
    assert list(found["evals"]) == ["arithmetic"]  # dialogue has no problems to sample
    assert [row["n"] for row in found["evals"]["arithmetic"].values()] == [12, 12, 12]
    assert list(found["evals"]["arithmetic"]) == ["teacher", "sft", "student"]


@pytest.mark.parametrize("death", ["student_rows", "train_step"])
def test_a_broken_distillation_goes_on_identically(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, death: str
) -> None:
    """Killed in the second step of the distillation, or of the practice before it."""
    settings = replace(SETTINGS, steps=4)
    monkeypatch.setattr("ayllu.train.loop.CHECKPOINT_SECONDS", 0.0)
    whole, broken = (context(tmp_path / name, inputs) for name in ("whole", "broken"))
    result = distill(whole, settings, PRACTICE)
    where: Any = module if death == "student_rows" else sft_module
    does, calls = getattr(where, death), [0]

    def mortal(*rest: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return does(*rest)

    monkeypatch.setattr(where, death, mortal)
    with pytest.raises(KeyboardInterrupt):
        distill(broken, settings, PRACTICE)
    assert distill(broken, settings, PRACTICE) == result
    assert calls[0] == (5 if death == "student_rows" else 3)  # nothing was done twice but the step that broke
    same = zip(*(load_model(c.folder / "model").parameters() for c in (whole, broken)), strict=True)
    assert all(torch.equal(a, b) for a, b in same)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(RecipeValueError, match=r"distill\.families"):
        DistillSettings(families={"sums": 1.0}).check({})
    with pytest.raises(RecipeValueError, match=r"distill\.width = 80"):
        DistillSettings(width=80).check({})
    with pytest.raises(RecipeValueError, match=r"distill\.max_tokens = 300"):
        DistillSettings(max_tokens=300).check({"model": ModelSettings(context=300)})
    DistillSettings(max_tokens=300, length=64).check({"model": ModelSettings(context=512)})  # rows grow
    with pytest.raises(RecipeValueError, match="distill: every share is 0"):
        DistillSettings(families={"arithmetic": 0.0}).check({})


def test_rows_are_as_long_as_the_answers_need(inputs: dict[str, Path]) -> None:
    """None is left out for being long, as that would teach to be short."""
    with Engine(inputs["rl"] / "model") as engine, module.toolbox_for([]) as toolbox:
        packed, length = module.student_rows(
            engine, CHAT, replace(SETTINGS, length=8), {"arithmetic": 1.0}, toolbox, 1, 0
        )
    answers = [transcript for row in packed for transcript in row]
    assert len(answers) == SETTINGS.answers
    assert length == max(len(transcript.ids()) - 1 for transcript in answers) > 8


def test_a_kill_while_measuring_loses_one_measurement(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, asked, does = context(tmp_path / "here", inputs), list[Any](), module.evaluate

    def mortal(*given: Any, **how: Any) -> Any:
        asked.append(given)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return does(*given, **how)

    monkeypatch.setattr(module, "evaluate", mortal)
    with pytest.raises(KeyboardInterrupt):
        distill(here, replace(SETTINGS, steps=1), PRACTICE)
    found = distill(here, replace(SETTINGS, steps=1), PRACTICE)
    assert len(asked) == 4 and len(found["evals"]["arithmetic"]) == 3


def test_its_place_in_a_run() -> None:
    stages = {stage.name: stage for stage in stages_of({"distill": {}, "verifier": {}})}
    assert list(stages)[-5:] == ["rl", "verifier", "distill", "eval", "release"]
    assert stages["release"].needs[-2:] == ("verifier", "distill")
    assert "distill" not in stages["eval"].needs
