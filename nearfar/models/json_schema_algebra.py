"""Schemas made of schemas: of what fits all of several, and of what does not fit one.

Schemas of one piece, since a grammar is compiled from one; what cannot be said in one piece is told of and not guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import gcd
from typing import Any, Final

from .grammar import Impossible, Unsupported
from .json_schema import ASSERTIONS, Document, Schema, assertions, same
from .text_grammar import searcher

MAX_OPTIONS: Final = 64  # that one schema is split into
TYPES: Final = ("object", "array", "string", "integer", "number", "boolean", "null")

#: Keywords that apply other schemas to the same value.
_APPLICATORS: Final = frozenset({"$ref", "allOf", "anyOf", "oneOf", "not", "if", "dependentSchemas"})

#: Our own keyword, for `unevaluatedProperties` of a schema while what it applies to the same object is merged into it.
_REST: Final = "x-nearfar-rest"

#: For each bound the type that it is of, the bound of what it rules out, and how far that is from it.
_OPPOSITES: Final[Mapping[str, tuple[str, str, int]]] = {
    "minimum": ("number", "exclusiveMaximum", 0),
    "maximum": ("number", "exclusiveMinimum", 0),
    "exclusiveMinimum": ("number", "maximum", 0),
    "exclusiveMaximum": ("number", "minimum", 0),
    "minLength": ("string", "maxLength", -1),
    "maxLength": ("string", "minLength", 1),
    "minItems": ("array", "maxItems", -1),
    "maxItems": ("array", "minItems", 1),
    "minProperties": ("object", "maxProperties", -1),
    "maxProperties": ("object", "minProperties", 1),
}


def merged(document: Document, schemas: Iterable[Schema], where: str) -> Schema:
    """A schema of what fits all of them.

    Raises:
        Impossible: nothing can.
        Unsupported: no schema of one piece says it.
    """
    parts: list[Schema] = [part for part in schemas if _says(part)]
    if len(parts) == 1:
        return parts[0]
    result: dict[str, Any] = {}
    while parts:
        each = parts.pop(0)
        document.work(f"{where}: it is too large, or refers to itself without end")
        if each is False:
            raise Impossible(f"{where}: nothing fits")
        if each is True:
            continue
        part = document.assertions(each)
        _close_rest(part, where)
        if "$ref" in part:
            parts[:0] = [document.resolved(part.pop("$ref"), where), part]
            continue
        _merge(result, part, where)
    return result


def negated(document: Document, schema: Schema, where: str, depth: int = 0) -> list[Schema]:
    """Schemas of what does not fit, or of some of it: whatever fits one of them does not fit `schema`."""
    if schema is True:
        return [False]
    if schema is False:
        return [True]
    if depth > 8:
        return []
    others: list[Schema] = []
    for key, value in document.assertions(schema).items():
        others += _negated_keyword(document, key, value, where, depth + 1)
    return others[:MAX_OPTIONS]


def both(one: Schema, other: Schema) -> Schema:
    """A schema of what fits both, said at once where it can be."""
    if one is True or one == other:
        return other
    if other is True:
        return one
    return False if one is False or other is False else {"allOf": [one, other]}


def listed_not(rest: Mapping[str, Any]) -> list[Any] | None:
    """The values that a `not` rules out, where it only lists values."""
    inner = rest.get("not")
    if not isinstance(inner, Mapping):
        return None
    said = assertions(inner)
    if set(said) == {"const"}:
        return [said["const"]]
    return list(said["enum"]) if set(said) == {"enum"} else None


def own_rest(rest: dict[str, Any], where: str) -> None:
    """Says `unevaluatedProperties` in our own word, since it sees what the schemas beside it evaluate."""
    _require_all_evaluated(rest, where)
    if "unevaluatedItems" in rest and rest.keys() & _APPLICATORS:
        raise Unsupported(f"{where}: 'unevaluatedItems' beside other schemas cannot be kept to")
    if "unevaluatedProperties" in rest:
        rest[_REST] = both(rest.pop("unevaluatedProperties"), rest.get(_REST, True))
    if _REST in rest and rest.keys() & {"not", "if", "oneOf"}:  # what they rule out would count as evaluated
        raise Unsupported(f"{where}: 'unevaluatedProperties' beside 'not', 'if' or 'oneOf' cannot be kept to")


def in_standard_words(rest: Mapping[str, Any]) -> dict[str, Any]:
    """The schema without our own word, which a validator does not know."""
    said = {key: value for key, value in rest.items() if key != _REST}
    return {**said, "unevaluatedProperties": rest[_REST]} if _REST in rest else said


def additional_properties(rest: Mapping[str, Any]) -> Schema:
    """What properties that are not declared must fit."""
    found: Schema = rest.get("additionalProperties", rest.get(_REST, True))
    return found


def _merge(result: dict[str, Any], part: dict[str, Any], where: str) -> None:
    """Makes the result a schema of what fits it and the part."""
    _close_properties(result, part, where)
    _tie_companions(result, part)
    if part.keys() & {"items", "prefixItems"}:
        _merge_items(result, part, where)
    for key, new in part.items():
        if key in ("items", "prefixItems"):
            continue
        if key not in result:
            result[key] = new
        elif key in _JOINED:
            result[key] = _JOINED[key](result[key], new)
        elif key in ("anyOf", "oneOf"):
            if result[key] != new or key == "oneOf":
                _conjoin(result, {key: new})
        elif key == "format":
            continue  # it is a note
        else:
            result[key] = _agreed(key, result[key], new, where)


def _agreed(key: str, old: Any, new: Any, where: str) -> Any:
    """What fits two values of a keyword, where they may contradict each other."""
    if key == "type":
        kinds = _common_types(old, new)
        if not kinds:
            raise Impossible(f"{where}: no type fits")
        return kinds
    if key == "const" and not same(old, new):
        raise Impossible(f"{where}: no value fits")
    if key == "multipleOf":
        return _common_multiple(old, new, where)
    if key != "const" and old != new:
        raise Unsupported(f"{where}: two of {key!r} at once cannot be kept to")
    return old


def _each(old: Mapping[str, Schema], new: Mapping[str, Schema]) -> dict[str, Schema]:
    return {**old, **{name: both(old[name], schema) if name in old else schema for name, schema in new.items()}}


def _neither(old: Schema, new: Schema) -> Schema:
    """What a `not` must rule out to rule out what each of two does."""
    listed = [listed_not({"not": each}) for each in (old, new)]
    if None in listed:
        return {"anyOf": [old, new]}
    return {"enum": [value for values in listed for value in values or ()]}


#: How two values of a keyword become one that says what both say.
_JOINED: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    **dict.fromkeys(("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties", "minContains"), max),
    **dict.fromkeys(("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"), min),
    **dict.fromkeys(("properties", "patternProperties", "dependentSchemas"), _each),
    **dict.fromkeys(("additionalProperties", "propertyNames", _REST), both),
    "enum": lambda old, new: [value for value in old if any(same(value, other) for other in new)],
    "required": lambda old, new: [*old, *(value for value in new if value not in old)],
    "dependentRequired": lambda old, new: {
        **old,
        **{name: [*old.get(name, ()), *names] for name, names in new.items()},
    },
    "allOf": lambda old, new: [*old, *new],
    "uniqueItems": lambda old, new: old or new,
    "not": _neither,
}


def _negated_keyword(document: Document, key: str, value: Any, where: str, depth: int) -> list[Schema]:
    if key == "type":
        named = [value] if isinstance(value, str) else list(value)
        left = [kind for kind in TYPES if kind not in named and kind != "integer"]
        if "number" in left and "integer" in named:
            left.remove("number")
        return [{"type": left}] if left else []
    if key == "const":
        return [{"not": {"enum": [value]}}]
    if key == "enum":
        return [{"not": {"enum": list(value)}}]
    if key == "required":
        return [{"type": "object", "properties": {name: False}} for name in value]
    if key == "properties":
        return [
            {"type": "object", "required": [name], "properties": {name: other}}
            for name, inner in value.items()
            for other in negated(document, inner, where, depth)
        ]
    if key == "$ref":
        return negated(document, document.resolved(value, where), where, depth)
    if key == "allOf":
        return [other for inner in value for other in negated(document, inner, where, depth)]
    if key == "not":
        return [value]
    if key == "anyOf":
        cases: list[Schema] = [True]
        for inner in value:
            cases = [both(case, other) for case in cases for other in negated(document, inner, where, depth)]
            if len(cases) > MAX_OPTIONS:
                return []
        return cases
    if key in _OPPOSITES and not isinstance(value, bool):
        kind, opposite, shift = _OPPOSITES[key]
        bound = value + shift
        is_empty = opposite in ("maxLength", "maxItems", "maxProperties") and bound < 0
        return [] if is_empty else [{"type": kind, opposite: bound}]
    return []


def _conjoin(result: dict[str, Any], schema: Schema) -> None:
    """Adds a condition to a schema that has a keyword of it already: each of its alternatives, or the only one."""
    result["anyOf"] = [{"allOf": [option, schema]} for option in result["anyOf"]] if "anyOf" in result else [schema]


def _tie_companions(result: dict[str, Any], part: dict[str, Any]) -> None:
    """Keeps `then` and `else` to their `if` and `minContains` to its `contains`, without which they say nothing."""
    if "if" in result and "if" in part:
        _conjoin(result, {name: part.pop(name) for name in ("if", "then", "else") if name in part})
    for one, other in ((result, part), (part, result)):
        if "if" not in one:
            one.pop("then", None)
            one.pop("else", None)
        if "contains" not in one:
            one.pop("minContains", None)
        elif "contains" in other:
            one.setdefault("minContains", 1)


def _says(schema: Schema) -> bool:
    """Whether it rules anything out."""
    return schema is False or (isinstance(schema, Mapping) and any(key in ASSERTIONS for key in schema))


def _close_rest(part: dict[str, Any], where: str) -> None:
    """Says `unevaluatedProperties` of a schema that is merged into another, whose properties it does not see."""
    _require_all_evaluated(part, where)
    if part.keys() & {"unevaluatedProperties", "unevaluatedItems"} and part.keys() & _APPLICATORS:
        raise Unsupported(f"{where}: 'unevaluated…' in a part of a schema cannot be kept to")
    for old, new in (("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")):
        if old in part:
            part.setdefault(new, part.pop(old))


def _require_all_evaluated(part: Mapping[str, Any], where: str) -> None:
    if {"unevaluatedItems", "contains"} <= part.keys():
        raise Unsupported(f"{where}: 'unevaluatedItems' beside 'contains', which evaluates some, cannot be kept to")


def _close_properties(result: dict[str, Any], part: dict[str, Any], where: str) -> None:
    """What one of them says of properties that only the other declares, said where they are declared.

    Raises:
        Unsupported: a pattern's names are partly those that the other declares.
    """
    for one, other in ((result, dict(part)), (part, dict(result))):
        if "additionalProperties" not in other:
            continue
        known = other.get("properties", {})
        patterns = other.get("patternProperties", {})
        additional = other["additionalProperties"]
        if additional is True:
            continue
        if "properties" in one:
            one["properties"] = {
                name: schema
                if name in known or any(searcher(pattern)(name) for pattern in patterns)
                else both(schema, additional)
                for name, schema in one["properties"].items()
            }
        own = one.get("patternProperties", {})
        for pattern in own.keys() - patterns.keys():
            if patterns or any(map(searcher(pattern), known)):
                raise Unsupported(f"{where}: {pattern!r} beside other 'additionalProperties' cannot be kept to")
        if own:
            one["patternProperties"] = {
                pattern: schema if pattern in patterns else both(schema, additional) for pattern, schema in own.items()
            }


def _merge_items(result: dict[str, Any], part: Mapping[str, Any], where: str) -> None:
    """The elements of two arrays, place by place."""
    items = [schema.get("items", True) for schema in (result, part)]
    if any(isinstance(each, list) for each in items):
        raise Unsupported(f"{where}: a list of 'items' cannot be kept to; use 'prefixItems'")
    prefixes = [schema.get("prefixItems", ()) for schema in (result, part)]
    length = max(map(len, prefixes))
    first, second = ([*prefix, *[rest] * (length - len(prefix))] for prefix, rest in zip(prefixes, items, strict=True))
    result["items"] = both(*items)
    if length:
        result["prefixItems"] = [both(one, other) for one, other in zip(first, second, strict=True)]


def _common_types(one: str | Sequence[str], other: str | Sequence[str]) -> list[str]:
    first = [one] if isinstance(one, str) else list(one)
    second = [other] if isinstance(other, str) else list(other)
    common = [kind for kind in first if kind in second]
    for a, b in ((first, second), (second, first)):
        if "integer" in a and "number" in b and "integer" not in common:
            common.append("integer")
    return common


def _common_multiple(one: Any, other: Any, where: str) -> Any:
    if one == other:
        return one
    if isinstance(one, int) and isinstance(other, int):
        return one * other // gcd(one, other)
    raise Unsupported(f"{where}: two of 'multipleOf' at once cannot be kept to")
