"""OpenAI's own Python client, unmodified, against the gateway at a real socket."""

import asyncio
import json
from math import exp, fsum
from typing import Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

HI = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Lyon"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells the weather.", "parameters": WEATHER}}


class Verdict(BaseModel):
    answer: Literal["yes", "no"]


@pytest.fixture
def client(door):
    with OpenAI(base_url=door.base_url, api_key=door.key, max_retries=0) as found:
        yield found


# --- chat completions ------------------------------------------------------------------------------------------------


def test_chat(client, door):
    """An answer of the real model, with usage, and a request id that is the decision's."""
    completion = client.chat.completions.create(model="auto", messages=HI, max_tokens=24, temperature=0)

    choice = completion.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content.strip()
    assert choice.finish_reason in {"stop", "length"}
    assert 0 < completion.usage.completion_tokens <= 24
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens
    assert completion.model == "smollm2"
    assert completion.nearfar["tier"] == "smollm2"
    assert 0 < completion.nearfar["score"] <= 1
    assert completion._request_id == completion.nearfar["decision_id"]
    assert door.await_decision(completion._request_id) == "answered"


def test_chat_headers(client):
    """The raw response has the decision, the tier and the score."""
    raw = client.chat.completions.with_raw_response.create(model="auto", messages=HI, max_tokens=8)

    assert raw.headers["x-nearfar-tier"] == "smollm2"
    assert 0 < float(raw.headers["x-nearfar-score"]) <= 1
    assert raw.parse().id == f"chatcmpl-{raw.headers['x-nearfar-decision-id']}"


def test_streaming(client):
    """The deltas of a stream are the answer that the same greedy query gets whole; usage and decision come last."""
    options = {"model": "smollm2", "messages": HI, "max_tokens": 16, "temperature": 0, "seed": 1}
    whole = client.chat.completions.create(**options)

    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))

    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].nearfar["status"] == "answered"


def test_streaming_helper(client):
    """The client's own accumulator puts the chunks together."""
    with client.chat.completions.stream(model="obedient", messages=HI) as stream:
        texts = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()

    assert "".join(texts) == final.choices[0].message.content
    assert final.choices[0].message.content.startswith("one two three")


@pytest.mark.parametrize("model", ["obedient", "smollm2"])
def test_tools(client, model):
    """A forced call has the tool's name and arguments that fit its schema; its result may be sent back."""
    forced = {"type": "function", "function": {"name": "weather"}}
    question = [{"role": "user", "content": "What is the weather in Paris?"}]
    first = client.chat.completions.create(model=model, messages=question, tools=[TOOL], tool_choice=forced)
    message = first.choices[0].message
    (call,) = message.tool_calls

    second = client.chat.completions.create(
        model=model,
        messages=[*question, message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}],
        tools=[TOOL],
        tool_choice="none",
        max_tokens=16,
    )

    assert first.choices[0].finish_reason == "tool_calls"
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in {"Paris", "Lyon"}
    assert second.choices[0].message.content


def test_streamed_tools(client):
    """The client puts a call together from its pieces."""
    with client.chat.completions.stream(model="obedient", messages=HI, tools=[TOOL], tool_choice="required") as stream:
        final = stream.get_final_completion()

    (call,) = final.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Paris"})
    assert final.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("model", ["obedient", "smollm2"])
def test_json_schema(client, model):
    """`parse` gives an object of the asked class."""
    completion = client.chat.completions.parse(
        model=model, messages=[{"role": "user", "content": "Is water wet?"}], response_format=Verdict
    )

    assert completion.choices[0].message.parsed.answer in {"yes", "no"}


def test_logprobs(client):
    """Each token of the real model has its log-probability and the alternatives that were asked for."""
    completion = client.chat.completions.create(
        model="smollm2", messages=HI, max_tokens=8, temperature=0, logprobs=True, top_logprobs=3
    )

    tokens = completion.choices[0].logprobs.content
    assert "".join(token.token for token in tokens) == completion.choices[0].message.content
    for token in tokens:
        assert bytes(token.bytes).decode() == token.token
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(other.logprob for other in token.top_logprobs)
        assert fsum(exp(other.logprob) for other in token.top_logprobs) <= 1 + 1e-6


