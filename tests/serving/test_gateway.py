"""The gateway at a real socket: pages, replies, headers, errors and who may ask."""

import asyncio
import json
import re

import httpx2
import pytest
from support.gateway import MemoryLog, gateway, router_of

from nearfar.errors import (
    BudgetExceeded,
    CircuitOpen,
    ContextTooLong,
    MalformedAnswer,
    ModelLoadError,
    UnsupportedOption,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from nearfar.router.router import Router
from nearfar.router.scorers import MeanProbability
from nearfar.serving.gateway.keys import Key, hash_key, new_key
from nearfar.testing import ScriptedModel
from nearfar.types import FREE, Answer, ModelCard, Price, StreamEnd, TextDelta, ToolCall, Usage

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
HI = {"model": "auto", "messages": [{"role": "user", "content": "Hi"}]}


async def ask(url, path=CHAT, body=None, **options):
    async with httpx2.AsyncClient(base_url=url, verify=False) as client:
        return await client.post(path, json=body or HI, **options)


async def get(url, path, method="GET", **options):
    async with httpx2.AsyncClient(base_url=url, verify=False) as client:
        return await client.request(method, path, **options)


def events_of(text):
    """The data of server-sent events, parsed; the end mark as it is."""
    found = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    return [data if data == "[DONE]" else json.loads(data) for data in found]


# --- answers ---------------------------------------------------------------------------------------------------------


async def test_an_answer_says_how_it_was_decided():
    """Headers and the `nearfar` field name the decision that is in the log."""
    log = MemoryLog()
    near = ScriptedModel(["Paris"], name="near", confidence=0.95)
    far = ScriptedModel(["Lyon"], name="far")

    async with gateway(router_of(near, far, log=log, scorer=MeanProbability(), threshold=0.9)) as server:
        reply = await ask(server.url)

    (decision,) = log.decisions
    about = reply.json()["nearfar"]
    assert reply.status_code == 200
    assert reply.json()["choices"][0]["message"]["content"] == "Paris"
    assert reply.headers["x-nearfar-decision-id"] == reply.headers["x-request-id"] == decision.id
    assert reply.headers["x-nearfar-tier"] == "near"
    assert reply.headers["x-nearfar-score"] == "0.9500"
    assert (about["decision_id"], about["tier"], about["status"]) == (decision.id, "near", "answered")
    assert about["score"] == pytest.approx(0.95)
    assert decision.door == "http"
    assert reply.json()["usage"]["total_tokens"] == 2


async def test_a_stream_says_it_too():
    """The commit's facts are in the headers, the whole decision in the last chunk, and the end mark comes last."""
    log = MemoryLog()
    near = ScriptedModel(["One two three"], name="near", confidence=0.95)
    body = {**HI, "stream": True, "stream_options": {"include_usage": True}}

    async with gateway(router_of(near, log=log, scorer=MeanProbability())) as server:
        reply = await ask(server.url, body=body)

    (decision,) = log.decisions
    *chunks, done = events_of(reply.text)
    deltas = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"]]
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.headers["x-nearfar-decision-id"] == decision.id
    assert reply.headers["x-nearfar-tier"] == "near"
    assert done == "[DONE]"
    assert "".join(deltas) == "One two three"
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 3
    assert chunks[-1]["nearfar"]["decision_id"] == decision.id
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert len({chunk["id"] for chunk in chunks}) == 1


async def test_a_stream_without_usage_ends_in_the_decision_all_the_same():
    """Nobody asked for usage, so no chunk has it, and the last one still says how it was decided."""
    async with gateway(router_of(ScriptedModel(["Yes"]))) as server:
        reply = await ask(server.url, body={**HI, "stream": True})

    *chunks, done = events_of(reply.text)
    assert done == "[DONE]"
    assert "usage" not in chunks[-1]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["nearfar"]["status"] == "answered"


async def test_responses_streams_end_in_the_whole_response():
    """Typed events with rising numbers, no end mark, and the decision in the last."""
    async with gateway(router_of(ScriptedModel(["One two"]))) as server:
        reply = await ask(server.url, RESPONSES, {"model": "auto", "input": "Hi", "stream": True})

    events = events_of(reply.text)
    assert [event["type"] for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event["sequence_number"] for event in events] == list(range(10))
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "One two"
    assert events[-1]["response"]["nearfar"]["decision_id"] == reply.headers["x-nearfar-decision-id"]
    assert events[0]["response"]["id"] == events[-1]["response"]["id"]


async def test_both_forms_of_a_response_are_the_same():
    """Text after reasoning, then two tool calls: streamed or not, the output is alike."""
    calls = (ToolCall("c1", "f", '{"a": 1}'), ToolCall("c2", "g", "{}"))
    answer = Answer("Both.", tool_calls=calls, reasoning="Let me see", finish_reason="tool_calls", usage=Usage(3, 4))
    body = {"model": "auto", "input": "Hi"}

    async with gateway(router_of(ScriptedModel([answer]))) as server:
        whole = (await ask(server.url, RESPONSES, body)).json()
        streamed = events_of((await ask(server.url, RESPONSES, {**body, "stream": True})).text)[-1]["response"]

    def without_ids(items):
        return [{key: value for key, value in item.items() if key != "id"} for item in items]

    assert [item["type"] for item in whole["output"]] == ["reasoning", "message", "function_call", "function_call"]
    assert without_ids(streamed["output"]) == without_ids(whole["output"])
    assert streamed["usage"] == whole["usage"]


async def test_abstention_is_an_answer():
    """Nobody is sure enough and the query prefers silence: a completion that says so, not an error."""
    unsure = ScriptedModel(["Lyon?"], confidence=0.2)
    body = {**HI, "nearfar": {"when_unsure": "abstain"}}

    async with gateway(router_of(unsure, scorer=MeanProbability(), threshold=0.9)) as server:
        reply = await ask(server.url, body=body)
        streamed = await ask(server.url, body={**body, "stream": True})

    assert reply.status_code == 200
    assert reply.json()["choices"][0]["message"]["content"] == "I don't know."
    assert reply.json()["choices"][0]["finish_reason"] == "stop"
    assert reply.json()["nearfar"]["status"] == "abstained"
    assert events_of(streamed.text)[-2]["nearfar"]["status"] == "abstained"


async def test_fields_that_an_upstream_adds_come_through():
    """What stood in its body, message and choice stands there again, streamed or not."""
    extra = {"system_fingerprint": "fp", "message": {"annotations": [{"a": 1}]}, "choice": {"stop_reason": 7}}
    answer = Answer("Yes", extra=extra)

    async with gateway(router_of(ScriptedModel([answer]))) as server:
        body = (await ask(server.url)).json()
        last = events_of((await ask(server.url, body={**HI, "stream": True})).text)[-2]

    assert body["system_fingerprint"] == last["system_fingerprint"] == "fp"
    assert body["choices"][0]["stop_reason"] == last["choices"][0]["stop_reason"] == 7
    assert body["choices"][0]["message"]["annotations"] == last["choices"][0]["delta"]["annotations"] == [{"a": 1}]


async def test_names_cannot_inject_headers():
    """A tier's name that holds a line break is quoted, and a model's name is only ever JSON."""
    router = router_of(ScriptedModel(["Hi"]), name="near\r\nx-evil: 1 ü")

    async with gateway(router) as server:
        reply = await ask(server.url)
        unknown = await ask(server.url, body={**HI, "model": "x\r\nx-evil: 1"})

    assert reply.status_code == 200
    assert "x-evil" not in reply.headers
    assert reply.headers["x-nearfar-tier"] == "near%0D%0Ax-evil: 1 %C3%BC"
    assert unknown.status_code == 404
    assert "x-evil" not in unknown.headers


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "code", "should_retry"),
    [
        (UpstreamRateLimited("slow down", model="m", retry_after_s=7.2), 429, "rate_limit_exceeded", None),
        (ContextTooLong("too long", model="m", status=400), 400, "context_length_exceeded", None),
        (UpstreamRejected("no", model="m", status=422), 400, "upstream_rejected", None),
        (UpstreamRejected("bad key", model="m", status=401), 502, "upstream_error", "false"),
        (UpstreamTimeout("late", model="m"), 504, "upstream_timeout", "false"),
        (CircuitOpen("open", model="m", retry_after_s=30), 503, "model_unavailable", None),
        (ModelLoadError("no weights", model="m"), 503, "model_unavailable", None),
        (UpstreamUnavailable("refused", model="m", status=500), 502, "upstream_error", "false"),
        (MalformedAnswer("garbage", model="m"), 502, "upstream_malformed", "false"),
        (BudgetExceeded("spent"), 402, "insufficient_quota", None),
        (UnsupportedOption("no such thing", param="seed"), 400, "unsupported_parameter", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_is_an_error_with_the_right_status(error, status, code, should_retry, stream):
    """Whole or streamed, before anything was sent: OpenAI's shape, and the decision by its id."""
    log = MemoryLog()

    async with gateway(router_of(ScriptedModel([error]), log=log)) as server:
        reply = await ask(server.url, body={**HI, "stream": stream})

    (decision,) = log.decisions
    problem = reply.json()["error"]
    assert (reply.status_code, problem["code"]) == (status, code)
    assert set(problem) == {"message", "type", "param", "code", "decision_id"}
    assert problem["decision_id"] == reply.headers["x-nearfar-decision-id"] == decision.id
    assert reply.headers.get("x-should-retry") == should_retry
    retry_after_s = getattr(error, "retry_after_s", None)
    assert reply.headers.get("retry-after") == (None if retry_after_s is None else str(-int(-retry_after_s // 1)))


@pytest.mark.parametrize(
    ("card", "fields", "status", "code", "param"),
    [
        ({}, {"guided_choice": ["a"]}, 400, "unsupported_parameter", "guided_choice"),
        ({}, {"logprobs": True}, 400, "unsupported_parameter", "logprobs"),
        (
            {},
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            400,
            "unsupported_parameter",
            "tools",
        ),
        ({}, {"response_format": {"type": "json_object"}}, 400, "unsupported_parameter", "response_format"),
        (
            {},
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            400,
            "unsupported_content",
            "messages",
        ),
        (
            {"context_window": 10},
            {"messages": [{"role": "user", "content": "x" * 900}]},
            400,
            "context_length_exceeded",
            "messages",
        ),
        ({"placement": "far"}, {"nearfar": {"privacy": "near"}}, 400, "privacy", "nearfar.privacy"),
        ({"price": None}, {"nearfar": {"budget_usd": 1}}, 402, "insufficient_quota", None),
        (
            {"price": Price(10, 10)},
            {"max_tokens": 100, "nearfar": {"budget_usd": 1e-6}},
            402,
            "insufficient_quota",
            None,
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_no_tier_may_or_can_take_is_refused_by_name(card, fields, status, code, param, stream):
    """A refusal is an error that names the field, with the decision that says why."""
    model = ScriptedModel(["Hi"], card=ModelCard(**{"name": "plain", "placement": "near", "price": FREE, **card}))

    async with gateway(router_of(model)) as server:
        reply = await ask(server.url, body={**HI, **fields, "stream": stream})

    problem = reply.json()["error"]
    assert (reply.status_code, problem["code"], problem["param"]) == (status, code, param)
    assert problem["decision_id"] == reply.headers["x-nearfar-decision-id"]
    assert model.queries == []


async def test_a_responses_refusal_names_its_own_fields():
    """The same refusal on the other wire names that wire's field."""
    model = ScriptedModel(["Hi"], card=ModelCard("plain", "near"))
    body = {"model": "auto", "input": "Hi", "text": {"format": {"type": "json_object"}}}

    async with gateway(router_of(model)) as server:
        reply = await ask(server.url, RESPONSES, body)

    assert reply.json()["error"]["param"] == "text.format"


class Breaking(ScriptedModel):
    """Says two words, then breaks."""

    async def stream(self, query):
        yield TextDelta("One")
        yield TextDelta(" two")
        raise UpstreamUnavailable("the wire sk-abcdefghijklmnopqrst broke", model="breaking")


@pytest.mark.parametrize(("path", "field"), [(CHAT, "messages"), (RESPONSES, "input")])
async def test_a_stream_that_breaks_says_so_and_has_no_end_mark(path, field):
    """The status is out, so the error is an event; nothing pretends that the answer is whole; no key shows."""
    body = {"model": "auto", field: [{"role": "user", "content": "Hi"}], "stream": True}

    async with gateway(router_of(Breaking(["unused"]))) as server:
        reply = await ask(server.url, path, body)

    text = reply.text
    assert reply.status_code == 200
    assert "One" in text
    assert "event: error" in text
    assert "upstream_error" in text
    assert "[DONE]" not in text
    assert "response.completed" not in text
    assert "sk-abc" not in text


async def test_an_unexpected_fault_shows_nothing_of_itself(caplog):
    """A bug is a 500 that tells no secret; the log has the traceback, scrubbed."""
    secret = "sk-abcdefghijklmnopqrst"

    async with gateway(router_of(ScriptedModel([ValueError(f"boom {secret}")]))) as server:
        reply = await ask(server.url)

    assert reply.status_code == 500
    assert reply.json()["error"]["code"] == "internal_error"
    assert "boom" not in reply.text
    assert "boom ***" in caplog.text
    assert secret not in caplog.text


async def test_a_deadline_is_kept():
    """A model that takes too long is a 504 inside the query's own limit, and the decision says so."""
    log = MemoryLog()

    async with gateway(router_of(ScriptedModel(["Hi"], delay_s=60), log=log)) as server:
        reply = await ask(server.url, body={**HI, "nearfar": {"deadline_s": 0.05}})

    assert reply.status_code == 504
    assert [decision.status for decision in log.decisions] == ["failed"]


async def test_the_gateways_own_limit_is_a_deadline_too():
    """A query without one gets the gateway's."""
    async with gateway(router_of(ScriptedModel(["Hi"], delay_s=60)), request_timeout_s=0.05) as server:
        replies = [await ask(server.url, body={**HI, "stream": stream}) for stream in (False, True)]

    assert [reply.status_code for reply in replies] == [504, 504]


class Held(ScriptedModel):
    """Answers once it is let."""

    let: asyncio.Event

    async def complete(self, query):
        await self.let.wait()
        return await super().complete(query)


async def test_more_than_the_limit_are_told_to_come_back():
    """Requests beyond the limit get 503 and Retry-After at once; pages stay open, and so does the door afterwards."""
    model = Held(["Hi"])
    model.let = asyncio.Event()

    async with gateway(router_of(model), max_concurrency=2) as server:
        asking = [asyncio.create_task(ask(server.url)) for _ in range(6)]
        for _ in range(4):
            await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
            busy = {task for task in asking if task.done()}
            asking = [task for task in asking if task not in busy]
            assert all(task.result().status_code == 503 for task in busy)
            assert all(task.result().headers["retry-after"] == "1" for task in busy)
            if len(asking) == 2:
                break
        page = await get(server.url, "/health/live")
        model.let.set()
        answered = [(await task).status_code for task in asking]
        after = await ask(server.url)

    assert answered == [200, 200]
    assert (page.status_code, after.status_code) == (200, 200)


# --- who may ask -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/models", "/health/ready", "/metrics", "/v1/nothing", CHAT])
async def test_without_a_key_nothing_is_shown(path):
    """Every path but the liveness probe asks for the key, whether or not it exists."""
    key = new_key()

    async with gateway(router_of(ScriptedModel(["Hi"])), keys=(Key(hash_key(key)),)) as server:
        stranger = await get(server.url, path)
        friend = await get(server.url, path, headers={"authorization": f"Bearer {key}"})
        probe = await get(server.url, "/health/live")

    assert stranger.status_code == 401
    assert stranger.json()["error"]["code"] == "invalid_api_key"
    assert stranger.headers["www-authenticate"] == "Bearer"
    assert friend.status_code != 401
    assert probe.status_code == 200


@pytest.mark.parametrize(
    "path", ["/health/live/../../v1/models", "//v1/models", "/v1/models/%2e%2e", "/health/live%00"]
)
async def test_no_spelling_of_a_path_gets_past_the_key(path):
    """The path that is authorised is the path that is served."""
    async with gateway(router_of(ScriptedModel(["Hi"])), keys=(Key("0" * 64),)) as server:
        host, port = server.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        reply = await reader.read()
        writer.close()

    assert reply.startswith(b"HTTP/1.1 401")


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:1234", 200),
        ("127.0.0.1:80", 200),
        ("[::1]:80", 200),
        ("proxy.internal", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
    ],
)
async def test_a_page_of_another_site_cannot_reach_a_loopback_gateway(host, status):
    """A name that a browser was made to resolve to 127.0.0.1 is refused (DNS rebinding)."""
    async with gateway(router_of(ScriptedModel(["Hi"])), allowed_hosts=("proxy.internal",)) as server:
        reply = await get(server.url, "/v1/models", headers={"host": host})

    assert reply.status_code == status


async def test_browsers_get_nothing_unless_told():
    """No origin is allowed by default, and a form's content type is not taken, so that no preflight is skipped."""
    origin = {"origin": "https://app.example"}

    async with gateway(router_of(ScriptedModel(["Hi"]))) as server:
        plain = await ask(server.url, headers=origin)
        preflight = await get(server.url, CHAT, "OPTIONS", headers={**origin, "access-control-request-method": "POST"})
        form = await get(server.url, CHAT, "POST", content=json.dumps(HI), headers={"content-type": "text/plain"})
    async with gateway(router_of(ScriptedModel(["Hi"])), allow_origins=("https://app.example",)) as server:
        allowed = await ask(server.url, headers=origin)
        other = await ask(server.url, headers={"origin": "https://evil.example"})

    assert "access-control-allow-origin" not in plain.headers
    assert preflight.status_code == 405
    assert form.status_code == 415
    assert allowed.headers["access-control-allow-origin"] == "https://app.example"
    assert "x-nearfar-decision-id" in allowed.headers["access-control-expose-headers"]
    assert "access-control-allow-origin" not in other.headers


# --- pages -----------------------------------------------------------------------------------------------------------


async def test_models_lists_cascades_first():
    """Each with its kind; one by its name, which may hold a slash."""
    async with gateway(router_of(ScriptedModel(["Hi"], name="org/model"))) as server:
        listed = (await get(server.url, "/v1/models")).json()["data"]
        one = await get(server.url, "/v1/models/org/model")
        none = await get(server.url, "/v1/models/gpt-7")

    assert [(model["id"], model["nearfar"]["kind"]) for model in listed] == [
        ("auto", "cascade"),
        ("org/model", "model"),
    ]
    assert one.json()["nearfar"]["placement"] == "near"
    assert (none.status_code, none.json()["error"]["code"]) == (404, "model_not_found")


async def test_route_plans_without_asking():
    """Every tier with its reason, and no model is called."""
    near, far = ScriptedModel(["Hi"], name="near"), ScriptedModel(["Hi"], name="far", card=ModelCard("far", "far"))

    async with gateway(router_of(near, far)) as server:
        plan = (await ask(server.url, "/v1/route", {**HI, "nearfar": {"privacy": "near"}})).json()

    assert plan["target"] == "auto"
    assert [(each["tier"], each["is_eligible"]) for each in plan["candidates"]] == [("near", True), ("far", False)]
    assert plan["candidates"][1]["reason"].startswith("privacy")
    assert near.queries == far.queries == []


class Away(ScriptedModel):
    """Can take no query."""

    def unavailable(self):
        return "the breaker is open"


async def test_ready_while_any_model_is():
    """One model down is a note; all down is 503."""
    here, away = ScriptedModel(["Hi"], name="here"), Away(["Hi"], name="away")

    async with gateway(router_of(here, away)) as server:
        some = await get(server.url, "/health/ready")
    async with gateway(router_of(away)) as server:
        none = await get(server.url, "/health/ready")
        refused = await ask(server.url)

    assert (some.status_code, some.json()["unavailable"]) == (200, {"away": "the breaker is open"})
    assert (none.status_code, none.json()["status"]) == (503, "unavailable")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_unavailable")


async def test_metrics_count_what_happened():
    """Requests by tier and status, cost, latency and errors; none in flight once all are answered."""
    card = ModelCard("far", "far", price=Price(1e6, 1e6))
    model = ScriptedModel([Answer("Hi", cost_usd=0.5), UpstreamTimeout("late", model="far")], card=card)

    async with gateway(router_of(model)) as server:
        for _ in range(2):
            await ask(server.url)
        await ask(server.url, body={**HI, "model": "nobody"})
        text = (await get(server.url, "/metrics")).text

    def value(line):
        found = re.search(rf"^{re.escape(line)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else None

    assert value('nearfar_requests_total{door="http",status="answered",target="auto",tier="far"}') == 1
    assert value('nearfar_requests_total{door="http",status="failed",target="auto",tier="none"}') == 1
    assert value('nearfar_cost_usd_total{door="http",target="auto"}') == 0.5
    assert value('nearfar_request_seconds_count{door="http",target="auto"}') == 2
    assert value('nearfar_http_errors_total{code="model_not_found",status="404"}') == 1
    assert value("nearfar_requests_in_flight") == 0
    assert "nobody" not in text


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", CHAT, 405, "POST"),
        ("DELETE", RESPONSES, 405, "POST"),
        ("POST", "/v1/models", 405, "GET, HEAD"),
        ("PUT", "/health/live", 405, "GET, HEAD"),
        ("GET", "/", 404, None),
        ("POST", "/v1/embeddings", 404, None),
        ("GET", "/v1/models/", 404, None),
    ],
)
async def test_wrong_doors_are_told_apart(method, path, status, allow):
    """A known path with a wrong method says which are right; an unknown path is unknown."""
    async with gateway(router_of(ScriptedModel(["Hi"]))) as server:
        reply = await get(server.url, path, method)

    assert reply.status_code == status
    assert reply.headers.get("allow") == allow
    assert reply.json()["error"]["type"] == "invalid_request_error"


async def test_a_head_request_has_no_body():
    """Probes that ask with HEAD are answered."""
    async with gateway(router_of(ScriptedModel(["Hi"]))) as server:
        reply = await get(server.url, "/health/live", "HEAD")

    assert (reply.status_code, reply.content) == (200, b"")


# --- silence ---------------------------------------------------------------------------------------------------------


class Slow(ScriptedModel):
    """Thinks before its first word, and again before its last."""

    async def stream(self, query):
        await asyncio.sleep(0.3)
        yield TextDelta("One")
        await asyncio.sleep(0.3)
        yield TextDelta(" two")
        yield StreamEnd(Answer("One two", self.card.name))


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_a_silent_stream_sends_comments(path):
    """A proxy sees that the connection lives; a client sees nothing but the answer."""
    body = {"model": "auto", "stream": True, **({"input": "Hi"} if path == RESPONSES else {"messages": HI["messages"]})}

    async with gateway(router_of(Slow(["unused"])), heartbeat_s=0.05) as server:
        reply = await ask(server.url, path, body)

    head, _, tail = reply.text.partition("One")
    assert reply.status_code == 200
    assert head.startswith(": waiting\n\n")
    assert ": waiting\n\n" in tail
    assert " two" in tail
    assert ": waiting" not in (await ask_quick(path, body))


async def ask_quick(path, body):
    async with gateway(router_of(ScriptedModel(["One two"]))) as server:
        return (await ask(server.url, path, body)).text


async def test_an_error_after_a_long_silence_is_an_event():
    """The head went out to keep the connection, so the status cannot change any more."""

    class Late(ScriptedModel):
        async def stream(self, query):
            await asyncio.sleep(0.2)
            raise UpstreamTimeout("late", model="late")
            yield

    async with gateway(router_of(Late(["unused"])), heartbeat_s=0.05) as server:
        reply = await ask(server.url, body={**HI, "stream": True})

    assert reply.status_code == 200
    assert events_of(reply.text)[-1]["error"]["code"] == "upstream_timeout"
    assert "[DONE]" not in reply.text


async def test_a_router_of_nothing_names_what_there_is():
    """An unknown model is a 404 in OpenAI's shape, and no decision."""
    async with gateway(Router({}, {"only": ScriptedModel(["Hi"])})) as server:
        reply = await ask(server.url)

    assert reply.status_code == 404
    assert reply.json()["error"] == {
        "message": "There is no model 'auto'. There are: only.",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
