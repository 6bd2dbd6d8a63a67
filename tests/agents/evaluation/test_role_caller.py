"""α-UMi's planner and caller answer items whose tools cannot be run."""

from __future__ import annotations

import json
from math import log

import pytest

pytest.importorskip("langgraph", reason="needs nearfar[agents]")

from nearfar.agents.alpha_umi import AlphaUmi, plan_text
from nearfar.agents.evaluation.answering import answered, by_roles
from nearfar.agents.evaluation.benchmarks import CallItem
from nearfar.agents.evaluation.bfcl import judge, read_item
from nearfar.agents.evaluation.call_text import Call
from nearfar.agents.evaluation.role_caller import RoleCaller
from nearfar.agents.roles import Role
from nearfar.cli.run import run
from nearfar.testing import ScriptedModel
from nearfar.types import Answer, TokenLogprob, ToolSpec

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOLS = (ToolSpec("f", "Does f.", SCHEMA), ToolSpec("g", "Does g.", SCHEMA))


class Named:
    """Asks the model that the query names, as a router does."""

    def __init__(self, **models):
        self.models = models

    async def answer(self, query, *, door="agent"):
        """Its answer."""
        return await self.models[query.model].complete(query)


def caller(planner, caller):
    """Roles that say what they are told."""
    models = Named(planner=ScriptedModel(planner, confidence=0.9), caller=ScriptedModel(caller, confidence=0.25))
    return RoleCaller(models, AlphaUmi(), {name: Role(name, name) for name in ("planner", "caller")}), models


def chosen(text, said, share):
    """What a planner says that wanted the last `said` with this share of what it gave the tools' names at all."""
    before, after = text.rsplit(said, 1)
    other = "g" if said == "f" else "f"
    top = ((said, log(0.1 * share)), (other, log(0.1 - 0.1 * share)), ("Sure", log(0.9)))
    tokens = (TokenLogprob(before, 0.0), TokenLogprob(said, log(0.1 * share), top), TokenLogprob(after, 0.0))
    return Answer(text, logprobs=tokens)


async def test_the_planner_names_tools_until_it_would_answer():
    """Each call is told to have been done; scores are of the least sure step."""
    plans = [plan_text(f"call {name}", f"{name}, then answer") for name in "fg"]
    sure = [chosen(plan, name, share) for plan, name, share in zip(plans, "fg", (0.8, 0.6), strict=True)]
    asked, models = caller([*sure, plan_text("answer", "answer")], ['{"a": 1}', '{"a": 2}'])

    found = await asked.answer("Do both.", TOOLS)

    assert found.calls == (Call("f", {"a": 1}), Call("g", {"a": 2}))
    assert found.model_calls == 5
    assert (found.plan_score, found.caller_score) == pytest.approx((0.6, 0.25))
    last = models.models["planner"].queries[-1].messages
    assert [message.text for message in last if message.role == "assistant"] == [
        plans[0],
        '{"a": 1}',
        plans[1],
        '{"a": 2}',
    ]
    assert last[-1].text.count("done") == 1


async def test_the_same_call_again_ends_it():
    """It would go on for ever."""
    asked, _ = caller([plan_text("call f", "f")], ['{"a": 1}'])

    found = await asked.answer("Do f.", TOOLS)

    assert found.calls == (Call("f", {"a": 1}),)
    assert found.model_calls == 4


async def test_the_caller_may_write_no_argument_that_the_tool_has_not():
    """Whatever the schema leaves open."""
    asked, models = caller([plan_text("call f", "f")], ['{"a": 1}'])

    await asked.answer("Do f.", TOOLS)

    assert models.models["caller"].queries[0].response_format.schema == {**SCHEMA, "additionalProperties": False}


async def test_a_planner_that_gives_up_calls_nothing():
    """Which is right where nothing should be called."""
    asked, _ = caller([plan_text("give up", "give up")], ["unused"])
    function = {"name": "f", "description": "", "parameters": {"type": "dict", "properties": {}, "required": []}}
    item = read_item(
        {"id": "irrelevance_0", "question": [[{"role": "user", "content": "Hm."}]], "function": [function]}
    )

    answers = await answered([item, CallItem("x", "all", "Hm.", TOOLS, ())], by_roles(asked))

    assert judge(item, answers["irrelevance_0"].value).is_correct
    assert answers["x"].value == []


async def test_bfcls_arguments_are_of_its_types():
    """A whole number where a float is wanted is one."""
    asked, _ = caller([plan_text("call f", "f"), plan_text("answer", "answer")], ['{"a": 1}'])
    function = {
        "name": "f",
        "description": "",
        "parameters": {"type": "dict", "properties": {"a": {"type": "float"}}, "required": ["a"]},
    }
    item = read_item(
        {
            "id": "simple_python_0",
            "question": [[{"role": "user", "content": "f of one"}]],
            "function": [function],
            "ground_truth": [{"f": {"a": [1.0]}}],
        }
    )

    [found] = (await answered([item], by_roles(asked))).values()

    assert judge(item, found.value).is_correct
    assert isinstance(found.value[0]["f"]["a"], float)


def test_an_agent_of_the_config_answers_from_the_command_line(tmp_path, capsys, monkeypatch):
    """Its own roles are asked; an agent of another kind, or a name that is none, is one line."""
    monkeypatch.setenv("NEARFAR_HOME", str(tmp_path / "home"))
    (tmp_path / "roles.py").write_text(
        "def planner(query):\n"
        "    done = any(message.role == 'assistant' for message in query.messages)\n"
        '    return \'{"plan": ["answer"], "next": "answer"}\' if done else \'{"plan": ["f"], "next": "call f"}\'\n'
        "def caller(query):\n"
        "    return '{\"a\": 1}'\n"
    )
    config = tmp_path / "nearfar.toml"
    config.write_text(
        "".join(
            f'[models.{name}]\nkind = "python"\ncallable = "roles.py:{name}"\nplacement = "near"\n'
            for name in ("planner", "caller")
        )
        + '[agents.two]\nroles = { planner = "planner", caller = "caller", summarizer = "caller" }\n'
        + '[agents.other]\nkind = "self-ask"\n'
    )
    items = tmp_path / "items.jsonl"
    items.write_text(
        json.dumps(
            {
                "id": "simple_python_0",
                "question": [[{"role": "user", "content": "f of one"}]],
                "function": [
                    {"name": "f", "description": "", "parameters": {"properties": {"a": {"type": "integer"}}}}
                ],
                "ground_truth": [{"f": {"a": [1]}}],
            }
        )
    )
    command = ["agent", "evaluate", "bfcl", str(items), "-c", str(config)]

    code = run([*command, "-a", "two", "--json"])
    found = json.loads(capsys.readouterr().out)
    refused = run([*command, "-a", "other"])

    assert (code, found["accuracy"]) == (0, 1.0)
    assert refused != 0
    assert "structured, plain, two" in capsys.readouterr().err
