"""BFCL's function documents as tools with JSON Schemas, and arguments back in the form that its checker reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from nearfar.types import ToolSpec

from .bfcl import BfclItem
from .call_text import Call, Language

_TYPES = {
    **dict.fromkeys(("integer", "byte", "short", "long", "Bigint"), "integer"),
    **dict.fromkeys(("float", "double", "number"), "number"),
    **dict.fromkeys(("boolean", "Boolean", "bool"), "boolean"),
    **dict.fromkeys(("array", "tuple", "list", "Array", "ArrayList", "Set", "Queue", "Stack"), "array"),
    **dict.fromkeys(("dict", "object", "HashMap", "Hashtable"), "object"),
}
#: What code passes by a variable's name as often as by a literal.
_SOURCE_TYPES = {"any", "char", "Array", "ArrayList", "HashMap", "Hashtable"}


def tool_spec(function: Mapping[str, Any]) -> ToolSpec:
    """The function as a tool: dict is object, float is number, tuple is array, any and String are string."""
    parameters = _json_schema({"type": "dict"} | dict(function.get("parameters") or {}))
    return ToolSpec(function["name"], function.get("description", ""), parameters)


def _json_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    kind = _TYPES.get(schema.get("type", "any"), "string")
    found: dict[str, Any] = {"type": kind}
    if schema.get("description"):
        found["description"] = schema["description"]
    if schema.get("type") in _SOURCE_TYPES:
        found["format"] = "source"  # a variable's name or an expression
    if isinstance(schema.get("enum"), list) and schema["enum"]:
        found["enum"] = schema["enum"]
    if schema.get("default") is not None:
        found["default"] = schema["default"]
    if kind == "object" and isinstance(schema.get("properties"), Mapping):
        found["properties"] = {name: _json_schema(each) for name, each in schema["properties"].items()}
        required = [name for name in schema.get("required") or () if name in found["properties"]]
        found["required"] = required
    if kind == "array" and isinstance(schema.get("items"), Mapping):
        found["items"] = _json_schema(schema["items"])
    return found


def calls_for_checker(calls: Iterable[Call], item: BfclItem) -> tuple[Call, ...]:
    """Calls of the item's functions, with arguments as its checker reads them."""
    functions = {function["name"]: function for function in item.functions}
    return tuple(
        Call(call.name, arguments_for_checker(call.arguments, functions[call.name], item.language)) for call in calls
    )


def arguments_for_checker(
    arguments: Mapping[str, Any], function: Mapping[str, Any], language: Language
) -> dict[str, Any]:
    """The arguments as values of BFCL's types, or as source text in Java and JavaScript."""
    properties = (function.get("parameters") or {}).get("properties") or {}
    if language == "python":
        return {name: _retyped(value, properties.get(name, {})) for name, value in arguments.items()}
    return {name: _source(value, properties.get(name, {}), language) for name, value in arguments.items()}


def _retyped(value: Any, schema: Mapping[str, Any]) -> Any:
    """A whole number as a fraction where the type says so; inside of lists too."""
    kind = schema.get("type")
    if kind == "float" and type(value) is int:
        return float(value)
    if kind in ("array", "tuple") and isinstance(value, list):
        return [_retyped(each, schema.get("items") or {}) for each in value]
    return value


def _source(value: Any, schema: Mapping[str, Any], language: Language) -> str:
    kind, items = schema.get("type", "any"), schema.get("items") or {}
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        ending = {"long": "L", "float": "f"}.get(kind, "") if language == "java" else "n" if kind == "Bigint" else ""
        return f"{value}{ending}"
    if language == "javascript":
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list):
        inside = ", ".join(_item_source(each, items, language) for each in value)
        names = {"integer": "int", "any": "Object"}
        element = names.get(items.get("type", "any"), items.get("type", "Object"))
        return f"new {element}[]{{{inside}}}" if kind == "Array" else f"new ArrayList<>(Arrays.asList({inside}))"
    puts = " ".join(f"put({json.dumps(key)}, {_item_source(each, {}, language)});" for key, each in value.items())
    return f"new HashMap<String, Object>() {{{{ {puts} }}}}"


def _item_source(value: Any, schema: Mapping[str, Any], language: Language) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else _source(value, schema, language)
