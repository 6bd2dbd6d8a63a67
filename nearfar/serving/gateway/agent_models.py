"""An agent as a model: a query to a task, and a run's events to the stream of an answer."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import fields
from typing import Any

import msgspec

from nearfar.agents.limits import lowered
from nearfar.agents.runs import line_of
from nearfar.agents.types import AgentEvent, Decided, Ended, Limits, NeedsApproval, RunResult, Task, Wrote
from nearfar.errors import RequestError, UnsupportedOption, UpstreamUnavailable
from nearfar.types import (
    Answer,
    Decision,
    DecisionReason,
    Query,
    ReasoningDelta,
    StreamEnd,
    StreamEvent,
    StreamStart,
    TextDelta,
)

from .keys import scrub

#: What the names of agents begin with where a request names a model.
MODELS = "agent/"
#: Where runs are.
RUNS = "/v1/agents/runs"

#: What a run takes from a query, or has no use for whatever it says.
_TAKEN = frozenset(
    {"prompt", "model", "budget_usd", "deadline_s", "privacy", "session", "metadata", "sampling", "uses_memory"}
)


def task_of(query: Query, most: Limits) -> Task:
    """The task that the query sets an agent.

    Raises:
        RequestError: it is more than one message of the user's. What an agent has said before may hold text from
            outside, which must not become part of a task.
        UnsupportedOption: it asks for what an agent decides itself.
    """
    plain = Query("")
    found = [each.name for each in fields(query) if each.name not in _TAKEN]
    asked = [name for name in found if getattr(query, name) != getattr(plain, name)]
    sampling = query.sampling
    asked += [
        each.name for each in fields(sampling) if getattr(sampling, each.name) != getattr(plain.sampling, each.name)
    ]
    if asked:
        raise UnsupportedOption(
            f"`{asked[0]}` is not supported by agents: their roles have their own settings; leave it out.",
            param=asked[0],
        )
    if len(query.messages) != 1 or query.messages[0].role != "user" or query.modalities - {"text"}:
        raise RequestError(
            "An agent takes one message, a text of the user's: what was said before it may come from outside. "
            "Put all that is to be done into it.",
            param="messages",
        )
    limits = lowered(most, seconds=query.deadline_s, usd=query.budget_usd)
    return Task(query.text, query.session, query.privacy, limits, query.metadata)


async def as_model(
    events: AsyncGenerator[AgentEvent, None], model: str, run_id: str, door: str
) -> AsyncGenerator[StreamEvent, None]:
    """A run's events as a model's stream: what it does as reasoning, its answer as text."""
    noted: list[str] = []
    asked: list[NeedsApproval] = []
    last: str | None = None
    is_begun = has_text = False
    async for event in events:
        if not is_begun:
            is_begun = True
            yield StreamStart(run_id, None, model, None, None, False)
        if line := _utf8(line_of(event)):
            noted.append(f"{line}\n")
            yield ReasoningDelta(noted[-1])
        match event:
            case Wrote():
                has_text = True
                yield TextDelta(_utf8(event.text))
            case Decided():
                last = event.decision_id or last
            case NeedsApproval():
                asked.append(event)
            case Ended():
                answer = _answer(model, event.result, asked, last, "".join(noted), door)
                if not has_text:
                    yield TextDelta(answer.text)
                yield StreamEnd(answer)
            case _:
                pass


_REASONS: Mapping[str, DecisionReason] = {"out_of_time": "out_of_time", "out_of_money": "out_of_budget"}


def _answer(
    model: str, result: RunResult, asked: list[NeedsApproval], last: str | None, noted: str, door: str
) -> Answer:
    """How the run ended, as a model's answer.

    Raises:
        UpstreamUnavailable: it failed.
    """
    if result.status == "failed":
        message = f"The run {result.run_id!r} failed: {result.reason}. Go on: POST {RUNS}/{result.run_id}/resume"
        raise UpstreamUnavailable(message, model=model)
    is_answered = result.status == "answered"
    is_cut = result.status.startswith("out_of_")
    text = result.text if is_answered else _outcome_text(result, asked)
    decision = Decision(
        id=result.run_id,
        created_at=time.time(),
        status="answered" if is_answered else "abstained",
        reason=_REASONS.get(result.status, "named"),
        door=door,
        target=model,
        tier=None,
        model=model,
        score=None,
        threshold=None,
        is_calibrated=False,
        policy="agent",
        propensity=1.0,
        candidates=(),
        steps=(),
        departures=(),
        cost_usd=result.cost_usd,
        is_cost_estimated=False,
        latency_s={"total": result.latency_s},
        request={},
    )
    about = {
        "run_id": result.run_id,
        "status": result.status,
        "reason": scrub(result.reason),
        "model_calls": result.model_calls,
        "tool_calls": result.tool_calls,
        "answered_by": last,  # the decision of the last model call, for outcomes
        "approvals": [_utf8_values(msgspec.to_builtins(each)) for each in asked],
    }
    return Answer(
        _utf8(text),
        model,
        finish_reason="length" if is_cut else "stop",
        reasoning=noted or None,
        usage=result.usage,
        cost_usd=result.cost_usd,
        latency_s=result.latency_s,
        extra={"agent": about},
        decision=decision,
    )


def _outcome_text(result: RunResult, asked: list[NeedsApproval]) -> str:
    """What a person reads in place of an answer."""
    if result.status == "awaiting_approval":
        calls = "; ".join(f"{each.call.name} {each.call.arguments} (approval {each.approval_id})" for each in asked)
        return f"The run {result.run_id} waits for a person: {calls}"
    return f"No answer: {scrub(result.reason) or result.status}"


def _utf8(text: str) -> str:
    """The text with what UTF-8 cannot hold replaced."""
    return text.encode("utf-8", "replace").decode()


def _utf8_values(plain: Any) -> Any:
    return json.loads(_utf8(json.dumps(plain, ensure_ascii=False)))
