"""Grammars are tried out before any work, in a process of their own: what is too much is refused, quickly."""

import json
import subprocess
import sys
import time
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
from rows import sequence

from ayllu.engine import grammar as grammars
from ayllu.engine.grammar import matcher
from ayllu.engine.request import Grammar
from ayllu.errors import RequestError
from ayllu.text.tokenizer import train_tokenizer

TEXT = '{"name": "Ana", "age": 31, "tags": ["x", "y"]} true false null 2024-05-06 ఎలా "é" yes no maybe '


def schema(value):
    return Grammar("json_schema", json.dumps(value))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(iter([TEXT * 4]), 340)


DEEP = 60_000
BOMBS = {
    "60,000 brackets": Grammar("regex", "(" * 30_000 + "a" + ")" * 30_000),
    "deep brackets": Grammar("regex", "(" * 200 + "a" + ")" * 200),
    "deep brackets in a grammar": Grammar("lark", "start: " + "(" * 5000 + '"a"' + ")" * 5000),
    "deep schema": Grammar("json_schema", '{"items":' * 5000 + "{}" + "}" * 5000),
    "deep pattern": schema({"type": "string", "pattern": "(" * 5000 + "a" + ")" * 5000}),
    "deep property pattern": schema({"patternProperties": {"(" * 5000 + ")" * 5000: {}}}),
    "unclosed": Grammar("regex", "(" * 60_000),
    "long": Grammar("regex", "a" * 70_000),
    "huge count": Grammar("regex", "a{1000000000}"),
    "nested counts": Grammar("regex", "((a{100}){100}){100}"),
    "lark counts": Grammar("lark", 'start: ("a"~10000)~10000'),
    "lark count": Grammar("lark", 'start: "a"~100000000'),
    "pattern count": schema({"type": "string", "pattern": "(a{1000}){1000}"}),
    "ref to itself": schema({"$ref": "#"}),
    "ref loop": schema({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#"}}}),
    "endless object": schema({"type": "object", "properties": {"x": {"$ref": "#"}}, "required": ["x"]}),
    "endless list": schema({"type": "array", "items": {"$ref": "#"}, "minItems": 1}),
    "endless choice": schema(
        {"oneOf": [{"type": "array", "prefixItems": [{"$ref": "#"}], "minItems": 1}, {"$ref": "#"}]}
    ),
    "endless grammar": Grammar("lark", "start: x\nx: x"),
    "from the network": schema({"$ref": "http://example.com/schema.json"}),
    "from a file": schema({"$ref": "file:///etc/passwd"}),
    "look-around": Grammar("regex", "(?=a)b"),
    "back reference": Grammar("regex", r"(a)\1"),
    "no JSON": Grammar("json_schema", "{"),
    "no schema": Grammar("json_schema", "[]"),
    "unknown keyword": schema({"not": {}}),
    "keywords to be ignored": schema({"not": {}, "x-guidance": {"lenient": True}}),
    "unsatisfiable": schema({"type": "string", "enum": [3]}),
    "nothing": Grammar("regex", ""),
    "no choices": Grammar("choice", "[]"),
    "empty choice": Grammar("choice", '["a", ""]'),
    "numbers as choices": Grammar("choice", "[1]"),
    "no grammar": Grammar("lark", "hello"),
    "two lines": Grammar("lark", "\n\n"),
    "null": Grammar("regex", "\x00("),
    "surrogate": Grammar("regex", "\ud800"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_in_time(tokenizer, name):
    began = time.process_time()
    with pytest.raises(RequestError) as caught:
        matcher(BOMBS[name], tokenizer, tokenizer.vocab_size)
    assert time.process_time() - began < 1, "the work is not done here"
    text = str(caught.value)
    assert len(text) < 1500 and "Traceback" not in text and ".py" not in text and "/home" not in text


TREE = {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/t"}}}}


@pytest.mark.parametrize(
    "source",
    [
        {"$ref": "#/$defs/t", "$defs": {"t": {**TREE, "required": ["kids"]}}},
        {"anyOf": [{"type": "null"}, {"properties": {"next": {"$ref": "#"}}, "required": ["next"]}]},
        {"type": "object", "properties": {"next": {"$ref": "#"}, "n": {}}, "required": ["n"]},
        {"type": ["object", "null"], "properties": {"x": {"$ref": "#"}}, "required": ["x"]},
    ],
)  # fmt: skip
def test_recursion_that_can_end_is_welcome(tokenizer, source):
    end = tokenizer.control["<|end|>"]
    one = sequence(tokenizer=tokenizer, vocab=tokenizer.vocab_size, grammar=schema(source), stop_ids=(end,))
    assert one.state.matcher.allowed()[0].any()


def test_a_compiler_that_hangs_or_dies_costs_its_own_process(tokenizer, monkeypatch, tmp_path):
    fake = tmp_path / "grammar_worker.py"
    monkeypatch.setattr(grammars, "_worker", None)
    monkeypatch.setattr(grammars, "_verdicts", defaultdict(OrderedDict))
    monkeypatch.setattr(grammars, "_PATIENCE", 2.0)
    monkeypatch.setattr(grammars, "__file__", str(tmp_path / "grammar.py"))
    for body in (
        "import time; input(); time.sleep(60)",
        "import os; input(); os.abort()",
        "print('{', end='')",
    ):
        fake.write_text(body)
        with pytest.raises(RequestError, match="too much time"):
            grammars.checked(Grammar("regex", f"a{len(body)}"))
    monkeypatch.undo()
    assert matcher(Grammar("regex", "abc"), tokenizer, tokenizer.vocab_size).allowed()


def test_a_thread_that_is_asking_when_the_program_ends_says_nothing():
    code = """if True:
        import contextlib, threading, time
        from ayllu.engine.grammar import checked
        from ayllu.engine.request import Grammar
        from ayllu.errors import AylluError

        def ask():
            with contextlib.suppress(AylluError):
                while True:
                    checked(Grammar("regex", f"a{time.monotonic()}"))

        threading.Thread(target=ask, daemon=True).start()
        time.sleep(SECONDS)
    """
    for seconds in ("0", "0.1", "0.3"):
        done = subprocess.run([sys.executable, "-c", code.replace("SECONDS", seconds)], capture_output=True)
        assert (done.returncode, done.stderr) == (0, b"")


def test_the_workers_timer_ends_it(monkeypatch):
    """A loop in compiled code that nothing from Python could break off."""
    import signal
    import subprocess
    import sys
    from pathlib import Path

    code = (
        f"import sys; sys.path.insert(0, {str(Path(grammars.__file__).parent)!r})\n"
        "import grammar_worker as w\n"
        "w.SECONDS = 0.3\n"
        "w.answer = lambda line: sum(iter(int, 1))\n"
        "w.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], input=b"{}\n", timeout=120)
    assert done.returncode == -signal.SIGPROF


def test_compiled_grammars_are_kept(tokenizer):
    person = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}}}
    spec = schema({"type": "array", "items": person})
    matcher(spec, tokenizer, tokenizer.vocab_size)
    times = []
    for _ in range(20):
        began = time.process_time()
        one = matcher(spec, tokenizer, tokenizer.vocab_size)
        times.append(time.process_time() - began)
        one.consume(tokenizer.encode("[")[0])  # copies don't share their place
    assert np.median(times) < 0.01
