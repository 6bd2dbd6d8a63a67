"""JSON Schemas as they are written: their keywords, what they refer to, and a validator that always ends."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

from .grammar import Unsupported
from .text_grammar import nests_repetitions, pattern_text, searcher

#: What a schema may be.
Schema: TypeAlias = "Mapping[str, Any] | bool"

_MAX_WORK: Final = 20_000  # schemas looked at

#: Keywords that rule values out; every other one is a note.
ASSERTIONS: Final = frozenset(
    """
    $ref type enum const allOf anyOf oneOf not if then else $dynamicRef $recursiveRef
    properties required additionalProperties patternProperties propertyNames minProperties maxProperties
    dependentRequired dependentSchemas dependencies unevaluatedProperties
    items prefixItems additionalItems minItems maxItems uniqueItems contains minContains maxContains unevaluatedItems
    minLength maxLength pattern format minimum maximum exclusiveMinimum exclusiveMaximum multipleOf
    x-nearfar-rest
    """.split()  # noqa: SIM905 - easier to read than a list of quoted words
)

#: Those that drafts before 2020-12 do not all know; what a draft does not know says nothing.
_LATER: Final = frozenset(
    """
    const contains propertyNames if prefixItems dependentRequired dependentSchemas unevaluatedProperties
    unevaluatedItems
    """.split()  # noqa: SIM905 - as above
)


class SchemaRefused(ValueError):
    """No grammar can hold a model to the schema; the message says why."""


class Document:
    """A schema with what it refers to, and a count of the work that it makes.

    Args:
        root: the whole schema.
        known: the keywords of its draft; None: all there are.
    """

    def __init__(self, root: Schema, known: Container[str] | None = None) -> None:
        self.root = root
        self._unknown = set() if known is None else {keyword for keyword in _LATER if keyword not in known}
        if "dependentRequired" in self._unknown:  # draft 7 or before
            self._unknown |= {"minContains", "maxContains"}
        self._is_alone = "unevaluatedProperties" in self._unknown
        self._work = 0
        self._recursive: dict[str, bool] = {}

    def work(self, complaint: str) -> None:
        """Counts one more schema that is looked at.

        Raises:
            Unsupported: they are too many, in these words.
        """
        self._work += 1
        if self._work > _MAX_WORK:
            raise Unsupported(complaint)

    def assertions(self, schema: Mapping[str, Any]) -> dict[str, Any]:
        """What a schema of its draft rules out: up to draft 7, nothing beside a reference does."""
        if self._is_alone and "$ref" in schema:
            return {"$ref": schema["$ref"]}
        return {key: value for key, value in assertions(schema).items() if key not in self._unknown}

    def resolved(self, reference: str, where: str) -> Schema:
        """What a reference within the document names.

        Raises:
            Unsupported: it names nothing that is here.
        """
        if not reference.startswith("#"):
            raise Unsupported(f"{where}: {reference!r} refers to another document")
        found: Any = self.root
        for part in unquote(reference[1:]).split("/")[1:]:
            step = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, Mapping) and step in found:
                found = found[step]
            elif isinstance(found, list) and step.isdigit() and int(step) < len(found):
                found = found[int(step)]
            else:
                raise Unsupported(f"{where}: {reference!r} refers to what is not there")
        if (reference != "#" and not reference.startswith("#/")) or not isinstance(found, Mapping | bool):
            raise Unsupported(f"{where}: {reference!r} names no schema")
        return found

    def beside(self, schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        """The schemas that it applies to the same value."""
        found: list[Any] = [schema.get(keyword) for keyword in ("not", "if", "then", "else")]
        for keyword in ("allOf", "anyOf", "oneOf"):
            found += schema[keyword] if isinstance(schema.get(keyword), list) else []
        if isinstance(schema.get("dependentSchemas"), Mapping):
            found += schema["dependentSchemas"].values()
        if isinstance(schema.get("$ref"), str):
            with suppress(Unsupported):  # it is told of where it is needed
                found.append(self.resolved(schema["$ref"], "#"))
        return (each for each in found if isinstance(each, Mapping))

    def recurs(self, reference: str) -> bool:
        """Whether what it names refers to itself, over whichever others."""
        if reference not in self._recursive:
            seen: set[str] = set()
            stack = [reference]
            self._recursive[reference] = False
            while stack:
                try:
                    target = self.resolved(stack.pop(), reference)
                except Unsupported:  # it is told of where it is needed
                    continue
                for inner in _references(target):
                    if inner == reference:
                        self._recursive[reference] = True
                    if inner not in seen:
                        seen.add(inner)
                        stack.append(inner)
        return self._recursive[reference]


def schema_validator(schema: Schema) -> Any:
    """jsonschema's validator of the schema's draft, which fetches nothing and always ends.

    Left to itself, jsonschema asks the network for a schema that is not there, recurses without end on one that applies
    itself to the same value, and searches some patterns for longer than anybody waits.

    Raises:
        SchemaRefused: the schema is not valid, or it is such a one.
    """
    from jsonschema import Draft202012Validator  # here, since it takes 80 ms, and most queries have no tools
    from jsonschema.exceptions import SchemaError, ValidationError
    from jsonschema.validators import extend, validator_for
    from referencing import Registry

    root: Any = schema if isinstance(schema, bool) else dict(schema)
    kind = validator_for(root, default=Draft202012Validator)
    try:
        kind.check_schema(root)
    except SchemaError as exc:
        raise SchemaRefused(f"it is not valid: {exc.message[:200]}") from exc
    except RecursionError as exc:
        raise SchemaRefused("it is nested too deeply") from exc
    require_descent(root)
    _require_quick_patterns(root)

    def pattern(_: Any, wanted: str, instance: Any, __: Any) -> Iterator[ValidationError]:
        if isinstance(instance, str) and not searcher(wanted)(instance):
            yield ValidationError(f"{instance!r} does not match {wanted!r}")

    nowhere: Registry[Any] = Registry()
    quick: Any = extend(kind, {"pattern": pattern})  # type: ignore[no-untyped-call]  # its stubs leave arguments out
    return quick(root, registry=nowhere)


def require_descent(root: Any) -> None:
    """Returns if no schema applies itself to the same value: jsonschema would not end, and takes the process with it.

    Raises:
        SchemaRefused: one does.
    """
    document = Document(root)
    done: set[int] = set()
    for start in _mappings(root):
        path: list[tuple[Mapping[str, Any], Iterator[Mapping[str, Any]]]] = [(start, document.beside(start))]
        while path and id(start) not in done:
            schema, following = path[-1]
            inner = next(following, None)
            if inner is None:
                done.add(id(schema))
                path.pop()
            elif any(inner is each for each, _ in path):
                raise SchemaRefused("it refers to itself for the same value, without end")
            elif id(inner) not in done:
                path.append((inner, document.beside(inner)))


def require_one_base(root: Any) -> None:
    """Returns if every reference starts from the root: an `$id` inside makes those beneath it start there.

    Raises:
        SchemaRefused: one may not.
    """
    names = [each["$id"] for each in _mappings(root) if each is not root and isinstance(each.get("$id"), str)]
    inner = next((name for name in names if not name.startswith("#")), None)
    if inner is not None and any(_references(root)):
        raise SchemaRefused(f"references beside a part with an '$id' of its own, {inner!r}, cannot be followed")


def _require_quick_patterns(root: Any) -> None:
    """Returns if every pattern is searched in time that the text bounds.

    Raises:
        SchemaRefused: one is not.
    """
    for schema in _mappings(root):
        patterns = [schema["pattern"]] if isinstance(schema.get("pattern"), str) else []
        names = list(schema["patternProperties"]) if isinstance(schema.get("patternProperties"), Mapping) else []
        try:
            for pattern in [*patterns, *names]:
                searcher(pattern)
            if any(nests_repetitions(pattern_text(name, most=None)) for name in names):
                raise SchemaRefused("a pattern of names repeats repetitions, which may take for ever")
        except Unsupported as exc:
            raise SchemaRefused(f"a pattern may take for ever: {exc}") from exc


def assertions(schema: Mapping[str, Any]) -> dict[str, Any]:
    """What it rules out, without notes."""
    return {key: value for key, value in schema.items() if key in ASSERTIONS}


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal: 1 is 1.0 and not true."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return (type(one) is type(other) and one == other) or (
        isinstance(one, int | float) and isinstance(other, int | float) and one == other
    )


def _references(schema: Any) -> Iterator[str]:
    """Every reference inside, wherever it stands."""
    return (each["$ref"] for each in _mappings(schema) if isinstance(each.get("$ref"), str))


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every object inside, itself included."""
    stack = [value]
    while stack:
        each = stack.pop()
        if isinstance(each, Mapping):
            yield each
            stack.extend(each.values())
        elif isinstance(each, list | tuple):
            stack.extend(each)
