"""A turn and its tools: valid calls by construction where asked for, limits, records, replay."""

import itertools
import json
import threading
import time

import pytest
import torch
from scripted_engine import Params, ScriptedEngine

from ayllu.engine.engine import Engine
from ayllu.engine.request import SamplingParams
from ayllu.errors import RequestError
from ayllu.model.config import ModelSettings
from ayllu.model.decoder import Decoder
from ayllu.reason.loop import answer_batch, answer_stream, held_to_tools
from ayllu.reason.transcript import Chat, Kind
from ayllu.text.tokenizer import train_tokenizer
from ayllu.tools.ask_user import ask_user_tool
from ayllu.tools.calculator import CALCULATOR
from ayllu.tools.clock import clock_tool
from ayllu.tools.session import AGAIN, Rules, Session
from ayllu.tools.tool import WAITING, Tool, Toolbox, ToolError

CHAT = Chat(train_tokenizer(iter(['What is 12 + 3? calculator {"expression":"12+3"} pick {"n":1}']), 300))
WORD = {"type": "string", "maxLength": 6}
PICK = {
    "type": "object",
    "properties": {
        "n": {"type": "integer", "minimum": -3, "maximum": 12},
        "how": {"type": "string", "enum": ["fast", "slow (really)", "నెమ్మది"]},
        "x": {"type": "number", "minimum": 0, "maximum": 2},
        "word": WORD,
        "sure": {"type": "boolean"},
    },
    "required": ["n"],
}
SHORT = {"type": "object", "properties": {"expression": WORD}, "required": ["expression"]}
BOX = Toolbox(
    [
        Tool("calculator", "", SHORT, CALCULATOR.run),
        Tool("pick", "(a {99999} [description", PICK, lambda arguments: str(arguments["n"])),
        Tool("now", "", {"type": "object", "properties": {}}, lambda _: "noon", varies=True),
    ]
)
STARTS = [CHAT.start(f"What is {n} + {n * n}?", tools=BOX.names) for n in range(16)]
OPEN = CHAT.tokenizer.control["<|tool|>"]
PARAMS = SamplingParams(max_tokens=150, seed=1, logit_bias=((OPEN, 4.0),))


@pytest.fixture(scope="module")
def model():
    """A random decoder: it knows nothing of names or schemas."""
    torch.manual_seed(0)
    decoder = Decoder(ModelSettings(width=32, layers=2, head_dim=16, context=256).config(300)).float().eval()
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.3)
    return decoder


def answers(model, **options):
    with Engine(model, tokenizer=CHAT.tokenizer, max_sequences=16) as engine:
        return answer_batch(engine, CHAT, STARTS, BOX, PARAMS, **options)


def sampled(answer):
    """The ids that the model wrote."""
    return [i for i, own in zip(answer.transcript.ids(), answer.transcript.sampled(), strict=True) if own]


# ---- constrained calls
def test_a_model_that_knows_nothing_makes_valid_calls_only(model):
    held = answers(model, constrain=True)
    records = [record for answer in held for record in answer.records]
    assert len(records) > 30 and {record.name for record in records} == set(BOX.names)
    assert all(record.valid for record in records)
    assert sum(answer.calls for answer in held) == sum(answer.valid_calls for answer in held) == len(records)
    for record in records:
        values = json.loads(record.arguments)
        names = list(BOX.by_name[record.name].parameters["properties"])
        assert list(values) == [name for name in names if name in values], "in the order of the schema"
    free = answers(model)
    assert sum(answer.calls for answer in free) > 5 and sum(answer.valid_calls for answer in free) == 0


def test_log_probabilities_stay_the_models_own(model):
    for answer in answers(model, constrain=True)[:6]:
        ids, mask = answer.transcript.ids(), answer.transcript.sampled()
        with torch.no_grad():
            logprobs_TV = torch.log_softmax(model(torch.tensor([ids]))[0].float(), -1)
        replayed = [float(logprobs_TV[at - 1, ids[at]]) for at in range(1, len(ids)) if mask[at]]
        assert replayed == pytest.approx(answer.logprobs, abs=3e-4)


def test_guessing_ahead_makes_no_difference(model):
    with Engine(model, tokenizer=CHAT.tokenizer, max_sequences=4, speculate="ngram") as engine:
        guessed = answer_batch(engine, CHAT, STARTS[:4], BOX, PARAMS, constrain=True)
        assert engine.stats().drafted > 0
    assert [a.transcript for a in guessed] == [a.transcript for a in answers(model, constrain=True)[:4]]


def test_without_being_asked_nothing_is_held(model):
    """Training's way through the loop asks the engine for what it always did."""
    engine = ScriptedEngine(lambda prompt: [CHAT.end])
    answer_batch(engine, CHAT, STARTS[:1], BOX, Params())
    assert engine.submitted[0].params.enclosed is None
    assert held_to_tools(PARAMS, CHAT, BOX).enclosed.open_id == OPEN


