"""A bound on thinking as users ask for it: kept over a whole answer, told to models that know of it."""

import json

import pytest
import torch
from scripted_engine import ScriptedEngine

from ayllu.engine.engine import Engine
from ayllu.engine.request import SamplingParams
from ayllu.errors import BadFileError, RequestError
from ayllu.evals.evaluation import evaluate_model
from ayllu.evals.examine import ExamSettings
from ayllu.model.config import ModelSettings
from ayllu.model.decoder import Decoder
from ayllu.model.weights import save_model
from ayllu.reason.loop import answer_batch, answer_stream
from ayllu.reason.thinking import MOST, bounded, mark_taught, taught, told
from ayllu.reason.transcript import Chat, Kind
from ayllu.talk import load_talk
from ayllu.terminal import one_answer
from ayllu.text.tokenizer import train_tokenizer
from ayllu.tools.calculator import CALCULATOR
from ayllu.tools.tool import Toolbox

CHAT = Chat(train_tokenizer(iter(['What is 12 + 3? calculator {"expression":"12+3"} think: 16'] * 9), 320))
CONTROL = CHAT.tokenizer.control
OPENS, CLOSES = CHAT.thought
START = CHAT.start("What is 12 + 3?")
# It would think for ever.
EAGER = SamplingParams(
    max_tokens=60, seed=3, logit_bias=((OPENS, 30.0), (CLOSES, -50.0), (CONTROL["<|end|>"], -50.0))
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = ModelSettings(width=32, layers=1, head_dim=16, context=256).config(CHAT.tokenizer.vocab_size)
    return Decoder(config).initialise(0).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_model(model, folder, bos=CONTROL["<|bos|>"], eos=CONTROL["<|end|>"], pad=CONTROL["<|pad|>"])
    CHAT.tokenizer.save(folder)
    return folder


@pytest.mark.parametrize("budget", [0, 1, 7, 20])
def test_no_more_is_thought_than_the_budget(model, budget):
    with Engine(model, tokenizer=CHAT.tokenizer, max_sequences=4) as engine:
        params = bounded(EAGER, CHAT, START, budget)
        free, held = (answer_batch(engine, CHAT, [START], Toolbox(), p)[0] for p in (EAGER, params))
    assert free.thinking_tokens == 60
    thought = [span for span in held.transcript.spans if span.kind == Kind.THINK]
    assert all(len(span.ids) == budget + 2 and span.ids[-1] == CLOSES for span in thought[:1]), (
        "and is closed"
    )
    assert held.thinking_tokens == (budget + 2 if thought else 0) and bool(thought) == (budget > 0)


def test_what_was_thought_before_a_call_counts():
    calls = CHAT.span(Kind.CALL, 'calculator {"expression":"12+3"}').ids
    thought, said = CHAT.span(Kind.THINK, "12+3").ids, CHAT.span(Kind.SAY, "15").ids
    result = CONTROL["<|result|>"]
    engine = ScriptedEngine(lambda prompt: list(said if prompt.count(result) > 1 else (*thought, *calls)))
    params = bounded(SamplingParams(max_tokens=99), CHAT, START, 10)
    list(answer_stream(engine, CHAT, START, Toolbox([CALCULATOR]), params))
    spent = len(thought) - 2  # the control tokens are free
    assert [s.params.thinking.maximum for s in engine.submitted] == [10, 10 - spent, max(0, 10 - 2 * spent)]


def test_budgets_that_are_none():
    for budget in (-1, MOST + 1):
        with pytest.raises(RequestError, match="thinking budget"):
            bounded(SamplingParams(), CHAT, START, budget)
    assert bounded(EAGER, CHAT, START, None) is EAGER

    class Plain:
        thought = None

    with pytest.raises(RequestError, match="can't be bounded"):
        bounded(SamplingParams(), Plain(), START, 5)


def test_a_system_turn_says_it_in_its_last_line():
    user = {"role": "user", "content": "hi"}
    assert told([user], 16) == [{"role": "system", "content": "think: 16"}, user]
    both = [{"role": "developer", "content": "Be kind."}, user]
    assert told([{"role": "system", "content": ""}, user], 5)[0]["content"] == "think: 5"
    assert told(both, 0) == [{"role": "developer", "content": "Be kind.\nthink: 0"}, user]


def test_only_a_model_that_was_taught_is_told(folder, tmp_path):
    assert not taught(folder)
    (tmp_path / "generation_config.json").write_text('{"do_sample": false}')
    mark_taught(tmp_path)
    assert taught(tmp_path)
    kept = json.loads((tmp_path / "generation_config.json").read_text())
    assert kept == {"do_sample": False, "thinking_budgets": True}
    (tmp_path / "generation_config.json").write_text("[")
    with pytest.raises(BadFileError):
        taught(tmp_path)


def talk(folder, **options):
    usual = {"tools": False, "max_tokens": 40, "temperature": 0.0, "seed": 1}
    return load_talk(folder, **(usual | options))


def test_run_and_chat_keep_it(folder, tmp_path):
    with talk(folder, budget=5) as here:
        begun = here.begin("What is 12 + 3?")
        assert here.bounded(begun).thinking.maximum == 5
        assert not any(span.kind == Kind.SYSTEM for span in begun.spans)
        assert one_answer(here, "What is 12 + 3?", silent=True)["thinking_tokens"] <= 7
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    mark_taught(tmp_path)
    with talk(tmp_path, budget=5) as here:
        assert CHAT.text(here.begin("Hi").spans[0]) == "think: 5"
    with talk(tmp_path) as here:
        assert not any(span.kind == Kind.SYSTEM for span in here.begin("Hi").spans)


def test_an_examination_keeps_it(folder):
    def thought(budget):
        settings = ExamSettings(n=4, max_tokens=30, thinking_budget=budget)
        return evaluate_model(folder, ["arithmetic"], data=None, settings=settings, quiet=True)["results"][
            "arithmetic"
        ]

    assert thought(3)["sampling"]["thinking_budget"] == 3
    assert "thinking_budget" not in thought(None)["sampling"]
