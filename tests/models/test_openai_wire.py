"""The OpenAI wire against real local servers: a scripted one, and llama.cpp's own."""

import asyncio
import base64
import json
import logging
import secrets
import threading
import traceback
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
import xllamacpp
from aiohttp import web
from contracts.chat_model import IMAGE, ChatModelContract, ask, collect
from support.obedient import obedient
from support.openai_server import OpenAIServer
from support.weights import smollm2_path

from nearfar.errors import (
    ConfigError,
    ContextTooLong,
    MalformedAnswer,
    UnsupportedOption,
    UpstreamError,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from nearfar.models.openai_wire import OpenAIWireModel, list_models
from nearfar.types import (
    Answer,
    Message,
    NamedTool,
    Price,
    Query,
    ReasoningDelta,
    ResponseFormat,
    SamplingOptions,
    TextDelta,
    TokenLogprob,
    ToolCall,
    ToolSpec,
    Usage,
)

PRICE = Price(1.0, 2.0, cached_prompt_usd_per_mtok=0.5)
KEY = "sk-very-secret-0123456789"


def client(server: OpenAIServer, **options: Any) -> OpenAIWireModel:
    """A model at the server."""
    return OpenAIWireModel(
        **{"name": "far", "url": server.base_url, "model": "scripted", "placement": "far", "api_key": KEY, **options}
    )


class TestOpenAIWireModel(ChatModelContract):
    """The whole contract, over HTTP."""

    @pytest.fixture
    async def model(self) -> AsyncGenerator[OpenAIWireModel, None]:
        with OpenAIServer([obedient]) as server:
            model = client(server, price=PRICE, supports_grammar=True)
            yield model
            await model.aclose()


class TestOpenAIWireModelThatCanDoLittle(ChatModelContract):
    """What a card rules out is refused before anything is sent."""

    @pytest.fixture
    async def model(self) -> AsyncGenerator[OpenAIWireModel, None]:
        with OpenAIServer([obedient]) as server:
            model = client(
                server,
                supports_logprobs=False,
                supports_tools=False,
                supports_json_schema=False,
                modalities=frozenset({"text"}),
            )
            yield model
            await model.aclose()


LLAMA_KEY = secrets.token_urlsafe(32)


@pytest.fixture(scope="module")
def llama_server() -> Iterator[xllamacpp.Server]:
    """llama.cpp's own HTTP server on the default weights."""
    params = xllamacpp.CommonParams()
    params.model.path = str(smollm2_path())
    params.n_ctx, params.n_parallel = 2 * 2048, 2  # the context is divided by the slots
    params.api_keys = [LLAMA_KEY]
    params.cors_origins = ""
    params.endpoint_slots = params.endpoint_props = params.warmup = False
    params.verbosity = -1
    server = xllamacpp.Server(params)
    yield server
    del server


class TestOpenAIWireModelAtLlamaCpp(ChatModelContract):
    """The whole contract, with a real engine at the other end."""

    @pytest.fixture
    async def model(self, llama_server: xllamacpp.Server) -> AsyncGenerator[OpenAIWireModel, None]:
        model = OpenAIWireModel(
            name="smollm2",
            url=f"{llama_server.listening_address}/v1",
            model="smollm2",
            placement="near",
            api_key=LLAMA_KEY,
            price=PRICE,
            supports_tools=False,  # xllamacpp's server ignores them in silence
            supports_grammar=True,
            modalities=frozenset({"text"}),
        )
        yield model
        await model.aclose()


async def test_llama_cpp_says_what_is_wrong(llama_server: xllamacpp.Server) -> None:
    """A wrong key, a prompt that does not fit and an impossible option are three clear errors."""
    url = f"{llama_server.listening_address}/v1"
    queries = {
        "wrong key": ("wrong" * 7, Query("hi"), UpstreamRejected),
        "too long": (LLAMA_KEY, Query("word " * 5000, sampling=SamplingOptions(max_tokens=4)), ContextTooLong),
        "no schema": (
            LLAMA_KEY,
            Query("hi", response_format=ResponseFormat("json_schema", {"type": "nonsense"})),
            UpstreamRejected,
        ),
    }
    for key, query, kind in queries.values():
        model = OpenAIWireModel(name="smollm2", url=url, model="smollm2", placement="near", api_key=key)
        for door in ("complete", "stream"):
            with pytest.raises(UpstreamError) as caught:
                await ask(model, query, door)
            assert type(caught.value) is kind
        await model.aclose()


async def both(model: OpenAIWireModel, query: Query) -> list[Answer]:
    """The answer by either door."""
    return [await model.complete(query), (await collect(model.stream(query)))[1]]


# --- what is sent ----------------------------------------------------------------------------------------------------


async def test_every_option_is_on_the_wire_by_its_name() -> None:
    """What the query says reaches the server, word for word."""
    tool = ToolSpec("f", "does f", {"type": "object"}, strict=True)
    schema = ResponseFormat("json_schema", {"type": "object"}, name="thing", strict=True)
    sampling = SamplingOptions(
        max_tokens=9,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        seed=3,
        stop=("END", "STOP"),
        presence_penalty=0.1,
        frequency_penalty=0.2,
        logit_bias={"5": -1.0},
        logprobs=True,
        top_logprobs=4,
        extra={"repetition_penalty": 1.1, "chat_template_kwargs": {"enable_thinking": False}},
    )
    query = Query(
        "hi",
        tools=(tool,),
        tool_choice=NamedTool("f"),
        parallel_tool_calls=False,
        response_format=schema,
        sampling=sampling,
    )
    with OpenAIServer([obedient]) as server:
        model = client(server)
        await both(model, query)
        await model.aclose()

    whole, streamed = server.bodies
    assert whole == {
        "model": "scripted",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "seed": 3,
        "stop": ["END", "STOP"],
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "logit_bias": {"5": -1.0},
        "logprobs": True,
        "top_logprobs": 4,
        "tools": [
            {
                "type": "function",
                "function": {"name": "f", "description": "does f", "parameters": {"type": "object"}, "strict": True},
            }
        ],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": False,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "thing", "schema": {"type": "object"}, "strict": True},
        },
        "repetition_penalty": 1.1,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    assert streamed == {**whole, "stream": True, "stream_options": {"include_usage": True}}
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


async def test_messages_keep_their_form() -> None:
    """Images, calls, results, names and fields that nearfar does not know arrive as they were."""
    turns = (
        Message("developer", "Be brief."),
        Message("user", IMAGE, name="ann"),
        Message("assistant", tool_calls=(ToolCall("c1", "f", '{"a":1}'),), extra={"reasoning_content": "hmm"}),
        Message("tool", "42", tool_call_id="c1"),
    )
    with OpenAIServer([obedient]) as server:
        model = client(server)
        await model.complete(Query(turns))
        await model.aclose()

    assert server.bodies[0] == {
        "model": "scripted",
        "messages": [
            {"role": "system", "content": "Be brief."},  # templates other than OpenAI's know no developer
            {"role": "user", "content": [{"type": "text", "text": "What is this?"}, IMAGE[1].wire], "name": "ann"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}],
                "reasoning_content": "hmm",
            },
            {"role": "tool", "content": "42", "tool_call_id": "c1"},
        ],
    }


