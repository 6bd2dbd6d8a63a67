"""Every error that nearfar raises.

NearfarError
├── ConfigError                fix it before any request: a setting, a missing file, a missing extra
├── DataError                  a table, policy, batch or store file cannot be used: .path
├── RequestError               the query itself is not acceptable: .param
│   ├── UnknownModel           no such model or cascade: .model
│   ├── UnknownDecision        no such decision in the log
│   ├── UnknownRun             no such run of an agent
│   ├── RunConflict            somebody else has begun the run, works on it, or has answered for it
│   └── UnsupportedOption      nothing here can honour the option named in .param
├── ToolSourceError            an MCP server or an OpenAPI document offers nothing that can be used: .source
├── RoutingError               no tier can take this query: .reasons
│   └── BudgetExceeded         the money is spent or reserved
└── UpstreamError              a model failed: .model, .status, .retry_after_s, .may_have_cost
    ├── ModelLoadError         weights missing or broken
    ├── UpstreamUnavailable    refused, reset, 5xx
    │   └── CircuitOpen        the breaker is open; nothing was sent
    ├── UpstreamRateLimited    429, or our own limit
    ├── UpstreamRejected       4xx: the server understood and said no
    │   └── ContextTooLong     the prompt does not fit the context window
    ├── UpstreamTimeout        not in time
    └── MalformedAnswer        not what the wire format says

Messages are one line, name the thing with `!r` and say what to do next.
"""

from __future__ import annotations

from collections.abc import Mapping


class NearfarError(Exception):
    """Root of the tree; `decision_id` is set when the failed query left a decision record."""

    decision_id: str | None = None


class ConfigError(NearfarError):
    """A setting is wrong or something that a setting needs is not there."""


class DataError(NearfarError):
    """A file of data cannot be used."""

    def __init__(self, message: str, *, path: str | None = None) -> None:
        super().__init__(message)
        self.path = path


class RequestError(NearfarError):
    """The query is not acceptable; `param` names the field at fault."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class UnknownModel(RequestError):
    """No model or cascade has this name."""

    def __init__(self, message: str, *, model: str) -> None:
        super().__init__(message, param="model")
        self.model = model


class UnknownDecision(RequestError):
    """No decision in the log has this id."""


class UnknownRun(RequestError):
    """No agent's run has this id."""


class RunConflict(RequestError):
    """What somebody else did to the run came first: begun it, works on it, or has answered what it asked."""


class UnsupportedOption(RequestError):
    """Nothing that may take the query can honour the option named in `param`."""


class ToolSourceError(NearfarError):
    """What should offer tools cannot be reached, or says what cannot be understood; `source` is its name."""

    def __init__(self, message: str, *, source: str) -> None:
        super().__init__(message)
        self.source = source


class RoutingError(NearfarError):
    """No tier can take this query; `reasons` says why, by tier."""

    def __init__(self, message: str, *, reasons: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.reasons: Mapping[str, str] = reasons or {}


class BudgetExceeded(RoutingError):
    """The call could cost more than what is left; nothing was sent."""


class UpstreamError(NearfarError):
    """A model failed.

    Attributes:
        model: the model's name in the config.
        status: HTTP status, where there was one.
        retry_after_s: how long the server asked to be left alone.
        may_have_cost: the provider may charge for the failed call (it had begun to answer, or nobody knows).
        was_sent: the query, or part of it, may have reached the server.
    """

    #: Whether the same call may succeed a little later; the retry wrapper and the circuit breaker read it.
    is_transient = False

    def __init__(
        self,
        message: str,
        *,
        model: str,
        status: int | None = None,
        retry_after_s: float | None = None,
        may_have_cost: bool = False,
        was_sent: bool = True,
    ) -> None:
        super().__init__(message)
        self.model = model
        self.status = status
        self.retry_after_s = retry_after_s
        self.may_have_cost = may_have_cost
        self.was_sent = was_sent


class ModelLoadError(UpstreamError):
    """The weights are missing or broken."""


class UpstreamUnavailable(UpstreamError):
    """The server refused, reset the connection or answered 5xx."""

    is_transient = True


class CircuitOpen(UpstreamUnavailable):
    """The breaker is open after repeated failures; nothing was sent."""


class UpstreamRateLimited(UpstreamError):
    """The server, or our own limit, said: too many requests."""

    is_transient = True


class UpstreamRejected(UpstreamError):
    """The server understood the request and said no (4xx)."""


class ContextTooLong(UpstreamRejected):
    """The prompt does not fit into the model's context window."""


class UpstreamTimeout(UpstreamError):
    """No answer, or not the whole answer, in time."""

    is_transient = True


class MalformedAnswer(UpstreamError):
    """The answer is not what the wire format says."""
