"""Chains of several tiers: thresholds fitted jointly, with or without a promise, and the annotation of whole data sets.

The thresholds of a chain depend on each other: how hard the queries are that reach the second tier is up to the first.
So they are chosen together, from a grid of shares of the queries that each tier may keep.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, isfinite
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import msgspec

from nearfar.errors import ConfigError, DataError

from .p_values import Bets, binomial_p_value, difference_p_value, hoeffding_bentkus_p_value, least_labels
from .policies import Policy

T = TypeVar("T")

ChainTarget: TypeAlias = Literal["accepted-error", "quality-loss"]

#: Shares of its own scores that a tier may keep, for the grid; None, which is always in it, keeps nothing.
_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

#: Shares of its own scores, the lowest, on which a tier may give up at once.
_ABSTENTIONS = (0.05, 0.1, 0.2)

#: The largest grid; tiers beyond it are fitted on fewer shares.
_MOST_SETTINGS = 20_000

#: Fewer labelled queries than this are refused: half of them choose and the other half test.
MIN_LABELS = 20


@dataclass(frozen=True, slots=True)
class ChainTier:
    """What one tier made of the labelled queries, all of them in the same order."""

    name: str
    outcomes: Sequence[float]  # in [0, 1]
    costs: Sequence[float]  # of asking it, in any unit
    scores: Sequence[float] | None = None  # higher is surer; None: the last tier, which keeps all that reaches it


@dataclass(frozen=True, slots=True)
class Setting:
    """Where each tier but the last keeps its answer, and where it gives up for the whole chain."""

    thresholds: tuple[float | None, ...]  # keep where score ≥ threshold; None: never
    abstain_below: tuple[float | None, ...]  # give up where score < this; None: never


@dataclass(frozen=True, slots=True)
class ChainFit:
    """The cheapest setting that is good enough."""

    setting: Setting | None  # None: no setting is
    n: int
    cost: float  # mean per query, on the labels that chose it
    quality: float  # mean outcome, an abstention counting as told
    kept: tuple[float, ...]  # share of all queries that each tier answers
    abstained: float
    guarantee: Mapping[str, Any] | None  # what is promised; None: nothing


@dataclass(frozen=True, slots=True)
class ChainFitter:
    """The cheapest thresholds of a chain whose answers are good enough.

    With `delta`, a promise: half of the labels, drawn at random, find the settings that nobody beats in both cost and
    p-value; on the other half these are tested from the surest to the cheapest, and the walk stops at the first that
    fails. The order is fixed before the second half is seen, so each test is at the full delta. A setting must pass all
    of its tests, one per tier where each tier is promised; since it is accepted only if all of them pass, they need not
    share delta either (an intersection-union test).

    Args:
        alpha: for "accepted-error", the largest share of wrong answers among those of each tier but the last; for
            "quality-loss", the largest loss of mean quality against always asking the last tier.
        target: what is limited.
        delta: the probability with which the promise may fail; None: nothing is promised beyond the labels.
        abstention_value: what an "I don't know" is worth, in [0, 1]; None: the chain does not give up early.
        seed: of the halves.

    Source: Laufer-Goldshtein et al. 2023, "Efficiently controlling multiple risks with Pareto testing",
        arXiv:2210.07913; early abstention, Zellinger, Liu and Thomson 2025, arXiv:2502.09054.
    """

    alpha: float
    target: ChainTarget = "quality-loss"
    delta: float | None = 0.1
    abstention_value: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, level in (("alpha", self.alpha), ("delta", self.delta)):
            if level is not None and not 0 < level < 1:
                raise ConfigError(f"{name} must be between 0 and 1, not {level!r}.")
        if self.abstention_value is not None and not 0 <= self.abstention_value <= 1:
            raise ConfigError(f"abstention_value must be in [0, 1], not {self.abstention_value!r}.")

    def fit(self, tiers: Sequence[ChainTier]) -> ChainFit:
        """The setting, and what is promised of it.

        Raises:
            ConfigError: fewer than two tiers, or a tier before the last without scores.
            DataError: too few labels, lengths that differ, or numbers that are none.
        """
        n = _check(tiers)
        order = list(range(n))
        random.Random(self.seed).shuffle(order)  # noqa: S311 - halves, no secret
        chosen, tested = (order, []) if self.delta is None else (order[: n // 2], order[n // 2 :])
        trials = [_Trial(setting, tiers, chosen, self) for setting in self._settings(tiers, chosen)]
        if self.delta is None:
            good = [trial for trial in trials if trial.risk <= self.alpha + 1e-12]
            best = min(good, key=lambda trial: (trial.cost, -trial.quality), default=None)
            return self._fit(best, n, None)
        best, size = None, self.delta
        rated = [(trial, self._p_value(trial, size)) for trial in trials if any(trial.kept_losses) or trial.abstained]
        for trial in _front(rated):
            if self._p_value(_Trial(trial.setting, tiers, tested, self), size) > size:
                break
            best = trial
        return self._fit(best, n, self._guarantee(best, len(chosen), len(tested)))

    def _settings(self, tiers: Sequence[ChainTier], rows: Sequence[int]) -> Iterator[Setting]:
        scored = [
            sorted((tier.scores[i] for i in rows), reverse=True) for tier in tiers[:-1] if tier.scores is not None
        ]
        shares = list(_SHARES)
        while (len(shares) + 1) ** len(scored) > _MOST_SETTINGS:
            shares = shares[1::2]
        grids: list[list[float | None]] = []
        for values in scored:
            grid = {values[max(0, ceil(share * len(values)) - 1)] for share in shares}
            grids.append([None, *sorted(grid, reverse=True)])
        never: tuple[float | None, ...] = (None,) * len(scored)
        abstentions = [never]
        if self.abstention_value is not None:
            for i, values in enumerate(scored):
                for share in _ABSTENTIONS:
                    bound = values[-max(1, int(share * len(values)))]
                    abstentions.append((*never[:i], bound, *never[i + 1 :]))
        for thresholds in product(*grids):
            for abstain in abstentions:
                yield Setting(thresholds, abstain)

    def _p_value(self, trial: _Trial, delta: float) -> float:
        if self.target == "accepted-error":
            return max((_error_p_value(losses, self.alpha) for losses in trial.kept_losses if losses), default=0.0)
        losses, n = trial.losses, len(trial.losses)
        if all(loss in (-1, 0, 1) for loss in losses):
            worse, better = sum(loss > 0 for loss in losses), sum(loss < 0 for loss in losses)
            return difference_p_value(worse, better, n, self.alpha, delta=delta)
        bets = Bets(self.alpha, highest=1.0, n=n, delta=delta)
        for loss in losses:
            bets.add(loss)
        return bets.p_value()

    def _guarantee(self, best: _Trial | None, num_chosen: int, num_tested: int) -> dict[str, Any]:
        what = (
            f"each tier's answers are wrong at most {self.alpha:.4g} of the time"
            if self.target == "accepted-error"
            else f"mean quality is at most {self.alpha:.4g} below always asking the last tier"
        )
        return {
            "target": self.target,
            "promise": what,
            "alpha": self.alpha,
            "delta": self.delta,
            "method": "Pareto testing, fixed sequence",
            "n": num_chosen + num_tested,
            "n_tested": num_tested,
            "is_feasible": best is not None,
            "needed_n": None
            if best
            else max(num_chosen + num_tested + 1, 2 * least_labels(self.alpha, self.delta or 1)),
            "assumptions": [
                "the labelled queries and the later ones are independent draws from the same distribution",
                "the scores were fixed before these labels were looked at",
            ],
        }

    @staticmethod
    def _fit(best: _Trial | None, n: int, guarantee: Mapping[str, Any] | None) -> ChainFit:
        if best is None:
            return ChainFit(None, n, 0.0, 0.0, (), 0.0, guarantee)
        size = len(best.losses)
        kept = tuple(len(losses) / size for losses in best.kept_losses)
        last = 1 - sum(kept) - best.abstained
        return ChainFit(best.setting, n, best.cost, best.quality, (*kept, last), best.abstained, guarantee)


class _Trial:
    """One setting on some of the queries."""

    def __init__(self, setting: Setting, tiers: Sequence[ChainTier], rows: Sequence[int], fitter: ChainFitter) -> None:
        self.setting = setting
        self.kept_losses: list[list[float]] = [[] for _ in tiers[:-1]]  # of each tier but the last
        self.losses: list[float] = []  # against the last tier
        cost = quality = 0.0
        num_abstained = 0
        given_up = fitter.abstention_value or 0.0
        for i in rows:
            value = None
            for k, tier in enumerate(tiers):
                cost += tier.costs[i]
                if tier.scores is None or k == len(tiers) - 1:
                    value = tier.outcomes[i]
                    break
                score, threshold, bound = tier.scores[i], setting.thresholds[k], setting.abstain_below[k]
                if threshold is not None and score >= threshold:
                    value = tier.outcomes[i]
                    self.kept_losses[k].append(1 - value)
                    break
                if bound is not None and score < bound:
                    value = given_up
                    num_abstained += 1
                    break
            assert value is not None  # the last tier keeps all
            quality += value
            self.losses.append(tiers[-1].outcomes[i] - value)
        n = len(rows)
        self.cost, self.quality, self.abstained = cost / n, quality / n, num_abstained / n
        if fitter.target == "quality-loss":
            self.risk = sum(self.losses) / n
        else:
            self.risk = max((sum(losses) / len(losses) for losses in self.kept_losses if losses), default=0.0)


def _front(rated: Sequence[tuple[_Trial, float]]) -> list[_Trial]:
    """The settings that no other beats in both cost and p-value, the surest and dearest first."""
    front: list[tuple[_Trial, float]] = []
    for trial, p_value in sorted(rated, key=lambda pair: (pair[0].cost, pair[1])):
        if not front or p_value < front[-1][1]:
            front.append((trial, p_value))
    return [trial for trial, _ in reversed(front)]


def _error_p_value(losses: Sequence[float], alpha: float) -> float:
    """Given how many a tier keeps, their losses are independent draws, so the test is valid given that number."""
    if all(loss in (0, 1) for loss in losses):
        return binomial_p_value(round(sum(losses)), len(losses), alpha)
    return hoeffding_bentkus_p_value(sum(losses) / len(losses), len(losses), alpha)


def _check(tiers: Sequence[ChainTier]) -> int:
    if len(tiers) < 2:
        raise ConfigError(f"A chain has two tiers or more, not {len(tiers)}.")
    n = len(tiers[0].outcomes)
    if n < MIN_LABELS:
        raise DataError(f"{n} labelled queries are too few for a chain: label at least {MIN_LABELS}.")
    for tier in tiers[:-1]:
        if tier.scores is None:
            raise ConfigError(f"Tier {tier.name!r} is not the last and has no scores; the chain would end there.")
        if len(set(tier.scores)) == 1:
            raise DataError(f"The score of tier {tier.name!r} is {tier.scores[0]!r} on every query. Take another.")
    for tier in tiers:
        columns = {"outcomes": tier.outcomes, "costs": tier.costs} | ({"scores": tier.scores} if tier.scores else {})
        for name, column in columns.items():
            if len(column) != n:
                raise DataError(f"Tier {tier.name!r} has {len(column)} {name} for {n} queries.")
            bad = next((value for value in column if not isfinite(value)), None)
            if bad is not None:
                raise DataError(f"A number of {name} of tier {tier.name!r} is {bad!r}. Leave the query out.")
        if not all(0 <= outcome <= 1 for outcome in tier.outcomes):
            raise DataError(f"An outcome of tier {tier.name!r} is not in [0, 1].")
    return n


def chain_policy(policy: Policy, names: Sequence[str], fit: ChainFit) -> Policy:
    """The policy with the chain's thresholds, and the bounds below which it gives up, for its tiers.

    The chain must have been fitted on scores of this policy's scorers. A tier gives up only where it does not accept.

    Args:
        policy: its scorers; one tier per threshold.
        names: of the chain's tiers but the last, in order.
        fit: of `ChainFitter`.

    Raises:
        DataError: the fit found no setting.
        ConfigError: the policy lacks a tier of the chain, or there are more or fewer names than thresholds.
    """
    setting = fit.setting
    if setting is None:
        raise DataError("No setting of the chain is good enough; label more queries, or allow more errors.")
    if len(names) != len(setting.thresholds) or not set(names) <= set(policy.tiers):
        raise ConfigError(
            f"The chain was fitted for {len(setting.thresholds)} tiers and the policy {policy.label!r} has "
            f"{', '.join(map(repr, sorted(policy.tiers)))}; name them in the chain's order, not {list(names)!r}."
        )
    tiers = dict(policy.tiers)
    for name, threshold, bound in zip(names, setting.thresholds, setting.abstain_below, strict=True):
        if bound is not None and threshold is not None:
            bound = min(bound, threshold)
        tiers[name] = msgspec.structs.replace(
            tiers[name], threshold=threshold, abstain_below=bound, guarantee=fit.guarantee
        )
    return msgspec.structs.replace(policy, tiers=tiers)


# --- annotating a whole data set -------------------------------------------------------------------------------------

#: Labels and confidences of a batch of items, in their order.
Link: TypeAlias = Callable[[Sequence[T]], Awaitable[Sequence[tuple[str, float]]]]


@dataclass(frozen=True, slots=True)
class Annotation(Generic[T]):
    """An item with its label."""

    item: T
    label: str
    link: int  # whose label it is
    rank: float  # of its confidence among the link's, in (0, 1]; 1 is the surest
    asked: int  # how many links saw the item


async def annotate(items: Sequence[T], links: Sequence[Link[T]]) -> list[Annotation[T]]:
    """A label for every item, from a chain of links of which each keeps its surest share and hands on the rest.

    Of m links each keeps about a 1/m of all items. Confidences of different links cannot be compared, so they are
    replaced by their rank among the same link's, and the label of the best rank wins; an early link may outdo a later
    one. Ties keep the items' order. The last link sees about 1/m of the items, which is where the saving is.

    Args:
        items: what is to be labelled.
        links: cheapest first; each takes a batch and returns labels with confidences, higher for surer.

    Raises:
        ConfigError: there is no link.
        DataError: a link returns another number of labels, or a confidence that is no number.

    Source: Farr et al. 2024, "LLM chain ensembles for scalable and accurate data annotation", arXiv:2410.13006.
    """
    if not links:
        raise ConfigError("A chain that annotates needs at least one link.")
    best: dict[int, Annotation[T]] = {}
    remaining = list(range(len(items)))
    for number, link in enumerate(links):
        if not remaining:
            break
        found = await link([items[i] for i in remaining])
        if len(found) != len(remaining):
            raise DataError(f"Link {number + 1} gave {len(found)} labels for {len(remaining)} items.")
        if any(not isfinite(confidence) for _, confidence in found):
            raise DataError(f"Link {number + 1} gave a confidence that is no number.")
        order = sorted(range(len(remaining)), key=lambda j: -found[j][1])
        ranks = _ranks([found[j][1] for j in order])
        for j, rank in zip(order, ranks, strict=True):
            i = remaining[j]
            if i not in best or rank > best[i].rank:
                best[i] = Annotation(items[i], found[j][0], number, rank, number + 1)
            else:
                known = best[i]
                best[i] = Annotation(known.item, known.label, known.link, known.rank, number + 1)
        keeps = ceil(len(remaining) / (len(links) - number))
        remaining = sorted(remaining[j] for j in order[keeps:])
    return [best[i] for i in range(len(items))]


def _ranks(descending: Sequence[float]) -> list[float]:
    """Shares of the values that are at most as large, 1 for the largest; ties have the same."""
    n = len(descending)
    ranks: list[float] = []
    for i, value in enumerate(descending):
        ranks.append(ranks[-1] if i and value == descending[i - 1] else (n - i) / n)
    return ranks
