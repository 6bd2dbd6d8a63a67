"""The Anthropic wire against a real local server with scripted answers."""

import json
import traceback
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from contracts.chat_model import IMAGE, PIXEL, ChatModelContract, ask, collect
from support.anthropic_server import AnthropicServer
from support.obedient import obedient

from nearfar.errors import (
    ContextTooLong,
    MalformedAnswer,
    RequestError,
    UnsupportedOption,
    UpstreamError,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamUnavailable,
)
from nearfar.models.anthropic_wire import AnthropicWireModel
from nearfar.types import (
    Answer,
    ContentPart,
    Message,
    NamedTool,
    Price,
    Query,
    ReasoningDelta,
    ResponseFormat,
    SamplingOptions,
    TextDelta,
    ToolCall,
    ToolSpec,
    Usage,
)

KEY = "sk-ant-very-secret-0123456789"
PRICE = Price(3.0, 15.0, cached_prompt_usd_per_mtok=0.3)
TOOL = ToolSpec("f", "does f", {"type": "object"}, strict=True)


@asynccontextmanager
async def client(server: AnthropicServer, **options: Any) -> AsyncGenerator[AnthropicWireModel, None]:
    """A model at the server."""
    options = {"name": "claude", "url": server.url, "model": "scripted", "api_key": KEY, **options}
    model = AnthropicWireModel(**options)
    try:
        yield model
    finally:
        await model.aclose()


class TestAnthropicWireModel(ChatModelContract):
    """The whole contract, over HTTP."""

    @pytest.fixture
    async def model(self) -> AsyncGenerator[AnthropicWireModel, None]:
        with AnthropicServer([obedient]) as server:
            async with client(server, price=PRICE) as model:
                yield model


async def sent(query: Query, **options: Any) -> dict[str, Any]:
    """The body that the query becomes."""
    with AnthropicServer([obedient]) as server:
        async with client(server, **options) as model:
            await model.complete(query)
    return server.bodies[0]


# --- what is sent ----------------------------------------------------------------------------------------------------


async def test_every_option_is_on_the_wire_by_its_name() -> None:
    """What the query says reaches the server in this wire's words."""
    sampling = SamplingOptions(
        max_tokens=9,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        stop=("END",),
        presence_penalty=0.0,  # what does nothing is no reason to refuse
        extra={"metadata": {"user_id": "u"}, "output_config": {"effort": "low"}},
    )
    query = Query(
        "hi",
        tools=(TOOL,),
        tool_choice="required",
        parallel_tool_calls=False,
        response_format=ResponseFormat("json_schema", {"type": "object"}),
        sampling=sampling,
    )
    with AnthropicServer([obedient]) as server:
        async with client(server) as model:
            await model.complete(query)
            await collect(model.stream(query))

    whole, streamed = server.bodies
    assert whole == {
        "model": "scripted",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "stop_sequences": ["END"],
        "tools": [{"name": "f", "description": "does f", "input_schema": {"type": "object"}, "strict": True}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
        "metadata": {"user_id": "u"},
    }
    assert streamed == {**whole, "stream": True}
    assert server.headers[0]["x-api-key"] == KEY
    assert server.headers[0]["anthropic-version"] == "2023-06-01"


async def test_a_conversation_takes_this_wires_form() -> None:
    """System prompts leave the turns, results of parallel calls share one, thinking goes back signed."""
    thinking = [{"type": "thinking", "thinking": "hmm", "signature": "sig"}]
    calls = (ToolCall("c1", "f", '{"a": 1}'), ToolCall("c2", "f", ""))
    turns = (
        Message("system", "Be brief."),
        Message("user", "one"),
        Message("user", IMAGE),
        Message("developer", "Be kind."),
        Message("assistant", "Let me see.", calls, extra={"thinking_blocks": thinking, "reasoning_content": "x"}),
        Message("tool", "42", tool_call_id="c1"),
        Message("tool", (ContentPart("text", "43"),), tool_call_id="c2"),
    )

    body = await sent(Query(turns, tools=(TOOL,)))

    data = PIXEL.partition(",")[2]
    assert body["system"] == "Be brief.\n\nBe kind."
    assert body["messages"] == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "one"},
                {"type": "text", "text": "What is this?"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}},
            ],
        },
        {
            "role": "assistant",
            "content": [
                *thinking,
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
                {"type": "tool_use", "id": "c2", "name": "f", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "42"}]},
                {"type": "tool_result", "tool_use_id": "c2", "content": [{"type": "text", "text": "43"}]},
            ],
        },
    ]
    assert "tool_choice" not in body


