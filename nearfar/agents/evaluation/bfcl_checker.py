"""Whether calls are what a BFCL item wants: the verdict of the leaderboard's AST checker.

Written from the rules that the Berkeley Function-Calling Leaderboard describes (Patil et al., "AST evaluation
metrics"), and held against bfcl-eval 2026.3.23 by `benchmarks/bfcl_parity.py`. Gold is a list of calls, each argument
with the values that count as right; "" among them means that it may be left out. A gold value of another type than
the schema's is a variable's name, and compared letter by letter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from .call_text import Call, Language
from .source_calls import java_value, javascript_value

FaultKind: TypeAlias = Literal[
    "unreadable", "count", "function", "missing", "unexpected", "type", "value", "call", "no_call", "no_answer"
]


@dataclass(frozen=True, slots=True)
class Fault:
    """Why calls are wrong."""

    kind: FaultKind
    text: str  # in words


@dataclass(frozen=True, slots=True)
class Gold:
    """A call that is wanted, and the values that are right for each argument."""

    name: str
    arguments: Mapping[str, Sequence[Any]]


_PYTHON_TYPES: dict[str, type] = {
    "string": str,
    "integer": int,
    "float": float,
    "boolean": bool,
    "array": list,
    "tuple": list,
    "dict": dict,
    "any": str,
}
_JAVA_TYPES: dict[str, type] = {
    **dict.fromkeys(("byte", "short", "integer", "long"), int),
    **dict.fromkeys(("float", "double"), float),
    **dict.fromkeys(("String", "any", "char"), str),
    **dict.fromkeys(("Array", "ArrayList", "Queue", "Stack"), list),
    **dict.fromkeys(("HashMap", "Hashtable"), dict),
    "boolean": bool,
}
_JAVASCRIPT_TYPES: dict[str, type] = {
    **dict.fromkeys(("integer", "Bigint"), int),
    **dict.fromkeys(("String", "any"), str),
    "float": float,
    "Boolean": bool,
    "array": list,
    "dict": dict,
}
_TYPES: dict[Language, dict[str, type]] = {
    "python": _PYTHON_TYPES,
    "java": _JAVA_TYPES,
    "javascript": _JAVASCRIPT_TYPES,
}
_READERS: dict[Language, Callable[[str, str, str | None], Any]] = {"java": java_value, "javascript": javascript_value}
_WITH_ITEMS = {"array", "tuple", "Array", "ArrayList"}
_IGNORED = re.compile(r"[ ,./\-_*^]")


def check_calls(
    calls: Sequence[Call],
    gold: Sequence[Gold],
    functions: Sequence[Mapping[str, Any]],
    *,
    language: Language = "python",
    is_parallel: bool = False,
) -> Fault | None:
    """What is wrong with the calls; None: nothing.

    Args:
        calls: what the model wants called.
        gold: what it should want; one call unless `is_parallel`.
        functions: the item's function documents, of BFCL's form.
        language: of the schema's types.
        is_parallel: several calls in any order, each matched with the first gold call that is left and that it fits.
    """
    if len(calls) != len(gold):
        return Fault("count", f"{len(calls)} calls instead of {len(gold)}")
    left = list(calls)
    for wanted in gold if is_parallel else gold[:1]:
        document = next((each for each in functions if each["name"] == wanted.name), None)
        if document is None:
            return Fault("function", f"the item has no function {wanted.name!r}")
        faults = [_check_call(call, wanted, document, language) for call in left]
        if None not in faults:
            nearest = [fault for call, fault in zip(left, faults, strict=True) if call.name == wanted.name]
            return (nearest or faults)[0]
        del left[faults.index(None)]
    return None


def _check_call(call: Call, gold: Gold, document: Mapping[str, Any], language: Language) -> Fault | None:
    if call.name != gold.name:
        return Fault("function", f"{call.name!r} instead of {gold.name!r}")
    schema = document.get("parameters") or {}
    for name in schema.get("required") or ():
        if name not in call.arguments:
            return Fault("missing", f"{name!r} is required")
    properties = schema.get("properties") or {}
    for name, value in call.arguments.items():
        if name not in properties or name not in gold.arguments:
            return Fault("unexpected", f"{name!r} should not be given")
        if fault := _check_argument(name, value, gold.arguments[name], properties[name], language):
            return fault
    for name, allowed in gold.arguments.items():
        if name not in call.arguments and "" not in allowed:
            return Fault("missing", f"{name!r} should be given")
    return None


def _check_argument(
    name: str, value: Any, allowed: Sequence[Any], schema: Mapping[str, Any], language: Language
) -> Fault | None:
    type_name = schema.get("type", "any")
    types = _TYPES[language]
    wanted = types.get(type_name)
    if wanted is None:
        return Fault("type", f"{name!r} is of the unknown type {type_name!r}")
    item_type = (schema.get("items") or {}).get("type") if type_name in _WITH_ITEMS else None
    if language != "python":
        if not isinstance(value, str):
            return Fault("type", f"{name!r} is {value!r}, and not {language} source")
        value = _READERS[language](value, type_name, item_type)
    elif type_name == "tuple" and isinstance(value, tuple):
        value = list(value)
    elif type_name == "float" and type(value) is int:
        value = _as_float(value)
    fit = _fit(value, allowed, wanted, types.get(item_type) if item_type else None)
    if fit is None:
        return Fault("type", f"{name!r} is {value!r}, and not of type {type_name}")
    is_right = _is_allowed(value, allowed, wanted, item_type) if fit == "value" else value in allowed
    return None if is_right else Fault("value", f"{name!r} is {value!r}, and none of {list(allowed)!r}")


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def _type_of(allowed: Sequence[Any]) -> type | None:
    """The type of the gold values; None: the argument has to be left out."""
    return next((type(each) for each in allowed if each != ""), None)


def _fit(value: Any, allowed: Sequence[Any], wanted: type, item: type | None) -> Literal["value", "variable"] | None:
    """Whether the value is of the schema's type, or stands for a variable of it; None: neither."""
    gold_type = _type_of(allowed)
    if type(value) is wanted:
        if isinstance(value, list) and item and not any(_items_fit(value, each, item) for each in allowed):
            return None
        return "value" if gold_type in (None, wanted) else "variable"
    return "variable" if type(value) is gold_type else None


