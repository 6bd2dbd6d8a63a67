"""A call writer lets only valid calls out: held, checked, repaired once, escalated, and given up as an observation."""

import json
from collections.abc import Callable
from dataclasses import replace
from math import exp, log
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.weights import smollm2_path

from nearfar.agents.call_checking import CallChecker
from nearfar.agents.calls import CallTier, CallWriter, call_signals, calls_grammar, calls_schema
from nearfar.errors import ConfigError, RoutingError, UpstreamUnavailable
from nearfar.models.grammar import sampled
from nearfar.models.llama_cpp import LlamaCppModel
from nearfar.router.router import Router
from nearfar.testing import ScriptedModel
from nearfar.types import (
    FREE,
    Answer,
    Chunk,
    Filter,
    Hit,
    ModelCard,
    NamedTool,
    Query,
    TokenLogprob,
    ToolCall,
    ToolSpec,
)

WEATHER = ToolSpec(
    "weather.now",
    "The weather.",
    {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False},
)
CLOCK = ToolSpec("clock", "The time.", {"type": "object", "properties": {}, "additionalProperties": False})
ASKED = Query("Weather in Rome?", tools=(WEATHER, CLOCK), tool_choice="required")


def wrote(name: str, **arguments: Any) -> Answer:
    return Answer(tool_calls=(ToolCall("c", name, json.dumps(arguments)),), finish_reason="tool_calls")


def sure(name: str, probability: float, **arguments: Any) -> Answer:
    """A call whose every token has this probability."""
    text = f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'
    tokens = tuple(TokenLogprob(character, log(probability)) for character in text)
    call = ToolCall("c", name, json.dumps(arguments))
    return Answer(tool_calls=(call,), finish_reason="tool_calls", logprobs=tokens)


def router(**says: Any) -> tuple[Router, dict[str, ScriptedModel]]:
    models = {name: ScriptedModel(script, name=name, confidence=0.5) for name, script in says.items()}
    return Router({}, models), models


async def test_a_valid_call_is_the_answer() -> None:
    """One answer, no repair."""
    responder, models = router(near=[wrote("weather.now", city="Rome")])

    found = await CallWriter(responder, ["near"]).write(ASKED)

    assert [(call.name, call.arguments) for call in found.calls] == [("weather.now", '{"city": "Rome"}')]
    assert (found.tier, found.problem, len(models["near"].queries)) == ("near", None, 1)


async def test_an_invalid_call_is_repaired_once_with_the_reason() -> None:
    """The model is shown what it wrote and what is wrong."""
    responder, models = router(near=[wrote("weather.now", town="Rome"), wrote("weather.now", city="Rome")])

    found = await CallWriter(responder, ["near"]).write(ASKED)

    assert [call.arguments for call in found.calls] == ['{"city": "Rome"}']
    before, after = models["near"].queries[1].messages[-2:]
    assert "town" in before.text
    assert "'city' is a required property" in after.text


async def test_what_cannot_be_repaired_escalates_and_then_is_an_observation() -> None:
    """The next tier starts afresh; where nobody is left, the next role sees why."""
    responder, models = router(near=[wrote("weather.now")], far=[wrote("nothing"), wrote("clock")])

    found = await CallWriter(responder, ["near", "far"]).write(ASKED)
    alone = await CallWriter(responder, ["near"]).write(ASKED)

    assert [call.name for call in found.calls] == ["clock"]
    assert (found.tier, len(found.answers)) == ("far", 4)
    assert models["far"].queries[0].messages == ASKED.messages
    assert alone.calls == ()
    assert alone.problem is not None
    assert alone.problem.kind == "invalid"
    assert "'city' is a required property" in alone.problem.text


async def test_words_in_place_of_a_due_call_are_a_problem() -> None:
    """The model is told to call; where it may choose, words are an answer."""
    responder, _ = router(near=["It is sunny."])
    due = await CallWriter(responder, ["near"]).write(ASKED)
    free = await CallWriter(responder, ["near"]).write(Query("Weather?", tools=(WEATHER,)))

    assert due.problem is not None
    assert "It is sunny." in due.problem.text
    assert (free.problem, free.calls, free.text) == (None, (), "It is sunny.")


async def test_an_unsure_call_goes_to_the_next_tier() -> None:
    """The surest of the valid calls wins where none is sure enough."""
    responder, _ = router(
        near=[sure("weather.now", 0.4, city="Rom")],
        middle=[sure("weather.now", 0.6, city="Rome")],
        far=[sure("clock", 0.5)],
    )
    tiers = [CallTier("near", 0.5), CallTier("middle", 0.9), CallTier("far", 0.9)]

    found = await CallWriter(responder, tiers).write(ASKED)
    first = await CallWriter(responder, tiers[:2]).write(ASKED)

    assert (found.tier, first.tier) == ("middle", "middle")
    assert found.score == pytest.approx(0.6)
    assert [answer.model for answer in found.answers] == ["near", "middle", "far"]


