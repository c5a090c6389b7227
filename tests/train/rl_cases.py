"""A model that has learnt nothing, answers and groups as RL has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ayllu.model.weights import load_model
from ayllu.progress import Progress
from ayllu.reason.loop import Answer
from ayllu.reason.practice import TASKS, practice_texts
from ayllu.reason.task import Problem
from ayllu.reason.transcript import Chat, Kind
from ayllu.stage import StageContext
from ayllu.text.tokenizer import train_tokenizer
from ayllu.tools.calculator import CALCULATOR
from ayllu.tools.tool import Toolbox
from ayllu.train.rl import RlSettings
from ayllu.train.updates import Group

TOKENIZER = train_tokenizer(practice_texts(0), 400)
CHAT = Chat(TOKENIZER)
BOX = Toolbox([CALCULATOR])
TASK = TASKS["arithmetic"]
PROBLEM = TASK.problem(np.random.default_rng(0), 1, "train")


def answered(text: str, reason: str = "stop", problem: Problem = PROBLEM) -> Answer:
    transcript = CHAT.add(CHAT.start(problem.prompt), Kind.SAY, text, sampled=True)
    return Answer(transcript, reason, tokens=len(transcript.spans[-1].ids))


def group(*rewards: float) -> Group:
    return Group(PROBLEM, [answered(str(n) * (n + 1)) for n in range(len(rewards))], list(rewards))


SETTINGS = RlSettings(
    steps=5,
    groups=2,
    size=4,
    rounds=1,
    max_tokens=12,
    anchor_rows=1,
    length=128,
    arithmetic=1.0,
    countdown3=0.0,
    preflight=0,
)


class BrokenOffError(Exception):
    pass


def context(folder: Path, inputs: dict[str, Path]) -> StageContext:
    folder.mkdir(exist_ok=True)
    return StageContext(
        folder, inputs, 3, 1, "cpu", Progress("rl", quiet=True), folder / "metrics.jsonl", folder
    )


def weights(folder: Path) -> list[torch.Tensor]:
    return list(load_model(folder / "model").parameters())
