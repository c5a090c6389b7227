"""The calculator against Python's own fractions and parser, and against hostile expressions."""

import ast
import operator
import time
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ayllu.tools.calculator import CALCULATOR, MAX_DEPTH, MAX_LENGTH, MAX_VALUE, canonical, evaluate
from ayllu.tools.tool import Toolbox, ToolError

OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


def by_python(text: str) -> Fraction:
    """The same expression through Python's parser and Fraction."""

    def value(node: ast.AST) -> Fraction:
        if isinstance(node, ast.Constant):
            return Fraction(ast.get_source_segment(text, node))
        if isinstance(node, ast.UnaryOp):
            return OPERATORS[type(node.op)](value(node.operand))
        assert isinstance(node, ast.BinOp)
        return Fraction(OPERATORS[type(node.op)](value(node.left), value(node.right)))

    return value(ast.parse(text, mode="eval").body)


numbers = st.integers(0, 999).map(str) | st.decimals(0, 99, places=2).map(str)
expressions = st.recursive(
    numbers,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "%", " + ", " * "]), inner).map("".join),
        inner.map("({})".format),
        inner.map("-{}".format),
        st.tuples(inner, st.sampled_from(["**2", "**0", "**3", "**-1"])).map("".join),
    ),
    max_leaves=8,
).filter(lambda text: len(text) <= MAX_LENGTH)


@given(expressions)
def test_agrees_with_python(text):
    try:
        expected = by_python(text)
    except ZeroDivisionError:
        with pytest.raises(ToolError, match="division by zero"):
            evaluate(text)
        return
    try:
        assert evaluate(text) == expected
        printed = text.replace("**", "^").replace("*", "×").replace("/", "÷").replace("-", "−")
        assert evaluate(printed) == expected
    except ToolError as error:  # an intermediate value may exceed the bound although the result doesn't
        known = ["too large", "nested"] + (
            ["whole exponents"] if "**2**-1" in text or "**3**-1" in text else []
        )
        assert any(reason in str(error) for reason in known)


@given(st.fractions(max_denominator=10**6) | st.integers(-(10**60), 10**60))
def test_canonical_is_near_and_stable(value):
    text = canonical(value)
    back = Fraction(text)
    assert canonical(back) == text, "writing what was read gives the same text"
    assert abs(back - value) <= max(abs(Fraction(value)), 0) * Fraction(1, 10**11)
    assert "e" not in text and not text.startswith("+") and text != "-0"
    assert "." not in text or not text.endswith(("0", "."))


@given(st.decimals(-(10**9), 10**9, places=6))
def test_canonical_is_exact_for_short_decimals(value: Decimal):
    assert Fraction(canonical(Fraction(value))) == Fraction(value)


@given(st.text(alphabet="0123456789+-*/^%(). ", max_size=60))
def test_any_text_gives_a_value_or_a_tool_error_at_once(text):
    began = time.monotonic()
    try:
        value = evaluate(text)
        assert abs(value.numerator) <= MAX_VALUE and value.denominator <= MAX_VALUE
    except ToolError:
        pass
    assert time.monotonic() - began < 0.5


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("417238+385112", "802350"),
        ("2", "2"),
        ("4/2", "2"),
        ("1/3", "0.333333333333"),
        ("2/3", "0.666666666667"),
        ("1/3*3", "1"),
        ("0.1+0.2", "0.3"),
        ("-2^2", "-4"),
        ("2^3^2", "512"),
        ("2^-1", "0.5"),
        ("-7%3", "2"),
        ("2*-3", "-6"),
        (".5*4", "2"),
        ("10-4-3", "3"),
        ("100/10/5", "2"),
        ("10^13/3", "3333333333333"),
        ("1000/7", "142.857142857"),
        ("0-0", "0"),
    ],
)
def test_examples(text, answer):
    assert canonical(evaluate(text)) == answer


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("9**9**9", "too large"),
        ("9^9^9^9^9^9", "too large"),
        ("(10^30)^3", "too large"),
        ("0.1^61", "too large"),
        ("10^60+1", "too large"),
        ("2^0.5", "whole exponents"),
        ("0^-1", "division by zero"),
        ("1/(2-2)", "division by zero"),
        ("5%0", "division by zero"),
        ("", "empty"),
        ("1+", "ends too early"),
        ("(1+2", r"\) is missing"),
        ("1+2)", "unexpected"),
        ("1 2", "unexpected"),
        ("*2", "unexpected"),
        ("1,000", "can't read"),
        ("1e9", "can't read"),
        ("1.", "can't read"),
        ("__import__('os')", "can't read"),
        ("౧+౨", "can't read"),
        ("(" * (MAX_DEPTH + 1) + "1" + ")" * (MAX_DEPTH + 1), "nested"),
        ("-" * 150 + "1", "nested"),
        ("1" + "^1" * 99, "nested"),
        ("1+" * 200 + "1", "longer"),
    ],
)
def test_refusals_say_why(text, why):
    with pytest.raises(ToolError, match=why):
        evaluate(text)


def test_nesting_up_to_the_bound_is_fine():
    assert evaluate("(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH) == 1


def test_as_a_tool():
    box = Toolbox([CALCULATOR])
    assert box.run("calculator", '{"expression":"(417+385)*2"}').text == "1604"
    failed = box.run("calculator", '{"expression":"1/0"}')
    assert (failed.ok, failed.valid, failed.text) == (False, True, "error: division by zero")
    too_long = box.run("calculator", '{"expression":"%s"}' % ("1+" * 200 + "1"))
    assert (too_long.ok, too_long.valid) == (False, False)
