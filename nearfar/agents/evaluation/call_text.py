"""Reads function calls out of what a model wrote: BFCL's own form, JSON, or calls between other words."""

from __future__ import annotations

import ast
import json
import operator
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from .source_calls import UnreadableCall, read_call

Language: TypeAlias = Literal["python", "java", "javascript"]

#: The largest result of arithmetic in an argument, in characters or in bits.
_LARGEST = 10_000


@dataclass(frozen=True, slots=True)
class Call:
    """A function's name and its named arguments; in Java and JavaScript, the arguments' source text."""

    name: str
    arguments: Mapping[str, Any]


def read_calls(text: str, language: Language = "python") -> list[Call]:
    """The calls of a text that is nothing but calls: `[f(a=1), g()]`, also without brackets or in a code fence.

    Positional arguments say nothing, since no gold answer has any. Java and JavaScript give at most one call.

    Raises:
        UnreadableCall: it is not of this form; an empty list of calls is.
    """
    text = text.strip("`\n ")
    text = text if text.startswith("[") else f"[{text}"
    text = text if text.endswith("]") else f"{text}]"
    if language == "python":
        return _read_python(text)
    name, arguments = read_call(text[1:-1], language)
    return [Call(name, arguments)]


def find_calls(text: str, names: Iterable[str], language: Language = "python") -> list[Call]:
    """The calls in a text of any form: as `read_calls` reads them, in JSON, or among other words.

    Args:
        text: what the model wrote.
        names: the functions that it could call; among words only these are looked for.
        language: of the calls.
    """
    known = set(names)
    try:
        found = read_calls(text, language)
    except UnreadableCall:
        found = []
    return found or _find_json(text, known, language) or list(_find_among_words(text, known, language))


def calls_from_json(value: Any) -> list[Call]:
    """The calls of a decoded JSON value.

    Takes a call or a list of calls, each as `{"f": {"a": 1}}`, as `{"name": "f", "arguments": {"a": 1}}` (also
    "parameters", "args" or "input"; the arguments also as JSON text) or as OpenAI's `{"function": {…}}`.

    Raises:
        UnreadableCall: it is none of these.
    """
    entries = value if isinstance(value, list) else [value]
    return [_call_from_json(entry) for entry in entries]


_ARGUMENT_KEYS = ("arguments", "parameters", "args", "input")


def _call_from_json(entry: Any) -> Call:
    if not isinstance(entry, dict):
        raise UnreadableCall(f"{entry!r} is no call")
    if isinstance(entry.get("function"), dict):
        entry = entry["function"]
    name = entry.get("name", entry.get("function"))
    key = next((key for key in _ARGUMENT_KEYS if key in entry), None)
    if isinstance(name, str) and (key is not None or len(entry) == 1):
        return Call(name, _arguments(entry[key]) if key is not None else {})
    if len(entry) == 1:
        [(name, arguments)] = entry.items()
        return Call(name, _arguments(arguments))
    raise UnreadableCall(f"{entry!r} is no call")


def _arguments(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value or "{}")
        except (ValueError, RecursionError) as exc:
            raise UnreadableCall("the arguments are no JSON") from exc
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UnreadableCall(f"{value!r} are no arguments")
    return value


def write_calls(calls: Sequence[Call]) -> str:
    """The calls in BFCL's own form, with Python literals."""
    return f"[{', '.join(write_call(call) for call in calls)}]"


def write_call(call: Call) -> str:
    """One call with named arguments and Python literals."""
    return f"{call.name}({', '.join(f'{name}={value!r}' for name, value in call.arguments.items())})"


# --- Python ----------------------------------------------------------------------------------------------------------


def _read_python(text: str) -> list[Call]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            body = ast.parse(text.strip().strip("'"), mode="eval").body
        if isinstance(body, ast.Call):
            return [_python_call(body)]
        if not isinstance(body, ast.List | ast.Tuple | ast.Set):
            raise UnreadableCall("no list of calls")
        return [_python_call(element) for element in body.elts]
    except (SyntaxError, ValueError, RecursionError, MemoryError) as exc:
        raise UnreadableCall(f"no Python: {exc}") from exc


def _python_call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call):
        raise UnreadableCall("no call")
    path: list[str] = []
    function: ast.expr = node.func
    while isinstance(function, ast.Attribute):
        path.append(function.attr)
        function = function.value
    if isinstance(function, ast.Name):
        path.append(function.id)
    arguments = {keyword.arg or "**": _python_value(keyword.value) for keyword in node.keywords}
    return Call(".".join(reversed(path)), arguments)


