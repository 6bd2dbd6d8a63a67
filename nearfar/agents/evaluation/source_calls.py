"""Reads one call with named arguments out of Java or JavaScript source, and the literals in it.

Nothing is compiled: tokens, balanced brackets and the turns of operands and operators are all that is looked at. What
is read, and what is not, follows the verdicts of the official checker (bfcl-eval 2026.3.23), as
`benchmarks/bfcl_parity.py` measures them; where that is not what a compiler would say, the docstrings tell.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

SourceLanguage: TypeAlias = Literal["java", "javascript"]

_TOKEN = re.compile(
    r"""
    (?P<blank>\s+|//[^\n]*|/\*.*?\*/)
    |(?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`)
    |(?P<number>(?:0[xX][\da-fA-F_]+|\d[\d_]*(?:\.\d[\d_]*)?(?:[eE][+-]?\d+)?|\.\d+)[fFdDlLn]?)
    |(?P<name>[^\W\d]\w*|\$\w*)
    |(?P<sign>=>|->|::|\.\.\.|[=!]==?|&&|\|\||\?\?|\?\.|\+\+|--|[-+*/%&|^!~?:;,.()\[\]{}<>=@\#])
    """,
    re.VERBOSE | re.DOTALL,
)
_CLOSERS = {"(": ")", "[": "]", "{": "}"}
_PREFIXES = {"-", "+", "!", "~", "++", "--", "...", "new", "typeof", "await", "async", "void", "delete", "function"}
_POSTFIXES = {"++", "--"}
_NOT_BINARY = {",", ";", ")", "]", "}", "!", "~", "@", "#", "..."}


class UnreadableCall(ValueError):
    """The text is not a call."""


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # string, number, name or sign
    text: str
    start: int
    end: int


def read_call(source: str, language: SourceLanguage) -> tuple[str, dict[str, str]]:
    """The name of the first call in `source`, and its named arguments as source text, quotes of strings taken off.

    Arguments without a name say nothing, but for bare identifiers, which come under the name "". The body of an
    anonymous class is left out: a `HashMap` that is filled by `{{ put(…); }}` reads as an empty one.

    Raises:
        UnreadableCall: there is no call, something else stands around it, or a name comes twice.
    """
    tokens = _tokens(source)
    for statement in _statements(source, tokens, language):
        if any(token.text == "(" for token in statement):
            return _read_statement(source, statement, language)
    raise UnreadableCall("no call")


def _tokens(source: str) -> list[_Token]:
    tokens: list[_Token] = []
    place = 0
    while place < len(source):
        found = _TOKEN.match(source, place)
        if found is None:
            raise UnreadableCall(f"unreadable at {source[place : place + 20]!r}")
        place = found.end()
        kind = str(found.lastgroup)
        if kind != "blank":
            tokens.append(_Token(kind, found.group(), found.start(), place))
    return tokens


def _statements(source: str, tokens: Sequence[_Token], language: SourceLanguage) -> Iterator[list[_Token]]:
    """Runs of tokens that semicolons part, in JavaScript also line ends outside of brackets."""
    statement: list[_Token] = []
    depth = 0
    for token in tokens:
        is_new_line = (
            language == "javascript"
            and depth == 0
            and statement
            and token.kind == "name"
            and statement[-1].kind != "sign"
            and "\n" in source[statement[-1].end : token.start]
        )
        if is_new_line or (token.text == ";" and depth == 0):
            if statement:
                yield statement
            statement = []
            if not is_new_line:
                continue
        depth += (token.text in _CLOSERS and token.kind == "sign") - (
            token.text in _CLOSERS.values() and token.kind == "sign"
        )
        statement.append(token)
    if statement:
        yield statement


def _read_statement(source: str, tokens: Sequence[_Token], language: SourceLanguage) -> tuple[str, dict[str, str]]:
    opening = next(place for place, token in enumerate(tokens) if token.text == "(")
    head = tokens[:opening]
    is_path = len(head) % 2 == 1 and all(
        token.kind == "name" if place % 2 == 0 else token.text == "." for place, token in enumerate(head)
    )
    if not is_path:
        raise UnreadableCall("what stands before the bracket is no name")
    closing = _closing(tokens, opening)
    if closing != len(tokens) - 1:
        raise UnreadableCall("something follows the call")
    inside = tokens[opening + 1 : closing]
    arguments: dict[str, str] = {}
    for argument in _split(inside, is_trailing_comma_fine=language == "javascript"):
        _check_expression(argument)
        is_named = len(argument) > 2 and argument[0].kind == "name" and argument[1].text == "="
        if is_named:
            name, text = argument[0].text, _value_text(source, argument[2:], language)
        elif len(argument) == 1 and argument[0].kind == "name":
            name, text = "", argument[0].text
        else:
            continue
        if name in arguments:
            raise UnreadableCall(f"{name!r} comes twice")
        arguments[name] = text
    return source[head[0].start : head[-1].end], arguments


def _closing(tokens: Sequence[_Token], opening: int) -> int:
    """Where the bracket at `opening` is closed."""
    expected: list[str] = []
    for place in range(opening, len(tokens)):
        token = tokens[place]
        if token.kind != "sign":
            continue
        if token.text in _CLOSERS:
            expected.append(_CLOSERS[token.text])
        elif token.text in _CLOSERS.values():
            if not expected or token.text != expected.pop():
                raise UnreadableCall("brackets do not match")
            if not expected:
                return place
    raise UnreadableCall("a bracket is not closed")


def _split(tokens: Sequence[_Token], *, is_trailing_comma_fine: bool) -> list[Sequence[_Token]]:
    """The runs of tokens between the commas outside of brackets and of type arguments."""
    if not tokens:
        return []
    parts: list[Sequence[_Token]] = []
    start = place = 0
    while place < len(tokens):
        token = tokens[place]
        if token.kind == "sign" and token.text in _CLOSERS:
            place = _closing(tokens, place)
        elif token.text == "<" and (end := _type_arguments_end(tokens, place)) is not None:
            place = end
        elif token.text == ",":
            parts.append(tokens[start:place])
            start = place + 1
        place += 1
    parts.append(tokens[start:])
    if is_trailing_comma_fine and not parts[-1]:
        parts.pop()
    if not all(parts):
        raise UnreadableCall("nothing stands between two commas")
    return parts


def _type_arguments_end(tokens: Sequence[_Token], opening: int) -> int | None:
    """Where `<…>` after a type's name ends; None: the sign compares."""
    depth = 0
    for place in range(opening, len(tokens)):
        token = tokens[place]
        if token.text == "<":
            depth += 1
        elif token.text == ">":
            depth -= 1
            if depth == 0:
                follows = tokens[place + 1].text if place + 1 < len(tokens) else ""
                return place if follows in {"(", "[", "{", "::", ""} else None
        elif token.kind != "name" and token.text not in {",", "?", ".", "[", "]", "&"}:
            return None
    return None


def _check_expression(tokens: Sequence[_Token]) -> None:
    """Refuses two operands, or two operators, beside each other."""
    wants_operand = True
    place = 0
    while place < len(tokens):
        token = tokens[place]
        is_group = token.kind == "sign" and token.text in _CLOSERS
        end = _closing(tokens, place) if is_group else place
        if wants_operand:
            if token.text not in _PREFIXES:
                if token.kind == "sign" and not is_group:
                    raise UnreadableCall(f"{token.text!r} without a value before it")
                wants_operand = False
        elif is_group or token.text in _POSTFIXES:
            pass
        elif token.text == "<" and (type_end := _type_arguments_end(tokens, place)) is not None:
            end = type_end
        elif token.kind != "sign" and token.text != "instanceof":
            is_cast = place > 0 and tokens[place - 1].text == ")"
            if not is_cast:
                raise UnreadableCall(f"{token.text!r} follows a value")
        elif token.text in _NOT_BINARY:
            raise UnreadableCall(f"{token.text!r} follows a value")
        else:
            wants_operand = True
        place = end + 1
    if wants_operand:
        raise UnreadableCall("a value is missing")


def _value_text(source: str, tokens: Sequence[_Token], language: SourceLanguage) -> str:
    if len(tokens) == 1 and tokens[0].kind == "string":
        return tokens[0].text[1:-1] if tokens[0].text[0] != "`" else tokens[0].text
    end = tokens[-1].end
    if language == "java" and tokens[0].text == "new" and tokens[-1].text == "}":
        opening = next((place for place, token in enumerate(tokens) if token.text == "{"), None)
        if opening and tokens[opening - 1].text == ")":
            end = tokens[opening - 1].end
    return source[tokens[0].start : end]


# --- literals --------------------------------------------------------------------------------------------------------

_JAVA_NUMBERS: dict[str, tuple[re.Pattern[str], Callable[[str], int | float]]] = {
    **dict.fromkeys(("byte", "short", "integer"), (re.compile(r"-?\d+"), int)),
    "long": (re.compile(r"-?\d+[lL]"), lambda text: int(text[:-1])),
    "float": (re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?[fF]"), lambda text: float(text[:-1])),
    "double": (re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?"), float),
}
_JAVASCRIPT_NUMBERS: dict[str, tuple[re.Pattern[str], Callable[[str], int | float]]] = {
    "integer": (re.compile(r"-?\d+"), int),
    "float": (re.compile(r"-?\d+(\.\d+)?"), float),
    "Bigint": (re.compile(r"-?\d+n"), lambda text: int(text[:-1])),
}


def java_value(text: str, type_name: str, item_type: str | None = None) -> Any:
    """The Python value of Java source of a known type; the text itself where it is no literal of that type.

    A `long` needs its L and a `float` its f. Strings keep their quotes in an `Array` and lose them in an `ArrayList`.
    """
    text = text.strip()
    if type_name in _JAVA_NUMBERS:
        return _number(text, _JAVA_NUMBERS[type_name])
    if type_name == "boolean":
        return {"true": True, "false": False}.get(text, text)
    if type_name == "Array":
        found = re.fullmatch(r"new\s+\w+\s*\[\]\s*\{(.*)\}", text, re.DOTALL)
        return text if found is None else [_java_item(item, item_type) for item in _items(found[1])]
    if type_name == "ArrayList":
        return _java_list(text, item_type)
    if type_name == "HashMap":
        found = re.fullmatch(r"new\s+HashMap<.*?>\s*\(\)\s*(?:\{(.*)\})?", text, re.DOTALL)
        if found is None:
            return text
        puts = re.findall(r"put\(\"(.*?)\",\s*(.*?)\)", found[1] or "")
        return {key: _java_literal(value.strip()) for key, value in puts}
    return text


def _number(text: str, form: tuple[re.Pattern[str], Callable[[str], int | float]]) -> int | float | str:
    pattern, convert = form
    return convert(text) if pattern.fullmatch(text) else text


def _java_item(text: str, item_type: str | None) -> Any:
    return java_value(text, item_type) if item_type else _java_literal(text)


def _java_list(text: str, item_type: str | None) -> Any:
    found = re.fullmatch(r"new\s+ArrayList<\w*>\((?:Arrays\.asList\((.*)\))?\)\s*(?:\{\{(.*)\}\})?", text, re.DOTALL)
    if found is None:
        return text
    items = _items(found[1]) if found[1] else re.findall(r"add\((.+?)\)", found[2] or "")
    if item_type in ("String", "char"):
        return [item.strip()[1:-1] for item in items]
    return [_java_item(item.strip(), item_type) for item in items]


def _java_literal(text: str) -> Any:
    """What a literal of no known type says."""
    if text in ("true", "false"):
        return text == "true"
    if len(text) > 1 and text[0] == text[-1] == '"':
        return text[1:-1]
    for form in (_JAVA_NUMBERS["long"], _JAVA_NUMBERS["float"], _JAVA_NUMBERS["integer"], _JAVA_NUMBERS["double"]):
        if not isinstance(value := _number(text, form), str):
            return value
    return text


def javascript_value(text: str, type_name: str, item_type: str | None = None) -> Any:
    """The Python value of JavaScript source of a known type; the text itself where it is no literal of that type.

    Numbers in quotes are numbers in an object, as the official checker has it.
    """
    text = text.strip()
    if type_name == "String":
        return _unquoted(text)
    if type_name in _JAVASCRIPT_NUMBERS:
        return _number(text, _JAVASCRIPT_NUMBERS[type_name])
    if type_name == "Boolean":
        return {"true": True, "false": False}.get(text, text)
    if type_name == "array":
        found = re.fullmatch(r"\[(.*)\]|new\s+Array\((.*)\)", text, re.DOTALL)
        if found is None:
            return text
        items = _items(found[1] if found[1] is not None else found[2])
        is_nested = bool(items) and items[0].startswith("[")
        if item_type is None or is_nested:
            return [_javascript_literal(item) for item in items]
        return [javascript_value(item, "String" if item[:1] in ("'", '"') else item_type) for item in items]
    if type_name == "dict":
        return _javascript_object(text)
    return text


def _javascript_object(text: str) -> Any:
    if not (text.startswith("{") and text.endswith("}")):
        return text
    found: dict[str, Any] = {}
    for item in _items(text[1:-1]):
        key, colon, value = item.partition(":")
        if colon:
            value = value.strip()
            is_nested = value[:1] in ("[", "{")
            found[key.strip().strip("'\"")] = _javascript_literal(value if is_nested else value.strip("'\""))
    return found


def _javascript_literal(text: str) -> Any:
    if text.startswith("["):
        return javascript_value(text, "array")
    if text.startswith("{"):
        return _javascript_object(text)
    if text in ("true", "false"):
        return text == "true"
    for form in (_JAVASCRIPT_NUMBERS["integer"], _JAVASCRIPT_NUMBERS["float"]):
        if not isinstance(value := _number(text, form), str):
            return value
    return _unquoted(text)


def _unquoted(text: str) -> str:
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1] if is_quoted else text


def _items(text: str) -> list[str]:
    """The source of each item between commas; all of the text as one item where it cannot be read."""
    if not text.strip():
        return []
    try:
        tokens = _tokens(text)
        return [text[part[0].start : part[-1].end] for part in _split(tokens, is_trailing_comma_fine=True)]
    except UnreadableCall:
        return [item.strip() for item in text.split(",") if item.strip()]
