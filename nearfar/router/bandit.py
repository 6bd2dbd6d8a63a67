"""Learning which model to ask from outcomes as they come: a contextual bandit under a budget, with known propensities.

Each model's reward is a Bayesian linear regression on the query's features. With Thompson sampling a model is drawn
with the probability that it is the best one under those beliefs, which is computed and not sampled, so that the
propensity that goes into the decision record is exact and the log can be evaluated off policy (`off_policy`); LinUCB
takes the one with the highest upper bound, and every other with the floor's probability. Plain Python: a choice takes
well under a millisecond.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from math import erf, exp, isfinite, sqrt
from typing import Literal

import msgspec

from nearfar.errors import ConfigError, DataError

#: Intervals of the integral for the probability of being best, among three models or more.
_GRID = 40

#: How far the integral reaches, in standard deviations.
_REACH = 5.0


class LinearReward(msgspec.Struct, forbid_unknown_fields=True):
    """Beliefs about one model's reward: a Gaussian over the weights of a linear regression.

    Attributes:
        weights: their mean.
        covariance: of the weights, in units of the noise's variance, row by row.
        n: outcomes seen.

    Source: Agrawal and Goyal 2013, "Thompson sampling for contextual bandits with linear payoffs", arXiv:1209.3352;
        the update is Sherman and Morrison's.
    """

    weights: list[float]
    covariance: list[list[float]]
    n: int = 0

    @classmethod
    def prior(cls, num_features: int, *, precision: float = 1.0) -> LinearReward:
        """Before any outcome: weights of mean 0 and variance 1 / precision."""
        covariance = [[1 / precision * (i == j) for j in range(num_features)] for i in range(num_features)]
        return cls([0.0] * num_features, covariance)

    def mean(self, features: Sequence[float]) -> float:
        """The expected reward."""
        return _dot(self.weights, features)

    def variance(self, features: Sequence[float]) -> float:
        """How unsure that is, in units of the noise's variance."""
        return max(0.0, _dot(features, [_dot(row, features) for row in self.covariance]))

    def update(self, features: Sequence[float], reward: float) -> None:
        """Takes one outcome in; O(d²)."""
        pull = [_dot(row, features) for row in self.covariance]
        spread = 1.0 + _dot(features, pull)
        gap = (reward - self.mean(features)) / spread
        for i, own in enumerate(pull):
            self.weights[i] += gap * own
            row = self.covariance[i]
            for j, other in enumerate(pull):
                row[j] -= own * other / spread
        self.n += 1

    def revise(self, features: Sequence[float], change: float) -> None:
        """Changes the reward of an outcome that was taken in before; the same as if it had come so at first."""
        pull = [_dot(row, features) for row in self.covariance]
        for i, own in enumerate(pull):
            self.weights[i] += change * own


class Choice(msgspec.Struct, frozen=True):
    """A drawn model.

    Attributes:
        model: who answers.
        propensity: the probability with which it was drawn, given the features.
        propensities: of every model; they add up to 1, and each is at least the bandit's floor.
    """

    model: str
    propensity: float
    propensities: Mapping[str, float]


