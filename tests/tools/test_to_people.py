"""Tools that turn to people: a question back, and handing over."""

import datetime
import json

import pytest

from ayllu.tools.ask_user import ask_user_tool
from ayllu.tools.hand_off import HandedOver, hand_off_tool, record_in
from ayllu.tools.tool import WAITING, Result, Toolbox

NOON = datetime.datetime(2024, 2, 29, 12, 0, tzinfo=datetime.UTC)
QUESTION = '{"question":" Which table? "}'


def test_at_a_terminal_the_user_answers_at_once():
    asked = []
    box = Toolbox([ask_user_tool(lambda question: asked.append(question) or " the round one\n")])
    assert box.run("ask_user", QUESTION) == Result(True, "the round one") and asked == ["Which table?"]
    for nothing in (None, "  "):
        box = Toolbox([ask_user_tool(lambda question, nothing=nothing: nothing)])
        assert box.run("ask_user", QUESTION) == Result(False, "error: the user did not answer")


def test_elsewhere_the_question_ends_the_turn():
    box = Toolbox([ask_user_tool()])
    assert box.run("ask_user", QUESTION) == Result(True, WAITING, told="Which table?")
    assert box.run("ask_user", '{"question":" "}') == Result(False, "error: the question is empty")


def test_handing_over_is_recorded_and_told(tmp_path):
    path = tmp_path / "handed.jsonl"
    box = Toolbox([hand_off_tool(record_in(path), conversation="c1", now=lambda: NOON)])
    result = box.run("hand_off", json.dumps({"summary": "wants her money back; order 17, zurück"}))
    assert (result.text, result.told) == (
        WAITING,
        "[handed over to a person] wants her money back; order 17, zurück",
    )
    assert box.run("hand_off", '{"summary":"again"}').ok
    first, second = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    assert HandedOver(**first) == HandedOver(
        "2024-02-29T12:00:00+00:00", "wants her money back; order 17, zurück", "c1"
    )
    assert second["summary"] == "again"


@pytest.mark.parametrize("where", ["nowhere/handed.jsonl", "."])
def test_what_is_not_recorded_is_not_told(tmp_path, where):
    box = Toolbox([hand_off_tool(record_in(tmp_path / where))])
    result = box.run("hand_off", '{"summary":"help"}')
    assert not result.ok and not result.told and result.text.startswith("error: hand_off failed")
    assert not box.run("hand_off", '{"summary":""}').ok
