"""A run's trace: its events as plain JSON values, which is how checkpoints keep them, and what can be read off them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec

from nearfar.types import ToolCall, Usage

from .types import Called, Decided, NeedsApproval, Observation, Observed, Planned
from .untrusted import disarmed

TraceEvent: TypeAlias = Planned | Decided | Called | Observed | NeedsApproval

#: Events as plain JSON values, in the order in which they happened.
Trace: TypeAlias = Sequence[Mapping[str, Any]]

_KINDS: Mapping[str, type[TraceEvent]] = {
    "planned": Planned,
    "decided": Decided,
    "called": Called,
    "observed": Observed,
    "needs_approval": NeedsApproval,
}
_NAMES = {cls: name for name, cls in _KINDS.items()}

_MARK = 4  # characters; a small model loses its way in longer ones


def to_plain(event: TraceEvent) -> dict[str, Any]:
    """The event as plain JSON values."""
    # Through JSON, so that a tool's structured values come back from a checkpoint as what they went in as.
    plain: dict[str, Any] = json.loads(json.dumps(msgspec.to_builtins(event)))
    return {"event": _NAMES[type(event)], **plain}


def from_plain(plain: Mapping[str, Any]) -> TraceEvent:
    """The event of these values."""
    values = {name: value for name, value in plain.items() if name != "event"}
    return msgspec.convert(values, type=_KINDS[plain["event"]])


def events(trace: Trace) -> list[TraceEvent]:
    """The events of a trace, in the order of their steps: what ran side by side was noted as it came."""
    return sorted(map(from_plain, trace), key=lambda event: event.step)


def exchanges(trace: Trace) -> Iterator[tuple[Planned, Called | None, Observed]]:
    """What was planned, the call that was made of it, and what became of it; None: no call was made."""
    planned: Planned | None = None
    called: Called | None = None
    for event in events(trace):
        match event:
            case Planned():
                planned, called = event, None
            case Called():
                called = event
            case Observed() if planned is not None:
                yield planned, called, event
            case _:
                pass


@dataclass(frozen=True, slots=True)
class Spent:
    """What a run has used so far."""

    usage: Usage | None  # None: no model said
    cost_usd: float | None  # None: a step's cost is unknown
    model_calls: int
    tool_calls: int

    @property
    def tokens(self) -> int:
        """Prompts' and completions' together."""
        return self.usage.prompt_tokens + self.usage.completion_tokens if self.usage else 0


def spent(trace: Trace, role: str | None = None) -> Spent:
    """What the models and tools of a trace have used; of one role alone, if it is named, what its models have."""
    decided = [from_plain(each) for each in trace if each["event"] == "decided" and role in (None, each["role"])]
    usage: Usage | None = None
    cost_usd: float | None = 0.0
    for each in decided:
        assert isinstance(each, Decided)
        if each.usage is not None:
            usage = each.usage if usage is None else usage + each.usage
        cost_usd = None if cost_usd is None or each.cost_usd is None else cost_usd + each.cost_usd
    made = {each["call"]["id"] for each in trace if each["event"] == "called" and role is None}
    return Spent(usage, cost_usd, len(decided), len(made))


def times_made(trace: Trace, call: ToolCall) -> int:
    """How often the same tool was called with the same arguments."""
    wanted = (call.name, canonical(call.arguments))
    made = (each["call"] for each in trace if each["event"] == "called")
    return sum((each["name"], canonical(each["arguments"])) == wanted for each in made)


def canonical(arguments: str) -> str:
    """The arguments' JSON text, the same for all texts that say the same."""
    try:
        return json.dumps(json.loads(arguments or "{}"), sort_keys=True)
    except (ValueError, RecursionError):
        return arguments


def shown(observation: Observation) -> str:
    """The observation as the next role sees it: disarmed, and between marks that it cannot forge.

    Shorter than `quoted`, for roles whose system message says what the marks mean: a model of 135M parameters copies 9
    of 12 arguments right from this and 7 from that.
    """
    text = disarmed(observation.text)
    number = _mark(text)
    head = "" if observation.kind == "result" else f"{observation.kind}: "
    return f"{head}<data {number}>\n{text}\n</data {number}>"


def _mark(text: str) -> str:
    """A number that the text does not hold, made of the text: the same text always reads the same."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    pieces = (digest[at : at + _MARK] for at in range(0, len(digest), _MARK))
    return next((piece for piece in pieces if piece not in text), digest)


def observed_calls(trace: Iterable[Mapping[str, Any]]) -> int:
    """How many calls were made or refused."""
    return sum(each["event"] == "observed" for each in trace)