def _items_fit(value: Sequence[Any], allowed: Any, item: type) -> bool:
    """Whether every item is of the schema's type or of the gold's; any will do where the gold is no list."""
    return not isinstance(allowed, list) or all(type(each) in (item, _type_of(allowed)) for each in value)


def _is_allowed(value: Any, allowed: Sequence[Any], wanted: type, item_type: str | None) -> bool:
    if wanted is dict:
        return any(_is_dict_allowed(value, each) for each in allowed if each != "")
    if wanted is list and item_type == "dict":
        return any(
            len(value) == len(each) and all(_is_dict_allowed(a, b) for a, b in zip(value, each, strict=True))
            for each in allowed
            if isinstance(each, list | str)
        )
    if wanted is str:
        return _plain(value) in [_plain(each) for each in allowed if isinstance(each, str)]
    if wanted is list:
        plain = [_plain(each) for each in value]
        return plain in [[_plain(each) for each in choice] for choice in allowed if isinstance(choice, list | str)]
    return value in allowed


def _is_dict_allowed(value: Any, allowed: Any) -> bool:
    """Whether every entry has a right value and none that must be there is missing; no deeper than one level."""
    if not isinstance(value, dict) or not isinstance(allowed, dict):
        return False
    if any(key not in allowed for key in value):
        return False
    choices = {key: each if isinstance(each, list) else [each] for key, each in allowed.items()}
    if any(key not in value and "" not in right for key, right in choices.items()):
        return False
    return all(_plain(each) in [_plain(right) for right in choices[key]] for key, each in value.items())


def _plain(value: Any) -> Any:
    """A string without blanks, case and the signs , . / - _ * ^, and with one kind of quotes; else the value."""
    return _IGNORED.sub("", value).lower().replace("'", '"') if isinstance(value, str) else value
