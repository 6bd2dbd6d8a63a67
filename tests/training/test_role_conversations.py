"""Turns of one conversation are computed together, and none is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nearfar.training.role_adapters import RolesRecipe, RoleTurn, conversations
from nearfar.types import Message

texts = st.sampled_from("abc")
turns = st.lists(
    st.builds(
        lambda told, role, answer: RoleTurn(
            role, tuple(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(told)), answer
        ),
        st.lists(texts, min_size=1, max_size=5).filter(lambda told: len(told) % 2 == 1),
        st.sampled_from(["planner", "caller"]),
        texts,
    ),
    max_size=12,
)


def test_a_turn_that_another_goes_on_from_is_part_of_its_conversation():
    """The planner's answer stands in what the caller is told."""
    planner = RoleTurn("planner", (Message("user", "a"),), "b")
    caller = RoleTurn("caller", (Message("user", "a"), Message("assistant", "b"), Message("user", "c")), "d")
    other = RoleTurn("planner", (Message("user", "a"),), "e")

    first, second = conversations([planner, caller, other])

    assert [message.text for message in first.messages] == ["a", "b", "c", "d"]
    assert first.said == ((1, "planner"), (3, "caller"))
    assert second.said == ((1, "planner"),)


@given(turns)
def test_every_turn_is_said_in_one_conversation(turns):
    """With just the messages that it was told before."""
    found = conversations(turns)

    said = {
        (tuple(message.text for message in each.messages[:place]), each.messages[place].text)
        for each in found
        for place, _ in each.said
    }
    assert said == {(tuple(message.text for message in turn.messages), turn.answer) for turn in turns}
    assert len(found) <= len(turns)


def test_the_stages_have_the_papers_passes():
    """Two over all turns; one for planner and caller, two for the summarizer."""
    recipe = RolesRecipe()

    passes = [recipe.epochs(stage) for stage in ("backbone", "planner", "caller", "summarizer")]

    assert passes == [2, 1, 1, 2]
