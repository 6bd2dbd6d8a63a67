"""Figures that say how good a score and a cascade are: plain Python, no third-party package.

An outcome is a quality in [0, 1]: 1 for a right answer, 0 for a wrong one, or anything between.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from math import isfinite, nan, sqrt
from statistics import NormalDist


@dataclass(frozen=True, slots=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Bin:
    """One row of a reliability table: the answers whose score lies in [low, high)."""

    low: float
    high: float  # inside the bin where it is the last
    n: int
    mean_score: float
    accuracy: float
    interval: Interval  # 95 % Wilson interval of the accuracy


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """What a cascade gives when this share of the queries goes on to the next tier."""

    deferred: float  # share, in [0, 1]
    quality: float  # mean outcome of the answers given


def auroc(scores: Sequence[float], outcomes: Sequence[float]) -> float:
    """Probability that a right answer has a higher score than a wrong one; ties count one half.

    An outcome between 0 and 1 counts as that much of a right answer and the rest of a wrong one.

    Args:
        scores: any finite numbers, higher for surer.
        outcomes: as many, in [0, 1].

    Returns:
        In [0, 1]; 0.5 is no better than chance; nan where all are right or all are wrong.

    Raises:
        ValueError: the sequences are empty, differ in length or hold other numbers.

    Source: Hanley and McNeil 1982, "The meaning and use of the area under a ROC curve".
    """
    _check(scores, outcomes)
    right_total = sum(outcomes)
    wrong_total = len(outcomes) - right_total
    if right_total <= 0 or wrong_total <= 0:
        return nan
    wins = wrong_below = 0.0
    ordered = sorted(zip(scores, outcomes, strict=True))
    for _, group in groupby(ordered, key=lambda pair: pair[0]):
        tied = [outcome for _, outcome in group]
        right = sum(tied)
        wrong = len(tied) - right
        wins += right * (wrong_below + wrong / 2)
        wrong_below += wrong
    return min(1.0, wins / (right_total * wrong_total))


def brier(scores: Sequence[float], outcomes: Sequence[float]) -> float:
    """Mean squared gap between score and outcome.

    Returns:
        In [0, 1]; 0 is perfect, and the outcomes' own variance is what a constant score gets.

    Raises:
        ValueError: the sequences are empty, differ in length or leave [0, 1].

    Source: Brier 1950, "Verification of forecasts expressed in terms of probability".
    """
    _check(scores, outcomes, unit_scores=True)
    return sum((score - outcome) ** 2 for score, outcome in zip(scores, outcomes, strict=True)) / len(scores)


def reliability_table(scores: Sequence[float], outcomes: Sequence[float], *, bins: int = 10) -> tuple[Bin, ...]:
    """What was observed against what was claimed, by score; empty bins are left out.

    Args:
        scores: in [0, 1].
        outcomes: as many, in [0, 1].
        bins: equal-width bins over [0, 1].

    Raises:
        ValueError: the sequences are empty, differ in length or leave [0, 1].
    """
    _check(scores, outcomes, unit_scores=True)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins!r}")
    members: dict[int, list[tuple[float, float]]] = {}
    for pair in zip(scores, outcomes, strict=True):
        members.setdefault(min(int(pair[0] * bins), bins - 1), []).append(pair)
    table = []
    for index, pairs in sorted(members.items()):
        right = sum(outcome for _, outcome in pairs)
        mean_score = sum(score for score, _ in pairs) / len(pairs)
        table.append(
            Bin(
                index / bins,
                (index + 1) / bins,
                len(pairs),
                mean_score,
                right / len(pairs),
                wilson_interval(right, len(pairs)),
            )
        )
    return tuple(table)


def expected_calibration_error(scores: Sequence[float], outcomes: Sequence[float], *, bins: int = 15) -> float:
    """Average gap between claimed and observed accuracy.

    Args:
        scores: in [0, 1].
        outcomes: as many, in [0, 1].
        bins: equal-width bins over [0, 1].

    Returns:
        Weighted gap in [0, 1]; 0 is perfectly calibrated.

    Raises:
        ValueError: the sequences are empty, differ in length or leave [0, 1].

    Source: Guo et al. 2017, arXiv:1706.04599, section 2.
    """
    table = reliability_table(scores, outcomes, bins=bins)
    return sum(row.n * abs(row.mean_score - row.accuracy) for row in table) / len(scores)


def cascade_curve(
    scores: Sequence[float | None], near: Sequence[float], far: Sequence[float]
) -> tuple[CurvePoint, ...]:
    """Quality of a two-tier cascade at every share of deferrals, least sure deferred first.

    Queries with the same score are deferred in expectation, so that a constant score gives the straight line of a
    random choice. A query without a score is deferred first.

    Args:
        scores: of the near answers, higher for surer.
        near: outcomes of the near answers.
        far: outcomes of the far answers.

    Returns:
        From nothing deferred to everything, with straight lines between the points.

    Raises:
        ValueError: the sequences are empty or differ in length.

    Source: Jitkrittum et al. 2023, arXiv:2307.02764 (deferral curves).
    """
    if not scores or not len(scores) == len(near) == len(far):
        raise ValueError(f"need as many scores, near and far outcomes, not {len(scores)}, {len(near)} and {len(far)}")
    n = len(scores)
    keyed = sorted(
        ((-1.0, 0.0) if score is None else (0.0, score), other - own)
        for score, own, other in zip(scores, near, far, strict=True)
    )
    points = [CurvePoint(0.0, sum(near) / n)]
    deferred, gained = 0, 0.0
    for _, group in groupby(keyed, key=lambda pair: pair[0]):
        gains = [gain for _, gain in group]
        deferred += len(gains)
        gained += sum(gains)
        points.append(CurvePoint(deferred / n, points[0].quality + gained / n))
    return tuple(points)


def area_under(curve: Sequence[CurvePoint]) -> float:
    """Mean quality over all shares of deferrals (AUDC, by trapezoids)."""
    return sum((b.deferred - a.deferred) * (a.quality + b.quality) / 2 for a, b in pairwise(curve))


def quality_at(curve: Sequence[CurvePoint], deferred: float) -> float:
    """The curve's quality at a share of deferrals in [0, 1], linear between its points."""
    for a, b in pairwise(curve):
        if deferred <= b.deferred:
            return a.quality + (b.quality - a.quality) * (deferred - a.deferred) / (b.deferred - a.deferred)
    return curve[-1].quality