async def test_a_tier_that_fails_is_passed_over() -> None:
    """Only where every one fails is it an error."""
    gone = UpstreamUnavailable("gone", model="near")
    responder, _ = router(near=[gone], far=[wrote("clock")])

    found = await CallWriter(responder, ["near", "far"]).write(ASKED)

    assert found.tier == "far"
    with pytest.raises(UpstreamUnavailable):
        await CallWriter(responder, ["near"]).write(ASKED)


async def test_names_that_far_servers_refuse_are_translated() -> None:
    """Each way, and two names that look alike stay apart."""
    odd = tuple(ToolSpec(name, "", CLOCK.parameters) for name in ("a.b", "a_b", "a b", "加算", "x" * 80))

    def last(query: Query) -> Answer:
        return wrote(query.tools[-1].name)

    for number in range(1, len(odd) + 1):
        responder, models = router(far=[last])
        found = await CallWriter(responder, [CallTier("far", plain_names=True)]).write(
            Query("?", tools=odd[:number], tool_choice="required")
        )
        names = [tool.name for tool in models["far"].queries[0].tools]
        assert [call.name for call in found.calls] == [odd[number - 1].name]
        assert len(set(names)) == number
        assert all(name.isascii() and len(name) <= 64 and "." not in name and " " not in name for name in names)


