"""Grammars of the JSON values that fit a JSON Schema: never a value more, and as few less as can be helped.

What a grammar cannot say is said more narrowly (an object without undeclared properties, an array without repetitions,
recursion to some depth), and a schema of which nothing is left is refused with the reason. Every grammar is bounded, so
that every value ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from itertools import pairwise
from math import ceil, floor, gcd
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

from .grammar import ANY as ANY_CHARACTER
from .grammar import NOTHING, Impossible, Node, Repeated, Text, Unsupported, by_prefix, either, optional, sequence
from .number_grammar import any_number, decimals, integers, listed, multiples
from .text_grammar import all_but, as_json, format_text, json_string, limited, nests_repetitions, pattern_text, searcher

#: What a schema may be.
Schema: TypeAlias = "Mapping[str, Any] | bool"

_MAX_ITEMS: Final = 32  # of an array that names no maximum
_MAX_EXTRA: Final = 8  # properties of free names
_MAX_KEY: Final = 40  # characters of such a name
_ANY_DEPTH: Final = 2  # of a value that may be anything
_MAX_WORK: Final = 20_000  # schemas looked at
_MAX_OPTIONS: Final = 64  # that one schema is split into
_FUEL: Final = (3, 6, 12)  # how often recursion may recur, tried in this order

_TYPES: Final = ("object", "array", "string", "integer", "number", "boolean", "null")

#: Keywords that rule values out; every other one is a note.
_ASSERTIONS: Final = frozenset(
    """
    $ref type enum const allOf anyOf oneOf not if then else $dynamicRef $recursiveRef
    properties required additionalProperties patternProperties propertyNames minProperties maxProperties
    dependentRequired dependentSchemas dependencies unevaluatedProperties
    items prefixItems additionalItems minItems maxItems uniqueItems contains minContains maxContains unevaluatedItems
    minLength maxLength pattern format minimum maximum exclusiveMinimum exclusiveMaximum multipleOf
    x-nearfar-rest
    """.split()  # noqa: SIM905 - easier to read than a list of quoted words
)
_REFUSED: Final = frozenset({"$dynamicRef", "$recursiveRef", "maxContains", "dependencies", "additionalItems"})

_BY_TYPE: Final = {
    "object": "properties required additionalProperties patternProperties propertyNames minProperties maxProperties",
    "array": "items prefixItems minItems maxItems uniqueItems contains minContains",
    "string": "minLength maxLength pattern format",
    "number": "minimum maximum exclusiveMinimum exclusiveMaximum multipleOf",
}
_TYPE_OF: Final = {keyword: kind for kind, keywords in _BY_TYPE.items() for keyword in keywords.split()}

#: Keywords that apply other schemas to the same value.
_APPLICATORS: Final = frozenset({"$ref", "allOf", "anyOf", "oneOf", "not", "if", "dependentSchemas"})

#: Our own keyword, for `unevaluatedProperties` of a schema while what it applies to the same object is merged into it.
_REST: Final = "x-nearfar-rest"


class SchemaRefused(ValueError):
    """No grammar can hold a model to the schema; the message says why."""


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
    reason: Exception | None = None
    start: Schema = schema
    if is_object and (isinstance(schema, bool) or schema.get("type") != "object"):
        start = {"allOf": [{"$ref": "#"}, {"type": "object"}]}
    for fuel in _FUEL:
        compiler = _Compiler(schema, validator)
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
    _require_descent(root)
    _require_quick_patterns(root)

    def pattern(_: Any, wanted: str, instance: Any, __: Any) -> Iterator[ValidationError]:
        if isinstance(instance, str) and not searcher(wanted)(instance):
            yield ValidationError(f"{instance!r} does not match {wanted!r}")

    nowhere: Registry[Any] = Registry()
    quick: Any = extend(kind, {"pattern": pattern})  # type: ignore[no-untyped-call]  # its stubs leave arguments out
    return quick(root, registry=nowhere)


def _require_descent(root: Any) -> None:
    """Returns if no schema applies itself to the same value: jsonschema would not end, and takes the process with it.

    Raises:
        SchemaRefused: one does.
    """
    compiler = _Compiler(root, None)
    done: set[int] = set()
    for start in _mappings(root):
        path: list[tuple[Mapping[str, Any], Iterator[Mapping[str, Any]]]] = [(start, compiler.beside(start))]
        while path and id(start) not in done:
            schema, following = path[-1]
            inner = next(following, None)
            if inner is None:
                done.add(id(schema))
                path.pop()
            elif any(inner is each for each, _ in path):
                raise SchemaRefused("it refers to itself for the same value, without end")
            elif id(inner) not in done:
                path.append((inner, compiler.beside(inner)))


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


class _OutOfFuel(Unsupported):
    """Recursion that has to go on was not given enough depth."""


@dataclass
class _Compiler:
    """Compiles one schema with what it refers to."""

    root: Schema
    validator: Any
    left_out: list[str] = field(default_factory=list)
    work: int = 0
    _by_reference: dict[tuple[str, int], Node] = field(default_factory=dict)
    _recursive: dict[str, bool] = field(default_factory=dict)

    def node(self, schema: Schema, fuel: int, where: str) -> Node:
        """The grammar of the schema's values.

        Raises:
            Impossible: no value fits.
            Unsupported: nothing is left of what a grammar can say.
        """
        self.work += 1
        if self.work > _MAX_WORK:
            raise Unsupported("it is too large")
        if schema is True:
            return any_value(_ANY_DEPTH)
        if schema is False:
            raise Impossible(f"{where}: nothing fits")
        rest = _assertions(schema)
        if refused := sorted(rest.keys() & _REFUSED):
            raise Unsupported(f"{where}: {refused[0]!r} cannot be kept to")
        _own_rest(rest, where)
        if "const" in rest or "enum" in rest:
            return self._values(rest, where)
        if set(rest) == {"$ref"}:
            return self._referred(rest["$ref"], fuel, where)
        if set(rest) == {"anyOf"}:
            return self._any(rest["anyOf"], fuel, where)
        if "$ref" in rest:
            target = self.resolved(rest.pop("$ref"), where)
            return self.node(self.merged([target, rest], where), self._burnt(schema["$ref"], fuel), where)
        for keyword, unfold in (
            ("allOf", self._unfold_all),
            ("not", self._unfold_not),
            ("if", self._unfold_if),
            ("dependentRequired", self._unfold_dependent),
            ("dependentSchemas", self._unfold_dependent),
            ("oneOf", self._unfold_one),
            ("anyOf", self._unfold_any),
        ):
            if keyword in rest and not (keyword == "not" and _listed_not(rest) is not None):
                return unfold(rest, fuel, where)
        return self._typed(rest, fuel, where)

    # --- combinations ------------------------------------------------------------------------------------------------

    def _any(self, options: Iterable[Schema], fuel: int, where: str) -> Node:
        """Whatever fits one of them; those that no grammar can say are left out."""
        nodes: list[Node] = []
        failures: list[Exception] = []
        for i, option in enumerate(options):
            if i >= _MAX_OPTIONS:
                raise Unsupported(f"{where}: it has more than {_MAX_OPTIONS} alternatives")
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
        return self.node(self.merged([rest, *parts], where), fuel, where)

    def _unfold_any(self, rest: dict[str, Any], fuel: int, where: str) -> Node:
        options = rest.pop("anyOf")
        for option in options:
            if isinstance(option, Mapping) and "$ref" in option:
                fuel = self._burnt(option["$ref"], fuel)
        return self._any(self._each_merged(rest, options, where), fuel, where)

    def _unfold_not(self, rest: dict[str, Any], fuel: int, where: str) -> Node:
        others = self.negated(rest.pop("not"), where)
        return self._some(self._each_merged(rest, others, where), fuel, where, "this 'not' cannot be kept to")

    def _unfold_if(self, rest: dict[str, Any], fuel: int, where: str) -> Node:
        condition = rest.pop("if")
        then, otherwise = rest.pop("then", True), rest.pop("else", True)
        cases = [{"allOf": [condition, then]}]
        cases += [{"allOf": [other, otherwise]} for other in self.negated(condition, where)]
        return self._some(self._each_merged(rest, cases, where), fuel, where, "this 'if' cannot be kept to")

    def _unfold_dependent(self, rest: dict[str, Any], fuel: int, where: str) -> Node:
        cases: list[Schema] = [rest]
        required = rest.pop("dependentRequired", {})
        schemas = rest.pop("dependentSchemas", {})
        for name in {**required, **schemas}:
            absent = {"properties": {name: False}}
            present = {"required": [name, *required.get(name, ())], "allOf": [schemas.get(name, True)]}
            cases = [{"allOf": [case, each]} for case in cases for each in (present, absent)]
            if len(cases) > _MAX_OPTIONS:
                raise Unsupported(f"{where}: it has more than {_MAX_OPTIONS} alternatives")
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
                negations = self.negated(other, where)
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
                yield self.merged([rest, option], where)
            except Impossible:
                continue

    def _note(self, failures: Iterable[Exception]) -> None:
        self.left_out += [
            str(exc) for exc in failures if isinstance(exc, Unsupported) and not isinstance(exc, _OutOfFuel)
        ]

    # --- references --------------------------------------------------------------------------------------------------

    def _referred(self, reference: str, fuel: int, where: str) -> Node:
        fuel = self._burnt(reference, fuel)
        known = self._by_reference.get((reference, fuel))
        if known is None:
            known = self.node(self.resolved(reference, where), fuel, reference)
            self._by_reference[reference, fuel] = known
        return known

    def resolved(self, reference: str, where: str) -> Schema:
        """What a reference within the document names."""
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

    def _burnt(self, reference: str, fuel: int) -> int:
        """What is left of the fuel after following the reference."""
        if not self._recurs(reference):
            return fuel
        if fuel <= 0:
            raise _OutOfFuel(f"{reference!r} has no end")
        return fuel - 1

    def _recurs(self, reference: str) -> bool:
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

    # --- values ------------------------------------------------------------------------------------------------------

    def _values(self, rest: dict[str, Any], where: str) -> Node:
        """Those of the listed values that fit everything else too."""
        candidates = [rest["const"]] if "const" in rest else list(rest["enum"])
        fitting = [value for value in candidates if self.fits(value, rest)]
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
        """Whether jsonschema says that the value fits."""
        return bool(self.validator.evolve(schema=schema).is_valid(value))

    def _typed(self, rest: dict[str, Any], fuel: int, where: str) -> Node:
        named = rest.get("type")
        if named is None:
            implied = {_TYPE_OF[keyword] for keyword in rest if keyword in _TYPE_OF}
            if not implied and "not" not in rest:
                return any_value(_ANY_DEPTH)
            kinds: list[str] = [kind for kind in _TYPES if kind in implied]
            kinds = kinds or [kind for kind in _TYPES if kind != "integer"]
        else:
            kinds = [named] if isinstance(named, str) else list(named)
        if len(kinds) > 1:
            return self._any([{**rest, "type": kind} for kind in kinds], fuel, where)
        if not kinds:
            raise Impossible(f"{where}: no type fits")
        kind = kinds[0]
        excluded = [value for value in _listed_not(rest) or () if _is_of(value, kind)]
        if kind == "object" or kind == "array":
            if excluded:
                raise Unsupported(f"{where}: an {kind} that is not another one cannot be kept to")
            return self._object(rest, fuel, where) if kind == "object" else self._array(rest, fuel, where)
        if kind == "string":
            return self._string(rest, excluded, where)
        if kind == "integer" or kind == "number":
            return self._number(rest, excluded, where, is_whole=kind == "integer")
        if kind == "boolean" or kind == "null":
            left = [value for value in ([True, False] if kind == "boolean" else [None]) if value not in excluded]
            if not left:
                raise Impossible(f"{where}: nothing fits")
            return either(json.dumps(value) for value in left)
        raise Unsupported(f"{where}: there is no type {kind!r}")

    def _string(self, rest: Mapping[str, Any], excluded: Sequence[str], where: str) -> Node:
        least, most = _bound(rest.get("minLength", 0), up=True), rest.get("maxLength")
        most = None if most is None else _bound(most, up=False)
        try:
            if "pattern" in rest:
                text = limited(pattern_text(rest["pattern"]), least, most)
                if any(map(searcher(rest["pattern"]), excluded)):
                    raise Unsupported("a text of a pattern that is not another one cannot be kept to")
                return as_json(text)
            known = format_text(str(rest.get("format", "")))
            if known is not None and not excluded:
                return as_json(limited(known, least, most))
            if excluded:
                return as_json(
                    all_but(excluded, least=least, most=max(least, 1_000 if most is None else min(most, 2_000)))
                )
            return json_string(least, most)
        except Impossible as exc:
            raise Impossible(f"{where}: {exc}") from exc
        except Unsupported as exc:
            raise Unsupported(f"{where}: {exc}") from exc

    def _number(self, rest: Mapping[str, Any], excluded: Sequence[Any], where: str, *, is_whole: bool) -> Node:
        low, is_above = _limit(rest, "minimum", "exclusiveMinimum", max)
        high, is_below = _limit(rest, "maximum", "exclusiveMaximum", min)
        step = rest.get("multipleOf")
        try:
            if step is None and not excluded:
                if not is_whole:
                    free = low is None and high is None
                    return any_number() if free else decimals(low, high, is_above=is_above, is_below=is_below)
                return integers(_whole(low, is_above, up=True), _whole(high, is_below, up=False))
            if step is not None and not excluded and step == int(step) and (is_whole or isinstance(step, int)):
                return multiples(int(step), _whole(low, is_above, up=True), _whole(high, is_below, up=False))
            if step is None:
                return self._number_but(excluded, low, high, is_above, is_below, is_whole=is_whole)
            return self._steps(rest, excluded, low, high, is_whole=is_whole)
        except Impossible as exc:
            raise Impossible(f"{where}: {exc}") from exc
        except Unsupported as exc:
            raise Unsupported(f"{where}: {exc}") from exc

    def _number_but(
        self,
        excluded: Sequence[Any],
        low: Fraction | None,
        high: Fraction | None,
        is_above: bool,
        is_below: bool,
        *,
        is_whole: bool,
    ) -> Node:
        """The numbers between those that are not meant."""
        cuts = sorted({_fraction(value) for value in excluded})
        inside = [cut for cut in cuts if (low is None or cut >= low) and (high is None or cut <= high)]
        edges = [(low, is_above), *((cut, True) for cut in inside), (high, is_below)]
        options = []
        for (first, is_after), (last, is_before) in pairwise(edges):
            try:
                if is_whole:
                    options.append(integers(_whole(first, is_after, up=True), _whole(last, is_before, up=False)))
                else:
                    options.append(decimals(first, last, is_above=is_after, is_below=is_before))
            except Impossible:
                continue
        if not options:
            raise Impossible("no number is within the bounds")
        return either(options)

    def _steps(
        self,
        rest: Mapping[str, Any],
        excluded: Sequence[Any],
        low: Fraction | None,
        high: Fraction | None,
        *,
        is_whole: bool,
    ) -> Node:
        """The first multiples that jsonschema takes for such: it divides as floats do."""
        step = _fraction(rest["multipleOf"])
        if step <= 0:
            raise Unsupported("'multipleOf' is not above 0")
        first = (
            0
            if low is None and high is None
            else ceil(low / step)
            if low is not None
            else floor((high or 0) / step) - 200
        )
        if (low is None or low <= 0) and (high is None or high >= 0):
            first = 0 if low is None else max(0, ceil(low / step))
        found: list[int | float] = []
        for n in range(first, first + 400):
            exact = n * step
            if is_whole and exact.denominator != 1:
                continue
            value = exact.numerator if exact.denominator == 1 else float(exact)
            if self.fits(value, rest) and not any(_same(value, other) for other in excluded):
                found.append(value)
        if not found:
            raise Unsupported("no multiple is found within the bounds")
        return listed(found)

    # --- objects -----------------------------------------------------------------------------------------------------

    def _object(self, rest: Mapping[str, Any], fuel: int, where: str) -> Node:
        declared: Mapping[str, Schema] = rest.get("properties", {})
        required = list(dict.fromkeys(rest.get("required", ())))
        names = list(dict.fromkeys([*declared, *required]))
        free = self._free_pair(rest, names, fuel, where)
        pairs: list[tuple[Node, bool]] = []
        for name in names:
            try:
                value = self._property(rest, name, fuel, where)
                pairs.append((sequence(json.dumps(name, ensure_ascii=False), ": ", value), name in required))
            except (Impossible, Unsupported) as exc:
                if name in required:
                    raise
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
            if free is None and _additional(rest) is False and "patternProperties" not in rest:
                raise Impossible(f"{where}: it has fewer properties than 'minProperties' asks for")
            raise Unsupported(f"{where}: 'minProperties' asks for properties of free names")
        if most is not None and (count + missing > most or least > most):
            raise Impossible(f"{where}: it needs more properties than 'maxProperties' allows")
        extra = _MAX_EXTRA if most is None else max(0, min(_MAX_EXTRA, most - len(pairs)))
        if free is None or (extra == 0 and not missing):
            free, extra = None, 0
        return sequence("{", _listing(pairs, free, missing, max(extra, missing), most), "}")

    def _property(self, rest: Mapping[str, Any], name: str, fuel: int, where: str) -> Node:
        parts: list[Schema] = []
        declared = rest.get("properties", {})
        if name in declared:
            parts.append(declared[name])
        parts += [schema for pattern, schema in rest.get("patternProperties", {}).items() if _found(pattern, name)]
        if not parts:
            parts.append(_additional(rest))
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise Unsupported(f"{where}: the name {name!r} cannot be written")
        if "propertyNames" in rest and not self.fits(name, rest["propertyNames"]):
            raise Impossible(f"{where}: the name {name!r} is not allowed")
        inside = f"{where}/{name}"
        return self.node(parts[0] if len(parts) == 1 else {"allOf": parts}, fuel, inside)

    def _free_pair(self, rest: Mapping[str, Any], names: Sequence[str], fuel: int, where: str) -> Node | None:
        """A property of a name that is not declared; None: there is none, or none worth having."""
        patterns: Mapping[str, Schema] = rest.get("patternProperties", {})
        additional = _additional(rest)
        needs = _bound(rest.get("minProperties", 0), up=True) > len(names)
        try:
            if patterns:
                (pattern, schema), *others = patterns.items()
                if others or any(_found(pattern, name) for name in names) or "propertyNames" in rest:
                    raise Unsupported(f"{where}: names by pattern beside others are left out")
                key = as_json(limited(pattern_text(pattern), 0, 200))
                return sequence(key, ": ", self.node(schema, fuel, f"{where}/{pattern}"))
            if additional is False or (additional is True and "properties" in rest and not needs):
                return None
            value = self.node(additional, fuel, f"{where}/*")
            if "propertyNames" not in rest:
                return sequence(as_json(all_but(names, least=1, most=_MAX_KEY)), ": ", value)
            keys = rest["propertyNames"]
            limits = {"type": "string", "minLength": 1, "maxLength": 200}
            key = self.node(
                {"allOf": [keys, limits, {"not": {"enum": list(names)}}] if names else [keys, limits]}, fuel, where
            )
            return sequence(key, ": ", value)
        except (Impossible, Unsupported) as exc:
            self._note([exc])
            return None

    # --- arrays ------------------------------------------------------------------------------------------------------

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
            return sequence("[", _listing(pairs, None, 0, 0, top, least=least), "]")
        if least > 1:
            raise Unsupported(f"{where}: several elements that all differ cannot be kept to")
        self._note([Unsupported(f"{where}: an array whose elements differ has one at most here")])
        return self._items(prefix[:1], items, least, 1 if most is None else min(most, 1), fuel, where)

    def _listed(self, items: Schema) -> list[str] | None:
        """The values that an element may have, where they are listed and few."""
        seen = 0
        while isinstance(items, Mapping) and items.keys() & _ASSERTIONS == {"$ref"} and seen < 8:
            items = self.resolved(items["$ref"], "#")
            seen += 1
        if items is True or items is False or not isinstance(items.get("enum"), list) or "$ref" in items:
            return None
        values: list[Any] = []
        for value in items["enum"]:
            if self.fits(value, items) and not any(_same(value, other) for other in values):
                values.append(value)
        return [json.dumps(value, ensure_ascii=False) for value in values] if 0 < len(values) <= 24 else None

    # --- what fits both ----------------------------------------------------------------------------------------------

    def merged(self, schemas: Iterable[Schema], where: str) -> Schema:
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
            self.work += 1
            if self.work > _MAX_WORK:
                raise Unsupported(f"{where}: it is too large, or refers to itself without end")
            if each is False:
                raise Impossible(f"{where}: nothing fits")
            if each is True:
                continue
            part = _assertions(each)
            _close_rest(part, where)
            if "$ref" in part:
                parts[:0] = [self.resolved(part.pop("$ref"), where), part]
                continue
            self._merge(result, part, where)
        return result

    def _merge(self, result: dict[str, Any], part: dict[str, Any], where: str) -> None:
        _close_properties(result, part)
        if part.keys() & {"items", "prefixItems"}:
            _merge_items(result, part, where)
        for key, new in part.items():
            if key in ("items", "prefixItems"):
                continue
            if key not in result:
                result[key] = new
                continue
            old = result[key]
            if key in ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties", "minContains"):
                result[key] = max(old, new)
            elif key in ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"):
                result[key] = min(old, new)
            elif key == "type":
                result[key] = _common_types(old, new)
                if not result[key]:
                    raise Impossible(f"{where}: no type fits")
            elif key == "enum":
                result[key] = [value for value in old if any(_same(value, other) for other in new)]
            elif key == "const":
                if not _same(old, new):
                    raise Impossible(f"{where}: no value fits")
            elif key == "required":
                result[key] = [*old, *(value for value in new if value not in old)]
            elif key in ("properties", "patternProperties", "dependentSchemas"):
                result[key] = {**old, **{name: _both(old[name], s) if name in old else s for name, s in new.items()}}
            elif key == "dependentRequired":
                result[key] = {**old, **{name: [*old.get(name, ()), *names] for name, names in new.items()}}
            elif key in ("additionalProperties", "propertyNames", _REST):
                result[key] = _both(old, new)
            elif key == "allOf":
                result[key] = [*old, *new]
            elif key == "uniqueItems":
                result[key] = old or new
            elif key == "not":
                listed_values = [_listed_not({"not": each}) for each in (old, new)]
                if None in listed_values:
                    result[key] = {"anyOf": [old, new]}
                else:
                    result[key] = {"enum": [value for values in listed_values for value in values or ()]}
            elif key == "multipleOf":
                result[key] = _common_multiple(old, new, where)
            elif key in ("anyOf", "oneOf"):
                if old != new or key == "oneOf":
                    _conjoin(result, {key: new})
            elif key in ("then", "else"):
                continue  # with its if
            elif key == "if":
                _conjoin(result, {name: part[name] for name in ("if", "then", "else") if name in part})
            elif key == "format":
                continue  # an annotation
            elif old != new:
                raise Unsupported(f"{where}: two of {key!r} at once cannot be kept to")

    def negated(self, schema: Schema, where: str, depth: int = 0) -> list[Schema]:
        """Schemas of what does not fit, or of some of it: whatever fits one of them does not fit `schema`."""
        if schema is True:
            return [False]
        if schema is False:
            return [True]
        if depth > 8:
            return []
        others: list[Schema] = []
        for key, value in schema.items():
            others += self._negated_keyword(key, value, schema, where, depth + 1)
        return others[:_MAX_OPTIONS]

    def _negated_keyword(self, key: str, value: Any, schema: Mapping[str, Any], where: str, depth: int) -> list[Schema]:
        if key == "type":
            named = [value] if isinstance(value, str) else list(value)
            left = [kind for kind in _TYPES if kind not in named and kind != "integer"]
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
                for other in self.negated(inner, where, depth)
            ]
        if key == "$ref":
            return self.negated(self.resolved(value, where), where, depth)
        if key == "allOf":
            return [other for inner in value for other in self.negated(inner, where, depth)]
        if key == "not":
            return [value]
        if key == "anyOf":
            cases: list[Schema] = [True]
            for inner in value:
                cases = [_both(case, other) for case in cases for other in self.negated(inner, where, depth)]
                if len(cases) > _MAX_OPTIONS:
                    return []
            return cases
        bounds: dict[str, tuple[str, str, int]] = {
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
        if key in bounds and not isinstance(value, bool):
            kind, opposite, shift = bounds[key]
            bound = value + shift
            return (
                []
                if opposite in ("maxLength", "maxItems", "maxProperties") and bound < 0
                else [{"type": kind, opposite: bound}]
            )
        return []


# --- values of any kind ----------------------------------------------------------------------------------------------


@cache
def any_value(depth: int) -> Node:
    """Any JSON value, arrays and objects nested so deeply."""
    options: list[Node | str] = [json_string(), any_number(), "true", "false", "null"]
    if depth:
        inner = any_value(depth - 1)
        pair = sequence(as_json(Repeated(ANY_CHARACTER, 1, _MAX_KEY)), ": ", inner)
        options.append(
            sequence("[", optional(sequence(inner, Repeated(sequence(", ", inner), 0, _MAX_EXTRA - 1))), "]")
        )
        options.append(sequence("{", optional(sequence(pair, Repeated(sequence(", ", pair), 0, _MAX_EXTRA - 1))), "}"))
    return either(options)


def _listing(
    entries: Sequence[tuple[Node, bool]],
    free: Node | None,
    free_least: int,
    free_most: int,
    most: int | None,
    *,
    least: int = 0,
) -> Node:
    """Entries in their order with ", " between them, those that are not required left out at will; free ones last.

    Args:
        entries: each with whether it is required.
        free: what may follow, again and again; None: nothing.
        free_least: how often at least.
        free_most: how often at most.
        most: entries in all, but for the free ones, which `free_most` bounds; None: all.
        least: entries in all.
    """
    required_after = [0] * (len(entries) + 1)
    for i in reversed(range(len(entries))):
        required_after[i] = required_after[i + 1] + entries[i][1]
    top = len(entries) if most is None else most
    counts = top < len(entries) or least > 0
    more = None if free is None or free_most == 0 else sequence(", ", free)
    following: dict[tuple[int, bool], Node] = {}  # by how many entries were used, and whether there is none before
    for used in range(len(entries) + 1) if counts else (0,):
        following[used, False] = NOTHING if more is None else Repeated(more, free_least, free_most)
    if free is None or more is None:
        following[0, True] = NOTHING
    else:
        whole = sequence(free, Repeated(more, max(0, free_least - 1), free_most - 1))
        following[0, True] = whole if free_least else optional(whole)
    for i in reversed(range(len(entries))):
        entry, is_required = entries[i]
        here: dict[tuple[int, bool], Node] = {}
        for used in range(i + 1) if counts else (0,):
            for is_first in (False, True) if used == 0 else (False,):
                after = following.get((used + counts, False))
                options: list[Node] = []
                if after is not None and used + 1 + required_after[i + 1] <= top:
                    options.append(sequence("" if is_first else ", ", entry, after))
                without_it = following.get((used, is_first))
                if without_it is not None and not is_required and (used + len(entries) - i - 1 >= least or not counts):
                    options.append(without_it)
                if options:
                    here[used, is_first] = either(options)
        following = here
    return following[0, True]


# --- small things ----------------------------------------------------------------------------------------------------


def _both(one: Schema, other: Schema) -> Schema:
    if one is True or one == other:
        return other
    if other is True:
        return one
    return False if one is False or other is False else {"allOf": [one, other]}


def _conjoin(result: dict[str, Any], schema: Schema) -> None:
    """Adds a condition to a schema that has a keyword of it already: each of its alternatives, or the only one."""
    result["anyOf"] = [{"allOf": [option, schema]} for option in result["anyOf"]] if "anyOf" in result else [schema]


def _says(schema: Schema) -> bool:
    """Whether it rules anything out."""
    return schema is False or (isinstance(schema, Mapping) and any(key in _ASSERTIONS for key in schema))


def _assertions(schema: Mapping[str, Any]) -> dict[str, Any]:
    """What it rules out, without notes."""
    return {key: value for key, value in schema.items() if key in _ASSERTIONS}


def _listed_not(rest: Mapping[str, Any]) -> list[Any] | None:
    """The values that a `not` rules out, where it only lists values."""
    inner = rest.get("not")
    if not isinstance(inner, Mapping):
        return None
    said = _assertions(inner)
    if set(said) == {"const"}:
        return [said["const"]]
    return list(said["enum"]) if set(said) == {"enum"} else None


def _own_rest(rest: dict[str, Any], where: str) -> None:
    """Says `unevaluatedProperties` in our own word, since it sees what the schemas beside it evaluate."""
    if "unevaluatedItems" in rest and rest.keys() & _APPLICATORS:
        raise Unsupported(f"{where}: 'unevaluatedItems' beside other schemas cannot be kept to")
    if "unevaluatedProperties" in rest and rest.keys() & {"not", "if", "oneOf"}:
        raise Unsupported(f"{where}: 'unevaluatedProperties' beside 'not', 'if' or 'oneOf' cannot be kept to")
    if "unevaluatedProperties" in rest:
        rest[_REST] = _both(rest.pop("unevaluatedProperties"), rest.get(_REST, True))


def _close_rest(part: dict[str, Any], where: str) -> None:
    """Says `unevaluatedProperties` of a schema that is merged into another, whose properties it does not see."""
    if part.keys() & {"unevaluatedProperties", "unevaluatedItems"} and part.keys() & _APPLICATORS:
        raise Unsupported(f"{where}: 'unevaluated…' in a part of a schema cannot be kept to")
    for old, new in (("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")):
        if old in part:
            part.setdefault(new, part.pop(old))


def _close_properties(result: dict[str, Any], part: dict[str, Any]) -> None:
    """What one of them says of properties that only the other declares, said where they are declared."""
    for one, other in ((result, dict(part)), (part, dict(result))):
        if "additionalProperties" not in other:
            continue
        known = other.get("properties", {})
        patterns = other.get("patternProperties", {})
        additional = other["additionalProperties"]
        for key in ("properties", "patternProperties"):
            if key in one:
                one[key] = {
                    name: schema
                    if name in known or (key == "properties" and any(_found(pattern, name) for pattern in patterns))
                    else _both(schema, additional)
                    for name, schema in one[key].items()
                }


def _merge_items(result: dict[str, Any], part: Mapping[str, Any], where: str) -> None:
    """The elements of two arrays, place by place."""
    items = [schema.get("items", True) for schema in (result, part)]
    if any(isinstance(each, list) for each in items):
        raise Unsupported(f"{where}: a list of 'items' cannot be kept to; use 'prefixItems'")
    prefixes = [schema.get("prefixItems", ()) for schema in (result, part)]
    length = max(map(len, prefixes))
    first, second = ([*prefix, *[rest] * (length - len(prefix))] for prefix, rest in zip(prefixes, items, strict=True))
    result["items"] = _both(*items)
    if length:
        result["prefixItems"] = [_both(one, other) for one, other in zip(first, second, strict=True)]


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


def _additional(rest: Mapping[str, Any]) -> Schema:
    """What properties that are not declared must fit."""
    found: Schema = rest.get("additionalProperties", rest.get(_REST, True))
    return found


def _found(pattern: str, name: str) -> bool:
    return searcher(pattern)(name)


def _bound(value: float, *, up: bool) -> int:
    return ceil(value) if up else floor(value)


def _fraction(value: float) -> Fraction:
    """The decimal as it is written."""
    return Fraction(value) if isinstance(value, int) else Fraction(repr(value))


def _limit(rest: Mapping[str, Any], inclusive: str, exclusive: str, tighter: Any) -> tuple[Fraction | None, bool]:
    """A number's bound, and whether it is itself left out."""
    found = [(rest[key], key == exclusive) for key in (inclusive, exclusive) if key in rest]
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value, _ in found):
        raise Unsupported(f"{exclusive!r} is not a number")
    bounds = [(_fraction(value), is_open) for value, is_open in found]
    if not bounds:
        return None, False
    bound = tighter(value for value, _ in bounds)
    return bound, any(is_open for value, is_open in bounds if value == bound)


def _whole(bound: Fraction | None, is_open: bool, *, up: bool) -> int | None:
    """The first whole number within the bound."""
    if bound is None:
        return None
    whole = ceil(bound) if up else floor(bound)
    return whole + (1 if up else -1) if is_open and whole == bound else whole


def _same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal: 1 is 1.0 and not true."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return (type(one) is type(other) and one == other) or (
        isinstance(one, int | float) and isinstance(other, int | float) and one == other
    )


def _is_of(value: Any, kind: str) -> bool:
    kinds: dict[str, Any] = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}
    if kind in kinds:
        return isinstance(value, kinds[kind])
    return isinstance(value, int | float) and not isinstance(value, bool)
