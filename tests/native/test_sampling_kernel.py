"""Sampling against plain torch, and the whole without the extension."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ayllu import native
from ayllu.native import ops

if not native.available():
    pytest.skip("the extension is not built here", allow_module_level=True)

seeds = st.integers(0, 2**31)


def sampled(logits, temperature, uniform):
    rows = logits.shape[0]
    tokens, logprobs = ops.sample(
        logits, torch.full((rows,), temperature), torch.as_tensor(uniform, dtype=torch.float64)
    )
    return tokens, logprobs


@settings(deadline=None, max_examples=60)
@given(
    seed=seeds,
    rows=st.integers(1, 20),
    vocab=st.one_of(st.integers(1, 70), st.sampled_from([127, 128, 129, 1000])),
    temperature=st.sampled_from([0.01, 0.3, 1.0, 2.5, 10.0]),
)
def test_sampling_inverts_the_cumulative_distribution(seed, rows, vocab, temperature):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, vocab, generator=generator)
    uniform = torch.rand(rows, generator=generator, dtype=torch.float64)
    tokens, logprobs = sampled(logits, temperature, uniform)
    upto = (logits.double() / temperature).softmax(-1).cumsum(-1)
    mine = upto.gather(-1, tokens[:, None])[:, 0]
    before = torch.where(tokens > 0, upto.gather(-1, (tokens - 1).clamp(min=0)[:, None])[:, 0], 0.0)
    # The uniform number lies in the token's own interval (but for rounding at its borders).
    assert (uniform <= mine + 1e-5).all() and (uniform >= before - 1e-5).all()
    wanted = logits.double().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    assert torch.allclose(logprobs.double(), wanted, atol=2e-5), "log-probabilities are at temperature 1"


def test_frequencies_follow_the_probabilities():
    n, vocab = 40_000, 200
    generator = torch.Generator().manual_seed(5)
    logits = 2 * torch.randn(1, vocab, generator=generator)
    uniform = torch.rand(n, generator=generator, dtype=torch.float64)
    tokens, _ = sampled(logits.expand(n, -1).contiguous(), 0.7, uniform)
    expected = n * (logits[0].double() / 0.7).softmax(-1).numpy()
    counts = np.bincount(tokens.numpy(), minlength=vocab)
    often = expected >= 5
    chi2 = ((counts - expected)[often] ** 2 / expected[often]).sum()
    freedom = often.sum() - 1
    assert chi2 < freedom + 5 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("vocab", [1, 2, 63, 64, 65, 1000])
def test_greedy_takes_the_lowest_id_among_equals(vocab):
    for first in {0, vocab // 2, vocab - 1}:
        logits = torch.full((1, vocab), -1.0)
        logits[0, first:] = 2.5
        tokens, logprobs = sampled(logits, 0.0, [0.99])
        assert tokens.item() == first
        assert logprobs.item() == pytest.approx(float(logits.log_softmax(-1)[0, first]), abs=1e-5)


@pytest.mark.parametrize("uniform", [2**-53, 0.5, 1 - 2**-53])
def test_the_ends_of_the_unit_interval(uniform):
    logits = torch.full((1, 200), -1e30)
    logits[0, 70] = 4.0  # the only token with a chance
    assert sampled(logits, 1.0, [uniform])[0].item() == 70
    even = sampled(torch.zeros(1, 128), 1.0, [uniform])[0].item()
    assert even == int(uniform * 128)


# ---- without the extension
_PROGRAM = """
import json, sys, torch
from ayllu import native
from ayllu.native import ops
from ayllu.engine.engine import Engine
from ayllu.model.config import ModelConfig, dense_layer
from ayllu.model.decoder import Decoder
from ayllu.train.optim import Optimizer
from ayllu.train.step import Batch, train_step
torch.set_num_threads(1)
config = ModelConfig(64, 300, (dense_layer(4, 2, 16, 96),) * 2, 128)
model = Decoder(config).initialise(1)
optimizer = Optimizer(model, muon_lr=0.02, adam_lr=0.003)
g = torch.Generator().manual_seed(0)
losses = []
for step in range(12):
    tokens = (torch.arange(33) * 7 + torch.randint(0, 300, (8, 1), generator=g)) % 300
    document = (torch.arange(32) > 11).long().expand(8, -1)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    batch = Batch(inputs, targets, torch.full((8, 32), 1 / 256), document)
    losses.append(train_step(model, optimizer, [batch], 1.0, torch.bfloat16)[0].nats)
with Engine(model) as engine:
    done = engine.generate([[5, 12, 19], [100]], max_tokens=20, temperature=0)
    warm = engine.generate([[5, 12, 19]] * 4, max_tokens=20, temperature=0.8, seed=3)
print(json.dumps({
    "native": native.describe(), "losses": losses, "greedy": [d.token_ids for d in done],
    "logprobs": [d.logprobs for d in done], "same": len({tuple(d.token_ids) for d in warm}),
}))
"""


def test_the_torch_path_trains_and_decodes_the_same():
    results = []
    for switch in ("1", "0"):
        done = subprocess.run(
            [sys.executable, "-c", _PROGRAM],
            env=os.environ | {"AYLLU_NATIVE": switch},
            capture_output=True,
            text=True,
            check=True,
        )
        results.append(json.loads(done.stdout))
    fused, plain = results
    assert plain["native"].startswith("off") and not fused["native"].startswith("off")
    assert fused["losses"][-1] < fused["losses"][0] - 0.5, "twelve steps learn something"
    assert fused["losses"] == pytest.approx(plain["losses"], abs=0.03)
    assert fused["same"] == plain["same"] == 1
    first, wanted = ([row[0] for row in result["logprobs"]] for result in results)
    assert first == pytest.approx(wanted, abs=0.1)
