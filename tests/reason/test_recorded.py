"""A turn that was written to a file is answered again from it, and nothing is run for that."""

import contextlib
import json
import re

import pytest
from scripted_engine import ScriptedEngine

from ayllu import cli
from ayllu.engine import engine as engines
from ayllu.errors import BadFileError
from ayllu.reason.recorded import RecordedTurn
from ayllu.reason.transcript import Chat, Kind
from ayllu.recording import Recording
from ayllu.serve.options import EngineOptions
from ayllu.text.tokenizer import train_tokenizer
from ayllu.tools.session import Record

CHAT = Chat(train_tokenizer(iter(['What is 12 + 30? clock {"action":"now"} units'] * 9), 320))
CONTROL = CHAT.tokenizer.control


def say_the_result(prompt):
    """Ask the clock, say what it says."""
    if (result := CONTROL["<|result|>"]) in prompt[-60:]:
        at = len(prompt) - prompt[::-1].index(result)
        return CHAT.span(Kind.SAY, CHAT.tokenizer.decode(prompt[at:-1])).ids
    return CHAT.span(Kind.CALL, 'clock {"action":"now"}').ids


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model folder whose engine is `say_the_result`."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    CHAT.tokenizer.save(tmp_path / "model")

    @contextlib.contextmanager
    def opened(*_, **__):
        yield ScriptedEngine(lambda prompt: list(say_the_result(prompt)))

    monkeypatch.setattr(engines, "Engine", opened)
    return tmp_path


def schema(kind, **more):
    return {"type": "object", "properties": {"a": {"type": kind} | more}}


def ayllu(*words):
    try:
        cli.main([str(word) for word in words])
    except SystemExit as stop:
        return stop.code or 0
    return 0


def test_a_turn_is_replayed_from_its_file(folder, capsys):
    """The clock goes on; what it said then comes out again."""
    asked = ("run", folder / "model", "What time is it?", "--tool", "clock", "--record", folder / "turn.json")
    assert ayllu(*asked) == 0
    said = capsys.readouterr().out
    turn = RecordedTurn.read(folder / "turn.json")
    assert turn.prompt == "What time is it?" and turn.answer == said.strip() == turn.calls[0].text.strip()
    assert (folder / "turn.json").stat().st_mode & 0o777 == 0o600, "it is its owner's"
    assert {tool.name for tool in turn.tools} == {"calculator", "clock"} and turn.settings["seed"] is not None
    then = json.loads((folder / "turn.json").read_text())
    for place in (then["calls"][0], then):
        what = "text" if "text" in place else "answer"
        place[what] = re.sub(r"\d", "1", place[what])
    (folder / "then.json").write_text(json.dumps(then))
    for name, answer in (("turn.json", said), ("then.json", re.sub(r"\d", "1", said))):
        assert ayllu("run", folder / "model", "--replay", folder / name) == 0
        assert capsys.readouterr().out == answer


def test_fewer_calls_than_recorded_are_an_error_too(folder, capsys):
    file = folder / "turn.json"
    assert ayllu("run", folder / "model", "Now?", "--tool", "clock", "--record", file) == 0
    turn = json.loads(file.read_text())
    file.write_text(json.dumps(turn | {"calls": [*turn["calls"], turn["calls"][0]]}))
    assert ayllu("run", folder / "model", "--replay", file, "--json") == 2
    shown = capsys.readouterr()
    assert "other calls were made" in shown.err and "2 then, 1 now" in shown.err
    assert json.loads(shown.out[shown.out.index("{") :])["answer"], "what came out is told all the same"


def test_a_file_cannot_command_the_terminal(folder, capsys):
    file = folder / "turn.json"
    assert ayllu("run", folder / "model", "Now?", "--tool", "clock", "--record", file) == 0
    turn = json.loads(file.read_text())
    turn["calls"][0]["name"] = "\x1b]0;owned\x07"
    for change in (turn, turn | {"\x1b[2J": 1}):
        file.write_text(json.dumps(change))
        assert ayllu("run", folder / "model", "--replay", file) in (2, 5)
        assert not set("\x1b\x07") & set(capsys.readouterr().err)