async def test_the_cards_limit_is_sent_where_the_query_names_none() -> None:
    """And the smaller of both where it does, under the name that the server knows."""
    with OpenAIServer([obedient]) as server:
        model = client(server, max_output_tokens=5, max_tokens_field="max_completion_tokens")
        for asked in (None, 3, 50):
            await model.complete(Query("hi", sampling=SamplingOptions(max_tokens=asked)))
        await model.aclose()

    assert [body["max_completion_tokens"] for body in server.bodies] == [5, 3, 5]


async def test_a_grammar_is_sent_as_llama_cpp_and_vllm_want_it() -> None:
    """Each takes its own field and ignores the other's."""
    with OpenAIServer([obedient]) as server:
        model = client(server, supports_grammar=True)
        await model.complete(Query("hi", response_format=ResponseFormat("grammar", grammar='root ::= "yes"')))
        await model.aclose()

    assert server.bodies[0]["grammar"] == 'root ::= "yes"'
    assert server.bodies[0]["structured_outputs"] == {"grammar": 'root ::= "yes"'}


@pytest.mark.parametrize("extra", [{"n": 2}, {"messages": []}, {"stream": True}, {"max_tokens": 5}])
async def test_extra_fields_cannot_replace_the_querys_own(extra: dict[str, Any]) -> None:
    """Nor ask for several answers, of which all but one would be dropped."""
    with OpenAIServer([obedient]) as server:
        model = client(server)
        with pytest.raises(UnsupportedOption) as caught:
            await model.complete(Query("hi", sampling=SamplingOptions(extra=extra)))

    assert caught.value.param == next(iter(extra))
    assert server.bodies == []