def test_where_no_tool_is_on_offer_no_call_is_written(model):
    with Engine(model, tokenizer=CHAT.tokenizer, max_sequences=16) as engine:
        none = answer_batch(engine, CHAT, STARTS, Toolbox(), PARAMS, constrain=True)
    assert all(OPEN not in sampled(answer) and answer.calls == 0 for answer in none)
    assert any(OPEN in sampled(answer) for answer in answers(model)), "it wants to"


def test_after_the_last_call_that_it_may_make_it_makes_none(model):
    held = answers(model, constrain=True, rules=Rules(max_calls=1))
    assert sum(answer.calls for answer in held) > 5
    assert all(sampled(answer).count(OPEN) <= 1 for answer in held)
    none = answers(model, constrain=True, rules=Rules(max_calls=0))
    assert all(OPEN not in sampled(answer) for answer in none)


# ---- rules
def in_turn(*texts):
    """Calls and at last an answer, one after the other."""
    result = CHAT.tokenizer.control["<|result|>"]
    spans = [list(CHAT.span(Kind.CALL, text).ids) for text in texts] + [list(CHAT.span(Kind.SAY, "ok").ids)]
    return lambda prompt: spans[min(prompt.count(result), len(texts))]


def run(*texts, box, **options):
    events = list(
        answer_stream(
            ScriptedEngine(in_turn(*texts), context_length=900), CHAT, STARTS[0], box, Params(), **options
        )
    )
    return events[-1].answer, [event.text for event in events if event.kind == "result"], events


def counting(name="count", **options):
    """A tool that tells how often it has been run."""
    numbers = itertools.count(1)
    schema = {"type": "object", "properties": {"a": WORD, "b": WORD}}
    return Tool(name, "", schema, lambda _: str(next(numbers)), **options)


SAME = ['count {"a":"x","b":"y"}', 'count {"b":"y", "a":"x"}', 'count {"a":"x"}']


def test_the_same_call_again_gets_the_first_result_and_a_note():
    _, results, _ = run(*SAME, SAME[0], box=Toolbox([counting()]), rules=Rules(once=True))
    assert results == ["1", "1" + AGAIN, "2", "1" + AGAIN]
    _, results, _ = run(*SAME, SAME[0], box=Toolbox([counting()]))
    assert results == ["1", "2", "3", "4"]  # unless it is asked for, every call is run
    _, results, _ = run(*SAME[:2], box=Toolbox([counting(varies=True)]), rules=Rules(once=True))
    assert results == ["1", "2"]


def test_what_changes_something_is_not_done_twice_and_a_no_is_not_asked_again():
    asked = []
    box = Toolbox([counting(changes_something=True)], confirm=lambda *_: asked.append(1) or len(asked) > 1)
    _, results, _ = run(SAME[0], SAME[0], SAME[2], SAME[2], box=box, rules=Rules(once=True))
    no = "error: count was not confirmed by the user"
    assert results == [no, no + AGAIN, "1", "1" + AGAIN] and len(asked) == 2


def test_what_failed_may_be_tried_again():
    """By the same call: a service that was down, a limit that was short. What isn't well formed may not."""
    tries = itertools.count(1)

    def flaky(_):
        if next(tries) == 1:
            raise ToolError("the service is down")
        return "it is up"

    box = Toolbox([Tool("flaky", "", {"type": "object", "properties": {}}, flaky)])
    _, results, _ = run("flaky {}", "flaky {}", "flaky {}", box=box, rules=Rules(once=True))
    assert results == ["error: the service is down", "it is up", "it is up" + AGAIN]
    wrong = 'flaky {"b":1}'
    _, results, _ = run(wrong, wrong, box=box, rules=Rules(once=True))
    assert results[0].startswith("error: ") and results[1] == results[0] + AGAIN


def test_what_failed_while_it_changed_something_is_not_done_again():
    def pay(_):
        raise ToolError("no answer from the bank")

    tool = Tool("pay", "", {"type": "object", "properties": {}}, pay, changes_something=True)
    _, results, _ = run(
        "pay {}", "pay {}", box=Toolbox([tool], confirm=lambda *_: True), rules=Rules(once=True)
    )
    assert results == ["error: no answer from the bank", "error: no answer from the bank" + AGAIN]


def test_a_user_may_take_long_to_confirm():
    """The wait is no tool's, whether the answer is yes or no."""
    answers = iter([True, False])

    def confirm(*_):
        time.sleep(0.3)
        return next(answers)

    session = Session(Toolbox([counting(changes_something=True)], confirm=confirm), Rules(seconds=0.25))
    assert session.run("count", '{"a":"x"}').text == "1"
    assert "not confirmed" in session.run("count", '{"a":"y"}').text
    assert session.spent < 0.2 and all(record.seconds < 0.2 for record in session.records)