def test_a_turn_that_cannot_be_written_says_its_seed(folder, capsys, monkeypatch):
    def full(self, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RecordedTurn, "write", full)
    file = folder / "turn.json"
    assert ayllu("run", folder / "model", "Now?", "--tool", "clock", "--seed", "7", "--record", file) == 2
    shown = capsys.readouterr()
    assert shown.out.strip() and "--seed 7" in shown.err and "No space left" in shown.err


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"answer": "42"}, "the answer is another one"),
        ({"tokens": 3}, "other tokens were sampled"),
        ({"prompt_hash": "0"}, "read another prompt"),
        ({"calls": []}, "one more"),
        ({"calls": [Record("clock", '{"action":"zone"}', True, "noon").__dict__]}, "other arguments"),
    ],
)
def test_a_turn_that_comes_out_otherwise_is_an_error(folder, capsys, change, why):
    file = folder / "turn.json"
    assert ayllu("run", folder / "model", "Now?", "--tool", "clock", "--record", file) == 0
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert ayllu("run", folder / "model", "--replay", file) == 2
    assert why in capsys.readouterr().err


def test_another_prompt_is_said_before_what_follows_from_it(folder, capsys):
    file = folder / "turn.json"
    assert ayllu("run", folder / "model", "Now?", "--tool", "clock", "--record", file) == 0
    turn = json.loads(file.read_text())
    call = Record("clock", '{"action":"zone"}', True, "noon").__dict__
    file.write_text(json.dumps(turn | {"prompt_hash": "0", "calls": [call]}))
    capsys.readouterr()
    assert ayllu("run", folder / "model", "--replay", file) == 2
    shown = capsys.readouterr()
    assert "read another prompt" in shown.err and not shown.out


def test_options_of_the_engine_are_those_of_the_file_unless_given(folder):
    file = folder / "turn.json"
    assert ayllu("run", folder / "model", "Now?", "--tool", "clock", "--record", file) == 0
    engine = {"weights": "int8", "cache": "float32", "speculate": "ngram", "device": "cpu"}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"engine": engine}))
    recording = Recording(None, file, own=False, answers=0)
    given = EngineOptions(cache_folder=folder, cache="int8")
    assert recording.engine(given) == EngineOptions(
        weights="int8", cache="int8", cache_folder=folder, speculate="ngram", device="cpu"
    )
    assert Recording(None, None, own=False, answers=0).engine(given) == given
    # What is usual can be said as well: the machine of a replay may have no GPU, or no model that guesses.
    told = EngineOptions(weights="auto", cache="auto", speculate="none", device="cpu")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"engine": engine | {"device": "cuda"}}))
    recording = Recording(None, file, own=False, answers=0)
    assert recording.engine(EngineOptions()).device == "cuda"
    assert recording.engine(told) == told and told.arguments()["speculate"] is None


def test_what_a_file_cannot_hold_and_what_does_not_go_with_one(folder, capsys):
    file = folder / "turn.json"
    run = ("run", folder / "model")
    assert ayllu(*run, "Now?", "--votes", "3", "--record", file) == 2 and not file.exists()
    assert ayllu(*run, "Now?", "--tool", "clock", "--record", file) == 0
    before = file.read_bytes()
    for words, why in (
        (("Now?", "--record", file), "exists already"),
        (("Now?", "--replay", file), "brings its own"),
        (("--replay", file, "--seed", "3"), "brings its own"),
        (("--replay", file, "--no-tools"), "brings its own"),
        (("--replay", file, "--votes", "3"), "a file holds one answer"),
    ):
        assert ayllu(*run, *words) == 2
        assert why in capsys.readouterr().err
    assert file.read_bytes() == before
    assert ayllu(*run, "--replay", folder / "none.json") == 4
    assert ayllu(*run, "--replay", folder) == 5
    assert ayllu(*run, "Now?", "--record", folder / "none" / "turn.json") == 2
    assert "no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        {"calls": [{"name": "clock"}]},
        {"calls": [Record("clock", "{}", True, "noon").__dict__ | {"ok": "yes"}]},
        {"extra": 1},
        {"engine": {"weights": "int8", "cache": "auto", "speculate": None, "device": "cpu", "layers": "3"}},
        {"engine": {"weights": None, "cache": "auto", "speculate": None, "device": "cpu"}},
        {"version": 2},
        {"prompt": "\ud800"},
        {"settings": {}},
        {"settings": {"temperature": -1, "max_tokens": 9, "top_k": 0, "top_p": 1, "min_p": 0, "seed": 1}},
        {"tools": [{"name": "a b", "description": "", "parameters": {"type": "object"}}]},
        {"tools": [{"name": "a", "description": "", "parameters": {"type": "object", "properties": [1]}}]},
        {"tools": [{"name": "a", "description": "", "parameters": schema("string", enum=5)}]},
        {"tools": [{"name": "a", "description": "", "parameters": schema("integer", minimum="a")}]},
    ],
)
def test_damaged_files_are_refused(folder, change):
    file = folder / "turn.json"
    assert ayllu("run", folder / "model", "Now?", "--tool", "clock", "--record", file) == 0
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(BadFileError, match="not a recorded turn"):
        RecordedTurn.read(file)
