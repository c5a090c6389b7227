"""Talking with a model from the command line: who gets stdout, what reaches a terminal, one answer, and a
conversation."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_engine import Params, ScriptedEngine

from ayllu import cli, talk, terminal
from ayllu.console import harmless
from ayllu.errors import AylluError, CutOffError, NotUtf8Error, RequestError, UsageError
from ayllu.reason import verify, vote
from ayllu.reason.loop import Answer, Event
from ayllu.reason.transcript import Chat, Kind, Transcript, call_text
from ayllu.talk import Talk
from ayllu.terminal import Painter, read_prompt
from ayllu.text.tokenizer import train_tokenizer
from ayllu.tools.calculator import CALCULATOR
from ayllu.tools.session import Record
from ayllu.tools.tool import Toolbox

ROOT = Path(__file__).parent.parent
CHAT = Chat(train_tokenizer(iter(["What is 12+30? thinking calculator expression stop"]), 300))
BOX = Toolbox([CALCULATOR])


# ---- text that reaches a terminal
@given(st.text(st.characters(codec="utf-8")))
def test_what_a_model_writes_cannot_command_the_terminal(text: str) -> None:
    shown = harmless(text)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
    assert harmless(shown) == shown
    kept = [c for c in text if c.isprintable() or c in "\n\t\u200c\u200d"]
    assert [c for c in shown if c in kept] == [c for c in kept if c in shown]


def test_letters_joiners_and_lines_stay() -> None:
    text = "నమస్కారం క్\u200cష Grüße\n\t12"
    assert harmless(text) == text
    assert harmless("a\x1b]0;title\x07\x9b31mb") == "a]0;title31mb"


class Screen(io.StringIO):
    def __init__(self, tty: bool) -> None:
        super().__init__()
        self.tty = tty

    def isatty(self) -> bool:
        return self.tty


EVENTS = [
    Event("think", "let me "),
    Event("think", "see"),
    Event("call", "calculator {}"),
    Event("result", "42\x1b[2J"),
    Event("say", "It is "),
    Event("say", "42."),
    Event("done"),
]


def test_the_answer_goes_to_stdout_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for tty in (False, True):
        out, err = Screen(tty), Screen(tty)
        painter = Painter(out, err)
        for event in EVENTS:
            painter.paint(event)
        assert out.getvalue() == "It is 42.\n"
        plain = err.getvalue().replace("\x1b[2m", "").replace("\x1b[22m", "")
        assert plain == "let me see\n-> calculator {}\n<- 42[2J\n"
        assert ("\x1b" in err.getvalue()) == tty  # dimmed on a terminal only


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    err = Screen(True)
    Painter(Screen(True), err).paint(EVENTS[0])
    assert err.getvalue() == "let me "


# ---- one answer
def test_an_argument_that_is_no_text_is_told_as_such() -> None:
    with pytest.raises(NotUtf8Error, match="the prompt is not UTF-8 text"):
        read_prompt(os.fsdecode(b"\xff\xfe"))


def reply(prompt: list[int]) -> list[int]:
    """Think, ask the calculator, answer with what it said; `stop` in the question: think for ever."""
    text = CHAT.tokenizer.decode(prompt)
    if "stop" in text:
        return [*CHAT.span(Kind.THINK, "thinking " * 2000).ids]
    if CHAT.tokenizer.control["<|result|>"] in prompt[-20:]:
        return list(CHAT.span(Kind.SAY, f"turn {text.count('What')}: 42").ids)
    think, call = CHAT.span(Kind.THINK, "thinking"), call_text("calculator", {"expression": "12+30"})
    return [*think.ids, *CHAT.span(Kind.CALL, call).ids]


@contextlib.contextmanager
def scripted(*_: Any, context: int = 4000, pause: float = 0.0, **options: Any) -> Iterator[Talk]:
    engine = ScriptedEngine(reply, context_length=context)
    step = engine.step

    def slow_step() -> Any:
        time.sleep(pause)
        return step()

    engine.step = slow_step  # type: ignore[method-assign]
    yield Talk(engine, CHAT, BOX, Params(max_tokens=options.get("max_tokens")))  # type: ignore[arg-type]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(talk, "load_talk", scripted)
    return str(tmp_path)


def call_cli(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    return int(caught.value.code or 0)


def test_run_answers_on_stdout(model: str, capsys: Any) -> None:
    assert call_cli("run", model, "What is 12+30?") == 0
    out, err = capsys.readouterr()
    assert out == "turn 1: 42\n"
    assert err == 'thinking\n-> calculator {"expression":"12+30"}\n<- 42\n'


def test_run_quiet_and_json(model: str, capsys: Any) -> None:
    assert call_cli("run", model, "What is 12+30?", "--quiet") == 0
    assert capsys.readouterr() == ("turn 1: 42\n", "")
    assert call_cli("run", model, "What is 12+30?", "--json") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert json.loads(out) == {
        "answer": "turn 1: 42",
        "reasoning": "thinking",
        "calls": [{"call": 'calculator {"expression":"12+30"}', "result": "42"}],
        "finish_reason": "stop",
        "tokens": json.loads(out)["tokens"],
        "thinking_tokens": json.loads(out)["thinking_tokens"],
    }


def test_several_calls_of_one_turn_are_several(capsys: Any) -> None:
    """Other families' calls come whole, one after another, and their results after all of them."""
    asked = [f'calculator {{"expression": "{e}"}}' for e in ("1+2", "3*4")]
    records = tuple(Record(*call.split(" ", 1), True, r) for call, r in zip(asked, ("3", "12"), strict=True))
    done = Event("done", answer=Answer(Transcript(), "stop", records=records))
    events = [Event("call", call) for call in asked] + [Event("result", "3"), Event("result", "12"), done]
    said = terminal._painted(events, quiet=False, silent=False)
    assert said["calls"] == [
        {"call": asked[0], "result": "3"}, {"call": asked[1], "result": "12"},
    ]  # fmt: skip
    assert capsys.readouterr().err == f"-> {asked[0]}\n-> {asked[1]}\n<- 3\n<- 12\n"
    pieces = [Event("call", "calculator "), Event("call", '{"expression"'), Event("call", ': "1'), done]
    assert terminal._painted(pieces, quiet=True, silent=False)["calls"][-1] == {
        "call": 'calculator {"expression": "1', "result": None,
    }  # fmt: skip