@pytest.mark.parametrize(
    ("choice", "is_parallel", "wire"),
    [
        (None, None, None),
        (None, True, None),
        (None, False, {"type": "auto", "disable_parallel_tool_use": True}),
        ("auto", None, {"type": "auto"}),
        ("none", False, {"type": "none"}),
        ("required", None, {"type": "any"}),
        (NamedTool("f"), True, {"type": "tool", "name": "f"}),
        (NamedTool("f"), False, {"type": "tool", "name": "f", "disable_parallel_tool_use": True}),
    ],
)
async def test_tool_choices_are_translated(choice: Any, is_parallel: bool | None, wire: dict[str, Any] | None) -> None:
    """Each has its word here."""
    body = await sent(Query("hi", tools=(TOOL,), tool_choice=choice, parallel_tool_calls=is_parallel))

    assert body.get("tool_choice") == wire


async def test_an_image_by_address_stays_one() -> None:
    """The server fetches it, not we."""
    part = ContentPart("image", wire={"type": "image_url", "image_url": {"url": "https://host/cat.png"}})

    body = await sent(Query((Message("user", (part,)),)))

    source = {"type": "url", "url": "https://host/cat.png"}
    assert body["messages"][0]["content"] == [{"type": "image", "source": source}]


async def test_there_is_always_a_limit() -> None:
    """The wire needs one; the card's is sent where the query names none."""
    assert (await sent(Query("hi")))["max_tokens"] == 4096
    assert (await sent(Query("hi"), max_output_tokens=7))["max_tokens"] == 7


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/"])
async def test_the_url_may_name_the_version(path: str) -> None:
    """With it and without, the address is the same."""
    with AnthropicServer([obedient]) as server:
        async with client(server, url=server.url + path) as model:
            assert (await model.complete(Query("hi"))).text


REFUSED = {
    "seed": SamplingOptions(seed=0),
    "min_p": SamplingOptions(min_p=0.1),
    "presence_penalty": SamplingOptions(presence_penalty=0.1),
    "frequency_penalty": SamplingOptions(frequency_penalty=0.1),
    "logit_bias": SamplingOptions(logit_bias={"5": 1.0}),
    "logprobs": SamplingOptions(logprobs=True),
    "temperature": SamplingOptions(temperature=1.2),
    "n": SamplingOptions(extra={"n": 2}),
    "messages": SamplingOptions(extra={"messages": []}),
    "stream": SamplingOptions(extra={"stream": True}),
}


@pytest.mark.parametrize("param", REFUSED)
async def test_what_the_wire_cannot_say_is_refused_by_name(param: str) -> None:
    """Before anything is sent."""
    with AnthropicServer([obedient]) as server, pytest.raises(UnsupportedOption) as caught:
        async with client(server) as model:
            await model.complete(Query("hi", sampling=REFUSED[param]))

    assert caught.value.param == param
    assert server.bodies == []


@pytest.mark.parametrize("kind", ["json_object", "grammar"])
async def test_only_schemas_shape_an_answer(kind: Any) -> None:
    """JSON of any shape and grammars are not on this wire."""
    with AnthropicServer([obedient]) as server, pytest.raises(UnsupportedOption) as caught:
        async with client(server) as model:
            await model.complete(Query("hi", response_format=ResponseFormat(kind, grammar="root ::= x")))

    assert caught.value.param == "response_format"


@pytest.mark.parametrize(
    "message",
    [
        Message("assistant", tool_calls=(ToolCall("c1", "f", "{not json"),)),
        Message("assistant", tool_calls=(ToolCall("c1", "f", "[1]"),)),
        Message("user", (ContentPart("image", wire={"image_url": {"url": "data:image/png,abc"}}),)),
        Message("user", (ContentPart("image", wire={"image_url": {}}),)),
    ],
)
async def test_a_conversation_without_a_form_here_is_refused(message: Message) -> None:
    """With a word on which message."""
    with AnthropicServer([obedient]) as server, pytest.raises(RequestError) as caught:
        async with client(server) as model:
            await model.complete(Query((message,)))

    assert caught.value.param == "messages"


# --- what comes back -------------------------------------------------------------------------------------------------


async def test_everything_of_an_answer_comes_back() -> None:
    """Thinking with its signature, parallel calls, cached tokens and the price, by either door."""
    told = Answer(
        "one two",
        "claude",
        tool_calls=(ToolCall("c1", "f", '{"a": "x"}'), ToolCall("c2", "g", "{}")),
        finish_reason="tool_calls",
        reasoning="let me think",
        usage=Usage(100, 50, cached_tokens=40, reasoning_tokens=10),
    )
    with AnthropicServer([told]) as server:
        async with client(server, price=PRICE) as model:
            answers = [await ask(model, Query("hi"), door) for door in ("complete", "stream")]

    thinking = {"type": "thinking", "thinking": "let me think", "signature": "sig"}
    for answer in answers:
        calls = tuple(replace(call, arguments=json.dumps(json.loads(call.arguments))) for call in answer.tool_calls)
        assert answer.cost_usd == pytest.approx((60 * 3.0 + 40 * 0.3 + 50 * 15.0) / 1e6)
        assert answer.extra == {"message": {"thinking_blocks": [thinking]}}
        assert replace(answer, latency_s=0, cost_usd=None, extra={}, tool_calls=calls) == told