async def test_a_large_prompt_arrives_whole() -> None:
    """Several megabytes go out without a warning and without holding up the loop."""
    prompt = "naïve " * 1_000_000
    with OpenAIServer([obedient]) as server:
        model = client(server)
        await model.complete(Query(prompt))
        await model.aclose()

    assert server.bodies[0]["messages"][0]["content"] == prompt


# --- what comes back -------------------------------------------------------------------------------------------------


async def test_everything_of_an_answer_comes_back() -> None:
    """Reasoning, refusal, parallel calls, log-probabilities, usage, price and unknown fields, by either door."""
    told = Answer(
        "one two",
        "far",
        tool_calls=(ToolCall("c1", "f", '{"a": "ü"}'), ToolCall("c2", "g", "{}")),
        finish_reason="tool_calls",
        reasoning="let me think",
        refusal="not that",
        logprobs=(TokenLogprob("one", -0.1, (("one", -0.1), ("two", -2.5))), TokenLogprob(" two", -0.25)),
        usage=Usage(100, 50, cached_tokens=40, reasoning_tokens=10),
        extra={"service_tier": "flex", "timings": {"predicted_ms": 1.5}},
    )
    with OpenAIServer([told]) as server:
        model = client(server, price=PRICE)
        answers = await both(model, Query("hi", sampling=SamplingOptions(logprobs=True, top_logprobs=2)))
        await model.aclose()

    for answer in answers:
        expected = {"system_fingerprint": "fp_1", "service_tier": "flex", "timings": {"predicted_ms": 1.5}}
        assert answer.cost_usd == pytest.approx((60 * 1.0 + 40 * 0.5 + 50 * 2.0) / 1e6)
        assert answer.latency_s > 0
        assert replace(answer, latency_s=0, cost_usd=None, extra={}) == replace(told, extra={})
        assert answer.extra == expected


async def stream_of(*chunks: dict[str, Any] | str, is_done: bool = True) -> tuple[list[Any], Answer]:
    """What becomes of a stream with these chunks."""
    texts = [chunk if isinstance(chunk, str) else json.dumps(chunk) for chunk in chunks]
    body = "".join(f"data: {text}\n\n" for text in [*texts, *(["[DONE]"] if is_done else [])])
    with OpenAIServer([web.Response(text=body, content_type="text/event-stream")]) as server:
        model = client(server)
        try:
            return await collect(model.stream(Query("hi", sampling=SamplingOptions(logprobs=True))))
        finally:
            await model.aclose()


def delta(finish_reason: str | None = None, **fields: Any) -> dict[str, Any]:
    """One chunk."""
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish_reason}]}


def piece(arguments: str | None = None, **fields: Any) -> dict[str, Any]:
    """A piece of a tool call."""
    function = {"arguments": arguments, **({"name": fields.pop("name")} if "name" in fields else {})}
    return {**fields, "function": function}


async def test_reasoning_by_either_name_is_reasoning() -> None:
    """`reasoning` and `reasoning_content` are two servers' words for one thing."""
    events, answer = await stream_of(delta(reasoning="a"), delta(reasoning_content="b"), delta("stop", content="c"))

    assert events == [ReasoningDelta("a"), ReasoningDelta("b"), TextDelta("c")]
    assert (answer.reasoning, answer.text) == ("ab", "c")


F, G = {"id": "x", "name": "f"}, {"id": "y", "name": "g"}
HABITS = {
    "by index": [[piece("{", index=0, **F), piece("[", index=1, **G)], [piece("}", index=0), piece("]", index=1)]],
    "all numbered 0": [[piece("{}", index=0, **F)], [piece("[]", index=0, **G)]],
    "no index": [[piece("{", **F)], [piece("}")], [piece("[]", **G)]],
    "no index, at once": [[piece("{}", **F), piece("[]", **G)]],
    "counted from 1": [[piece("{}", index=1, **F)], [piece("[]", index=2, **G)]],
    "id with every piece": [[piece("{", index=0, **F)], [piece("}", index=0, id="x")], [piece("[]", index=1, **G)]],
    "empty id later": [[piece("{", index=0, **F)], [piece("}", index=0, id="")], [piece("[]", index=1, **G)]],
}


