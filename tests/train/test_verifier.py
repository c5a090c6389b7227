"""The verifier learns to tell right from wrong, and best of N then takes the right one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ayllu.errors import (
    InputNotFoundError,
    ModelFileDamagedError,
    ModelFileMissingError,
    RecipeValueError,
    TrainingStoppedError,
    UsageError,
)
from ayllu.model.config import ModelSettings
from ayllu.model.decoder import Decoder
from ayllu.progress import Progress
from ayllu.reason.loop import Answer
from ayllu.reason.practice import TASKS, practice_texts, problem_shares
from ayllu.reason.task import Piece, Problem, conversation, split_of
from ayllu.reason.transcript import Chat, Kind
from ayllu.reason.verify import (
    HEAD,
    Verifier,
    check_fits,
    find_verifier,
    highest,
    load_verifier,
    save_head,
)
from ayllu.stage import StageContext
from ayllu.stages import STAGES, stages_of
from ayllu.text.tokenizer import train_tokenizer
from ayllu.train import verifier as module
from ayllu.train.sft import SftSettings, save_into
from ayllu.train.verifier import (
    Solution,
    Solved,
    VerifierSettings,
    batch_of,
    judged,
    that_fit,
    train_verifier,
)

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


def context(folder: Path, inputs: dict[str, Path] | None = None) -> StageContext:
    folder.mkdir(exist_ok=True)
    progress = Progress("verifier", quiet=True)
    return StageContext(folder, inputs or {}, 0, 1, "cpu", progress, folder / "metrics.jsonl", folder)


def rows_of(here: StageContext) -> list[dict[str, Any]]:
    return [json.loads(line) for line in here.metrics.read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Verifier, list[dict[str, Any]]]:
    rng = np.random.default_rng(0)
    solutions = [solution(rng, bool(n % 2)) for n in range(200)]
    verifier = Verifier(Decoder(CONFIG).initialise(0))
    here = context(tmp_path_factory.mktemp("verifier"))
    train_verifier(here, verifier, solutions, VerifierSettings(steps=40, rows=4, length=128, lr=0.005))
    return verifier, rows_of(here)


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
    pairs = zip(scores[40:], scores[:40], strict=True)
    assert np.mean([highest(pair, [True, True]) for pair in pairs]) > 0.85


def test_training_and_scoring_read_the_same_tokens() -> None:
    """Rows of a batch leave out each conversation's last token; a verifier must see all of it in both."""
    rng = np.random.default_rng(5)
    one = solution(rng, True)
    batch, wanted_BT = batch_of(rng, [[one], [one]], 2, 128, "cpu")
    assert batch.document_BT is not None
    ids, sampled = one.transcript.ids(), one.transcript.sampled()
    first = batch.document_BT[0] == 1
    assert batch.tokens_BT[0, first].tolist() == ids
    assert batch.weights_BT[0, first].tolist() == [float(s) for s in sampled]
    assert torch.equal(wanted_BT, batch.weights_BT)  # all of them right
    verifier = Verifier(Decoder(CONFIG).initialise(3)).requires_grad_(False)
    torch.nn.init.normal_(verifier.head.weight)
    packed_BT = verifier(batch.tokens_BT, document_BT=batch.document_BT).sigmoid()
    last = packed_BT[0, first][-1].item()
    assert verifier.score([one.transcript]) == pytest.approx([last], abs=1e-4)


def test_a_batch_does_not_prefer_what_is_long() -> None:
    """Wrong solutions that were cut off fill a row alone, right ones are short: half of each all the same."""
    problem = TASK.problem(np.random.default_rng(0), 1, "train")

    def said(text: str, right: bool) -> Solution:
        return Solution(conversation(CHAT, problem, [Piece(Kind.SAY, text)]), right)

    short = said("7", True)
    size = len(short.transcript.ids())
    long, text = said("7", False), "7"
    while len(long.transcript.ids()) < 4 * size:
        text += " 7"
        long = said(text, False)
    length, right, wrong = len(long.transcript.ids()) + size // 2, 0, 0
    for seed in range(30):
        batch, wanted_BT = batch_of(np.random.default_rng(seed), [[short], [long]], 8, length, "cpu")
        assert batch.document_BT is not None
        for row in range(8):
            for document in range(1, int(batch.document_BT[row].max()) + 1):
                here = batch.document_BT[row] == document
                good = bool((wanted_BT[row][here] * batch.weights_BT[row][here]).any())
                right, wrong = right + good, wrong + (not good)
    assert 0.4 < right / (right + wrong) < 0.75, (right, wrong)


