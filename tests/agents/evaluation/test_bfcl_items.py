"""BFCL's items are read, and answers to them judged."""

from __future__ import annotations

import pytest

from nearfar.agents.evaluation.bfcl import category_of, judge, read_item
from nearfar.errors import DataError

# The first item of BFCL v4's simple_python (Apache-2.0), its function cut.
ROW = {
    "id": "simple_python_0",
    "question": [[{"role": "user", "content": "Find the area of a triangle with a base of 10 units and height of 5."}]],
    "function": [
        {
            "name": "calculate_triangle_area",
            "description": "",
            "parameters": {
                "type": "dict",
                "properties": {"base": {"type": "integer"}, "height": {"type": "integer"}, "unit": {"type": "string"}},
                "required": ["base", "height"],
            },
        }
    ],
    "ground_truth": [{"calculate_triangle_area": {"base": [10], "height": [5], "unit": ["units", ""]}}],
}


def test_the_category_is_in_the_id():
    """Live items have numbers with dashes."""
    assert [category_of("live_parallel_multiple_0-0-0"), category_of("simple_java_12")] == [
        "live_parallel_multiple",
        "simple_java",
    ]


@pytest.mark.parametrize(
    ("answer", "reading", "is_correct"),
    [
        ("[calculate_triangle_area(base=10, height=5)]", "strict", True),
        ("Sure: calculate_triangle_area(base=10, height=5).", "strict", False),
        ("Sure: calculate_triangle_area(base=10, height=5).", "lenient", True),
        ([{"calculate_triangle_area": {"base": 10, "height": 5, "unit": "units"}}], "strict", True),
        ([{"name": "calculate_triangle_area", "arguments": '{"base": 10, "height": 5}'}], "strict", True),
        ("[calculate_triangle_area(base=10, height=6)]", "strict", False),
        ("", "strict", False),
        (None, "strict", False),
        (7, "strict", False),
    ],
)
def test_answers_are_judged(answer, reading, is_correct):
    """Text and JSON calls; what cannot be read is wrong, never an error."""
    assert judge(read_item(ROW), answer, reading=reading).is_correct == is_correct


@pytest.mark.parametrize(
    ("answer", "is_correct"),
    [("None fits.", True), ("[]", True), ("", True), ([], True), ("[f()]", False), ([{"f": {}}], False)],
)
def test_irrelevance_wants_no_call(answer, is_correct):
    """Anything but a call is right where no function fits, and only a call where one does."""
    row = ROW | {"id": "live_irrelevance_0-0-0", "ground_truth": None}

    assert judge(read_item(row), answer).is_correct == is_correct
    assert judge(read_item(row | {"id": "live_relevance_0-0-0"}), answer).is_correct != is_correct


def test_items_of_several_turns_are_left_out():
    """They need a simulator."""
    assert read_item({"id": "multi_turn_base_0"}) is None


def test_a_broken_row_is_named():
    """The error names the row and what it lacks."""
    with pytest.raises(DataError, match="simple_python_1"):
        read_item({"id": "simple_python_1", "question": []})
