"""Grammars of the JSON values that fit a JSON Schema: never a value more, and as few less as can be helped.

What a grammar cannot say is said more narrowly (an object without undeclared properties, an array without repetitions,
recursion to some depth), and a schema of which nothing is left is refused with the reason. Every grammar is bounded, so
that every value ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil, floor
from typing import Any, Final

from .grammar import NOTHING, Impossible, Node, Repeated, Text, Unsupported, by_prefix, either, optional, sequence
from .json_schema import ASSERTIONS, Document, Schema, SchemaRefused, require_one_base, same, schema_validator
from .json_schema_algebra import (
    MAX_OPTIONS,
    TYPES,
    additional_properties,
    in_standard_words,
    listed_not,
    merged,
    negated,
    own_rest,
)
from .json_schema_numbers import numbers
from .text_grammar import all_but, as_json, format_text, json_string, limited, pattern_text, searcher
from .value_grammar import MAX_EXTRA, MAX_KEY, any_value, listing

_MAX_ITEMS: Final = 32  # of an array that names no maximum
_ANY_DEPTH: Final = 2  # of a value that may be anything
_FUEL: Final = (3, 6, 12)  # how often recursion may recur, tried in this order

_REFUSED: Final = frozenset({"$dynamicRef", "$recursiveRef", "maxContains", "dependencies", "additionalItems"})

_BY_TYPE: Final = {
    "object": (
        "properties required additionalProperties patternProperties propertyNames minProperties maxProperties "
        "x-nearfar-rest"
    ),
    "array": "items prefixItems unevaluatedItems minItems maxItems uniqueItems contains minContains",
    "string": "minLength maxLength pattern format",
    "number": "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf",
}
_ONLY_OTHERS: Final = "only values that its keywords are not about fit; say their 'type'"
_TYPE_OF: Final = {keyword: kind for kind, keywords in _BY_TYPE.items() for keyword in keywords.split()}


@dataclass(frozen=True, slots=True)
class SchemaGrammar:
    """The grammar of a schema.

    Attributes:
        node: the grammar.
        left_out: what fits the schema and is not in the grammar though somebody may want it: optional properties and
            alternatives that a grammar cannot say, each with the reason.
    """

    node: Node
    left_out: tuple[str, ...] = ()


def schema_grammar(schema: Schema, *, is_object: bool = False) -> SchemaGrammar:
    """The grammar of a schema's values, each written in one way: a space after separators, properties in their order.

    Args:
        schema: JSON Schema, any draft from 6 on.
        is_object: only objects are meant, whatever else fits.

    Raises:
        SchemaRefused: nothing fits it, or it uses what no grammar here can say.
    """
    validator = schema_validator(schema)
    require_one_base(schema)
    reason: Exception | None = None
    start: Schema = schema
    if is_object and (isinstance(schema, bool) or schema.get("type") != "object"):
        start = {"allOf": [{"$ref": "#"}, {"type": "object"}]}
    for fuel in _FUEL:
        compiler = _Compiler(Document(schema, validator.VALIDATORS), validator)
        try:
            return SchemaGrammar(compiler.node(start, fuel, "#"), tuple(dict.fromkeys(compiler.left_out)))
        except _OutOfFuel as exc:
            reason = exc
        except (Impossible, Unsupported) as exc:
            reason = exc
            break
        except RecursionError:
            reason = Unsupported("it is nested too deeply")
            break
    raise SchemaRefused(str(reason)) from reason


class _OutOfFuel(Unsupported):
    """Recursion that has to go on was not given enough depth."""


@dataclass
class _Compiler:
    """Compiles one schema with what it refers to."""

    document: Document
    validator: Any
    left_out: list[str] = field(default_factory=list)
    _by_reference: dict[tuple[str, int], Node] = field(default_factory=dict)

    def node(self, schema: Schema, fuel: int, where: str) -> Node:
        """The grammar of the schema's values.

        Raises:
            Impossible: no value fits.
            Unsupported: nothing is left of what a grammar can say.
        """
        self.document.work("it is too large")
        if schema is True:
            return any_value(_ANY_DEPTH)
        if schema is False:
            raise Impossible(f"{where}: nothing fits")
        rest = self.document.assertions(schema)
        if refused := sorted(rest.keys() & _REFUSED):
            raise Unsupported(f"{where}: {refused[0]!r} cannot be kept to")
        own_rest(rest, where)
        if "const" in rest or "enum" in rest:
            return self._values(rest, where)
        if set(rest) == {"$ref"}:
            return self._referred(rest["$ref"], fuel, where)
        if set(rest) == {"anyOf"}:
            return self._any(rest["anyOf"], fuel, where)
        if "$ref" in rest:
            target = self.document.resolved(rest.pop("$ref"), where)
            return self.node(merged(self.document, [target, rest], where), self._burnt(schema["$ref"], fuel), where)
        for keyword, unfold in (
            ("allOf", self._unfold_all),
            ("not", self._unfold_not),
            ("if", self._unfold_if),
            ("dependentRequired", self._unfold_dependent),
            ("dependentSchemas", self._unfold_dependent),
            ("oneOf", self._unfold_one),
            ("anyOf", self._unfold_any),
        ):
            if keyword in rest and not (keyword == "not" and listed_not(rest) is not None):
                return unfold(rest, fuel, where)
        return self._typed(rest, fuel, where)

    # --- combinations -------------------------------------------------------------------------------------------------

    def _any(self, options: Iterable[Schema], fuel: int, where: str) -> Node:
        """Whatever fits one of them; those that no grammar can say are left out."""
        nodes: list[Node] = []
        failures: list[Exception] = []
        for i, option in enumerate(options):
            if i >= MAX_OPTIONS:
                raise Unsupported(f"{where}: it has more than {MAX_OPTIONS} alternatives")
            try:
                nodes.append(self.node(option, fuel, f"{where}/{i}"))
            except (Impossible, Unsupported) as exc:
                failures.append(exc)
        self._note(failures if nodes else [])
        if nodes:
            return either(nodes)
        raise next((exc for exc in failures if isinstance(exc, Unsupported)), Impossible(f"{where}: nothing fits"))

    def _some(self, options: Iterable[Schema], fuel: int, where: str, otherwise: str) -> Node:
        """As `_any`, of options that may not be all there are: that none of them fits anything proves nothing."""
        try:
            return self._any(options, fuel, where)
        except Impossible as exc:
            raise Unsupported(f"{where}: {otherwise}") from exc

    def _unfold_all(self, rest: dict[str, Any], fuel: int, where: str) -> Node:
        parts = rest.pop("allOf")
        if not rest and len(parts) == 1:
            return self.node(parts[0], fuel, where)
        for part in parts:
            if isinstance(part, Mapping) and "$ref" in part:
                fuel = self._burnt(part["$ref"], fuel)
        return self.node(merged(self.document, [rest, *parts], where), fuel, where)

    def _unfold_any(self, rest: dict[str, Any], fuel: int, where: str) -> Node:
        options = rest.pop("anyOf")
        for option in options:
            if isinstance(option, Mapping) and "$ref" in option:
                fuel = self._burnt(option["$ref"], fuel)
        return self._any(self._each_merged(rest, options, where), fuel, where)

    def _unfold_not(self, rest: dict[str, Any], fuel: int, where: str) -> Node:
        others = negated(self.document, rest.pop("not"), where)
        return self._some(self._each_merged(rest, others, where), fuel, where, "this 'not' cannot be kept to")

    def _unfold_if(self, rest: dict[str, Any], fuel: int, where: str) -> Node:
        condition = rest.pop("if")
        then, otherwise = rest.pop("then", True), rest.pop("else", True)
        cases = [{"allOf": [condition, then]}]
        cases += [{"allOf": [other, otherwise]} for other in negated(self.document, condition, where)]
        return self._some(self._each_merged(rest, cases, where), fuel, where, "this 'if' cannot be kept to")

    def _unfold_dependent(self, rest: dict[str, Any], fuel: int, where: str) -> Node:
        cases: list[Schema] = [rest]
        required = rest.pop("dependentRequired", {})
        schemas = rest.pop("dependentSchemas", {})
        for name in {**required, **schemas}:
            absent = {"properties": {name: False}}
            present = {"required": [name, *required.get(name, ())], "allOf": [schemas.get(name, True)]}
            cases = [{"allOf": [case, each]} for case in cases for each in (present, absent)]
            if len(cases) > MAX_OPTIONS:
                raise Unsupported(f"{where}: it has more than {MAX_OPTIONS} alternatives")
        return self._any(cases, fuel, where)

    def _unfold_one(self, rest: dict[str, Any], fuel: int, where: str) -> Node:
        """Each option without what another one takes too."""
        options: Sequence[Schema] = rest.pop("oneOf")
        alone: list[Schema] = []
        for i, option in enumerate(options):
            parts = [rest, option]
            for j, other in enumerate(options):
                if i == j or self._excludes(rest, option, other, fuel, where):
                    continue
                negations = negated(self.document, other, where)
                if not negations:
                    self._note([Unsupported(f"{where}/{i}: another option may fit what fits it")])
                    break
                parts.append({"anyOf": negations})
            else:
                alone.append({"allOf": parts})
        return self._some(alone, fuel, where, "the options of 'oneOf' cannot be told apart")

    def _excludes(self, rest: Schema, one: Schema, other: Schema, fuel: int, where: str) -> bool:
        """Whether provably nothing fits both."""
        noted = len(self.left_out)
        try:
            self.node({"allOf": [rest, one, other]}, min(fuel, 2), where)
        except Impossible:
            return True
        except Unsupported:
            return False
        finally:
            del self.left_out[noted:]
        return False

    def _each_merged(self, rest: Mapping[str, Any], options: Iterable[Schema], where: str) -> Iterator[Schema]:
        """The options, each with the rest; those that contradict it are left out."""
        for option in options:
            try:
                yield merged(self.document, [rest, option], where)
            except Impossible:
                continue

    def _note(self, failures: Iterable[Exception]) -> None:
        self.left_out += [
            str(exc) for exc in failures if isinstance(exc, Unsupported) and not isinstance(exc, _OutOfFuel)
        ]

    # --- references ---------------------------------------------------------------------------------------------------

    def _referred(self, reference: str, fuel: int, where: str) -> Node:
        fuel = self._burnt(reference, fuel)
        known = self._by_reference.get((reference, fuel))
        if known is None:
            known = self.node(self.document.resolved(reference, where), fuel, reference)
            self._by_reference[reference, fuel] = known
        return known

    def _burnt(self, reference: str, fuel: int) -> int:
        """What is left of the fuel after following the reference."""
        if not self.document.recurs(reference):
            return fuel
        if fuel <= 0:
            raise _OutOfFuel(f"{reference!r} has no end")
        return fuel - 1

    # --- values -------------------------------------------------------------------------------------------------------

    def _values(self, rest: dict[str, Any], where: str) -> Node:
        """Those of the listed values that fit everything else too."""
        candidates = [rest["const"]] if "const" in rest else list(rest["enum"])
        judged = in_standard_words(rest)
        fitting = [value for value in candidates if self.fits(value, judged)]
        if not fitting:
            raise Impossible(f"{where}: none of the listed values fits")
        texts = []
        for value in fitting:
            text = json.dumps(value, ensure_ascii=False)
            if any("\ud800" <= character <= "\udfff" for character in text):
                self._note([Unsupported(f"{where}: a listed value holds half of a surrogate pair")])
            else:
                texts.append(text)
        if not texts:
            raise Unsupported(f"{where}: no listed value can be written")
        return by_prefix((text, NOTHING) for text in dict.fromkeys(texts))

    def fits(self, value: Any, schema: Schema) -> bool:
        """Whether jsonschema says that the value fits.

        Raises:
            Unsupported: the schema refers to what is not there, or is beyond jsonschema.
        """
        from referencing.exceptions import Unresolvable  # here as in `schema_validator`

        try:
            return bool(self.validator.evolve(schema=schema).is_valid(value))
        except Unresolvable as exc:
            raise Unsupported(f"it refers to what is not there: {exc}") from exc
        except TypeError as exc:  # `unevaluatedItems` beside a boolean `items`, in draft 2019-09
            raise Unsupported(f"jsonschema cannot tell whether {value!r} fits it: {exc}") from exc

    def _typed(self, rest: dict[str, Any], fuel: int, where: str) -> Node:
        named = rest.get("type")
        if named is None:
            implied = {_TYPE_OF[keyword] for keyword in rest if keyword in _TYPE_OF}
            if not implied and "not" not in rest:
                return any_value(_ANY_DEPTH)
            kinds: list[str] = [kind for kind in TYPES if kind in implied]
            if kinds:
                return self._some([{**rest, "type": kind} for kind in kinds], fuel, where, _ONLY_OTHERS)
            kinds = [kind for kind in TYPES if kind != "integer"]
        else:
            kinds = [named] if isinstance(named, str) else list(named)
        if len(kinds) > 1:
            return self._any([{**rest, "type": kind} for kind in kinds], fuel, where)
        if not kinds:
            raise Impossible(f"{where}: no type fits")
        kind = kinds[0]
        excluded = [value for value in listed_not(rest) or () if _is_of(value, kind)]
        if kind == "object" or kind == "array":
            if excluded:
                raise Unsupported(f"{where}: an {kind} that is not another one cannot be kept to")
            return self._object(rest, fuel, where) if kind == "object" else self._array(rest, fuel, where)
        if kind == "string":
            with _told_of(where):
                return self._string(rest, excluded)
        if kind == "integer" or kind == "number":
            with _told_of(where):
                return numbers(rest, excluded, lambda value: self.fits(value, rest), is_whole=kind == "integer")
        if kind == "boolean" or kind == "null":
            left = [value for value in ([True, False] if kind == "boolean" else [None]) if value not in excluded]
            if not left:
                raise Impossible(f"{where}: nothing fits")
            return either(json.dumps(value) for value in left)
        raise Unsupported(f"{where}: there is no type {kind!r}")

    def _string(self, rest: Mapping[str, Any], excluded: Sequence[str]) -> Node:
        least, most = _bound(rest.get("minLength", 0), up=True), rest.get("maxLength")
        most = None if most is None else _bound(most, up=False)
        if most is not None and least > most:
            raise Impossible("'minLength' is above 'maxLength'")
        if "pattern" in rest:
            text = pattern_text(rest["pattern"])
            if most is not None and len(text.shortest) > most:
                raise Impossible(f"no text of the pattern has at most {most} characters")
            text = _some_limited(text, least, most)
            if any(map(searcher(rest["pattern"]), excluded)):
                raise Unsupported("a text of a pattern that is not another one cannot be kept to")
            return as_json(text)
        if excluded:
            most = max(least, 1_000 if most is None else min(most, 2_000))
            return as_json(all_but(excluded, least=least, most=most))
        known = format_text(str(rest.get("format", "")))
        return json_string(least, most) if known is None else as_json(_some_limited(known, least, most))

    # --- objects ------------------------------------------------------------------------------------------------------

    def _object(self, rest: Mapping[str, Any], fuel: int, where: str) -> Node:
        declared: Mapping[str, Schema] = rest.get("properties", {})
        required = list(dict.fromkeys(rest.get("required", ())))
        names = list(dict.fromkeys([*declared, *required]))
        free = self._free_pair(rest, names, fuel, where)
        pairs: list[tuple[Node, bool]] = []
        is_whole = True
        for name in names:
            try:
                value = self._property(rest, name, fuel, where)
                pairs.append((sequence(json.dumps(name, ensure_ascii=False), ": ", value), name in required))
            except (Impossible, Unsupported) as exc:
                if name in required:
                    raise
                is_whole &= isinstance(exc, Impossible)
                self._note([exc])
        least = _bound(rest.get("minProperties", 0), up=True)
        most = rest.get("maxProperties")
        most = None if most is None else _bound(most, up=False)
        count = sum(is_required for _, is_required in pairs)
        for i, (pair, is_required) in enumerate(pairs):
            if count < least and not is_required:
                pairs[i] = (pair, True)
                count += 1
        missing = max(0, least - count)
        if missing > 1 or (missing and free is None):
            if is_whole and additional_properties(rest) is False and "patternProperties" not in rest:
                raise Impossible(f"{where}: it has fewer properties than 'minProperties' asks for")
            raise Unsupported(f"{where}: 'minProperties' asks for properties of free names")
        if most is not None and (count + missing > most or least > most):
            raise Impossible(f"{where}: it needs more properties than 'maxProperties' allows")
        extra = MAX_EXTRA if most is None else max(0, min(MAX_EXTRA, most - len(pairs)))
        if free is None or (extra == 0 and not missing):
            free, extra = None, 0
        return sequence("{", listing(pairs, free, missing, max(extra, missing), most), "}")

    def _property(self, rest: Mapping[str, Any], name: str, fuel: int, where: str) -> Node:
        parts: list[Schema] = []
        declared = rest.get("properties", {})
        if name in declared:
            parts.append(declared[name])
        parts += [schema for pattern, schema in rest.get("patternProperties", {}).items() if searcher(pattern)(name)]
        if not parts:
            parts.append(additional_properties(rest))
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise Unsupported(f"{where}: the name {name!r} cannot be written")
        if "propertyNames" in rest and not self.fits(name, rest["propertyNames"]):
            raise Impossible(f"{where}: the name {name!r} is not allowed")
        inside = f"{where}/{name}"
        return self.node(parts[0] if len(parts) == 1 else {"allOf": parts}, fuel, inside)

    def _free_pair(self, rest: Mapping[str, Any], names: Sequence[str], fuel: int, where: str) -> Node | None:
        """A property of a name that is not declared; None: there is none, or none worth having."""
        patterns: Mapping[str, Schema] = rest.get("patternProperties", {})
        additional = additional_properties(rest)
        needs = _bound(rest.get("minProperties", 0), up=True) > len(names)
        try:
            if patterns:
                (pattern, schema), *others = patterns.items()
                if others or any(searcher(pattern)(name) for name in names) or "propertyNames" in rest:
                    raise Unsupported(f"{where}: names by pattern beside others are left out")
                key = as_json(limited(pattern_text(pattern), 0, 200))
                return sequence(key, ": ", self.node(schema, fuel, f"{where}/{pattern}"))
            if additional is False or (additional is True and "properties" in rest and not needs):
                return None
            value = self.node(additional, fuel, f"{where}/*")
            if "propertyNames" not in rest:
                return sequence(as_json(all_but(names, least=1, most=MAX_KEY)), ": ", value)
            keys = rest["propertyNames"]
            limits = {"type": "string", "minLength": 1, "maxLength": 200}
            key = self.node(
                {"allOf": [keys, limits, {"not": {"enum": list(names)}}] if names else [keys, limits]}, fuel, where
            )
            return sequence(key, ": ", value)
        except (Impossible, Unsupported) as exc:
            self._note([exc])
            return None

    # --- arrays -------------------------------------------------------------------------------------------------------

    def _array(self, rest: Mapping[str, Any], fuel: int, where: str) -> Node:
        if isinstance(rest.get("items"), list):
            raise Unsupported(f"{where}: a list of 'items' cannot be kept to; use 'prefixItems'")
        least = _bound(rest.get("minItems", 0), up=True)
        most = rest.get("maxItems")
        most = None if most is None else _bound(most, up=False)
        if most is not None and least > most:
            raise Impossible(f"{where}: 'minItems' is above 'maxItems'")
        prefix: list[Schema] = list(rest.get("prefixItems", ()))
        items: Schema = rest.get("items", rest.get("unevaluatedItems", True))
        if "contains" in rest and rest.get("minContains", 1) > 0:
            if prefix or rest.get("minContains", 1) > 1:
                raise Unsupported(f"{where}: 'contains' beside 'prefixItems', or more than once, cannot be kept to")
            prefix, least = [{"allOf": [items, rest["contains"]]}], max(1, least)
            if most == 0:
                raise Impossible(f"{where}: an empty array contains nothing")
        if rest.get("uniqueItems"):
            return self._distinct(prefix, items, least, most, fuel, where)
        return self._items(prefix, items, least, most, fuel, where)

    def _items(
        self, prefix: Sequence[Schema], items: Schema, least: int, most: int | None, fuel: int, where: str
    ) -> Node:
        """An array of the first elements, then of equal ones."""
        if least > 1_000:
            raise Unsupported(f"{where}: an array of {least} elements is too long for a grammar")
        most = (
            max(least, len(prefix) + _MAX_ITEMS)
            if most is None
            else min(most, max(least, 2 * _MAX_ITEMS + len(prefix)))
        )
        firsts: list[Node] = []
        for i, schema in enumerate(prefix[:most]):
            try:
                firsts.append(self.node(schema, fuel, f"{where}/{i}"))
            except (Impossible, Unsupported) as exc:
                if i < least:
                    raise
                self._note([exc])
                most = i
                break
        rest: Node = NOTHING
        if most > len(firsts):
            try:
                element = self.node(items, fuel, f"{where}/items")
                after = max(0, least - len(firsts))
                if not firsts:
                    whole = sequence(element, Repeated(sequence(", ", element), max(0, least - 1), most - 1))
                    return sequence("[", whole if least else optional(whole), "]")
                rest = Repeated(sequence(", ", element), after, most - len(firsts))
            except (Impossible, Unsupported) as exc:
                if least > len(firsts):
                    raise
                self._note([exc])
        for i in reversed(range(len(firsts))):
            rest = sequence(", " if i else "", firsts[i], rest)
            rest = rest if i < least else optional(rest)
        return sequence("[", rest, "]")

    def _distinct(
        self, prefix: Sequence[Schema], items: Schema, least: int, most: int | None, fuel: int, where: str
    ) -> Node:
        """An array without repetitions: of listed values in their order; else of one element at most."""
        listed_values = self._listed(items) if not prefix else None
        if listed_values is not None:
            pairs = [(Text(text), False) for text in listed_values]
            top = len(pairs) if most is None else min(most, len(pairs))
            if least > top:
                raise Impossible(f"{where}: there are fewer values than 'minItems' asks for")
            return sequence("[", listing(pairs, None, 0, 0, top, least=least), "]")
        if least > 1:
            raise Unsupported(f"{where}: several elements that all differ cannot be kept to")
        self._note([Unsupported(f"{where}: an array whose elements differ has one at most here")])
        return self._items(prefix[:1], items, least, 1 if most is None else min(most, 1), fuel, where)

    def _listed(self, items: Schema) -> list[str] | None:
        """The values that an element may have, where they are listed and few."""
        seen = 0
        while isinstance(items, Mapping) and items.keys() & ASSERTIONS == {"$ref"} and seen < 8:
            items = self.document.resolved(items["$ref"], "#")
            seen += 1
        if items is True or items is False or not isinstance(items.get("enum"), list) or "$ref" in items:
            return None
        values: list[Any] = []
        for value in items["enum"]:
            if self.fits(value, items) and not any(same(value, other) for other in values):
                values.append(value)
        return [json.dumps(value, ensure_ascii=False) for value in values] if 0 < len(values) <= 24 else None


@contextmanager
def _told_of(where: str) -> Iterator[None]:
    """Says of what fails inside where in the schema it is."""
    try:
        yield
    except (Impossible, Unsupported) as exc:
        raise type(exc)(f"{where}: {exc}") from exc


def _some_limited(text: Node, least: int, most: int | None) -> Node:
    """Those of the texts that have so many characters, of a grammar that need not have all texts that are meant.

    Raises:
        Unsupported: it has none.
    """
    try:
        return limited(text, least, most)
    except Impossible as exc:
        raise Unsupported(str(exc)) from exc


def _bound(value: float, *, up: bool) -> int:
    return ceil(value) if up else floor(value)


def _is_of(value: Any, kind: str) -> bool:
    kinds: dict[str, Any] = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    if kind in kinds:
        return isinstance(value, kinds[kind])
    return isinstance(value, int | float) and not isinstance(value, bool)
