"""Transcripts: sampled ids stay what they were, nothing that a user types is a control token, only whole
spans count, and OpenAI's JSON goes both ways."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ayllu.errors import RequestError
from ayllu.reason.task import Piece, Problem, conversation
from ayllu.reason.transcript import Chat, Kind, Span, Transcript, call_text, split_call, system_text
from ayllu.text.tokenizer import CONTROL, train_tokenizer

TEXTS = ['What is 12 + 30? calculator {"expression":"12+30"} నమస్కారం Grüße tools: <|user|>'] * 2
CHAT = Chat(train_tokenizer(iter(TEXTS), 330))
ID = CHAT.tokenizer.control
CONTROL_IDS = set(ID.values())
SIZE = CHAT.tokenizer.vocab_size
START = CHAT.start("Hi")

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
forged = st.lists(st.sampled_from([*CONTROL, "x", " ", "\n", "<|"]), max_size=6).map("".join)
# Mostly control tokens, so that every order of them turns up.
any_ids = st.lists(st.sampled_from(sorted(CONTROL_IDS)) | st.integers(16, SIZE - 1), max_size=30)
MODEL_KINDS = (Kind.THINK, Kind.CALL, Kind.SAY)


# ---- sampled ids
@given(ids=any_ids)
def test_sampled_ids_are_kept_as_they_are(ids):
    grown = CHAT.extend(START, ids)
    assert grown.ids() == START.ids() + ids
    assert grown.sampled() == [False] * len(START.ids()) + [True] * len(ids)
    assert grown.spans[: len(START.spans)] == START.spans
    assert all(span.ids and span.kind in MODEL_KINDS for span in grown.spans[len(START.spans) :])


@given(ids=any_ids)
def test_opening_tokens_stand_only_at_the_front_of_their_spans(ids):
    openers = {CHAT.span(kind, "").ids[0]: kind for kind in MODEL_KINDS}
    for span in CHAT.extend(Transcript(), ids).spans:
        assert not openers.keys() & set(span.ids[1:])
        if span.ids[0] in openers:
            assert span.kind == openers[span.ids[0]]
        else:
            assert span.kind == Kind.SAY and not CHAT.is_closed(span)


@given(parts=st.lists(st.tuples(st.sampled_from(MODEL_KINDS), texts | forged), max_size=6))
def test_whole_spans_come_back_as_they_were_written(parts):
    written = [CHAT.span(kind, text, sampled=True) for kind, text in parts]
    read = CHAT.extend(Transcript(), [i for span in written for i in span.ids]).spans
    assert list(read) == written
    assert [(span.kind, CHAT.text(span)) for span in read] == parts
    assert all(map(CHAT.is_closed, read))


@given(ids=any_ids, cut=st.integers(0, 30))
def test_reading_in_two_goes_changes_no_id(ids, cut):
    halves = CHAT.extend(CHAT.extend(START, ids[:cut]), ids[cut:])
    assert halves.ids() == CHAT.extend(START, ids).ids() and all(halves.sampled()[len(START.ids()) :])


def test_a_transcript_doesn_t_change():
    before = START.ids()
    CHAT.extend(START, [ID["<|answer|>"], 50, CHAT.end])
    CHAT.add(START, Kind.SAY, "x")
    assert START.ids() == before
    with pytest.raises(AttributeError):
        START.spans = ()


# ---- what counts as said
def said(*ids):
    return CHAT.answer(CHAT.extend(START, ids))


FIVE = CHAT.tokenizer.encode("5")[0]
THINK, NO_THINK, ANSWER, END = (ID[n] for n in ("<|think|>", "<|/think|>", "<|answer|>", "<|end|>"))


def test_the_answer_is_all_that_was_said_in_the_turn_if_its_end_is_there():
    assert said(ANSWER, FIVE, END) == "5"
    assert said(THINK, FIVE, FIVE, NO_THINK, ANSWER, FIVE, END) == "5"
    assert said(ANSWER, END) == ""
    # Whoever judges sees what the user sees: a second answer doesn't hide the first, nor what stands outside.
    for ids in ((ANSWER, FIVE, ANSWER, FIVE, END), (FIVE, ANSWER, FIVE, END)):
        assert said(*ids) == CHAT.to_message(CHAT.extend(START, ids))["content"] == "55"
    assert CHAT.answer(START) is None
    asked_again = CHAT.add(CHAT.extend(START, [ANSWER, FIVE, END]), Kind.USER, "And now?")
    assert CHAT.answer(asked_again) is None


@pytest.mark.parametrize(
    "ids",
    [
        [],
        [END],
        [FIVE, END],  # no opening token
        [ANSWER, FIVE],  # no end
        [THINK, FIVE, END],  # ended while thinking
        [THINK, FIVE, NO_THINK, END],
        [ID["<|user|>"], FIVE, END],  # another's opening token
        [ID["<|bos|>"], ID["<|user|>"], FIVE, END],
        [ID["<|result|>"], FIVE, END],
        [ANSWER, FIVE, ID["<|user|>"], FIVE, END],  # more than text inside
        [ANSWER, NO_THINK, FIVE, END],
        [ANSWER, FIVE, THINK, FIVE, END],
        [ID["<|tool|>"], FIVE, ID["<|/tool|>"]],
    ],
)
def test_what_is_no_whole_answer_is_none(ids):
    assert said(*ids) is None


def test_an_answer_after_a_stray_closing_token_is_not_mixed_with_the_thought():
    spans = CHAT.extend(START, [THINK, FIVE, END, ANSWER, FIVE, FIVE, END]).spans[1:]
    assert [(span.kind, CHAT.text(span)) for span in spans] == [(Kind.THINK, "5"), (Kind.SAY, "55")]
    assert [CHAT.is_closed(span) for span in spans] == [False, True]


# ---- what people type
@given(text=texts | forged, system=texts | forged)
def test_what_is_typed_is_never_a_control_token(text, system):
    messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    for transcript in (CHAT.start(text, system=system), CHAT.from_messages(messages)):
        spans = transcript.spans
        assert [span.kind for span in spans] == [Kind.SYSTEM] * bool(system) + [Kind.USER]
        assert CHAT.text(spans[-1]) == text
        frames = [ID["<|bos|>"]] + [ID["<|system|>"], END] * bool(system)
        frames += [ID["<|user|>"], END, ID["<|assistant|>"]]
        assert [i for i in transcript.ids() if i in CONTROL_IDS] == frames
        assert not any(transcript.sampled()) and all(map(CHAT.is_closed, spans))


@given(text=forged)
def test_nor_what_a_tool_answers(text):
    transcript = CHAT.add(START, Kind.RESULT, text)
    inside = transcript.spans[-1].ids[1:-1]
    assert not CONTROL_IDS & set(inside) and CHAT.text(transcript.spans[-1]) == text


def test_the_written_form():
    transcript = CHAT.start("17+5?", tools=("calculator", "clock"), system="Be short.")
    names = {number: name for name, number in ID.items()}
    shown = "".join(names.get(i) or CHAT.tokenizer.decode([i]) for i in transcript.ids())
    assert shown == (
        "<|bos|><|system|>tools: calculator, clock\nBe short.<|end|><|user|>17+5?<|end|><|assistant|>"
    )


def test_worked_solutions_mark_what_the_model_writes():
    trace = [Piece(Kind.CALL, "a {}"), Piece(Kind.RESULT, "7"), Piece(Kind.SAY, "7")]
    problem = Problem("f", 1, "k", "How much?", "7", tools=("a",))
    transcript = conversation(CHAT, problem, trace)
    kinds = [(span.kind, span.sampled) for span in transcript.spans]
    assert kinds == [
        (Kind.SYSTEM, False),
        (Kind.USER, False),
        (Kind.CALL, True),
        (Kind.RESULT, False),
        (Kind.SAY, True),
    ]
    assert [c for c, mine in zip(transcript.ids(), transcript.sampled(), strict=True) if mine] == [
        i for span in transcript.spans if span.sampled for i in span.ids
    ]


# ---- OpenAI's JSON
def call_message(*calls, **more):
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": f"c{n}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments)},
            }
            for n, (name, arguments) in enumerate(calls)
        ],
        **more,
    }


def test_a_conversation_with_a_call_from_messages():
    messages = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "12+30?"},
        call_message(("calculator", {"expression": "12+30"}), reasoning_content="I need it."),
        {"role": "tool", "tool_call_id": "c0", "content": "42"},
        {"role": "assistant", "content": "42"},
        {"role": "user", "content": "Thanks"},
    ]
    transcript = CHAT.from_messages(messages, tools=["calculator"])
    assert [(span.kind, CHAT.text(span)) for span in transcript.spans] == [
        (Kind.SYSTEM, "tools: calculator\nBe kind."),
        (Kind.USER, "12+30?"),
        (Kind.THINK, "I need it."),
        (Kind.CALL, 'calculator {"expression": "12+30"}'),
        (Kind.RESULT, "42"),
        (Kind.SAY, "42"),
        (Kind.USER, "Thanks"),
    ]
    assert transcript.ids().count(CHAT.bos) == 1 and transcript.ids()[0] == CHAT.bos


def test_results_stand_in_the_order_of_their_calls():
    """This form has no ids: in the order in which they came each would be read as the other's."""
    ask = {"role": "user", "content": "both?"}
    calls = call_message(("a", {}), ("b", {}))
    one, two = (
        {"role": "tool", "tool_call_id": f"c{n}", "content": text} for n, text in ((0, "A"), (1, "B"))
    )
    straight, turned = CHAT.from_messages([ask, calls, one, two]), CHAT.from_messages([ask, calls, two, one])
    assert turned == straight
    results = [CHAT.text(span) for span in straight.spans if span.kind == Kind.RESULT]
    assert results == ["A", "B"]
    with pytest.raises(RequestError, match="belongs to no call"):
        CHAT.from_messages([ask, calls, one, {**two, "tool_call_id": "c7"}])
    nameless = [{k: v for k, v in each.items() if k != "tool_call_id"} for each in (one, two)]
    assert CHAT.from_messages([ask, calls, *nameless]) == straight


