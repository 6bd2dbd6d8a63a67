"""A query's life: plan, try, judge, commit, record.

A run gives a whole answer, or yields its stream's events. Outcomes (refused, abstained, out of budget) are
answers with a decision; only a query that nobody answered because its models failed raises.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import msgspec

from nearfar.errors import (
    BudgetExceeded,
    NearfarError,
    RequestError,
    RoutingError,
    UpstreamError,
    UpstreamTimeout,
)
from nearfar.time_limit import TimeLimit
from nearfar.types import (
    Answer,
    Candidate,
    Decision,
    DecisionReason,
    Departure,
    Message,
    ModelCard,
    Query,
    ReasoningDelta,
    Routing,
    SignalCost,
    Signals,
    Status,
    Step,
    StreamEnd,
    StreamEvent,
    StreamStart,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    Verdict,
)

from .asked_signals import asked_probes
from .cascade import Cascade, Chooser, Guide, Onward, Tier, continuation, handed_on, rewritten, with_draft
from .planning import candidates_of, within_budget
from .sampled_signals import Probe, Probed, probe_all
from .signals import TOP_LOGPROBS, answer_signals, logprob_signals

#: What the system says when it abstains.
ABSTENTION = "I don't know."


@dataclass(slots=True)
class _Try:
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


@dataclass(slots=True)
class _Judgement:
    verdict: Verdict
    reason: str  # in words
    score: float | None
    signals: Signals
    code: DecisionReason = "last_tier"  # why it would be the final answer


class Journal(Protocol):
    """Where a run reports its decision."""

    def record(self, decision: Decision) -> None: ...

    async def flush(self) -> None: ...


class Run:
    """One query on its way through one cascade; good for one call of `answer` or `events`.

    Args:
        cascade: the tiers.
        query: checked already.
        door: where the query came in.
        is_named: the query names a model and not a cascade.
        journal: gets exactly one decision.

    Raises:
        RequestError: the query asks for a signal that there is not.
    """

    _candidates: tuple[Candidate, ...] = ()
    _asked: tuple[Probe, ...] = ()  # what the query wants to know of its answers
    _best: Answer | None = None  # of the latest tier that answered
    _unfinished: Tier | None = None  # deferred on its prefix, so there is no whole answer to fall back on
    _current: _Try | None = None
    _stopped_by: DecisionReason | None = None
    _error: NearfarError | None = None
    _is_recorded = False
    _routing: Routing | None = None
    _finals: frozenset[str] = frozenset()  # tiers that are the best of those left, though not the last of them
    _fallbacks: frozenset[str] = frozenset()  # tiers that a routing passed over, in case that the others fail
    _handed_on: str | None = None  # the tier that goes on with the latest answer
    _hops = 0  # handovers so far

    def __init__(self, cascade: Cascade, query: Query, *, door: str, is_named: bool, journal: Journal) -> None:
        self._journal = journal
        self._is_named = is_named
        self._cascade = cascade
        self._query = query
        if query.signals:
            self._asked = asked_probes(query.signals)
        self._door = door
        self._id = new_decision_id()
        self._created_at = time.time()
        self._started = time.perf_counter()
        self._deadline = None if query.deadline_s is None else self._started + query.deadline_s
        self._latency_s: dict[str, float] = {}
        self._steps: list[Step] = []
        self._departures: list[Departure] = []
        self._queue: list[Tier] = []  # the tiers in order; a guide may change those to come
        self._eligible: list[Tier] = []  # the tiers that a guide may name

    async def answer(self) -> Answer:
        """The whole answer; the decision is written before it is given."""
        try:
            tiers = self._queue = self._plan()
            if self._cascade.chooser is not None and len(tiers) > 1:
                tiers = self._queue = await self._routed(self._cascade.chooser, tiers)
            if self._cascade.guide is not None and tiers:
                tiers = self._queue = await self._guided(self._cascade.guide, tiers)
            for i, tier in enumerate(tiers):
                if self._must_stop(tier):
                    break
                answer = await self._try_whole(tier, is_last=i + 1 == len(tiers) or tier.name in self._finals)
                if answer is not None:
                    return answer
            return await self._out_of_tiers()
        except BaseException as exc:
            await self._note_end_by(exc)
            raise

    async def events(self) -> AsyncGenerator[StreamEvent, None]:
        """The answer as a stream; the decision is written before the last event."""
        answer: Answer | None = None
        try:
            tiers = self._queue = self._plan()
            if self._cascade.chooser is not None and len(tiers) > 1:
                tiers = self._queue = await self._routed(self._cascade.chooser, tiers)
            if self._cascade.guide is not None and tiers:
                tiers = self._queue = await self._guided(self._cascade.guide, tiers)
            for i, tier in enumerate(tiers):
                if self._must_stop(tier):
                    break
                later = tiers[i + 1 :]
                is_last = not later or tier.name in self._finals
                if self._may_stream(tier, is_last) and not self._may_hand_on(tier):
                    query = self._prepared(tier)
                    if query is None:
                        continue
                    async with aclosing(self._stream(tier, query, later, is_last)) as events:
                        async for event in events:
                            yield event
                            if isinstance(event, StreamEnd):
                                return
                    continue
                answer = await self._try_whole(tier, is_last=is_last)
                if answer is not None:
                    break
            for event in self._pieces(answer or await self._out_of_tiers()):
                yield event
        except BaseException as exc:
            await self._note_end_by(exc)
            raise

    def _plan(self) -> list[Tier]:
        self._candidates = candidates_of(self._query, self._cascade)
        tiers = [tier for tier, c in zip(self._cascade.tiers, self._candidates, strict=True) if c.is_eligible]
        if len(tiers) > 1 and self._cascade.chooser is None and not self._query.wants_signals:
            tiers = self._useful_first(tiers)
        self._latency_s["plan"] = time.perf_counter() - self._started
        return tiers

    def _useful_first(self, tiers: list[Tier]) -> list[Tier]:
        """The tiers, those behind the others whose answers would only be thrown away."""
        useless = [
            tier
            for tier, later in pairwise(tiers)
            if tier.accepts_nothing and not later.wants_draft and self._query.when_unsure == "best"
        ]
        if not useless:
            return tiers
        useful = [tier for tier in tiers if tier not in useless]
        self._finals = frozenset([useful[-1].name])
        self._fallbacks = frozenset(tier.name for tier in useless)
        why = "asked only if the others fail: the policy accepts no answer of this tier"
        self._candidates = tuple(replace(c, reason=why) if c.tier in self._fallbacks else c for c in self._candidates)
        return [*useful, *useless]

    async def _routed(self, chooser: Chooser, tiers: list[Tier]) -> list[Tier]:
        """The tiers in the order that a choice before any call gives them."""
        if chooser.is_slow:
            routing = await asyncio.to_thread(chooser.choose, self._query, tiers)
        else:
            routing = chooser.choose(self._query, tiers)
        self._routing = routing
        self._latency_s["plan"] = time.perf_counter() - self._started
        if routing is None:
            return tiers
        at = next(i for i, tier in enumerate(tiers) if tier.name == routing.tier)
        earlier, chosen = tiers[:at], tiers[at:]
        if self._cascade.use == "pick":
            earlier, chosen = [*earlier, *chosen[1:]], chosen[:1]
        if self._cascade.use != "order":
            for tier in earlier:
                self._drop(tier, f"routing: {routing.by} chose {routing.tier}", None)
            return chosen
        self._finals = frozenset([chosen[-1].name])
        self._fallbacks = frozenset(tier.name for tier in earlier)
        return [*chosen, *earlier]

    async def _guided(self, guide: Guide, tiers: list[Tier]) -> list[Tier]:
        """The tier that a model named, and the others in case that it fails."""
        started = time.perf_counter()
        self._eligible = tiers
        limit = TimeLimit(None if self._deadline is None else self._deadline - started)
        try:
            with limit:
                routing = await guide.choose(self._query, tiers)
        except TimeoutError:
            return tiers  # the deadline has passed, which stops the first of them
        finally:
            limit.close()
            self._latency_s["choose"] = time.perf_counter() - started
        self._routing = routing
        self._note_asked(guide, routing.costs)
        for tier in tiers:
            if tier.name not in (routing.tier, guide.fallback):
                p = routing.probabilities.get(tier.name)
                self._drop(tier, "routing: " + ("not chosen" if p is None else f"probability {p:.3f}"), None)
        kept = [tier for name in (routing.tier, guide.fallback) for tier in tiers if tier.name == name]
        self._finals = frozenset([routing.tier])
        self._fallbacks = frozenset([guide.fallback]) - self._finals
        return list(dict.fromkeys(kept))

    def _note_asked(self, guide: Guide, costs: Iterable[SignalCost]) -> None:
        """Records what a guide's calls have sent to a far model."""
        if guide.card.placement == "far" and not guide.card.is_recording:
            self._departures += [_departure(guide.card, self._query)] * sum(cost.calls for cost in costs)

    def _hand_on(self, tier: Tier, name: str) -> None:
        """Makes the tier of this name the next one after `tier`, and the last."""
        self._handed_on, self._hops = name, self._hops + 1
        self._queue[self._queue.index(tier) + 1 :] = [each for each in self._eligible if each.name == name]
        self._candidates = tuple(
            replace(c, is_eligible=True, reason="", param=None) if c.tier == name else c for c in self._candidates
        )

    def _may_hand_on(self, tier: Tier) -> bool:
        guide = self._cascade.guide
        return guide is not None and guide.may_go_on(tier, self._untried(tier), hops=self._hops)

    def _untried(self, tier: Tier) -> list[Tier]:
        tried = {tier.name, *(step.tier for step in self._steps)}
        return [each for each in self._eligible if each.name not in tried]

    async def _onward(self, guide: Guide, tier: Tier, answer: Answer) -> Onward:
        """Who goes on with the answer; nobody where the time is up."""
        limit = TimeLimit(self._time_left(tier))
        try:
            with limit:
                return await guide.go_on(self._query, answer, tier, self._untried(tier))
        except TimeoutError:
            return Onward(None, "no time was left to ask who goes on", None)
        finally:
            limit.close()

    async def _note_end_by(self, exc: BaseException) -> None:
        """Records a run that ended without an answer."""
        if isinstance(exc, NearfarError):
            status: Status = "refused" if isinstance(exc, RequestError) else "failed"
            self._record(status, self._stopped_by or "upstream_failed", None, error=str(exc))
            exc.decision_id = self._id
            await self._journal.flush()
        elif not isinstance(exc, asyncio.CancelledError | GeneratorExit):
            self._record("failed", "upstream_failed", None, error=repr(exc))
        elif not self._is_recorded:
            self._note_cancellation()
            self._record("cancelled", "cancelled", None)

    # --- one tier ----------------------------------------------------------------------------------------------------

    def _prepared(self, tier: Tier, messages: tuple[Message, ...] | None = None) -> Query | None:
        """What the tier is asked; None where the money that is left does not pay for it."""
        query, card = self._query, tier.model.card
        if messages is None and tier.wants_draft and self._best is not None and self._best.text:
            messages = with_draft(query, self._best)
        routing = self._routing
        if messages is None and self._handed_on == tier.name and self._best is not None:
            messages = handed_on(query, self._best)
        elif messages is None and routing is not None and routing.rewritten is not None and routing.tier == tier.name:
            messages = rewritten(query, routing.rewritten)
        if messages is not None:
            query = replace(query, prompt=messages)
        if query.budget_usd is not None:
            spent = self._spent()
            paid = (
                "what was spent is unknown" if spent is None else within_budget(query, card, query.budget_usd - spent)
            )
            if isinstance(paid, str):
                self._stopped_by = "out_of_budget"
                self._drop(tier, f"budget: {paid}", "budget_usd")
                return None
            query = paid
        if (tier.scorer is not None or "span" in query.signals) and card.supports_logprobs:
            top = max(TOP_LOGPROBS, query.sampling.top_logprobs or 0)
            query = replace(query, sampling=replace(query.sampling, logprobs=True, top_logprobs=top))
        return query

    def _begin(self, tier: Tier, query: Query) -> _Try:
        card, asked = tier.model.card, self._query.sampling
        if card.placement == "far" and not card.is_recording:
            self._departures.append(_departure(card, query))
        self._current = _Try(tier, query, time.perf_counter(), (asked.top_logprobs or 0) if asked.logprobs else None)
        return self._current

    async def _try_whole(self, tier: Tier, *, is_last: bool) -> Answer | None:
        """The tier's answer where it is the final one; None where the next tier may try."""
        query = self._prepared(tier)
        answer = None if query is None else await self._complete(tier, query)
        if answer is None:
            return None
        decides = not is_last or self._query.when_unsure == "abstain"
        probed = await self._probe(tier, answer, decides=decides) if tier.probes or self._asked else None
        judgement = self._judge(tier, answer, is_last=is_last, found=probed.signals if probed else None)
        guide = self._cascade.guide
        if guide is not None and judgement.verdict == "accepted" and self._may_hand_on(tier):
            onward = await self._onward(guide, tier, answer)
            if onward.cost is not None:
                self._note_asked(guide, [onward.cost])
                probed = replace(probed or Probed(), costs=(*(probed.costs if probed else ()), onward.cost))
            if onward.tier is not None:
                judgement = replace(judgement, verdict="deferred", reason=onward.reason)
                self._hand_on(tier, onward.tier)
        self._note(judgement, answer, probed)
        if tier.guard is not None:
            tier.guard.see(judgement.signals)
        if judgement.verdict == "accepted":
            return await self._end(answer, judgement, self._reason(judgement))
        if not is_last and judgement.code == "abstained_early":
            return await self._end(_abstention(tier.model.card.name), judgement, "abstained_early", "abstained")
        return None

    async def _probe(self, tier: Tier, answer: Answer, *, decides: bool) -> Probed | None:
        """What asking again tells of the answer; None where nothing hangs on it and nobody asks."""
        query, current = self._query, self._current
        probes = self._probes(tier, decides=decides)
        if current is None or not probes or _flaw(answer, query, tier.model.card):
            return None
        left_usd = None
        if query.budget_usd is not None:
            spent = self._spent()
            is_known = spent is not None and answer.cost_usd is not None
            left_usd = query.budget_usd - (spent or 0.0) - (answer.cost_usd or 0.0) if is_known else 0.0
        limits = [self._deadline, None if tier.deadline_s is None else current.started + tier.deadline_s]
        deadline = min((limit for limit in limits if limit is not None), default=None)
        return await probe_all(probes, current.query, answer, tier.model, left_usd=left_usd, deadline=deadline)

    def _probes(self, tier: Tier, *, decides: bool) -> tuple[Probe, ...]:
        """What the query asks for, each as the tier has it set, and the tier's own where its verdict hangs on them."""
        is_wanted = self._query.wants_signals
        if decides and not is_wanted:
            is_wanted = tier.guard is None or not tier.guard.objection()
        if not self._asked:
            return tier.probes if is_wanted else ()
        asked = {probe.name: probe for probe in self._asked}
        own = {probe.name: probe for probe in tier.probes if is_wanted or probe.name in asked}
        return tuple({**asked, **own}.values())

    async def _complete(self, tier: Tier, query: Query) -> Answer | None:
        """The tier's whole answer; None where it failed and the next tier may try."""
        current = self._begin(tier, query)
        limit = TimeLimit(self._time_left(tier))
        try:
            with limit:
                answer = await tier.model.complete(current.query)
        except TimeoutError:
            self._fail(self._too_late(tier))
            return None
        except (UpstreamError, BudgetExceeded, RequestError) as exc:
            self._fail(exc)
            return None
        finally:
            limit.close()
        current.first_token_s = time.perf_counter() - current.started
        return answer

    async def _stream(
        self, tier: Tier, query: Query, later: list[Tier], is_last: bool
    ) -> AsyncGenerator[StreamEvent, None]:
        """The tier's events once it is committed to, to the end; no `StreamEnd` where it failed or deferred."""
        needed = self._cascade.prefix_tokens if not is_last or self._query.when_unsure == "abstain" else 0
        held: list[StreamEvent] = []
        prefix: list[TokenLogprob] = []
        judgement: _Judgement | None = None
        is_committed = False
        current = self._begin(tier, query)
        pieces: list[str] = []
        is_text_only = True
        begun = ""
        better = [each for each in later if each.name not in self._fallbacks]
        successors = [*better, tier]  # who continues after a break; the same model last
        while True:
            try:
                async with aclosing(self._within(tier, current)) as events:
                    async for event in events:
                        if isinstance(event, StreamEnd):
                            answer = event.answer
                            break
                        if isinstance(event, TextDelta):
                            pieces.append(event.text)
                            if not is_committed:
                                prefix.extend(event.logprobs)
                            if not event.text and current.strip is None:
                                continue  # log-probabilities of a tool call, which only the router asked for
                        elif isinstance(event, ToolCallDelta):
                            is_text_only = False
                        if current.first_token_s is None:
                            current.first_token_s = time.perf_counter() - current.started
                        if is_committed:
                            yield current.as_asked(event)
                            continue
                        held.append(event)
                        if len(prefix) < needed:
                            continue
                        if needed:
                            judgement = self._judge_prefix(tier, prefix)
                            if judgement.verdict != "accepted":
                                self._note(judgement, Answer("".join(pieces), tier.model.card.name))
                                self._best, self._unfinished = None, tier
                                return
                        is_committed = True
                        yield self._start(tier, judgement)
                        for waiting in held:
                            yield current.as_asked(waiting)
                    else:
                        raise UpstreamError(
                            f"{tier.model.card.name} ended its stream without an end event.",
                            model=tier.model.card.name,
                            may_have_cost=True,
                        )
            except (UpstreamError, BudgetExceeded, RequestError) as exc:
                self._fail(exc, "".join(pieces))
                if not is_committed:
                    return
                begun += "".join(pieces)
                pieces.clear()
                heir = self._heir(successors, begun) if is_text_only else None
                if heir is None:
                    raise
                tier, query = heir
                current = self._begin(tier, query)
                continue
            break

        if begun:
            answer = replace(answer, text=begun + answer.text)
        # A broken answer's second half was asked for in other words.
        probed = await self._probe(tier, answer, decides=False) if self._asked and not begun else None
        found = probed.signals if probed else None
        if not is_committed:  # shorter than the prefix: the whole answer is judged
            judgement = self._judge(tier, answer, is_last=is_last, found=found)
            self._note(judgement, answer, probed)
            if judgement.verdict == "accepted":
                for event in self._pieces(await self._end(answer, judgement, self._reason(judgement))):
                    yield event
            return
        whole = self._judge(tier, answer, is_last=True, may_abstain=False, found=found)
        if judgement is not None:
            whole = replace(judgement, signals=whole.signals)
        self._note(whole, answer, probed)
        yield StreamEnd(await self._end(answer, whole, self._reason(whole)))

    async def _within(self, tier: Tier, current: _Try) -> AsyncGenerator[StreamEvent, None]:
        """The model's events, each inside the time that is left."""
        limit = TimeLimit(self._time_left(tier))
        try:
            async with aclosing(tier.model.stream(current.query)) as events:
                while True:
                    try:
                        with limit:
                            event = await anext(events)
                    except StopAsyncIteration:
                        return
                    except TimeoutError:
                        raise self._too_late(tier) from None
                    yield event
        finally:
            limit.close()

    # --- judging -----------------------------------------------------------------------------------------------------

    def _judge(
        self, tier: Tier, answer: Answer, *, is_last: bool, may_abstain: bool = True, found: Signals | None = None
    ) -> _Judgement:
        signals = answer_signals(answer)
        if found:
            signals.update(found)
        score = tier.scorer.score(signals) if tier.scorer else None
        if is_last and not (may_abstain and self._query.when_unsure == "abstain" and score is not None):
            return _Judgement("accepted", "the last tier that could take it", score, signals)
        flaw = _flaw(answer, self._query, tier.model.card)
        if flaw:
            return _Judgement("deferred", flaw, score, signals)
        verdict, reason = self._against_threshold(tier, score)
        bound = tier.abstain_below
        if bound is not None and score is not None and score < bound and self._query.when_unsure == "abstain":
            reason = f"score {score:.3f} < {bound:.3f}, below which no further tier is asked"
            return _Judgement("deferred", reason, score, signals, "abstained_early")
        return _Judgement(verdict, reason, score, signals, "confident")

    def _judge_prefix(self, tier: Tier, prefix: list[TokenLogprob]) -> _Judgement:
        signals = logprob_signals(prefix)
        score = tier.scorer.score(signals) if tier.scorer else None
        verdict, reason = self._against_threshold(tier, score)
        return _Judgement(verdict, f"{reason} over the first {len(prefix)} tokens", score, signals, "confident")

    def _against_threshold(self, tier: Tier, score: float | None) -> tuple[Verdict, str]:
        if tier.accepts_nothing:
            return "deferred", "the policy accepts no answer of this tier"
        if tier.guard is not None and (objection := tier.guard.objection()):
            return "deferred", objection
        if score is None:
            return "deferred", "no score: the answer carries no signal that the scorer knows"
        threshold = tier.threshold or 0.0
        if score >= threshold:
            return "accepted", f"score {score:.3f} ≥ threshold {threshold:.3f}"
        return "deferred", f"score {score:.3f} < threshold {threshold:.3f}"

    def _reason(self, judgement: _Judgement) -> DecisionReason:
        return "named" if self._is_named else judgement.code

    # --- limits ------------------------------------------------------------------------------------------------------

    def _time_left(self, tier: Tier) -> float | None:
        left = None if self._deadline is None else self._deadline - time.perf_counter()
        limits = [limit for limit in (left, tier.deadline_s) if limit is not None]
        return max(0.0, min(limits)) if limits else None

    def _too_late(self, tier: Tier) -> UpstreamTimeout:
        if self._deadline is not None and (tier.deadline_s is None or time.perf_counter() >= self._deadline - 0.01):
            self._stopped_by = "out_of_time"
            limit = f"the query's deadline of {self._query.deadline_s:g} s"
        else:
            limit = f"the tier's deadline of {tier.deadline_s or 0:g} s"
        name = tier.model.card.name
        return UpstreamTimeout(f"{name} did not answer within {limit}.", model=name, may_have_cost=True)

    def _must_stop(self, tier: Tier) -> bool:
        if self._stopped_by is None and self._deadline is not None and time.perf_counter() >= self._deadline:
            self._stopped_by = "out_of_time"
        if self._stopped_by == "out_of_time":
            self._drop(tier, "time: the query's deadline has passed", "deadline_s")
            return True
        return self._best is not None and tier.name in self._fallbacks

    def _heir(self, successors: list[Tier], begun: str) -> tuple[Tier, Query] | None:
        """Who continues a broken stream, and what it is asked; each may try once."""
        while successors:
            tier = successors.pop(0)
            if self._must_stop(tier):
                return None
            if tier.model.unavailable() is None:
                query = self._prepared(tier, continuation(self._query, begun))
                if query is not None:
                    return tier, query
        return None

    def _may_stream(self, tier: Tier, is_last: bool) -> bool:
        is_unsure = tier.scorer is not None and self._query.when_unsure == "abstain"
        if is_last and not is_unsure:
            return True
        can_judge = tier.model.card.supports_logprobs and tier.scorer is not None and not tier.probes
        return self._cascade.commit == "prefix" and can_judge

    # --- what happened -----------------------------------------------------------------------------------------------

    def _spent(self) -> float | None:
        """What the steps and the choice before them cost, in US dollars; None: unknown."""
        costs = self._routing.costs if self._routing is not None else ()
        return _total_cost([*costs, *self._steps] if costs else self._steps)

    def _is_estimated(self) -> bool:
        """Whether any of that is an estimate."""
        costs = self._routing.costs if self._routing is not None else ()
        return any(step.is_cost_estimated for step in self._steps) or any(cost.is_cost_estimated for cost in costs)

    def _drop(self, tier: Tier, reason: str, param: str | None) -> None:
        self._candidates = tuple(
            replace(c, is_eligible=False, reason=reason, param=param) if c.tier == tier.name and c.is_eligible else c
            for c in self._candidates
        )

    def _note(self, judgement: _Judgement, answer: Answer, probed: Probed | None = None) -> None:
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
        self._steps.append(
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
                self._latency_s[tier.name],
                current.first_token_s,
                answer.is_cached,
                answer.text,
                signal_costs,
            )
        )
        self._best = (
            answer if answer.logprobs is None else replace(answer, logprobs=_trim(answer.logprobs, current.strip))
        )

    def _fail(self, exc: NearfarError, text: str = "") -> None:
        current = self._finish()
        card = current.tier.model.card
        if not (isinstance(exc, UpstreamError) and exc.was_sent):
            self._take_back_departure(card)
        if isinstance(exc, BudgetExceeded):
            self._stopped_by = "out_of_budget"
        self._error = exc
        may_have_cost = isinstance(exc, UpstreamError) and exc.may_have_cost
        self._steps.append(
            Step(
                current.tier.name,
                card.name,
                card.placement,
                "failed",
                str(exc),
                cost_usd=card.cost_bound_usd(current.query) if may_have_cost else 0.0,
                is_cost_estimated=may_have_cost,
                latency_s=self._latency_s[current.tier.name],
                first_token_s=current.first_token_s,
                text=text,
            )
        )

    def _note_cancellation(self) -> None:
        if self._current is None:
            return
        current = self._finish()
        card = current.tier.model.card
        cost_usd = card.cost_bound_usd(current.query)
        if cost_usd and current.first_token_s is not None:  # the probes may have been under way
            cost_usd *= 1 + sum(probe.num_calls for probe in self._probes(current.tier, decides=True))
        self._steps.append(
            Step(
                current.tier.name,
                card.name,
                card.placement,
                "cancelled",
                "the asker went away",
                cost_usd=cost_usd,
                is_cost_estimated=True,
                latency_s=self._latency_s[current.tier.name],
                first_token_s=current.first_token_s,
            )
        )

    def _finish(self) -> _Try:
        current = self._current
        if current is None:
            raise AssertionError("no try is under way")
        self._current = None
        name = current.tier.name
        self._latency_s[name] = self._latency_s.get(name, 0.0) + time.perf_counter() - current.started
        return current

    def _take_back_departure(self, card: ModelCard) -> None:
        if card.placement == "far" and not card.is_recording and self._departures:
            self._departures.pop()

    # --- endings -----------------------------------------------------------------------------------------------------

    def _start(self, tier: Tier, judgement: _Judgement | None) -> StreamStart:
        is_calibrated = tier.scorer is not None and tier.scorer.is_calibrated
        score = judgement.score if judgement else None
        return StreamStart(self._id, tier.name, tier.model.card.name, score, tier.threshold, is_calibrated)

    def _pieces(self, answer: Answer) -> Iterator[StreamEvent]:
        """An answer that is whole already, as events."""
        decision = answer.decision
        if decision is not None and decision.status != "refused":
            yield StreamStart(
                self._id, decision.tier, decision.model, decision.score, decision.threshold, decision.is_calibrated
            )
            if answer.reasoning:
                yield ReasoningDelta(answer.reasoning)
            if answer.text:
                yield TextDelta(answer.text, answer.logprobs or ())
            for i, call in enumerate(answer.tool_calls):
                yield ToolCallDelta(i, call.arguments, call.id, call.name)
        yield StreamEnd(answer)

    async def _end(
        self, answer: Answer, judgement: _Judgement, reason: DecisionReason, status: Status = "answered"
    ) -> Answer:
        """The answer with its decision, which is written."""
        step = self._steps[-1]
        given_step = step if step.score == judgement.score else replace(step, score=judgement.score)
        decision = self._record(status, reason, given_step)
        await self._journal.flush()
        given = self._best if status == "answered" and self._best is not None else answer
        return Answer(  # not `replace`, which costs every query twice this
            answer.text,
            given.model,
            given.tool_calls,
            given.finish_reason,
            given.reasoning,
            given.refusal,
            given.logprobs,
            given.usage,
            decision.cost_usd,
            decision.is_cost_estimated,
            decision.latency_s["total"],
            given.is_cached,
            given.outcome_only,
            given.correct,
            given.extra,
            decision,
            given.signals,
        )

    async def _out_of_tiers(self) -> Answer:
        """Nobody was sure enough: the best answer so far, abstention, refusal, or the error."""
        did_fail = bool(self._steps) and self._steps[-1].verdict == "failed"
        unfinished, time_is_up = self._unfinished, self._stopped_by == "out_of_time"
        if self._best is None and unfinished is not None and self._query.when_unsure == "best" and not time_is_up:
            query = self._prepared(unfinished)
            self._best = None if query is None else await self._complete(unfinished, query)
            if self._best is not None:
                self._note(replace(self._judge(unfinished, self._best, is_last=False), verdict="deferred"), self._best)
        answered = [step for step in self._steps if step.verdict == "deferred"]
        if answered and (self._best is not None or self._query.when_unsure == "abstain"):
            step = answered[-1]
            judgement = _Judgement(step.verdict, step.reason, step.score, step.signals)
            reason = self._stopped_by or ("upstream_failed" if did_fail else "last_tier")
            self._steps.remove(step)
            if self._query.when_unsure == "abstain":
                self._steps.append(step)
                return await self._end(_abstention(step.model), judgement, reason, "abstained")
            if self._best is None:
                raise AssertionError("a deferred step has left an answer")
            note = f"{step.reason}; given all the same: {_in_words(reason)}"
            self._steps.append(replace(step, verdict="accepted", reason=note))
            return await self._end(self._best, judgement, reason)
        if self._error is not None and not isinstance(self._error, BudgetExceeded):
            raise self._error
        return await self._refuse()

    async def _refuse(self) -> Answer:
        reasons = {c.tier: c.reason for c in self._candidates if not c.is_eligible}
        if self._error is not None:
            reasons[self._steps[-1].tier] = str(self._error)
        is_money = self._stopped_by == "out_of_budget" or all(r.startswith("budget") for r in reasons.values())
        why = RoutingError(
            "No tier can take this query: " + "; ".join(f"{tier}: {reason}" for tier, reason in reasons.items()) + ".",
            reasons=reasons,
        )
        reason: DecisionReason = self._stopped_by or ("out_of_budget" if is_money else "no_tier")
        decision = self._record("refused", reason, None, error=str(why))
        await self._journal.flush()
        return Answer(
            finish_reason="refused",
            refusal=str(why),
            cost_usd=decision.cost_usd,
            latency_s=decision.latency_s["total"],
            decision=decision,
        )

    def _record(
        self, status: Status, reason: DecisionReason, step: Step | None, *, error: str | None = None
    ) -> Decision:
        self._latency_s["total"] = time.perf_counter() - self._started
        decision = Decision(
            self._id,
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
            1.0 if self._routing is None else self._routing.propensity,
            self._candidates,
            tuple(self._steps),
            tuple(self._departures),
            self._spent(),
            self._is_estimated(),
            self._latency_s,
            msgspec.to_builtins(self._query),
            error,
            self._routing,
        )
        if not self._is_recorded:
            self._is_recorded = True
            self._journal.record(decision)
        return decision


