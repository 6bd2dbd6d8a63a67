"""A query's life: plan, try, judge, commit, record.

A run gives a whole answer, or yields its stream's events. Outcomes (refused, abstained, out of budget) are
answers with a decision; only a query that nobody answered because its models failed raises.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import replace

from msgspec import structs

from nearfar.errors import BudgetExceeded, NearfarError, RequestError, RoutingError, UpstreamError
from nearfar.time_limit import TimeLimit
from nearfar.types import (
    Answer,
    DecisionReason,
    Message,
    Query,
    ReasoningDelta,
    Status,
    StreamEnd,
    StreamEvent,
    StreamStart,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
)

from .asked_signals import asked_probes
from .cascade import Cascade, Tier, continuation, handed_on, rewritten, with_draft
from .judging import Judgement, flaw, judge, judge_prefix
from .order import Order
from .planning import within_budget
from .sampled_signals import Probe, Probed, probe_all
from .signals import TOP_LOGPROBS
from .trail import Journal, Trail, Try

#: What the system says when it abstains.
ABSTENTION = "I don't know."


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

    _asked: tuple[Probe, ...] = ()  # what the query wants to know of its answers
    _unfinished: Tier | None = None  # deferred on its prefix, so there is no whole answer to fall back on

    def __init__(self, cascade: Cascade, query: Query, *, door: str, is_named: bool, journal: Journal) -> None:
        self._journal = journal
        self._is_named = is_named
        self._cascade = cascade
        self._query = query
        if query.signals:
            self._asked = asked_probes(query.signals)
        self._trail = trail = Trail(query, cascade, door=door, journal=journal)
        self._order = Order(query, cascade, trail)

    async def answer(self) -> Answer:
        """The whole answer; the decision is written before it is given."""
        try:
            order = self._order
            tiers = await order.settle()
            for i, tier in enumerate(tiers):
                if self._must_stop(tier):
                    break
                answer = await self._try_whole(tier, is_last=i + 1 == len(tiers) or tier.name in order.finals)
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
            order = self._order
            tiers = await order.settle()
            for i, tier in enumerate(tiers):
                if self._must_stop(tier):
                    break
                later = tiers[i + 1 :]
                is_last = not later or tier.name in order.finals
                if self._may_stream(tier, is_last) and not order.may_hand_on(tier):
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

    async def _note_end_by(self, exc: BaseException) -> None:
        """Records a run that ended without an answer."""
        trail = self._trail
        if isinstance(exc, NearfarError):
            status: Status = "refused" if isinstance(exc, RequestError) else "failed"
            trail.record(status, trail.stopped_by or "upstream_failed", None, error=str(exc))
            exc.decision_id = trail.id
            await self._journal.flush()
        elif not isinstance(exc, asyncio.CancelledError | GeneratorExit):
            trail.record("failed", "upstream_failed", None, error=repr(exc))
        elif not trail.is_recorded:
            if trail.current is not None:
                probes = self._probes(trail.current.tier, decides=True)
                trail.cancelled(sum(probe.num_calls for probe in probes))
            trail.record("cancelled", "cancelled", None)

    # --- one tier ----------------------------------------------------------------------------------------------------

    def _prepared(self, tier: Tier, messages: tuple[Message, ...] | None = None) -> Query | None:
        """What the tier is asked; None where the money that is left does not pay for it."""
        trail = self._trail
        query, card = self._query, tier.model.card
        if messages is None and tier.wants_draft and trail.best is not None and trail.best.text:
            messages = with_draft(query, trail.best)
        routing = trail.routing
        if messages is None and self._order.handed_on == tier.name and trail.best is not None:
            messages = handed_on(query, trail.best)
        elif messages is None and routing is not None and routing.rewritten is not None and routing.tier == tier.name:
            messages = rewritten(query, routing.rewritten)
        if messages is not None:
            query = replace(query, prompt=messages)
        if query.budget_usd is not None:
            spent, _ = trail.spent()
            paid = (
                "what was spent is unknown" if spent is None else within_budget(query, card, query.budget_usd - spent)
            )
            if isinstance(paid, str):
                trail.stopped_by = "out_of_budget"
                trail.drop(tier, f"budget: {paid}", "budget_usd")
                return None
            query = paid
        if (tier.scorer is not None or "span" in query.signals) and card.supports_logprobs:
            top = max(TOP_LOGPROBS, query.sampling.top_logprobs or 0)
            query = replace(query, sampling=replace(query.sampling, logprobs=True, top_logprobs=top))
        return query

    async def _try_whole(self, tier: Tier, *, is_last: bool) -> Answer | None:
        """The tier's answer where it is the final one; None where the next tier may try."""
        query = self._prepared(tier)
        answer = None if query is None else await self._complete(tier, query)
        if answer is None:
            return None
        trail, probed = self._trail, None
        if tier.probes or self._asked:
            decides = not is_last or self._query.when_unsure == "abstain"
            probed = await self._probe(tier, answer, decides=decides)
        judgement = judge(self._query, tier, answer, is_last=is_last, found=probed.signals if probed else None)
        guide = self._cascade.guide
        if guide is not None and judgement.verdict == "accepted" and self._order.may_hand_on(tier):
            onward = await self._order.onward(guide, tier, answer)
            if onward.cost is not None:
                trail.guided(guide.card, [onward.cost])
                probed = replace(probed or Probed(), costs=(*(probed.costs if probed else ()), onward.cost))
            if onward.tier is not None:
                judgement = replace(judgement, verdict="deferred", reason=onward.reason)
                self._order.hand_on(tier, onward.tier)
        trail.answered(judgement, answer, probed)
        if tier.guard is not None:
            tier.guard.see(judgement.signals)
        if judgement.verdict == "accepted":
            return await self._end(answer, judgement, self._reason(judgement))
        if not is_last and judgement.code == "abstained_early":
            return await self._end(_abstention(tier.model.card.name), judgement, "abstained_early", "abstained")
        return None

    async def _probe(self, tier: Tier, answer: Answer, *, decides: bool) -> Probed | None:
        """What asking again tells of the answer; None where nothing hangs on it and nobody asks."""
        trail = self._trail
        query, current = self._query, trail.current
        probes = self._probes(tier, decides=decides)
        if current is None or not probes or flaw(answer, query, tier.model.card):
            return None
        left_usd = None
        if query.budget_usd is not None:
            spent, _ = trail.spent()
            is_known = spent is not None and answer.cost_usd is not None
            left_usd = query.budget_usd - (spent or 0.0) - (answer.cost_usd or 0.0) if is_known else 0.0
        limits = [trail.deadline, None if tier.deadline_s is None else current.started + tier.deadline_s]
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
        trail = self._trail
        current = trail.begin(tier, query)
        limit = TimeLimit(trail.seconds_left(tier))
        try:
            with limit:
                answer = await tier.model.complete(current.query)
        except TimeoutError:
            trail.failed(trail.too_late(tier))
            return None
        except (UpstreamError, BudgetExceeded, RequestError) as exc:
            trail.failed(exc)
            return None
        finally:
            limit.close()
        current.first_token_s = time.perf_counter() - current.started
        return answer

    async def _stream(
        self, tier: Tier, query: Query, later: list[Tier], is_last: bool
    ) -> AsyncGenerator[StreamEvent, None]:
        """The tier's events once it is committed to, to the end; no `StreamEnd` where it failed or deferred."""
        trail = self._trail
        needed = self._cascade.prefix_tokens if not is_last or self._query.when_unsure == "abstain" else 0
        held: list[StreamEvent] = []
        prefix: list[TokenLogprob] = []
        judgement: Judgement | None = None
        is_committed = False
        current = trail.begin(tier, query)
        pieces: list[str] = []
        is_text_only = True
        begun = ""
        better = [each for each in later if each.name not in self._order.fallbacks]
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
                            judgement = judge_prefix(tier, prefix)
                            if judgement.verdict != "accepted":
                                trail.answered(judgement, Answer("".join(pieces), tier.model.card.name))
                                trail.best, self._unfinished = None, tier
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
                trail.failed(exc, "".join(pieces))
                if not is_committed:
                    return
                begun += "".join(pieces)
                pieces.clear()
                heir = self._heir(successors, begun) if is_text_only else None
                if heir is None:
                    raise
                tier, query = heir
                current = trail.begin(tier, query)
                continue
            break

        if begun:
            answer = replace(answer, text=begun + answer.text)
        # A broken answer's second half was asked for in other words.
        probed = await self._probe(tier, answer, decides=False) if self._asked and not begun else None
        if is_committed:
            yield await self._last_event(tier, answer, judgement, probed)
            return
        # Shorter than the prefix: the whole answer is judged.
        judgement = judge(self._query, tier, answer, is_last=is_last, found=probed.signals if probed else None)
        trail.answered(judgement, answer, probed)
        if judgement.verdict == "accepted":
            for event in self._pieces(await self._end(answer, judgement, self._reason(judgement))):
                yield event

    async def _last_event(
        self, tier: Tier, answer: Answer, judgement: Judgement | None, probed: Probed | None
    ) -> StreamEnd:
        """The end of a stream that was committed to, as its prefix was judged where it was."""
        found = probed.signals if probed else None
        whole = judge(self._query, tier, answer, is_last=True, may_abstain=False, found=found)
        if judgement is not None:
            whole = replace(judgement, signals=whole.signals)
        self._trail.answered(whole, answer, probed)
        return StreamEnd(await self._end(answer, whole, self._reason(whole)))

    async def _within(self, tier: Tier, current: Try) -> AsyncGenerator[StreamEvent, None]:
        """The model's events, each inside the time that is left."""
        trail = self._trail
        limit = TimeLimit(trail.seconds_left(tier))
        try:
            async with aclosing(tier.model.stream(current.query)) as events:
                while True:
                    try:
                        with limit:
                            event = await anext(events)
                    except StopAsyncIteration:
                        return
                    except TimeoutError:
                        raise trail.too_late(tier) from None
                    yield event
        finally:
            limit.close()

    # --- limits ------------------------------------------------------------------------------------------------------

    def _must_stop(self, tier: Tier) -> bool:
        trail = self._trail
        if trail.is_out_of_time():
            trail.drop(tier, "time: the query's deadline has passed", "deadline_s")
            return True
        return trail.best is not None and tier.name in self._order.fallbacks

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

    # --- endings -----------------------------------------------------------------------------------------------------

    def _start(self, tier: Tier, judgement: Judgement | None) -> StreamStart:
        is_calibrated = tier.scorer is not None and tier.scorer.is_calibrated
        score = judgement.score if judgement else None
        return StreamStart(self._trail.id, tier.name, tier.model.card.name, score, tier.threshold, is_calibrated)

    def _pieces(self, answer: Answer) -> Iterator[StreamEvent]:
        """An answer that is whole already, as events."""
        decision = answer.decision
        if decision is not None and decision.status != "refused":
            yield StreamStart(
                self._trail.id,
                decision.tier,
                decision.model,
                decision.score,
                decision.threshold,
                decision.is_calibrated,
            )
            if answer.reasoning:
                yield ReasoningDelta(answer.reasoning)
            if answer.text:
                yield TextDelta(answer.text, answer.logprobs or ())
            for i, call in enumerate(answer.tool_calls):
                yield ToolCallDelta(i, call.arguments, call.id, call.name)
        yield StreamEnd(answer)

    async def _end(
        self, answer: Answer, judgement: Judgement, reason: DecisionReason, status: Status = "answered"
    ) -> Answer:
        """The answer with its decision, which is written."""
        trail = self._trail
        step = trail.steps[-1]
        given_step = step if step.score == judgement.score else replace(step, score=judgement.score)
        decision = trail.record(status, reason, given_step)
        await self._journal.flush()
        given = trail.best if status == "answered" and trail.best is not None else answer
        return structs.replace(
            given,
            text=answer.text,
            cost_usd=decision.cost_usd,
            is_cost_estimated=decision.is_cost_estimated,
            latency_s=decision.latency_s["total"],
            decision=decision,
        )

    async def _out_of_tiers(self) -> Answer:
        """Nobody was sure enough: the best answer so far, abstention, refusal, or the error."""
        trail = self._trail
        did_fail = bool(trail.steps) and trail.steps[-1].verdict == "failed"
        unfinished, time_is_up = self._unfinished, trail.stopped_by == "out_of_time"
        if trail.best is None and unfinished is not None and self._query.when_unsure == "best" and not time_is_up:
            query = self._prepared(unfinished)
            trail.best = None if query is None else await self._complete(unfinished, query)
            if trail.best is not None:
                judgement = judge(self._query, unfinished, trail.best, is_last=False)
                trail.answered(replace(judgement, verdict="deferred"), trail.best)
        answered = [step for step in trail.steps if step.verdict == "deferred"]
        if answered and (trail.best is not None or self._query.when_unsure == "abstain"):
            step = answered[-1]
            judgement = Judgement(step.verdict, step.reason, step.score, step.signals)
            reason = trail.stopped_by or ("upstream_failed" if did_fail else "last_tier")
            trail.steps.remove(step)
            if self._query.when_unsure == "abstain":
                trail.steps.append(step)
                return await self._end(_abstention(step.model), judgement, reason, "abstained")
            if trail.best is None:
                raise AssertionError("a deferred step has left an answer")
            note = f"{step.reason}; given all the same: {_in_words(reason)}"
            trail.steps.append(replace(step, verdict="accepted", reason=note))
            return await self._end(trail.best, judgement, reason)
        if trail.error is not None and not isinstance(trail.error, BudgetExceeded):
            raise trail.error
        return await self._refuse()

    async def _refuse(self) -> Answer:
        trail = self._trail
        reasons = {c.tier: c.reason for c in trail.candidates if not c.is_eligible}
        if trail.error is not None:
            reasons[trail.steps[-1].tier] = str(trail.error)
        is_money = trail.stopped_by == "out_of_budget" or all(r.startswith("budget") for r in reasons.values())
        why = RoutingError(
            "No tier can take this query: " + "; ".join(f"{tier}: {reason}" for tier, reason in reasons.items()) + ".",
            reasons=reasons,
        )
        reason: DecisionReason = trail.stopped_by or ("out_of_budget" if is_money else "no_tier")
        decision = trail.record("refused", reason, None, error=str(why))
        await self._journal.flush()
        return Answer(
            finish_reason="refused",
            refusal=str(why),
            cost_usd=decision.cost_usd,
            latency_s=decision.latency_s["total"],
            decision=decision,
        )

    def _reason(self, judgement: Judgement) -> DecisionReason:
        return "named" if self._is_named else judgement.code


def _abstention(model: str) -> Answer:
    return Answer(ABSTENTION, model, finish_reason="abstained")


def _in_words(reason: DecisionReason) -> str:
    return {
        "out_of_budget": "the budget allows no further tier",
        "out_of_time": "no time is left for a further tier",
        "upstream_failed": "the further tiers failed",
        "last_tier": "there is no further tier",
    }.get(reason, reason)