async def stream_of(*events: dict[str, Any] | str) -> tuple[list[Any], Answer]:
    """What becomes of a stream with these events."""
    body = "".join(f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n" for event in events)
    with AnthropicServer([web.Response(text=body, content_type="text/event-stream")]) as server:
        async with client(server) as model:
            return await collect(model.stream(Query("hi")))


START = {"type": "message_start", "message": {"usage": {"input_tokens": 3, "output_tokens": 1}}}
TEXT = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
HI = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}}
STOP = {"type": "message_stop"}


def ended(reason: str | None, **delta: Any) -> dict[str, Any]:
    """The event that says why the answer ends."""
    return {"type": "message_delta", "delta": {"stop_reason": reason, **delta}, "usage": {"output_tokens": 5}}


@pytest.mark.parametrize(
    ("reason", "finish_reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("pause_turn", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "content_filter"),
        ("invented", "stop"),
    ],
)
async def test_stop_reasons_are_translated(reason: str, finish_reason: str) -> None:
    """One that nobody knows is kept beside."""
    _, answer = await stream_of(START, TEXT, HI, ended(reason), STOP)

    assert answer.finish_reason == finish_reason
    assert answer.extra == ({"choice": {"stop_reason": "invented"}} if reason == "invented" else {})
    assert bool(answer.refusal) == (reason == "refusal")


async def test_counts_of_later_events_replace_those_of_earlier_ones() -> None:
    """And what a later event leaves out stays."""
    _, answer = await stream_of(START, TEXT, HI, ended("end_turn"), STOP)

    assert answer.usage == Usage(3, 5)


async def test_a_refusal_is_explained() -> None:
    """In the server's words where it has some; the stop sequence that matched is told too."""
    details = {"type": "refusal", "category": "bio", "explanation": "Not this."}

    _, refused = await stream_of(START, ended("refusal", stop_details=details), STOP)
    _, stopped = await stream_of(START, TEXT, HI, ended("stop_sequence", stop_sequence="END"), STOP)

    assert refused.refusal == "Not this."
    assert stopped.extra == {"choice": {"stop_sequence": "END"}}


async def test_events_and_blocks_of_a_later_version_are_passed_over() -> None:
    """As the API's versioning policy asks of clients."""
    strange = {"type": "content_block_start", "index": 0, "content_block": {"type": "hologram", "text": "no"}}
    more = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "no"}}
    text = {**TEXT, "index": 1}
    thought = {"type": "content_block_delta", "index": 7, "delta": {"type": "thinking_delta", "thinking": "no"}}

    events, answer = await stream_of(
        START,
        {"type": "ping"},
        {"type": "news"},
        strange,
        more,
        text,
        {**HI, "index": 1},
        thought,
        ended("end_turn"),
        STOP,
    )

    assert events == [TextDelta("hi")]
    assert answer.text == "hi"


async def test_hidden_thinking_is_kept_for_the_next_turn() -> None:
    """It cannot be read, and must go back as it came."""
    hidden = {"type": "redacted_thinking", "data": "xyz"}
    thought = {"type": "content_block_start", "index": 1, "content_block": {"type": "thinking", "thinking": "a"}}

    events, answer = await stream_of(
        START, {"type": "content_block_start", "index": 0, "content_block": hidden}, thought, ended("end_turn"), STOP
    )

    assert events == [ReasoningDelta("a")]
    assert answer.extra["message"]["thinking_blocks"][0] == hidden


# --- errors ----------------------------------------------------------------------------------------------------------


def error(status: int, kind: str, message: str = "no", headers: dict[str, str] | None = None) -> web.Response:
    """A response in Anthropic's error shape."""
    body = {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}
    return web.json_response(body, status=status, headers=headers)


