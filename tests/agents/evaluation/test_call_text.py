"""Calls are read out of what models write."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.agents.evaluation.call_text import Call, calls_from_json, find_calls, read_calls, write_calls
from nearfar.agents.evaluation.source_calls import UnreadableCall

NAMES = st.from_regex(r"[a-z_]{1,8}(\.[a-z_]{1,8})?", fullmatch=True).filter(
    lambda name: (
        not any(
            part in {"is", "in", "or", "if", "as", "not", "and", "for", "def", "del", "try"}
            or part in {"pass", "else", "elif", "from", "with", "True", "None", "while", "raise", "yield"}
            or part in {"break", "class", "async", "await", "return", "except", "lambda", "import"}
            or part in {"assert", "global", "finally", "nonlocal", "continue"}
            for part in name.split(".")
        )
    )
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
CALLS = st.builds(Call, NAMES, st.dictionaries(NAMES.filter(lambda name: "." not in name), VALUES, max_size=3))


@given(st.lists(CALLS, max_size=3))
def test_what_is_written_is_read_back(calls):
    """Any calls with plain values survive being written in BFCL's form."""
    assert read_calls(write_calls(calls)) == calls


@given(st.text() | st.binary().map(lambda raw: raw.decode("latin1")))
def test_any_text_is_calls_or_is_refused(text):
    """Whatever a model writes, reading it ends in calls or in the one error."""
    for language in ("python", "java", "javascript"):
        try:
            found = read_calls(text, language)
        except UnreadableCall:
            found = []
        assert all(isinstance(call, Call) for call in found)
        assert all(call.name == "f" for call in find_calls(text, ["f"], language) if call not in found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[f(a=1), g.h(b='x')]", [Call("f", {"a": 1}), Call("g.h", {"b": "x"})]),
        ("f(a=1)", [Call("f", {"a": 1})]),
        ("```\n[f(a=True)]\n```", [Call("f", {"a": True})]),
        ("[]", []),
        ("", []),
        ("[f(1, a=2)]", [Call("f", {"a": 2})]),
        (
            "[f(a=-5, b=2**3, c=(1, 2), d=x, e=g(1), h=g(i=1), j=x[0])]",
            [Call("f", {"a": -5, "b": 8, "c": (1, 2), "d": "x", "e": "g(1)", "h": {"g": {"i": 1}}, "j": "x[0]"})],
        ),
    ],
)
def test_python_calls_are_read(text, expected):
    """BFCL's own form, with names, arithmetic and inner calls as arguments."""
    assert read_calls(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "I cannot.",
        "[f]",
        "[[f()]]",
        "[f(a=1]",
        "f(a=1)\ng(b=2)",
        "f(a=b.c)",
        "[f(a=9**9**9)]",
        "[f(a=1/0)]",
        "\0",
        "[f(a=[1]*999999999)]",
        "[f(a={**b})]",
        "[f(a={[]: 1})]",
        "[" * 5000,
        "[f(a='x' * 10**9)]",
    ],
)
def test_what_is_no_list_of_calls_is_refused(text):
    """Sentences, broken syntax, and arithmetic that would never end."""
    with pytest.raises(UnreadableCall):
        read_calls(text)


@pytest.mark.parametrize(
    "value",
    [
        {"f": {"a": 1}},
        [{"name": "f", "arguments": {"a": 1}}],
        [{"name": "f", "arguments": '{"a": 1}'}],
        [{"function": {"name": "f", "arguments": '{"a": 1}'}, "type": "function", "id": "1"}],
        [{"function": "f", "parameters": {"a": 1}}],
    ],
)
def test_calls_come_in_many_json_forms(value):
    """The forms of the leaderboard, of OpenAI and of what models make of both."""
    assert calls_from_json(value) == [Call("f", {"a": 1})]


@pytest.mark.parametrize("value", [3, ["f"], [{"name": "f", "arguments": "no"}], [{"a": 1, "b": 2}], [{"f": [1]}]])
def test_json_that_is_no_call_is_refused(value):
    """Numbers, bare names and arguments that are no object."""
    with pytest.raises(UnreadableCall):
        calls_from_json(value)


@pytest.mark.parametrize(
    "text",
    [
        "Sure! I would call f(a=1) for you.",
        "```python\nf(a=1)\n```",
        f"Here: {json.dumps([{'name': 'f', 'arguments': {'a': 1}}])}",
        "f(a=1) and then unknown(b=2)",
    ],
)
def test_calls_are_found_among_words(text):
    """The lenient reading finds known functions wherever they stand."""
    assert find_calls(text, ["f"]) == [Call("f", {"a": 1})]


def test_brackets_in_strings_do_not_end_a_call():
    """A bracket inside of quotes is text."""
    assert find_calls("Use f(a='x) y', b=[1]) now", ["f"]) == [Call("f", {"a": "x) y", "b": [1]})]
