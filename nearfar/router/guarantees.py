"""Thresholds that keep a promise on new queries, with a stated confidence, whatever the model and the signal are.

Each class is a `ThresholdFitter`: it takes scores, or a raw signal, and outcomes of labelled answers, and returns a
`Threshold` whose `guarantee` says what is promised, by which test, from how many labels and under which assumptions.
Where nothing can be promised the threshold is None, and the guarantee says about how many labels would be needed.

Why the thresholds are tested in the order in which they are. Learn-then-Test rejects "the risk at t is above alpha" for
one t after another and stops at the first that stays. Here t runs over *all* real numbers, strict to lenient, so the
order is fixed before the data are seen; the p-value only changes where a labelled score is passed, so finitely many
tests do. To break the promise, the walk must pass the first t whose risk is too high, and that t is a fixed number of
the population: its one p-value is valid, and no correction for the number of tests is due. For the error among the
accepted, the number accepted at a fixed t is itself random; given that number, the accepted answers are independent
draws from the accepted part of the population, so the binomial test is valid given it, hence valid. The walk begins at
a rank that follows from n, alpha and delta alone. Between two thresholds whose risk is exactly alpha the error rate is
alpha too, so where among them the first test falls says nothing of the errors at the next one, and the promise still
holds at delta. This needs scores without ties; with ties, whole groups are accepted, and docs/guarantees.md bounds what
the rank may then cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil, inf, isfinite, sqrt
from statistics import NormalDist
from typing import Any, Literal, TypeAlias

from nearfar.errors import ConfigError, DataError
from nearfar.types import Threshold

from .evaluation import wilson_interval
from .p_values import (
    Bets,
    binomial_p_value,
    difference_p_value,
    hoeffding_bentkus_p_value,
    least_labels,
    most_errors,
)

Target: TypeAlias = Literal["accepted-error", "quality-loss", "cost"]

#: Fewer labelled answers than this are refused and not called infeasible: they say nothing at all.
MIN_LABELS = 10

#: The walk begins where this many times alpha·n errors would still pass, at most `_MOST_FIRST_ERRORS`. A walk that
#: begins at the very top, where one error ends it, stops early by chance; one that begins late misses what only the
#: surest answers can keep. Chosen on nine tables and three sizes (300, 1,000 and 3,000 labels), see
#: benchmarks/guarantees.py; it does not look at the data, so validity does not hang on it.
_FIRST_ERRORS_PER_EXPECTED = 1 / 30
_MOST_FIRST_ERRORS = 5

#: The chance of success that `needed_n` aims at.
_POWER = 0.8

_INDEPENDENT = "the labelled queries and the later ones are independent draws from the same distribution"
_FIXED_SCORE = "the score was fixed before these labels were looked at"


@dataclass(frozen=True, slots=True)
class _Cut:
    """What one threshold accepts."""

    value: float  # the least accepted score
    below: float  # the next score, not accepted; -inf: none
    accepted: int
    total: float  # sum of the losses of the accepted

    @property
    def threshold(self) -> float:
        """A number that parts the accepted from the rest."""
        return between(self.below, self.value)


@dataclass(frozen=True, slots=True)
class AcceptedError:
    """Accepted answers are wrong at most `alpha` of the time, with confidence 1 − `delta`: the lowest such threshold.

    Args:
        alpha: the largest share of wrong answers among the accepted ones, in (0, 1).
        delta: the probability, over the draw of the labels, with which the promise may fail, in (0, 1).
        test: "binomial" is exact for outcomes 0 and 1; "hoeffding-bentkus" takes any in [0, 1]; None chooses by the
            outcomes' kind.

    Source: Angelopoulos et al. 2021, "Learn then Test: calibrating predictive algorithms to achieve risk control",
        arXiv:2110.01052, sections 2 and 5; for selective prediction, Geifman and El-Yaniv 2017, arXiv:1705.08500.
    """

    alpha: float
    delta: float = 0.1
    test: Literal["binomial", "hoeffding-bentkus"] | None = None

    def __post_init__(self) -> None:
        _require_levels(self.alpha, self.delta)

    def fit(self, scores: Sequence[float], outcomes: Sequence[float]) -> Threshold:
        """The threshold; None where nothing can be promised.

        Raises:
            DataError: too few labels, one class only, or scores that are constant or not finite.
            ConfigError: the binomial test was asked for and the outcomes are not 0 and 1.
        """
        scores, outcomes = check_labels(scores, outcomes)
        n = len(scores)
        is_binary = all(outcome in (0, 1) for outcome in outcomes)
        test = self.test or ("binomial" if is_binary else "hoeffding-bentkus")
        if test == "binomial" and not is_binary:
            raise ConfigError("The binomial test takes outcomes 0 and 1. Leave the test out, or round the outcomes.")
        cuts = list(_descending(scores, [1 - outcome for outcome in outcomes]))
        first = first_rank(n, self.alpha, self.delta)
        found = None
        for cut in cuts:
            if cut.accepted < first:
                continue
            if not self._holds(cut, test, n):
                break
            found = cut
        needed, reason = (None, None) if found else self._needed(cuts, n)
        return _threshold(
            found.threshold if found else None,
            scores,
            outcomes,
            guarantee={
                "target": "accepted-error",
                "promise": f"accepted answers are wrong at most {self.alpha:.4g} of the time",
                "alpha": self.alpha,
                "delta": self.delta,
                "method": f"learn-then-test, fixed sequence, {test}",
                "n": n,
                "accepted_n": found.accepted if found else 0,
                "is_feasible": found is not None,
                "needed_n": needed,
                "reason": reason,
                "assumptions": [_INDEPENDENT, _FIXED_SCORE],
            },
        )

    def _holds(self, cut: _Cut, test: str, n: int) -> bool:
        if test == "binomial":
            return round(cut.total) <= most_errors(n, self.alpha, self.delta)[cut.accepted]
        mean = cut.total / cut.accepted
        return hoeffding_bentkus_p_value(mean, cut.accepted, self.alpha) <= self.delta

    def _needed(self, cuts: Sequence[_Cut], n: int) -> tuple[int | None, str]:
        """About how many labels would do, and why these did not."""
        likely = [(each, (each.total + 0.5) / (each.accepted + 1)) for each in cuts]
        hopeful = [(each, wilson_interval(each.total, each.accepted, confidence=0.8).low) for each in cuts]
        for rates, reason in (
            (likely, "too few labels to show it"),
            (hopeful, "no share of the labelled answers was that good; so many labels would do if the best share is"),
        ):
            needed = [
                accepted_needed(rate, self.alpha, self.delta) * n / cut.accepted
                for cut, rate in rates
                if rate < self.alpha
            ]
            if needed:
                return max(n + 1, ceil(min(needed))), reason
        return None, "even the surest answers are wrong more often than that: no number of labels would do"


@dataclass(frozen=True, slots=True)
class QualityLoss:
    """The cascade's mean quality is at most `alpha` below always asking far, with confidence 1 − `delta`.

    A near answer that is right where far's is wrong makes good for one that is wrong where far's is right.

    Args:
        alpha: the largest loss of mean quality, in (0, 1).
        delta: the probability, over the draw of the labels, with which the promise may fail.
        far_outcomes: far's outcomes on the labelled queries, in [0, 1].

    Outcomes 0 and 1 are tested exactly (`difference_p_value`), others by betting.
    """

    alpha: float
    delta: float
    far_outcomes: Sequence[float]

    def __post_init__(self) -> None:
        _require_levels(self.alpha, self.delta)

    def fit(self, scores: Sequence[float], outcomes: Sequence[float]) -> Threshold:
        """The lowest threshold that keeps the promise; None where nothing can be promised.

        Raises:
            DataError: too few labels, one class only, scores that are constant or not finite, or as many far
                outcomes as near ones are not there.
        """
        scores, outcomes = check_labels(scores, outcomes)
        n = len(scores)
        if len(self.far_outcomes) != n:
            raise DataError(f"{n} near outcomes and {len(self.far_outcomes)} far ones: give as many of each.")
        losses = [float(far) - near for near, far in zip(outcomes, self.far_outcomes, strict=True)]
        is_binary = all(loss in (-1, 0, 1) for loss in losses)
        cuts = list(_descending(scores, losses))
        found = None
        for cut, p_value in self._p_values(cuts, scores, losses, is_binary):
            if p_value > self.delta:
                break
            found = cut
        needed, reason = (None, None) if found else self._needed(cuts, n)
        return _threshold(
            found.threshold if found else None,
            scores,
            outcomes,
            guarantee={
                "target": "quality-loss",
                "promise": f"mean quality is at most {self.alpha:.4g} below always asking far",
                "alpha": self.alpha,
                "delta": self.delta,
                "method": "learn-then-test, fixed sequence, " + ("exact difference" if is_binary else "betting"),
                "n": n,
                "accepted_n": found.accepted if found else 0,
                "is_feasible": found is not None,
                "needed_n": needed,
                "reason": reason,
                "measured_loss": found.total / n if found else 0.0,
                "assumptions": [_INDEPENDENT, _FIXED_SCORE, "far answers as well later as it did on these queries"],
            },
        )

    def _p_values(
        self, cuts: Sequence[_Cut], scores: Sequence[float], losses: Sequence[float], is_binary: bool
    ) -> Iterator[tuple[_Cut, float]]:
        n = len(scores)
        if is_binary:
            worse = list(_descending(scores, [float(loss > 0) for loss in losses]))
            for cut, bad in zip(cuts, worse, strict=True):
                num_worse = round(bad.total)
                num_better = num_worse - round(cut.total)
                yield cut, difference_p_value(num_worse, num_better, n, self.alpha, delta=self.delta)
            return
        bets = Bets(self.alpha, highest=1.0, n=n, delta=self.delta)
        for _ in range(n):
            bets.add(0.0)
        ordered = [loss for _, loss in sorted(zip(scores, losses, strict=True), key=_first, reverse=True)]
        num_added = 0
        for cut in cuts:
            for loss in ordered[num_added : cut.accepted]:
                bets.exchange(0.0, loss)
            num_added = cut.accepted
            yield cut, bets.p_value()

    def _needed(self, cuts: Sequence[_Cut], n: int) -> tuple[int | None, str]:
        """About how many labels would do, and why these did not; the first cut is what stopped the walk."""
        loss = max(0.0, cuts[0].total / n) if cuts else 0.0
        if loss >= self.alpha:
            return None, "accepting even the surest answers loses more than that: no number of labels would do"
        return max(n + 1, ceil(accepted_needed(loss, self.alpha, 0.99 * self.delta))), "too few labels to show it"


@dataclass(frozen=True, slots=True)
class MeanCost:
    """The cascade costs at most `limit` per query on average, with confidence 1 − `delta`.

    Of the thresholds that keep the promise, the highest: it defers most, so its quality is best where far is the better
    model throughout. With `far_outcomes`, the one of the best quality on the data.

    Args:
        limit: the largest mean cost per query; in the costs' unit, or as a share of queries sent far.
        delta: the probability, over the draw of the labels, with which the promise may fail.
        near_costs: of each labelled query, paid always; None: nothing.
        far_costs: of each labelled query, paid on deferral; None: one each, so that cost is the share sent far.
        highest: a bound on what one query may cost; None: the most that one of the labelled queries did, which is then
            one of the assumptions.
        far_outcomes: far's outcomes, in [0, 1]; None: not known.
    """

    limit: float
    delta: float = 0.1
    near_costs: Sequence[float] | None = None
    far_costs: Sequence[float] | None = None
    highest: float | None = None
    far_outcomes: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not (isfinite(self.limit) and self.limit > 0):
            raise ConfigError(f"The cost limit must be above 0, not {self.limit!r}.")
        if not 0 < self.delta < 1:
            raise ConfigError(f"delta must be between 0 and 1, not {self.delta!r}.")

    def fit(self, scores: Sequence[float], outcomes: Sequence[float]) -> Threshold:
        """The threshold; None where nothing can be promised.

        Raises:
            DataError: too few labels, one class only, scores that are constant or not finite, costs that are negative
                or above `highest`, or not as many costs as labels.
        """
        scores, outcomes = check_labels(scores, outcomes)
        n = len(scores)
        near, far, highest = self._costs(n)
        is_share = self.near_costs is None and self.far_costs is None
        kept = []
        for value, p_value in self._p_values(scores, near, far, highest, is_share):
            if p_value > self.delta:
                break
            kept.append(value)
        chosen = self._choice(kept, scores, outcomes)
        needed, reason = (None, None) if kept else self._needed(sum(near) / n, highest, n)
        sent = sum(score < chosen for score in scores) if chosen is not None else n
        return _threshold(
            chosen,
            scores,
            outcomes,
            guarantee={
                "target": "cost",
                "promise": f"{'the share of queries sent far' if is_share else 'the mean cost per query'} is at most "
                f"{self.limit:.4g}",
                "alpha": self.limit,
                "delta": self.delta,
                "method": "learn-then-test, fixed sequence, " + ("binomial" if is_share else "betting"),
                "n": n,
                "accepted_n": n - sent,
                "is_feasible": bool(kept),
                "needed_n": needed,
                "reason": reason,
                "assumptions": [
                    _INDEPENDENT,
                    _FIXED_SCORE,
                    *([] if is_share else [f"no query costs over {highest:g}"]),
                ],
            },
        )

    def _p_values(
        self, scores: Sequence[float], near: Sequence[float], far: Sequence[float], highest: float, is_share: bool
    ) -> Iterator[tuple[float, float]]:
        n = len(scores)
        if self.limit >= highest:
            yield from ((value, 0.0) for value, _ in _ascending(scores))
            return
        if is_share:
            for value, deferred in _ascending(scores):
                yield value, binomial_p_value(deferred, n, self.limit)
            return
        bets = Bets(self.limit, highest=highest, n=n, delta=self.delta)
        for cost in near:
            bets.add(cost)
        order = sorted(range(n), key=lambda i: scores[i])
        num_deferred = 0
        for value, deferred in _ascending(scores):
            for i in order[num_deferred:deferred]:
                bets.exchange(near[i], near[i] + far[i])
            num_deferred = deferred
            yield value, bets.p_value()

    def _costs(self, n: int) -> tuple[Sequence[float], Sequence[float], float]:
        near = [0.0] * n if self.near_costs is None else self.near_costs
        far = [1.0] * n if self.far_costs is None else self.far_costs
        for name, costs in (("near_costs", near), ("far_costs", far)):
            if len(costs) != n:
                raise DataError(f"{n} labelled answers and {len(costs)} {name}: give as many of each.")
            for i, cost in enumerate(costs, start=1):
                if not 0 <= cost < inf:
                    raise DataError(f"The cost of labelled answer {i} in {name} is {cost!r}; costs are at least 0.")
        most = max(a + b for a, b in zip(near, far, strict=True))
        if self.highest is not None and most > self.highest:
            raise DataError(f"A labelled query cost {most:g}, over the bound {self.highest:g}. Raise `highest`.")
        return near, far, most if self.highest is None else self.highest

    def _choice(self, kept: Sequence[float], scores: Sequence[float], outcomes: Sequence[float]) -> float | None:
        if not kept or self.far_outcomes is None:
            return kept[-1] if kept else None
        gains = [far - near for near, far in zip(outcomes, self.far_outcomes, strict=True)]
        ordered = sorted(zip(scores, gains, strict=True))
        best, best_gain, gain, passed = kept[0], 0.0, 0.0, 0
        for value in kept:
            while passed < len(ordered) and ordered[passed][0] < value:
                gain += ordered[passed][1]
                passed += 1
            if gain >= best_gain:
                best, best_gain = value, gain
        return best

    def _needed(self, near_cost: float, highest: float, n: int) -> tuple[int | None, str]:
        if near_cost >= self.limit:
            return None, "the near model alone costs more than that: no number of labels would do"
        rate = near_cost / highest
        return max(n + 1, ceil(accepted_needed(rate, self.limit / highest, self.delta))), "too few labels to show it"


@dataclass(frozen=True, slots=True)
class ExpectedLoss:
    """The expected loss on the next query is at most `alpha`, over the draw of the labels too: conformal risk control.

    A weaker promise than the others: no 1 − delta. The loss of an accepted answer is how much better far's would have
    been, never below 0, or where far is not known, how wrong the answer is; a deferred one loses nothing. It is a share
    of *all* queries, not of the accepted ones, whose ratio conformal risk control does not cover.

    Args:
        alpha: the largest expected loss per query, in (0, 1).
        far_outcomes: far's outcomes on the labelled queries; None: not known.

    Source: Angelopoulos et al. 2022, "Conformal risk control", arXiv:2208.02814, theorem 1.
    """

    alpha: float
    far_outcomes: Sequence[float] | None = None

    def __post_init__(self) -> None:
        _require_levels(self.alpha, 0.5)

    def fit(self, scores: Sequence[float], outcomes: Sequence[float]) -> Threshold:
        """The lowest threshold whose expected loss is small enough; None where there are too few labels.

        Raises:
            DataError: too few labels, one class only, or scores that are constant or not finite.
        """
        scores, outcomes = check_labels(scores, outcomes)
        n = len(scores)
        far = [1.0] * n if self.far_outcomes is None else self.far_outcomes
        losses = [max(0.0, float(other) - own) for own, other in zip(outcomes, far, strict=True)]
        found = None
        for cut in _descending(scores, losses):
            if (cut.total + 1) / (n + 1) > self.alpha:
                break
            found = cut
        needed = None if found else max(n + 1, ceil(1 / self.alpha - 1))
        loss = "the quality lost against far" if self.far_outcomes is not None else "the share of wrong near answers"
        return _threshold(
            found.threshold if found else None,
            scores,
            outcomes,
            guarantee={
                "target": "expected-loss",
                "promise": f"{loss}, over all queries, is at most {self.alpha:.4g} in expectation",
                "alpha": self.alpha,
                "delta": None,
                "method": "conformal risk control",
                "n": n,
                "accepted_n": found.accepted if found else 0,
                "is_feasible": found is not None,
                "needed_n": needed,
                "reason": None if found else "too few labels to show it",
                "assumptions": ["the labelled queries and the next one are exchangeable", _FIXED_SCORE],
            },
        )


def first_rank(n: int, alpha: float, delta: float) -> int:
    """How many answers the first tested threshold accepts; more than n: no threshold can be shown to keep alpha."""
    wanted = min(_MOST_FIRST_ERRORS, int(n * alpha * _FIRST_ERRORS_PER_EXPECTED))
    allowed = most_errors(n, alpha, delta)
    return next((m for m, errors in enumerate(allowed) if errors >= wanted), n + 1)


def accepted_needed(rate: float, limit: float, delta: float) -> float:
    """About how many answers with this error rate show, four times out of five, that it is at most `limit`.

    By the normal approximation, and never fewer than would do without an error: an estimate for planning.
    """
    z, power = NormalDist().inv_cdf(1 - delta), NormalDist().inv_cdf(_POWER)
    rough = ((z * sqrt(limit * (1 - limit)) + power * sqrt(rate * (1 - rate))) / (limit - rate)) ** 2
    return max(float(least_labels(limit, delta)), rough)


def between(low: float, high: float) -> float:
    """The shortest decimal above `low` and at most `high`, in the lower half if there is room; `high` if low is -inf.

    Every such number accepts the same labelled answers, and the tests hold for all of them alike.
    """
    if not low < high:
        raise ValueError(f"low must be below high, not {low!r} and {high!r}")
    if low == -inf:
        return high
    middle = low + (high - low) / 2
    for top in (middle, high):
        for digits in range(1, 17):
            rounded = float(f"{low + (top - low) / 2:.{digits}g}")
            if low < rounded <= top:
                return rounded
    return high


def check_labels(scores: Sequence[float], outcomes: Sequence[float]) -> tuple[list[float], list[float]]:
    """The same as plain floats, or why no threshold can be fitted to them. A score of -inf is never accepted.

    Raises:
        DataError: with the reason and what is needed.
    """
    if len(scores) != len(outcomes):
        raise DataError(f"{len(scores)} scores and {len(outcomes)} outcomes: give as many of each.")
    if len(scores) < MIN_LABELS:
        raise DataError(f"{len(scores)} labelled answers are too few: label at least {MIN_LABELS}.")
    for i, (score, outcome) in enumerate(zip(scores, outcomes, strict=True), start=1):
        if not isfinite(score) and score != -inf:
            raise DataError(f"The signal of labelled answer {i} is {score!r}, not a usable number. Leave it out.")
        if not 0 <= outcome <= 1:
            raise DataError(f"The outcome of labelled answer {i} is {outcome!r}; outcomes are in [0, 1].")
    if min(scores) == max(scores):
        raise DataError(
            f"The signal is {float(scores[0])!r} in every labelled answer: it cannot tell them apart. Take another."
        )
    if min(outcomes) == max(outcomes):
        kind = {0.0: "wrong", 1.0: "right"}.get(float(outcomes[0]), f"worth {outcomes[0]:g}")
        raise DataError(
            f"All {len(outcomes)} labelled answers are {kind}: there is nothing to tell apart. Label more, until there "
            "are right and wrong ones."
        )
    return [float(score) for score in scores], [float(outcome) for outcome in outcomes]


def _descending(scores: Sequence[float], losses: Sequence[float]) -> Iterator[_Cut]:
    """Every set that a threshold can accept, smallest first."""
    ordered = sorted(zip(scores, losses, strict=True), key=_first, reverse=True)
    accepted, total = 0, 0.0
    for value, group in groupby(ordered, key=_first):
        for _, loss in group:
            accepted += 1
            total += loss
        if value == -inf:  # no signal: always deferred
            return
        below = ordered[accepted][0] if accepted < len(ordered) else -inf
        yield _Cut(value, below, accepted, total)


def _ascending(scores: Sequence[float]) -> Iterator[tuple[float, int]]:
    """Every threshold that accepts something, lowest first, with how many it defers."""
    deferred = 0
    for value, group in groupby(sorted(scores)):
        if value > -inf:
            yield value, deferred
        deferred += sum(1 for _ in group)


def _first(pair: tuple[float, float]) -> float:
    return pair[0]


def _threshold(
    value: float | None, scores: Sequence[float], outcomes: Sequence[float], *, guarantee: Mapping[str, Any]
) -> Threshold:
    accepted = [o for score, o in zip(scores, outcomes, strict=True) if value is not None and score >= value]
    return Threshold(
        value,
        len(scores),
        len(accepted) / len(scores),
        sum(accepted) / len(accepted) if accepted else None,
        guarantee,
    )


def _require_levels(alpha: float, delta: float) -> None:
    for name, level in (("alpha", alpha), ("delta", delta)):
        if not 0 < level < 1:
            raise ConfigError(f"{name} must be between 0 and 1, not {level!r}.")
