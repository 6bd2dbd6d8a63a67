"""What is known of runs: which there are, whether anybody works on them, and each of them as plain JSON values."""

from __future__ import annotations

import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import msgspec

from nearfar.errors import UnknownRun
from nearfar.types import Decision, plain

from .journal import RUNNING, ApprovalRecord, RunRecord
from .types import AgentEvent, Called, NeedsApproval, Observed, Planned

if TYPE_CHECKING:
    from .checkpoints import RunStore
    from .desk import State

#: The status of a run that was cut while it worked, and that nobody works on.
STOPPED = "stopped"

_SHOWN = 200  # characters of an observation


def new_run_id() -> str:
    """An id that sorts by time."""
    return f"{int(time.time() * 1000):012x}{secrets.token_hex(4)}"


async def find_run(store: RunStore, run_id: str) -> RunRecord:
    """The run of this id, or the only one whose id begins so.

    Raises:
        UnknownRun: there is none, or there are several.
    """
    record = await store.journal.run(run_id)
    if record is None:
        raise UnknownRun(
            f"There is no run {run_id!r}, or there are several. List them: nearfar agent list", param="run"
        )
    return record


async def status_of(store: RunStore, record: RunRecord) -> str:
    """The run's status; one that works without anybody who does was stopped or killed."""
    if record.status != RUNNING:
        return record.status
    return RUNNING if await store.is_claimed(record.run_id) else STOPPED


async def saved_state(store: RunStore, run_id: str) -> State:
    """The newest checkpoint's state of a run, of whatever kind its agent is; empty where there is none."""
    found = await store.saver.aget_tuple({"configurable": {"thread_id": run_id, "checkpoint_ns": ""}})
    return cast("State", found.checkpoint["channel_values"] if found else {})


async def decisions_of(state: State, get: Callable[[str], Awaitable[Decision | None]]) -> dict[str, Decision | None]:
    """The decisions of the run's model calls, by id; None where the log does not have one any more."""
    ids = {each["decision_id"] for each in state.get("trace", []) if each["event"] == "decided"}
    return {each: await get(each) for each in ids if each}


def record_json(record: RunRecord, status: str) -> dict[str, Any]:
    """What is known of the run without its checkpoints."""
    return {**msgspec.to_builtins(record), "status": status}


def run_json(
    record: RunRecord,
    status: str,
    state: State,
    approvals: Sequence[ApprovalRecord],
    decisions: Mapping[str, Decision | None],
) -> dict[str, Any]:
    """The whole run, every decision in its place."""
    trace = []
    for each in state.get("trace", []):
        found = decisions.get(each.get("decision_id") or "") if each["event"] == "decided" else None
        trace.append({**each, "decision": plain(found)} if found else dict(each))
    return {
        **record_json(record, status),
        "scope": state.get("scope"),
        "trace": trace,
        "approvals": msgspec.to_builtins(list(approvals)),
    }


def event_json(event: AgentEvent) -> dict[str, Any]:
    """The event, its kind under `event`: planned, called, observed, wrote, decided, needs_approval, ended."""
    return {"event": _snake(type(event).__name__), **msgspec.to_builtins(event)}


def line_of(event: AgentEvent) -> str:
    """What a plan, a call, an observation or a question says, in one line; "" for other events."""
    match event:
        case Planned():
            why = f": {' '.join(event.text.split())}" if event.text else ""
            return f"{event.step}. {event.next}{why}{_sure(event.score)}"
        case Called():
            return f"   {event.call.name} {event.call.arguments}{_sure(event.score)}"
        case Observed():
            text = " ".join(event.observation.text.split())
            kind = "" if event.observation.kind == "result" else f"{event.observation.kind}: "
            return f"   ← {kind}{text[:_SHOWN]}{' …' if len(text) > _SHOWN else ''}"
        case NeedsApproval():
            return f"   {event.call.name} {event.call.arguments} needs a person: {event.why}"
        case _:
            return ""


def _sure(score: float | None) -> str:
    return "" if score is None else f" ({score:.2f})"


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
