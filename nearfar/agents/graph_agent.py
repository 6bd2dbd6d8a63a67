"""Runs a graph as an `Agent`: streamed, limited, claimed by one process, and resumable from wherever it stopped."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

import anyio
import msgspec

from nearfar.errors import BudgetExceeded, NearfarError, RequestError, RunConflict, UnknownRun

from .checkpoints import RunStore
from .desk import Desk, OffPlan, State, elapsed_s
from .fitting import Fitting
from .journal import RunRecord
from .roles import Role
from .runs import new_run_id
from .toolbox import Toolbox
from .trace import spent
from .types import AgentEvent, Ended, Responder, RunResult, RunStatus, Task

if TYPE_CHECKING:
    from langgraph.graph import StateGraph

#: Nodes of one run; a step takes four of them at most, and the run's own limit on steps comes first.
_MOST_NODES = 10_000


class Graph(Protocol):
    """A kind of agent."""

    @property
    def roles(self) -> Sequence[str]:
        """The roles that it asks."""
        ...

    def graph(self) -> StateGraph[State, Desk, State, State]:
        """Its graph, to be compiled with a checkpointer."""
        ...


@dataclass(frozen=True, slots=True)
class Team:
    """Everything that a run works with, open; what it holds is closed by who opened it."""

    responder: Responder
    toolbox: Toolbox
    store: RunStore


class GraphAgent:
    """An agent of the kind that its graph is. The contract is `Agent`'s.

    Args:
        name: the agent's.
        graph: its kind.
        team: who answers, the tools, and where runs are kept.
        roles: by name; one that is left out answers with `auto`.
        off_plan: what becomes of a call that was not planned before anything was read: a person is asked, or it is
            refused.
        max_tools: how many tools a role is shown.
        choose_tools: names of the tools that fit a text, best first; None: the first ones.
    """

    def __init__(
        self,
        name: str,
        graph: Graph,
        team: Team,
        *,
        roles: Mapping[str, Role] | None = None,
        off_plan: OffPlan = "ask",
        max_tools: int = 8,
        choose_tools: Callable[[str, int], list[str]] | None = None,
    ) -> None:
        self._name = name
        self._team = team
        given = roles or {}
        if unknown := sorted(given.keys() - set(graph.roles)):
            raise RequestError(
                f"The agent {name!r} has no role {unknown[0]!r}; its roles are {', '.join(map(repr, graph.roles))}."
            )
        self._roles = {each: given.get(each, Role(each)) for each in graph.roles}
        self._off_plan: OffPlan = off_plan
        self._max_tools = max_tools
        self._choose_tools = choose_tools
        self._graph: Any = graph.graph().compile(checkpointer=team.store.saver)

    @property
    def name(self) -> str:
        """The agent's name."""
        return self._name

    @property
    def store(self) -> RunStore:
        """Where its runs are kept."""
        return self._team.store

    @property
    def toolbox(self) -> Toolbox:
        """Its tools."""
        return self._team.toolbox

    async def run(self, task: Task | str, *, run_id: str | None = None) -> RunResult:
        """How the run ended, or where it waits.

        Raises:
            RunConflict: there is a run of this id already.
            RequestError: the task is empty.
        """
        return await _last(self.stream(task, run_id=run_id))

    async def resume(self, run_id: str, approvals: Mapping[str, bool] | None = None) -> RunResult:
        """Goes on where the run stopped, with a person's answers by approval id; raises as `stream_resumed` does."""
        return await _last(self.stream_resumed(run_id, approvals))

    def run_sync(self, task: Task | str, *, run_id: str | None = None) -> RunResult:
        """Blocking twin of `run`, for scripts.

        Raises:
            RuntimeError: an event loop is already running in this thread.
        """
        return anyio.run(lambda: self.run(task, run_id=run_id))

    async def stream(self, task: Task | str, *, run_id: str | None = None) -> AsyncGenerator[AgentEvent, None]:
        """What the run does, as it does it; `Ended` is last. Closing it leaves a run that can be resumed."""
        task = Task(task) if isinstance(task, str) else task
        if not task.text.strip():
            raise RequestError("The task is empty; say what is to be done.", param="task")
        run_id = run_id or new_run_id()
        async with self._team.store.claim(run_id):
            if not await self._team.store.journal.begin_run(run_id, self._name, task):
                raise RunConflict(f"There is a run {run_id!r} already; resume it, or name another id.", param="run")
            async with aclosing(self._work(run_id, task)) as told:
                async for event in told:
                    yield event

    async def stream_resumed(
        self, run_id: str, approvals: Mapping[str, bool] | None = None
    ) -> AsyncGenerator[AgentEvent, None]:
        """What the run does from where it stopped; `Ended` is last. One that has ended tells how once more.

        Raises:
            UnknownRun: there is no such run.
            RunConflict: somebody works on it.
            RequestError: another agent began it, or an approval's id is not one that it waits for.
        """
        record = await self._record(run_id)
        run_id, journal = record.run_id, self._team.store.journal
        async with self._team.store.claim(run_id):
            if unknown := await journal.approve(run_id, approvals or {}):
                raise RequestError(
                    f"The run {run_id!r} waits for no approval {unknown[0]!r}; see: nearfar agent show {run_id}",
                    param="approvals",
                )
            async with aclosing(self._work(run_id, record.task)) as told:
                async for event in told:
                    yield event

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _record(self, run_id: str) -> RunRecord:
        record = await self._team.store.journal.run(run_id)
        if record is None:
            raise UnknownRun(f"There is no run {run_id!r}. List them: nearfar agent list", param="run")
        if record.agent != self._name:
            raise RequestError(f"The run {record.run_id!r} is of the agent {record.agent!r}, not of {self._name!r}.")
        return record

    async def _work(self, run_id: str, task: Task) -> AsyncGenerator[AgentEvent, None]:
        """One stretch of work: from the newest checkpoint to the end, an approval, or a failure."""
        journal = self._team.store.journal
        config = {"configurable": {"thread_id": run_id}, "recursion_limit": _MOST_NODES}
        await self._team.store.forget_cut_nodes(run_id)
        before = await self._graph.aget_state(config)
        start: Any = None
        if not before.values:
            start = {"task": msgspec.to_builtins(task), "trace": [], "step": 0}
        failure: NearfarError | None = None
        if start is not None or before.tasks:  # not `next`: it leaves out a node whose writes are saved already
            await journal.set_run(run_id, None)
            stream = self._graph.astream(
                start, config, context=self._desk(run_id, task), stream_mode="custom", durability="sync"
            )
            try:
                async with aclosing(stream) as told:
                    async for event in told:
                        yield event
            except NearfarError as exc:
                failure = exc
            finally:
                await self._team.store.settle()
        after = await self._graph.aget_state(config)
        result = _result(run_id, after.values, waits=bool(after.interrupts), failure=failure)
        await journal.set_run(run_id, result)
        yield Ended(result)

    def _desk(self, run_id: str, task: Task) -> Desk:
        return Desk(
            run_id,
            task,
            Fitting(self._team.responder),
            self._roles,
            self._team.toolbox,
            self._team.store.journal,
            off_plan=self._off_plan,
            max_tools=self._max_tools,
            choose_tools=self._choose_tools,
        )


def _result(run_id: str, state: State, *, waits: bool, failure: NearfarError | None) -> RunResult:
    used = spent(state.get("trace", []))
    outcome = state.get("outcome")
    status: RunStatus = "out_of_money" if isinstance(failure, BudgetExceeded) else "failed"
    reason = str(failure or "the run stopped without an answer")
    if failure is None and outcome:
        status, reason = cast("RunStatus", outcome["status"]), outcome["reason"]
    elif failure is None and waits:
        status, reason = "awaiting_approval", "a person must allow a call"
    return RunResult(
        run_id,
        status,
        state.get("text", ""),
        reason,
        used.usage,
        used.cost_usd,
        used.model_calls,
        used.tool_calls,
        elapsed_s(state),
    )


async def _last(stream: AsyncGenerator[AgentEvent, None]) -> RunResult:
    result: RunResult | None = None
    async with aclosing(stream) as told:
        async for event in told:
            if isinstance(event, Ended):
                result = event.result
    assert result is not None  # a stream ends with Ended or raises
    return result
