"""The planner, the caller and the summarizer, at work on scripted models and real tools."""

from math import log
from pathlib import Path

import pytest
from support.teams import agent, arguments, plan, reading

from nearfar.agents.alpha_umi import AlphaUmi, plan_score, planner_format
from nearfar.agents.functions import FunctionTool
from nearfar.agents.policy import ToolPolicy
from nearfar.agents.types import Called, Ended, Limits, NeedsApproval, Observed, Planned, Task, Wrote
from nearfar.types import Answer, Query, TokenLogprob


def read_file(path: str) -> str:
    """Reads a file."""
    return f"{path} says: 17 and 4"


def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


TWO_STEPS = {
    "planner": [plan("call read_file"), plan("call add"), plan("answer")],
    "caller": [arguments(path="sum.txt"), arguments(a=17, b=4)],
    "summarizer": ["It is 21."],
}
READERS = (reading(read_file), reading(add))


async def test_two_steps_and_an_answer(tmp_path: Path) -> None:
    """A call is planned, announced, observed; the pieces written are the answer."""
    async with agent(AlphaUmi(), tmp_path, READERS, **TWO_STEPS) as tested:
        events = [event async for event in tested.stream("Add the numbers in sum.txt.")]

    ended = events[-1]
    assert isinstance(ended, Ended)
    assert (ended.result.status, ended.result.text) == ("answered", "It is 21.")
    assert "".join(event.text for event in events if isinstance(event, Wrote)) == "It is 21."
    assert [event.next for event in events if isinstance(event, Planned)] == ["caller", "caller", "summarizer"]
    assert [event.call.name for event in events if isinstance(event, Called)] == ["read_file", "add"]
    assert [event.observation.text for event in events if isinstance(event, Observed)] == [
        "sum.txt says: 17 and 4",
        "21",
    ]
    assert (ended.result.model_calls, ended.result.tool_calls) == (6, 2)


async def test_giving_up_is_an_outcome(tmp_path: Path) -> None:
    """The planner's rationale says why."""
    async with agent(AlphaUmi(), tmp_path, READERS, planner=[plan("give up", "nothing here sends mail")]) as tested:
        result = await tested.run("Send a mail.")

    assert (result.status, result.reason) == ("gave_up", "nothing here sends mail")


async def test_the_same_calls_in_turns_are_a_loop(tmp_path: Path) -> None:
    """The third time, by default, a call is not made."""
    async with agent(
        AlphaUmi(),
        tmp_path,
        READERS,
        planner=[plan("call read_file"), plan("call add")] * 3,
        caller=[arguments(path="a"), arguments(a=1, b=2)] * 3,
    ) as tested:
        result = await tested.run("Read it.")

    assert (result.status, result.tool_calls) == ("looped", 4)


async def test_a_call_made_twice_in_a_row_is_not_offered_again(tmp_path: Path) -> None:
    """What it gives is known: the planner has to choose among the rest."""
    offered = []

    def planner(query: Query) -> str:
        assert query.response_format is not None
        assert query.response_format.schema is not None
        markers = query.response_format.schema["properties"]["next"]["enum"]
        offered.append("call read_file" in markers)
        return plan("call read_file" if offered[-1] else "answer")

    async with agent(
        AlphaUmi(), tmp_path, READERS, planner=[planner], caller=[arguments(path="a")], summarizer=["It."]
    ) as tested:
        result = await tested.run("Read it.")

    assert (result.status, result.tool_calls, offered) == ("answered", 2, [True, True, False])


async def test_steps_are_limited(tmp_path: Path) -> None:
    """The first limit that is reached ends the run."""
    pages = [arguments(path=str(number)) for number in range(10)]
    async with agent(AlphaUmi(), tmp_path, READERS, planner=[plan("call read_file")], caller=pages) as tested:
        result = await tested.run(Task("Read everything.", limits=Limits(steps=4)))

    assert (result.status, result.tool_calls) == ("out_of_steps", 4)


