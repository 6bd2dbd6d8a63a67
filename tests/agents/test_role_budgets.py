"""What a role may use of a run: how many answers it draws, and how far its cascade may go."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.teams import reading

from nearfar.agents.alpha_umi import AlphaUmi
from nearfar.agents.checkpoints import open_sqlite
from nearfar.agents.graph_agent import GraphAgent, Team
from nearfar.agents.roles import Ask, Role, answered
from nearfar.agents.toolbox import Toolbox
from nearfar.agents.types import Decided, Ended
from nearfar.config import Settings
from nearfar.router.cascade import Cascade, Tier
from nearfar.router.router import Router
from nearfar.router.scorers import MeanProbability
from nearfar.testing import ScriptedModel
from nearfar.types import Answer, Message, ModelCard, Price, Query, Usage
from nearfar.wiring import build
from nearfar.wiring.agents import build_roles

QUESTION = (Message("user", "Which?"),)


def look(name: str) -> str:
    """Looks something up."""
    return f"found {name}"


def seen(query: Query) -> int:
    """How many observations the role is told of."""
    return sum(message.text.count("\n</data ") for message in query.messages)


def planner(query: Query) -> str:
    """Looks twice, and answers."""
    return json.dumps({"next": "call look" if seen(query) < 2 else "answer"})


def caller(query: Query) -> str:
    """Looks for another thing each time."""
    return json.dumps({"name": f"thing {seen(query)}"})


async def events_of(folder: Path, router: Router, **roles: Role) -> list[Any]:
    """What a run with these roles does."""
    named = {name: roles.get(name, Role(name, name, reads_logprobs=False)) for name in AlphaUmi.roles}
    async with await open_sqlite(folder / "agents.db") as store:
        team = Team(router, Toolbox([reading(look)]), store)
        agent = GraphAgent("tested", AlphaUmi(), team, roles=named)
        return [event async for event in agent.stream("Look both up.")]


def models(**more: Any) -> dict[str, Any]:
    """One scripted model a role."""
    says = {"planner": planner, "caller": caller, "summarizer": "Both found."}
    return {name: ScriptedModel([said], name=name) for name, said in says.items()} | more


@given(samples=st.integers(1, 9), each=st.integers(1, 50), left=st.none() | st.integers(-5, 300))
async def test_draws_end_with_the_roles_tokens(samples: int, each: int, left: int | None) -> None:
    """Before every draw but the first something was left; and none is left out while something is."""
    model = ScriptedModel([Answer("a", usage=Usage(each, 0))], name="m")
    role = Role("planner", "m", samples=samples, reads_logprobs=False)

    said = await answered(Router({}, {"m": model}), role, Ask(QUESTION, 1, draw_tokens=left))

    count = len(said.decided)
    assert count == len(model.queries)
    assert 1 <= count <= samples
    if left is not None:
        assert count == 1 or (count - 1) * each < left
        assert count == samples or count * each >= left


async def test_the_share_is_of_those_that_were_drawn() -> None:
    """Two of the three that there were tokens for say the same."""
    script = [Answer(text, usage=Usage(10, 0)) for text in ("a", "b", "a", "c", "c")]
    role = Role("planner", "m", samples=5, reads_logprobs=False)

    said = await answered(Router({}, {"m": ScriptedModel(script, name="m")}), role, Ask(QUESTION, 1, draw_tokens=25))

    assert (said.answer.text, len(said.decided)) == ("a", 3)
    assert said.score == pytest.approx(2 / 3)


async def test_a_role_without_tokens_left_gives_its_one_best_answer() -> None:
    """At the temperature of one answer, not of several."""
    model = ScriptedModel(["a"], name="m")
    role = Role("planner", "m", samples=5, temperature=0.0, reads_logprobs=False)

    await answered(Router({}, {"m": model}), role, Ask(QUESTION, 1, draw_tokens=0))

    assert [query.sampling.temperature for query in model.queries] == [0.0]


async def test_a_run_spends_a_roles_tokens_on_its_first_questions(tmp_path: Path) -> None:
    """Three draws while there are tokens, one each once they are used; the other roles draw what they did."""
    some = models()
    tight = Role("planner", "planner", samples=3, tokens=1, reads_logprobs=False)
    wide = Role("caller", "caller", samples=3, reads_logprobs=False)

    events = await events_of(tmp_path, Router({}, some), planner=tight, caller=wide)

    drawn = [(event.role, event.step) for event in events if isinstance(event, Decided)]
    assert [drawn.count(("planner", step)) for step in (1, 2, 3)] == [1, 1, 1]
    assert [drawn.count(("caller", step)) for step in (1, 2)] == [3, 3]
    assert events[-1].result.text == "Both found."


def priced(name: str, usd_per_mtok: float, says: Any) -> ScriptedModel:
    """A far model at a price."""
    price = Price(usd_per_mtok, usd_per_mtok)
    card = ModelCard(name, "far", price=price, max_output_tokens=256, supports_json_schema=True)
    return ScriptedModel([says], name=name, card=card)


async def test_a_roles_cascade_goes_no_further_than_its_money(tmp_path: Path) -> None:
    """The unsure near planner is followed by the far one until its dollars are used, and then by nobody."""
    near = ScriptedModel([planner], name="near", confidence=0.2)
    far = priced("far", 1000.0, planner)
    cascade = Cascade([Tier(near, scorer=MeanProbability(), threshold=0.9), Tier(far)], name="careful")
    some = models(near=near, far=far)
    router = Router({"careful": cascade}, some)

    free = await events_of(tmp_path / "a", router, planner=Role("planner", "careful", reads_logprobs=False))
    bound = Role("planner", "careful", usd=0.5, max_tokens=16, reads_logprobs=False)  # one question may cost $0.481
    tight = await events_of(tmp_path / "b", router, planner=bound)

    def decided(found: list[Any]) -> list[Decided]:
        return [event for event in found if isinstance(event, Decided) and event.role == "planner"]

    assert [event.tier for event in decided(free)] == ["far", "far", "far"]
    assert [event.tier for event in decided(tight)] == ["far", "near", "near"]
    assert sum(event.cost_usd or 0.0 for event in decided(tight)) <= 0.5
    assert tight[-1].result.status == "answered"


async def test_a_role_that_can_only_be_paid_for_ends_the_run_out_of_money(tmp_path: Path) -> None:
    """It is an outcome, and says whose money it was."""
    some = models(far=priced("far", 1000.0, planner))

    events = await events_of(tmp_path, Router({}, some), planner=Role("planner", "far", usd=0.0, reads_logprobs=False))

    assert isinstance(events[-1], Ended)
    assert events[-1].result.status == "out_of_money"
    assert "'far'" in events[-1].result.reason


def test_the_config_gives_each_role_its_own(tmp_path: Path) -> None:
    """Tokens and dollars reach the role; nonsense is refused by name."""
    path = tmp_path / "nearfar.toml"
    (tmp_path / "table.jsonl").write_text('{"query": "q", "model": "m", "response": "r", "correct": true}\n')
    path.write_text(
        '[models.m]\nkind = "replay"\ntable = "table.jsonl"\nmodel = "m"\n'
        '[agents.clerk]\nmodel = "m"\n[agents.clerk.roles]\n'
        'planner = { samples = 5, tokens = 4000, usd = 0.01 }\ncaller = "m"\n'
    )
    settings = Settings.load(path)
    wired = build(settings)

    roles = build_roles(wired, settings.agents["clerk"], AlphaUmi.roles)

    wired.store.close()
    assert (roles["planner"].samples, roles["planner"].tokens, roles["planner"].usd) == (5, 4000, 0.01)
    assert (roles["caller"].samples, roles["caller"].tokens, roles["caller"].usd) == (1, None, None)
