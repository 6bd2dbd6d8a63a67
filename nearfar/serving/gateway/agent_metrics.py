"""Counts and times of what agents do over HTTP, for Prometheus: runs, steps, model calls, tool calls, approvals."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from nearfar.agents.journal import Waiting
from nearfar.agents.types import AgentEvent, Called, Decided, Ended, NeedsApproval, Observed, Planned

#: From a run of one step to the limits that configs give.
_BUCKETS_STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 48)
#: From a calculation to a tool that is waited for.
_BUCKETS_S = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)

#: How a stretch ended that has not ended by itself: its client went away, its time was up, the gateway was stopped.
CUT = "cut"
#: How one ended by a fault of ours or of what keeps runs.
ERROR = "error"

_NONE = "none"
#: The label of names that a model has made up, so that it cannot make up labels.
_UNKNOWN = "unknown"


class AgentMetrics:
    """What agents do in one gateway; labels are names of the config and of tools that are there.

    Args:
        registry: the gateway's; None: one of their own.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = registry or CollectorRegistry()
        self._runs = Counter(
            "nearfar_agent_runs",
            "Stretches of runs, by how they ended: as the run's status, cut, or by an error.",
            ("agent", "outcome"),
            registry=registry,
        )
        self._in_flight = Gauge("nearfar_agent_runs_in_flight", "Runs being worked on.", ("agent",), registry=registry)
        self._seconds = Histogram(
            "nearfar_agent_run_seconds",
            "From the beginning of a stretch of a run to its end.",
            ("agent",),
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self._steps = Histogram(
            "nearfar_agent_run_steps",
            "Steps of runs that have ended.",
            ("agent",),
            buckets=_BUCKETS_STEPS,
            registry=registry,
        )
        self._model_calls = Counter(
            "nearfar_agent_model_calls",
            "Answers of roles' models, by the tier that answered.",
            ("agent", "role", "tier"),
            registry=registry,
        )
        self._tokens = Counter(
            "nearfar_agent_tokens", "Tokens of roles' models.", ("agent", "role", "kind"), registry=registry
        )
        self._cost = Counter(
            "nearfar_agent_cost_usd",
            "What answers of roles' models cost, where that is known.",
            ("agent", "role"),
            registry=registry,
        )
        self._tool_calls = Counter(
            "nearfar_agent_tool_calls",
            "Calls of tools, by what was observed.",
            ("agent", "tool", "outcome"),
            registry=registry,
        )
        self._tool_seconds = Histogram(
            "nearfar_agent_tool_seconds",
            "How long tools took that ran.",
            ("agent", "tool"),
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self._answers = Counter(
            "nearfar_agent_approvals",
            "Calls that a person has allowed or denied by this gateway.",
            ("agent", "answer"),
            registry=registry,
        )
        self._waiting = Gauge(
            "nearfar_agent_approvals_waiting",
            "Calls that wait for a person, whoever has asked.",
            ("agent",),
            registry=registry,
        )
        self._oldest = Gauge(
            "nearfar_agent_approval_oldest_seconds",
            "How long the first of them has waited; 0: none waits.",
            ("agent",),
            registry=registry,
        )

    async def counted(
        self,
        agent: str,
        events: AsyncGenerator[AgentEvent, None],
        *,
        is_new: bool,
        knows: Callable[[str], bool],
    ) -> AsyncGenerator[AgentEvent, None]:
        """The events of a stretch of a run, counted as they pass.

        A run that has ended and is only told of again is not counted; nor is what fails before the first event, which
        is an error reply.

        Args:
            agent: its name.
            events: of the stretch.
            is_new: the run begins with it.
            knows: whether there is a tool of this name.
        """
        start, step, has_worked, outcome = time.perf_counter(), 0, is_new, CUT
        is_told = False
        with self._in_flight.labels(agent).track_inprogress():
            try:
                async for event in events:
                    if isinstance(event, Ended):
                        outcome = event.result.status
                        has_worked |= outcome == "failed"
                        if has_worked and outcome != "awaiting_approval":
                            self._steps.labels(agent).observe(step)
                    else:
                        step = max(step, _step(event))
                        has_worked = True
                        self._count(agent, event, knows)
                    is_told = True
                    yield event
            except Exception:
                outcome = ERROR
                has_worked &= is_told
                raise
            finally:
                if has_worked or outcome == CUT:
                    self._runs.labels(agent, outcome).inc()
                    self._seconds.labels(agent).observe(time.perf_counter() - start)

    def count_answer(self, agent: str, *, is_allowed: bool) -> None:
        """Counts one answer of a person."""
        self._answers.labels(agent, "allowed" if is_allowed else "denied").inc()

    def show_waiting(self, agents: Collection[str], waiting: Mapping[str, Waiting], now: float) -> None:
        """Says of each agent how many calls wait for a person, and since when.

        Args:
            agents: of the config; others that share the store are left out.
            waiting: by agent; one that is not there has none.
            now: Unix time in seconds.
        """
        for agent in agents:
            found = waiting.get(agent)
            self._waiting.labels(agent).set(found.num_calls if found else 0)
            self._oldest.labels(agent).set(max(0.0, now - found.since) if found else 0.0)

    def forget_waiting(self) -> None:
        """Shows no number where nobody knows it."""
        self._waiting.clear()
        self._oldest.clear()

    def _count(self, agent: str, event: AgentEvent, knows: Callable[[str], bool]) -> None:
        match event:
            case Decided():
                self._model_calls.labels(agent, event.role, event.tier or _NONE).inc()
                if event.usage is not None:
                    self._tokens.labels(agent, event.role, "prompt").inc(event.usage.prompt_tokens)
                    self._tokens.labels(agent, event.role, "completion").inc(event.usage.completion_tokens)
                if event.cost_usd:
                    self._cost.labels(agent, event.role).inc(event.cost_usd)
            case Observed(tool=tool, observation=seen):
                name = tool if knows(tool) else _UNKNOWN
                self._tool_calls.labels(agent, name, seen.kind).inc()
                if seen.attempts:
                    self._tool_seconds.labels(agent, name).observe(seen.latency_s)
            case _:
                pass


def _step(event: AgentEvent) -> int:
    match event:
        case Planned() | Called() | Observed() | Decided() | NeedsApproval():
            return event.step
        case _:
            return 0
