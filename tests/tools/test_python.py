"""The tool `python` as a model meets it: through a Toolbox, results and errors as text."""

import json

import pytest

from ayllu.errors import RefusedError
from ayllu.tools.python import MAX_OUTPUT, python_tool
from ayllu.tools.sandbox import WALLS, Limits, Sandbox
from ayllu.tools.tool import Toolbox


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    with Sandbox(tmp_path_factory.mktemp("work"), Limits(seconds=5)) as made:
        yield made


@pytest.fixture
def call(sandbox):
    box = Toolbox([python_tool(sandbox)], result_limit=4000)
    return lambda code: box.run("python", json.dumps({"code": code}))


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("6 * 7", "42"),
        ("print('a')\nprint('b')", "a\nb"),
        ("x = 3\nx ** 2", "9"),
        ("print(1)\n'two'", "1\n'two'"),
        ("x = 1", "(no output)"),
        ("print('Größe: 3 µm, తెలుగు')", "Größe: 3 µm, తెలుగు"),
        ("import statistics\nstatistics.mean([1, 2, 4.5])", "2.5"),
    ],
)
def test_value_or_output(call, code, text):
    result = call(code)
    assert result.ok and result.text == text


def test_an_error_is_a_result_and_shows_only_the_code(call):
    result = call("import json\ndef f(text):\n    return json.loads(text)\nf('{')")
    assert not result.ok and result.text.startswith("error: Traceback")
    assert 'File "<code>", line 4' in result.text and "JSONDecodeError" in result.text
    assert "python/json/" in result.text and "/lib/python" not in result.text and "walls" not in result.text


def test_syntax_error_has_its_line(call):
    result = call("x = (1,\ny = 2")
    assert not result.ok and "SyntaxError" in result.text


def test_files_are_named_and_stay(call):
    assert call("open('table.csv', 'w').write('a,b\\n')").text == "4\nfiles: 'table.csv' (4 bytes)"
    assert call("open('table.csv').read()").text == "'a,b\\n'"


def test_nothing_but_files_lives_from_call_to_call(call):
    call("import json, builtins\nx = 1\njson.loads = None\nbuiltins.print = None")
    assert "NameError" in call("x").text
    assert call("import json\nprint(json.loads('[1]'))").text == "[1]"


def test_long_output_is_cut_with_a_mark(call):
    result = call("print('x' * 100000)\nprint('the end')")
    assert result.ok and "cut]" in result.text and len(result.text) < MAX_OUTPUT + 100
    assert result.text.endswith("the end")


def test_time_is_told(tmp_path):
    with Sandbox(tmp_path, Limits(seconds=0.3)) as short:
        box = Toolbox([python_tool(short)])
        result = box.run("python", '{"code": "print(1)\\nwhile True: pass"}')
    assert not result.ok and result.text == "error: stopped after 0.3 s\n1"


def test_control_characters_do_not_reach_the_result(call):
    assert call("print('a\\x1b[31m\\x00b')").text == "a�[31m�b"


def test_status_of_exit(call):
    assert call("import sys\nsys.exit(3)").text == "error: exit status 3"
    assert call("import sys\nsys.exit('no such thing')").text == "error: no such thing"
    assert call("exit()").ok


def test_without_walls_there_is_no_tool(tmp_path):
    with pytest.raises(RefusedError, match="not run on this machine"):
        Sandbox(tmp_path, without=WALLS)
    with (
        Sandbox(tmp_path, without=WALLS, allow_unsafe=True) as open_field,
        pytest.raises(RefusedError, match="python is off"),
    ):
        python_tool(open_field)
