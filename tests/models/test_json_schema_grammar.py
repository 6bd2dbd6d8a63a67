"""Grammars of JSON Schemas: never a value more than jsonschema takes, and the usual schemas whole."""

import importlib.util
import json
import random
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from jsonschema.validators import validator_for

from nearfar.models.gbnf import Grammar
from nearfar.models.grammar import accepts, completed, gbnf, sampled
from nearfar.models.json_schema import SchemaRefused, schema_validator
from nearfar.models.json_schema_grammar import schema_grammar
from nearfar.models.text_grammar import searcher


def _fuzzed() -> ModuleType:
    """benchmarks/fuzzed_schemas.py, which the benchmark of calls shares."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "fuzzed_schemas.py"
    spec = importlib.util.spec_from_file_location("fuzzed_schemas", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FUZZED = _fuzzed()


_DRAFT_2019 = "https://json-schema.org/draft/2019-09/schema"


def check_notation(text: str) -> None:
    """The reader of clients' grammars finds nothing wrong with the text but perhaps its size."""
    try:
        Grammar(text)
    except ValueError as exc:
        if not str(exc).startswith("it has more than"):
            raise


def check_never_wider(chance: random.Random, samples: int) -> bool:
    """A fuzzed schema's grammar makes only values that fit, also finished from a cut; False: it was refused."""
    schema = FUZZED.schema(chance)
    try:
        Draft202012Validator.check_schema(schema)
        grammar = schema_grammar(schema).node
    except (SchemaError, SchemaRefused):
        return False
    validator = Draft202012Validator(schema)
    check_notation(gbnf(grammar))
    for _ in range(samples):
        text = sampled(grammar, chance)
        assert validator.is_valid(json.loads(text)), (schema, text)
        finished, _ = completed(grammar, text[: chance.randint(0, min(len(text), 300))])
        assert validator.is_valid(json.loads(finished)), (schema, finished)
    assert validator.is_valid(json.loads(grammar.shortest))
    return True


@settings(max_examples=120)
@given(st.randoms(use_true_random=False))
def test_no_value_is_in_the_grammar_that_does_not_fit(chance: random.Random) -> None:
    """Whatever the schema; jsonschema is the judge."""
    check_never_wider(chance, samples=3)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_no_value_of_20_000_schemas_does_not_fit(record_property: Any) -> None:
    """The full count."""
    said = sum(check_never_wider(random.Random(seed), samples=6) for seed in range(20_000))

    record_property("schemas", 20_000)
    record_property("grammars", said)
    assert said > 15_000


TREE = {
    "type": "object",
    "properties": {"v": {"type": "integer"}, "next": {"$ref": "#"}},
    "required": ["v"],
    "additionalProperties": False,
}
UNION = {
    "oneOf": [
        {"type": "object", "properties": {"kind": {"const": "circle"}, "r": {"type": "number"}}, "required": ["r"]},
        {
            "type": "object",
            "properties": {"kind": {"const": "square"}, "side": {"type": "number"}},
            "required": ["side"],
        },
    ]
}


