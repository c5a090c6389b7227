"""Several updates from one batch of rollouts: tokens keep their places, ratios, clipping, a resume."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rl_cases import BOX, CHAT, PROBLEM, SETTINGS, TOKENIZER, BrokenOffError, context, group, weights

from ayllu.model.weights import load_model
from ayllu.reason.curriculum import Curriculum
from ayllu.train import rl as module
from ayllu.train import updates as updates_module
from ayllu.train.optim import Optimizer
from ayllu.train.policy import Tokens, log_probabilities
from ayllu.train.rl import RlSettings, Rollouts
from ayllu.train.sft import SftSettings
from ayllu.train.updates import Group, Updates, pack_answers, weighted


def with_logprobs(*rewards: float) -> Group:
    """As `group`, with log-probabilities as an engine reports them."""
    made = group(*rewards)
    rng = np.random.default_rng(0)
    answers = [
        replace(a, logprobs=tuple((-rng.random(sum(a.transcript.sampled()))).tolist())) for a in made.answers
    ]
    return Group(made.problem, answers, made.rewards)


def test_packed_tokens_stand_in_the_order_of_the_weights() -> None:
    """What an answer's tokens are given arrives at that answer's places in the rows."""
    settings = RlSettings(groups=2, size=4, length=64)
    groups = [with_logprobs(1, 0, 0, 0), with_logprobs(0, 0, 1, 1)]
    distinct = [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]
    batches, tokens = pack_answers(groups, distinct, settings, "cpu")
    batches = weighted(batches, tokens.advantage_N)
    by_length = {}
    for g, values in zip(groups, distinct, strict=True):
        for answer, value in zip(g.answers, values, strict=True):
            by_length.setdefault(value, tuple(answer.transcript.ids()[1:]))
    seen = {}
    for batch in batches:
        for row in range(len(batch.tokens_BT)):
            for document in range(1, int(batch.document_BT[row].max()) + 1):
                here = batch.document_BT[row] == document
                (value,) = set(batch.weights_BT[row][here].tolist()) - {0.0}
                seen[value] = tuple(batch.targets_BT[row][here].tolist())
    assert seen == by_length
    wanted = [p for g in groups for a in g.answers for p in a.logprobs]
    assert sorted(tokens.old_N.tolist()) == sorted(wanted)


def updates_of(inputs: dict[str, Path], settings: RlSettings) -> Updates:
    model = load_model(inputs["sft"] / "model").requires_grad_(True)
    return Updates(model, Optimizer(model, muon_lr=0.0, adam_lr=0.01), None, settings, "cpu")  # type: ignore[arg-type]


def test_ratios_of_later_updates_are_to_the_trainer_before_the_first(
    inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As long as nothing moves every ratio is exactly 1, whatever rounding the engine's weights have."""
    seen = list[Tokens]()

    def look(loss: Any, tokens: Tokens, clip: Any) -> torch.Tensor:
        seen.append(tokens)
        return torch.ones_like(tokens.new_N)

    settings = replace(SETTINGS, updates=2, anchor=0.0, loss="gspo")
    for moves in (False, True):
        seen.clear()
        with monkeypatch.context() as patched:
            patched.setattr(updates_module, "token_weights", look)
            if not moves:
                patched.setattr(updates_module, "train_step", lambda *_, **__: [])
            updates_of(inputs, settings).run(0, [with_logprobs(1, 0, 0, 0), with_logprobs(0, 0, 1, 1)])
        first, second = seen
        assert torch.equal(first.new_N, first.old_N)
        assert torch.equal(second.new_N, second.old_N) != moves
        assert float((second.old_N - first.old_N[: len(second.old_N)]).abs().max()) > 0.1, "not the engine's"


def test_a_batch_in_which_everything_was_clipped_is_no_update(
    inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All weights zero: the head has no rows, and there is nothing to divide by."""
    calls = list[int]()

    def clipped(loss: Any, tokens: Tokens, clip: Any) -> torch.Tensor:
        calls.append(len(tokens.new_N))
        return torch.full_like(tokens.new_N, 1.0 if len(calls) == 1 else 0.0)

    monkeypatch.setattr(updates_module, "token_weights", clipped)
    updates = updates_of(inputs, replace(SETTINGS, updates=2, anchor=0.0))
    results = updates.run(0, [with_logprobs(1, 0, 0, 0), with_logprobs(0, 0, 1, 1)])
    assert len(calls) == 2 and len(results) == 1
    assert all(math.isfinite(r.nats) and r.trained for r in results)


def test_probabilities_are_those_that_the_engine_reported(inputs: dict[str, Path]) -> None:
    """The trainer's log-probabilities of sampled tokens are the engine's, up to the rounding of bfloat16."""
    model = load_model(inputs["sft"] / "model")
    engine = module.Engine(model, weights="float32", tokenizer=TOKENIZER)
    settings = replace(SETTINGS, updates=2)
    groups = Rollouts(engine, CHAT, settings, 1, BOX).answer([PROBLEM], 4, seed=5)
    batches, tokens = pack_answers(groups, [[1.0, 0.0, 0.0, 0.0]], settings, "cpu")
    new = [log_probabilities(model, b, torch.float32)[b.weights_BT != 0] for b in batches]
    assert torch.allclose(torch.cat(new).double(), tokens.old_N, atol=1e-4)
    engine.close()


@pytest.mark.usefixtures("luck")
@pytest.mark.parametrize("loss", ["cispo", "gspo"])
def test_several_updates_of_a_batch_resume_identically(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    settings = replace(SETTINGS, steps=3, updates=2, loss=loss, retire=1, invalid_call=0.1, preflight=2)
    whole, broken = (context(tmp_path / name, inputs) for name in ("whole", "broken"))
    result = module.rl(whole, settings, SftSettings())
    sample = Rollouts.sample
    deaths = [2]

    def mortal(self: Rollouts, step: int, curriculum: Curriculum) -> list[Group]:
        if deaths and step == deaths[0]:
            deaths.clear()
            raise BrokenOffError
        return sample(self, step, curriculum)

    monkeypatch.setattr(Rollouts, "sample", mortal)
    with pytest.raises(BrokenOffError):
        module.rl(broken, settings, SftSettings())
    module.rl(broken, settings, SftSettings())
    assert all(torch.equal(a, b) for a, b in zip(weights(whole.folder), weights(broken.folder), strict=True))
    once = context(tmp_path / "once", inputs)
    module.rl(once, replace(settings, updates=1), SftSettings())
    assert any(
        not torch.equal(a, b) for a, b in zip(weights(whole.folder), weights(once.folder), strict=True)
    )
    assert set(result["preflight"]["families"]) == {"arithmetic"}
