"""The contract of agents on every graph, and what self-ask and the conductor have of their own."""

import json
from pathlib import Path
from typing import ClassVar

from contracts.agent import AgentContract
from support.teams import Says, agent, reading

from nearfar.agents.alpha_umi import AlphaUmi
from nearfar.agents.conductor import Conductor, read_turn
from nearfar.agents.functions import FunctionTool
from nearfar.agents.rewoo import Rewoo
from nearfar.agents.self_ask import SelfAsk, read_asked
from nearfar.agents.types import Called, Ended, Limits, Observed, Planned, Task
from nearfar.types import Query


def seen(query: Query) -> int:
    """How many observations the role is told of."""
    return sum(message.text.count("\n</data ") for message in query.messages)


class TestAlphaUmi(AgentContract):
    """Plan, call, plan, summarize."""

    graph = AlphaUmi()
    says: ClassVar[dict[str, Says]] = {
        "planner": [lambda query: json.dumps({"next": "answer" if seen(query) else "call look"})],
        "caller": ['{"name": "x"}'],
        "summarizer": ["found x"],
    }


class TestRewoo(AgentContract):
    """Plan, call, solve."""

    graph = Rewoo()
    says: ClassVar[dict[str, Says]] = {
        "planner": [json.dumps({"steps": [{"why": "", "tool": "look", "arguments": {"name": "x"}}]})],
        "solver": ["found x"],
    }


class TestSelfAsk(AgentContract):
    """Ask, look up, read, answer."""

    graph = SelfAsk()
    says: ClassVar[dict[str, Says]] = {
        "asker": [
            lambda query: "So the final answer is: found x" if "Intermediate" in query.text else "Follow up: x",
        ],
        "reader": ["found x"],
    }


class TestConductor(AgentContract):
    """Call, answer."""

    graph = Conductor()
    says: ClassVar[dict[str, Says]] = {
        "conductor": [
            lambda query: json.dumps(
                {"answer": "found x"} if seen(query) else {"tool": "look", "arguments": {"name": "x"}}
            )
        ],
        "expert": ["never asked"],
    }


def look(question: str) -> str:
    """Looks something up."""
    return {"Who made it?": "Made by Ada.", "Where was Ada born?": "Ada was born in London."}.get(question, "?")


async def test_self_ask_goes_from_answer_to_question(tmp_path: Path) -> None:
    """What was read off one look-up is in the next question's transcript; passages never are."""
    asked = ["Follow up: Who made it?", "Follow up: Where was Ada born?", "So the final answer is: London"]
    async with agent(SelfAsk(), tmp_path, [reading(look)], asker=asked, reader=["Ada", "London"]) as tested:
        events = [event async for event in tested.stream("Where was its maker born?")]

    assert isinstance(events[-1], Ended)
    assert (events[-1].result.status, events[-1].result.text) == ("answered", "London")
    assert [json.loads(event.call.arguments)["question"] for event in events if isinstance(event, Called)] == [
        "Who made it?",
        "Where was Ada born?",
    ]
    assert [event.text for event in events if isinstance(event, Planned) and event.next == "intermediate answer"] == [
        "Ada",
        "London",
    ]


async def test_self_ask_without_a_tool_gives_up(tmp_path: Path) -> None:
    """It is an outcome, and no model is asked."""
    async with agent(SelfAsk(), tmp_path, [], asker=["?"], reader=["?"]) as tested:
        result = await tested.run("Where was its maker born?")

    assert (result.status, result.model_calls) == ("gave_up", 0)


def test_what_an_asker_says_is_read_leniently() -> None:
    """Its own markers, in any case; a text without one is the answer."""
    assert read_asked("follow-up: Who?") == ("Who?", "")
    assert read_asked("So the final answer is: Ada") == (None, "Ada")
    assert read_asked("Ada.") == (None, "Ada.")


async def test_an_expert_sees_its_instructions_alone(tmp_path: Path) -> None:
    """The conductor is told what it said, as data."""
    heard: list[Query] = []

    def expert(query: Query) -> str:
        heard.append(query)
        return "42"

    turns = [
        json.dumps({"expert": "Mathematician", "instructions": "What is 6 times 7?"}),
        lambda query: json.dumps({"answer": "42" if "42" in query.text else "unknown"}),
    ]
    async with agent(Conductor(), tmp_path, [], conductor=turns, expert=[expert]) as tested:
        events = [event async for event in tested.stream("The secret task: 6 times 7.")]

    assert isinstance(events[-1], Ended)
    assert events[-1].result.text == "42"
    assert "secret" not in " ".join(message.text for message in heard[0].messages)
    assert [event.tool for event in events if isinstance(event, Observed)] == ["expert Mathematician"]


async def test_a_conductors_tool_with_effects_takes_a_person(tmp_path: Path) -> None:
    """It has no plan made before anything was read, so that every such call is asked for, whatever the policy."""
    sent = []

    def send(to: str) -> str:
        """Sends."""
        sent.append(to)
        return "sent"

    turn = json.dumps({"tool": "send", "arguments": {"to": "Ada"}})
    async with agent(Conductor(), tmp_path, [FunctionTool(send)], conductor=[turn], expert=["?"]) as tested:
        result = await tested.run(Task("Go.", limits=Limits(steps=3)))

    assert (result.status, sent) == ("awaiting_approval", [])


def test_a_conductors_turn_without_json_is_an_answer() -> None:
    """And so is one with a shape that nobody knows."""
    assert read_turn("It is 42.") == {"answer": "It is 42."}
    assert read_turn('{"next": 3}') == {"answer": '{"next": 3}'}
