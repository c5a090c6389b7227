"""Checkpoints and the loop: broken off anywhere, it ends in the same weights with the same metrics."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ayllu.errors import CheckpointDamagedError, UsageError
from ayllu.model.config import ModelSettings
from ayllu.model.decoder import Decoder
from ayllu.progress import Progress
from ayllu.stage import StageContext
from ayllu.train import loop as loop_module
from ayllu.train.checkpoint import load_checkpoint, save_checkpoint
from ayllu.train.loop import CHECKPOINTS, Loop, checkpoint_seconds, cut_metrics
from ayllu.train.optim import Optimizer
from ayllu.train.step import Batch, train_step

STEPS = 9
CONFIG = ModelSettings(width=32, layers=1, head_dim=16, context=64).config(64)
LOUD = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class BrokenOffError(Exception):
    pass


class Job:
    """A small training whose batches and whose state are functions of the step."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.said = folder, list[str]()
        progress = Progress("job", quiet=True)
        progress.say = self.said.append  # type: ignore[method-assign]
        self.model = Decoder(CONFIG).initialise(0)
        self.optimizer = Optimizer(self.model, muon_lr=0.02, adam_lr=0.01, weight_decay=0.1)
        self.total = 0.0
        context = StageContext(folder, {}, 0, 1, "cpu", progress, folder / "metrics.jsonl", folder)
        self.loop = Loop(context, "job", self.model, self.optimizer, STEPS)
        self.loop.on_resume = self.resume

    def resume(self, state: dict[str, Any]) -> None:
        self.total = state["total"]

    def run(self, until: int = STEPS) -> list[torch.Tensor]:
        """Train; BrokenOffError when step `until` is begun."""

        def step(number: int) -> dict[str, Any]:
            if number == until:
                raise BrokenOffError
            g = torch.Generator().manual_seed(number)
            ids_BT = torch.randint(64, (2, 17), generator=g)
            batch = Batch(ids_BT[:, :-1], ids_BT[:, 1:], torch.full((2, 16), 1 / 32))
            (result,) = train_step(self.model, self.optimizer, [batch], 1.0, torch.float32)
            self.total += result.loss
            self.loop.state["total"] = self.total
            return {"loss": result.loss, "total": self.total}

        self.loop.run(step, note=lambda row: "")
        return [weight.detach().clone() for weight in self.model.parameters()]

    @property
    def checkpoints(self) -> list[Path]:
        return sorted((self.folder / CHECKPOINTS).glob("step-*"))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after each step."""
    monkeypatch.setattr(loop_module, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.delenv("AYLLU_CHECKPOINT_SECONDS", raising=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Job:
    job = Job(tmp_path_factory.mktemp("whole"))
    job.run()
    return job


def same(weights: list[torch.Tensor], job: Job) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights, job.model.parameters(), strict=True))


@LOUD
@given(
    deaths=st.lists(st.integers(0, STEPS - 1), min_size=1, max_size=4), seconds=st.sampled_from([0.0, 60.0])
)
def test_broken_off_anywhere_it_ends_in_the_same(
    whole: Job, tmp_path_factory: pytest.TempPathFactory, deaths: list[int], seconds: float
) -> None:
    folder = tmp_path_factory.mktemp("broken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop_module, "CHECKPOINT_SECONDS", seconds)  # 60: all of it is lost each time
        for death in deaths:
            try:
                Job(folder).run(until=death)
            except BrokenOffError:
                with open(folder / "metrics.jsonl", "a") as file:
                    file.write('{"stage": "job", "st')  # half a line
        last = Job(folder)
        assert same(last.run(), whole)
    assert last.metrics == whole.metrics and last.total == whole.total
    assert [row["step"] for row in last.metrics] == list(range(1, STEPS + 1))


def test_done_is_done(whole: Job) -> None:
    again = Job(whole.folder)
    assert same(again.run(until=0), whole)  # no step is begun


def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.run()
    assert [p.name for p in job.checkpoints] == ["step-000008", "step-000009"]


@LOUD
@given(seed=st.integers(0, 10**6), how=st.sampled_from(["flip", "cut", "missing", "empty"]))
@pytest.mark.parametrize("part", ["weights.safetensors", "optimizer.safetensors", "state.json"])
def test_whatever_happens_to_a_checkpoint_is_noticed(
    whole: Job, tmp_path_factory: pytest.TempPathFactory, part: str, how: str, seed: int
) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    with pytest.raises(BrokenOffError):
        Job(folder).run(until=6)
    damage(Job(folder).checkpoints[-1] / part, how, seed)
    job = Job(folder)
    assert same(job.run(), whole)
    assert any("step-000006 is damaged" in line for line in job.said)
    assert "goes on from step 5 of 9" in job.said and job.metrics == whole.metrics


def damage(path: Path, how: str, seed: int) -> None:
    data, at = bytearray(path.read_bytes()), random.Random(seed)
    if how == "missing":
        path.unlink()
        return
    if how == "flip":
        place = at.randrange(len(data))
        while chr(data[place]).isspace():  # JSON reads the same with another space
            place = at.randrange(len(data))
        data[place] ^= 1 << at.randrange(8)
    path.write_bytes(data if how == "flip" else data[: at.randrange(len(data) - 1)] if how == "cut" else b"")


def test_all_damaged_is_an_error_that_deletes_nothing(tmp_path: Path) -> None:
    with pytest.raises(BrokenOffError):
        Job(tmp_path).run(until=4)
    job = Job(tmp_path)
    for path in job.checkpoints:
        damage(path / "weights.safetensors", "flip", 1)
    before = job.checkpoints
    with pytest.raises(CheckpointDamagedError, match="no checkpoint in") as caught:
        job.run()
    assert str(tmp_path) in caught.value.fix and job.checkpoints == before


def test_the_checkpoint_of_another_model_is_not_believed(tmp_path: Path) -> None:
    other = Decoder(ModelSettings(width=64, layers=1, head_dim=16, context=64).config(64)).initialise(0)
    save_checkpoint(tmp_path, 3, other, Optimizer(other, muon_lr=0.02, adam_lr=0.01), {})
    job = Job(tmp_path / "job")
    before = [weight.detach().clone() for weight in job.model.parameters()]
    with pytest.raises(CheckpointDamagedError):
        load_checkpoint(tmp_path, job.model, job.optimizer, job.loop.context.progress)
    assert "another model" in job.said[0] and same(before, job)


def test_a_half_written_checkpoint_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise BrokenOffError

    job = Job(tmp_path)
    monkeypatch.setattr("ayllu.train.checkpoint.write_json", full)
    with pytest.raises(BrokenOffError):
        save_checkpoint(tmp_path, 1, job.model, job.optimizer, {})
    assert list(tmp_path.glob("step-*")) == []
    assert load_checkpoint(tmp_path, job.model, job.optimizer, job.loop.context.progress) is None


rows = st.lists(
    st.tuples(st.sampled_from(["job", "sft", "eval"]), st.integers(1, 9), st.booleans()), max_size=20
)


@LOUD
@given(rows=rows, steps=st.integers(0, 9))
def test_metrics_of_lost_work_are_cut_and_no_others(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int, bool]], steps: int
) -> None:
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    whole = [json.dumps({"stage": stage, "step": step}) for stage, step, _ in rows]
    path.write_text("".join(w + "\n" for w in whole) + '{"stage"')
    cut_metrics(path, "job", steps)
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert kept == [
        {"stage": stage, "step": step} for stage, step, _ in rows if stage != "job" or step <= steps
    ]


def test_the_interval_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checkpoint_seconds() == loop_module.CHECKPOINT_SECONDS
    for text, seconds in (("0.1", 0.1), ("60", 60.0)):
        monkeypatch.setenv("AYLLU_CHECKPOINT_SECONDS", text)
        assert checkpoint_seconds() == seconds
    for text in ("0", "61", "-1", "nan", "often"):
        monkeypatch.setenv("AYLLU_CHECKPOINT_SECONDS", text)
        with pytest.raises(UsageError, match="AYLLU_CHECKPOINT_SECONDS"):
            checkpoint_seconds()