STATUSES = {
    "invalid": (400, "invalid_request_error", "no", UpstreamRejected),
    "too long": (400, "invalid_request_error", "prompt is too long: 9 tokens > 5 maximum", ContextTooLong),
    "with output": (
        400,
        "invalid_request_error",
        "input length and `max_tokens` exceed context limit: 9 > 5",
        ContextTooLong,
    ),
    "key": (401, "authentication_error", "invalid x-api-key", UpstreamRejected),
    "permission": (403, "permission_error", "no", UpstreamRejected),
    "model": (404, "not_found_error", "model: x", UpstreamRejected),
    "rate": (429, "rate_limit_error", "slow down", UpstreamRateLimited),
    "server": (500, "api_error", "oops", UpstreamUnavailable),
    "overloaded": (529, "overloaded_error", "Overloaded", UpstreamUnavailable),
}


@pytest.mark.parametrize("form", ["complete", "stream", "event"])
@pytest.mark.parametrize("name", STATUSES)
async def test_every_error_is_translated(name: str, form: str) -> None:
    """By its status, or by its type where it comes as an event of a stream that began well."""
    status, kind, message, expected = STATUSES[name]
    response = error(status, kind, f"{message} {KEY}", {"retry-after": "3"})
    if form == "event":
        body = f"data: {json.dumps(START)}\n\nevent: error\ndata: {bytes(response.body or b'').decode()}\n\n"
        response = web.Response(text=body, content_type="text/event-stream")

    with AnthropicServer([response]) as server:
        async with client(server) as model:
            with pytest.raises(UpstreamError) as caught:
                await ask(model, Query("hi"), "complete" if form == "complete" else "stream")

    exc = caught.value
    assert type(exc) is expected
    assert exc.model == "claude"
    assert exc.may_have_cost == (form == "event")
    assert exc.retry_after_s == (None if form == "event" else 3)
    assert KEY not in "".join(traceback.format_exception(exc))


@pytest.mark.parametrize(
    ("events", "what"),
    [
        ([START, TEXT, HI], "in the middle"),
        ([], "without an answer"),
        ([{"type": "ping"}], "without an answer"),
        ([START, "{"], "something else"),
        ([START, "[]"], "something else"),
        ([START, {"no": "type"}], "something else"),
    ],
)
async def test_a_stream_that_breaks_the_form_is_malformed(events: list[Any], what: str) -> None:
    """It may have cost."""
    with pytest.raises(MalformedAnswer, match=what) as caught:
        await stream_of(*events)

    assert caught.value.may_have_cost


@pytest.mark.parametrize("body", ["", "so sorry", "{}", '{"type": "message"}', "[]", '{"content": [{"text": "x"}]}'])
@pytest.mark.parametrize("door", ["complete", "stream"])
async def test_a_body_that_is_no_message_is_malformed(body: str, door: str) -> None:
    """And the message shows what came instead."""
    with AnthropicServer([web.Response(text=body, content_type="application/json")]) as server:
        async with client(server) as model:
            with pytest.raises(MalformedAnswer) as caught:
                await ask(model, Query("hi"), door)

    assert body[:8] in str(caught.value)


async def test_a_server_that_does_not_stream_is_answered_for() -> None:
    """A whole message in answer to a request for a stream is a stream of one piece."""
    whole = {"type": "message", "content": [{"type": "text", "text": "hi"}], "stop_reason": "end_turn"}
    with AnthropicServer([web.json_response(whole)]) as server:
        async with client(server) as model:
            events, answer = await collect(model.stream(Query("hi")))

    assert events == [TextDelta("hi")]
    assert answer.text == "hi"
    assert answer.usage is None


@pytest.mark.parametrize(
    "usage",
    [
        {"input_tokens": -5, "output_tokens": 1, "cache_read_input_tokens": 10},
        {"input_tokens": 5, "output_tokens": -(10**9)},
        {"input_tokens": 10**30, "output_tokens": 1},
    ],
)
async def test_a_usage_that_cannot_be_is_unknown(usage: dict[str, Any]) -> None:
    """A negative count would pay a budget back, and one beyond 64 bits could not be written to it."""
    whole = {"type": "message", "content": [{"type": "text", "text": "hi"}], "usage": usage}
    with AnthropicServer([web.json_response(whole)]) as server:
        async with client(server, price=PRICE) as model:
            answer = await model.complete(Query("hi"))

    assert answer.text == "hi"
    assert answer.usage is None
    assert answer.cost_usd is None


async def test_arguments_that_are_no_utf8_are_malformed() -> None:
    """They are kept as they came, so that nothing looked at them before."""
    block = b'{"type": "tool_use", "id": "1", "name": "f", "input": {"a": "\xff"}}'
    body = b'{"type": "message", "content": [%b], "stop_reason": "tool_use"}' % block
    with AnthropicServer([web.Response(body=body, content_type="application/json")]) as server:
        async with client(server) as model:
            with pytest.raises(MalformedAnswer):
                await model.complete(Query("hi", tools=(TOOL,)))
