"""The loop over the real engine: a transcript, replayed through the decoder, gives the log-probabilities
that the engine reported, across tool results and whatever else shared the batch."""

import copy

import pytest
import torch
from family_templates import FAMILIES, family_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ayllu.engine.engine import Engine
from ayllu.engine.request import SamplingParams
from ayllu.model.config import ModelSettings
from ayllu.model.decoder import Decoder
from ayllu.reason.foreign import chat_of
from ayllu.reason.loop import answer_batch, answer_stream
from ayllu.reason.thinking import bounded
from ayllu.reason.transcript import Chat, Kind
from ayllu.text.tokenizer import Tokenizer, train_tokenizer
from ayllu.tools.calculator import CALCULATOR
from ayllu.tools.tool import Toolbox

CHAT = Chat(train_tokenizer(iter(['What is 12 + 3? calculator {"expression":"12+3"}']), 300))
BOX = Toolbox([CALCULATOR])
STARTS = [CHAT.start(f"What is {n} + {n * n}?", tools=BOX.names) for n in range(12)]


def random_decoder(vocabulary, context):
    """Weights so large that it says a bit of everything."""
    torch.manual_seed(0)
    shape = ModelSettings(width=32, layers=2, head_dim=16, context=context)
    decoder = Decoder(shape.config(vocabulary)).float().eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.3)
    return decoder


@pytest.fixture(scope="module")
def model():
    """A random decoder that ends its call often, so that most answers have several stretches."""
    return random_decoder(300, 256)


def answers(model, seed, slots):
    with Engine(model, max_sequences=slots) as engine:
        return answer_batch(engine, CHAT, STARTS, BOX, SamplingParams(max_tokens=150, seed=seed))


def test_replay_gives_the_reported_log_probabilities(model):
    stretches = 0
    for answer in answers(model, 1, 8):
        ids, mask = answer.transcript.ids(), answer.transcript.sampled()
        with torch.no_grad():
            logits_TV = model(torch.tensor([ids]))[0].float()
        logprobs_TV = torch.log_softmax(logits_TV, -1)
        replayed = [float(logprobs_TV[at - 1, ids[at]]) for at in range(1, len(ids)) if mask[at]]
        assert replayed == pytest.approx(answer.logprobs, abs=2e-4)
        stretches += sum(span.kind == Kind.RESULT for span in answer.transcript.spans)
    assert stretches >= 3, "some answers went on after a tool result"


def rounded(model):
    """The model whose weights are those that an engine with bfloat16 weights holds."""
    copy_ = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copy_.parameters():
            parameter.copy_(parameter.bfloat16().float())
    return copy_


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**40),
    temperature=st.sampled_from([0.4, 1.0, 1.7]),
    slots=st.integers(1, 6),
    weights=st.sampled_from(["float32", "bfloat16"]),
    speculate=st.sampled_from([None, "ngram"]),
    constrain=st.booleans(),
    budget=st.one_of(st.none(), st.integers(0, 12)),
    again=st.booleans(),
)
def test_replay_whatever_was_asked_for(
    model, seed, temperature, slots, weights, speculate, constrain, budget, again
):
    """Any seed and temperature, weights, guesses ahead, calls held to schemas, bounded thinking, a prefix
    that is in the cache already: what the engine reports is the model's own log-probability."""
    params = SamplingParams(max_tokens=60, seed=seed, temperature=temperature)
    params = bounded(params, CHAT, STARTS[0], budget)
    with Engine(
        model, weights=weights, max_sequences=slots, speculate=speculate, tokenizer=CHAT.tokenizer
    ) as engine:
        found = answer_batch(engine, CHAT, STARTS[:3], BOX, params, constrain=constrain)
        if again:
            found = answer_batch(engine, CHAT, STARTS[:3], BOX, params, constrain=constrain)
    judge, near = (model, 3e-4) if weights == "float32" else (rounded(model), 0.05)
    for answer in found:
        ids, mask = answer.transcript.ids(), answer.transcript.sampled()
        assert sum(mask) == answer.tokens == len(answer.logprobs)
        with torch.no_grad():
            logprobs_TV = torch.log_softmax(judge(torch.tensor([ids]))[0].float(), -1)
        replayed = [float(logprobs_TV[at - 1, ids[at]]) for at in range(1, len(ids)) if mask[at]]
        assert replayed == pytest.approx(answer.logprobs, abs=near)


def test_replay_of_another_familys_format(tmp_path):
    """The same for a model with a template of its own, whose calls are broken but answered."""
    chat = chat_of(family_folder(tmp_path, *FAMILIES["qwen"]), Tokenizer.load(tmp_path))
    decoder = random_decoder(chat.tokenizer.vocab_size, 640)
    control = chat.tokenizer.control
    pushed = ((control["<tool_call>"], 8.0), (control["</tool_call>"], 4.0), (control["<|im_end|>"], 2.0))
    params = SamplingParams(max_tokens=60, seed=5, logit_bias=pushed)
    starts = [chat.start(f"What is {n} + {n}?", tools=BOX.tools) for n in range(6)]
    with Engine(decoder, max_sequences=4) as engine:
        found = answer_batch(engine, chat, starts, BOX, params)
        streamed = list(answer_stream(engine, chat, starts[0], BOX, params))[-1].answer
    assert streamed.transcript == found[0].transcript
    for start, answer in zip(starts, found, strict=True):
        ids, mask = answer.transcript.ids(), answer.transcript.sampled()
        assert ids[: len(start.ids())] == start.ids() and sum(mask) == answer.tokens
        with torch.no_grad():
            logprobs_TV = torch.log_softmax(decoder(torch.tensor([ids]))[0].float(), -1)
        replayed = [float(logprobs_TV[at - 1, ids[at]]) for at in range(1, len(ids)) if mask[at]]
        assert replayed == pytest.approx(answer.logprobs, abs=2e-4)
    assert sum(answer.calls for answer in found) >= 3, "some answers went on after a result"


def test_an_answer_does_not_depend_on_who_shares_the_batch(model):
    together, alone = answers(model, 2, 12), answers(model, 2, 1)
    assert [a.transcript for a in together] == [a.transcript for a in alone]
    assert len({tuple(a.transcript.ids()[-20:]) for a in together}) > 6, "the answers differ from each other"


def test_streamed_and_batched_are_the_same_answer(model):
    params = SamplingParams(max_tokens=100, seed=3)
    with Engine(model) as engine:
        (batched,) = answer_batch(engine, CHAT, STARTS[:1], BOX, params)
        streamed = list(answer_stream(engine, CHAT, STARTS[0], BOX, params))[-1].answer
        assert not engine.busy
    assert streamed.transcript == batched.transcript


def test_closing_a_stream_frees_the_engine(model):
    with Engine(model) as engine:
        stream = answer_stream(engine, CHAT, STARTS[0], BOX, SamplingParams(seed=4))
        next(stream)
        assert engine.busy
        stream.close()
        assert not engine.busy