async def test_a_call_with_effects_waits_for_a_person_and_a_no_is_seen(tmp_path: Path) -> None:
    """The run stops at the call; after a no the planner is told so, and goes on."""
    sent = []

    def send(to: str) -> str:
        """Sends a letter."""
        sent.append(to)
        return "sent"

    async with agent(
        AlphaUmi(),
        tmp_path,
        [FunctionTool(send)],
        planner=['{"calls": []}', plan("call send"), plan("answer")],
        caller=[arguments(to="Ada")],
        summarizer=["You said no."],
    ) as tested:
        events = [event async for event in tested.stream("Write to Ada.", run_id="one")]
        asked = next(event for event in events if isinstance(event, NeedsApproval))
        result = await tested.resume("one", {asked.approval_id: False})

    assert isinstance(events[-1], Ended)
    assert events[-1].result.status == "awaiting_approval"
    assert (result.status, sent) == ("answered", [])


async def test_a_call_that_was_planned_and_is_allowed_runs_unasked(tmp_path: Path) -> None:
    """The policy allows the tool, and the plan has the call."""
    sent = []

    def send(to: str, text: str) -> str:
        """Sends a letter."""
        sent.append((to, text))
        return "sent"

    scope = '{"calls": [{"tool": "send", "arguments": {"to": "Ada"}, "from_data": ["text"]}]}'
    async with agent(
        AlphaUmi(),
        tmp_path,
        [FunctionTool(send), reading(read_file)],
        ToolPolicy({"send": "allow"}),
        planner=[scope, plan("call read_file"), plan("call send"), plan("answer")],
        caller=[arguments(path="a"), arguments(to="Ada", text="17 and 4")],
        summarizer=["Done."],
    ) as tested:
        result = await tested.run("Send Ada what a says.")

    assert (result.status, sent) == ("answered", [("Ada", "17 and 4")])


async def test_garbage_from_every_role_ends_in_an_outcome(tmp_path: Path) -> None:
    """What cannot be read is seen by the next role, and the limit on steps ends it."""
    async with agent(
        AlphaUmi(), tmp_path, READERS, planner=["\x00 ???"], caller=["no call at all"], summarizer=[""]
    ) as tested:
        events = [event async for event in tested.stream(Task("Go.", limits=Limits(steps=3)))]

    assert isinstance(events[-1], Ended)
    assert events[-1].result.status == "out_of_steps"
    assert {event.observation.kind for event in events if isinstance(event, Observed)} == {"invalid"}


def said_plan(listed: str, marker: str, *shares: float) -> Answer:
    """What a planner says, with the shares of `read_file`, wherever a tool is named; the rest is `add`'s."""
    tokens = [TokenLogprob('{"plan": ["', 0.0)]
    for name, share, after in zip((listed, marker), shares, ('", "answer"], "next": "call ', '"}'), strict=True):
        top = (("read_file", log(0.1 * share)), ("add", log(0.1 - 0.1 * share)), ("Sure", log(0.9)))
        tokens += [TokenLogprob(name, dict(top)[name], top), TokenLogprob(after, 0.0)]
    return Answer("".join(token.token for token in tokens), logprobs=tuple(tokens))


def test_a_planner_is_as_sure_of_a_tool_as_wherever_it_could_name_it() -> None:
    """Of what the marker says, in the list as well, whatever it would rather have written than a tool's name."""
    shape = planner_format([tool.spec for tool in READERS])

    agreed = plan_score(said_plan("read_file", "read_file", 0.9, 0.8), shape)
    parted = plan_score(said_plan("add", "read_file", 0.4, 0.8), shape)

    assert agreed == pytest.approx(0.9 * 0.8)
    assert parted == pytest.approx(0.4 * 0.8)


def test_a_planner_that_gives_up_is_sure_of_nothing() -> None:
    """However sure it is of that: whoever else can be asked should be."""
    shape = planner_format([tool.spec for tool in READERS])
    sure = (TokenLogprob('{"plan": ["give up"], "next": "give up"}', 0.0, (("{", 0.0),)),)

    assert plan_score(Answer(sure[0].token, logprobs=sure), shape) == 0
    assert plan_score(Answer("nonsense", logprobs=sure), shape) is None
