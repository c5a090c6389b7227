"""Sequences and rows for the tests of sampling, without an engine."""

from ayllu.engine import sampler
from ayllu.engine.request import Row, SamplingParams, Sequence


def sequence(seed=0, position=0, *, prompt=(1,), tokenizer=None, vocab=None, limit=10_000, **options):
    """A sequence that has generated `position` tokens; with its state if `vocab` is given."""
    one = Sequence(0, list(prompt), SamplingParams(**options), limit, seed, token_ids=[0] * position)
    if vocab is not None:
        one.state = sampler.begin(one, tokenizer, vocab)
    return one


def sample_one(logits_V, one, drafts=()):
    """The next token of one sequence."""
    return sampler.sample(logits_V[None], [Row(one, tuple(drafts))])[0]


def go_on(one, logits_of, steps=10_000):
    """Sample and append until the sequence is finished; `logits_of(sequence)` -> logits_V."""
    for _ in range(steps):
        got = sample_one(logits_of(one), one)
        if one.state is not None and one.state.error is not None:
            one.finish_reason, one.error = "error", one.state.error
            return one
        one.append(got.token, got.logprob, got.top)
        if one.finished:
            return one
    return one