def test_scores_do_not_depend_on_the_batch(trained: tuple[Verifier, Any]) -> None:
    verifier, _ = trained
    rng = np.random.default_rng(2)
    transcripts = [solution(rng, True).transcript for _ in range(20)]
    together = verifier.score(transcripts)
    assert together == pytest.approx([verifier.score([t])[0] for t in transcripts], abs=1e-5)


def test_a_cut_off_answer_is_never_the_best() -> None:
    assert highest([0.9, 0.1], [False, True]) == 1
    assert highest([0.2, 0.7, 0.7], [True, True, True]) == 1  # of equal ones the first


def test_a_verifier_comes_back_from_its_folder(trained: tuple[Verifier, Any], tmp_path: Path) -> None:
    verifier, _ = trained
    save_into(context(tmp_path), verifier.decoder, TOKENIZER)
    with pytest.raises(ModelFileMissingError, match="no verifier"):
        load_verifier(tmp_path / "model")
    save_head(verifier, tmp_path / "model")
    transcript = solution(np.random.default_rng(4), True).transcript
    assert load_verifier(tmp_path / "model").score([transcript]) == verifier.score([transcript])
    (tmp_path / "model" / HEAD).write_bytes(b"not a file of tensors")
    with pytest.raises(ModelFileDamagedError):
        load_verifier(tmp_path / "model")


def test_nothing_to_tell_apart_is_said(tmp_path: Path) -> None:
    verifier = Verifier(Decoder(CONFIG).initialise(0))
    rng = np.random.default_rng(0)
    with pytest.raises(TrainingStoppedError, match="nothing to tell apart"):
        train_verifier(context(tmp_path), verifier, [solution(rng, True)] * 4, VerifierSettings())
    both = [solution(rng, right) for right in (True, False)]
    short = replace(VerifierSettings(), length=8)
    assert not that_fit(both, 8) and that_fit(both, 128) == both
    with pytest.raises(TrainingStoppedError, match=r"0 solutions .* fit into a row of 8 tokens"):
        train_verifier(context(tmp_path), verifier, that_fit(both, 8), short)


# ---- the stage
SETTINGS = VerifierSettings(problems=60, heldout=20, samples=4, max_tokens=16, steps=3, rows=2, length=128)
PRACTICE = SftSettings(arithmetic=1.0, calculator=0.0, countdown3=0.0, dialogue=0.0)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("rl")
    save_into(context(folder), Decoder(CONFIG).initialise(0), TOKENIZER)
    TOKENIZER.save(folder)
    return {"tokenizer": folder, "rl": folder}


