"""What a batch says of each record, and how far it is."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import msgspec

Outcome: TypeAlias = Literal["answered", "abstained", "refused", "failed", "invalid"]
OUTCOMES: tuple[Outcome, ...] = ("answered", "abstained", "refused", "failed", "invalid")


_encode = msgspec.json.Encoder().encode


class Result(msgspec.Struct):
    """A line of the output."""

    index: int  # of the record, from 0
    line: int  # of the input, from 1
    status: Outcome
    id: str | int | None = None
    answer: str | None = None
    tier: str | None = None
    model: str | None = None
    score: float | None = None
    calibrated: bool = False
    cost_usd: float | None = None
    latency_s: float | None = None
    decision_id: str | None = None
    error: str | None = None
    tool_calls: list[dict[str, str]] | msgspec.UnsetType = msgspec.UNSET
    signals: dict[str, float] | msgspec.UnsetType = msgspec.UNSET
    kept: dict[str, Any] = {}

    def encode(self) -> bytes:
        """The line, with the kept fields beside the others."""
        fields = {name: getattr(self, name) for name in COLUMNS}
        shown = {name: value for name, value in fields.items() if value is not msgspec.UNSET}
        return _encode(shown | self.kept)


#: Every field of a result but the kept ones.
COLUMNS = Result.__struct_fields__[:-1]


@dataclass(slots=True)
class Progress:
    """How far a batch is; the same object at every call of `on_progress`."""

    total: int
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    resumed: int = 0  # records that an earlier run had finished
    cost_usd: float = 0.0  # of all runs; what a killed run had in flight counts at the most that it may have cost
    has_unknown_cost: bool = False
    started: float = field(default_factory=time.perf_counter)

    @property
    def done(self) -> int:
        """Records with a result, of all runs."""
        return sum(self.counts.values())

    @property
    def num_bad(self) -> int:
        """Records without an answer: refused, failed or invalid."""
        return self.counts["refused"] + self.counts["failed"] + self.counts["invalid"]

    @property
    def elapsed_s(self) -> float:
        """Of this run."""
        return time.perf_counter() - self.started
