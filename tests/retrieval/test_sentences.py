"""Sentences by punctuation: nothing is lost, and abbreviations end nothing."""

import itertools

from hypothesis import given
from hypothesis.strategies import text

from nearfar.retrieval.sentences import sentences


@given(text())
def test_sentences_hold_every_character_once(anything):
    """In order, at their places; only white space is between them."""
    found = sentences(anything)

    assert all(anything[each.start : each.end] == each.text for each in found)
    assert all(a.end <= b.start for a, b in itertools.pairwise(found))
    assert "".join("".join(each.text.split()) for each in found) == "".join(anything.split())


def test_marks_end_sentences_and_abbreviations_do_not():
    """Full stops behind initials and titles stay inside."""
    said = 'Dr. J. Doe met the U.S. team. "Who won?" They did!\n\n- a list\n- of two'

    assert [each.text for each in sentences(said)] == [
        "Dr. J. Doe met the U.S. team.",
        '"Who won?"',
        "They did!",
        "- a list",
        "- of two",
    ]
