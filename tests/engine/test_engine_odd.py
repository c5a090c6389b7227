"""What is rare in the engine, and once went wrong without a word."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from guesses import Guess, cheaply
from small_model import CONTEXT, VOCABULARY, make_model

from ayllu import native
from ayllu.engine import cuts
from ayllu.engine.engine import Engine
from ayllu.engine.executors import make_executor
from ayllu.engine.executors.torch import TorchExecutor
from ayllu.engine.packed import pack_model
from ayllu.engine.request import Grammar, SamplingParams
from ayllu.errors import GrammarFailedError, RequestError
from ayllu.model.config import AttentionSpec, LayerSpec, MLPSpec, ModelConfig, MoESpec, RopeSpec
from ayllu.model.decoder import Decoder
from ayllu.reason.loop import answer_batch, answer_stream
from ayllu.reason.transcript import Chat
from ayllu.text.tokenizer import train_tokenizer
from ayllu.tools.tool import Toolbox

needs_native = pytest.mark.skipif(not native.available(), reason="no native extension on this machine")


# ---- a grammar that can't go on


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An engine over a random model, whose grammars give up at their third token."""
    tokenizer = train_tokenizer(iter(["abc def"] * 9), 300)
    torch.manual_seed(0)
    config = ModelConfig(48, tokenizer.vocab_size, make_model().config.layers, CONTEXT)
    taken = [0]

    def consume(self: Any, token: int) -> None:
        taken[0] += 1
        if taken[0] % 3 == 0:
            raise GrammarFailedError("the answer can't go on in its grammar")

    monkeypatch.setattr("ayllu.engine.grammar.Matcher.consume", consume)
    return Engine(Decoder(config).requires_grad_(False), tokenizer=tokenizer)


ANY = Grammar("regex", "[a-z ]{50}")


def test_a_grammar_that_cannot_go_on_is_an_error_and_no_short_answer(failing: Engine) -> None:
    with failing:
        prompt = failing.tokenizer.encode("abc")
        with pytest.raises(GrammarFailedError, match="can't go on"):
            failing.generate([prompt], max_tokens=20, grammar=ANY)
        with pytest.raises(GrammarFailedError):
            list(failing.stream("abc", max_tokens=20, grammar=ANY))
        (plain,) = failing.generate([prompt], max_tokens=4)
        assert len(plain.token_ids) == 4, "and the next is served"


def test_in_a_conversation_too(failing: Engine) -> None:
    with failing:
        chat, params = Chat(failing.tokenizer), SamplingParams(max_tokens=20, grammar=ANY, seed=1)
        start = chat.start("abc")
        with pytest.raises(GrammarFailedError):
            list(answer_stream(failing, chat, start, Toolbox(), params))
        (answer,) = answer_batch(failing, chat, [start], Toolbox(), params)
        assert answer.finish_reason == "error", "of many one may fail"


# ---- sampling
def test_top_p_is_of_what_a_large_top_k_leaves() -> None:
    """Of 5,000 equal tokens 2,000 stay by top-k, and a tenth of these by top-p."""
    logits = torch.zeros(1, 5000)
    cuts.cut(logits, [SamplingParams(top_k=2000, top_p=0.1)])
    assert int(torch.isfinite(logits).sum()) == 200
    mixed = torch.zeros(2, 5000)
    cuts.cut(mixed, [SamplingParams(top_k=2000, top_p=0.1), SamplingParams(top_k=20)])
    assert torch.isfinite(mixed).sum(-1).tolist() == [200, 20]


# ---- weights that were taken for the same
@needs_native
def test_biases_are_part_of_the_weights() -> None:
    layer = LayerSpec(AttentionSpec(4, 2, 12, RopeSpec(12, 1e4), bias=True), MLPSpec(80))
    model = Decoder(ModelConfig(48, VOCABULARY, (layer,), CONTEXT)).initialise(0).requires_grad_(False)
    other = copy.deepcopy(model)
    named = [name for name, _ in other.named_parameters() if name.endswith("bias")]
    assert named
    other.get_parameter(named[0]).add_(1.0)
    prints = {make_executor(m, "float32").fingerprint for m in (model, other, copy.deepcopy(model))}
    assert len(prints) == 2


def test_buffers_are_refreshed_too() -> None:
    """A router's choice of experts is one."""
    moe = MoESpec(4, 2, 16, router="sigmoid", choice_bias=True)
    layer = LayerSpec(AttentionSpec(4, 2, 12, RopeSpec(12, 1e4)), moe)
    model = Decoder(ModelConfig(48, VOCABULARY, (layer,), CONTEXT)).initialise(0).requires_grad_(False)
    executor = TorchExecutor(model, torch.bfloat16)
    name, buffer = next((n, b) for n, b in model.named_buffers() if "choice_bias" in n)
    buffer.add_(3.0)
    executor.refresh()
    assert torch.equal(dict(executor.model.named_buffers())[name].float(), buffer.float())


# ---- what is asked for wrongly
def test_an_engine_for_nobody_is_refused() -> None:
    with pytest.raises(RequestError, match="max_sequences"):
        Engine(make_model(), max_sequences=0)


@needs_native
def test_packed_weights_are_not_run_as_something_else() -> None:
    packed = pack_model(make_model(), "int8")
    for asked in ({"weights": "float32"}, {"device": "cuda"}):
        with pytest.raises(RequestError, match="packed weights"):
            make_executor(packed, **asked)
    assert make_executor(packed, "int8").name == make_executor(packed).name


def test_a_prompt_of_one_token_has_its_place_in_the_log_probabilities() -> None:
    with Engine(make_model()) as engine:
        (done,) = engine.generate([[5]], max_tokens=2, temperature=0, prompt_logprobs=True)
        assert done.prompt_logprobs == [None]


def test_guesses_that_are_no_tokens_cost_nothing_but_time() -> None:
    prompt = [3, 1, 4, 1, 5]
    with Engine(make_model()) as engine:
        (plain,) = engine.generate([prompt], max_tokens=24, temperature=0)

    class Wild(Guess):
        def draft(self, wanted: Any) -> list[list[int]]:
            return [[*ids[:1], VOCABULARY + 7, -1] for ids in super().draft(wanted)]

    drafter = Wild({tuple(prompt): plain.token_ids})
    with Engine(make_model(), speculate=drafter) as engine:
        (guessed,) = cheaply(engine).generate([prompt], max_tokens=24, temperature=0)
        assert guessed.token_ids == plain.token_ids and drafter.asked and engine.stats().accepted
