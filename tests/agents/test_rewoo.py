"""ReWOO: one plan, checked before anything runs, side by side where it may, and never changed by what is read."""

import asyncio
import json
from math import log
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.teams import agent, reading

from nearfar.agents.functions import FunctionTool
from nearfar.agents.rewoo import PlanStep, Rewoo, filled, plan_problem, plan_score, read_steps, ready
from nearfar.agents.toolbox import Toolbox
from nearfar.agents.types import Called, Ended, NeedsApproval, Observation, Observed, Planned
from nearfar.types import Answer, TokenLogprob, ToolSpec


def search(query: str) -> str:
    """Searches."""
    return {"capital of France": "Paris", "mayor of Paris": "Anne"}.get(query, f"nothing on {query}")


def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


TOOLS = (reading(search), reading(add))


def steps(*told: tuple[str, dict]) -> str:
    """What a planner says."""
    return json.dumps({"steps": [{"why": "needed", "tool": tool, "arguments": arguments} for tool, arguments in told]})


async def test_evidence_goes_where_the_plan_refers_to_it(tmp_path: Path) -> None:
    """One call of the planner, one of the solver, and none between."""
    plan = steps(("search", {"query": "capital of France"}), ("search", {"query": "mayor of #E1"}))
    async with agent(Rewoo(), tmp_path, TOOLS, planner=[plan], solver=["Anne."]) as tested:
        events = [event async for event in tested.stream("Who is mayor of France's capital?")]

    assert isinstance(events[-1], Ended)
    assert (events[-1].result.status, events[-1].result.text, events[-1].result.model_calls) == ("answered", "Anne.", 2)
    assert [json.loads(event.call.arguments)["query"] for event in events if isinstance(event, Called)] == [
        "capital of France",
        "mayor of Paris",
    ]
    assert [event.next for event in events if isinstance(event, Planned)] == ["#E1 = search", "#E2 = search"]


async def test_more_than_nine_steps_run_and_numbers_stay_numbers(tmp_path: Path) -> None:
    """The paper's code stops at nine; here #E11 is step 11, and what it gives can be added."""
    plan = steps(("add", {"a": 1, "b": 1}), *(("add", {"a": f"#E{number}", "b": 1}) for number in range(1, 12)))
    async with agent(Rewoo(), tmp_path, TOOLS, planner=[plan], solver=["13"]) as tested:
        events = [event async for event in tested.stream("Count.")]

    last = [event for event in events if isinstance(event, Observed)][-1]
    assert (last.step, last.observation.text) == (12, "13")


async def test_steps_that_need_nothing_of_each_other_run_side_by_side(tmp_path: Path) -> None:
    """Each of three waits until all three have begun."""
    begun = asyncio.Barrier(3)

    async def meet(name: str) -> str:
        """Meets the others."""
        await begun.wait()
        return f"{name} met"

    plan = steps(*(("meet", {"name": name}) for name in "abc"))
    async with agent(Rewoo(), tmp_path, [reading(meet)], planner=[plan], solver=["They met."]) as tested:
        events = [event async for event in tested.stream("Meet.")]

    seen = sorted(event.observation.text for event in events if isinstance(event, Observed))
    assert seen == ["a met", "b met", "c met"]


@pytest.mark.parametrize(
    ("plan", "why"),
    [
        (steps(("search", {"query": "#E1"})), "no earlier step"),
        (steps(("search", {"query": "#E7"})), "no earlier step"),
        (steps(("search", {"query": "x #E0"})), "no earlier step"),
        (steps(("fly", {})), "there is no tool 'fly'"),
        (steps(("search", {"q": "x"})), "do not fit its schema"),
        (steps(("search", {"query": "x"}), ("add", {"a": "1 + #E1", "b": 2})), "cannot stand where integer is wanted"),
        ("I would search first.", "no steps that can be read"),
        ('{"steps": 3}', "no steps that can be read"),
        (steps(*[("add", {"a": 1, "b": 1})] * 13), "13 steps"),
    ],
)
async def test_a_plan_that_cannot_be_run_runs_nothing(tmp_path: Path, plan: str, why: str) -> None:
    """It is shown to the planner once; then the run ends with the reason."""
    async with agent(Rewoo(), tmp_path, TOOLS, planner=[plan], solver=["?"]) as tested:
        events = [event async for event in tested.stream("Go.")]

    result = events[-1].result
    assert (result.status, result.tool_calls, result.model_calls) == ("gave_up", 0, 2)
    assert why in result.reason