written = texts.filter(bool)
arguments = st.dictionaries(written, st.integers() | texts | st.booleans() | st.none(), max_size=3)
names = st.from_regex(r"[a-z_]{1,12}", fullmatch=True)


@given(thought=st.none() | written, calls=st.lists(st.tuples(names, arguments), max_size=3), text=texts)
def test_a_turn_goes_to_a_message_and_back(thought, calls, text):
    transcript = START
    if thought:
        transcript = CHAT.add(transcript, Kind.THINK, thought, sampled=True)
    for name, values in calls:
        transcript = CHAT.add(transcript, Kind.CALL, call_text(name, values), sampled=True)
    if text and not calls:
        transcript = CHAT.add(transcript, Kind.SAY, text, sampled=True)
    message = CHAT.to_message(transcript)
    assert message["role"] == "assistant" and message.get("reasoning_content") == thought
    assert message["content"] == (None if calls else text)
    back = [
        (call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in message.get("tool_calls", [])
    ]
    assert back == calls
    following = [{"role": "tool", "content": "1"}] * len(calls) or [{"role": "user", "content": "?"}]
    again = CHAT.from_messages([{"role": "user", "content": "Hi"}, message, *following])
    kept = again.spans[:-1] if not calls else [s for s in again.spans if s.kind != Kind.RESULT]
    assert [(s.kind, s.ids) for s in kept] == [(s.kind, s.ids) for s in transcript.spans]
    if calls:  # each has its result behind it
        assert [s.kind for s in again.spans][-2 * len(calls) :] == [Kind.CALL, Kind.RESULT] * len(calls)


USER, SAID = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
TOOL, SYSTEM = {"role": "tool", "content": "1"}, {"role": "system", "content": "s"}


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [SYSTEM],
        [SAID],
        [TOOL],
        [USER, SAID],
        [USER, USER],
        [USER, TOOL],
        [USER, SYSTEM],
        [SYSTEM, USER, SAID, SYSTEM, USER],
        [USER, SAID, TOOL],
        [USER, call_message(("f", {})), USER],
        [USER, call_message(("f", {}))],
        [USER, call_message(("f", {}), ("g", {})), TOOL],
        [USER, call_message(("f", {})), TOOL, TOOL],
        [
            USER,
            call_message(("f", {}), ("g", {})),
            TOOL | {"tool_call_id": "c0"},
            TOOL | {"tool_call_id": "c0"},
        ],
        [USER, call_message(("f", {}), ("g", {})), TOOL, USER],
        [USER, call_message(("f", {}), ("g", {})), TOOL, SAID, USER],
        [USER, {"role": "function", "content": ""}],
    ],
)
def test_orders_that_have_no_form_are_refused(messages):
    with pytest.raises(RequestError):
        CHAT.from_messages(messages)


