"""What the agents' parts share: tools and their results, roles' models, agents and what they tell as they work."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from nearfar.types import Answer, Query, StreamEvent, ToolCall, ToolSpec, Usage

# --- tools -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ToolHints:
    """What a tool's maker says that it does (MCP's annotations). Hints, never trusted; None: unsaid."""

    read_only: bool | None = None
    destructive: bool | None = None
    idempotent: bool | None = None
    open_world: bool | None = None
    is_trusted: bool = False  # this machine's owner stands behind them: only then may they lower care


ObservationKind: TypeAlias = Literal[
    "result",
    "error",  # the tool said that it failed, or raised
    "timeout",
    "invalid",  # the call's name or arguments did not fit the tool's schema; nothing ran
    "denied",  # the policy forbids it; nothing ran
    "declined",  # a person said no; nothing ran
    "unreachable",  # the server that has the tool is gone
    "unknown",  # it was under way when the process died; it is not made again
]


@dataclass(frozen=True, slots=True)
class Observation:
    """What became of a call: what the next role sees. Its text is data from outside, never instructions."""

    text: str
    kind: ObservationKind = "result"
    structured: Any = None  # plain JSON values, where the tool gave such
    is_truncated: bool = False  # the text was cut to the bound
    latency_s: float = 0.0
    attempts: int = 1

    @property
    def is_error(self) -> bool:
        """Whether anything but a result came."""
        return self.kind != "result"


class Tool(Protocol):
    """Something that a role may call. The contract, tested by `tests/contracts/tool.py` on every implementation:

    - `spec.parameters` is a JSON Schema of an object;
    - what goes wrong is an observation, never an exception, but for cancellation, which stops the work;
    - many calls may run at once.
    """

    @property
    def spec(self) -> ToolSpec: ...

    @property
    def hints(self) -> ToolHints: ...

    async def call(self, arguments: Mapping[str, Any]) -> Observation:
        """Runs it. The arguments fit the schema: the toolbox has checked them."""
        ...


class ToolSource(Protocol):
    """Where tools come from: Python functions, an MCP server, an OpenAPI document."""

    @property
    def name(self) -> str: ...

    async def tools(self) -> Sequence[Tool]:
        """What it offers just now.

        Raises:
            ToolSourceError: it cannot be reached, or says what cannot be understood.
        """
        ...

    async def aclose(self) -> None:
        """Frees processes and connections. Twice is fine."""
        ...


# --- code ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CodeLimits:
    """What a piece of code may use."""

    seconds: float = 2.0
    memory_bytes: int = 64 * 2**20
    recursion: int = 200
    output_characters: int = 20_000
    calls: int = 100  # of granted functions


@dataclass(frozen=True, slots=True)
class CodeResult:
    """What a piece of code printed and gave back."""

    value: Any = None  # of the last expression; plain JSON values
    output: str = ""
    error: str | None = None  # one line: the exception or the limit that stopped it; None: it finished
    limit: Literal["time", "memory", "recursion", "output", "calls"] | None = None  # which limit, where one did
    seconds: float = 0.0


class CodeRunner(Protocol):
    """Runs Python that a model wrote, and lets nothing out but calls of the granted functions.

    The contract, tested by `tests/contracts/code_runner.py` on every implementation.
    """

    @property
    def name(self) -> str: ...

    async def run(
        self,
        code: str,
        *,
        inputs: Mapping[str, Any] | None = None,
        functions: Mapping[str, Callable[..., Any | Awaitable[Any]]] | None = None,
        limits: CodeLimits | None = None,
    ) -> CodeResult:
        """Runs the code with `inputs` as its variables; what goes wrong is a result, never an exception."""
        ...

    async def aclose(self) -> None: ...


# --- roles and agents ------------------------------------------------------------------------------------------------


class Responder(Protocol):
    """Who answers for a role: a `Router`, which takes the model's or cascade's name from `query.model`."""

    async def answer(self, query: Query, *, door: str = "agent") -> Answer: ...

    def stream(self, query: Query, *, door: str = "agent") -> AsyncGenerator[StreamEvent, None]: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """What a run may use; the first limit that is reached ends it."""

    steps: int = 12
    seconds: float = 120.0
    tokens: int | None = None
    usd: float | None = None
    repeats: int = 2  # how often the same call may be made before it is a loop


@dataclass(frozen=True, slots=True)
class Task:
    """What an agent is asked to do."""

    text: str
    session: str | None = None
    privacy: Literal["any", "near"] = "any"
    limits: Limits = field(default_factory=Limits)
    metadata: Mapping[str, str] = field(default_factory=dict)  # kept with every decision


RunStatus: TypeAlias = Literal[
    "answered",
    "gave_up",  # the planner said that it cannot be done
    "awaiting_approval",
    "out_of_steps",
    "out_of_time",
    "out_of_tokens",
    "out_of_money",
    "looped",  # the same call again and again
    "failed",
    "cancelled",
]


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run ended, or where it waits."""

    run_id: str
    status: RunStatus
    text: str = ""
    reason: str = ""  # in words, where it is not answered
    usage: Usage | None = None
    cost_usd: float | None = 0.0  # None: a step's cost is unknown
    model_calls: int = 0
    tool_calls: int = 0
    latency_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Planned:
    """The planner's rationale, and who is next."""

    step: int
    text: str
    next: str  # caller, summarizer, give up; or a step of the plan, as #E2
    score: float | None = None  # in [0, 1]: how sure the role is


@dataclass(frozen=True, slots=True)
class Called:
    """A call about to be made: valid, allowed and recorded."""

    step: int
    call: ToolCall
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Observed:
    """What became of a call."""

    step: int
    call_id: str
    tool: str
    observation: Observation


@dataclass(frozen=True, slots=True)
class Wrote:
    """The next piece of the final answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class Decided:
    """A role's model answered; the decision record tells why that model."""

    step: int
    role: str
    decision_id: str | None
    tier: str | None
    model: str
    score: float | None = None
    cost_usd: float | None = 0.0
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class NeedsApproval:
    """A call that a person must allow before it runs."""

    step: int
    approval_id: str
    call: ToolCall
    why: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The last event of every run."""

    result: RunResult


AgentEvent: TypeAlias = Planned | Called | Observed | Wrote | Decided | NeedsApproval | Ended


class Agent(Protocol):
    """Does a task with models and tools. The contract, tested by `tests/contracts/agent.py` on every graph:

    - `Ended` is the last event, once; the `Wrote` pieces, joined, are its text;
    - a call that runs was announced by `Called` before and is followed by one `Observed`;
    - a run that was cut at any point resumes by its id, and no call with side effects runs twice.
    """

    @property
    def name(self) -> str: ...

    async def run(self, task: Task | str, *, run_id: str | None = None) -> RunResult: ...

    def stream(self, task: Task | str, *, run_id: str | None = None) -> AsyncGenerator[AgentEvent, None]: ...

    async def resume(self, run_id: str, approvals: Mapping[str, bool] | None = None) -> RunResult:
        """Goes on where the run stopped, with a person's answers by approval id."""
        ...
