"""The gateway as an ASGI app: who may ask, what is asked, and the reply; it knows nothing of sockets."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from traceback import format_exception
from typing import Any, Protocol

import msgspec
from starlette.middleware.cors import CORSMiddleware

from nearfar.errors import DataError, NearfarError, RequestError
from nearfar.router.router import Router
from nearfar.types import (
    Answer,
    Decision,
    Query,
    ReasoningDelta,
    Status,
    StreamEnd,
    StreamEvent,
    StreamStart,
    TextDelta,
    ToolCallDelta,
    plain,
)

from . import chat, outcomes, responses
from .agent_metrics import AgentMetrics
from .agent_models import MODELS
from .agent_runs import PATHS, AgentsDoor
from .keys import KeyRing, scrub
from .metrics import CONTENT_TYPE, Metrics
from .problems import (
    Problem,
    internal,
    invalid,
    out_of_time,
    overloaded,
    problem_of,
    refusal,
    stopping,
    unauthorized,
)
from .replies import (
    JSON,
    WHOLE,
    Receive,
    Scope,
    Send,
    decision_headers,
    read_body,
    send_answer,
    send_problem,
    send_reply,
)
from .rights import admit, missing
from .settings import GatewaySettings
from .streams import CancelWhenGone, EventStream, FlushedBeforeWaiting

ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_encode = msgspec.json.Encoder().encode
_logger = logging.getLogger("nearfar.gateway")

_LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
_MODELS = "/v1/models/"
_NOTHING: Mapping[str, Any] = {}

#: How long past its deadline a stream may live whose client does not read what is sent.
_DEADLINE_GRACE_S = 5.0
#: How long such a client is given to take the last event.
_FAREWELL_S = 1.0


class Encoder(Protocol):
    """Writes one answer as server-sent events, as its wire has them."""

    def start(self, start: StreamStart) -> bytes: ...

    def delta(self, event: TextDelta | ReasoningDelta | ToolCallDelta) -> bytes: ...

    def end(self, answer: Answer, decision: Decision) -> bytes: ...

    def error(self, problem: Problem) -> bytes: ...


class Call(Protocol):
    """A query in a wire's clothes, and how its answer is written on that wire."""

    @property
    def query(self) -> Query: ...

    @property
    def stream(self) -> bool: ...

    def reply(self, answer: Answer, decision: Decision, created: int) -> bytes: ...

    def encoder(self, created: int) -> Encoder: ...


@dataclass(frozen=True, slots=True)
class _Wire:
    """One way to ask for an answer."""

    parse: Callable[[bytes, float], Call]  # the body and the longest that an answer may take, in seconds
    param_names: Mapping[str, str]


#: What takes a whole body and replies, or says what is wrong with it.
Door = Callable[[bytes, Send], Awaitable[Problem | None]]


def create_app(
    router: Router,
    *,
    settings: GatewaySettings,
    doors: Mapping[str, Door] | None = None,
    agents: AgentsDoor | None = None,
) -> ASGIApp:
    """The gateway over `router`, for any ASGI server; `doors` are further paths to POST to.

    Time limits on a request's arrival are the server's: `serve` has them.
    """
    app = Gateway(router, settings=settings, doors=doors, agents=agents)
    if not settings.allow_origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=settings.allow_origins,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),
        expose_headers=(
            "x-nearfar-decision-id",
            "x-nearfar-run-id",
            "x-nearfar-tier",
            "x-nearfar-score",
            "x-request-id",
            "retry-after",
        ),
    )


