"""The calculator computes exactly, refuses what is no arithmetic, and never takes long."""

import math
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.agents.calculator import calculate, calculated, calculator


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2 + 3 * 4", "14"),
        ("0.1 + 0.2", "0.3"),
        ("10 / 4", "2.5"),
        ("-7 // 2", "-4"),
        ("7 % 3", "1"),
        ("2 ^ 10", "1024"),
        ("6 × 7 − 2", "40"),
        ("2 ** -2", "0.25"),
        ("sqrt(2.25)", "1.5"),
        ("2 ** 0.5", "1.4142135623731"),
        ("round(2.567, 2)", "2.57"),
        ("max(1, 2.5, 2)", "2.5"),
        ("factorial(20)", "2432902008176640000"),
        ("comb(52, 5)", "2598960"),
        ("2 ** 1000", "1.07150860718627e+301"),
        ("1.5e308 * 10", "1.5e+309"),
        ("sin(pi / 2)", "1"),
        ("100 * 1.07 ^ 2", "114.49"),
    ],
)
def test_arithmetic_comes_out(expression: str, value: str) -> None:
    """The value is exact where it is rational, and to 15 digits where not."""
    assert calculated(expression) == value


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("9**9**9", "power is too large"),
        ("(2**4000)*(2**4000)", "bits"),
        ("factorial(100000)", "factorial is too large"),
        ("comb(10**9, 5*10**8)", "too large"),
        ("round(1.5, 10**9)", "too many digits"),
        ("1e999", "too large"),
        ("exp(1000)", "too large"),
        ("sqrt(-1)", "sqrt"),
        ("(-8) ** (1/3)", "not real"),
        ("__import__('os').system('true')", "not arithmetic"),
        ("().__class__", "not arithmetic"),
        ("'a' * 10", "not arithmetic"),
        ("[1, 2]", "not arithmetic"),
        ("1 if 2 else 3", "not arithmetic"),
        ("lambda: 1", "not arithmetic"),
        ("x + 1", "not arithmetic"),
        ("True + 1", "not arithmetic"),
        ("1 << 100000", "operator"),
        ("2pi", "not an arithmetic"),
        ("1else", "not an arithmetic"),
        ("", "not an arithmetic"),
        ("-" * 200 + "1", "deeply"),
        ("1+" * 600 + "1", "characters"),
        ("sqrt(1, 2)", "takes 1"),
        ("\x00", "not an arithmetic"),
    ],
)
def test_what_is_no_bounded_arithmetic_is_refused(expression: str, why: str) -> None:
    """The message says what is wrong."""
    with pytest.raises(ValueError, match=why):
        calculate(expression)


async def test_a_division_by_zero_is_told() -> None:
    """The tool tells the model what went wrong."""
    seen = await calculator().call({"expression": "1 / (2 - 2)"})

    assert seen.kind == "error"
    assert seen.text == "ZeroDivisionError: division by zero"


numbers = st.integers(-(10**9), 10**9).map(str) | st.decimals(-1000, 1000, places=3).map(str)
expressions = st.recursive(
    numbers.map(lambda number: f"({number})"),
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda parts: f"({''.join(parts)})"),
    max_leaves=12,
)


@given(expressions)
def test_it_agrees_with_exact_fractions(expression: str) -> None:
    """The four operations give what fractions give."""
    exact = expression
    for token in sorted(set(re.findall(r"\((-?[\d.]+)\)", expression)), key=len, reverse=True):
        exact = exact.replace(f"({token})", f'(Fraction("{token}"))')
    try:
        expected = eval(exact, {"Fraction": Fraction})
    except ZeroDivisionError:
        with pytest.raises(ZeroDivisionError):
            calculate(expression)
        return

    assert calculate(expression) == expected


@given(st.text(alphabet="0123456789.+-*/%^()eE ,sqrtpiloga_", max_size=60) | st.text(max_size=60))
def test_any_text_gives_a_number_or_a_reason(text: str) -> None:
    """Nothing but the two promised errors comes out, and every number can be shown."""
    try:
        value = calculate(text)
    except (ValueError, ZeroDivisionError):
        return

    assert not isinstance(value, float) or math.isfinite(value)
    assert calculated(text)
