"""The verifier learns to tell right from wrong, and best of N then takes the right one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ayllu.errors import ModelFileDamagedError, ModelFileMissingError, TrainingStoppedError
from ayllu.model.config import ModelSettings
from ayllu.model.decoder import Decoder
from ayllu.progress import Progress
from ayllu.reason.loop import Answer
from ayllu.reason.practice import TASKS, practice_texts
from ayllu.reason.task import Piece, conversation
from ayllu.reason.transcript import Chat, Kind, Transcript
from ayllu.reason.verify import HEAD, Verifier, best_of, load_verifier, save_head, weighted_vote
from ayllu.stage import StageContext
from ayllu.text.tokenizer import train_tokenizer
from ayllu.train import verifier as module
from ayllu.train.sft import save_into
from ayllu.train.verifier import Solution, train_verifier

TOKENIZER = train_tokenizer(practice_texts(0), 400)
CHAT = Chat(TOKENIZER)
TASK = TASKS["arithmetic"]
CONFIG = ModelSettings(width=32, layers=1, head_dim=16, context=256).config(400)


def solution(rng: np.random.Generator, right: bool) -> Solution:
    """A worked solution; a wrong one guesses a number without any working."""
    problem = TASK.problem(rng, 1, "train")
    *thinking, said = TASK.trace(problem, rng)
    trace = [*thinking, said] if right else [Piece(said.kind, said.text + "7")]
    return Solution(conversation(CHAT, problem, trace), right)


@pytest.fixture(scope="module")
def trained() -> tuple[Verifier, list[dict[str, Any]]]:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    solutions = [solution(rng, bool(n % 2)) for n in range(200)]
    verifier = Verifier(Decoder(CONFIG).initialise(0))
    return verifier, train_verifier(verifier, solutions, steps=40, rows=4, length=128, lr=0.005)


def test_the_loss_falls_far_below_guessing(trained: tuple[Verifier, list[dict[str, Any]]]) -> None:
    _, history = trained
    assert history[0]["loss"] == pytest.approx(np.log(2), abs=1e-3)  # the head begins at zero
    assert np.mean([row["loss"] for row in history[-5:]]) < 0.3
    assert np.mean([row["accuracy"] for row in history[-5:]]) > 0.9


def test_new_solutions_are_told_apart_at_their_last_token(trained: tuple[Verifier, Any]) -> None:
    verifier, _ = trained
    rng = np.random.default_rng(1)
    right, wrong = ([solution(rng, kind) for _ in range(40)] for kind in (True, False))
    scores = verifier.score([s.transcript for s in right + wrong])
    assert all(0 < score < 1 for score in scores)
    assert np.mean(np.array(scores[:40]) > 0.5) > 0.8 and np.mean(np.array(scores[40:]) < 0.5) > 0.8
    pairs = [
        [Answer(w.transcript, "stop"), Answer(r.transcript, "stop")]
        for w, r in zip(wrong, right, strict=True)
    ]
    assert np.mean([best_of(verifier, pair) for pair in pairs]) > 0.85


def test_scores_do_not_depend_on_the_batch(trained: tuple[Verifier, Any]) -> None:
    verifier, _ = trained
    rng = np.random.default_rng(2)
    transcripts = [solution(rng, True).transcript for _ in range(20)]
    together = verifier.score(transcripts)
    assert together == pytest.approx([verifier.score([t])[0] for t in transcripts], abs=1e-5)


def test_a_cut_off_answer_is_never_the_best(trained: tuple[Verifier, Any]) -> None:
    verifier, _ = trained
    rng = np.random.default_rng(3)
    good, bad = solution(rng, True).transcript, solution(rng, False).transcript
    assert best_of(verifier, [Answer(good, "length"), Answer(bad, "stop")]) == 1
    assert weighted_vote(verifier, CHAT, [Answer(good, "length")]) is None
    assert weighted_vote(verifier, CHAT, [Answer(bad, "stop"), Answer(good, "stop")]) in (0, 1)


def test_a_verifier_comes_back_from_its_folder(trained: tuple[Verifier, Any], tmp_path: Path) -> None:
    verifier, _ = trained
    here = StageContext(tmp_path, {}, 0, 1, "cpu", Progress("v", quiet=True), tmp_path / "m", tmp_path)
    save_into(here, verifier.decoder, TOKENIZER)
    with pytest.raises(ModelFileMissingError, match="no verifier"):
        load_verifier(tmp_path / "model")
    save_head(verifier, tmp_path / "model")
    transcript = solution(np.random.default_rng(4), True).transcript
    assert load_verifier(tmp_path / "model").score([transcript]) == verifier.score([transcript])
    (tmp_path / "model" / HEAD).write_bytes(b"not a file of tensors")
    with pytest.raises(ModelFileDamagedError):
        load_verifier(tmp_path / "model")


def test_nothing_to_tell_apart_is_said() -> None:
    verifier = Verifier(Decoder(CONFIG).initialise(0))
    rng = np.random.default_rng(0)
    with pytest.raises(TrainingStoppedError, match="nothing to tell apart"):
        train_verifier(verifier, [solution(rng, True)] * 4, steps=1)
    both = [solution(rng, right) for right in (True, False)]
    with pytest.raises(TrainingStoppedError, match="nothing to tell apart"):  # none fits into a row
        train_verifier(verifier, both, steps=1, length=8)


def test_solutions_come_from_several_temperatures_and_mostly_from_mixed_problems(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Problems come in fours of answers; those of every second problem are all wrong."""
    seen: list[float] = []

    def canned(engine: Any, chat: Chat, prompts: list[Transcript], boxes: Any, params: Any) -> list[Answer]:
        seen.extend(p.temperature for p in params)
        return [
            Answer(
                CHAT.add(t, Kind.SAY, "x", sampled=True), "stop", calls=int(n // 4 % 2 == 0 and n % 4 == 0)
            )
            for n, t in enumerate(prompts)
        ]

    monkeypatch.setattr(module, "answer_batch", canned)
    monkeypatch.setattr(module, "is_right", lambda chat, problem, answer: answer.calls > 0)
    options: dict[str, Any] = {"problems": 40, "samples": 4, "max_tokens": 16, "seed": 0}
    found = module.sampled_solutions(None, CHAT, {"arithmetic": 1.0}, **options)  # type: ignore[arg-type]
    assert set(seen) == set(module.TEMPERATURES) and len(seen) == 160
    assert sum(s.right for s in found) == 20  # one of four, of twenty mixed problems
    assert len(found) == 4 * (20 + int(20 * 0.3 / 0.7))