@pytest.mark.parametrize("chunks", HABITS.values(), ids=HABITS)
async def test_tool_calls_are_put_together_whatever_the_servers_habit(chunks: list[list[dict[str, Any]]]) -> None:
    """Each call gets its own pieces, and is numbered from 0."""
    events, answer = await stream_of(*(delta(tool_calls=chunk) for chunk in chunks), delta("tool_calls"))

    assert answer.tool_calls == (ToolCall("x", "f", "{}"), ToolCall("y", "g", "[]"))
    assert {event.index for event in events} == {0, 1}


async def test_a_call_without_an_id_gets_one() -> None:
    """The same in the events as in the answer, and another one for each call."""
    events, answer = await stream_of(delta("stop", tool_calls=[piece("{}", name="f"), piece("{}", name="g")]))

    assert [event.id for event in events] == [call.id for call in answer.tool_calls]
    assert len({call.id for call in answer.tool_calls}) == 2
    assert answer.finish_reason == "tool_calls"  # though OpenAI says "stop" of a call that was forced


async def test_a_token_without_text_keeps_its_logprob() -> None:
    """Half a character has a probability too."""
    chunk = delta(content="")
    chunk["choices"][0]["logprobs"] = {"content": [{"token": "\ufffd", "logprob": -1}]}

    events, answer = await stream_of(chunk, delta("stop", content="ü"))

    assert events == [TextDelta("", (TokenLogprob("\ufffd", -1.0),)), TextDelta("ü")]
    assert answer.logprobs == (TokenLogprob("\ufffd", -1.0),)


async def test_unknown_fields_of_a_stream_are_kept() -> None:
    """The body's at the top, the message's and the choice's under their names; padding and empty ones are not."""
    first = {**delta(annotations=[{"url": "a"}]), "obfuscation": "xx", "provider": "p", "nothing": None}
    last = delta("stop", annotations=[{"url": "b"}])
    last["choices"][0]["stop_reason"] = 128009

    _, answer = await stream_of(first, delta(content="hi"), last)

    assert answer.extra == {
        "provider": "p",
        "message": {"annotations": [{"url": "a"}, {"url": "b"}]},
        "choice": {"stop_reason": 128009},
    }


async def test_what_stands_beside_a_text_is_not_lost() -> None:
    """Chunks that are a text alone are read many at once; those that are more, between them, are read whole."""
    usage = {"prompt_tokens": 3, "completion_tokens": 4}
    events, answer = await stream_of(
        delta(role="assistant", content=""),
        delta(content="a"),
        delta(content="b", tool_calls=None),
        {"choices": [{"index": 1, "delta": {"content": "another choice"}}]},
        delta(content="c", reasoning="so"),
        delta(content="d"),
        {**delta(content="e"), "usage": usage},
        delta("length", content="f"),
    )

    assert answer.text == "abcdef" == "".join(event.text for event in events if isinstance(event, TextDelta))
    assert answer.reasoning == "so"
    assert answer.usage == Usage(3, 4)
    assert answer.finish_reason == "length"


async def test_an_error_behind_texts_comes_after_them() -> None:
    """What was said before it is given out first."""
    body = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\ndata: {"error":{"message":"full"}}\n\n'
    with OpenAIServer([web.Response(body=body, content_type="text/event-stream")]) as server:
        model = client(server)
        events = model.stream(Query("hi"))
        assert await anext(events) == TextDelta("a")
        with pytest.raises(UpstreamError, match="full"):
            await anext(events)
        await model.aclose()


async def test_an_unknown_finish_reason_is_kept_and_means_stop() -> None:
    """Servers invent some."""
    _, answer = await stream_of(delta(content="hi"), delta("eos"))

    assert answer.finish_reason == "stop"
    assert answer.extra["finish_reason"] == "eos"


async def test_a_stream_may_end_without_done_once_it_has_finished() -> None:
    """A finish reason says that the answer is whole."""
    _, answer = await stream_of(delta(content="hi"), delta("stop"), is_done=False)

    assert answer.text == "hi"
    assert answer.usage is None
    assert answer.cost_usd is None