@pytest.mark.parametrize(
    ("schema", "inside"),
    [
        ({"type": "string"}, ["", "Rom\n", 'say "x"', "日本 🙂", "\\"]),
        ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "日本語"]),
        ({"type": "string", "pattern": "^[A-Z]{2}-\\d+$"}, ["AB-1", "XY-123456"]),
        ({"type": "string", "pattern": "a|b"}, ["a", "xxbxx"]),
        ({"type": "string", "pattern": "^\\S+@\\S+$", "maxLength": 9}, ["a@b", "ab.c@d.ef"]),
        ({"type": "string", "format": "date"}, ["2024-02-28", "1999-12-31"]),
        ({"type": "string", "format": "date-time"}, ["2024-02-28T23:59:59Z", "2024-01-01T00:00:00.5+02:00"]),
        ({"type": "string", "format": "email"}, ["a.b@example.org"]),
        ({"type": "string", "format": "uuid"}, ["123e4567-e89b-12d3-a456-426614174000"]),
        ({"type": "string", "format": "int32"}, ["anything"]),
        ({"type": "integer"}, [0, -1, 123456789012345]),
        ({"type": "integer", "minimum": 7, "maximum": 1204}, [7, 10, 99, 100, 1000, 1199, 1204]),
        ({"type": "integer", "exclusiveMinimum": -3, "exclusiveMaximum": 3}, [-2, 0, 2]),
        ({"type": "integer", "multipleOf": 7}, [0, 7, -7, 7000000007]),
        ({"type": "number"}, [0, -1.5, 3.14159, 1e22, 1e-07]),
        ({"type": "number", "minimum": 0, "maximum": 1}, [0, 1, 0.5, 0.123456]),
        ({"type": "number", "exclusiveMinimum": 0}, [0.1, 5, 12.75]),
        ({"type": "number", "multipleOf": 0.01}, [0.01, 0.5, 1.25]),
        ({"enum": ["a", 1, None, {"k": []}]}, ["a", 1, None, {"k": []}]),
        ({"type": ["string", "null"], "enum": ["x", None, 3]}, ["x", None]),
        ({"type": ["integer", "boolean"]}, [3, True]),
        ({}, [None, 1, "x", [1, "a"], {"a": {"b": 1}}]),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 1}, [[True], [False, True, True]]),
        ({"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}]}, [[], [1], [1, "a"]]),
        ({"type": "array", "items": {"enum": ["r", "g", "b"]}, "uniqueItems": True}, [[], ["r", "b"], ["r", "g", "b"]]),
        ({"type": "array", "items": {"type": "integer"}, "contains": {"minimum": 5}}, [[5], [9, 1, 2]]),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, [{}, {"a": 1, "ü": 2}]),
        ({"type": "object"}, [{}, {"a": [1, {"b": None}]}]),
        (
            {"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": {"type": "integer"}},
            [{}, {"a": None}, {"a": None, "b": 1}, {"aa": 1}, {"": 1}][:4],
        ),
        (
            {"type": "object", "patternProperties": {"^x_": {"type": "integer"}}, "additionalProperties": False},
            [{"x_1": 1}],
        ),
        ({"type": "object", "properties": {"a": {}, "b": {}}, "minProperties": 1, "maxProperties": 1}, [{"a": 1}]),
        (TREE, [{"v": 1}, {"v": 1, "next": {"v": 2, "next": {"v": 3}}}]),
        (UNION, [{"kind": "circle", "r": 2}, {"kind": "square", "side": 1.5}]),
        ({"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 1}]}, [1, "a"]),
        (
            {
                "allOf": [
                    {"type": "object", "properties": {"a": {"minimum": 3}}},
                    {"properties": {"a": {"type": "integer"}}},
                ]
            },
            [{"a": 3}, {}],
        ),
        ({"type": "integer", "not": {"enum": [0, 1]}}, [-1, 2, 100]),
        ({"type": "string", "not": {"const": "no"}}, ["yes", "n", "non", ""]),
        (
            {
                "type": "object",
                "properties": {"mode": {"enum": ["a", "b"]}, "x": {"type": "integer"}},
                "required": ["mode"],
                "if": {"properties": {"mode": {"const": "a"}}},
                "then": {"required": ["x"]},
            },
            [{"mode": "a", "x": 1}, {"mode": "b"}, {"mode": "b", "x": 1}],
        ),
        (
            {"type": "object", "properties": {"a": {}, "b": {}}, "dependentRequired": {"a": ["b"]}},
            [{}, {"b": 1}, {"a": 1, "b": 1}],
        ),
        ({"$ref": "#/$defs/a b", "$defs": {"a b": {"const": 1}}}, [1]),
        ({"$ref": "#/$defs/a~1b", "description": "x", "$defs": {"a/b": {"type": "integer"}}, "minimum": 5}, [5]),
    ],
)
def test_what_fits_a_usual_schema_is_in_its_grammar(schema: dict[str, Any], inside: list[Any]) -> None:
    """And fits; properties in their order."""
    grammar = schema_grammar(schema).node

    for value in inside:
        assert Draft202012Validator(schema).is_valid(value)
        assert accepts(grammar, json.dumps(value, ensure_ascii=False)), value


@pytest.mark.parametrize(
    ("schema", "outside"),
    [
        ({"type": "string", "maxLength": 2}, ['"abc"', '"\x01"', '"\\ud800"', "''", '"a']),
        ({"type": "string", "pattern": "^(?:x|yy)?z+$", "minLength": 4, "maxLength": 5}, ['"xxzzz"', '"yyxzz"']),
        ({"type": "integer"}, ["01", "-", "+1", "1.0", "1e3", "NaN"]),
        ({"type": "integer", "minimum": 7, "maximum": 1204}, ["6", "1205", "2000", "-7", "70000"]),
        ({"type": "number", "minimum": 0, "maximum": 1}, ["1.1", "-0.5", "2", ".5", "1."]),
        ({"type": "object", "properties": {"a": {}}}, ['{"b": 1}', "{}x", '{"a": 1, "a": 2}']),
        (
            {"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": {"type": "integer"}},
            ['{"a": 1}'],
        ),
        ({"type": "array", "items": {"enum": [1, 2]}, "uniqueItems": True}, ["[1, 1]"]),
        (UNION, ['{"kind": "circle", "r": 1, "side": 1}x', '{"kind": "circle"}', '{"r": 1, "side": 2}']),
        (TREE, ['{"next": {"v": 1}}']),
    ],
)
def test_what_does_not_fit_is_not(schema: dict[str, Any], outside: list[str]) -> None:
    """Nor what is no JSON."""
    grammar = schema_grammar(schema).node

    assert not any(accepts(grammar, text) for text in outside)


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "string", "pattern": "(?=a)b"}, "looks ahead"),
        ({"type": "string", "pattern": "(a)\\1"}, "refers back"),
        ({"type": "string", "pattern": "["}, "not a 'regex'"),
        ({"type": "string", "pattern": "\\bx"}, "word borders"),
        ({"type": "integer", "minimum": 3, "maximum": 2}, "no number"),
        ({"type": "integer", "exclusiveMinimum": 1, "exclusiveMaximum": 2}, "no number"),
        ({"enum": [1, 2], "type": "string"}, "none of the listed"),
        ({"$ref": "https://example.org/schema"}, "another document"),
        ({"$ref": "#/$defs/gone"}, "not there"),
        ({"$ref": "#/$defs/gone", "enum": [1]}, "not there"),
        ({"$dynamicRef": "#x"}, "dynamicRef"),
        ({"type": "array", "minItems": 2, "uniqueItems": True, "items": {"type": "string"}}, "all differ"),
        ({"type": "array", "contains": {}, "maxContains": 1}, "maxContains"),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, "nothing fits"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "no end"),
        ({"oneOf": [{"type": "string"}, {"type": "string", "pattern": "a"}]}, "told apart"),
        ({"$ref": "#"}, "without end"),
        ({"type": "string", "pattern": "(?=a)(a+)+$"}, "for ever"),
        ({"type": "object", "patternProperties": {"^(a+)+$": {}}}, "for ever"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"oneOf": [{"type": "null"}, {"$ref": "#/$defs/a"}]}}}, "without end"),
        ({"$schema": _DRAFT_2019, "enum": [[]], "items": True, "unevaluatedItems": False}, "cannot tell"),
        ({"type": "frob"}, "not valid"),
        ({"type": "object", "properties": {"a": {"type": "frob"}}}, "not valid"),
        (False, "nothing fits"),
    ],
)
def test_what_no_grammar_can_say_is_refused_with_the_reason(schema: Any, why: str) -> None:
    """Never a wider one."""
    with pytest.raises(SchemaRefused, match=why):
        schema_grammar(schema)