async def test_a_server_that_keeps_shapes_is_asked_for_one() -> None:
    """The schema holds every tool's own, with its references; the calls come back as calls."""
    tree = ToolSpec(
        "tree",
        "",
        {
            "type": "object",
            "properties": {"root": {"$ref": "#/$defs/node"}},
            "$defs": {"node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}},
        },
    )
    said = json.dumps({"calls": [{"name": "tree", "arguments": {"root": {"next": {}}}}]})
    responder, models = router(far=[said])

    found = await CallWriter(responder, [CallTier("far", asks_by="json_schema")]).write(
        Query("?", tools=(WEATHER, tree), tool_choice="required")
    )

    assert [(call.name, json.loads(call.arguments)) for call in found.calls] == [("tree", {"root": {"next": {}}})]
    form = models["far"].queries[0].response_format
    assert form is not None
    assert form.schema is not None
    assert form.schema["$defs"]["tool1"]["properties"]["root"] == {"$ref": "#/$defs/tool1/$defs/node"}
    assert models["far"].queries[0].tools == ()


@given(st.integers(0, 2**32), st.floats(0, 1), st.sampled_from([(1, 1), (1, 3), (0, 2)]))
async def test_a_server_that_keeps_grammars_is_held_to_ours(seed: int, cut: float, counts: tuple[int, int]) -> None:
    """Wherever the token limit cuts a text of the grammar, the call that comes out is valid, and scored 0 if it was."""
    least, most = counts
    whole = sampled(calls_grammar((WEATHER, CLOCK), least=least, most=most), Random(seed))
    text = whole[: round(cut * len(whole))]
    responder, models = router(far=[text])
    asked = replace(ASKED, tool_choice="required" if least else "auto", parallel_tool_calls=most > 1 or None)

    found = await CallWriter(responder, [CallTier("far", asks_by="grammar")], repairs=0).write(asked)

    assert models["far"].queries[0].response_format.kind == "grammar"
    assert found.problem is None
    assert [CallChecker(ASKED.tools).problem(call) for call in found.calls] == [None] * len(found.calls)
    assert len(found.calls) >= least
    assert text == whole or found.score == 0


@pytest.mark.parametrize(("can", "kind"), [("supports_grammar", "grammar"), ("supports_json_schema", "json_schema")])
async def test_a_model_that_takes_no_tools_is_held_to_their_calls(can: str, kind: str) -> None:
    """By grammar where it keeps one, else by schema; log-probabilities are left out where it gives none."""
    text = '{"calls": [{"name": "clock", "arguments": {}}]}'
    model = ScriptedModel([text], name="near", card=ModelCard("near", "near", price=FREE, **{can: True}))

    found = await CallWriter(Router({}, {"near": model}), ["near"]).write(ASKED)

    assert [call.name for call in found.calls] == ["clock"]
    assert [(query.response_format.kind, query.tools) for query in model.queries] == [(kind, ())]
    assert len(found.answers) == 1


async def test_a_model_that_can_be_held_to_nothing_may_not_write_calls() -> None:
    """It is said as an error, with the reason."""
    model = ScriptedModel(["?"], name="near", card=ModelCard("near", "near", price=FREE))

    with pytest.raises(RoutingError, match="JSON schema"):
        await CallWriter(Router({}, {"near": model}), ["near"]).write(ASKED)
    assert model.queries == []


async def test_a_server_that_keeps_no_grammar_is_found_out() -> None:
    """Its text is not bent into a call: it is told what is wrong, and the next tier is asked."""
    responder, models = router(
        far=['{"calls": [{"name": "clock", "arguments": {"zone": 1}}]}', "No."], near=[wrote("clock")]
    )

    found = await CallWriter(responder, [CallTier("far", asks_by="grammar"), "near"]).write(ASKED)

    assert (found.tier, [call.name for call in found.calls]) == ("near", ["clock"])
    assert "zone" in models["far"].queries[1].messages[-1].text


def test_the_schema_of_calls_takes_valid_calls_only() -> None:
    """As the checker does."""
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(calls_schema([WEATHER, CLOCK]))

    assert validator.is_valid({"calls": [{"name": "weather.now", "arguments": {"city": "Rome"}}]})
    assert not validator.is_valid({"calls": [{"name": "clock", "arguments": {"city": "Rome"}}]})
    assert not validator.is_valid({"calls": []})


async def test_a_tool_whose_schema_is_none_is_a_problem() -> None:
    """Not an error: the next role is told."""
    broken = ToolSpec("broken", "", {"type": "object", "properties": {"a": {"type": "frob"}}})
    responder, _ = router(near=[wrote("broken", a=1)])

    found = await CallWriter(responder, ["near"]).write(Query("?", tools=(broken,), tool_choice="required"))

    assert found.problem is not None
    assert "'frob'" in found.problem.text


class Finder:
    """Finds what it was told to."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def search(self, query: str, *, k: int = 10, filter: Filter | None = None) -> list[Hit]:  # noqa: A002
        return [Hit(Chunk(name, id=name), 1.0) for name in self.names[:k]]


async def test_many_tools_are_offered_by_the_index() -> None:
    """The best ones first; others fill up what it does not know; a forced tool is not searched for."""
    many = tuple(ToolSpec(f"tool{i}", "", CLOCK.parameters) for i in range(50))
    responder, models = router(near=[lambda query: wrote(query.tools[0].name)])
    writer = CallWriter(responder, ["near"], finder=Finder("tool30", "gone", "tool7"), num_tools=4)

    found = await writer.write(Query("?", tools=many, tool_choice="required"))
    await writer.write(Query("?", tools=many, tool_choice=NamedTool("tool0")))

    assert found.offered == ("tool30", "tool7", "tool0", "tool1")
    assert [call.name for call in found.calls] == ["tool30"]
    assert len(models["near"].queries[1].tools) == 50


@pytest.mark.parametrize(("least", "calls"), [(None, 1), (0.0, 1), (1.0, 0)])
async def test_a_call_that_the_model_would_not_have_begun_is_dropped(least: float | None, calls: int) -> None:
    """By the probability of its marker, where a threshold is set."""
    responder, models = router(near=[sure("clock", 0.9)])
    found = await CallWriter(responder, ["near"], least_relevance=least).write(Query("?", tools=(CLOCK,)))

    assert len(found.calls) == calls
    assert found.relevance == pytest.approx(0.9 ** len("<tool_call>\n"))
    assert models["near"].queries[0].tool_choice == (None if least is None else "required")


def test_signals_are_those_of_names_and_arguments() -> None:
    """Of the least sure call of several; the marker's apart."""
    pieces = [
        ("<tool_call>\n", 0.5),
        ('{"name": "', 0.1),
        ("clo", 0.8),
        ("ck", 0.2),
        ('", "arguments": ', 0.1),
        ('{"a": ', 0.9),
        ("1}", 0.4),
        ("}\n</tool_call>", 0.1),
        ('<tool_call>\n{"name": "', 0.1),
        ("clock", 1.0),
        ('", "arguments": ', 0.1),
        ('{"a": 2}', 1.0),
        ("}\n</tool_call>", 0.1),
    ]
    answer = Answer(logprobs=tuple(TokenLogprob(token, log(probability)) for token, probability in pieces))

    signals = call_signals(answer)

    assert {name: round(exp(value), 6) for name, value in signals.items()} == {
        "call_logprob": 0.5,
        "name_mean_logprob": 0.4,
        "name_min_logprob": 0.2,
        "arguments_mean_logprob": 0.6,
        "arguments_min_logprob": 0.4,
    }


@pytest.mark.parametrize(
    "text", ["", "no call", '{"name": "x"', '{"name": "x", "other": 1}', '{"name": "x", "arguments": {']
)
def test_no_call_has_no_signals(text: str) -> None:
    """Nor has a broken one."""
    assert call_signals(Answer(logprobs=tuple(TokenLogprob(c, -1.0) for c in text))) == {}


@pytest.mark.parametrize(
    "build",
    [
        lambda responder: CallWriter(responder, []),
        lambda responder: CallWriter(responder, ["x"], num_tools=0),
        lambda responder: CallWriter(responder, ["x"], repairs=-1),
        lambda responder: CallTier("x", 2.0),
    ],
)
def test_numbers_out_of_range_are_refused(build: Callable[[Router], object]) -> None:
    """Before any request."""
    with pytest.raises(ConfigError):
        build(Router({}, {}))


async def test_the_real_model_writes_a_valid_call() -> None:
    """SmolLM2, held to two tools, with the numbers that tell how sure it is."""
    model = LlamaCppModel(smollm2_path(), name="smollm2", context_window=1024, parallel=1)
    try:
        found = await CallWriter(Router({}, {"smollm2": model}), ["smollm2"]).write(ASKED)
    finally:
        await model.aclose()

    assert len(found.calls) == 1
    assert found.score is not None
    assert 0 < found.score <= 1
    assert found.relevance is not None
    assert set(found.signals) >= {"name_mean_logprob", "arguments_mean_logprob", "call_logprob"}
