"""Narrows a tool's schema to what a request says: which optional arguments it asks for, and which values they may have.

A caller that is held to the narrowed schema can only copy, choose or leave out. The rules were set on one half of
BFCL's public items, and the figures in `docs/agents-measured.md` are of the other half.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .request_values import (
    STOP_WORDS,
    dates,
    identifiers,
    mentioned,
    names,
    number_lists,
    numbers,
    phrases,
    quoted,
    stem,
    stems,
    text_lists,
    words_of,
)

_PLACE = re.compile(r"(?i:city\s*(?:,|and)\s*(?:state|country))|[A-Z][a-z]+, [A-Z]{2}\b")
_WHOLE_TEXTS = {"content", "message", "text", "body", "query", "question", "command", "title", "prompt", "note", "task"}
_PERSON = re.compile(r"\b(?:artist|band|singer|actors?|actress|cast|author|performer)\b", re.IGNORECASE)
_BY_NAME = re.compile(r"(?:(?<!ed )\bby|\bwith|\bfeaturing|\bstarring|\bstars|\bactors?|\bactress)\s+(?:the\s+)?[A-Z]")
_ISO_DATE = re.compile(r"YYYY-MM-DD(?![ T]*H)", re.IGNORECASE)
_WEAK = STOP_WORDS | {
    "is",
    "has",
    "num",
    "number",
    "id",
    "name",
    "type",
    "value",
    "max",
    "min",
    "include",
    "enable",
    "flag",
}
_NEGATIONS = re.compile(r"\b(?:not|no|without|exclu\w*|disabl\w*|don'?t|doesn'?t|false|off|except)\b", re.IGNORECASE)
_MAX_ITEMS = 6


def grounded(schema: Mapping[str, Any], text: str, whole: str = "") -> dict[str, Any]:
    """The JSON Schema of an object, narrowed to what `text` mentions; every argument that is left is required.

    Args:
        schema: with `properties` and `required`.
        text: the request, or the part of it that the call is for.
        whole: the request, where `text` is a part: what the part does not say is looked for there.
    """
    properties: Mapping[str, Any] = schema.get("properties") or {}
    needed = set(schema.get("required") or ())
    num_free = len(numbers(text)) - sum(_is_number(properties[name]) for name in needed if name in properties)
    kept = [name for name in properties if name in needed or is_mentioned(name, properties[name], text, num_free)]
    return {
        "type": "object",
        "properties": {name: _narrowed_by_both(name, properties[name], text, whole) for name in kept},
        "required": kept,
        "additionalProperties": False,
    }


def _narrowed_by_both(name: str, schema: Mapping[str, Any], text: str, whole: str) -> dict[str, Any]:
    found = _narrowed(name, schema, text)
    if not whole or whole == text:
        return found
    if "enum" not in found:
        return _narrowed(name, schema, whole)
    is_free_text = schema.get("type", "string") == "string" and not schema.get("enum")
    if is_free_text and not _ISO_DATE.search(str(schema.get("description", ""))):
        return {"enum": list(dict.fromkeys([*found["enum"], *quoted(whole), *names(whole)]))}
    return found


def _is_number(schema: Mapping[str, Any]) -> bool:
    return schema.get("type") in ("integer", "number")


# --- which arguments -------------------------------------------------------------------------------------------------


def is_mentioned(name: str, schema: Mapping[str, Any], text: str, num_free: int) -> bool:
    """Whether the request asks for an optional argument.

    Args:
        name: the argument's.
        schema: the argument's.
        text: the request.
        num_free: numbers of the request that no required argument takes.
    """
    kind, told = schema.get("type"), stems(text)
    own = [stem(word) for word in words_of(name) if word not in _WEAK]
    share = sum(word in told for word in own) / len(own) if own else 0.0
    description = str(schema.get("description", ""))
    if choices := _choices(schema) or _described_choices(description):
        if any(each != schema.get("default") for each in mentioned(choices, text)):
            return True
        if _is_truth(choices):
            return share >= 0.5
        if schema.get("enum"):
            return False
    if "year" in words_of(name) and any(_is_year(number.value) for number in numbers(text)):
        return True
    if kind == "boolean":
        return share >= 0.5
    if kind in ("integer", "number"):
        return num_free > 0 and (share >= 0.5 or _is_unit_told(description, text))
    if kind == "array":
        return share >= 0.5
    if kind == "object":
        return share >= 0.5
    if _ISO_DATE.search(description) or "date" in words_of(name):
        return bool(dates(text))
    if _PERSON.search(description) and "direct" not in name:
        return share >= 0.5 or bool(_BY_NAME.search(text))
    if _PLACE.search(description) or {"location", "region", "city", "place"} & set(words_of(name)):
        return share >= 0.5 or bool(re.search(r"\bin [A-Z]", text))
    return share >= 0.5


def _is_truth(choices: Sequence[str]) -> bool:
    """Whether the choices are true and false in words."""
    return {"true", "false"} <= {each.lower() for each in choices}


def _is_year(value: float) -> bool:
    return value.is_integer() and 1900 <= value <= 2100


def _described_choices(description: str) -> list[str]:
    """The choices that a description quotes: `'federal', 'state'`."""
    found = re.findall(r"(?<!\w)['\"]([A-Za-z][\w &/+-]{0,30})['\"](?!\w)", description)
    return found if len(found) > 1 else []


def _is_unit_told(description: str, text: str) -> bool:
    """Whether a number of the request is followed by a word of the argument's description."""
    about = {stem(word) for word in re.findall(r"[a-z]+", description.lower()) if word not in _WEAK and len(word) > 2}
    for number in numbers(text):
        after = re.match(r"[\s-]*([A-Za-z]+)", text[number.end :])
        if after and stem(after[1].lower()) in about:
            return True
    return False


