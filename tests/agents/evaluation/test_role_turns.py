"""Gold calls become what each role should say."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("langgraph", reason="needs the [agents] extra")

from nearfar.agents.evaluation.role_turns import apibank_trajectories, metatool_trajectories, turns_of
from nearfar.types import ToolSpec

TOOLS = [ToolSpec(name, f"Does {name}.") for name in ("GetToken", "AddAgenda", "Weather", "Music", "News", "Maps")]

# Of an API-Bank dialogue (Apache-2.0), cut.
DIALOGUE = {
    "id": "lv1:x",
    "level": 1,
    "turns": [
        {"role": "User", "text": "Add a meeting tomorrow. I am JohnDoe, pass123."},
        {
            "role": "API",
            "api_name": "GetToken",
            "param_dict": {"username": "JohnDoe"},
            "result": {"output": {"token": "a9s8"}, "exception": None},
        },
        {"role": "API", "api_name": "AddAgenda", "param_dict": {"token": "a9s8"}, "result": {"output": "success"}},
        {"role": "AI", "text": "It is added."},
    ],
}


def test_a_dialogue_gives_every_role_its_turns():
    """Planner and caller in turn for each step, then the planner again and the summarizer."""
    [trajectory] = apibank_trajectories([DIALOGUE], TOOLS, offered=4)

    turns = turns_of(trajectory)

    assert [turn.role for turn in turns] == ["planner", "caller", "planner", "caller", "planner", "summarizer"]
    assert json.loads(turns[0].answer)["next"] == "call GetToken"
    assert json.loads(turns[1].answer) == {"username": "JohnDoe"}
    assert json.loads(turns[4].answer)["next"] == "answer"
    assert turns[5].answer == "It is added."
    assert "a9s8" in turns[2].messages[-1].text
    assert all(turn.messages[-1].role == "user" for turn in turns)
    assert len(trajectory.tools) == 4


def test_what_a_role_is_told_holds_nothing_that_comes_later():
    """No turn sees its own answer, or an observation from after it."""
    [trajectory] = apibank_trajectories([DIALOGUE], TOOLS)

    turns = turns_of(trajectory)

    told = ["\n".join(message.text for message in turn.messages) for turn in turns]
    assert all("a9s8" not in text for text in told[:2])
    assert all("It is added." not in text for text in told)


def test_metatool_teaches_only_which_tool_is_next():
    """There are no arguments and no answers in it."""
    [trajectory] = metatool_trajectories([{"id": "mm-0", "text": "News on Tesla", "tools": ["News", "Music"]}], TOOLS)

    [turn] = turns_of(trajectory)

    assert turn.role == "planner"
    assert json.loads(turn.answer) == {"plan": ["News", "Music", "answer"], "next": "call News"}


def test_the_offered_tools_are_drawn_alike_each_time():
    """The same seed offers the same tools in the same order; gold's are among them."""
    rows = [{"id": f"mm-{place}", "text": "x", "tools": ["News"]} for place in range(20)]
    first, again = (metatool_trajectories(rows, TOOLS, offered=3) for _ in range(2))

    assert first == again
    assert all(len(each.tools) == 3 and TOOLS[4] in each.tools for each in first)
    assert len({each.tools.index(TOOLS[4]) for each in first}) > 1
