"""Guesses and costs as told, so that nothing depends on the clock, and prompts that repeat themselves, for
tests that hold speculation against the text without it."""

import random

import pytest
from small_model import CONTEXT, VOCABULARY, make_model
from test_engine import idle

from ayllu.engine.draftmodel import DraftModel
from ayllu.engine.executors import make_executor
from ayllu.engine.speculate import Costs


class Fixed(Costs):
    """Costs as told, so that what is guessed doesn't depend on the clock."""

    def __init__(self, base=1.0, slope=0.001):
        super().__init__()
        self.base, self.fixed = base, slope

    slope = property(lambda self: self.fixed)

    def measure(self, rows, seconds): ...
    def __call__(self, rows):
        return self.base + self.fixed * rows


class Guess:
    """Guesses what another run has given, wrong now and then."""

    seconds = 0.0

    def __init__(self, answers, wrong=10**9, depth=5):
        self.answers, self.wrong, self.depth, self.asked = answers, wrong, depth, 0

    def kind(self, sequence):
        return 0

    def draft(self, wanted):
        self.asked += 1
        return [self._of(sequence)[: min(depth, self.depth)] for sequence, depth in wanted]

    def forget(self, sequence): ...
    def _of(self, sequence):
        at = len(sequence.token_ids)
        answer = self.answers[tuple(sequence.prompt_ids)][at:]
        return [(t + 1) % VOCABULARY if (i + at) % self.wrong == 0 else t for i, t in enumerate(answer)]


def cheaply(engine):
    """Guessing costs next to nothing: as much as possible of it."""
    engine.scheduler.speculation.costs = Fixed()
    return engine


def draft_model(seed=0):
    return DraftModel(make_executor(make_model(seed)), CONTEXT)


def texts(completions):
    return [c.token_ids for c in completions]


def same(ours, plain):
    assert texts(ours) == texts(plain)
    assert [c.finish_reason for c in ours] == [c.finish_reason for c in plain]
    for one, other in zip(ours, plain, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=2e-4)


def clean(engine):
    """Nobody holds anything, in neither cache."""
    speculation = engine.scheduler.speculation
    pool = getattr(speculation.drafter, "pool", None)
    assert not speculation._records and not speculation._used and speculation.failure is None
    return idle(engine) and (pool is None or pool.held == 0)


def repetitive(n, seed):
    """Prompts that say the same again and again, in full or nearly."""
    dice = random.Random(seed)
    prompts = []
    for _ in range(n):
        piece = [dice.randrange(VOCABULARY) for _ in range(dice.randint(1, 9))]
        prompt = (piece * 20)[: dice.randint(1, 48)]
        for _ in range(dice.randint(0, 2)):
            prompt[dice.randrange(len(prompt))] = dice.randrange(VOCABULARY)
        prompts.append(prompt)
    return prompts
