"""Requests are planned, schemas narrowed, and calls written in small steps."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("numpy", reason="needs nearfar[retrieval]")
pytest.importorskip("jsonschema", reason="needs nearfar[agents]")

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from nearfar.agents.evaluation.bfcl import judge, read_item
from nearfar.agents.evaluation.grounded_schema import grounded
from nearfar.agents.evaluation.request_plan import planned, shared_out
from nearfar.agents.evaluation.request_values import (
    dates,
    names,
    number_lists,
    numbers,
    phrases,
    quoted,
    text_lists,
)
from nearfar.agents.evaluation.structured_caller import StructuredCaller
from nearfar.testing import ScriptedModel
from nearfar.types import ToolSpec


class LetterEmbedder:
    """Counts letters: real vectors without weights."""

    name = "letters"
    dim = 26

    def embed(self, texts):
        """Letter counts, of length 1."""
        counts = np.array([[text.lower().count(chr(97 + place)) for place in range(26)] for text in texts], np.float32)
        return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)

    def embed_queries(self, texts):
        """As texts."""
        return self.embed(texts)


class Direct:
    """Asks one model, as a router of one tier would."""

    def __init__(self, model):
        self.model = model

    async def answer(self, query, *, door="agent"):
        """The model's answer."""
        return await self.model.complete(query)


def tool(name, required, **properties):
    """A tool whose arguments are all described by their names."""
    schemas = {key: {"description": key, **each} for key, each in properties.items()}
    return ToolSpec(name, name, {"type": "object", "properties": schemas, "required": list(required)})


AREA = tool("area", ["base", "height"], base={"type": "integer"}, height={"type": "integer"}, unit={"type": "string"})


def test_numbers_are_read_in_digits_and_words():
    """Thousands, fractions, signs, percent, scales."""
    found = numbers("Pay $1,000.50 for two items, -3 or 5% of 2 million, by x^2")

    assert [(each.value, each.is_percent) for each in found] == [
        (1000.5, False), (2, False), (-3, False), (5, True), (2_000_000, False),
    ]  # fmt: skip


def test_dates_lists_and_quotes_are_read():
    """In the forms in which people write them."""
    assert [day.isoformat() for day in dates("from April 3rd, 2023 to 5 May 2023 or 2024-01-02")] == [
        "2023-04-03", "2023-05-05", "2024-01-02",
    ]  # fmt: skip
    assert number_lists("sort [3, 1, 2] and 7") == [[3, 1, 2]]
    assert ["apples", "rice", "milk"] in text_lists("buy apples, rice and milk")
    assert quoted("the user's 'big idea' and \"x\" and `y`") == ["big idea", "x", "y"]
    assert names("what is the weather in New York and Lyon?") == ["New York", "Lyon"]


@given(st.text())
def test_any_text_has_values_or_none(text):
    """Nothing that a person types stops the reading."""
    assert all(isinstance(each, str) and each for each in phrases(text))
    assert all(number.start < number.end for number in numbers(text))
    assert len(shared_out(text, AREA)) >= 1
    dates(text), number_lists(text), text_lists(text)


@given(st.text(min_size=1), st.sampled_from(["string", "integer", "number", "boolean", "array", "object"]))
def test_a_narrowed_schema_is_one(text, kind):
    """Whatever the request says, the schema is valid and every required argument is in it."""
    spec = tool("do", ["x"], x={"type": kind}, y={"type": kind})

    schema = grounded(spec.parameters, text)

    Draft202012Validator.check_schema(schema)
    assert "x" in schema["properties"]


def test_arguments_are_narrowed_to_what_is_said():
    """Numbers of the text, an enum's value that is there, no optional argument that nobody asked for."""
    spec = tool(
        "book", ["city", "nights"],
        city={"type": "string"}, nights={"type": "integer"},
        room={"type": "string", "enum": ["single", "double"]}, breakfast={"type": "boolean"},
        stars={"type": "integer"},
    )  # fmt: skip

    schema = grounded(spec.parameters, "Book a double room in Lyon for 3 nights without breakfast")

    assert schema["required"] == ["city", "nights", "room", "breakfast"]
    assert schema["properties"]["nights"] == {"enum": [3]}
    assert schema["properties"]["room"] == {"enum": ["double"]}
    assert schema["properties"]["breakfast"] == {"enum": [False]}
    assert "Lyon" in schema["properties"]["city"]["enum"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Area of a triangle with base 10 and height 5", 1),
        ("Area of a triangle with base 10 and height 5, then another with base 6 and height 2", 2),
        ("Triangles: the first has base 3 and height 4. The second has base 5 and height 6. Areas please.", 2),
    ],
)
def test_a_request_is_cut_where_one_call_has_no_room(text, expected):
    """Two numbers fill one call; four need two."""
    assert len(shared_out(text, AREA)) == expected


def test_lists_are_shared_out_among_calls():
    """One call for each name, with the rest of the request."""
    weather = tool("weather", ["city"], city={"type": "string"})

    assert shared_out("What is the weather in Lyon and Paris?", weather) == [
        "What is the weather in Lyon?",
        "What is the weather in Paris?",
    ]


def test_the_nearest_tool_is_planned():
    """The name's words in the request count for it; no tools give no plan."""
    tools = [tool("music_play", [], song={"type": "string"}), tool("weather_get", [], city={"type": "string"})]

    plan = planned("Get the weather please", tools, LetterEmbedder())

    assert [step.tool for step in plan.steps] == ["weather_get"]
    assert 0 < plan.score <= 1
    assert planned("x", [], LetterEmbedder()).steps == ()


async def test_one_question_fills_the_open_arguments_and_doubles_are_asked_again():
    """The model is held to the narrowed schema; the same value twice is asked about once more."""
    model = ScriptedModel(['{"base": 10, "height": 10}', '{"height": 5}'], confidence=0.5)
    caller = StructuredCaller(Direct(model), "scripted", LetterEmbedder())

    answer = await caller.answer("Area of a triangle: base 10, height 5", [AREA])

    assert [(call.name, dict(call.arguments)) for call in answer.calls] == [("area", {"base": 10, "height": 5})]
    assert answer.model_calls == 2
    assert answer.caller_score == pytest.approx(0.5)
    assert model.queries[0].response_format.schema["properties"]["base"] == {"enum": [10, 5]}
    assert model.queries[1].response_format.schema["properties"] == {"height": {"enum": [5]}}


async def test_an_item_of_java_gets_source():
    """The arguments are written as the language's literals."""
    item = read_item(
        {
            "id": "simple_java_0",
            "question": [[{"role": "user", "content": "Wait 5 ticks with `mainTimer`"}]],
            "function": [
                {
                    "name": "T.wait",
                    "description": "Wait.",
                    "parameters": {
                        "properties": {
                            "ticks": {"type": "long", "description": ""},
                            "timer": {"type": "any", "description": ""},
                        },
                        "required": ["ticks", "timer"],
                    },
                }
            ],
            "ground_truth": [{"T.wait": {"ticks": [5], "timer": ["mainTimer"]}}],
        }
    )
    caller = StructuredCaller(Direct(ScriptedModel(["{}"])), "scripted", LetterEmbedder())

    answer = await caller.answer_bfcl(item)

    calls = [{call.name: dict(call.arguments)} for call in answer.calls]
    assert calls == [{"T.wait": {"ticks": "5L", "timer": "mainTimer"}}]
    assert judge(item, json.loads(json.dumps(calls))).is_correct