class Solver:
    """Stands where the model's answers come from. Of each four answers the first is right, unless the problem
    is the third of three: then none is."""

    def __init__(self) -> None:
        self.asked, self.dies_at = 0, -1
        self.heat: list[float] = []
        self.keys: list[str] = []

    def __call__(self, engine: Any, chat: Chat, problems: list[Problem], box: Any, params: Any) -> Any:
        self.asked += 1
        if self.asked == self.dies_at:
            raise KeyboardInterrupt
        self.heat += [each.temperature for each in params]
        self.keys += [problem.key for problem in problems]
        return [
            Answer(
                chat.add(chat.start(problem.prompt), Kind.SAY, str(n % 4), sampled=True),
                "stop",
                calls=int(n % 4 == 0 and n // 4 % 3 != 2),
            )
            for n, problem in enumerate(problems)
        ]


@pytest.fixture
def solver(monkeypatch: pytest.MonkeyPatch) -> Solver:
    made = Solver()
    monkeypatch.setattr(module, "answer_problems", made)
    monkeypatch.setattr(module, "is_right", lambda chat, problem, answer: answer.calls > 0)
    return made


def test_a_killed_stage_samples_only_what_is_missing_and_ends_the_same(
    inputs: dict[str, Path], tmp_path: Path, solver: Solver
) -> None:
    whole = context(tmp_path / "whole", inputs)
    result = module.verifier(whole, SETTINGS, PRACTICE)
    assert solver.asked == 2 and set(solver.heat[:240]) == {0.7, 1.0, 1.3} and len(solver.heat) == 320
    assert set(solver.heat[240:]) == {0.7}, "the held-out ones as in use"
    splits = [split_of(key) for key in solver.keys]
    assert set(splits[:240]) == {"train"} and set(splits[240:]) == {"test"}
    assert result["right"] == 40 and result["solutions"] == 4 * (40 + int(40 * 0.3 / 0.7))
    assert len(rows_of(whole)) == 3
    broken = context(tmp_path / "broken", inputs)
    solver.asked, solver.dies_at = 0, 2
    with pytest.raises(KeyboardInterrupt):
        module.verifier(broken, SETTINGS, PRACTICE)
    assert module.verifier(broken, SETTINGS, PRACTICE) == result
    assert solver.asked == 3  # the first portion was not sampled again
    one, two = (load_verifier(here.folder / "model") for here in (whole, broken))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_a_broken_training_goes_on_identically(
    inputs: dict[str, Path], tmp_path: Path, solver: Solver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ayllu.train.loop.CHECKPOINT_SECONDS", 0.0)
    whole, broken = (context(tmp_path / name, inputs) for name in ("whole", "broken"))
    module.verifier(whole, SETTINGS, PRACTICE)
    batch, calls = module.batch_of, [0]

    def mortal(*rest: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return batch(*rest)

    monkeypatch.setattr(module, "batch_of", mortal)
    with pytest.raises(KeyboardInterrupt):
        module.verifier(broken, SETTINGS, PRACTICE)
    module.verifier(broken, SETTINGS, PRACTICE)
    assert calls[0] == 4  # the third of three steps, and no other, was done again
    one, two = (load_verifier(here.folder / "model") for here in (whole, broken))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_the_ways_of_choosing_are_counted_on_problems_that_were_not_trained_on() -> None:
    def said(text: str, right: bool, whole: bool = True) -> Solution:
        return Solution(CHAT.add(CHAT.start("?"), Kind.SAY, text, sampled=True), right, whole)

    solved = [
        Solved("a", (said("1", False), said("1.0", False), said("2", True))),
        Solved("b", (said("5", True), said("5", True), said("7", False, whole=False))),
    ]

    class Knows(Verifier):
        def score(self, transcripts: Any) -> list[float]:
            said = [str(CHAT.answer(t)) for t in transcripts]
            return [0.9 if "2" in text else 0.2 if "1" in text else 0.6 for text in said]

    found = judged(CHAT, Knows(Decoder(CONFIG)), solved[:2])
    assert found["one"] == pytest.approx((1 / 3 + 2 / 3) / 2) and found["any"] == 1.0
    assert found["majority"] == 0.5 and found["weighted"] == found["best_of"] == 1.0
    assert found["accuracy"] == pytest.approx(5 / 6) and found["problems"] == 2
    assert judged(CHAT, Knows(Decoder(CONFIG)), [])["accuracy"] == 0.0


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(RecipeValueError, match=r"verifier\.families"):
        VerifierSettings(families={"sums": 1.0}).check({})
    for temperatures in ((), (0.0, 1.0)):
        with pytest.raises(RecipeValueError, match="temperatures"):
            VerifierSettings(temperatures=temperatures).check({})
    with pytest.raises(RecipeValueError, match="every share is 0"):
        problem_shares({"arithmetic": 0.0}, PRACTICE, "verifier")
    with pytest.raises(UsageError, match="pieces of vocabulary"):
        check_fits(Verifier(Decoder(CONFIG)), 401)


def test_its_place_in_a_run() -> None:
    stages = stages_of({"name": "a", "verifier": {}, "expert": {}})
    names = ["text", "tokenizer", "pretrain", "sft", "expert", "rl", "verifier", "eval", "release"]
    assert [stage.name for stage in stages] == names
    by_name = {stage.name: stage for stage in stages}
    plain = {stage.name: stage for stage in STAGES}
    assert by_name["release"].needs == (*plain["release"].needs, "verifier")
    assert by_name["eval"] == plain["eval"]  # a verifier doesn't make an evaluation again
    assert stages_of({"verifier": {}}, stages) == stages


def test_a_verifier_is_found_where_runs_and_models_keep_it(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="no folder"):
        find_verifier(tmp_path / "nothing")
    for inner in ("verifier/model", "model/verifier", "verifier", "."):
        folder = tmp_path / inner.replace("/", "-") / inner
        folder.mkdir(parents=True, exist_ok=True)
        (folder / HEAD).write_bytes(b"")
        assert find_verifier(tmp_path / inner.replace("/", "-")) == folder
