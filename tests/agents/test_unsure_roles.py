"""A role that is not sure by its own score has the same asked of another, within what is left."""

import json
from math import log
from pathlib import Path

import pytest
from support.teams import reading

from nearfar.agents.alpha_umi import AlphaUmi
from nearfar.agents.checkpoints import open_sqlite
from nearfar.agents.graph_agent import GraphAgent, Team
from nearfar.agents.roles import Ask, Role, answered
from nearfar.agents.toolbox import Toolbox
from nearfar.agents.types import Called, Decided, Ended, Planned
from nearfar.config import Settings
from nearfar.errors import ConfigError, UpstreamUnavailable
from nearfar.router.router import Router
from nearfar.testing import ScriptedModel
from nearfar.types import Answer, Message, ModelCard, Price, TokenLogprob, Usage
from nearfar.wiring import build
from nearfar.wiring.agents import build_roles

QUESTION = Ask((Message("user", "Which?"),), 1)
PRICE = Price(1.0, 1.0)


def read_file(path: str) -> str:
    """Reads a file."""
    return f"{path} says 21"


def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


def plan(share: float, tool: str) -> Answer:
    """A plan to call the tool, with its share of what the planner gave the tools' names."""
    other = "add" if tool == "read_file" else "read_file"
    top = ((tool, log(share)), (other, log(1 - share)))
    tokens = (TokenLogprob('{"next": "call ', 0.0), TokenLogprob(tool, log(share), top), TokenLogprob('"}', 0.0))
    return Answer("".join(token.token for token in tokens), logprobs=tokens)


@pytest.mark.parametrize(("share", "tool"), [(0.9, "add"), (0.6, "read_file")])
async def test_a_plan_that_is_not_sure_is_made_by_another(tmp_path: Path, share: float, tool: str) -> None:
    """The run goes on with what that one says, and both are on record with their scores."""
    scripts = {
        "near": [plan(share, "add"), json.dumps({"next": "answer"})],
        "far": [json.dumps({"next": "call read_file"}), json.dumps({"next": "answer"})],
        "caller": [json.dumps({"a": 17, "b": 4} if tool == "add" else {"path": "sum.txt"})],
        "summarizer": ["It is 21."],
    }
    models = {
        name: ScriptedModel(script, name=name, confidence=0.9 if name == "near" else None)
        for name, script in scripts.items()
    }
    roles = {name: Role(name, name, reads_logprobs=False) for name in ("caller", "summarizer")}
    far = Role("planner", "far", reads_logprobs=False)
    roles["planner"] = Role("planner", "near", unsure=far, sure_from=0.8)
    async with await open_sqlite(tmp_path / "agents.db") as store:
        team = Team(Router({}, models), Toolbox([reading(read_file), reading(add)]), store)
        agent = GraphAgent("tested", AlphaUmi(rationale="words"), team, roles=roles)
        events = [event async for event in agent.stream("What is in sum.txt?")]

    first = [event for event in events if isinstance(event, Decided) and (event.role, event.step) == ("planner", 1)]
    assert [event.call.name for event in events if isinstance(event, Called)] == [tool]
    assert [event.model for event in first] == (["near"] if tool == "add" else ["near", "far"])
    assert first[0].score == pytest.approx(share)
    assert next(event for event in events if isinstance(event, Planned)).next == "caller"
    assert isinstance(events[-1], Ended)
    assert events[-1].result.status == "answered"


@pytest.mark.parametrize("budget_usd", [None, 100.0, 25.0])
async def test_whoever_is_asked_next_has_what_is_left(budget_usd: float | None) -> None:
    """What the unsure answer took is gone, and where nothing is left that answer stands."""
    card = {name: ModelCard(name, "near", price=PRICE, max_output_tokens=10) for name in ("one", "two")}
    script = {name: Answer(name, usage=Usage(10, 10), cost_usd=25.0) for name in card}
    models = {name: ScriptedModel([script[name]], card=card[name]) for name in card}
    role = Role(
        "planner",
        "one",
        max_tokens=10,
        reads_logprobs=False,
        unsure=Role("planner", "two", max_tokens=10, reads_logprobs=False),
    )
    ask = Ask(QUESTION.messages, 1, budget_usd=budget_usd, max_tokens=50)

    said = await answered(Router({}, models), role, ask, score=lambda answer: 0.1)

    if budget_usd == 25.0:
        assert (said.answer.text, len(said.decided)) == ("one", 1)
        return
    assert (said.answer.text, [each.model for each in said.decided]) == ("two", ["one", "two"])
    assert models["two"].queries[0].sampling.max_tokens == 10
    left = models["two"].queries[0].budget_usd
    assert left == (None if budget_usd is None else 75.0)


async def test_an_unsure_answer_stands_where_the_next_one_fails() -> None:
    """It is better than none."""
    models = {
        "one": ScriptedModel(["one"], name="one"),
        "two": ScriptedModel([UpstreamUnavailable("gone", model="two")], name="two"),
    }
    role = Role("planner", "one", reads_logprobs=False, unsure=Role("planner", "two", reads_logprobs=False))

    said = await answered(Router({}, models), role, QUESTION, score=lambda answer: None)

    assert said.answer.text == "one"


def test_the_config_names_whom_an_unsure_role_asks(tmp_path: Path) -> None:
    """One that there is."""
    config = tmp_path / "nearfar.toml"
    text = (
        "".join(f'[models.{name}]\nkind = "python"\ncallable = "roles.py:say"\nplacement = "near"\n' for name in "ab")
        + '[agents.clerk.roles]\nplanner = { model = "a", samples = 3, unsure = "b", sure_from = 0.7 }\n'
    )
    (tmp_path / "roles.py").write_text("def say(query):\n    return 'yes'\n")
    config.write_text(text)
    wired = build(Settings.load(config))

    planner = build_roles(wired, wired.settings.agents["clerk"], ["planner"])["planner"]
    wired.store.close()

    assert (planner.model, planner.samples, planner.sure_from) == ("a", 3, 0.7)
    assert planner.unsure is not None
    assert (planner.unsure.model, planner.unsure.samples) == ("b", 1)
    config.write_text(text.replace('unsure = "b"', 'unsure = "nobody"'))
    with pytest.raises(ConfigError, match="nobody"):
        Settings.load(config)