def several_answers(*said: str, cut: int = 0) -> Any:
    """In place of asking several times: these answers, the last `cut` of them cut off."""

    def canned(engine: Any, chat: Chat, begun: Any, box: Any, params: Any, k: int, **how: Any) -> Any:
        assert k == len(said) and set(how) == {"rules", "constrain"}
        thought = chat.add(begun, Kind.THINK, "thinking", sampled=True)
        return [
            Answer(chat.add(thought, Kind.SAY, text, sampled=True), "length" if n >= k - cut else "stop")
            for n, text in enumerate(said)
        ]

    return canned


def test_run_gives_the_answer_of_the_majority(
    model: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vote, "several", several_answers("41", "42", "42.0", "41", "41", cut=2))
    assert call_cli("run", model, "What is 12+30?", "--votes", "5") == 0
    assert capsys.readouterr() == ("42\n", "thinking\n(2 of 5 agree)\n")
    assert call_cli("run", model, "What is 12+30?", "--votes", "5", "--json") == 0
    out, err = capsys.readouterr()
    said = json.loads(out)
    assert err == "" and said["answer"] == "42" and said["reasoning"] == "thinking"
    chosen = said["chosen"]
    assert (chosen["by"], chosen["agree"], chosen["of"]) == ("most answers", 2, 5)
    assert [row["answer"] for row in chosen["answers"]] == ["41", "42", "42.0", None, None]
    monkeypatch.setattr(vote, "several", several_answers("41", "42", cut=2))
    assert call_cli("run", model, "What is 12+30?", "--votes", "2") == CutOffError.exit_code
    assert call_cli("run", model, "  ", "--votes", "2") == RequestError.exit_code


def test_run_gives_the_answer_that_the_verifier_chooses(
    model: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Judge:
        def score(self, transcripts: Any) -> list[float]:
            return [{"40": 0.9, "41": 0.5, "42": 0.6}[str(CHAT.answer(t))] for t in transcripts]

    monkeypatch.setattr(verify, "load_verifier", lambda folder, device: Judge())
    monkeypatch.setattr(verify, "check_fits", lambda judge, vocabulary: None)
    monkeypatch.setattr(ScriptedEngine, "vocab_size", 300, raising=False)
    monkeypatch.setattr(vote, "several", several_answers("41", "42", "42", "40"))
    assert call_cli("run", model, "?", "--quiet", "--best-of", "4", "--verifier", "v") == 0
    assert capsys.readouterr() == ("40\n", "(1 of 4 agree; chosen by the best score, it has 0.90)\n")
    assert call_cli("run", model, "?", "--quiet", "--votes", "4", "--verifier", "v") == 0
    assert capsys.readouterr() == ("42\n", "(2 of 4 agree; chosen by scores, it has 0.60)\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--votes", "1"], "not possible"),
        (["--votes", "129"], "not possible"),
        (["--votes", "4", "--temperature", "0"], "the same answer every time"),
        (["--best-of", "4"], "add --verifier"),
        (["--best-of", "4", "--votes", "4", "--verifier", "v"], "two ways to choose"),
        (["--verifier", "v"], "several answers"),
    ],
)
def test_ways_to_choose_that_contradict_are_refused(
    model: str, capsys: Any, words: list[str], said: str
) -> None:
    assert call_cli("run", model, "What is 12+30?", *words) == UsageError.exit_code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("words", [["-"], []])
