"""LangChain's ChatOpenAI, unmodified, against the gateway at a real socket."""

from typing import Literal

import pytest
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, SecretStr


class Verdict(BaseModel):
    """Whether it is so."""

    answer: Literal["yes", "no"]


@tool
def weather(city: Literal["Paris", "Lyon"]) -> str:
    """Tells the weather."""
    return f"sunny in {city}"


@pytest.fixture
def chat(door):
    return lambda model, **options: ChatOpenAI(
        base_url=door.base_url, api_key=SecretStr(door.key), model=model, max_retries=0, **options
    )


def test_invoke(chat):
    """An answer of the real model, with its usage and who gave it."""
    message = chat("auto", max_tokens=24, temperature=0).invoke("What is the capital of France?")

    assert message.content.strip()
    assert message.usage_metadata["output_tokens"] > 0
    assert message.response_metadata["model_name"] == "smollm2"


def test_stream(chat):
    """The pieces are the whole; usage comes with the last."""
    chunks = list(chat("obedient", stream_usage=True).stream("Count."))

    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.content.startswith("one two three")
    assert whole.usage_metadata["output_tokens"] == 12


@pytest.mark.parametrize("model", ["obedient", "smollm2"])
def test_bind_tools(chat, model):
    """A forced tool is called with arguments that it takes."""
    message = chat(model).bind_tools([weather], tool_choice="weather").invoke("What is the weather in Paris?")

    (call,) = message.tool_calls
    assert call["name"] == "weather"
    assert weather.invoke(call["args"]).startswith("sunny in")


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("model", ["obedient", "smollm2"])
def test_structured_output(chat, model, method):
    """An object of the asked class, by schema or by tool."""
    verdict = chat(model).with_structured_output(Verdict, method=method).invoke("Is water wet?")

    assert verdict.answer in {"yes", "no"}


def test_responses_api(chat):
    """ChatOpenAI speaks the newer API too."""
    message = chat("obedient", use_responses_api=True).invoke("Count.")

    assert message.text.startswith("one two three")


async def test_async(chat):
    """Invoked from an event loop."""
    message = await chat("obedient").ainvoke("Count.")

    assert message.content.startswith("one two three")