class Gateway:
    """Answers OpenAI's chat completions and responses from a router."""

    def __init__(
        self,
        router: Router,
        *,
        settings: GatewaySettings,
        doors: Mapping[str, Door] | None = None,
        agents: AgentsDoor | None = None,
    ) -> None:
        self._router = router
        self._settings = settings
        self._keys = KeyRing(settings.keys)
        self._hosts = _LOOPBACK_HOSTS | set(settings.allowed_hosts) if settings.is_loopback else None
        self._in_flight = 0
        self._metrics = Metrics(lambda: self._in_flight)
        self._agents = replace(agents, metrics=AgentMetrics(self._metrics.registry)) if agents else None
        self._started_at = int(time.time())
        self._wires = {
            "/v1/chat/completions": _Wire(chat.parse_chat, chat.PARAM_NAMES),
            "/v1/responses": _Wire(responses.parse_response, responses.PARAM_NAMES),
        }
        self._handlers: dict[str, Door] = {
            **(doors or {}),
            "/v1/route": self._route,
            "/v1/outcomes": self._tell,
        }
        self._pages: dict[str, Callable[[Send], Awaitable[None]]] = {
            "/v1/models": self._list_models,
            "/health/ready": self._ready,
            "/metrics": self._show_metrics,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await _live(receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1000})
        headers: dict[bytes, bytes] = dict(scope["headers"])
        problem = self._stranger(scope, headers)
        if problem is None:
            problem = await self._dispatch(scope, headers, receive, send)
        if problem is not None:
            self._metrics.count_error(problem.status, problem.code)
            await send_problem(send, problem)
        return None

    def _stranger(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Problem | None:
        """Why this asker may not come in; None: it may, and its key is in the scope."""
        if self._hosts is not None and _host_name(headers.get(b"host", b"")) not in self._hosts:
            message = "This gateway serves this machine only; call it as localhost, or set gateway.allowed_hosts."
            return Problem(403, message, "permission_error", "host_not_allowed")
        if self._keys and scope["path"] != "/health/live":
            key = self._keys.find(headers.get(b"authorization"))
            if key is None:
                return unauthorized()
            admit(scope, key)
        return None

    async def _dispatch(
        self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send
    ) -> Problem | None:
        path: str = scope["path"]
        method: str = scope["method"]
        wire = self._wires.get(path)
        if wire is not None or path in self._handlers:
            if method != "POST":
                return _wrong_method(method, "POST")
            if wire is None and (problem := missing(scope, "ask")):
                return problem
            return await self._with_body(wire, scope, headers, receive, send)
        if self._agents is not None and path.startswith(PATHS):
            if method == "POST":
                return await self._with_body(None, scope, headers, receive, send)
            if method in {"GET", "HEAD"}:
                return await self._agents.get(scope, send)
            return _wrong_method(method, "GET, HEAD, POST")
        page = self._pages.get(path)
        is_model = path.startswith(_MODELS) and len(path) > len(_MODELS)
        if page is None and path != "/health/live" and not is_model:
            return invalid(f"There is no {path!r} here.", code="unknown_url", status=404)
        if method not in {"GET", "HEAD"}:
            return _wrong_method(method, "GET, HEAD")
        if page is not None:
            await page(send)
        elif is_model:
            return await self._show_model(path.removeprefix(_MODELS), send)
        else:
            await send_reply(send, 200, [JSON], b'{"status":"ok"}')
        return None

    # --- answers -----------------------------------------------------------------------------------------------------

    async def _with_body(
        self, wire: _Wire | None, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: Send
    ) -> Problem | None:
        if not _is_json(headers.get(b"content-type", b"")):
            message = "Send the body as `Content-Type: application/json`."
            return invalid(message, code="unsupported_media_type", status=415)
        if headers.get(b"content-encoding", b"identity") != b"identity":
            return invalid("Send the body uncompressed.", code="unsupported_media_type", status=415)
        if self._in_flight >= self._settings.max_concurrency:
            return overloaded(self._settings.max_concurrency)
        self._in_flight += 1
        try:
            body = await read_body(receive, headers, self._settings.max_body_bytes)
            if body is None:
                return None
            if isinstance(body, Problem):
                return body
            if wire is None:
                handler = self._handlers.get(scope["path"])
                if handler is None and self._agents is not None:
                    return await self._agents.post(body, scope, receive, send)
                return await self._handlers[scope["path"]](body, send)
            return await self._answer(wire, body, scope, receive, send)
        finally:
            self._in_flight -= 1

    async def _answer(self, wire: _Wire, body: bytes, scope: Scope, receive: Receive, send: Send) -> Problem | None:
        started = time.perf_counter()
        try:
            call = wire.parse(body, self._settings.request_timeout_s)
        except RequestError as exc:
            return problem_of(exc, wire.param_names)
        answerer = self._answerer(call.query)
        if problem := missing(scope, "ask" if answerer is self._router else "run"):
            return problem
        with CancelWhenGone(scope, receive) as watch:
            try:
                if call.stream:
                    return await self._stream(call, wire, started, send, watch)
                return await self._complete(call, wire, started, send, scope)
            except NearfarError as exc:
                return self._failure(exc, call, wire, started)
            except asyncio.CancelledError:
                if watch.is_gone:
                    raise
                return stopping()
            except Exception as exc:
                _report(exc)
                return internal()
        if watch.is_gone:
            self._metrics.count(call.query.model, None, "cancelled", time.perf_counter() - started)
        return None

    def _answerer(self, query: Query) -> Router | AgentsDoor:
        return self._router if self._agents is None or not query.model.startswith(MODELS) else self._agents

    async def _complete(self, call: Call, wire: _Wire, started: float, send: Send, scope: Scope) -> Problem | None:
        answer = await self._answerer(call.query).answer(call.query, door="http")
        decision = _decision_of(answer)
        self._metrics.count_decision(decision, time.perf_counter() - started)
        if decision.status == "refused":
            return refusal(decision, wire.param_names)
        body = call.reply(answer, decision, int(decision.created_at))
        send_whole = None if self._settings.allow_origins else scope.get("extensions", _NOTHING).get(WHOLE)
        await send_answer(send, send_whole, decision, body)
        return None

    async def _stream(
        self, call: Call, wire: _Wire, started: float, send: Send, watch: CancelWhenGone
    ) -> Problem | None:
        encoder = call.encoder(int(time.time()))
        events = self._answerer(call.query).stream(call.query, door="http")
        reply = EventStream(send, heartbeat_s=self._settings.heartbeat_s)
        limit_s = (call.query.deadline_s or self._settings.request_timeout_s) + _DEADLINE_GRACE_S
        try:
            async with asyncio.timeout(limit_s), aclosing(events):
                problem = await self._gather(events, encoder, reply, wire, started)
            if problem is None:
                await reply.finish()
                return None
        except NearfarError as exc:
            problem = self._failure(exc, call, wire, started)
        except TimeoutError:
            problem = out_of_time()
        except asyncio.CancelledError:
            if watch.is_gone:
                raise
            problem = stopping()
        except Exception as exc:
            _report(exc)
            problem = internal()
        finally:
            reply.close()
        if not reply.is_started:
            return problem
        self._metrics.count_error(problem.status, problem.code)
        reply.put(encoder.error(problem))
        with suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):
                await reply.finish()
        return None

    async def _gather(
        self,
        events: AsyncGenerator[StreamEvent, None],
        encoder: Encoder,
        reply: EventStream,
        wire: _Wire,
        started: float,
    ) -> Problem | None:
        async for event in FlushedBeforeWaiting(events, reply):
            if isinstance(event, StreamStart):
                await reply.start(decision_headers(event))
                reply.put(encoder.start(event))
            elif isinstance(event, StreamEnd):
                decision = _decision_of(event.answer)
                self._metrics.count_decision(decision, time.perf_counter() - started)
                if decision.status == "refused":
                    return refusal(decision, wire.param_names)
                reply.put(encoder.end(event.answer, decision))
            else:
                reply.put(encoder.delta(event))
                if reply.is_full:
                    await reply.flush()
        return None

    def _failure(self, exc: NearfarError, call: Call, wire: _Wire, started: float) -> Problem:
        if exc.decision_id is not None:
            status: Status = "refused" if isinstance(exc, RequestError) else "failed"
            self._metrics.count(call.query.model, None, status, time.perf_counter() - started)
        return problem_of(exc, wire.param_names)

    # --- pages -------------------------------------------------------------------------------------------------------

    async def _route(self, body: bytes, send: Send) -> Problem | None:
        try:
            plan = await self._router.preview(chat.parse_chat(body, self._settings.request_timeout_s).query)
        except RequestError as exc:
            return problem_of(exc, chat.PARAM_NAMES)
        candidates = [plain(candidate) for candidate in plan.candidates]
        page = {
            "object": "nearfar.plan",
            "target": plan.target,
            "candidates": candidates,
            "routing": plan.routing and plain(plan.routing),
        }
        await send_reply(send, 200, [JSON], _encode(page))
        return None

    async def _tell(self, body: bytes, send: Send) -> Problem | None:
        try:
            told = outcomes.parse_outcome(body)
            outcome = await self._router.tell(told.decision_id, told.value, source=told.source)
        except RequestError as exc:
            return problem_of(exc, outcomes.PARAM_NAMES)
        except DataError as exc:
            _report(exc)
            return internal()
        self._metrics.count_outcome()
        await send_reply(send, 200, [JSON], outcomes.outcome_body(outcome))
        return None

    async def _list_models(self, send: Send) -> None:
        targets = self._router.targets()
        names = sorted(targets, key=lambda name: (targets[name] != "cascade", name))
        names += self._agents.models() if self._agents else []
        page = {"object": "list", "data": [self._model(name) for name in names]}
        await send_reply(send, 200, [JSON], _encode(page))

    async def _show_model(self, name: str, send: Send) -> Problem | None:
        targets = [*sorted(self._router.targets()), *(self._agents.models() if self._agents else ())]
        if name not in targets:
            known = ", ".join(targets)
            message = f"There is no model {name!r}. There are: {known}."
            return invalid(message, param="model", code="model_not_found", status=404)
        await send_reply(send, 200, [JSON], _encode(self._model(name)))
        return None

    def _model(self, name: str) -> dict[str, Any]:
        about: dict[str, Any] = {"kind": self._router.targets().get(name, "agent")}
        card = self._router.cards().get(name)
        if card is not None and about["kind"] == "model":
            about |= {
                "placement": card.placement,
                "context_window": card.context_window,
                "max_output_tokens": card.max_output_tokens,
                "modalities": sorted(card.modalities),
            }
        return {"id": name, "object": "model", "created": self._started_at, "owned_by": "nearfar", "nearfar": about}

    async def _ready(self, send: Send) -> None:
        unavailable = self._router.unavailable()
        is_ready = len(unavailable) < len(self._router.cards()) and self._router.log_failure is None
        page = {
            "status": "ready" if is_ready else "unavailable",
            "unavailable": {name: scrub(reason) for name, reason in unavailable.items()},
            "decision_log": self._router.log_failure,
        }
        await send_reply(send, 200 if is_ready else 503, [JSON], _encode(page))

    async def _show_metrics(self, send: Send) -> None:
        for monitor in await self._router.monitors():
            kind = monitor.alarm.kind if monitor.alarm else None
            self._metrics.show_alarm(monitor.cascade, monitor.tier, monitor.policy, kind)
        if self._agents is not None:
            await self._agents.show_waiting()
        await send_reply(send, 200, [(b"content-type", CONTENT_TYPE.encode())], self._metrics.render())


def _decision_of(answer: Answer) -> Decision:
    if answer.decision is None:
        raise AssertionError("the router gives every answer its decision")
    return answer.decision


def _is_json(content_type: bytes) -> bool:
    return content_type == b"application/json" or content_type.partition(b";")[0].strip().lower() == b"application/json"


@lru_cache(64)  # a client calls by one name
def _host_name(host: bytes) -> str:
    """The `Host` header without its port."""
    name = host.decode("latin-1").lower()
    if name.startswith("["):
        return name[: name.find("]") + 1]
    return name.partition(":")[0]


def _wrong_method(method: str, allowed: str) -> Problem:
    problem = invalid(f"{method} is not allowed here; use {allowed}.", code="method_not_allowed", status=405)
    return replace(problem, headers=((b"allow", allowed.encode()),))


def _report(exc: Exception) -> None:
    _logger.error("A request failed unexpectedly.\n%s", scrub("".join(format_exception(exc))))


async def _live(receive: Receive, send: Send) -> None:
    """Says yes to a server that asks whether the app is up."""
    while True:
        event = await receive()
        await send({"type": f"{event['type']}.complete"})
        if event["type"] == "lifespan.shutdown":
            return
