"""Gold calls become what each role should say."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("langgraph", reason="needs nearfar[agents]")

from nearfar.agents.evaluation.role_turns import gold_tasks, role_turns
from nearfar.errors import DataError

NAMES = ("GetToken", "AddAgenda", "Weather", "Music", "News", "Maps", "Sums")
APIS = [
    {
        "id": name,
        "signature": f"{name}()",
        "info": f"description = 'Does {name}.'\n"
        "input_parameters = {'username': {'type': 'str', 'description': 'Who.'}, "
        "'content': {'type': 'str', 'description': 'What.'}}",
    }
    for name in NAMES
]
TOOLS = [{"id": name, "text": f"Does {name}."} for name in NAMES]
OWN = {
    "task": "What is 7 plus 5?",
    "tools": [{"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}],
    "steps": [{"tool": "add", "arguments": {"a": 7}, "observation": "12"}],
    "answer": "It is 12.",
}

# Of an API-Bank dialogue (Apache-2.0), cut.
DIALOGUE = {
    "id": "lv1:x",
    "level": 1,
    "turns": [
        {"role": "User", "text": 'Add a meeting "tea". I am JohnDoe.'},
        {
            "role": "API",
            "api_name": "GetToken",
            "param_dict": {"content": "tea", "username": "JohnDoe"},
            "result": {"output": {"token": "a9s8"}, "exception": None},
        },
        {"role": "API", "api_name": "AddAgenda", "param_dict": {"content": "meeting"}, "result": {"output": "success"}},
        {"role": "AI", "text": "It is added."},
        {"role": "User", "text": "And the weather?"},
        {"role": "API", "api_name": "Weather", "param_dict": {}, "result": {"output": "sunny"}},
        {"role": "AI", "text": "Sunny."},
    ],
}


def conversed(turns):
    """Without those of the structured caller."""
    return [turn for turn in turns if turn.messages[0].role == "system"]


def test_a_dialogue_gives_every_role_its_turns():
    """Planner and caller in turn for each step, then the planner again and the summarizer; each run of calls a task."""
    first, second = gold_tasks([*APIS, DIALOGUE])

    turns = conversed(role_turns([first]))

    assert [turn.role for turn in turns] == ["planner", "caller", "planner", "caller", "planner", "summarizer"]
    assert json.loads(turns[0].answer) == {"plan": ["GetToken", "AddAgenda", "answer"], "next": "call GetToken"}
    assert list(json.loads(turns[1].answer)) == ["username", "content"]  # in the API's own order
    assert json.loads(turns[4].answer)["next"] == "answer"
    assert turns[5].answer == "It is added."
    assert "a9s8" in turns[2].messages[-1].text
    assert all(turn.messages[-1].role == "user" for turn in turns)
    assert {step.tool for step in first.example.steps} <= {tool.name for tool in first.tools}
    assert second.example.task.endswith("AI: It is added.\nUser: And the weather?")
    assert second.example.answer == "Sunny."


def test_what_a_role_is_told_holds_nothing_that_comes_later():
    """No turn sees its own answer, or an observation from after it."""
    turns = conversed(role_turns(gold_tasks([*APIS, DIALOGUE])[:1]))

    told = ["\n".join(message.text for message in turn.messages) for turn in turns]
    assert all("a9s8" not in text for text in told[:2])
    assert all("It is added." not in text for text in told)


def test_the_structured_caller_is_taught_what_it_can_copy():
    """The call whose values the request holds; not the one whose values come from elsewhere."""
    [first, _] = gold_tasks([*APIS, DIALOGUE])

    [turn] = [turn for turn in role_turns([first]) if turn.messages[0].role == "user"]

    assert turn.role == "caller"
    assert "Function: GetToken: Does GetToken." in turn.messages[-1].text
    assert json.loads(turn.answer) == {"username": "JohnDoe", "content": "tea"}


def test_metatool_teaches_only_which_tool_is_next():
    """There are no arguments and no answers in it."""
    tasks = gold_tasks([*TOOLS, {"id": "mm-0", "text": "News on Tesla", "tools": ["News", "Music"]}])

    [turn] = role_turns(tasks)

    assert turn.role == "planner"
    assert json.loads(turn.answer) == {"plan": ["News", "Music", "answer"], "next": "call News"}


def test_the_planner_is_taught_to_give_up_where_no_tool_helps():
    """For some queries the tools that help are not offered."""
    rows = [{"id": f"mt-{place}", "text": "x", "tools": ["News"]} for place in range(60)]
    tasks = gold_tasks([*TOOLS, *rows])

    turns = role_turns(tasks)

    offered = ["News" in {tool.name for tool in task.tools} for task in tasks]
    assert 0 < offered.count(False) < 20
    assert [json.loads(turn.answer)["next"] == "call News" for turn in turns] == offered
    assert {json.loads(turn.answer)["next"] for turn in turns} == {"call News", "give up"}


def test_the_offered_tools_are_drawn_alike_each_time():
    """The same seed offers the same tools in the same order; another seed others."""
    rows = [*TOOLS, *({"id": f"mt-{place}", "text": "x", "tools": ["News"]} for place in range(20))]

    first, again, other = gold_tasks(rows), gold_tasks(rows), gold_tasks(rows, seed=1)

    assert first == again
    assert first != other
    assert len({[tool.name for tool in task.tools].index("News") for task in first if task.example.steps}) > 1


def test_ones_own_tasks_are_read():
    """With their tools, and nothing drawn."""
    [task] = gold_tasks([OWN])

    turns = conversed(role_turns([task]))

    assert [tool.name for tool in task.tools] == ["add"]
    assert [turn.role for turn in turns] == ["planner", "caller", "planner", "summarizer"]
    assert turns[1].answer == '{"a": 7}'


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"query": "x"}, "'query' is no task"),
        (OWN | {"steps": [{"tool": "add"}]}, "is not whole"),
        (OWN | {"steps": [{"tool": "less", "arguments": {}, "observation": ""}]}, "calls 'less'"),
    ],
)
def test_rows_that_teach_nothing_are_errors(row, message):
    """Each says what is missing."""
    with pytest.raises(DataError, match=message):
        gold_tasks([row])