async def test_a_plan_is_corrected_once(tmp_path: Path) -> None:
    """The planner is told what is wrong."""
    good = steps(("search", {"query": "capital of France"}))
    async with agent(Rewoo(), tmp_path, TOOLS, planner=["no plan", good], solver=["Paris."]) as tested:
        result = await tested.run("Capital of France?")

    assert (result.status, result.tool_calls) == ("answered", 1)


async def test_what_needs_a_failed_step_is_not_called(tmp_path: Path) -> None:
    """The solver sees both, and answers from what there is."""

    def fail() -> str:
        """Fails."""
        raise ValueError("out of order")

    plan = steps(("fail", {}), ("search", {"query": "#E1"}), ("search", {"query": "capital of France"}))
    async with agent(Rewoo(), tmp_path, [*TOOLS, reading(fail)], planner=[plan], solver=["Paris."]) as tested:
        events = [event async for event in tested.stream("Go.")]

    kinds = {event.step: event.observation.kind for event in events if isinstance(event, Observed)}
    assert kinds == {1: "error", 2: "invalid", 3: "result"}


async def test_two_calls_wait_for_a_person_at_once(tmp_path: Path) -> None:
    """Both are asked; one is allowed, one is not, and only that one runs."""
    sent = []

    def send(to: str) -> str:
        """Sends."""
        sent.append(to)
        return "sent"

    plan = steps(("send", {"to": "Ada"}), ("send", {"to": "Bob"}))
    async with agent(Rewoo(), tmp_path, [FunctionTool(send)], planner=[plan], solver=["Done."]) as tested:
        events = [event async for event in tested.stream("Write to both.", run_id="one")]
        asked = {event.approval_id: event.call for event in events if isinstance(event, NeedsApproval)}
        says = {id_: "Ada" in call.arguments for id_, call in asked.items()}
        first, second = says.items()
        halfway = await tested.resume("one", dict([first]))
        result = await tested.resume("one", dict([second]))

    assert len(asked) == 2
    assert halfway.status == "awaiting_approval"
    assert (result.status, sent) == ("answered", ["Ada"])


def test_the_papers_lines_are_read() -> None:
    """With as many digits as a step has."""
    text = "Plan: find it\n#E1 = search[capital of France]\n" + "\n".join(
        f"Plan: again\n#E{number} = search[more on #E{number - 1}]" for number in range(2, 13)
    )

    found = read_steps(text, [tool.spec for tool in TOOLS])

    assert len(found) == 12
    assert found[0] == PlanStep("search", {"query": "capital of France"}, "find it")
    assert found[11].needs == (11,)


@given(st.lists(st.sets(st.integers(1, 30), max_size=4), min_size=1, max_size=30))
def test_a_plan_that_passes_the_check_always_ends(needs: list[set[int]]) -> None:
    """Wave after wave, every step gets ready, and none before what it needs."""
    toolbox = Toolbox([reading(search)])
    plan = [PlanStep("search", {"query": " ".join(f"#E{each}" for each in sorted(each_needs))}) for each_needs in needs]
    if plan_problem(plan, toolbox, 99) is not None:
        assert any(each >= number for number, each_needs in enumerate(needs, 1) for each in each_needs)
        return

    done: dict[int, Observation] = {}
    while wave := ready(plan, done):
        for number in wave:
            filled(plan[number - 1], done, {})
        done |= {number: Observation("x") for number in wave}

    assert set(done) == set(range(1, len(plan) + 1))


def test_an_enum_takes_evidence_only_if_it_fits_then() -> None:
    """A reference may stand for text of which the schema names the values; what came is checked with the call."""
    spec = ToolSpec("pick", "", {"type": "object", "properties": {"x": {"type": "string", "enum": ["a", "b"]}}})
    step = PlanStep("pick", {"x": "#E1"})

    assert filled(step, {1: Observation("b\n")}, spec.parameters) == {"x": "b"}


def test_a_plan_is_as_sure_as_its_least_sure_tool() -> None:
    """Whatever the model would rather have written than one of the tools."""

    def chosen(said: str, p: float) -> TokenLogprob:
        return TokenLogprob(
            said, log(0.2 * p), ((said, log(0.2 * p)), ("search", log(0.2 - 0.2 * p)), ("Ok", log(0.8)))
        )

    tokens = (
        TokenLogprob('{"steps": [{"why": "", "tool": "', 0.0),
        chosen("add", 0.9),
        TokenLogprob('", "arguments": {}}, {"why": "", "tool": "', 0.0),
        chosen("add", 0.7),
        TokenLogprob('", "arguments": {}}]}', 0.0),
    )
    answer = Answer("".join(token.token for token in tokens), logprobs=tokens)

    assert plan_score(answer, [tool.spec for tool in TOOLS]) == pytest.approx(0.7)
    assert plan_score(Answer(answer.text), [tool.spec for tool in TOOLS]) is None
