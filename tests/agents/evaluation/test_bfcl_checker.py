"""The checker gives the leaderboard's verdicts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.agents.evaluation.bfcl_checker import Gold, check_calls
from nearfar.agents.evaluation.call_text import Call

FUNCTION = {
    "name": "book",
    "parameters": {
        "type": "dict",
        "properties": {
            "city": {"type": "string"},
            "nights": {"type": "integer"},
            "price": {"type": "float"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "guest": {"type": "dict"},
            "guests": {"type": "array", "items": {"type": "dict"}},
            "point": {"type": "tuple", "items": {"type": "float"}},
            "quiet": {"type": "boolean"},
        },
        "required": ["city"],
    },
}


def fault(arguments, gold, **more):
    """The fault's kind where one call is made."""
    found = check_calls([Call("book", arguments)], [Gold("book", gold)], [FUNCTION], **more)
    return found.kind if found else None


@pytest.mark.parametrize(
    ("arguments", "gold", "expected"),
    [
        ({"city": "san-francisco, CA"}, {"city": ["San Francisco, CA"]}, None),
        ({"city": "Paris"}, {"city": ["Lyon"]}, "value"),
        ({}, {"city": ["Lyon"]}, "missing"),
        ({"city": "Lyon"}, {"city": ["Lyon"], "nights": [2]}, "missing"),
        ({"city": "Lyon"}, {"city": ["Lyon"], "nights": [2, ""]}, None),
        ({"city": "Lyon", "nights": 2}, {"city": ["Lyon"]}, "unexpected"),
        ({"city": "Lyon", "nights": 2.0}, {"city": ["Lyon"], "nights": [2]}, "type"),
        ({"city": "Lyon", "nights": True}, {"city": ["Lyon"], "nights": [1]}, "type"),
        ({"city": "Lyon", "nights": "n"}, {"city": ["Lyon"], "nights": ["n"]}, None),
        ({"city": "Lyon", "nights": "N"}, {"city": ["Lyon"], "nights": ["n"]}, "value"),
        ({"city": "Lyon", "price": 5}, {"city": ["Lyon"], "price": [5.0]}, None),
        ({"city": "Lyon", "tags": ["A b"]}, {"city": ["Lyon"], "tags": [["ab"]]}, None),
        ({"city": "Lyon", "tags": ["a", "b"]}, {"city": ["Lyon"], "tags": [["b", "a"]]}, "value"),
        ({"city": "Lyon", "tags": ("a",)}, {"city": ["Lyon"], "tags": [["a"]]}, "type"),
        ({"city": "Lyon", "tags": [1]}, {"city": ["Lyon"], "tags": [["a"]]}, "type"),
        ({"city": "Lyon", "tags": []}, {"city": ["Lyon"], "tags": [["a"], ""]}, None),
        ({"city": "Lyon", "point": (1.0, 2.0)}, {"city": ["Lyon"], "point": [[1.0, 2.0]]}, None),
        (
            {"city": "Lyon", "guest": {"name": "x"}},
            {"city": ["Lyon"], "guest": [{"name": ["X"], "age": [3, ""]}]},
            None,
        ),
        ({"city": "Lyon", "guest": {"age": 3}}, {"city": ["Lyon"], "guest": [{"name": ["X"], "age": [3]}]}, "value"),
        ({"city": "Lyon", "guests": [{"a": 1}]}, {"city": ["Lyon"], "guests": [[{"a": [1, 2]}]]}, None),
        ({"city": "Lyon", "guests": [{"a": 1}, {}]}, {"city": ["Lyon"], "guests": [[{"a": [1]}]]}, "value"),
        ({"city": "Lyon", "quiet": False}, {"city": ["Lyon"], "quiet": [True]}, "value"),
        ({"city": None}, {"city": ["Lyon"]}, "type"),
    ],
)
def test_one_call_is_compared_with_gold(arguments, gold, expected):
    """Types are exact but for whole numbers where fractions are wanted; strings lose case, blanks and signs."""
    assert fault(arguments, gold) == expected


def test_java_arguments_are_source():
    """The literal's form decides the type: a long needs its L."""
    function = {"name": "f", "parameters": {"properties": {"n": {"type": "long"}}, "required": ["n"]}}

    def kind(value):
        found = check_calls([Call("f", {"n": value})], [Gold("f", {"n": [5]})], [function], language="java")
        return found.kind if found else None

    assert [kind("5L"), kind("5"), kind(5)] == [None, "type", "type"]


@given(st.permutations(range(4)))
def test_parallel_calls_come_in_any_order(order):
    """Every order of the right calls is right; one call less is not."""
    calls = [Call("book", {"city": str(place)}) for place in range(4)]
    gold = [Gold("book", {"city": [str(place)]}) for place in range(4)]
    shuffled = [calls[place] for place in order]

    assert check_calls(shuffled, gold, [FUNCTION], is_parallel=True) is None
    assert check_calls(shuffled[1:], gold, [FUNCTION], is_parallel=True).kind == "count"


def test_each_call_counts_for_one_gold_call():
    """The same call twice does not stand for two."""
    gold = [Gold("book", {"city": ["a"]}), Gold("book", {"city": ["b"]})]

    found = check_calls([Call("book", {"city": "a"})] * 2, gold, [FUNCTION], is_parallel=True)

    assert found.kind == "value"


@given(
    st.dictionaries(
        st.sampled_from([*FUNCTION["parameters"]["properties"], "other"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
            lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
            max_leaves=5,
        ),
    )
)
def test_any_values_get_a_verdict(arguments):
    """Whatever the arguments are, the checker says right or wrong and never raises."""
    gold = {name: [["a"], {"a": ["b"]}, "x", 1, ""] for name in FUNCTION["parameters"]["properties"]}

    assert fault({"city": "x"} | arguments, gold) in (None, "type", "value", "unexpected")
