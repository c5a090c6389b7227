"""Training the verifier: every token of a sampled solution learns whether the whole was right.

Cobbe et al. 2021, section 4.2: solutions are sampled from the generator at several temperatures, so that
right and wrong ones both occur and the wrong ones are the generator's own mistakes; the head's loss is the
binary cross-entropy of each sampled token. Problems whose solutions are all right or all wrong teach the
verifier to know hard problems, not good solutions; they are kept to a bounded share.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ayllu.engine.engine import Engine
from ayllu.engine.request import SamplingParams
from ayllu.errors import TrainingStoppedError
from ayllu.reason.loop import answer_batch
from ayllu.reason.practice import TASKS, draw_level, toolbox_of
from ayllu.reason.task import Problem
from ayllu.reason.transcript import Chat, Transcript
from ayllu.reason.verify import Verifier
from ayllu.tools.calculator import CALCULATOR
from ayllu.tools.tool import Toolbox
from ayllu.train.expert import is_right
from ayllu.train.schedule import lr_scale
from ayllu.train.sft import Packer, pack_rows
from ayllu.train.step import Batch

TEMPERATURES = (0.7, 1.0, 1.3)
_UNIFORM = 0.3  # largest share of problems whose solutions are all right or all wrong


@dataclass(frozen=True)
class Solution:
    """A sampled solution and whether it was right."""

    transcript: Transcript
    right: bool


def sampled_solutions(
    engine: Engine,
    chat: Chat,
    shares: dict[str, float],
    *,
    problems: int,
    samples: int,
    max_tokens: int,
    seed: int,
    temperatures: tuple[float, ...] = TEMPERATURES,
) -> list[Solution]:
    """Solutions of training problems, `samples` of each at temperatures in turn. A function of the seed
    and the model."""
    rng = np.random.default_rng([seed, 9])
    families = [family for family, share in shares.items() if share]
    chances = np.array([shares[family] for family in families])
    drawn: list[Problem] = []
    for _ in range(problems):
        task = TASKS[families[rng.choice(len(families), p=chances / chances.sum())]]
        drawn.append(task.problem(rng, draw_level(rng, task), "train"))
    every = [problem for problem in drawn for _ in range(samples)]
    base, box = SamplingParams(max_tokens=max_tokens, seed=int(rng.integers(2**62))), Toolbox([CALCULATOR])
    params = [replace(base, temperature=temperatures[n % len(temperatures)]) for n in range(len(every))]
    prompts = [chat.start(problem.prompt, tools=problem.tools) for problem in every]
    boxes = [toolbox_of(problem, box) for problem in every]
    answers = answer_batch(engine, chat, prompts, boxes, params)
    found = [
        Solution(answer.transcript, is_right(chat, problem, answer))
        for problem, answer in zip(every, answers, strict=True)
    ]
    by_problem = [found[n : n + samples] for n in range(0, len(found), samples)]
    mixed = [group for group in by_problem if len({s.right for s in group}) == 2]
    uniform = [group for group in by_problem if len({s.right for s in group}) == 1]
    room = int(len(mixed) * _UNIFORM / (1 - _UNIFORM))
    return [solution for group in mixed + uniform[:room] for solution in group]


def train_verifier(
    verifier: Verifier,
    solutions: list[Solution],
    *,
    steps: int,
    rows: int = 8,
    length: int = 256,
    lr: float = 0.001,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Fine-tune backbone and head in place with AdamW -> {loss, accuracy} of each step (of tokens).

    Solutions longer than a row are left out. TrainingStoppedError when the others are all right or all wrong.
    """
    solutions = [solution for solution in solutions if len(solution.transcript.ids()) - 1 <= length]
    if len({solution.right for solution in solutions}) < 2:
        raise TrainingStoppedError(
            "the sampled solutions are all right or all wrong: there is nothing to tell apart",
            fix="sample at a higher temperature, or choose problems that the model solves now and then",
        )
    device = str(verifier.head.weight.device)
    verifier.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(verifier.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    by_kind = [[s for s in solutions if s.right], [s for s in solutions if not s.right]]
    history = []
    for number in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * lr_scale(number, steps, decay=0.7)
        rng = np.random.default_rng([seed, 10, number])
        batch, targets_BT = _batch(rng, by_kind, rows, length, device)
        logits_BT = verifier(batch.tokens_BT, document_BT=batch.document_BT)
        loss_BT = F.binary_cross_entropy_with_logits(logits_BT, targets_BT, reduction="none")
        weights_BT = batch.weights_BT / batch.weights_BT.sum()
        loss = (loss_BT * weights_BT).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(verifier.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        told = ((logits_BT > 0) == (targets_BT > 0.5)).float()
        history.append({"loss": float(loss.detach()), "accuracy": float((told * weights_BT).sum())})
    verifier.requires_grad_(False).eval()
    return history


def _batch(
    rng: np.random.Generator, by_kind: list[list[Solution]], rows: int, length: int, device: str
) -> tuple[Batch, Tensor]:
    """Packed rows with as many right as wrong solutions, and for each token whether its solution is right.

    A batch's `tokens` leave out each conversation's last token, which the verifier must see: so the
    targets, one place on, are what it reads here.
    """
    packer, right = Packer(length), dict[int, bool]()
    copies = []  # keeps the objects alive whose ids name them
    while len(packer.full) < rows:
        kind = by_kind[int(rng.integers(2))]
        solution = kind[int(rng.integers(len(kind)))]
        copy = Transcript(solution.transcript.spans)
        copies.append(copy)
        right[id(copy)] = solution.right
        packer.add(copy)
    content = packer.full[:rows]
    batch = pack_rows(content, length, device, dict.fromkeys(right, 1.0))
    signs = pack_rows(content, length, device, {key: 1.0 if value else -1.0 for key, value in right.items()})
    return replace(batch, tokens_BT=batch.targets_BT), (signs.weights_BT > 0).float()