async def test_other_choices_and_keep_alives_are_passed_over() -> None:
    """So are chunks with no choice at all, as Azure sends first."""
    other = delta(content="no")
    other["choices"][0]["index"] = 1

    _, answer = await stream_of({"choices": []}, {"type": "keep-alive"}, other, delta("stop", content="yes"))

    assert answer.text == "yes"


async def test_a_server_that_does_not_stream_is_answered_for() -> None:
    """A whole completion in answer to a request for a stream is a stream of one piece."""
    whole = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "usage": None}
    with OpenAIServer([web.json_response(whole)]) as server:
        model = client(server)
        events, answer = await collect(model.stream(Query("hi")))
        await model.aclose()

    assert events == [TextDelta("hi")]
    assert answer.text == "hi"


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": -(10**9), "completion_tokens": 5},
        {"prompt_tokens": 5, "completion_tokens": -1},
        {"prompt_tokens": 10**30, "completion_tokens": 5},
        {"prompt_tokens": 5, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": -5}},
    ],
)
async def test_a_usage_that_cannot_be_is_unknown(usage: dict[str, Any]) -> None:
    """A negative count would pay a budget back, and one beyond 64 bits could not be written to it."""
    whole = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "usage": usage}
    with OpenAIServer([web.json_response(whole)]) as server:
        model = client(server, price=PRICE)
        answer = await model.complete(Query("hi"))
        await model.aclose()

    assert answer.text == "hi"
    assert answer.usage is None
    assert answer.cost_usd is None


async def test_no_more_of_a_prompt_is_cached_than_it_has() -> None:
    """Else the rest of the prompt would cost less than nothing."""
    usage = {"prompt_tokens": 10, "completion_tokens": 0, "prompt_tokens_details": {"cached_tokens": 10**6}}

    _, answer = await stream_of(delta("stop", content="hi"), {"choices": [], "usage": usage})

    assert answer.usage == Usage(10, 0, cached_tokens=10)


async def test_fields_named_like_our_places_for_others_are_passed_over() -> None:
    """A body's own `message` or `choice` is not taken for what stood in its message or choice."""
    whole = {"choices": [{"message": {"content": "hi", "mood": "fine"}}], "message": "ok", "choice": 5}
    with OpenAIServer([web.json_response(whole)]) as server:
        model = client(server)
        answer = await model.complete(Query("hi"))
        await model.aclose()

    assert answer.extra == {"message": {"mood": "fine"}}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "hi", "refusal": None},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "x", "type": "function", "function": {"name": "f"}}],
        },
        {"content": "hi", "reasoning_content": "so"},
    ],
    ids=["text", "call", "reasoning"],
)
async def test_a_whole_answer_of_known_fields_is_read_as_any_other(message: dict[str, Any]) -> None:
    """One that has nothing to keep besides is decoded at once; a field of its own makes it take the other way."""
    token = {"token": "hi", "logprob": -0.5, "bytes": [104, 105], "top_logprobs": []}
    known = {
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": message, "logprobs": {"content": [token]}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4, "cost": 0.1},
    }
    with OpenAIServer([web.json_response(known), web.json_response({**known, "provider": "p"})]) as server:
        model = client(server)
        query = Query("hi", sampling=SamplingOptions(logprobs=True))
        one, other = [await model.complete(query) for _ in range(2)]
        await model.aclose()

    assert (one.extra, other.extra) == ({}, {"provider": "p"})
    assert replace(one, latency_s=0, extra={}) == replace(other, latency_s=0, extra={})


async def test_models_are_listed() -> None:
    """In the server's order, with the key."""
    with OpenAIServer([obedient]) as server:
        assert await list_models(server.base_url, KEY) == ["small", "large"]
        assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
        with pytest.raises(UpstreamRejected, match="404"):
            await list_models(f"{server.url}/v2")


# --- errors ----------------------------------------------------------------------------------------------------------


def error(status: int, message: str = "", headers: dict[str, str] | None = None, **fields: Any) -> web.Response:
    """A response in OpenAI's error shape."""
    return web.json_response({"error": {"message": message, **fields}}, status=status, headers=headers)