def test_streamed_logprobs(client):
    """They come with the pieces that they belong to."""
    chunks = client.chat.completions.create(
        model="smollm2", messages=HI, max_tokens=8, temperature=0, logprobs=True, stream=True
    )

    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    told = [(c.delta.content, "".join(t.token for t in c.logprobs.content)) for c in choices if c.logprobs]
    assert told
    assert all(text == tokens for text, tokens in told)


def test_plan_constraints_go_in_the_body(client):
    """`extra_body` carries what OpenAI has no name for."""
    completion = client.chat.completions.create(
        model="obedient", messages=HI, extra_body={"nearfar": {"privacy": "near", "budget_usd": 0.01}}
    )

    assert completion.nearfar["cost_usd"] == 0


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "status", "code", "param"),
    [
        ({"model": "gpt-7"}, openai.NotFoundError, 404, "model_not_found", "model"),
        ({"n": 2}, openai.BadRequestError, 400, "unsupported_parameter", "n"),
        ({"temperature": 9}, openai.BadRequestError, 400, "invalid_value", "temperature"),
        ({"messages": []}, openai.BadRequestError, 400, "invalid_value", "messages"),
        ({"model": "plain", "logprobs": True}, openai.BadRequestError, 400, "unsupported_parameter", "logprobs"),
        (
            {"model": "plain", "reasoning_effort": "low"},
            openai.BadRequestError,
            400,
            "unsupported_parameter",
            "reasoning_effort",
        ),
        (
            {"extra_body": {"nearfar": {"budget": 1}}},
            openai.BadRequestError,
            400,
            "unsupported_parameter",
            "nearfar.budget",
        ),
        ({"model": "limited"}, openai.RateLimitError, 429, "rate_limit_exceeded", None),
        ({"model": "down"}, openai.InternalServerError, 502, "upstream_error", None),
        ({"model": "late"}, openai.InternalServerError, 504, "upstream_timeout", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors(client, options, error, status, code, param, stream):
    """Each is the exception that the client has for it, with the field at fault."""
    with pytest.raises(error) as caught:
        client.chat.completions.create(**{"model": "obedient", "messages": HI, "stream": stream, **options})

    assert (caught.value.status_code, caught.value.code, caught.value.param) == (status, code, param)


def test_images_are_refused_by_name_where_no_tier_takes_them(client):
    """The embedded model reads text only."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}

    with pytest.raises(openai.BadRequestError, match="image") as caught:
        client.chat.completions.create(model="smollm2", messages=[{"role": "user", "content": [image]}])

    assert caught.value.code == "unsupported_content"


@pytest.mark.parametrize("key", ["", "nf-wrong", "sk-" + "x" * 40])
def test_a_wrong_key(door, key):
    """The client's exception for it, and no word on why."""
    with (
        OpenAI(base_url=door.base_url, api_key=key or "none", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.models.list()

    assert caught.value.code == "invalid_api_key"


def test_a_stream_that_breaks_raises(client):
    """What came before is there; then the client raises instead of ending as if all were well."""
    chunks = client.chat.completions.create(model="breaking", messages=HI, stream=True)
    texts = [next(chunks).choices[0].delta.content for _ in range(3)]

    with pytest.raises(openai.APIError, match="the wire broke"):
        list(chunks)

    assert texts == ["", "One", " two"]


# --- cancellation ----------------------------------------------------------------------------------------------------


def test_closing_a_stream_cancels_it(client, door):
    """The decision of a stream that its reader closed says cancelled."""
    stream = client.chat.completions.create(model="endless", messages=HI, stream=True)
    decision_id = stream.response.headers["x-nearfar-decision-id"]
    for _, chunk in zip(range(3), stream, strict=False):
        assert chunk.choices
    stream.close()

    assert door.await_decision(decision_id) == "cancelled"


async def test_cancelling_the_task_cancels_the_query(door):
    """An async client whose task is cancelled before the answer came."""
    async with AsyncOpenAI(base_url=door.base_url, api_key=door.key, max_retries=0) as client:
        before = len(door.log.decisions)
        task = asyncio.create_task(client.chat.completions.create(model="asleep", messages=HI))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        status = await asyncio.to_thread(door.await_new_decision, before)

    assert status == "cancelled"


def test_a_client_that_loses_patience_cancels_the_query(door):
    """The client's own timeout closes the connection, which ends the query."""
    before = len(door.log.decisions)
    with (
        OpenAI(base_url=door.base_url, api_key=door.key, max_retries=0, timeout=0.3) as client,
        pytest.raises(openai.APITimeoutError),
    ):
        client.chat.completions.create(model="asleep", messages=HI)

    assert door.await_new_decision(before) == "cancelled"


async def test_many_at_once(door):
    """Fifty concurrent requests, streamed and not, each get their own answer."""

    async def ask(client, limit):
        completion = await client.chat.completions.create(model="obedient", messages=HI, max_tokens=limit)
        return completion.choices[0].message.content

    async def stream(client, limit):
        chunks = await client.chat.completions.create(model="obedient", messages=HI, max_tokens=limit, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])

    async with AsyncOpenAI(base_url=door.base_url, api_key=door.key, max_retries=0) as client:
        limits = [1 + i % 12 for i in range(25)]
        whole = await asyncio.gather(*(ask(client, limit) for limit in limits))
        streamed = await asyncio.gather(*(stream(client, limit) for limit in limits))

    assert [len(text.split()) for text in whole] == limits
    assert streamed == whole


# --- responses -------------------------------------------------------------------------------------------------------


def test_responses(client):
    """The newer API, on the real model."""
    response = client.responses.create(
        model="auto", instructions="Answer briefly.", input="What is the capital of France?", max_output_tokens=24
    )

    assert response.output_text
    assert response.status in {"completed", "incomplete"}
    assert response.usage.output_tokens <= 24
    assert response.nearfar["tier"] == "smollm2"


def test_responses_stream(client):
    """Typed events; the accumulated text is the final one."""
    with client.responses.stream(model="obedient", input="Count.") as stream:
        events = list(stream)
        final = stream.get_final_response()

    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    assert "".join(deltas) == final.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_responses_tools(client):
    """A call, its result sent back, and an answer."""
    tool = {"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}
    first = client.responses.create(model="obedient", input="Weather?", tools=[tool], tool_choice="required")
    (call,) = first.output

    second = client.responses.create(
        model="obedient",
        input=[
            {"role": "user", "content": "Weather?"},
            *first.output,
            {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"},
        ],
        tools=[tool],
    )

    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "weather", {"city": "Paris"})
    assert second.output_text.startswith("one")


def test_responses_streamed_tools(client):
    """Arguments come in pieces and are whole at the end."""
    tool = {"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}
    with client.responses.stream(model="obedient", input="Weather?", tools=[tool], tool_choice="required") as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_response()

    assert {"response.function_call_arguments.delta", "response.function_call_arguments.done"} <= kinds
    assert json.loads(final.output[0].arguments) == {"city": "Paris"}


@pytest.mark.parametrize("model", ["obedient", "smollm2"])
def test_responses_json_schema(client, model):
    """`parse` gives an object of the asked class."""
    response = client.responses.parse(model=model, input="Is water wet?", text_format=Verdict)

    assert response.output_parsed.answer in {"yes", "no"}


def test_responses_logprobs(client):
    """Asked for with `include`."""
    response = client.responses.create(
        model="smollm2",
        input="Capital of France?",
        max_output_tokens=4,
        include=["message.output_text.logprobs"],
        top_logprobs=2,
    )

    (text,) = response.output[0].content
    assert "".join(token.token for token in text.logprobs) == text.text
    assert all(len(token.top_logprobs) == 2 for token in text.logprobs)


def test_responses_errors(client):
    """What is kept at OpenAI only is refused by name; a break in a stream is an event of its own."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="obedient", input="Hi", previous_response_id="resp_1")
    events = list(client.responses.create(model="breaking", input="Hi", stream=True))

    assert caught.value.param == "previous_response_id"
    assert [event.type for event in events[-2:]] == ["error", "response.failed"]
    assert events[-1].response.error.message == "the wire broke"


# --- models ----------------------------------------------------------------------------------------------------------


def test_models(client):
    """Cascades first, then models; one by its name."""
    names = [model.id for model in client.models.list()]

    assert names[0] == "auto"
    assert {"smollm2", "obedient"} <= set(names)
    assert client.models.retrieve("smollm2").id == "smollm2"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-7")
