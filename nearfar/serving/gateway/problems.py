"""What goes wrong, in OpenAI's error shape: which status, type and code each failure has, and whether to try again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from nearfar.errors import (
    BudgetExceeded,
    CircuitOpen,
    ContextTooLong,
    MalformedAnswer,
    ModelLoadError,
    NearfarError,
    RequestError,
    RoutingError,
    UnknownDecision,
    UnknownModel,
    UnsupportedOption,
    UpstreamError,
    UpstreamRateLimited,
    UpstreamRejected,
    UpstreamTimeout,
)
from nearfar.types import Decision

from .keys import scrub

_encode = msgspec.json.Encoder().encode

_INVALID = "invalid_request_error"
_SERVER = "server_error"
_QUOTA = "insufficient_quota"

#: Upstream statuses that say that the request is wrong; other 4xx (a bad key, an unknown model) are our own fault.
_REQUEST_AT_FAULT = frozenset({400, 413, 422})


#: Of a message or a field's name: a name of 16 MB is not told back to whoever sent it.
_MOST_CHARACTERS = 2_000


def _short(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…"


@dataclass(frozen=True, slots=True)
class Problem:
    """An HTTP error."""

    status: int
    message: str
    type: str
    code: str
    param: str | None = None
    retry_after_s: float | None = None
    should_retry: bool | None = None  # None: as the status says; official clients read it from `x-should-retry`
    decision_id: str | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()

    def to_error(self) -> dict[str, Any]:
        """The value of `error` in the body."""
        param = None if self.param is None else self.param[:_MOST_CHARACTERS]
        error = {"message": scrub(_short(self.message)), "type": self.type, "param": param, "code": self.code}
        if self.decision_id is not None:
            error["decision_id"] = self.decision_id
        return error

    def body(self) -> bytes:
        """The whole body."""
        return _encode({"error": self.to_error()})


def invalid(message: str, *, param: str | None = None, code: str = "invalid_value", status: int = 400) -> Problem:
    """A request that is wrong in itself."""
    return Problem(status, message, _INVALID, code, param)


def unauthorized() -> Problem:
    """No key, or a wrong one; which of the two is not told."""
    return Problem(
        401,
        "The API key is missing or wrong. Send one of this gateway's keys: `Authorization: Bearer nf-…`.",
        "authentication_error",
        "invalid_api_key",
        headers=((b"www-authenticate", b"Bearer"),),
    )


def overloaded(limit: int) -> Problem:
    """As many requests under way as are allowed."""
    message = f"{limit} requests are being answered, which is the limit. Try again in a second."
    return Problem(503, message, _SERVER, "overloaded", retry_after_s=1)


def stopping() -> Problem:
    """The gateway is being stopped, and does not wait for this answer any longer."""
    return Problem(503, "The gateway is being stopped. Ask again in a while.", _SERVER, "stopping")


def internal() -> Problem:
    """A fault of ours; its details are in the log, not here."""
    return Problem(500, "nearfar failed unexpectedly; its log says why.", _SERVER, "internal_error", should_retry=False)


def out_of_time() -> Problem:
    """No answer inside the deadline."""
    return Problem(504, "There was no answer in time.", _SERVER, "deadline_exceeded", should_retry=False)


def problem_of(error: NearfarError, param_names: Mapping[str, str]) -> Problem:
    """The HTTP error that stands for `error`.

    Args:
        param_names: the wire's names of a query's fields, where they differ.
    """
    if isinstance(error, RequestError):
        problem = _of_request_error(error, param_names)
    elif isinstance(error, UpstreamError):
        problem = _of_upstream_error(error)
    elif isinstance(error, BudgetExceeded):
        problem = Problem(402, str(error), _QUOTA, _QUOTA)
    elif isinstance(error, RoutingError):
        problem = invalid(str(error), code="no_tier")
    else:
        problem = internal()
    return replace(problem, decision_id=error.decision_id)


def _of_request_error(error: RequestError, param_names: Mapping[str, str]) -> Problem:
    param = param_names.get(error.param, error.param) if error.param else None
    if isinstance(error, UnknownModel):
        return invalid(str(error), param="model", code="model_not_found", status=404)
    if isinstance(error, UnknownDecision):
        return invalid(str(error), param=param, code="decision_not_found", status=404)
    if isinstance(error, UnsupportedOption):
        return invalid(str(error), param=param, code="unsupported_parameter")
    return invalid(str(error), param=param)


def _of_upstream_error(error: UpstreamError) -> Problem:
    message = str(error)
    retry_after_s = error.retry_after_s
    if isinstance(error, UpstreamRateLimited):
        return Problem(429, message, "rate_limit_error", "rate_limit_exceeded", retry_after_s=retry_after_s)
    if isinstance(error, ContextTooLong):
        return invalid(message, param="messages", code="context_length_exceeded")
    if isinstance(error, UpstreamRejected) and error.status in _REQUEST_AT_FAULT:
        return invalid(message, code="upstream_rejected")
    if isinstance(error, UpstreamTimeout):
        return Problem(504, message, _SERVER, "upstream_timeout", should_retry=False)
    if isinstance(error, CircuitOpen | ModelLoadError):
        return Problem(503, message, _SERVER, "model_unavailable", retry_after_s=retry_after_s)
    code = "upstream_malformed" if isinstance(error, MalformedAnswer) else "upstream_error"
    return Problem(502, message, _SERVER, code, retry_after_s=retry_after_s, should_retry=False)


#: What a planner's reason is about, and the status and code that it becomes. The first that any tier gives decides:
#: what money mends, then what the client must change.
_REFUSALS: Mapping[str, tuple[int, str]] = {
    "budget": (402, _QUOTA),
    "context": (400, "context_length_exceeded"),
    "capability": (400, "unsupported_parameter"),
    "privacy": (400, "privacy"),
}


def refusal(decision: Decision, param_names: Mapping[str, str]) -> Problem:
    """The HTTP error of a query that no tier may or can take."""
    message = decision.error or "No tier can take this query."
    problem = _of_refusal(decision, message)
    param = param_names.get(problem.param, problem.param) if problem.param else None
    return replace(problem, param=param, decision_id=decision.id)


def _of_refusal(decision: Decision, message: str) -> Problem:
    if decision.reason == "out_of_time":
        return replace(out_of_time(), message=message)
    if decision.reason == "out_of_budget":
        return Problem(402, message, _QUOTA, _QUOTA)
    dropped = {c.reason.partition(":")[0]: c for c in reversed(decision.candidates) if not c.is_eligible}
    if dropped.keys() <= _REFUSALS.keys():
        for about, (status, code) in _REFUSALS.items():
            if about in dropped:
                param = dropped[about].param
                code = "unsupported_content" if about == "capability" and param == "messages" else code
                return Problem(status, message, _QUOTA if status == 402 else _INVALID, code, param)
    return Problem(503, message, _SERVER, "model_unavailable")
