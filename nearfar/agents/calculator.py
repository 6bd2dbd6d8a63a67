"""Arithmetic for models: a parser of its own over Python's syntax tree, bounded in time, memory and depth."""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Final, TypeAlias

from .functions import FunctionTool
from .types import ToolHints

Number: TypeAlias = "int | float | Fraction"

_MAX_CHARACTERS: Final = 1_000
_MAX_DEPTH: Final = 60
_MAX_BITS: Final = 4_096  # of an exact number: over a thousand digits
_MAX_DIGITS: Final = 60  # shown of an exact number; more are rounded to a float

#: A number that runs into a word, which Python's parser takes with a warning: `2pi`, `1if`.
_RUN_ON = re.compile(r"(?<![A-Za-z_\d.])(?=\.?\d)[\d.]+(?!e[+-]?\d)[A-Za-z_]", re.IGNORECASE)

_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-", "^": "**", "π": "pi"})

_BINARY: dict[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Mod: operator.mod,
    ast.FloorDiv: operator.floordiv,
}
_CONSTANTS: dict[str, Number] = {"pi": math.pi, "e": math.e, "tau": math.tau}
_FUNCTIONS: dict[str, tuple[Callable[..., Number], int, int]] = {  # with the least and the most arguments
    "sqrt": (lambda x: _root(x), 1, 1),
    "cbrt": (math.cbrt, 1, 1),
    "abs": (abs, 1, 1),
    "round": (lambda x, digits=0: _rounded(x, digits), 1, 2),
    "floor": (math.floor, 1, 1),
    "ceil": (math.ceil, 1, 1),
    "min": (min, 1, 100),
    "max": (max, 1, 100),
    "sum": (lambda *xs: sum(xs), 1, 100),
    "exp": (math.exp, 1, 1),
    "ln": (math.log, 1, 1),
    "log": (math.log, 1, 2),
    "log2": (math.log2, 1, 1),
    "log10": (math.log10, 1, 1),
    "sin": (math.sin, 1, 1),
    "cos": (math.cos, 1, 1),
    "tan": (math.tan, 1, 1),
    "asin": (math.asin, 1, 1),
    "acos": (math.acos, 1, 1),
    "atan": (math.atan, 1, 1),
    "atan2": (math.atan2, 2, 2),
    "degrees": (math.degrees, 1, 1),
    "radians": (math.radians, 1, 1),
    "factorial": (lambda n: _factorial(n), 1, 1),
    "gcd": (lambda *ns: math.gcd(*map(_whole, ns)), 1, 100),
    "lcm": (lambda *ns: math.lcm(*map(_whole, ns)), 1, 8),
    "comb": (lambda n, k: _combinations(n, k), 2, 2),
}


