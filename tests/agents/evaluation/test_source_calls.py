"""Calls and literals of Java and JavaScript are read."""

from __future__ import annotations

import pytest

from nearfar.agents.evaluation.source_calls import UnreadableCall, java_value, javascript_value, read_call


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('A.b(x=1, y="two", z=three)', ("A.b", {"x": "1", "y": "two", "z": "three"})),
        ("f(a=new int[]{1, 2}, b=-5L);", ("f", {"a": "new int[]{1, 2}", "b": "-5L"})),
        (
            'f(m=new HashMap<String, Object>() {{ put("k", 1); }}, n=Arrays.asList("a", "b"))',
            ("f", {"m": "new HashMap<String, Object>()", "n": 'Arrays.asList("a", "b")'}),
        ),
        ("f(a=x -> x + 1, b=(int) y)", ("f", {"a": "x -> x + 1", "b": "(int) y"})),
        ("f(name)", ("f", {"": "name"})),
        ('f(1, "a")', ("f", {})),
        ("f(a=1 /* one, two */)", ("f", {"a": "1"})),
    ],
)
def test_java_calls_are_read(source, expected):
    """Names and source text of arguments; a class body is left out, as the docstring says."""
    assert read_call(source, "java") == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("f(a={k: [1, 2], 'l': 'm'}, b=[1, 2,])", ("f", {"a": "{k: [1, 2], 'l': 'm'}", "b": "[1, 2,]"})),
        ("javascript\nf(a=`x, y`)", ("f", {"a": "`x, y`"})),
        ("f(a=(x) => x > 1,)", ("f", {"a": "(x) => x > 1"})),
        ("f(a=1); g(b=2)", ("f", {"a": "1"})),
    ],
)
def test_javascript_calls_are_read(source, expected):
    """Objects, arrays, arrows; the first statement that calls."""
    assert read_call(source, "javascript") == expected


@pytest.mark.parametrize("language", ["java", "javascript"])
@pytest.mark.parametrize(
    "source",
    [
        "",
        "hello world",
        "f(a=hello world)",
        "f(a=1",
        "f(a=1]",
        "f(a=,b=1)",
        "f(a=1).g()",
        "f(a=1, a=2)",
        "f(a=*2)",
        "Sure, f(a=1)",
        "f(a='x)",
        "f(a=1) and more",
    ],
)
def test_what_is_no_call_is_refused(source, language):
    """Sentences, open brackets, doubled names."""
    with pytest.raises(UnreadableCall):
        read_call(source, language)


@pytest.mark.parametrize(
    ("text", "type_name", "item_type", "expected"),
    [
        ("5", "integer", None, 5),
        ("5.0", "integer", None, "5.0"),
        ("5L", "long", None, 5),
        ("5", "long", None, "5"),
        ("1.5f", "float", None, 1.5),
        ("1e3", "double", None, 1000.0),
        ("true", "boolean", None, True),
        ("new int[]{1, 2}", "Array", "integer", [1, 2]),
        ('new String[]{"a"}', "Array", "String", ['"a"']),
        ('new ArrayList<>(Arrays.asList("a, b", "c"))', "ArrayList", "String", ["a, b", "c"]),
        ("new ArrayList<Long>(Arrays.asList(1L, 2L))", "ArrayList", "long", [1, 2]),
        ("new ArrayList<>()", "ArrayList", "String", []),
        ('new HashMap<String, Object>() {{ put("a", 1); put("b", "x"); }}', "HashMap", None, {"a": 1, "b": "x"}),
        ("map", "HashMap", None, "map"),
        ("list", "ArrayList", "String", "list"),
    ],
)
def test_java_literals_have_their_values(text, type_name, item_type, expected):
    """Each type's literals; anything else stays text."""
    found = java_value(text, type_name, item_type)

    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("text", "type_name", "item_type", "expected"),
    [
        ("'a'", "String", None, "a"),
        ("5", "float", None, 5.0),
        ("5n", "Bigint", None, 5),
        ("false", "Boolean", None, False),
        ("['a', 'b']", "array", "String", ["a", "b"]),
        ("new Array(1, 2)", "array", "integer", [1, 2]),
        ("[[1, 2], [3]]", "array", "array", [[1, 2], [3]]),
        (
            "{a: 1, 'b': 'x', c: [true, 1.5], d: {e: f}}",
            "dict",
            None,
            {"a": 1, "b": "x", "c": [True, 1.5], "d": {"e": "f"}},
        ),
        ("{}", "dict", None, {}),
        ("data", "dict", None, "data"),
    ],
)
def test_javascript_literals_have_their_values(text, type_name, item_type, expected):
    """Each type's literals; anything else stays text."""
    found = javascript_value(text, type_name, item_type)

    assert (found, type(found)) == (expected, type(expected))
