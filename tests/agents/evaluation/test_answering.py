"""Agents answer items of every benchmark."""

from __future__ import annotations

import pytest

from nearfar.agents.evaluation.answering import answered, by_agent, plain
from nearfar.agents.evaluation.benchmarks import CallItem, QuestionItem
from nearfar.agents.evaluation.bfcl import read_item
from nearfar.agents.evaluation.call_text import Call
from nearfar.agents.types import RunResult
from nearfar.errors import RequestError
from nearfar.testing import ScriptedModel
from nearfar.types import ToolSpec, Usage


class Direct:
    """Asks one model, as a router of one tier would."""

    def __init__(self, model):
        self.model = model

    async def answer(self, query, *, door="agent"):
        """The model's answer."""
        return await self.model.complete(query)


FUNCTION = {
    "name": "f",
    "description": "Does.",
    "parameters": {"properties": {"a": {"type": "integer"}}, "required": []},
}
BFCL = {"id": "simple_java_0", "question": [[{"role": "user", "content": "Do."}]], "function": [FUNCTION]}


async def test_the_plain_prompt_is_bfcls_own_with_the_items_functions():
    """Java's types are told as strings of source, as the leaderboard tells them."""
    model = ScriptedModel(["[f(a=1)]"])

    answers = await answered(
        [read_item(BFCL | {"ground_truth": [{"f": {"a": [1]}}]})], plain(Direct(model), "scripted")
    )

    system, user = model.queries[0].messages
    assert "You are an expert in composing functions." in system.text
    assert "This is Java integer type parameter in string representation." in system.text
    assert "Note that the provided function is in Java 8 SDK syntax." in system.text
    assert user.text == "Do."
    assert answers["simple_java_0"].value == "[f(a=1)]"
    assert answers["simple_java_0"].model_calls == 1


async def test_tools_and_passages_are_told_in_other_benchmarks():
    """Items with tools get the same prompt, questions their passages."""
    model = ScriptedModel(["[g()]", "Paris"])
    items = [
        CallItem("a", "all", "Do g.", (ToolSpec("g", "Goes."),), (Call("g", {}),)),
        QuestionItem("b", "all", "Where?", ("Paris",), (("France", "Its capital is Paris."),)),
    ]
    told = []

    answers = await answered(items, plain(Direct(model), "scripted"), lambda name, _: told.append(name))

    assert "Goes." in model.queries[0].messages[0].text
    assert "France: Its capital is Paris." in model.queries[1].messages[0].text
    assert answers["b"].text == "Paris"
    assert told == ["a", "b"]


async def test_an_agents_tokens_and_calls_are_counted():
    """Of the whole run."""

    class Fixed:
        name = "fixed"

        async def run(self, task, *, run_id=None):
            """Always the same."""
            return RunResult("r", "answered", "Paris", usage=Usage(30, 4), model_calls=3)

    answers = await answered([QuestionItem("b", "all", "Where?", ("Paris",))], by_agent(Fixed()))

    assert (answers["b"].text, answers["b"].tokens, answers["b"].model_calls) == ("Paris", 34, 3)


async def test_a_model_that_refuses_an_option_is_an_error():
    """What is not about log-probabilities is not asked again."""
    model = ScriptedModel([RequestError("no", param="messages")])

    with pytest.raises(RequestError):
        await answered([QuestionItem("b", "all", "Where?", ("x",))], plain(Direct(model), "scripted"))
    assert len(model.queries) == 1
