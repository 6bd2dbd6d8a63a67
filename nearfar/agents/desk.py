"""What every node of every graph works with, and the nodes that all graphs share: a call's gate and the call itself.

Nodes are thin: they read the state, ask pure functions, and give back what is new. A node has one side effect at most,
or one interrupt; the graph's checkpoint before it is on the disk.
"""

from __future__ import annotations

import asyncio
import operator
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeAlias, TypedDict

import msgspec
from langchain_core.runnables import RunnableConfig
from langgraph.runtime import Runtime
from langgraph.types import interrupt

from nearfar.types import Message, ToolCall, ToolSpec

from . import limits
from .journal import Journal
from .roles import Ask, Role, RoleAnswer, written
from .scope import Scope
from .toolbox import Toolbox
from .trace import spent, to_plain
from .types import Called, NeedsApproval, Observation, Observed, Responder, RunStatus, Task, Wrote

#: What becomes of a call that the plan does not have.
OffPlan: TypeAlias = Literal["ask", "refuse"]


def merged(before: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Both, the new values where both have one."""
    return {**before, **new}


def longest(before: dict[str, float], new: dict[str, float]) -> dict[str, float]:
    """Both, the larger values where both have one."""
    return {**before, **{key: max(value, before.get(key, 0.0)) for key, value in new.items()}}


class State(TypedDict, total=False):
    """What checkpoints keep: plain JSON values, so that no class has to be built to read them."""

    task: dict[str, Any]
    trace: Annotated[list[dict[str, Any]], operator.add]
    elapsed: Annotated[dict[str, float], longest]  # seconds of work by graph step; what runs side by side counts once
    step: int
    scope: dict[str, Any]
    plan: dict[str, Any]  # what the graph has planned, in its own form
    evidence: Annotated[dict[str, Any], merged]  # by step of a plan: what became of its call
    admitted: Annotated[dict[str, Any], merged]  # by step of a plan: its call, checked, and whether a person allowed it
    call: dict[str, Any] | None  # the call that comes next, once it was written
    call_score: float | None  # how sure its writer is
    is_approved: bool  # a person has allowed it
    text: str  # the answer
    outcome: dict[str, str]  # status and reason; there once the run has ended


Update: TypeAlias = dict[str, Any]

_LEAST_S = 0.05

DECLINED = Observation("a person said no; nothing ran", "declined", attempts=0)


@dataclass(frozen=True, slots=True)
class Desk:
    """One run's own: the task, who answers, the tools, and where calls are written down."""

    run_id: str
    task: Task
    responder: Responder
    roles: Mapping[str, Role]
    toolbox: Toolbox
    journal: Journal
    off_plan: OffPlan = "ask"
    max_tools: int = 8  # how many tools a role is shown
    choose_tools: Callable[[str, int], list[str]] | None = None  # names of the fitting ones; None: the first ones
    clock: Callable[[], float] = field(default=time.perf_counter, repr=False)

    def ask(self, state: State, role: str, *messages: Message, **options: Any) -> Ask:
        """A question within what the run's limits, and the role's own, leave."""
        trace = state.get("trace", [])
        bounds, used = self.task.limits, spent(trace)
        own, used_by_role = self.roles[role], spent(trace, role)
        left_s = bounds.seconds - elapsed_s(state)
        left_usd = [
            0.0 if cost is None else max(0.0, most - cost)  # None: a step's cost is unknown, so nothing is left
            for most, cost in ((bounds.usd, used.cost_usd), (own.usd, used_by_role.cost_usd))
            if most is not None
        ]
        return Ask(
            messages,
            state.get("step", 0),
            deadline_s=max(_LEAST_S, left_s),
            budget_usd=min(left_usd, default=None),
            max_tokens=None if bounds.tokens is None else max(1, bounds.tokens - used.tokens),
            draw_tokens=None if own.tokens is None else own.tokens - used_by_role.tokens,
            privacy=self.task.privacy,
            session=self.task.session,
            metadata=self.task.metadata,
            **options,
        )

    def limit(self, state: State, *, step: int) -> Update | None:
        """What ends the run; None: it may go on."""
        found = limits.reached(self.task.limits, state.get("trace", []), step=step, elapsed_s=elapsed_s(state))
        return ended(*found) if found else None


#: How a node is given what it works with.
At: TypeAlias = Runtime[Desk]


def ended(status: RunStatus, reason: str = "") -> Update:
    """The update that ends a run."""
    return {"outcome": {"status": status, "reason": reason}}


def noted(at: At, *events: Any) -> Update:
    """Tells of the events, and the update that keeps them; pieces of text are told and not kept."""
    for event in events:
        at.stream_writer(event)
    return {"trace": [to_plain(event) for event in events if not isinstance(event, Wrote)]}


def answer_with(at: At, text: str, *events: Any) -> Update:
    """Tells of the events and then the answer, and the update that ends the run with it."""
    return {"text": text, **ended("answered"), **noted(at, *events, Wrote(text))}


async def answer_as_written(at: At, role: str, ask: Ask) -> Update:
    """Tells the role's answer as it is written, and the update that ends the run with it."""
    desk = at.context
    async for event in written(desk.responder, desk.roles[role], ask):
        match event:
            case Wrote():
                at.stream_writer(event)
            case RoleAnswer():
                said = event
    return {"text": said.answer.text, **ended("answered"), **noted(at, *said.decided)}


def timed(node: Callable[[State, At], Any]) -> Any:
    """The node, with the seconds that it worked added to the run's."""

    async def measured(state: State, runtime: At, config: RunnableConfig) -> Update:
        start = runtime.context.clock()
        update: Update = await node(state, runtime)
        number = str(config["metadata"]["langgraph_step"])
        return {**update, "elapsed": {number: runtime.context.clock() - start}}

    return measured


def elapsed_s(state: State) -> float:
    """Seconds that the run has worked."""
    return sum(state.get("elapsed", {}).values())


def call_of(state: State) -> ToolCall:
    """The call that comes next."""
    found = state.get("call")
    assert found is not None  # the graphs lead to a call's nodes only once it is written
    return ToolCall(**found)


def scope_of(state: State) -> Scope:
    """What the run may do unasked."""
    return msgspec.convert(state.get("scope") or {}, type=Scope)


def plain_scope(scope: Scope) -> dict[str, Any]:
    """The scope as plain JSON values."""
    plain: dict[str, Any] = msgspec.to_builtins(scope)
    return plain


def candidates(desk: Desk) -> list[ToolSpec]:
    """The tools that the task may need, the fitting ones where there are many."""
    specs = desk.toolbox.specs()
    if len(specs) <= desk.max_tools:
        return list(specs)
    if desk.choose_tools is None:
        return list(specs[: desk.max_tools])
    chosen = desk.choose_tools(desk.task.text, desk.max_tools)
    by_name = {spec.name: spec for spec in specs}
    return [by_name[name] for name in chosen if name in by_name]


# --- the nodes that all graphs share ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether a call may be made: at once, if a person allows it, or not at all and why."""

    action: Literal["allow", "ask", "refuse"]
    observation: Observation | None = None  # what the next role sees where it is refused
    why: str = ""


def admission(desk: Desk, call: ToolCall, objection: str | None = None) -> Admission:
    """What validity, the policy and the plan say of a call; each may only add care to what the others say.

    Args:
        desk: of the run.
        call: as the caller wrote it.
        objection: why it is not part of the plan; None: it is.
    """
    problem = desk.toolbox.problem(call)
    if problem is not None:
        return Admission("refuse", Observation(problem, "invalid", attempts=0), problem)
    verdict = desk.toolbox.check(call)
    if verdict.action == "deny":
        return Admission("refuse", Observation(f"{verdict.why}; nothing ran", "denied", attempts=0), verdict.why)
    if objection is not None and desk.off_plan == "refuse":
        return Admission("refuse", Observation(f"{objection}; nothing ran", "denied", attempts=0), objection)
    if objection is not None:
        return Admission("ask", why=objection)
    return Admission("ask", why=verdict.why) if verdict.action == "ask" else Admission("allow")


async def person_says(desk: Desk, tell: Callable[[Any], None], call: ToolCall, *, step: int, why: str) -> bool:
    """What a person says of the call; the run is interrupted where nobody has said it yet."""
    said = await desk.journal.ask(desk.run_id, call, step=step, why=why)
    if said is not None:
        return said
    event = NeedsApproval(step, call.id, call, why)
    tell(event)
    return bool(interrupt(to_plain(event)))


async def gate(state: State, runtime: At) -> Update:
    """Lets the call pass, asks a person, or refuses it; the one place that interrupts a run."""
    desk, call, step = runtime.context, call_of(state), state.get("step", 0)
    if (looped := limits.loop(desk.task.limits, state.get("trace", []), call)) is not None:
        return ended("looped", looped)
    admitted = admission(desk, call, scope_of(state).objection(call, state.get("trace", [])))
    if admitted.action == "allow":
        return {"is_approved": False}
    observation = admitted.observation
    if admitted.action == "ask":
        if await person_says(desk, runtime.stream_writer, call, step=step, why=admitted.why):
            return {"is_approved": True}
        observation = DECLINED
    assert observation is not None  # a refusal says why
    return {"call": None, **noted(runtime, Observed(step, call.id, call.name, observation))}


async def make_call(state: State, runtime: At) -> Update:
    """Makes the call, and gives back what became of it. The only node with side effects outside this process."""
    desk, call, step = runtime.context, call_of(state), state.get("step", 0)
    called = Called(step, call, state.get("call_score"))
    left_s = desk.task.limits.seconds - elapsed_s(state)
    observation = await made(
        desk, call, runtime.stream_writer, called, is_approved=state.get("is_approved", False), left_s=left_s
    )
    observed = Observed(step, call.id, call.name, observation)
    runtime.stream_writer(observed)
    return {"call": None, "trace": [to_plain(called), to_plain(observed)]}


async def made(
    desk: Desk, call: ToolCall, tell: Callable[[Any], None], called: Called, *, is_approved: bool, left_s: float
) -> Observation:
    """What became of the call, which is made once at most if it has side effects, however often a run is resumed.

    Args:
        desk: of the run.
        call: valid and allowed.
        tell: takes `called` once the call is written down, before it is made.
        called: the event.
        is_approved: a person has allowed it.
        left_s: seconds that the run has left.
    """
    is_repeatable = desk.toolbox.is_repeatable(call.name)
    begun = await desk.journal.begin_call(desk.run_id, call, step=called.step, is_repeatable=is_repeatable)
    tell(called)
    if begun is not None and begun.observation is not None:
        return begun.observation
    if begun is not None and not is_repeatable:
        observation = Observation(
            "it was under way when the process died: it may have done its work or not, and is not made again",
            "unknown",
            attempts=begun.times_begun,
        )
        await desk.journal.end_call(desk.run_id, call.id, observation)
        return observation
    if begun is not None:
        await desk.journal.repeat_call(desk.run_id, call.id)
    try:
        async with asyncio.timeout(max(_LEAST_S, left_s)):
            observation = await desk.toolbox.run(call, is_approved)
    except TimeoutError:
        observation = Observation("the run's time was up before it answered", "timeout")
    await desk.journal.end_call(desk.run_id, call.id, observation)
    return observation
