"""JSON Schemas by chance: nested objects, arrays, unions, recursion, names beyond ASCII, and most other keywords."""

from __future__ import annotations

from random import Random
from typing import Any

NAMES = ("city", "is_metric", "naïve", "ключ", "d e", "kind", 'x"y', "人数", "n", "🙂")
LISTED = ("a", "bé\n", 'c"d', 1, 2.5, None, True, [1], {"a": 1}, "日本", "</tool_call>")
PATTERNS = (
    "^[a-z]+$",
    "^[A-Z]{2,3}-\\d+$",
    "foo",
    "^(a|bc)*$",
    "^\\w+@\\w+\\.com$",
    ".{3}",
    '^[^"\\\\]*$',
    "^(?:x|yy)?z+$",
    "(?=a)b",
    "^ä[é-ü]+$",
)
FORMATS = ("date", "date-time", "email", "uuid", "uri", "ipv4", "ipv6", "int32", "time", "duration", "hostname")


def schema(chance: Random, *, depth: int = 3) -> dict[str, Any] | bool:
    """A schema, with definitions that may refer to themselves and each other."""
    definitions = ["p", "q"] if chance.random() < 0.4 else []
    found = _schema(chance, depth, definitions)
    if definitions and isinstance(found, dict):
        found = {**found, "$defs": {name: _schema(chance, depth - 1, definitions) for name in definitions}}
    return found


def parameters(chance: Random, *, depth: int = 3) -> dict[str, Any]:
    """A schema of a tool's arguments."""
    definitions = ["p", "q"] if chance.random() < 0.5 else []
    found = {**_object(chance, depth, definitions), "type": "object"}
    if definitions:
        found["$defs"] = {name: _schema(chance, depth - 1, definitions) for name in definitions}
    return found


def _schema(chance: Random, depth: int, definitions: list[str]) -> Any:
    kinds = [_string, _number, _listed, _plain]
    weights = [4, 4, 4, 3]
    if definitions:
        kinds.append(_reference)
        weights.append(3)
    if depth > 0:
        kinds += [_object, _array, _union, _combined]
        weights += [8, 6, 6, 4]
    return chance.choices(kinds, weights)[0](chance, depth, definitions)


def _maybe(chance: Random, share: float, **keywords: Any) -> dict[str, Any]:
    return keywords if chance.random() < share else {}


def _string(chance: Random, depth: int, definitions: list[str]) -> dict[str, Any]:
    return {
        "type": "string",
        **_maybe(chance, 0.3, minLength=chance.randint(0, 5)),
        **_maybe(chance, 0.3, maxLength=chance.randint(3, 12)),
        **_maybe(chance, 0.3, pattern=chance.choice(PATTERNS)),
        **_maybe(chance, 0.2, format=chance.choice(FORMATS)),
    }


def _number(chance: Random, depth: int, definitions: list[str]) -> dict[str, Any]:
    return {
        "type": chance.choice(["integer", "number"]),
        **_maybe(chance, 0.4, minimum=chance.choice([0, -5, 1, 3.5, 100, -1e3, 1e-3])),
        **_maybe(chance, 0.4, maximum=chance.choice([10, 5, 3.7, 1000, 0, 1e6, 12.25])),
        **_maybe(chance, 0.2, exclusiveMinimum=chance.choice([0, -5, 1, 2.5])),
        **_maybe(chance, 0.2, exclusiveMaximum=chance.choice([10, 50, 3.7])),
        **_maybe(chance, 0.2, multipleOf=chance.choice([2, 5, 10, 0.5, 0.01, 0.1, 7, 100])),
    }


def _listed(chance: Random, depth: int, definitions: list[str]) -> dict[str, Any]:
    if chance.random() < 0.3:
        return {"const": chance.choice(["x", 3, None, {"k": [1, 2]}, "ü\\"])}
    return {"enum": chance.sample(LISTED, chance.randint(1, 4))}


def _plain(chance: Random, depth: int, definitions: list[str]) -> Any:
    types = ["boolean", "null", ["string", "null"], ["integer", "boolean"]]
    return chance.choice([True, {}, {"description": "any"}, *({"type": kind} for kind in types)])


def _reference(chance: Random, depth: int, definitions: list[str]) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{chance.choice(definitions)}"}


def _object(chance: Random, depth: int, definitions: list[str]) -> dict[str, Any]:
    def inner() -> Any:
        return _schema(chance, depth - 1, definitions)

    names = chance.sample(NAMES, chance.randint(0, 4))
    first = names[0] if names else "kind"
    return {
        "type": "object",
        "properties": {name: inner() for name in names},
        **_maybe(chance, 0.6, required=chance.sample(names, chance.randint(0, len(names)))),
        **_maybe(chance, 0.3, additionalProperties=chance.choice([False, True, inner()])),
        **_maybe(chance, 0.1, minProperties=chance.randint(0, 3)),
        **_maybe(chance, 0.1, maxProperties=chance.randint(0, 3)),
        **_maybe(chance, 0.06, patternProperties={chance.choice(["^x_[a-z]+$", "^a"]): inner()}),
        **_maybe(chance, 0.05, propertyNames={"pattern": "^[a-z_]+$"}),
        **_maybe(chance, 0.06, dependentRequired={first: names[1:2]}),
        **_maybe(chance, 0.04, unevaluatedProperties=False),
        **_maybe(
            chance,
            0.05,
            **{"if": {"properties": {first: {"const": 1}}, "required": [first]}, "then": inner(), "else": inner()},
        ),
        **_maybe(chance, 0.05, **{"not": {"required": [first]}}),
    }


def _array(chance: Random, depth: int, definitions: list[str]) -> dict[str, Any]:
    def inner() -> Any:
        return _schema(chance, depth - 1, definitions)

    return {
        "type": "array",
        **_maybe(chance, 0.8, items=inner()),
        **_maybe(chance, 0.3, minItems=chance.randint(0, 3)),
        **_maybe(chance, 0.3, maxItems=chance.randint(1, 5)),
        **_maybe(chance, 0.15, prefixItems=[inner() for _ in range(chance.randint(1, 2))]),
        **_maybe(chance, 0.15, uniqueItems=True),
        **_maybe(chance, 0.05, contains=inner()),
    }


def _union(chance: Random, depth: int, definitions: list[str]) -> dict[str, Any]:
    keyword = chance.choice(["anyOf", "oneOf"])
    return {keyword: [_schema(chance, depth - 1, definitions) for _ in range(chance.randint(1, 3))]}


def _combined(chance: Random, depth: int, definitions: list[str]) -> Any:
    def inner() -> Any:
        return _schema(chance, depth - 1, definitions)

    share = chance.random()
    if share < 0.5:
        return {"allOf": [inner() for _ in range(chance.randint(1, 2))]}
    if share < 0.65:
        return {"not": inner()}
    found = inner()
    return {**found, "anyOf": [inner(), inner()]} if isinstance(found, dict) else found