class ThompsonBandit(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Draws the model whose reward, less the price of its cost, is likeliest to be the best.

    The price rises while queries cost more than the budget and falls while they cost less.

    Attributes:
        features: names of the query's features; a constant 1 is added.
        beliefs: by model.
        budget: mean cost per query to keep to; None: cost does not matter.
        price: reward that a unit of cost must bring.
        learning_rate: of the price.
        noise: standard deviation of a reward around its mean; 0.5 is the most that an outcome in [0, 1] can have.
        floor: the least probability of each model. It bounds the weights of off-policy estimates by 1 / floor.
        rule: how a model is drawn.

    Source: Agrawal and Goyal 2013; LinUCB is Li et al. 2010, arXiv:1003.0146, algorithm 1, with a floor; the price is
        the dual step of Agrawal and Devanur 2016, "Linear contextual bandits with knapsacks", arXiv:1507.06738.
    """

    features: tuple[str, ...]
    beliefs: dict[str, LinearReward]
    budget: float | None = None
    price: float = 0.0
    learning_rate: float = 0.05
    noise: float = 0.5
    floor: float = 0.05
    rule: Literal["thompson", "linucb"] = "thompson"

    @classmethod
    def over(
        cls,
        models: Sequence[str],
        features: Sequence[str],
        *,
        budget: float | None = None,
        floor: float = 0.05,
        learning_rate: float = 0.05,
        rule: Literal["thompson", "linucb"] = "thompson",
    ) -> ThompsonBandit:
        """A bandit that has seen nothing.

        Raises:
            ConfigError: fewer than two models, a name twice, or a floor that leaves no choice.
        """
        if len(models) < 2 or len(set(models)) < len(models):
            raise ConfigError(f"A bandit needs two distinct models or more, not {list(models)!r}.")
        if not 0 < floor < 1 / len(models):
            raise ConfigError(
                f"floor must be above 0, so that the log can be evaluated, and below 1/{len(models)}, not {floor!r}."
            )
        if budget is not None and not budget > 0:
            raise ConfigError(f"The budget per query must be above 0, not {budget!r}.")
        beliefs = {model: LinearReward.prior(len(features) + 1) for model in models}
        return cls(
            features=tuple(features),
            beliefs=beliefs,
            budget=budget,
            floor=floor,
            learning_rate=learning_rate,
            rule=rule,
        )

    def propensities(
        self,
        signals: Mapping[str, float],
        costs: Mapping[str, float] | None = None,
        *,
        among: Collection[str] | None = None,
    ) -> dict[str, float]:
        """The probability of each model for this query; nothing is drawn.

        Args:
            signals: the query's features by name.
            costs: expected cost of each model on this query; None: all cost nothing.
            among: the models that may take it, at least one; None: all.

        Raises:
            DataError: a feature is missing or not finite.
        """
        row = self._row(signals)
        models = [model for model in self.beliefs if among is None or model in among]
        beliefs = [
            (
                self.beliefs[model].mean(row) - self.price * (costs[model] if costs else 0.0),
                self.noise * sqrt(self.beliefs[model].variance(row)),
            )
            for model in models
        ]
        best = probabilities_of_being_best(beliefs) if self.rule == "thompson" else _highest_bound(beliefs)
        rest = 1.0 - self.floor * len(best)
        return {model: self.floor + rest * share for model, share in zip(models, best, strict=True)}

    def choose(
        self,
        signals: Mapping[str, float],
        costs: Mapping[str, float] | None = None,
        *,
        draw: random.Random,
        among: Collection[str] | None = None,
    ) -> Choice:
        """Draws a model; see `propensities`."""
        found = self.propensities(signals, costs, among=among)
        model = draw.choices(list(found), list(found.values()))[0]
        return Choice(model, found[model], found)

    def learn(self, signals: Mapping[str, float], model: str, reward: float, cost: float = 0.0) -> None:
        """Takes an outcome in, in any order and however late.

        Raises:
            DataError: no such model, or a reward, cost or feature that is no number.
        """
        if model not in self.beliefs:
            raise DataError(f"The bandit does not know {model!r}; it knows {', '.join(map(repr, self.beliefs))}.")
        if not (isfinite(reward) and isfinite(cost)):
            raise DataError(f"The outcome of {model!r} is {reward!r} at a cost of {cost!r}; both must be numbers.")
        self.beliefs[model].update(self._row(signals), reward)
        if self.budget is not None:
            self.price = max(0.0, self.price + self.learning_rate * (cost / self.budget - 1) / sqrt(1 + self._n))

    def revise(self, signals: Mapping[str, float], model: str, change: float) -> None:
        """Changes the reward of an outcome that `learn` took in before; see `learn` for what it raises."""
        if model not in self.beliefs:
            raise DataError(f"The bandit does not know {model!r}; it knows {', '.join(map(repr, self.beliefs))}.")
        self.beliefs[model].revise(self._row(signals), change)

    @property
    def _n(self) -> int:
        return sum(belief.n for belief in self.beliefs.values())

    def _row(self, signals: Mapping[str, float]) -> list[float]:
        row = [1.0]
        for name in self.features:
            value = signals.get(name)
            if value is None or not isfinite(value):
                raise DataError(
                    f"The feature {name!r} is {value!r}; the bandit needs a number. It reads {self.features}."
                )
            row.append(value)
        return row

    def to_json(self) -> bytes:
        """The bandit as one JSON object."""
        return msgspec.json.encode(self)

    @classmethod
    def from_json(cls, data: bytes | str) -> ThompsonBandit:
        """The bandit that `to_json` wrote.

        Raises:
            DataError: it is not one.
        """
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError) as exc:
            raise DataError(f"Not a bandit: {exc}. Begin a new one.") from exc


def probabilities_of_being_best(beliefs: Sequence[tuple[float, float]]) -> list[float]:
    """For independent Gaussians, given as (mean, standard deviation), the probability of each to be the largest.

    Two are compared in closed form, more by an integral that is off by up to some hundredths where one is known far
    better than another. A bandit that draws by these numbers logs them exactly all the same.
    """
    if len(beliefs) == 1:
        return [1.0]
    if len(beliefs) == 2:
        (a, s), (b, t) = beliefs
        spread = sqrt(s * s + t * t)
        first = _phi((a - b) / spread) if spread > 0 else 0.5 * ((a > b) + (a >= b))
        return [first, 1.0 - first]
    least = max(1e-9, 1e-3 * max(s for _, s in beliefs))
    shares = []
    for i, (mean, own) in enumerate(beliefs):
        own = max(own, least)
        total = 0.0
        for step in range(_GRID + 1):
            z = _REACH * (2 * step / _GRID - 1)
            mass = exp(-z * z / 2)
            for j, (other, spread) in enumerate(beliefs):
                if j != i:
                    mass *= _phi((mean + z * own - other) / max(spread, least))
            total += mass
        shares.append(total)
    whole = sum(shares)
    return [share / whole for share in shares]


#: Of the upper bound, in standard deviations of the belief; Li et al. 2010 tune it between 0.2 and 1.5.
_UCB_WIDTH = 1.0


def _highest_bound(beliefs: Sequence[tuple[float, float]]) -> list[float]:
    bounds = [mean + _UCB_WIDTH * spread for mean, spread in beliefs]
    highest = max(bounds)
    return [(bound == highest) / bounds.count(highest) for bound in bounds]


def _phi(z: float) -> float:
    return 0.5 * (1.0 + erf(z / sqrt(2.0)))


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))