def _python_value(node: ast.expr) -> Any:
    """What an argument's expression stands for; a name stands for itself, as a string."""
    match node:
        case ast.Constant(value=value):
            return "..." if value is Ellipsis else value
        case ast.Name(id=name):
            return name
        case ast.List(elts=elements):
            return [_python_value(element) for element in elements]
        case ast.Tuple(elts=elements):
            return tuple(_python_value(element) for element in elements)
        case ast.Dict(keys=keys, values=values):
            if any(key is None for key in keys):
                raise UnreadableCall("a dictionary is unpacked")
            return {_key(key): _python_value(value) for key, value in zip(keys, values, strict=True) if key}
        case ast.UnaryOp() | ast.BinOp():
            return _arithmetic(node)
        case ast.Call(keywords=[]):
            return ast.unparse(node)
        case ast.Call():
            call = _python_call(node)
            return {call.name: dict(call.arguments)}
        case ast.Subscript():
            return ast.unparse(node)
    raise UnreadableCall(f"{type(node).__name__} is no value")


def _key(node: ast.expr) -> Any:
    key = _python_value(node)
    try:
        hash(key)
    except TypeError as exc:
        raise UnreadableCall("a dictionary's key is no plain value") from exc
    return key


_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


def _arithmetic(node: ast.expr) -> Any:
    """What numbers under arithmetic come to, also strings and lists that are added; bounded in size."""
    match node:
        case ast.Constant(value=value) if isinstance(value, int | float | complex | str):
            return value
        case ast.List():
            return _python_value(node)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(_arithmetic(operand))
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return +_number(_arithmetic(operand))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _OPERATORS:
            return _apply(sign, _arithmetic(left), _arithmetic(right))
    raise UnreadableCall(f"{type(node).__name__} is no arithmetic")


def _number(value: Any) -> Any:
    if isinstance(value, str | list):
        raise UnreadableCall("a number is wanted")
    return value


def _apply(sign: ast.operator, left: Any, right: Any) -> Any:
    if isinstance(left, str | list) or isinstance(right, str | list):
        if not isinstance(sign, ast.Add) or type(left) is not type(right) or len(left) + len(right) > _LARGEST:
            raise UnreadableCall("only numbers are calculated with")
    elif isinstance(sign, ast.Pow):
        bits = left.bit_length() if isinstance(left, int) else 64
        if not isinstance(right, int | float) or bits * abs(right) > _LARGEST:
            raise UnreadableCall("the power is too large")
    try:
        return _OPERATORS[type(sign)](left, right)
    except (ArithmeticError, TypeError) as exc:
        raise UnreadableCall(f"cannot be calculated: {exc}") from exc


# --- any form --------------------------------------------------------------------------------------------------------


def _find_json(text: str, names: set[str], language: Language) -> list[Call]:
    """The calls of the first JSON value in `text` that holds any."""
    decoder = json.JSONDecoder()
    for found in re.finditer(r"[\[{]", text):
        try:
            value, _ = decoder.raw_decode(text, found.start())
            calls = calls_from_json(value)
        except (ValueError, RecursionError):
            continue
        if calls and all(call.name in names for call in calls):
            return [_as_source(call) for call in calls] if language != "python" else calls
    return []


def _as_source(call: Call) -> Call:
    """The call with its arguments as source text, where JSON gave values."""
    arguments = {name: value if isinstance(value, str) else json.dumps(value) for name, value in call.arguments.items()}
    return Call(call.name, arguments)


def _find_among_words(text: str, names: set[str], language: Language) -> Iterator[Call]:
    """Every readable call of a known function, in order; none inside of another."""
    if not names:
        return
    pattern = re.compile(rf"(?<![\w.])(?:{'|'.join(re.escape(name) for name in sorted(names, key=len)[::-1])})\s*\(")
    place = 0
    while found := pattern.search(text, place):
        place = found.end()
        end = _matching_bracket(text, found.end() - 1)
        if end is None:
            continue
        try:
            yield from read_calls(text[found.start() : end], language)
        except UnreadableCall:
            continue
        place = end


def _matching_bracket(text: str, opening: int) -> int | None:
    """The place behind the bracket that closes the one at `opening`, quotes left out."""
    depth, quote, place = 0, "", opening
    while place < len(text):
        character = text[place]
        if quote:
            if character == "\\":
                place += 1
            elif character == quote:
                quote = ""
        elif character in "\"'":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if depth == 0:
                return place + 1
        place += 1
    return None
