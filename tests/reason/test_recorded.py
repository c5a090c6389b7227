"""A turn that was written to a file is answered again from it, and nothing is run for that."""

import contextlib
import json

import pytest
from scripted_engine import ScriptedEngine

from ayllu import cli
from ayllu.engine import engine as engines
from ayllu.errors import BadFileError
from ayllu.reason.recorded import RecordedTurn
from ayllu.reason.transcript import Chat, Kind
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
    assert {tool.name for tool in turn.tools} == {"calculator", "clock"} and turn.settings["seed"] is not None
    then = json.loads((folder / "turn.json").read_text())
    for place in (then["calls"][0], then):
        place["text" if "text" in place else "answer"] = "1999-12-31 23:59"
    (folder / "then.json").write_text(json.dumps(then))
    for name, answer in (("turn.json", said), ("then.json", "1999-12-31 23:59\n")):
        assert ayllu("run", folder / "model", "--replay", folder / name) == 0
        assert capsys.readouterr().out == answer


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"answer": "42"}, "the replayed answer is another one"),
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
    ):
        assert ayllu(*run, *words) == 2
        assert why in capsys.readouterr().err
    assert file.read_bytes() == before
    assert ayllu(*run, "--replay", folder / "none.json") == 4


@pytest.mark.parametrize(
    "change",
    [
        {"calls": [{"name": "clock"}]},
        {"calls": [Record("clock", "{}", True, "noon").__dict__ | {"ok": "yes"}]},
        {"extra": 1},
        {"settings": {}},
        {"settings": {"temperature": -1, "max_tokens": 9, "top_k": 0, "top_p": 1, "min_p": 0, "seed": 1}},
        {"tools": [{"name": "a b", "description": "", "parameters": {"type": "object"}}]},
        {"tools": [{"name": "a", "description": "", "parameters": {"type": "object", "properties": [1]}}]},
    ],
)
def test_damaged_files_are_refused(folder, change):
    file = folder / "turn.json"
    assert ayllu("run", folder / "model", "Now?", "--tool", "clock", "--record", file) == 0
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(BadFileError, match="not a recorded turn"):
        RecordedTurn.read(file)
