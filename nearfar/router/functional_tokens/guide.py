"""Puts functional tokens to work on live queries: whom to ask, in which words, and who goes on with the answer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from nearfar.errors import ConfigError
from nearfar.router.cascade import Onward, Tier
from nearfar.router.planning import within_budget
from nearfar.types import Answer, ModelCard, Query, Routing, SamplingOptions

from .chooser import FunctionalTokens
from .prompts import choice_prompt


class TokenGuide:
    """The worker that a near model names, and the workers that it hands an answer on to.

    Tiers are workers by name. A choice that may not be asked for (the query may not leave the machine and the choosing
    model is far, the money does not pay for it) goes to the general worker.

    Args:
        tokens: who chooses, and the graph.
        rewrites: the chosen worker is asked in the words of its trade; the general one never is.
        max_hops: handovers after the first worker's answer, at most.
        explore: share of queries for which the worker is drawn, each with the same probability, so that the log can
            judge other routers.
        draw: the random numbers.

    Raises:
        ConfigError: a number is out of range.
    """

    def __init__(
        self,
        tokens: FunctionalTokens,
        *,
        rewrites: bool = False,
        max_hops: int = 1,
        explore: float = 0.0,
        draw: random.Random | None = None,
    ) -> None:
        if not 0 <= explore <= 1:
            raise ConfigError(f"explore of {tokens.name!r} must be in [0, 1], not {explore!r}.")
        if max_hops < 0:
            raise ConfigError(f"max_hops of {tokens.name!r} must be 0 or more, not {max_hops!r}.")
        self._tokens = tokens
        self._rewrites = rewrites
        self._max_hops = max_hops
        self._explore = explore
        self._draw = draw or random.Random()  # noqa: S311 - a draw, no secret

    @property
    def card(self) -> ModelCard:
        """The choosing model."""
        return self._tokens.model.card

    @property
    def fallback(self) -> str:
        """The general worker."""
        return self._tokens.graph.general

    async def choose(self, query: Query, tiers: Sequence[Tier]) -> Routing:
        """The worker to ask, with every worker's probability and the propensity of the choice.

        Raises:
            ConfigError: a label is not one token of the choosing model's tokenizer.
        """
        names = [tier.name for tier in tiers]
        general = self.fallback if self.fallback in names else names[0]
        objection = self._objection(query)
        if objection is not None:
            return Routing(self._tokens.label, general, 1.0, {general: 1.0}, reason=f"{objection}: to {general!r}")
        choice = await self._tokens.choose(query.text, among=names)
        probabilities, reason = choice.probabilities, choice.reason
        named = choice.worker
        if named not in names:  # the general worker may not take the query
            named = max(probabilities, key=lambda name: probabilities[name], default=general)
            reason = f"{reason}, which may not take it: to {named!r}"
        even = self._explore / len(names)
        shares = {name: even + (1 - self._explore) * (name == named) for name in names}
        chosen = named
        if self._explore and self._draw.random() < self._explore:
            chosen = self._draw.choice(names)
            reason = f"drawn to explore; {named!r} was {reason}"
        costs, text = [choice.cost], None
        if self._rewrites and chosen != self.fallback and not query.modalities:
            rewrite = await self._tokens.rewrite(query.text, chosen)
            costs.append(rewrite.cost)
            text = rewrite.text if rewrite.text != query.text else None
        return Routing(
            self._tokens.label,
            chosen,
            shares[chosen],
            {name: share for name, share in shares.items() if share > 0},
            probabilities.get(chosen),
            self._tokens.abstain_below,
            reason=reason,
            probabilities=probabilities,
            rewritten=text,
            costs=tuple(costs),
        )

    def may_go_on(self, tier: Tier, tiers: Sequence[Tier], *, hops: int) -> bool:
        """Whether there may be another handover, and the graph has an edge from the tier to one of `tiers`."""
        names = {each.name for each in tiers}
        return hops < self._max_hops and any(each.name in names for each in self._tokens.graph.successors(tier.name))

    async def go_on(self, query: Query, answer: Answer, tier: Tier, tiers: Sequence[Tier]) -> Onward:
        """The worker that should go on with the answer."""
        objection = self._objection(query)
        if objection is not None:
            return Onward(None, objection, None)
        return await self._tokens.go_on(query.text, answer.text, tier.name, among=[each.name for each in tiers])

    def _objection(self, query: Query) -> str | None:
        """Why the choosing model may not be asked about the query."""
        card = self.card
        if query.privacy == "near" and card.placement == "far":
            return f"{card.name!r} is far and may not see the query"
        unavailable = self._tokens.model.unavailable()
        if unavailable is not None:
            return f"{card.name!r} cannot choose: {unavailable}"
        if query.budget_usd is not None:
            prompt = choice_prompt(self._tokens.graph.workers, query.text, self._tokens.style)
            asked = replace(query, prompt=prompt, sampling=SamplingOptions(max_tokens=1), tools=())
            paid = within_budget(asked, card, query.budget_usd)
            if isinstance(paid, str):
                return f"asking {card.name!r} {paid}"
        return None
