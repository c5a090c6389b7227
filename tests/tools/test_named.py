"""Tools asked for by name at a terminal."""

import contextlib
import json

import pytest

from ayllu import console
from ayllu.errors import InputNotFoundError, UsageError
from ayllu.tools.named import TABLE, open_tools
from ayllu.tools.tool import Tool, Toolbox


def test_every_name_opens_and_works(tmp_path):
    (tmp_path / "sales.csv").write_text("month,amount\nMay,3\n")
    (tmp_path / "more.csv").write_text("a\n7\n")
    (tmp_path / "notes.txt").write_text("tea is hot")
    wishes = [
        "calculator",
        f"sql={tmp_path / 'sales.csv'}",
        f"sql={tmp_path / 'more.csv'}",
        f"chart={tmp_path / 'charts'}",
        f"documents={tmp_path}",
        "clock",
        "units",
        "ask_user",
        f"hand_off={tmp_path / 'handed.jsonl'}",
    ]
    with contextlib.ExitStack() as stack:
        box = Toolbox(open_tools(wishes, stack, ask=lambda question: question.upper()))
        assert list(box.names) == [name for name in TABLE if name not in ("python", "mcp")]
        calls = {
            "calculator": ({"expression": "6*7"}, "42"),
            "sql": ({"query": "SELECT sum(amount) + (SELECT a FROM more) FROM sales"}, "10"),
            "documents": ({"query": "tea"}, "[notes.txt:1]\n> tea is hot"),
            "units": ({"value": 1, "from": "km", "to": "m"}, "1000 m"),
            "ask_user": ({"question": "which?"}, "WHICH?"),
        }
        for name, (arguments, text) in calls.items():
            assert box.run(name, json.dumps(arguments)).text == text
        assert "UTC+00:00" in box.run("clock", "{}").text
        assert box.run("chart", '{"kind":"bar","query":"SELECT month, amount FROM sales"}').ok
        assert box.run("hand_off", '{"summary":"help"}').told and (tmp_path / "handed.jsonl").is_file()
    assert (tmp_path / "charts" / "chart-1.png").is_file()


def test_a_name_twice_is_one_tool():
    with contextlib.ExitStack() as stack:
        assert [tool.name for tool in open_tools(["calculator", "clock", "calculator"], stack)] == [
            "calculator",
            "clock",
        ]


def test_one_tool_for_two_things_is_refused(tmp_path):
    """Rather than quietly leaving one of them out."""
    for one, other in (("clock", "clock=UTC"), (f"documents={tmp_path}", f"documents={tmp_path.parent}")):
        with contextlib.ExitStack() as stack, pytest.raises(UsageError, match="asked for twice"):
            open_tools([one, "units", other], stack)


def test_what_is_left_out_is_told(tmp_path):
    pytest.importorskip("mcp", reason="the extra mcp is not installed")
    (tmp_path / "a.txt").write_bytes(b"\xff")
    (tmp_path / "servers.toml").write_text('[shop]\ncommand = ["/no/such/program"]\ntools = ["look"]\n')
    told = []
    with contextlib.ExitStack() as stack:
        open_tools([f"documents={tmp_path}", f"mcp={tmp_path / 'servers.toml'}"], stack, tell=told.append)
    assert told[0] == "documents: 1 not read, such as a.txt (not UTF-8 text)"
    assert told[1].startswith("mcp: shop is not offered: it did not start")


def test_tools_whose_names_are_taken_are_told(tmp_path, monkeypatch):
    """Two files may name a server alike, and a server `ask` may have a tool `user`."""

    class Canned:
        def __init__(self, servers):
            self.skipped = {}
            self.tools = [Tool(name, "", {"type": "object", "properties": {}}, str) for name in OFFERED]

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    OFFERED = ["files_read", "ask_user"]
    mcp = pytest.importorskip("ayllu.tools.mcp")
    monkeypatch.setattr(mcp, "Servers", Canned)
    monkeypatch.setattr(mcp, "read_servers", lambda path: {})
    told = []
    with contextlib.ExitStack() as stack:
        tools = open_tools(["mcp=a.toml", "mcp=b.toml", "ask_user"], stack, ask=input, tell=told.append)
    assert [tool.name for tool in tools] == ["files_read", "ask_user"] and tools[1].asks
    assert told == [
        "mcp: ask_user is not offered: a tool of Ayllu's has that name",
        "mcp: ask_user is not offered: a tool of Ayllu's has that name",
        "mcp=b.toml: a second tool files_read is not offered",
    ]


@pytest.mark.parametrize(
    "wish", ["tea", "", "sql", "sql=", "calculator=3", "documents", "mcp", "clock=Atlantis", "units=", "=x"]
)
def test_what_is_asked_for_wrongly_is_told(wish):
    with contextlib.ExitStack() as stack, pytest.raises(UsageError) as caught:
        open_tools([wish], stack)
    assert caught.value.fix


def test_what_is_not_there_is_told(tmp_path):
    for wish in (
        f"sql={tmp_path / 'none.csv'}",
        f"documents={tmp_path / 'none'}",
        f"mcp={tmp_path / 'none.toml'}",
        f"hand_off={tmp_path / 'none' / 'calls.jsonl'}",
    ):
        with contextlib.ExitStack() as stack, pytest.raises(InputNotFoundError, match="there is no") as error:
            open_tools([wish], stack)
        assert error.value.exit_code == 4


@pytest.mark.parametrize(
    ("typed", "yes"), [("y", True), ("Ja", True), ("n", False), ("", False), (None, False)]
)
def test_a_tool_that_changes_something_is_asked_about_at_a_terminal(monkeypatch, capsys, typed, yes):
    """The arguments are shown, without what commands a terminal; elsewhere the answer is no."""
    pay = Tool("pay", "", {"type": "object", "properties": {}}, lambda _: "paid", changes_something=True)

    def answer(prompt):
        if typed is None:
            raise EOFError
        return typed

    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert console.confirm_at_terminal(pay, {"to": "Eve\x9b31m\u202e"}) is yes
    shown = capsys.readouterr().err
    assert 'pay {"to": "Eve31m"}' in shown
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    assert console.confirm_at_terminal(pay, {}) is False


def test_a_folder_to_work_in_that_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    for place in ("file", "absent"):
        with contextlib.ExitStack() as stack, pytest.raises(InputNotFoundError, match="no folder"):
            open_tools([f"python={tmp_path / place}"], stack)
    assert not (tmp_path / "absent").exists()