def calculate(expression: str) -> Number:
    """The value of an arithmetic expression; whole numbers and fractions are exact.

    Takes + - * / // % ** (or ^), parentheses, pi, e, tau and the usual functions. No name, attribute, text or call
    of anything else is looked up, and no number grows beyond 4,096 bits.

    Raises:
        ValueError: it is not arithmetic, too long, too deep or too large; the message says which.
        ZeroDivisionError: it divides by zero.
    """
    if len(expression) > _MAX_CHARACTERS:
        raise ValueError(f"the expression has {len(expression)} characters; at most {_MAX_CHARACTERS} are taken")
    written = expression.strip().translate(_SIGNS)
    if _RUN_ON.search(written):
        raise ValueError(f"{expression!r} is not an arithmetic expression; write products with *")
    try:
        tree = ast.parse(written, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as exc:
        raise ValueError(f"{expression!r} is not an arithmetic expression") from exc
    try:
        return _bounded(_value(tree.body, 0))
    except OverflowError as exc:
        raise ValueError("the result is too large") from exc
    except ZeroDivisionError as exc:
        raise ZeroDivisionError("division by zero") from exc


def calculated(expression: str) -> str:
    """The value as text: exact where it is whole, else to 15 significant digits; `calculate` says what it raises."""
    value = calculate(expression)
    if isinstance(value, Fraction) and value.denominator == 1:
        value = value.numerator
    if isinstance(value, int):
        digits = str(value)
        return digits if len(digits) <= _MAX_DIGITS else _scientific(value)
    try:
        number = float(value)
    except OverflowError:
        return _scientific(round(value))
    return f"{number:.15g}"


def calculator() -> FunctionTool:
    """The calculator as a tool."""

    def calculator(expression: str) -> str:
        """Computes an arithmetic expression exactly.

        Args:
            expression: numbers with + - * / // % ** and parentheses, pi, e, and functions such as sqrt, round, log, sin
        """
        return calculated(expression)

    return FunctionTool(
        calculator,
        hints=ToolHints(read_only=True, destructive=False, idempotent=True, open_world=False),
    )


def _value(node: ast.expr, depth: int) -> Number:
    if depth > _MAX_DEPTH:
        raise ValueError("the expression is nested too deeply")
    match node:
        case ast.Constant(value=bool() | str() | bytes() | complex() | None):
            pass
        case ast.Constant(value=int() as value):
            return _bounded(value)
        case ast.Constant(value=float() as value):
            return _exact(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, depth + 1)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _value(operand, depth + 1)
        case ast.BinOp(left=left, op=op, right=right):
            return _bounded(_operated(op, _value(left, depth + 1), _value(right, depth + 1)))
        case ast.Name(id=name) if name in _CONSTANTS:
            return _CONSTANTS[name]
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return _called(name, [_value(arg, depth + 1) for arg in args])
    raise ValueError(f"{ast.unparse(node)[:40]!r} is not arithmetic")


def _operated(op: ast.operator, left: Number, right: Number) -> Number:
    if isinstance(op, ast.Div):
        return left / right if isinstance(left, float) or isinstance(right, float) else Fraction(left) / right
    if isinstance(op, ast.Pow):
        return _power(left, right)
    if type(op) in _BINARY:
        return _BINARY[type(op)](left, right)
    raise ValueError("an operator is not arithmetic; take + - * / // % **")


def _power(base: Number, exponent: Number) -> Number:
    if isinstance(exponent, Fraction) and exponent.denominator == 1:
        exponent = exponent.numerator
    if isinstance(base, float) or not isinstance(exponent, int):
        if base < 0 and exponent != int(exponent):
            raise ValueError("a root of a negative number is not real")
        return math.pow(base, exponent)
    if base == 0 and exponent < 0:
        raise ZeroDivisionError("0 has no negative power")
    if _bits(base) * abs(exponent) > 2 * _MAX_BITS:
        raise ValueError("the power is too large")
    exact: Fraction = Fraction(base) ** exponent
    return exact


def _called(name: str, values: list[Number]) -> Number:
    function, least, most = _FUNCTIONS[name]
    if not least <= len(values) <= most:
        raise ValueError(f"{name} takes {least if least == most else f'{least} to {most}'} numbers")
    try:
        return _bounded(function(*values))
    except ValueError as exc:
        raise ValueError(f"{name}: {exc}") from exc


def _root(x: Number) -> Number:
    if not isinstance(x, float) and x >= 0:
        exact = Fraction(x)
        top, bottom = math.isqrt(exact.numerator), math.isqrt(exact.denominator)
        if top * top == exact.numerator and bottom * bottom == exact.denominator:
            return Fraction(top, bottom)
    return math.sqrt(x)


def _rounded(x: Number, digits: Number) -> Number:
    places = _whole(digits)
    if abs(places) > 1_000:
        raise ValueError("too many digits")
    exact = Fraction(x)
    return round(exact, places) if places else round(exact)


def _factorial(n: Number) -> Number:
    number = _whole(n)
    if number > 500:
        raise ValueError("the factorial is too large")
    return math.factorial(number)


def _combinations(n: Number, k: Number) -> Number:
    if _whole(n) > 4_000:
        raise ValueError("the number of combinations is too large")
    return math.comb(_whole(n), _whole(k))


def _whole(x: Number) -> int:
    if x != int(x):
        raise ValueError(f"{x} is not a whole number")
    return int(x)


def _exact(value: float) -> Number:
    """A written decimal as the fraction that it means: 0.1 is a tenth."""
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return Fraction(repr(value))


def _bits(value: Number) -> int:
    if isinstance(value, Fraction):
        return max(value.numerator.bit_length(), value.denominator.bit_length())
    return value.bit_length() if isinstance(value, int) else 0


def _bounded(value: Number) -> Number:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("the result is too large")
    if _bits(value) > _MAX_BITS:
        raise ValueError(f"a number has more than {_MAX_BITS} bits")
    return value


def _scientific(value: int) -> str:
    digits = str(abs(value))
    rounded = round(int(digits[:17]), -2)
    mantissa = str(rounded)
    exponent = len(digits) - 17 + len(mantissa) - 1
    return f"{'-' if value < 0 else ''}{mantissa[0]}.{mantissa[1:].rstrip('0') or '0'}e+{exponent}"
