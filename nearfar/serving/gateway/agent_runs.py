"""Agents over HTTP: asked as models named `agent/…`, and begun, watched, approved, gone on with and shown as runs.

A run's agent and store are opened for the request and closed after it, as `nearfar agent` does: no run shares a tool's
state with another, and a database or a tool server that was down is found again by the next request.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from dataclasses import dataclass, field, replace
from traceback import format_exception
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeAlias
from urllib.parse import parse_qsl

import msgspec
from msgspec import Meta, Struct

from nearfar.agents.limits import lowered
from nearfar.agents.runs import (
    STOPPED,
    decisions_of,
    event_json,
    new_run_id,
    record_json,
    run_json,
    saved_state,
    status_of,
)
from nearfar.agents.types import AgentEvent, Limits, Task
from nearfar.errors import (
    ConfigError,
    DataError,
    NearfarError,
    RequestError,
    RunConflict,
    ToolSourceError,
    UnknownModel,
    UnknownRun,
    UpstreamUnavailable,
)
from nearfar.types import Answer, Decision, Query, StreamEnd, StreamEvent

from .agent_metrics import AgentMetrics
from .agent_models import MODELS, RUNS, as_model, task_of
from .keys import scrub
from .problems import Problem, internal, invalid, out_of_time, problem_of
from .replies import JSON, Headers, Receive, Scope, Send, send_reply
from .rights import asker, missing
from .schemas import Count, NotNegative, Positive, convert, parse_object, refuse_unknown
from .settings import GatewaySettings
from .streams import CancelWhenGone, EventStream, FlushedBeforeWaiting

if TYPE_CHECKING:
    from nearfar.agents.checkpoints import RunStore
    from nearfar.agents.graph_agent import GraphAgent
    from nearfar.agents.journal import RunRecord

#: What the paths begin with.
PATHS = "/v1/agents"

_MAX_LISTED = 200
_FAREWELL_S = 1.0

_logger = logging.getLogger("nearfar.gateway")

#: One stretch of work of an agent.
_Stretch: TypeAlias = "Callable[[GraphAgent], AsyncGenerator[AgentEvent, None]]"


class Decisions(Protocol):
    """The decision log, to be read."""

    async def flush(self) -> None: ...

    async def get(self, id_or_prefix: str) -> Decision | None: ...


@dataclass(frozen=True, slots=True)
class AgentCard:
    """What is told of an agent, and the most that one of its runs may use."""

    kind: str
    model: str  # a model or a cascade, of the roles that name none
    roles: Mapping[str, str]  # the model or cascade of those that do
    tools: tuple[str, ...]  # sources of tools
    limits: Limits


class LimitsRequest(Struct, kw_only=True):
    """Less than the config allows, of anything."""

    steps: Count | None = None
    seconds: Positive | None = None
    tokens: Count | None = None
    usd: NotNegative | None = None


class RunRequest(Struct, kw_only=True):
    """The body that begins a run."""

    task: Annotated[str, Meta(min_length=1)]
    agent: str | None = None  # None: the only one
    run_id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,64}\Z")] | None = None  # None: a new one
    stream: bool = False
    privacy: Literal["any", "near"] = "any"
    session: str | None = None
    metadata: dict[str, str] = msgspec.field(default_factory=dict)
    limits: LimitsRequest = msgspec.field(default_factory=LimitsRequest)


class ResumeRequest(Struct, kw_only=True):
    """The body that goes on with a run."""

    stream: bool = False
    approvals: dict[str, bool] = msgspec.field(default_factory=dict)  # by approval id: whether the call may be made


class ApprovalRequest(Struct, kw_only=True):
    """The body that allows or denies a call."""

    approval_id: str | None = None  # None: the only one that waits
    allow: bool


@dataclass(frozen=True, slots=True)
class AgentsDoor:
    """Answers what is asked of the config's agents. As a responder it takes the models `agent/…`.

    Args:
        cards: the agents by name.
        open_runs: opens the place where runs are kept.
        open_agent: opens an agent of this name with its tools, on that place.
        decisions: of the models that the agents' roles ask.
        settings: the gateway's.
        metrics: counts what is done.
    """

    cards: Mapping[str, AgentCard]
    open_runs: Callable[[], Awaitable[RunStore]]
    open_agent: Callable[[str, RunStore], AbstractAsyncContextManager[GraphAgent]]
    decisions: Decisions
    settings: GatewaySettings = field(default_factory=GatewaySettings)
    metrics: AgentMetrics = field(default_factory=AgentMetrics)

    # --- as models ---------------------------------------------------------------------------------------------------

    def models(self) -> list[str]:
        """What a request's `model` may be, besides the router's targets."""
        return [f"{MODELS}{name}" for name in sorted(self.cards)]

    async def answer(self, query: Query, *, door: str = "http") -> Answer:
        """The answer of a run, or what it waits for; see `stream`."""
        async with aclosing(self.stream(query, door=door)) as events:
            async for event in events:
                if isinstance(event, StreamEnd):
                    return event.answer
        raise AssertionError("a run's stream ends with its answer or raises")

    async def stream(self, query: Query, *, door: str = "http") -> AsyncGenerator[StreamEvent, None]:
        """A new run: what it does as reasoning, its answer as text. The decision's id is the run's.

        Raises:
            UnknownModel: there is no such agent.
            RequestError: the query is more than one message, or asks for what a run has no use for.
            UpstreamUnavailable: the run failed, and can be gone on with.
        """
        name = query.model.removeprefix(MODELS)
        card = self.cards.get(name)
        if card is None:
            raise UnknownModel(
                f"There is no model {query.model!r}. The agents are: {', '.join(self.models())}.", model=query.model
            )
        task = task_of(query, card.limits)
        run_id = new_run_id()
        try:
            async with (
                await self.open_runs() as store,
                aclosing(self._events(store, name, _beginning(task, run_id), is_new=True)) as told,
                aclosing(as_model(told, query.model, run_id, door)) as events,
            ):
                async for event in events:
                    yield event
        except (ConfigError, ToolSourceError) as exc:
            raise UpstreamUnavailable(str(exc), model=query.model) from exc

    # --- as runs -----------------------------------------------------------------------------------------------------

    async def get(self, scope: Scope, send: Send) -> Problem | None:
        """Sends a page; a problem where there is none, or the asker has no business with runs."""
        if problem := missing(scope, "run", "approve"):
            return problem
        path: str = scope["path"]
        asked = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
        try:
            if path == PATHS:
                page = self._listed_agents()
            elif path == RUNS:
                page = await self._listed_runs(asked)
            elif path.startswith(f"{RUNS}/"):
                page = await self._shown_run(path.removeprefix(f"{RUNS}/"))
            else:
                return _no_such(path)
        except Exception as exc:
            return _problem(exc)
        await _send_json(send, page)
        return None

    async def post(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> Problem | None:
        """Begins, goes on with, or answers for a run; a problem where that cannot be.

        A client that goes away leaves a run that can be gone on with.
        """
        path: str = scope["path"]
        with CancelWhenGone(scope, receive):
            try:
                if path == RUNS:
                    return missing(scope, "run") or await self._begin(convert_body(body, RunRequest), send)
                run_id, _, verb = path.removeprefix(f"{RUNS}/").rpartition("/")
                if path.startswith(f"{RUNS}/") and run_id and verb == "resume":
                    resumed = convert_body(body, ResumeRequest)
                    problem = missing(scope, "run") or (missing(scope, "approve") if resumed.approvals else None)
                    return problem or await self._resume(run_id, resumed, send, by=asker(scope))
                if path.startswith(f"{RUNS}/") and run_id and verb == "approvals":
                    return missing(scope, "approve") or await self._approve(
                        run_id, convert_body(body, ApprovalRequest), send, by=asker(scope)
                    )
                return _no_such(path)
            except Exception as exc:
                return _problem(exc)
        return None

    async def _begin(self, asked: RunRequest, send: Send) -> Problem | None:
        name = self._named(asked.agent)
        if isinstance(name, Problem):
            return name
        bounds = lowered(self.cards[name].limits, **msgspec.structs.asdict(asked.limits))
        task = Task(asked.task, asked.session, asked.privacy, bounds, asked.metadata)
        run_id = asked.run_id or new_run_id()
        async with await self.open_runs() as store:
            stretch = _beginning(task, run_id)
            return await self._work(store, name, run_id, stretch, send, is_stream=asked.stream, is_new=True)

    async def _resume(self, run_id: str, asked: ResumeRequest, send: Send, *, by: str | None) -> Problem | None:
        async with await self.open_runs() as store:
            record = await _record(store, run_id)
            if record.agent not in self.cards:
                message = f"The run {run_id!r} is of the agent {record.agent!r}, which this gateway does not have."
                return invalid(message, param="agent", code="agent_not_found", status=404)
            for approval_id, is_allowed in asked.approvals.items():
                if isinstance(said := await self._answer(store, record, approval_id, is_allowed, by), Problem):
                    return said
            return await self._work(
                store,
                record.agent,
                run_id,
                lambda agent: agent.stream_resumed(run_id),
                send,
                is_stream=asked.stream,
                is_new=False,
            )

    async def _approve(self, run_id: str, asked: ApprovalRequest, send: Send, *, by: str | None) -> Problem | None:
        async with await self.open_runs() as store:
            record = await _record(store, run_id)
            approval_id = asked.approval_id or await _only_open(store, run_id)
            if isinstance(approval_id, Problem):
                return approval_id
            is_new = await self._answer(store, record, approval_id, asked.allow, by)
        if isinstance(is_new, Problem):
            return is_new
        page = {"object": "nearfar.approval", "run_id": run_id, "approval_id": approval_id}
        await _send_json(send, {**page, "is_allowed": asked.allow, "is_new": is_new})
        return None

    async def _answer(
        self, store: RunStore, record: RunRecord, approval_id: str, is_allowed: bool, by: str | None
    ) -> bool | Problem:
        """As `answered`, and counted where it is new."""
        said = await answered(store, record.run_id, approval_id, is_allowed, by)
        if said is True and record.agent in self.cards:
            self.metrics.count_answer(record.agent, is_allowed=is_allowed)
        return said

    async def _work(
        self, store: RunStore, name: str, run_id: str, stretch: _Stretch, send: Send, *, is_stream: bool, is_new: bool
    ) -> Problem | None:
        """One stretch of a run, told as it is done or shown once it has ended or waits."""
        headers: Headers = [(b"x-nearfar-run-id", run_id.encode())]
        async with aclosing(self._events(store, name, stretch, is_new=is_new)) as events:
            if is_stream:
                return await self._tell(events, {"event": "begun", "run_id": run_id, "agent": name}, headers, send)
            try:
                async with asyncio.timeout(self.settings.request_timeout_s):
                    async for _ in events:
                        pass
            except TimeoutError:
                return _cut(run_id)
        record = await _record(store, run_id)
        page = record_json(record, await status_of(store, record))
        page["approvals"] = msgspec.to_builtins(await store.journal.approvals(run_id))
        await _send_json(send, {"object": "nearfar.run", **page}, headers)
        return None

    async def _tell(
        self, events: AsyncGenerator[AgentEvent, None], begun: Mapping[str, Any], headers: Headers, send: Send
    ) -> Problem | None:
        """Sends the events as they come. What goes wrong before the first one is a problem, and after it an event."""
        reply = EventStream(send, heartbeat_s=self.settings.heartbeat_s)
        is_begun = False
        try:
            async with asyncio.timeout(self.settings.request_timeout_s):
                async for event in FlushedBeforeWaiting(events, reply):
                    if not is_begun:
                        is_begun = True
                        await reply.start(headers)
                        reply.put(_sse(begun))
                    reply.put(_sse(event_json(event)))
                await reply.finish()
            return None
        except TimeoutError:
            problem = _cut(begun["run_id"])
        except Exception as exc:
            problem = _problem(exc)
        finally:
            reply.close()
        if not reply.is_started:
            return problem
        reply.put(b"event: error\ndata: " + problem.body() + b"\n\n")
        with suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_S):
                await reply.finish()
        return None

    async def _events(
        self, store: RunStore, name: str, stretch: _Stretch, *, is_new: bool
    ) -> AsyncGenerator[AgentEvent, None]:
        async with (
            self.open_agent(name, store) as agent,
            aclosing(stretch(agent)) as told,
            aclosing(self.metrics.counted(name, told, is_new=is_new, knows=agent.toolbox.__contains__)) as events,
        ):
            async for event in events:
                yield event

    async def show_waiting(self) -> None:
        """Puts into the metrics how many calls wait for a person; nothing where the place of runs cannot be read."""
        try:
            async with await self.open_runs() as store:
                waiting = await store.journal.waiting()
        except (ConfigError, DataError) as exc:
            _logger.warning("The metrics lack the approvals that wait: %s", scrub(str(exc)))
            self.metrics.forget_waiting()
            return
        self.metrics.show_waiting(self.cards, waiting, time.time())

    # --- pages -------------------------------------------------------------------------------------------------------

    def _listed_agents(self) -> dict[str, Any]:
        agents = [
            {"object": "nearfar.agent", "name": name, "id": f"{MODELS}{name}", **msgspec.to_builtins(card)}
            for name, card in sorted(self.cards.items())
        ]
        return {"object": "list", "data": agents}

    async def _listed_runs(self, asked: Mapping[str, str]) -> dict[str, Any]:
        refuse_unknown(asked, ("limit", "status"), at="query")
        limit = asked.get("limit", "20")
        if not (limit.isascii() and limit.isdigit() and 1 <= int(limit) <= _MAX_LISTED):
            raise RequestError(f"`limit` must be in [1, {_MAX_LISTED}], not {limit!r}.", param="limit")
        wanted = asked.get("status")
        async with await self.open_runs() as store:
            records = await store.journal.runs(int(limit), status="running" if wanted == STOPPED else wanted)
            found = [(record, await status_of(store, record)) for record in records]
            runs = [
                {
                    "object": "nearfar.run",
                    **record_json(record, status),
                    "approvals": msgspec.to_builtins(await store.journal.approvals(record.run_id)),
                }
                for record, status in found
                if wanted in (None, status)
            ]
        return {"object": "list", "data": runs}

    async def _shown_run(self, run_id: str) -> dict[str, Any]:
        async with await self.open_runs() as store:
            record = await _record(store, run_id)
            status = await status_of(store, record)
            state = await saved_state(store, run_id)
            approvals = await store.journal.approvals(run_id)
        await self.decisions.flush()
        decisions = await decisions_of(state, self.decisions.get)
        return {"object": "nearfar.run", **run_json(record, status, state, approvals, decisions)}

    def _named(self, name: str | None) -> str | Problem:
        known = ", ".join(map(repr, sorted(self.cards)))
        if name is None and len(self.cards) > 1:
            return invalid(f"`agent` is missing; there are {known}.", param="agent")
        if name is not None and name not in self.cards:
            message = f"There is no agent {name!r}; there are {known}."
            return invalid(message, param="agent", code="agent_not_found", status=404)
        return name or next(iter(self.cards))


# --- requests --------------------------------------------------------------------------------------------------------


def convert_body(body: bytes, kind: type[Any]) -> Any:
    """What the body says.

    Raises:
        RequestError: it is wrong; `param` names the field.
    """
    raw = parse_object(body)
    refuse_unknown(raw, kind.__struct_fields__, at="body")
    if isinstance(raw.get("limits"), dict):
        refuse_unknown(raw["limits"], LimitsRequest.__struct_fields__, at="limits")
    return convert({key: value for key, value in raw.items() if value is not None}, kind)


def _beginning(task: Task, run_id: str) -> _Stretch:
    return lambda agent: agent.stream(task, run_id=run_id)


# --- runs ------------------------------------------------------------------------------------------------------------


async def answered(store: RunStore, run_id: str, approval_id: str, is_allowed: bool, by: str | None) -> bool | Problem:
    """Notes a person's answer, the first of which stands; False where the same was said before.

    A problem where the run has not asked that, or somebody has said otherwise.
    """
    if not await store.journal.approve(run_id, {approval_id: is_allowed}, by=by):
        return True
    said = {each.approval_id: each.is_allowed for each in await store.journal.approvals(run_id)}
    if approval_id not in said:
        message = f"The run {run_id!r} waits for no approval {approval_id!r}."
        return invalid(message, param="approval_id", code="approval_not_found", status=404)
    if said[approval_id] != is_allowed:
        done = "allowed" if said[approval_id] else "denied"
        message = f"The approval {approval_id!r} was {done} before."
        return invalid(message, param="approval_id", code="run_conflict", status=409)
    return False


async def _only_open(store: RunStore, run_id: str) -> str | Problem:
    """The approval that the run waits for; a problem where there is none, or are several."""
    open_ids = [each.approval_id for each in await store.journal.approvals(run_id) if each.is_allowed is None]
    if not open_ids:
        message = f"The run {run_id!r} waits for no approval."
        return invalid(message, param="approval_id", code="approval_not_found", status=404)
    if len(open_ids) > 1:
        return invalid(f"The run waits for {', '.join(map(repr, open_ids))}; name one.", param="approval_id")
    return open_ids[0]


async def _record(store: RunStore, run_id: str) -> RunRecord:
    """The run of this id; the beginning of an id is none, since it could be another's."""
    record = await store.journal.run(run_id)
    if record is None or record.run_id != run_id:
        raise UnknownRun(f"There is no run {run_id!r}. List them: GET {RUNS}", param="run_id")
    return record


