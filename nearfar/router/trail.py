"""What a run has done so far and what it has left: tries, costs, departures, time, and the decision made of them."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import msgspec

from nearfar.errors import BudgetExceeded, NearfarError, UpstreamError, UpstreamTimeout
from nearfar.types import (
    Answer,
    Candidate,
    Decision,
    DecisionReason,
    Departure,
    ModelCard,
    Query,
    Routing,
    SignalCost,
    Status,
    Step,
    StreamEvent,
    TextDelta,
    TokenLogprob,
    Verdict,
)

from .cascade import Cascade, Tier
from .judging import Judgement
from .sampled_signals import Probed


class Journal(Protocol):
    """Where a run reports its decision."""

    def record(self, decision: Decision) -> None: ...

    async def flush(self) -> None: ...


@dataclass(slots=True)
class Try:
    """One try of one tier, while it runs."""

    tier: Tier
    query: Query
    started: float
    strip: int | None  # alternatives per token to keep; None: log-probabilities were not asked for
    first_token_s: float | None = None

    def as_asked(self, event: StreamEvent) -> StreamEvent:
        """The event, without the log-probabilities that only the router asked for."""
        if isinstance(event, TextDelta) and event.logprobs:
            return TextDelta(event.text, _trim(event.logprobs, self.strip) or ())
        return event


class Trail:
    """One query's way through one cascade.

    Args:
        query: what was asked.
        cascade: which tiers there are.
        door: where the query came in.
        journal: gets exactly one decision.
    """

    candidates: tuple[Candidate, ...] = ()
    routing: Routing | None = None
    current: Try | None = None  # under way
    best: Answer | None = None  # of the latest tier that answered
    error: NearfarError | None = None  # of the latest tier that failed
    stopped_by: DecisionReason | None = None  # why no further tier is asked
    is_recorded = False

    def __init__(self, query: Query, cascade: Cascade, *, door: str, journal: Journal) -> None:
        self._query = query
        self._cascade = cascade
        self._door = door
        self._journal = journal
        self.id = new_decision_id()
        self._created_at = time.time()
        self.started = time.perf_counter()
        self.deadline = None if query.deadline_s is None else self.started + query.deadline_s
        self.latency_s: dict[str, float] = {}
        self.steps: list[Step] = []
        self._departures: list[Departure] = []

    # --- what is left ------------------------------------------------------------------------------------------------

    def spent(self) -> tuple[float | None, bool]:
        """US dollars that the steps and the choice before them cost (None: unknown), and whether that is estimated."""
        total, is_known, is_estimated = 0.0, True, False
        parts: Sequence[Step | SignalCost] = self.steps
        if self.routing is not None and self.routing.costs:
            parts = [*self.routing.costs, *self.steps]
        for part in parts:
            if part.cost_usd is None:
                is_known = False
            else:
                total += part.cost_usd
            if part.is_cost_estimated:
                is_estimated = True
        return total if is_known else None, is_estimated

    def seconds_left(self, tier: Tier) -> float | None:
        """For the tier; None: no limit."""
        if self.deadline is None:
            return tier.deadline_s
        left = max(0.0, self.deadline - time.perf_counter())
        return left if tier.deadline_s is None else min(left, tier.deadline_s)

    def is_out_of_time(self) -> bool:
        """Whether the query's deadline has passed."""
        if self.deadline is None:
            return False
        if self.stopped_by is None and time.perf_counter() >= self.deadline:
            self.stopped_by = "out_of_time"
        return self.stopped_by == "out_of_time"

    def too_late(self, tier: Tier) -> UpstreamTimeout:
        """The error of a tier that took until a deadline: the query's or its own."""
        if self.deadline is not None and (tier.deadline_s is None or time.perf_counter() >= self.deadline - 0.01):
            self.stopped_by = "out_of_time"
            limit = f"the query's deadline of {self._query.deadline_s:g} s"
        else:
            limit = f"the tier's deadline of {tier.deadline_s or 0:g} s"
        name = tier.model.card.name
        return UpstreamTimeout(f"{name} did not answer within {limit}.", model=name, may_have_cost=True)

    # --- what happens ------------------------------------------------------------------------------------------------

    def drop(self, tier: Tier, reason: str, param: str | None = None) -> None:
        """The tier is not tried."""
        self.candidates = tuple(
            replace(c, is_eligible=False, reason=reason, param=param) if c.tier == tier.name and c.is_eligible else c
            for c in self.candidates
        )

    def begin(self, tier: Tier, query: Query) -> Try:
        """The tier is asked."""
        card, asked = tier.model.card, self._query.sampling
        if card.placement == "far" and not card.is_recording:
            self._departures.append(_departure(card, query))
        self.current = Try(tier, query, time.perf_counter(), (asked.top_logprobs or 0) if asked.logprobs else None)
        return self.current

    def guided(self, card: ModelCard, costs: Iterable[SignalCost]) -> None:
        """A guide's model was asked."""
        if card.placement == "far" and not card.is_recording:
            self._departures += [_departure(card, self._query)] * sum(cost.calls for cost in costs)

    def answered(self, judgement: Judgement, answer: Answer, probed: Probed | None = None) -> None:
        """The try under way has ended with an answer."""
        current = self._finish()
        tier, card = current.tier, current.tier.model.card
        cost, is_estimated = answer.cost_usd, answer.is_cost_estimated
        if answer.is_cached:
            self._take_back_departure(card)
        elif answer.usage is None and cost is None:
            cost, is_estimated = card.cost_bound_usd(current.query), True
        signal_costs: tuple[SignalCost, ...] = ()
        if probed is not None:
            signal_costs, extra = probed.costs, probed.cost_usd
            cost = None if cost is None or extra is None else cost + extra
            is_estimated = is_estimated or any(each.is_cost_estimated for each in signal_costs)
            self._departures += [
                _departure(model.card, query)
                for model, query in probed.sent
                if model.card.placement == "far" and not model.card.is_recording
            ]
        self.steps.append(
            Step(
                tier.name,
                card.name,
                card.placement,
                judgement.verdict,
                judgement.reason,
                judgement.score,
                tier.threshold,
                tier.scorer is not None and tier.scorer.is_calibrated,
                judgement.signals,
                answer.usage,
                cost,
                is_estimated,
                self.latency_s[tier.name],
                current.first_token_s,
                answer.is_cached,
                answer.text,
                signal_costs,
            )
        )
        self.best = (
            answer if answer.logprobs is None else replace(answer, logprobs=_trim(answer.logprobs, current.strip))
        )

    def failed(self, exc: NearfarError, text: str = "") -> None:
        """The try under way has ended with an error, after so much text."""
        current = self._finish()
        card = current.tier.model.card
        if not (isinstance(exc, UpstreamError) and exc.was_sent):
            self._take_back_departure(card)
        if isinstance(exc, BudgetExceeded):
            self.stopped_by = "out_of_budget"
        self.error = exc
        may_have_cost = isinstance(exc, UpstreamError) and exc.may_have_cost
        cost_usd = card.cost_bound_usd(current.query) if may_have_cost else 0.0
        self.steps.append(
            self._broken_off(current, "failed", str(exc), cost_usd, is_estimated=may_have_cost, text=text)
        )

    def cancelled(self, probe_calls: int) -> None:
        """The asker went away during the try that is under way; its probes would take so many calls."""
        current = self._finish()
        cost_usd = current.tier.model.card.cost_bound_usd(current.query)
        if cost_usd and current.first_token_s is not None:  # the probes may have been under way
            cost_usd *= 1 + probe_calls
        step = self._broken_off(current, "cancelled", "the asker went away", cost_usd, is_estimated=True)
        self.steps.append(step)

    def record(
        self, status: Status, reason: DecisionReason, step: Step | None, *, error: str | None = None
    ) -> Decision:
        """The decision, which the journal gets unless it has one.

        Args:
            status: how the query ended.
            reason: why.
            step: the one that gave the answer; None: none did.
            error: what the asker is told where there is no answer.
        """
        self.latency_s["total"] = time.perf_counter() - self.started
        cost_usd, is_estimated = self.spent()
        routing = self.routing
        decision = Decision(
            self.id,
            self._created_at,
            status,
            reason,
            self._door,
            self._query.model,
            step.tier if step else None,
            step.model if step else None,
            step.score if step else None,
            step.threshold if step else None,
            step.is_calibrated if step else False,
            self._cascade.policy,
            1.0 if routing is None else routing.propensity,
            self.candidates,
            tuple(self.steps),
            tuple(self._departures),
            cost_usd,
            is_estimated,
            self.latency_s,
            msgspec.to_builtins(self._query),
            error,
            routing,
        )
        if not self.is_recorded:
            self.is_recorded = True
            self._journal.record(decision)
        return decision

    def _finish(self) -> Try:
        current = self.current
        if current is None:
            raise AssertionError("no try is under way")
        self.current = None
        name = current.tier.name
        self.latency_s[name] = self.latency_s.get(name, 0.0) + time.perf_counter() - current.started
        return current

    def _broken_off(
        self, current: Try, verdict: Verdict, reason: str, cost_usd: float | None, *, is_estimated: bool, text: str = ""
    ) -> Step:
        card = current.tier.model.card
        return Step(
            current.tier.name,
            card.name,
            card.placement,
            verdict,
            reason,
            cost_usd=cost_usd,
            is_cost_estimated=is_estimated,
            latency_s=self.latency_s[current.tier.name],
            first_token_s=current.first_token_s,
            text=text,
        )

    def _take_back_departure(self, card: ModelCard) -> None:
        if card.placement == "far" and not card.is_recording and self._departures:
            self._departures.pop()


def new_decision_id() -> str:
    """An id that sorts by time: 48 bits of milliseconds and 64 random bits, in hexadecimal."""
    return f"{time.time_ns() // 1_000_000:012x}{os.urandom(8).hex()}"


def _departure(card: ModelCard, query: Query) -> Departure:
    characters, lines = 0, []
    for message in query.messages:
        text = message.text
        characters += len(text)
        lines.append(f"{message.role}: {text}")
    return Departure(card.name, len(lines), characters, hashlib.sha256("\n".join(lines).encode()).hexdigest())


def _trim(logprobs: tuple[TokenLogprob, ...], keep: int | None) -> tuple[TokenLogprob, ...] | None:
    if keep is None:
        return None
    return tuple(replace(token, top=token.top[:keep]) for token in logprobs)