_DRAFT_7 = "http://json-schema.org/draft-07/schema#"


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        # a format is a note, so that a text which is none fits both options
        ({"oneOf": [{"type": "string", "maxLength": 9}, {"type": "string", "format": "date"}]}, "a "),
        ({"oneOf": [{"type": "string", "pattern": "^(a?)*$"}, {"type": "string", "minLength": 2}]}, "aa"),
        ({"oneOf": [{"type": "string", "pattern": "^ab$"}, {"type": "string", "minLength": 3}]}, "ab\n"),
        ({"oneOf": [{}, {"minimum": 5, "maximum": 3}]}, "no number"),
        ({"oneOf": [{"type": "integer", "minimum": 1}, {"minimum": 1, "multipleOf": 10**16}]}, 10**16),
        (
            {
                "oneOf": [
                    {
                        "type": "object",
                        "properties": {"a": {"pattern": "(?=x)"}},
                        "additionalProperties": False,
                        "minProperties": 1,
                    },
                    {"type": "object", "properties": {"a": {"type": "string"}}, "minProperties": 1},
                ]
            },
            {"a": "x"},
        ),
        (
            {
                "oneOf": [
                    {"required": ["x_a"], "patternProperties": {"^x_": {"type": "integer"}}},
                    {"required": ["x_a"], "properties": {"x_a": {}}, "additionalProperties": False},
                ]
            },
            {"x_a": 1},
        ),
        (
            {
                "oneOf": [
                    {"type": "array", "contains": {"type": "string"}, "unevaluatedItems": False},
                    {"type": "array", "items": {"type": "string"}, "minItems": 1},
                ]
            },
            ["a"],
        ),
        (
            {
                "oneOf": [
                    {"type": "array", "prefixItems": [{"type": "string"}], "minItems": 1},
                    {"type": "array", "items": {"type": "integer"}, "minItems": 1},
                ],
                "$schema": _DRAFT_7,
            },
            [1],
        ),
        ({"not": {"$ref": "#/$defs/a", "type": "string"}, "$defs": {"a": {"type": "integer"}}, "$schema": _DRAFT_7}, 1),
        ({"type": "array", "contains": {"type": "string"}, "minContains": 0, "$schema": _DRAFT_7}, []),
    ],
)
def test_only_what_provably_fits_nothing_tells_options_apart(schema: dict[str, Any], value: Any) -> None:
    """What a grammar narrows, and what a draft does not know, proves nothing."""
    check_left_out(schema, value)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"unevaluatedProperties": False}, {"a": 1}),
        ({"unevaluatedItems": {"type": "integer"}}, ["a"]),
        ({"unevaluatedProperties": False, "enum": [{"a": 1}]}, {"a": 1}),
        ({"unevaluatedProperties": False, "allOf": [{"not": {"properties": {"a": {"type": "string"}}}}]}, {"a": 1}),
        (
            {"type": "array", "allOf": [{"contains": {"type": "string"}, "minContains": 0}, {"contains": {}}]},
            [],
        ),
        ({"type": "array", "allOf": [{"minContains": 0}, {"contains": {"type": "string"}}]}, []),
        ({"type": "string", "allOf": [{"then": True}, {"if": {}, "then": False}]}, ""),
        (
            {
                "type": "object",
                "allOf": [
                    {"patternProperties": {"^a": {}}},
                    {"properties": {"^a": {}}, "additionalProperties": False},
                ],
            },
            {"ab": 1},
        ),
        ({"type": "string", "minLength": 5, "maxLength": 3, "not": {"const": "abcd"}}, "abcde"),
        (
            {
                "$ref": "#/$defs/a",
                "$defs": {
                    "a": {"$id": "urn:example:a", "$ref": "#/$defs/x", "$defs": {"x": {"type": "string"}}},
                    "x": {"type": "integer"},
                },
            },
            1,
        ),
    ],
)
def test_what_keywords_say_together_is_kept_to(schema: dict[str, Any], value: Any) -> None:
    """Also where they stand in several schemas, or beneath an `$id`."""
    check_left_out(schema, value)


