"""Functions become tools: what their hints and docstrings say is what a model sees, and what they do is observed."""

import asyncio
import enum
import json
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Literal

import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field

from nearfar.agents.functions import FunctionTool, PythonTools
from nearfar.agents.types import Observation, ToolHints
from nearfar.errors import ConfigError


class Unit(enum.Enum):
    CELSIUS = "C"
    KELVIN = "K"


@dataclass
class Place:
    city: str
    country: str = "Italy"


class Stay(BaseModel):
    nights: int = Field(gt=0)


def forecast(
    place: Place,
    day: date,
    unit: Unit = Unit.CELSIUS,
    stay: Stay | None = None,
    detail: Literal["low", "high"] = "low",
    tags: tuple[str, ...] = (),
    *,
    limit: Annotated[int, Field(ge=1, le=5)] = 3,
) -> dict[str, Any]:
    """Tells the weather.

    At a place, on a day.

    Args:
        place: where it is,
            with its country
        day (date): which day
        unit: of the temperature

    Returns:
        The weather.
    """
    return {"city": place.city, "day": day.isoformat(), "unit": unit.value, "nights": stay and stay.nights, "n": limit}


def test_hints_and_docstring_become_the_spec() -> None:
    """The description ends at the first section; each argument has its own words."""
    spec = FunctionTool(forecast).spec

    assert (spec.name, spec.description) == ("forecast", "Tells the weather.\n\nAt a place, on a day.")
    properties = spec.parameters["properties"]
    assert properties["place"]["description"] == "where it is, with its country"
    assert properties["day"] == {"format": "date", "type": "string", "description": "which day"}
    assert properties["limit"] == {"default": 3, "maximum": 5, "minimum": 1, "type": "integer"}
    assert spec.parameters["required"] == ["place", "day"]
    assert spec.parameters["additionalProperties"] is False
    Draft202012Validator.check_schema(dict(spec.parameters))


async def test_arguments_arrive_as_the_hinted_types() -> None:
    """And what is not named keeps the function's own default."""
    arguments = {"place": {"city": "Rome"}, "day": "2024-02-28", "unit": "K", "stay": {"nights": 2}}

    seen = await FunctionTool(forecast).call(arguments)

    assert seen.structured == {"city": "Rome", "day": "2024-02-28", "unit": "K", "nights": 2, "n": 3}
    assert json.loads(seen.text) == seen.structured


async def test_what_pydantic_refuses_is_an_invalid_call() -> None:
    """The schema cannot say everything that a type checks."""
    seen = await FunctionTool(forecast).call({"place": {"city": "Rome"}, "day": "2024-02-31"})

    assert seen.kind == "invalid"
    assert seen.text.startswith("day: ")


async def test_names_that_models_of_pydantic_reserve_are_names() -> None:
    """`schema`, `copy`, a leading underscore, and letters beyond ASCII."""

    def odd(schema: int, copy: int, _x: int, größe: int, model_config: int) -> int:
        return schema + copy + _x + größe + model_config

    arguments = {"schema": 1, "copy": 2, "_x": 3, "größe": 4, "model_config": 5}

    assert list(FunctionTool(odd).spec.parameters["properties"]) == list(arguments)
    assert (await FunctionTool(odd).call(arguments)).text == "15"


async def test_positional_and_unhinted_parameters_work() -> None:
    """Some functions have them."""

    def old(a, /, b=2):  # type: ignore[no-untyped-def]
        return [a, b]

    assert (await FunctionTool(old).call({"a": {"x": 1}})).structured == [{"x": 1}, 2]


class Counter:
    """Counts."""

    def __init__(self) -> None:
        self.total = 0

    def add(self, n: int) -> int:
        """Adds."""
        self.total += n
        return self.total

    async def __call__(self, n: int) -> int:
        """Calls."""
        await asyncio.sleep(0)
        return -n


async def test_methods_and_callable_objects_are_functions() -> None:
    """A bound method keeps its object."""
    counter = Counter()
    add = FunctionTool(counter.add)

    assert (add.spec.name, add.spec.description) == ("add", "Adds.")
    assert [(await add.call({"n": 2})).text, (await add.call({"n": 3})).text] == ["2", "5"]
    assert (await FunctionTool(counter).call({"n": 7})).text == "-7"


@pytest.mark.parametrize(
    ("value", "text", "structured"),
    [
        ("as it is", "as it is", None),
        (None, "done", None),
        ({"ü": (1, 2)}, '{"ü": [1, 2]}', {"ü": [1, 2]}),
        (Place("Rome"), '{"city": "Rome", "country": "Italy"}', {"city": "Rome", "country": "Italy"}),
        (b"\x00\x01", "binary data, 2 bytes, not shown; it begins with 00 01", None),
        (Observation("mine", "error"), "mine", None),
    ],
)
async def test_values_become_text_and_json(value: Any, text: str, structured: Any) -> None:
    """Text stays text; what is JSON keeps its structure; an observation is left alone."""

    def gives() -> Any:
        return value

    seen = await FunctionTool(gives).call({})

    assert (seen.text, seen.structured) == (text, structured)


async def test_a_function_that_ends_an_iteration_is_an_error() -> None:
    """A future cannot carry that exception."""

    def stops() -> None:
        raise StopIteration("early")

    seen = await FunctionTool(stops).call({})

    assert seen.kind == "error"
    assert "early" in seen.text


def _args(*values: int) -> None: ...
def _kwargs(**values: int) -> None: ...
def _unknown(a: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821
def _foreign(a: Counter) -> None: ...


@pytest.mark.parametrize("function", [_args, _kwargs, _unknown, _foreign])
def test_a_signature_without_a_schema_is_refused(function: Any) -> None:
    """By the function's name."""
    with pytest.raises(ConfigError, match=function.__name__):
        FunctionTool(function)


def test_an_owners_hints_are_vouched_for() -> None:
    """The function is the owner's own."""
    hints = FunctionTool(forecast, hints=ToolHints(read_only=True)).hints

    assert (hints.read_only, hints.is_trusted) == (True, True)


async def test_functions_are_a_source() -> None:
    """As servers are."""
    source = PythonTools("mine", [FunctionTool(forecast)])

    assert [tool.spec.name for tool in await source.tools()] == ["forecast"]
    await source.aclose()