VLLM_TOO_LONG = "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens"
STATUSES = {
    "bad request": (error(400, "temperature must be at most 2"), UpstreamRejected, 400),
    "context, by code": (error(400, "no", code="context_length_exceeded"), ContextTooLong, 400),
    "context, vLLM": (error(400, VLLM_TOO_LONG), ContextTooLong, 400),
    "context, llama.cpp": (error(400, "the request exceeds", type="exceed_context_size_error"), ContextTooLong, 400),
    "unauthorised": (error(401, "no"), UpstreamRejected, 401),
    "payment": (error(402, "no"), UpstreamRejected, 402),
    "forbidden": (error(403, "no"), UpstreamRejected, 403),
    "not found": (error(404, "no such model"), UpstreamRejected, 404),
    "request timeout": (error(408), UpstreamTimeout, 408),
    "conflict": (error(409), UpstreamUnavailable, 409),
    "too large": (error(413), UpstreamRejected, 413),
    "unprocessable": (web.json_response({"detail": [{"msg": "x"}]}, status=422), UpstreamRejected, 422),
    "too early": (error(425), UpstreamUnavailable, 425),
    "rate": (error(429, "slow down"), UpstreamRateLimited, 429),
    "no credit": (error(429, "pay", code="insufficient_quota"), UpstreamRejected, 429),
    "server error": (error(500), UpstreamUnavailable, 500),
    "bad gateway, html": (web.Response(status=502, text="<html>", content_type="text/html"), UpstreamUnavailable, 502),
    "unavailable": (error(503), UpstreamUnavailable, 503),
    "gateway timeout": (error(504), UpstreamUnavailable, 504),
    "overloaded": (error(529), UpstreamUnavailable, 529),
    "redirect": (web.Response(status=307, headers={"Location": "http://elsewhere/"}), UpstreamRejected, 307),
    "no content": (web.Response(status=204), MalformedAnswer, 200),
}  # fmt: skip