def check_left_out(schema: dict[str, Any], value: Any) -> None:
    """The value does not fit, and no grammar takes it."""
    assert not validator_for(schema, default=Draft202012Validator)(schema).is_valid(value)
    try:
        grammar = schema_grammar(schema).node
    except SchemaRefused:
        return
    assert not accepts(grammar, json.dumps(value, ensure_ascii=False))


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        ({"type": "number", "exclusiveMinimum": 1e15}, "1000000000000000.000001"),
        ({"type": "number", "not": {"const": 123456789012}}, "123456789012.000001"),
    ],
)
def test_no_number_is_read_as_an_open_bound(schema: dict[str, Any], text: str) -> None:
    """A double has 15 digits for certain."""
    assert not Draft202012Validator(schema).is_valid(json.loads(text))
    assert not accepts(schema_grammar(schema).node, text)


def test_a_pattern_that_backtracks_for_ever_is_searched_at_once() -> None:
    """A server may send one; Python's own search would not come back."""
    schema = {"enum": ["a" * 60 + "!", "a" * 60], "pattern": "^(a+)+$"}

    assert accepts(schema_grammar(schema).node, f'"{"a" * 60}"')
    assert not accepts(schema_grammar(schema).node, f'"{"a" * 60}!"')
    assert not schema_validator(schema).is_valid("a" * 5_000 + "!")