def test_run_reads_stdin(model: str, capsys: Any, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"What is 12+30?\n")))
    assert call_cli("run", model, *words) == 0
    assert capsys.readouterr().out == "turn 1: 42\n"


def test_prompts_that_are_none(model: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe")))
    assert call_cli("run", model) == NotUtf8Error.exit_code
    assert call_cli("run", model, "  ") == 2
    monkeypatch.setattr(sys, "stdin", Screen(True))
    assert call_cli("run", model) == UsageError.exit_code
    assert "no prompt" in capsys.readouterr().err


def test_an_answer_that_is_cut_is_said_to_be(model: str, capsys: Any) -> None:
    assert call_cli("run", model, "stop", "--max-tokens", "5") == 1, "it had not begun"
    assert "cut off before it began" in capsys.readouterr().err
    assert call_cli("run", model, "stop", "--max-tokens", "5", "--json") == 1
    assert json.loads(capsys.readouterr().out)["answer"] == ""
    assert call_cli("run", model, "What is 12+30?", "--max-tokens", "60") == 0


def test_load_errors_keep_their_exit_code(model: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(*_: Any, **__: Any) -> None:
        error = AylluError("model.safetensors is cut short")
        error.exit_code = 5
        raise error

    monkeypatch.setattr(talk, "load_talk", damaged)
    assert call_cli("run", model, "hi") == 5
    assert "cut short" in capsys.readouterr().err


# ---- a conversation
def test_a_conversation_in_a_pipe(model: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "What is 12+30?\nWhat again?\n/reset\nWhat?\n\n/help\n/hlep\n/quit\nWhat?\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert call_cli("chat", model) == 0
    out, err = capsys.readouterr()
    assert out == "turn 1: 42\nturn 2: 42\nturn 1: 42\n"  # it remembers, and /reset forgets
    assert "/reset" in err and "no command /hlep" in err


def test_a_conversation_that_is_full_can_be_begun_anew(
    model: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(talk, "load_talk", lambda *a, **k: scripted(context=150, **k))
    lines = "What?\n" + "What long 0123456789 0123456789?\n" * 3 + "/reset\nWhat?\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert call_cli("chat", model) == 0
    out, err = capsys.readouterr()
    assert "/reset begins a new conversation" in err or "cut off" in err
    assert out.endswith("turn 1: 42\n")


def read_until(terminal_end: int, wanted: str, seconds: float = 20.0) -> str:
    seen, end = "", time.monotonic() + seconds
    while wanted not in seen and time.monotonic() < end:
        if select.select([terminal_end], [], [], 0.1)[0]:
            try:
                seen += os.read(terminal_end, 4096).decode(errors="replace")
            except OSError:
                break
    assert wanted in seen, seen[-500:]
    return seen


def test_ctrl_c_stops_the_answer_and_not_the_program(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    program = (
        "import fcntl, termios, test_cli_talk, ayllu.talk as t, ayllu.cli as c\n"
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "t.load_talk = lambda *a, **k: test_cli_talk.scripted(pause=0.01, **k)\n"
        f"c.main(['chat', {str(tmp_path)!r}])\n"
    )
    end, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "TERM": "xterm"},
    )
    os.close(theirs)
    try:
        read_until(end, "> ", 60)
        os.write(end, b"please don't stop\n")
        read_until(end, "\x1b[2mking\x1b[22m")  # dimmed
        os.write(end, b"\x03")
        read_until(end, "not remembered)\r\n> ")
        # At the prompt it only says how to leave. Python's input() may miss a signal that comes just before
        # it begins to wait for keys; a person would press once more.
        for _ in range(10):
            os.write(end, b"\x03")
            try:
                read_until(end, "Ctrl-D or /quit leaves)\r\n> ", 2)
                break
            except AssertionError:
                assert process.poll() is None
        else:
            pytest.fail("Ctrl-C at the prompt says nothing")
        os.write(end, b"What is 12+30?\n")
        read_until(end, "turn 1: 42\r\n> ")  # the stopped question is forgotten
        os.write(end, b"\x04")
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        os.close(end)