def new_decision_id() -> str:
    """An id that sorts by time: 48 bits of milliseconds and 64 random bits, in hexadecimal."""
    return f"{time.time_ns() // 1_000_000:012x}{os.urandom(8).hex()}"


def _abstention(model: str) -> Answer:
    return Answer(ABSTENTION, model, finish_reason="abstained")


def _departure(card: ModelCard, query: Query) -> Departure:
    texts = [message.text for message in query.messages]
    text = "\n".join([f"{message.role}: {text}" for message, text in zip(query.messages, texts, strict=True)])
    characters = sum([len(text) for text in texts])
    return Departure(card.name, len(query.messages), characters, hashlib.sha256(text.encode()).hexdigest())


def _flaw(answer: Answer, query: Query, card: ModelCard) -> str | None:
    """What makes an answer no final one, whatever its score."""
    if answer.refusal or answer.finish_reason == "content_filter":
        return "the model declined to answer"
    if not answer.text.strip() and not answer.tool_calls and not answer.outcome_only:
        return "the answer is empty"
    bound = card.max_output_tokens
    asked = query.sampling.max_tokens
    if answer.finish_reason == "length" and bound is not None and (asked is None or asked > bound):
        return f"cut off at the model's own limit of {bound} tokens"
    return None


def _trim(logprobs: tuple[TokenLogprob, ...], keep: int | None) -> tuple[TokenLogprob, ...] | None:
    if keep is None:
        return None
    return tuple(replace(token, top=token.top[:keep]) for token in logprobs)


def _total_cost(parts: Iterable[Step | SignalCost]) -> float | None:
    total = 0.0
    for part in parts:
        if part.cost_usd is None:
            return None
        total += part.cost_usd
    return total


def _in_words(reason: DecisionReason) -> str:
    return {
        "out_of_budget": "the budget allows no further tier",
        "out_of_time": "no time is left for a further tier",
        "upstream_failed": "the further tiers failed",
        "last_tier": "there is no further tier",
    }.get(reason, reason)