@pytest.mark.parametrize("door", ["complete", "stream"])
@pytest.mark.parametrize("name", STATUSES)
async def test_every_status_has_its_error(name: str, door: str) -> None:
    """With the model's name, the status and a fix; nothing was answered, so nothing can have cost."""
    response, kind, status = STATUSES[name]
    clone = web.Response(status=response.status, body=response.body, headers=response.headers)
    exc = await failure(clone, door)

    assert type(exc) is kind
    assert exc.model == "far"
    assert exc.status == status
    assert exc.may_have_cost is (kind is MalformedAnswer)
    assert "'far' at http://127.0.0.1" in str(exc)
    assert "\n" not in str(exc)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, (7, 7)),
        ({"Retry-After": "0.5"}, (0.5, 0.5)),
        ({"Retry-After": "-3"}, (0, 0)),
        ({"Retry-After": "Fri, 31 Dec 2199 23:59:59 GMT"}, (1e9, 1e10)),
        ({"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}, (0, 0)),
        ({"retry-after-ms": "250", "Retry-After": "1"}, (0.25, 0.25)),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "inf"}, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_read(status: int, headers: dict[str, str], seconds: tuple[float, float] | None) -> None:
    """In seconds or as a date, and ignored where it makes no sense."""
    exc = await failure(error(status, headers=headers), "complete")

    if seconds is None:
        assert exc.retry_after_s is None
    else:
        assert exc.retry_after_s is not None
        assert seconds[0] <= exc.retry_after_s <= seconds[1]


REPORTS = {
    "code in numbers": ({"message": "x", "code": 429}, UpstreamRateLimited, 429),
    "rate limit": ({"message": "x", "type": "rate_limit_error"}, UpstreamRateLimited, 429),
    "overloaded": ({"message": "x", "type": "overloaded_error"}, UpstreamUnavailable, 503),
    "context": ({"message": VLLM_TOO_LONG, "type": "invalid_request_error"}, ContextTooLong, 400),
    "invalid": ({"message": "x", "type": "invalid_request_error"}, UpstreamRejected, 400),
    "a text": ("boom", UpstreamUnavailable, 500),
    "nothing known": ({"message": "boom"}, UpstreamUnavailable, 500),
}


@pytest.mark.parametrize("form", ["body", "event", "late event"])
@pytest.mark.parametrize("name", REPORTS)
async def test_an_error_reported_with_200_is_an_error(name: str, form: str) -> None:
    """In the body, as the first event or after half the answer; it may have cost."""
    reported, kind, status = REPORTS[name]
    text = json.dumps({"error": reported})
    if form == "body":
        exc = await failure(web.Response(text=text, content_type="application/json"), "complete")
    else:
        before = f"data: {json.dumps(delta(content='hi'))}\n\n" if form == "late event" else ""
        body = f"{before}data: {text}\n\n"
        exc = await failure(web.Response(text=body, content_type="text/event-stream"), "stream")

    assert type(exc) is kind
    assert exc.status == status
    assert exc.may_have_cost


async def failure(response: web.Response, door: str, **options: Any) -> UpstreamError:
    """The error that the response becomes."""
    with OpenAIServer([response]) as server:
        model = client(server, **options)
        with pytest.raises(UpstreamError) as caught:
            await ask(model, Query("hi"), door)
        await model.aclose()
        return caught.value


BROKEN = {
    "no JSON": "so sorry",
    "half JSON": '{"choices": [{"mess',
    "another type": "[]",
    "wrong types": '{"choices": [{"message": {"content": 7}}]}',
    "no choices": '{"choices": []}',
    "nothing": "{}",
    "empty": "",
    "half a character": '{"choices": [{"message": {"content": "\\ud83d"}}]}',
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_body_that_is_no_completion_is_malformed(name: str) -> None:
    """And the message shows what came instead."""
    exc = await failure(web.Response(text=BROKEN[name], content_type="application/json"), "complete")

    assert type(exc) is MalformedAnswer
    assert exc.may_have_cost
    assert BROKEN[name][:10] in str(exc)


@pytest.mark.parametrize("name", [name for name in BROKEN if name not in ("nothing", "no choices", "empty")])
async def test_an_event_that_is_no_chunk_is_malformed(name: str) -> None:
    """Even after a good one."""
    with pytest.raises(MalformedAnswer) as caught:
        await stream_of(delta(content="hi"), BROKEN[name].replace("message", "delta"), delta("stop"))

    assert caught.value.may_have_cost


async def test_a_stream_that_stops_short_is_malformed() -> None:
    """Neither a finish reason nor [DONE]: the answer may be half of one."""
    with pytest.raises(MalformedAnswer, match="in the middle") as caught:
        await stream_of(delta(content="hi"), is_done=False)

    assert caught.value.may_have_cost


@pytest.mark.parametrize("chunks", [(), ({"choices": []},)])
async def test_a_stream_without_an_answer_is_malformed(chunks: tuple[dict[str, Any], ...]) -> None:
    """Even where it says that it is done."""
    with pytest.raises(MalformedAnswer, match="without an answer"):
        await stream_of(*chunks)


async def test_a_web_page_is_no_answer() -> None:
    """A proxy's page in place of the model is said to be one."""
    page = web.Response(text="<html>Please log in</html>", content_type="text/html")

    assert "text/html" in str(await failure(page, "complete"))
    page = web.Response(text="<html>Please log in</html>", content_type="text/html")
    assert "text/html" in str(await failure(page, "stream"))


async def test_an_endless_body_is_refused(tmp_path: Any) -> None:
    """Memory is bounded."""
    body = b" " * (33 * 1024 * 1024)

    exc = await failure(web.Response(body=body, content_type="application/json"), "complete")

    assert type(exc) is MalformedAnswer
    assert "33554432 bytes" in str(exc)


# --- secrets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "response",
    [
        error(401, f"Incorrect API key provided: {KEY} and {'x' * 180}{KEY}"),
        error(400, f"Bearer {KEY} token-of-the-house"),
        web.Response(text=f"<{KEY}>", content_type="text/html"),
        web.Response(status=302, headers={"Location": f"http://elsewhere/?key={KEY}"}),
        web.json_response({"error": f"{KEY}"}),
    ],
)
async def test_a_key_never_shows(response: web.Response, caplog: pytest.LogCaptureFixture) -> None:
    """Not in messages, not in tracebacks, not in reprs, not in logs, even where the server echoes it."""
    caplog.set_level(logging.DEBUG)
    clone = web.Response(status=response.status, body=response.body, headers=response.headers)

    exc = await failure(clone, "complete", headers={"X-House": "token-of-the-house"})

    shown = "".join(traceback.format_exception(exc)) + repr(exc) + repr(exc.__dict__) + caplog.text
    assert KEY not in shown
    assert KEY[:12] not in shown
    assert "token-of-the-house" not in shown


async def test_a_server_that_speaks_no_http_sees_no_key_shown() -> None:
    """The exception of a broken handshake holds the request's headers; it is not chained."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    model = OpenAIWireModel(name="far", url=f"http://127.0.0.1:{port}", model="m", placement="far", api_key=KEY)
    async with server:
        with pytest.raises(MalformedAnswer, match="does not answer in HTTP") as caught:
            await model.complete(Query("hi"))
        await model.aclose()

    assert caught.value.__cause__ is None
    assert KEY not in "".join(traceback.format_exception(caught.value))
    assert KEY not in repr(model)


@pytest.mark.parametrize(
    "options",
    [
        {"url": "localhost:8000/v1"},
        {"url": "ftp://host/v1"},
        {"url": ""},
        {"url": "http://user:hunter22@host/v1"},
        {"api_key": "hunter22\n"},
        {"api_key": " hunter22"},
        {"headers": {"X-Key": "hunter22\r\nX-Evil: 1"}},
    ],
)
def test_what_cannot_be_used_is_refused_at_once(options: dict[str, Any]) -> None:
    """Before any request, and without the secret."""
    with pytest.raises(ConfigError, match=r"\[models.far\]") as caught:
        OpenAIWireModel(**{"name": "far", "url": "http://host/v1", "model": "m", "placement": "far", **options})

    assert "hunter22" not in str(caught.value)


async def test_redirects_are_not_followed() -> None:
    """The key stays with the server that it was given to."""
    with OpenAIServer([obedient]) as other:
        moved = web.Response(status=308, headers={"Location": f"{other.base_url}/chat/completions"})
        exc = await failure(moved, "complete")

    assert other.headers == []
    assert other.base_url in str(exc)


# --- connections -----------------------------------------------------------------------------------------------------


async def test_connections_are_used_again() -> None:
    """One after the other, streamed or not, all queries share one connection; an error does not close it."""
    with OpenAIServer([obedient, obedient, error(400, "no"), obedient]) as server:
        model = client(server)
        await both(model, Query("hi"))
        with pytest.raises(UpstreamRejected):
            await model.complete(Query("hi"))
        await both(model, Query("hi"))
        await model.aclose()

    assert server.num_connections == 1


async def until(holds: Callable[[], bool]) -> None:
    """Waits for what another thread does; the test's own time limit ends it."""
    while not holds():  # noqa: ASYNC110 - the other thread has no event of this loop
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("door", ["complete", "stream"])
async def test_a_call_that_is_given_up_ends_at_the_server(door: str) -> None:
    """The upstream stops working, and charging, when nobody listens any more."""
    with OpenAIServer([obedient], delay_s=0.05) as server:
        model = client(server)
        if door == "complete":
            server.delay_s = 3600
            call = asyncio.create_task(model.complete(Query("hi")))
            await until(lambda: server.num_open == 1)
            call.cancel()
            await asyncio.wait([call])
        else:
            async with aclosing(model.stream(Query("hi"))) as stream:
                await anext(stream)
                server.delay_s = 3600
                assert server.num_open == 1
        await until(lambda: server.num_open == 0)
        await model.aclose()


def test_a_model_outlives_an_event_loop() -> None:
    """Each loop gets connections of its own, as under a blocking facade."""

    async def talk(model: OpenAIWireModel) -> str:
        answer = await model.complete(Query("hi"))
        await model.aclose()
        return answer.text

    with OpenAIServer([obedient]) as server:
        model = client(server)

        assert asyncio.run(talk(model)) == asyncio.run(talk(model))


async def test_one_model_serves_two_threads() -> None:
    """Each with its event loop, at the same time; closing it in one closes it in both."""
    with OpenAIServer([obedient]) as server:
        model = client(server)
        other = asyncio.new_event_loop()
        thread = threading.Thread(target=other.run_forever)
        thread.start()
        there = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(model.complete(Query("hi")), other))
        here, there_too = await asyncio.gather(model.complete(Query("hi")), there)
        await model.aclose()
        other.call_soon_threadsafe(other.stop)
        thread.join()
        other.close()

    assert here.text == there_too.text
    assert server.num_connections == 2


def test_the_pixel_of_the_contract_is_an_image() -> None:
    """Else the image test would prove nothing."""
    assert base64.b64decode(IMAGE[1].wire["image_url"]["url"].partition(",")[2]).startswith(b"\x89PNG")
