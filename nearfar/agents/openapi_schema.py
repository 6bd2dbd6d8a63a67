"""The schemas of an OpenAPI document as plain JSON Schema: references kept within a tool's own schema, 3.0 made 3.1."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote

import jsonschema

#: How deep a chain of references, or a schema, may be.
MAX_DEPTH: Final = 60

_MAX_NODES: Final = 20_000

#: How letters that mean something in references are written in a definition's name; the dot first.
_CODES: Final = ((".", ".p"), ("/", ".s"), ("%", ".c"), ("~", ".t"))

#: What OpenAPI adds to JSON Schema and no validator needs.
_ADDED: Final = frozenset({"discriminator", "xml", "externalDocs", "example", "nullable"})


class Unusable(Exception):
    """Why an operation cannot be offered."""


class Resolver:
    """Follows a document's references to places within it.

    Args:
        document: the whole document.
        is_3_0: whether its schemas are of OpenAPI 3.0's own kind.
    """

    def __init__(self, document: Mapping[str, Any], *, is_3_0: bool) -> None:
        self._document = document
        self._is_3_0 = is_3_0
        self._nodes = 0

    def target(self, value: Any) -> Mapping[str, Any]:
        """The object that is meant, whether it stands there or is referred to.

        Raises:
            Unusable: it is not there, or elsewhere.
        """
        for _ in range(MAX_DEPTH):
            if not isinstance(value, dict):
                raise Unusable("a part of it is missing or is no object")
            if not isinstance(reference := value.get("$ref"), str):
                return value
            value = self._at(reference)
        raise Unusable("its references go round in a circle")

    def schema(self, value: Any) -> Any:
        """The schema, checked, with references to `#/$defs/…`; `definitions` gives what they mean.

        Raises:
            Unusable: it is none, or refers to what is not there.
        """
        self._nodes = 0
        made = self._converted(value, 0)
        try:
            jsonschema.Draft202012Validator.check_schema(made)
        except jsonschema.SchemaError as exc:
            raise Unusable(f"a schema is invalid: {exc.message[:200]}") from exc
        return made

    def definitions(self, schema: Any) -> dict[str, Any]:
        """The schemas that a converted one refers to, and those that they refer to, by name."""
        found: dict[str, Any] = {}
        waiting = sorted(_references(schema))
        while waiting:
            name = waiting.pop()
            if name not in found:
                found[name] = self.schema(self._at(_unescaped(name)))
                waiting += sorted(_references(found[name]))
        return found

    def _at(self, reference: str) -> Any:
        if not reference.startswith("#/"):
            raise Unusable(f"it refers to another document, {reference[:200]!r}; bundle them into one")
        found: Any = self._document
        for part in reference[2:].split("/"):
            key = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                found = found[int(key)]
            elif isinstance(found, dict) and key in found:
                found = found[key]
            else:
                raise Unusable(f"it refers to {reference[:200]!r}, which is not there")
        return found

    def _converted(self, value: Any, depth: int) -> Any:
        self._nodes += 1
        if depth > MAX_DEPTH or self._nodes > _MAX_NODES:
            raise Unusable("a schema is too large or nested too deep")
        if isinstance(value, list):
            return [self._converted(each, depth + 1) for each in value]
        if not isinstance(value, dict):
            return value
        if isinstance(reference := value.get("$ref"), str):
            self._at(reference)
            return {"$ref": f"#/$defs/{_escaped(reference)}"}
        made = {}
        for key, each in value.items():
            if key == "properties" and isinstance(each, dict):
                made[key] = {name: self._converted(inner, depth + 1) for name, inner in each.items()}
            elif key in ("enum", "const", "default", "examples"):
                made[key] = each
            elif key not in _ADDED and not str(key).startswith("x-"):
                made[key] = self._converted(each, depth + 1)
        return self._from_3_0(value, made) if self._is_3_0 else made

    def _from_3_0(self, value: Mapping[str, Any], made: dict[str, Any]) -> dict[str, Any]:
        """Limits that exclude, and null, as JSON Schema has them."""
        for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
            flag = made.get(exclusive)
            if isinstance(flag, bool):
                del made[exclusive]
                if flag and bound in made:
                    made[exclusive] = made.pop(bound)
        if value.get("nullable") is True:
            if isinstance(made.get("type"), str):
                made["type"] = [made["type"], "null"]
                if isinstance(made.get("enum"), list) and None not in made["enum"]:
                    made["enum"] = [*made["enum"], None]
            else:
                return {"anyOf": [made, {"type": "null"}]}
        return made


def _references(schema: Any) -> set[str]:
    found: set[str] = set()
    waiting = [schema]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            if isinstance(target := each.get("$ref"), str):
                found.add(target.removeprefix("#/$defs/"))
            waiting += each.values()
        elif isinstance(each, list):
            waiting += each
    return found


def _escaped(reference: str) -> str:
    """A place in the document as one name: the schema's own where it is one of the components."""
    plain = reference.removeprefix("#/components/schemas/")
    if plain != reference and re.fullmatch(r"[A-Za-z0-9_-]+", plain):
        return plain
    name = reference[2:]
    for letter, code in _CODES:
        name = name.replace(letter, code)
    return name


def _unescaped(name: str) -> str:
    if "." not in name:
        return f"#/components/schemas/{name}"
    for letter, code in reversed(_CODES):
        name = name.replace(code, letter)
    return f"#/{name}"