def test_calls_and_their_time_are_limited():
    _, results, _ = run(*SAME, box=Toolbox([counting()]), rules=Rules(max_calls=2))
    assert results == ["1", "2", "error: no more calls"]
    answer, results, _ = run(*SAME, box=Toolbox([counting()]), rules=Rules(seconds=0.0))
    assert results == ["error: all 0 s for calls are used up"] * 3 and answer.calls == 0
    release = threading.Event()
    slow = Tool("slow", "", {"type": "object", "properties": {}}, lambda _: str(release.wait(5)))
    _, results, _ = run("slow {}", box=Toolbox([slow]), rules=Rules(call_seconds=0.05))
    release.set()
    assert results == ["error: slow took longer than 0.05 s"]


def test_a_user_may_take_long_to_answer():
    """And the wait is no tool's: what is left for the others stays as it was."""
    threads = []
    box = Toolbox([ask_user_tool(lambda _: threads.append(threading.current_thread()) or "red"), counting()])
    minutes = itertools.count()
    rules = Rules(seconds=60.0, call_seconds=60.0)
    session = Session(box, rules, clock=lambda: 60.0 * next(minutes))
    assert session.run("ask_user", '{"question":"Which?"}').text == "red"
    assert threads == [threading.current_thread()], "nobody waits for it with a timer"
    assert session.run("count", "{}").text == "1" and session.records[0].seconds == 0.0
    assert "used up" in session.run("count", "{}").text


def test_half_a_character_is_an_error_for_the_model():
    """JSON can write one, and what a tool says of it goes back into the conversation."""
    for call in ('clock {"zone":"\\ud800"}', 'clock {"\\ud800":"1"}'):
        answer, (result,), _ = run(call, box=Toolbox([clock_tool()]))
        assert result.startswith("error: ") and "?" in result and answer.finish_reason == "stop"


def test_a_question_ends_the_turn_and_the_answer_is_the_next_message():
    box = Toolbox([ask_user_tool()])
    answer, results, events = run('ask_user {"question":"Which one?"}', box=box)
    assert results == [WAITING] and answer.told == "Which one?" and answer.finish_reason == "stop"
    assert [event.text for event in events if event.kind == "say"] == ["Which one?"]
    assert answer.transcript.spans[-1].kind == Kind.RESULT
    following = CHAT.add(answer.transcript, Kind.USER, "the red one")
    assert following.ids()[: len(answer.transcript.ids())] == answer.transcript.ids()
    answer, results, _ = run('ask_user {"question":"Which?"}', box=Toolbox([ask_user_tool(lambda _: "red")]))
    assert results == ["red"] and answer.told == "" and CHAT.answer(answer.transcript) == "ok"


# ---- replay
def test_a_turn_is_replayed_from_its_records(model):
    """The tool would give something else now; the same conversation comes out all the same."""
    box = Toolbox([counting("now", varies=True), *BOX.only(["calculator", "pick"]).tools])
    with Engine(model, tokenizer=CHAT.tokenizer) as engine:

        def turn(seed, **options):
            params = SamplingParams(max_tokens=150, seed=seed, logit_bias=((OPEN, 4.0),))
            return list(answer_stream(engine, CHAT, STARTS[0], box, params, constrain=True, **options))[
                -1
            ].answer

        seed = next(seed for seed in range(20) if any(r.name == "now" for r in turn(seed).records))
        first = turn(seed)
        assert turn(seed).transcript != first.transcript, "the tool counts on"
        again = turn(seed, recorded=first.records)
        assert again == first


def test_a_turn_that_ran_out_of_time_is_replayed():
    box, rules = Toolbox([counting()]), Rules(seconds=60.0)
    minutes = itertools.count()
    session = Session(box, rules, clock=lambda: 60.0 * next(minutes))
    calls = [("count", '{"a":"x"}'), ("count", '{"a":"y"}')]
    first = [session.run(*call) for call in calls]
    assert [result.text for result in first] == ["1", "error: all 60 s for calls are used up"]
    again = Session(Toolbox(), rules, recorded=session.records)
    assert [again.run(*call) for call in calls] == first


def test_another_turn_is_not_replayed():
    answer, _, _ = run(*SAME, box=Toolbox([counting()]))
    for texts, why in (
        (["count {}"], "other arguments"),
        (["now {}"], "it is to now"),
        ([*SAME, SAME[0]], "one more"),
    ):
        with pytest.raises(RequestError, match=why):
            run(*texts, box=Toolbox(), recorded=answer.records)
    _, results, _ = run(*SAME, box=Toolbox(), recorded=answer.records)
    assert results == ["1", "2", "3"]
