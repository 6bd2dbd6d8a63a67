"""Which tiers a run tries, in which order: what a choice before any call, a guide or a policy makes of the cascade."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from itertools import pairwise

from nearfar.time_limit import TimeLimit
from nearfar.types import Answer, Query

from .cascade import Cascade, Chooser, Guide, Onward, Tier
from .planning import candidates_of
from .trail import Trail


class Order:
    """The tiers in the order in which they are tried.

    Args:
        query: what was asked.
        cascade: the tiers as they stand in the config.
        trail: told of tiers that are dropped, and of choices.
    """

    finals: frozenset[str] = frozenset()  # tiers that are the best of those left, though not the last of them
    fallbacks: frozenset[str] = frozenset()  # tiers that a routing passed over, in case that the others fail
    handed_on: str | None = None  # the tier that goes on with the latest answer
    _hops = 0  # handovers so far

    def __init__(self, query: Query, cascade: Cascade, trail: Trail) -> None:
        self._query = query
        self._cascade = cascade
        self._trail = trail
        self._tiers: list[Tier] = []  # a guide may change those to come
        self._eligible: list[Tier] = []  # those that a guide may name

    async def settle(self) -> list[Tier]:
        """The tiers that may take the query, in order; the list changes where an answer is handed on."""
        cascade = self._cascade
        tiers = self._planned()
        if cascade.chooser is not None and len(tiers) > 1:
            tiers = await self._routed(cascade.chooser, tiers)
        if cascade.guide is not None and tiers:
            tiers = await self._guided(cascade.guide, tiers)
        self._tiers = tiers
        return tiers

    def may_hand_on(self, tier: Tier) -> bool:
        """Whether another tier could go on with this one's answer."""
        guide = self._cascade.guide
        return guide is not None and guide.may_go_on(tier, self._untried(tier), hops=self._hops)

    async def onward(self, guide: Guide, tier: Tier, answer: Answer) -> Onward:
        """Who goes on with the answer; nobody where the time is up."""
        limit = TimeLimit(self._trail.seconds_left(tier))
        try:
            with limit:
                return await guide.go_on(self._query, answer, tier, self._untried(tier))
        except TimeoutError:
            return Onward(None, "no time was left to ask who goes on", None)
        finally:
            limit.close()

    def hand_on(self, tier: Tier, name: str) -> None:
        """Makes the tier of this name the next one after `tier`, and the last."""
        self.handed_on, self._hops = name, self._hops + 1
        self._tiers[self._tiers.index(tier) + 1 :] = [each for each in self._eligible if each.name == name]
        self._trail.candidates = tuple(
            replace(c, is_eligible=True, reason="", param=None) if c.tier == name else c for c in self._trail.candidates
        )

    def _untried(self, tier: Tier) -> list[Tier]:
        tried = {tier.name, *(step.tier for step in self._trail.steps)}
        return [each for each in self._eligible if each.name not in tried]

    def _planned(self) -> list[Tier]:
        trail = self._trail
        trail.candidates = candidates = candidates_of(self._query, self._cascade)
        tiers = [tier for tier, c in zip(self._cascade.tiers, candidates, strict=True) if c.is_eligible]
        if len(tiers) > 1 and self._cascade.chooser is None and not self._query.wants_signals:
            tiers = self._useful_first(tiers)
        trail.latency_s["plan"] = time.perf_counter() - trail.started
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
        self.finals = frozenset([useful[-1].name])
        self.fallbacks = frozenset(tier.name for tier in useless)
        why = "asked only if the others fail: the policy accepts no answer of this tier"
        self._trail.candidates = tuple(
            replace(c, reason=why) if c.tier in self.fallbacks else c for c in self._trail.candidates
        )
        return [*useful, *useless]

    async def _routed(self, chooser: Chooser, tiers: list[Tier]) -> list[Tier]:
        """The tiers in the order that a choice before any call gives them."""
        trail = self._trail
        if chooser.is_slow:
            routing = await asyncio.to_thread(chooser.choose, self._query, tiers)
        else:
            routing = chooser.choose(self._query, tiers)
        trail.routing = routing
        trail.latency_s["plan"] = time.perf_counter() - trail.started
        if routing is None:
            return tiers
        at = next(i for i, tier in enumerate(tiers) if tier.name == routing.tier)
        earlier, chosen = tiers[:at], tiers[at:]
        if self._cascade.use == "pick":
            earlier, chosen = [*earlier, *chosen[1:]], chosen[:1]
        if self._cascade.use != "order":
            for tier in earlier:
                trail.drop(tier, f"routing: {routing.by} chose {routing.tier}")
            return chosen
        self.finals = frozenset([chosen[-1].name])
        self.fallbacks = frozenset(tier.name for tier in earlier)
        return [*chosen, *earlier]

    async def _guided(self, guide: Guide, tiers: list[Tier]) -> list[Tier]:
        """The tier that a model named, and the others in case that it fails."""
        trail = self._trail
        started = time.perf_counter()
        self._eligible = tiers
        limit = TimeLimit(None if trail.deadline is None else trail.deadline - started)
        try:
            with limit:
                routing = await guide.choose(self._query, tiers)
        except TimeoutError:
            return tiers  # the deadline has passed, which stops the first of them
        finally:
            limit.close()
            trail.latency_s["choose"] = time.perf_counter() - started
        trail.routing = routing
        trail.guided(guide.card, routing.costs)
        for tier in tiers:
            if tier.name not in (routing.tier, guide.fallback):
                p = routing.probabilities.get(tier.name)
                trail.drop(tier, "routing: " + ("not chosen" if p is None else f"probability {p:.3f}"))
        kept = [tier for name in (routing.tier, guide.fallback) for tier in tiers if tier.name == name]
        self.finals = frozenset([routing.tier])
        self.fallbacks = frozenset([guide.fallback]) - self.finals
        return list(dict.fromkeys(kept))
