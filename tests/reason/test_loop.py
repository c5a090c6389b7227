"""The tool-use loop over an engine that follows a script."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_engine import Params, ScriptedEngine

from ayllu.errors import ContextLengthError, QueueFullError
from ayllu.reason.loop import answer_batch, answer_stream
from ayllu.reason.transcript import Chat, Kind, call_text
from ayllu.text.tokenizer import train_tokenizer
from ayllu.tools.calculator import CALCULATOR
from ayllu.tools.tool import Tool, Toolbox

TEXTS = [
    "calculator expression What is 12+30? The answer is నమస్కారం! Grüße 0123456789",
    'calculator {"expression":"12+30"}',
]
CHAT = Chat(train_tokenizer(iter(TEXTS), 320))
BOX = Toolbox([CALCULATOR])
START = CHAT.start("What is 12+30?", tools=BOX.names)


def ids(kind: Kind, text: str) -> list[int]:
    return list(CHAT.span(kind, text).ids)


def call(expression: str) -> list[int]:
    return ids(Kind.CALL, call_text("calculator", {"expression": expression}))


def in_turn(*replies: list[int]):
    """One reply after another for a single conversation: as many results as were read so far."""
    result = CHAT.tokenizer.control["<|result|>"]
    return lambda prompt: replies[min(prompt.count(result), len(replies) - 1)]


def run(reply, *, box=BOX, params=None, start=START, **engine_options):
    engine = ScriptedEngine(reply, **engine_options)
    (answer,) = answer_batch(engine, CHAT, [start], box, params or Params())
    return answer, engine


def spans(answer):
    return [
        (span.kind, CHAT.text(span), span.sampled) for span in answer.transcript.spans[len(START.spans) :]
    ]


def test_think_call_result_answer():
    think = ids(Kind.THINK, "use it")
    said = ids(Kind.SAY, "42")
    answer, engine = run(in_turn(think + call("12+30"), said))
    assert spans(answer) == [
        (Kind.THINK, "use it", True),
        (Kind.CALL, 'calculator {"expression":"12+30"}', True),
        (Kind.RESULT, "42", False),
        (Kind.SAY, "42", True),
    ]
    assert (answer.finish_reason, answer.calls, answer.valid_calls) == ("stop", 1, 1)
    assert answer.tokens == len(think) + len(call("12+30")) + len(said) == len(answer.logprobs)
    assert answer.thinking_tokens == len(think)
    assert CHAT.answer(answer.transcript) == "42"
    # What the engine saw last plus what it then sampled is exactly the transcript.
    assert engine.submitted[-1].prompt + engine.submitted[-1].token_ids == answer.transcript.ids()
    assert sum(answer.transcript.sampled()) == answer.tokens


token_lists = st.lists(st.integers(0, CHAT.tokenizer.vocab_size - 1), max_size=30)


@given(st.lists(token_lists, min_size=1, max_size=4), st.integers(1, 60))
def test_sampled_ids_are_kept_whatever_they_are(replies, budget):
    answer, engine = run(in_turn(*replies), params=Params(max_tokens=budget), context_length=400)
    sampled = [i for sequence in engine.submitted for i in sequence.token_ids]
    marked = zip(answer.transcript.ids(), answer.transcript.sampled(), strict=True)
    assert [i for i, by_model in marked if by_model] == sampled
    assert answer.tokens == len(sampled) == len(answer.logprobs) <= budget
    assert answer.logprobs == tuple(p for sequence in engine.submitted for p in sequence.logprobs)
    assert answer.finish_reason in ("stop", "length")
    assert answer.valid_calls <= answer.calls <= 8
    assert len(answer.transcript.ids()) <= 400 + 64  # a last result may pass the end, sampling never does


@given(st.lists(token_lists, min_size=1, max_size=3))
def test_streamed_text_is_the_transcripts_text(replies):
    engine = ScriptedEngine(in_turn(*replies), context_length=400)
    events = list(answer_stream(engine, CHAT, START, BOX, Params(max_tokens=80)))
    assert [event.kind for event in events].count("done") == 1 and events[-1].kind == "done"
    batch, _ = run(in_turn(*replies), params=Params(max_tokens=80), context_length=400)
    assert events[-1].answer == batch
    for kind, event_kind in ((Kind.CALL, "call"), (Kind.RESULT, "result")):
        streamed = "".join(event.text for event in events if event.kind == event_kind)
        whole = "".join(text for k, text, _ in spans(batch) if k == kind)
        if "\ufffd" not in streamed + whole:  # random ids may cut a character across spans
            assert streamed == whole


def test_stream_gives_whole_characters_by_kind():
    engine = ScriptedEngine(in_turn(ids(Kind.THINK, "Grüße") + call("1+1"), ids(Kind.SAY, "నమస్కారం!")))
    events = list(answer_stream(engine, CHAT, START, BOX, Params()))
    assert all("\ufffd" not in event.text for event in events)
    assert "".join(event.text for event in events if event.kind == "think") == "Grüße"
    assert "".join(event.text for event in events if event.kind == "say") == "నమస్కారం!"
    assert [event.text for event in events if event.kind == "result"] == ["2"]
    order = [event.kind for event in events]
    assert order.index("think") < order.index("call") < order.index("result") < order.index("say")
    assert order.count("say") > 1, "text comes while it is made, not at the end"


def test_closing_the_stream_cancels():
    engine = ScriptedEngine(in_turn(ids(Kind.SAY, "a long answer")))
    stream = answer_stream(engine, CHAT, START, BOX, Params())
    next(stream)
    stream.close()
    assert engine.cancelled == [0] and not engine.live


@pytest.mark.parametrize(
    ("written", "result", "valid"),
    [
        (call("1/0"), "error: division by zero", 1),
        (ids(Kind.CALL, 'clock {"zone":"UTC"}'), "error: there is no tool clock; tools: calculator", 0),
        (ids(Kind.CALL, 'calculator {"expression":'), "error: the arguments are not valid JSON", 0),
        (ids(Kind.CALL, 'calculator {"number":2}'), "error: the argument expression is missing", 0),
        (ids(Kind.CALL, "calculator"), "error: the arguments are not valid JSON", 0),
        ([*ids(Kind.THINK, "hm"), CHAT.call_end], "error: not a call", 0),
    ],
)
def test_a_bad_call_is_answered_with_an_error_and_the_model_goes_on(written, result, valid):
    answer, _ = run(in_turn(written, ids(Kind.SAY, "sorry")))
    assert [text for kind, text, _ in spans(answer) if kind == Kind.RESULT] == [result]
    assert (answer.calls, answer.valid_calls, answer.finish_reason) == (1, valid, "stop")
    assert CHAT.answer(answer.transcript) == "sorry"


def test_calls_are_limited():
    engine = ScriptedEngine(in_turn(*[call("1+1")] * 4, ids(Kind.SAY, "2")))
    (answer,) = answer_batch(engine, CHAT, [START], BOX, Params(), max_calls=3)
    assert [text for kind, text, _ in spans(answer) if kind == Kind.RESULT] == [
        "2",
        "2",
        "2",
        "error: no more calls",
    ]
    assert (answer.calls, answer.valid_calls) == (3, 3)


def test_a_model_that_only_calls_ends_at_the_context():
    answer, engine = run(in_turn(call("1+1")), context_length=300)
    assert answer.finish_reason == "length" and answer.calls == 8
    assert all(len(s.prompt) + len(s.token_ids) <= 300 for s in engine.submitted)


def test_max_tokens_is_for_the_whole_turn():
    first = call("12+30")
    answer, engine = run(
        in_turn(first, ids(Kind.SAY, "42 and more words")), params=Params(max_tokens=len(first) + 3)
    )
    assert [s.params.max_tokens for s in engine.submitted] == [len(first) + 3, 3]
    assert (answer.finish_reason, answer.tokens) == ("length", len(first) + 3)
    assert CHAT.answer(answer.transcript) is None
    exact, engine = run(in_turn(first), params=Params(max_tokens=len(first)))
    assert (exact.finish_reason, len(engine.submitted)) == ("length", 1)


def test_a_long_result_that_fills_the_context_ends_the_turn():
    flood = Tool("flood", "", {"type": "object", "properties": {}}, lambda _: "x" * 900)
    written = ids(Kind.CALL, "flood {}")
    answer, engine = run(in_turn(written), box=Toolbox([flood]), context_length=200)
    assert answer.finish_reason == "length" and len(engine.submitted) == 1


def test_a_prompt_that_does_not_fit_is_refused():
    with pytest.raises(ContextLengthError):
        run(in_turn([]), context_length=5)
    with pytest.raises(ContextLengthError):
        list(answer_stream(ScriptedEngine(in_turn([]), context_length=5), CHAT, START, BOX, Params()))


def by_question(prompt: list[int]) -> list[int]:
    """Calls for the sum in the question, then says the result that it reads."""
    control = CHAT.tokenizer.control
    if control["<|result|>"] in prompt:
        begun = len(prompt) - 1 - prompt[::-1].index(control["<|result|>"])
        return [control["<|answer|>"], *prompt[begun + 1 : -1], CHAT.end]
    question = CHAT.tokenizer.decode(prompt[prompt.index(control["<|user|>"]) :])
    return call(question)


@given(
    st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), max_size=12),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_batch_is_in_order_and_does_not_depend_on_slots_or_queue(sums, queue, slots):
    questions = [CHAT.start(f"{a}+{b}", tools=BOX.names) for a, b in sums]
    done = []
    answers = answer_batch(
        ScriptedEngine(by_question, queue=queue, slots=slots),
        CHAT,
        questions,
        BOX,
        Params(),
        on_answer=lambda index, _: done.append(index),
    )
    assert [CHAT.answer(answer.transcript) for answer in answers] == [str(a + b) for a, b in sums]
    assert sorted(done) == list(range(len(sums)))


def test_others_go_on_while_one_calls_its_tool():
    questions = [CHAT.start(f"{a}+1", tools=BOX.names) for a in range(20)]
    engine = ScriptedEngine(by_question)
    answer_batch(engine, CHAT, questions, BOX, Params())
    longest = max(len(s.token_ids) for s in engine.submitted)
    assert engine.steps <= 2 * longest + 2, "steps grow with the longest conversation, not with their number"


def test_each_answer_and_each_stretch_has_a_seed_of_its_own():
    engine = ScriptedEngine(by_question)
    answer_batch(engine, CHAT, [CHAT.start("1+1")] * 3, BOX, Params(seed=7))
    seeds = [s.params.seed for s in engine.submitted]
    assert len(set(seeds)) == 6
    again = ScriptedEngine(by_question, slots=1)
    answer_batch(again, CHAT, [CHAT.start("1+1")] * 3, BOX, Params(seed=7))
    assert sorted(s.params.seed for s in again.submitted) == sorted(seeds)
    unseeded = ScriptedEngine(by_question)
    answer_batch(unseeded, CHAT, [CHAT.start("1+1")], BOX, Params())
    assert [s.params.seed for s in unseeded.submitted] == [None, None]


def test_toolboxes_and_params_of_their_own():
    engine = ScriptedEngine(by_question)
    with_tool, without = answer_batch(
        engine, CHAT, [CHAT.start("1+1")] * 2, [BOX, Toolbox()], [Params(), Params(max_tokens=50)]
    )
    assert CHAT.answer(with_tool.transcript) == "2" and with_tool.valid_calls == 1
    assert "there is no tool" in CHAT.answer(without.transcript) and without.valid_calls == 0


def test_a_queue_that_others_fill_for_good_is_an_error():
    with pytest.raises(QueueFullError):
        answer_batch(ScriptedEngine(by_question, queue=0), CHAT, [START], BOX, Params())


def test_an_error_in_the_engine_frees_what_was_running():
    engine = ScriptedEngine(by_question)

    def broken():
        raise RuntimeError("the engine broke")

    engine.step = broken
    with pytest.raises(RuntimeError):
        answer_batch(engine, CHAT, [START, START], BOX, Params())
    assert engine.cancelled == [0, 1]