@given(
    st.sampled_from([*FUZZED.PATTERNS, "^([a-z]+-)*[a-z]+$", "(ab?)+c", "x{2,}"]),
    st.text("abcxyzfo-@.mü1 AZ", max_size=12),
)
def test_a_searcher_finds_what_re_finds(pattern: str, text: str) -> None:
    """Whichever way it goes."""
    assert searcher(pattern)(text) == bool(re.search(pattern, text))


def test_what_is_left_out_is_told() -> None:
    """An optional property that cannot be said costs that property alone, and says so."""
    found = schema_grammar({"type": "object", "properties": {"a": {"pattern": "(?=x)"}, "b": {"type": "null"}}})

    assert accepts(found.node, '{"b": null}')
    assert "looks ahead" in found.left_out[0]


def test_only_objects_are_arguments() -> None:
    """Whatever else the schema lets in."""
    anything = schema_grammar({}, is_object=True).node
    union = schema_grammar({"anyOf": [{"type": "integer"}, TREE | {"properties": {"v": {}}}]}, is_object=True).node

    assert accepts(anything, '{"a": 1}')
    assert accepts(union, '{"v": 1}')
    assert not accepts(anything, "1")
    assert not accepts(union, "1")


def test_older_drafts_are_read_as_theirs() -> None:
    """`definitions`, and a schema beside a reference."""
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "definitions": {"x": {"type": "integer", "exclusiveMinimum": 0}},
        "$ref": "#/definitions/x",
    }

    assert accepts(schema_grammar(schema).node, "1")
    assert not accepts(schema_grammar(schema).node, "0")


def test_a_hundred_and_fifty_properties_are_few() -> None:
    """All optional, counted or not, in a grammar of modest size."""
    properties = {f"property_{i}": {"type": "string"} for i in range(150)}
    plain = schema_grammar({"type": "object", "properties": properties}).node
    counted = schema_grammar({"type": "object", "properties": properties, "maxProperties": 3}).node

    assert len(gbnf(plain)) < 60_000
    assert accepts(plain, '{"property_7": "", "property_149": ""}')
    assert accepts(counted, '{"property_1": "", "property_2": "", "property_9": ""}')
    assert not accepts(counted, '{"property_1": "", "property_2": "", "property_9": "", "property_11": ""}')
