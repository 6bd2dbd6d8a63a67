"""What another policy would have earned, estimated from a log of choices whose probabilities are known.

Knows nothing about models: a logged choice has an action, the probability with which it was drawn, and a reward. Where
the log cannot answer, because the policy would do what was never, or hardly ever, tried, that is refused and not
extrapolated. Plain Python.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt
from statistics import NormalDist
from typing import Literal, TypeAlias

from nearfar.errors import DataError

from .bandit import LinearReward
from .evaluation import Interval

Method: TypeAlias = Literal["ips", "snips", "doubly_robust"]

#: Fewer effective choices than this have no interval worth the name: the normal approximation needs some.
MIN_EFFECTIVE = 30

#: Of the weights in `predict_rewards`: early predictions from few rewards must not be wild. Of 1, 5 and 20, 5 gave the
#: narrowest intervals on the tables of benchmarks/off_policy.py, by at most half a percent.
_PRECISION = 5.0

#: The mean weight is 1 where the log covers the policy. So many standard errors below it, it does not.
_MOST_WEIGHT_GAP = 4.0


@dataclass(frozen=True, slots=True)
class LoggedChoice:
    """One choice of the log, and what the policy in question would do on the same query."""

    action: str
    propensity: float  # with which it was drawn, in (0, 1]
    reward: float
    target: Mapping[str, float]  # the policy's probability of each action; they add up to 1
    propensities: Mapping[str, float] | None = None  # of every action, where the log has them
    predicted: Mapping[str, float] | None = None  # expected reward of every action, by a model that has not seen it

    @property
    def weight(self) -> float:
        """How much likelier the policy is to do this than the log was."""
        return self.target.get(self.action, 0.0) / self.propensity


@dataclass(frozen=True, slots=True)
class Estimate:
    """A policy's mean reward, from a log."""

    method: Method
    value: float
    interval: Interval
    confidence: float
    n: int  # choices in the log
    effective_n: float  # as many choices of the policy's own would tell as much (Kish)
    largest_weight: float


def evaluate(
    choices: Sequence[LoggedChoice], *, method: Method = "doubly_robust", confidence: float = 0.95
) -> Estimate:
    """The policy's mean reward, with an interval.

    - `ips` weighs each reward by how much likelier the policy is to do what was done; unbiased.
    - `snips` divides by the sum of the weights instead of n; a little biased, usually narrower.
    - `doubly_robust` adds to a model's prediction the weighted error of that prediction: unbiased whatever the model,
      and the better the model, the narrower. The predictions must not have seen the reward that they predict; see
      `predict_rewards`.

    Intervals are normal ones. For logs of a policy that learns, the terms are martingale differences, for which the
    same limit holds as long as propensities stay above a floor.

    Raises:
        DataError: no log, propensities outside of (0, 1], a policy that the log does not cover, too few effective
            choices, or no predictions for the doubly robust estimate.

    Source: Horvitz and Thompson 1952; Swaminathan and Joachims 2015, "The self-normalized estimator for counterfactual
        learning"; Dudík et al. 2014, "Doubly robust policy evaluation and optimization", arXiv:1503.02834.
    """
    check_support(choices)
    weights = [choice.weight for choice in choices]
    effective = sum(weights) ** 2 / sum(weight * weight for weight in weights)
    if effective < MIN_EFFECTIVE:
        raise DataError(
            f"The log's {len(choices)} choices tell as much about this policy as {effective:.1f} of its own would, and "
            f"at least {MIN_EFFECTIVE} are needed. Log more, or evaluate a policy nearer to the logged one."
        )
    terms = _terms(choices, weights, method)
    n = len(terms)
    value = sum(terms) / n
    if method == "snips":  # the ratio's linearisation: its terms are taken about its value
        value = sum(w * c.reward for w, c in zip(weights, choices, strict=True)) / sum(weights)
        mean_weight = sum(weights) / n
        terms = [w / mean_weight * (c.reward - value) for w, c in zip(weights, choices, strict=True)]
        deviation = sqrt(sum(term * term for term in terms) / (n - 1))
    else:
        deviation = sqrt(sum((term - value) ** 2 for term in terms) / (n - 1))
    half = NormalDist().inv_cdf((1 + confidence) / 2) * deviation / sqrt(n)
    return Estimate(method, value, Interval(value - half, value + half), confidence, n, effective, max(weights))