# --- replies ---------------------------------------------------------------------------------------------------------


def _problem(exc: Exception) -> Problem:
    """The HTTP error that stands for the exception; what is a fault of ours is written to the log."""
    if isinstance(exc, UnknownRun):
        return invalid(str(exc), param=exc.param, code="run_not_found", status=404)
    if isinstance(exc, RunConflict):
        return invalid(str(exc), param=exc.param, code="run_conflict", status=409)
    if isinstance(exc, ToolSourceError):
        return Problem(502, str(exc), "server_error", "tools_unavailable", should_retry=False)
    if isinstance(exc, ConfigError):  # an extra that is not installed, a setting that does not fit
        return Problem(503, str(exc), "server_error", "agent_unavailable", should_retry=False)
    if isinstance(exc, NearfarError) and not isinstance(exc, DataError):
        return problem_of(exc, {})
    _logger.error("A request failed unexpectedly.\n%s", scrub("".join(format_exception(exc))))
    return internal()


def _cut(run_id: str) -> Problem:
    message = f"The run {run_id!r} has not ended in time, and was stopped. Go on: POST {RUNS}/{run_id}/resume"
    return replace(out_of_time(), message=message)


def _no_such(path: str) -> Problem:
    return invalid(
        f"There is no {path!r} here, or it takes another method. GET {PATHS}, {RUNS}, {RUNS}/ID; "
        f"POST {RUNS}, {RUNS}/ID/approvals, {RUNS}/ID/resume.",
        code="unknown_url",
        status=404,
    )


async def _send_json(send: Send, page: Mapping[str, Any], headers: Headers | None = None) -> None:
    await send_reply(send, 200, [JSON, *(headers or [])], _dump(page))


def _sse(event: Mapping[str, Any]) -> bytes:
    return b"event: " + str(event["event"]).encode() + b"\ndata: " + _dump(event) + b"\n\n"


def _dump(value: Any) -> bytes:
    # Not msgspec's encoder: what tools give may hold lone surrogates, which JSON can escape and UTF-8 cannot hold.
    return json.dumps(value).encode()