def wilson_interval(successes: float, n: int, *, confidence: float = 0.95) -> Interval:
    """Interval for a share, fit for small n and for shares near 0 or 1.

    Raises:
        ValueError: n is not above zero, or `successes` is not in [0, n].

    Source: Wilson 1927; recommended by Brown, Cai and DasGupta 2001, "Interval estimation for a binomial proportion".
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"need 0 <= successes <= n and n >= 1, not {successes!r} of {n!r}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Interval(max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share)))


def bootstrap_interval(
    statistic: Callable[..., float],
    *columns: Sequence[float],
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a statistic over rows drawn anew; the same seed gives the same interval.

    Args:
        statistic: called with as many columns as given here, of the same length.
        columns: row i of all columns is drawn together.

    Returns:
        nan at both ends where no resample gives a finite number (all right or all wrong, say).

    Source: Efron and Tibshirani 1993, "An introduction to the bootstrap", chapter 13.
    """
    n = len(columns[0])
    draw = random.Random(seed)  # noqa: S311 - resampling, not secrets
    values = []
    for _ in range(resamples):
        rows = draw.choices(range(n), k=n)
        value = statistic(*([column[row] for row in rows] for column in columns))
        if isfinite(value):
            values.append(value)
    if not values:
        return Interval(nan, nan)
    values.sort()
    tail = (1 - confidence) / 2
    last = len(values) - 1
    return Interval(values[round(tail * last)], values[round((1 - tail) * last)])


def _check(scores: Sequence[float], outcomes: Sequence[float], *, unit_scores: bool = False) -> None:
    if not scores or len(scores) != len(outcomes):
        raise ValueError(f"need as many scores as outcomes, at least one, not {len(scores)} and {len(outcomes)}")
    if not all(0 <= outcome <= 1 for outcome in outcomes):
        raise ValueError("outcomes must be in [0, 1]")
    if unit_scores and not all(0 <= score <= 1 for score in scores):
        raise ValueError("scores must be in [0, 1]")
    if not all(map(isfinite, scores)):
        raise ValueError("scores must be finite")