def check_support(choices: Sequence[LoggedChoice]) -> None:
    """Refuses a log that cannot tell about the policy.

    Raises:
        DataError: with the reason.
    """
    if len(choices) < 2:
        raise DataError(f"A log of {len(choices)} choices tells nothing. Log more.")
    for number, choice in enumerate(choices, start=1):
        if not 0 < choice.propensity <= 1:
            raise DataError(
                f"Choice {number} has the propensity {choice.propensity!r}; what was done had a probability above 0 "
                "and at most 1. Log it with each decision."
            )
        if not isfinite(choice.reward):
            raise DataError(f"The reward of choice {number} is {choice.reward!r}, not a number. Leave the choice out.")
        if abs(sum(choice.target.values()) - 1) > 1e-6 or min(choice.target.values()) < 0:
            raise DataError(
                f"The policy's probabilities on choice {number} are {dict(choice.target)!r}; they must add up to 1."
            )
        for action, share in choice.target.items():
            if share > 0 and choice.propensities is not None and not choice.propensities.get(action, 0.0) > 0:
                raise DataError(
                    f"On choice {number} the policy does {action!r}, whose propensity in the log is 0: what would have "
                    "happened is not known. Explore it, or leave such queries out of the policy."
                )
    done = Counter(choice.action for choice in choices)
    wanted = {action for choice in choices for action, share in choice.target.items() if share > 0}
    if never := sorted(wanted - set(done)):
        raise DataError(f"The policy does {never[0]!r}, which the log never does. Explore it first.")
    weights = [choice.weight for choice in choices]
    n = len(weights)
    mean = sum(weights) / n
    error = sqrt(sum((weight - mean) ** 2 for weight in weights) / (n - 1) / n)
    # a weight that is hardly ever drawn is not in the sample's own error; a Poisson share of 1 / n stands in for it
    if mean < 1 - _MOST_WEIGHT_GAP * max(error, 1 / n):
        raise DataError(
            f"The log covers only {mean:.0%} of what the policy would do: where its other choices lead is not known. "
            "Explore them, or evaluate a policy nearer to the logged one."
        )


def predict_rewards(
    rows: Sequence[Sequence[float]], actions: Sequence[str], rewards: Sequence[float], *, names: Sequence[str]
) -> list[dict[str, float]]:
    """For every choice, each action's expected reward, predicted from the choices before it alone.

    One ridge regression per action, updated choice by choice, around the mean reward so far. A prediction that only
    looks back keeps the doubly robust estimate unbiased on logs of a policy that learns, where cross-fitting would look
    ahead.

    Args:
        rows: features of the queries, in the order of the log, about of unit scale.
        actions: what was done.
        rewards: in [0, 1]; predictions are held to that range.
        names: every action.

    Source: Bibaut et al. 2021, "Post-contextual-bandit inference", arXiv:2106.00418, on fitting to the past.
    """
    if not len(rows) == len(actions) == len(rewards):
        raise DataError(f"{len(rows)} rows, {len(actions)} actions and {len(rewards)} rewards: give as many of each.")
    models: dict[str, LinearReward] = {}
    found = []
    mean = 0.5  # of all rewards so far, with one of a half
    for n, (row, action, reward) in enumerate(zip(rows, actions, rewards, strict=True), start=1):
        features = [1.0, *row]
        if not models:
            models = {name: LinearReward.prior(len(features), precision=_PRECISION) for name in names}
        found.append({name: min(1.0, max(0.0, mean + model.mean(features))) for name, model in models.items()})
        models[action].update(features, reward - mean)
        mean += (reward - mean) / (n + 1)
    return found


def _terms(choices: Sequence[LoggedChoice], weights: Sequence[float], method: Method) -> list[float]:
    if method != "doubly_robust":
        return [weight * choice.reward for weight, choice in zip(weights, choices, strict=True)]
    terms = []
    for number, (weight, choice) in enumerate(zip(weights, choices, strict=True), start=1):
        if choice.predicted is None or not {choice.action, *choice.target} <= set(choice.predicted):
            raise DataError(
                f"Choice {number} has no prediction for each action, which the doubly robust estimate needs. See "
                "predict_rewards, or take 'snips'."
            )
        expected = sum(share * choice.predicted[action] for action, share in choice.target.items())
        terms.append(expected + weight * (choice.reward - choice.predicted[choice.action]))
    return terms