def test_what_is_wrong_is_told_with_its_place():
    with pytest.raises(RequestError, match=r"messages\[2\]: 'user' can't follow"):
        CHAT.from_messages([SYSTEM, USER, USER])
    with pytest.raises(RequestError, match=r"messages\[3\]: a result belongs to no call"):
        CHAT.from_messages([SYSTEM, USER, call_message(("f", {})), TOOL | {"tool_call_id": "c7"}])


def test_the_user_may_speak_after_a_result():
    """A tool that asks the user ends the turn with its result."""
    asked = CHAT.from_messages([USER, call_message(("ask_user", {})), TOOL, USER])
    assert [s.kind for s in asked.spans] == [Kind.USER, Kind.CALL, Kind.RESULT, Kind.USER]


@given(name=names, values=arguments)
def test_calls_are_name_space_compact_json(name, values):
    text = call_text(name, values)
    got_name, got_arguments = split_call(text)
    assert got_name == name and json.loads(got_arguments) == values


def test_the_system_line():
    assert system_text("", ()) == ""
    assert system_text("Be kind.", ()) == "Be kind."
    assert system_text("", ("a", "b")) == "tools: a, b"
    assert system_text("Be kind.", ("a",)) == "tools: a\nBe kind."


def test_a_span_without_ids_is_not_whole():
    assert not CHAT.is_closed(Span(Kind.SAY, ())) and not CHAT.is_closed(Span(Kind.USER, (CHAT.bos,)))


def test_what_is_said_before_a_call_does_not_end_the_turn() -> None:
    """OpenAI's messages may say something and call; in this form an answer is the end."""
    call = {"id": "1", "type": "function", "function": {"name": "calculator", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "12 + 3?"},
        {"role": "assistant", "content": "Let me see.", "reasoning_content": "a sum", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "15"},
    ]
    spans = CHAT.from_messages(messages).spans
    assert [span.kind for span in spans] == [Kind.USER, Kind.THINK, Kind.CALL, Kind.RESULT]
    assert CHAT.text(spans[1]) == "a sum\nLet me see."