# --- which values ----------------------------------------------------------------------------------------------------


def _choices(schema: Mapping[str, Any]) -> list[str]:
    return [each for each in schema.get("enum") or () if isinstance(each, str)]


def _narrowed(name: str, schema: Mapping[str, Any], text: str) -> dict[str, Any]:
    kind = schema.get("type", "string")
    if schema.get("enum"):
        choices = _choices(schema)
        if _is_truth(choices):
            wanted = str(_narrowed_boolean(name, schema, text)["enum"][0]).lower()
            return {"enum": [each for each in choices if each.lower() == wanted]}
        found = mentioned(choices, text)
        return {"enum": found or list(schema["enum"])}
    if kind in ("integer", "number"):
        return _narrowed_number(kind, name, schema, text)
    if kind == "boolean":
        return _narrowed_boolean(name, schema, text)
    if schema.get("format") == "source" and (marked := [each for each in quoted(text) if each.isidentifier()]):
        lists = _narrowed_array(schema, text).get("enum", []) if kind == "array" else []
        return {"enum": [*[each for each in lists if len(each) > 1], *marked]}
    if kind == "array":
        return _narrowed_array(schema, text)
    if kind == "object":
        inner = grounded(schema, text) if schema.get("properties") else None
        return inner or {"type": "object", "maxProperties": _MAX_ITEMS, "additionalProperties": _any_value(text)}
    return _narrowed_text(name, schema, text)


def _any_value(text: str) -> dict[str, Any]:
    found = phrases(text)
    return {"anyOf": [{"enum": found}, {"type": "number"}, {"type": "boolean"}]} if found else {"type": "string"}


def _narrowed_number(kind: str, name: str, schema: Mapping[str, Any], text: str) -> dict[str, Any]:
    about = f"{name} {schema.get('description', '')}"
    is_percent_wanted = bool(re.search(r"percent|%", about, re.IGNORECASE)) and "decimal" not in about.lower()
    values: list[float] = []
    for number in numbers(text):
        value = number.value / 100 if number.is_percent and kind == "number" and not is_percent_wanted else number.value
        if kind == "number" or value.is_integer():
            values.append(value)
    if "year" in words_of(name) and (years := [value for value in values if _is_year(value)]):
        values = years
    shown: list[float] = [int(value) if value.is_integer() else round(value, 10) for value in dict.fromkeys(values)]
    return {"enum": shown} if shown else {"type": kind}


def _narrowed_boolean(name: str, schema: Mapping[str, Any], text: str) -> dict[str, Any]:
    """True, unless the request has a negation shortly before a word of the argument's name."""
    own = {stem(word) for word in words_of(name) if word not in _WEAK}
    for match in _NEGATIONS.finditer(text):
        if own & stems(text[max(0, match.start() - 15) : match.end() + 40]):
            return {"enum": [False]}
    return {"enum": [True]}


def _narrowed_array(schema: Mapping[str, Any], text: str) -> dict[str, Any]:
    items = schema.get("items") or {}
    kind = items.get("type", "string")
    if kind in ("integer", "number"):
        lists: Sequence[Sequence[Any]] = [
            [int(value) if value.is_integer() else value for value in each] for each in number_lists(text)
        ]
        if lists:
            return {"enum": [list(each) for each in lists]}
        item = _narrowed_number(kind, "", items, text)
    elif items.get("enum"):
        found = mentioned(_choices(items), text)
        return {"enum": [found]} if found else {"type": "array", "items": dict(items), "minItems": 1, "maxItems": 2}
    elif kind == "string":
        listed = text_lists(text)
        if listed:
            return {"enum": [*listed, *([each] for each in phrases(text, limit=60))]}
        found = phrases(text)
        item = {"enum": found} if found else {"type": "string"}
    elif kind == "object" and items.get("properties"):
        item = grounded(items, text)
    else:
        item = {"type": kind} if kind in ("boolean", "object", "array") else {"type": "string"}
    return {"type": "array", "items": item, "minItems": 1, "maxItems": _MAX_ITEMS}


def _narrowed_text(name: str, schema: Mapping[str, Any], text: str) -> dict[str, Any]:
    description = str(schema.get("description", ""))
    if _ISO_DATE.search(description) and (days := dates(text)):
        return {"enum": [day.isoformat() for day in days]}
    found = phrases(text, is_long=bool(_WHOLE_TEXTS & set(words_of(name))))
    if _PLACE.search(description):
        places = [each for each in names(text) if each[:1].isupper() and each.lower() not in ("celsius", "fahrenheit")]
        whole = [each for each in places if re.fullmatch(r"[^,]+, [^,]+", each)]
        if whole:
            return {"enum": whole}
        cities = [re.escape(each) for each in places if "," not in each]
        if cities and re.search(r"state|, [A-Z]{2}\b", description, re.IGNORECASE):
            return {"type": "string", "pattern": f"^(?:{'|'.join(cities)}), (?:[A-Z]{{2}}|[A-Z][a-z]{{3,12}})$"}
    if schema.get("format") == "source" and (marked := [*quoted(text), *identifiers(text)]):
        return {"enum": list(dict.fromkeys(marked))}
    if (choices := _described_choices(description)) and (told := mentioned(choices, text)):
        return {"enum": told}
    return {"enum": found} if found else {"type": "string"}
