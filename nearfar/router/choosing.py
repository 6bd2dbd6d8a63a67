"""Choosing a tier before any call, by a fitted router or a bandit, with the probability of the choice on record."""

from __future__ import annotations

import random
from collections.abc import Sequence

from nearfar.errors import ConfigError
from nearfar.types import Query, Routing, Usage, estimate_tokens

from .cascade import Tier
from .free_probes import query_signals
from .learning import Learning, LiveBandit
from .predictive import PredictiveRouter, RoutingQuery

#: An answer's length where expected costs are compared and the query names none.
_ASSUMED_TOKENS = 256


class PredictiveChoice:
    """The strong tier where a fitted router expects it to add enough, the weak one elsewhere.

    Args:
        router: reads the query's text alone.
        label: which router, as decisions cite it.
        weak: name of the tier whose model the router was fitted on as the weak one.
        strong: likewise.
        threshold: expected gain from which the strong tier is chosen, in the router's own units.
        explore: share of queries for which the choice is left to a coin, so that the log can judge other routers.
        draw: the coin.

    Raises:
        ConfigError: the router judges a near answer, or explore is out of range.
    """

    def __init__(
        self,
        router: PredictiveRouter,
        *,
        label: str,
        weak: str,
        strong: str,
        threshold: float,
        explore: float = 0.0,
        draw: random.Random | None = None,
    ) -> None:
        if router.reads_signals:
            raise ConfigError(
                f"{label!r} judges a near answer, and a tier is chosen before any. Fit a router that reads the text "
                "alone: nearfar evaluate --router auto, without --signal."
            )
        if not 0 <= explore <= 1:
            raise ConfigError(f"explore must be in [0, 1], not {explore!r}.")
        self._router = router
        self._label = label
        self._weak = weak
        self._strong = strong
        self._threshold = threshold
        self._explore = explore
        self._draw = draw or random.Random()  # noqa: S311 - a coin, no secret

    @property
    def is_slow(self) -> bool:
        """Where the router embeds the text."""
        return self._router.is_embedding_based

    def choose(self, query: Query, tiers: Sequence[Tier]) -> Routing | None:
        """The choice; None where one of the two tiers may not take the query."""
        names = {tier.name for tier in tiers}
        if not {self._weak, self._strong} <= names:
            return None
        score = self._router.predict([RoutingQuery(query.text)])[0]
        wanted, other = (self._strong, self._weak) if score >= self._threshold else (self._weak, self._strong)
        shares = {wanted: 1 - self._explore / 2, other: self._explore / 2}
        chosen = other if self._explore and self._draw.random() < shares[other] else wanted
        return Routing(
            self._label,
            chosen,
            shares[chosen],
            {name: share for name, share in shares.items() if share > 0},
            score,
            self._threshold,
            {"predicted_gain": score},
        )


class BanditChoice:
    """The tier that a bandit draws, which learns from the outcomes of its choices.

    Args:
        live: the bandit; its arms are the cascade's tiers, and it reads `query_signals`.
        learning: keeps it up to date.
        draw: its random numbers.
    """

    def __init__(self, live: LiveBandit, learning: Learning, *, draw: random.Random | None = None) -> None:
        self._live = live
        self._learning = learning
        self._draw = draw or random.Random()  # noqa: S311 - a draw, no secret

    is_slow = False

    def choose(self, query: Query, tiers: Sequence[Tier]) -> Routing | None:
        """The choice; None where one tier alone may take the query."""
        if len(tiers) < 2:
            return None
        self._learning.look()
        found = query_signals(query)
        signals = {name: found[name] for name in self._live.features}
        costs = {tier.name: expected_cost_usd(query, tier) for tier in tiers}
        choice = self._live.choose(signals, costs, among=list(costs), draw=self._draw)
        return Routing(self._live.label, choice.model, choice.propensity, choice.propensities, signals=signals)


def expected_cost_usd(query: Query, tier: Tier) -> float:
    """About what asking the tier costs; 0 where its price is unknown."""
    card = tier.model.card
    if card.price is None:
        return 0.0
    prompt_tokens = sum(estimate_tokens(message.text) for message in query.messages)
    bound = card.output_bound(query)
    return card.price.cost_usd(Usage(prompt_tokens, min(bound or _ASSUMED_TOKENS, _ASSUMED_TOKENS)))
