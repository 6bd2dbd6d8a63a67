"""Figures that say how good a choice between a weak and a strong model is: plain Python, no third-party package.

A score says how much a query should go to the strong model: higher goes first. A cascade's confidence is such a score
with its sign turned.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise
from math import isfinite, isnan, nan

from .evaluation import CurvePoint, Interval

#: Steps of the grid over costs on which AIQ is integrated.
_AIQ_STEPS = 2000


@dataclass(frozen=True, slots=True)
class RoutingMetrics:
    """How a score trades calls of the strong model for quality.

    PGR is the performance gap recovered: 0 at the weak model's quality, 1 at the strong one's.
    Source: Ong et al. 2024, "RouteLLM", arXiv:2406.18665, section 2; AUDC: Jitkrittum et al. 2023, arXiv:2307.02764.
    """

    apgr: float  # mean PGR over all shares of strong calls; 0.5 is a random choice
    cpt50: float  # percent of queries that the strong model needs for a PGR of 0.5; nan: never reached
    cpt80: float  # percent, for a PGR of 0.8
    pgr20: float  # PGR where 20 % of the queries go to the strong model
    pgr50: float  # PGR where half of them do
    audc: float  # mean quality over all shares of strong calls
    best_quality: float  # of the whole curve


@dataclass(frozen=True, slots=True)
class CostPoint:
    """What a threshold costs and gives, per query."""

    cost: float
    quality: float


def routing_curve(scores: Sequence[float], weak: Sequence[float], strong: Sequence[float]) -> tuple[CurvePoint, ...]:
    """Mean quality at every share of queries that goes to the strong model, highest score first.

    Queries with the same score go in expectation, so that a constant score gives the straight line of a random
    choice. A query whose score is nan goes with the first.

    Raises:
        ValueError: the sequences are empty, differ in length, or a quality is not finite.
    """
    return _Ranked(scores, weak, strong).curve()


def routing_metrics(scores: Sequence[float], weak: Sequence[float], strong: Sequence[float]) -> RoutingMetrics:
    """The figures of a score; those that divide by the models' gap are nan where there is none.

    Raises:
        ValueError: the sequences are empty, differ in length, or a quality is not finite.
    """
    return _metrics(routing_curve(scores, weak, strong))


def bootstrap_metrics(
    scores: Sequence[float],
    weak: Sequence[float],
    strong: Sequence[float],
    *,
    resamples: int = 300,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Percentile intervals of the figures over queries drawn anew, by figure; the same seed, the same intervals."""
    ranked = _Ranked(scores, weak, strong)
    drawn = [_metrics(ranked.curve(counts)) for counts in _resampled(len(weak), resamples, seed)]
    names = ("apgr", "cpt50", "cpt80", "pgr20", "pgr50", "audc")
    return {name: _percentiles([getattr(each, name) for each in drawn], confidence) for name in names}


def apgr_difference(
    scores: Sequence[float],
    others: Sequence[float],
    weak: Sequence[float],
    strong: Sequence[float],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, Interval]:
    """APGR of `scores` less APGR of `others`, and its paired bootstrap interval: both see the same resamples."""
    ours, theirs = _Ranked(scores, weak, strong), _Ranked(others, weak, strong)
    differences = [
        _metrics(ours.curve(counts)).apgr - _metrics(theirs.curve(counts)).apgr
        for counts in _resampled(len(weak), resamples, seed)
    ]
    found = _metrics(ours.curve()).apgr - _metrics(theirs.curve()).apgr
    return found, _percentiles(differences, confidence)


def oracle_scores(weak: Sequence[float], strong: Sequence[float]) -> list[float]:
    """The gain itself: the best that any router could do."""
    return [other - own for own, other in zip(weak, strong, strict=True)]


def cost_curve(
    scores: Sequence[float],
    weak: Sequence[float],
    strong: Sequence[float],
    weak_costs: Sequence[float],
    strong_costs: Sequence[float],
    *,
    is_cascade: bool,
) -> tuple[CostPoint, ...]:
    """Mean cost and quality at every threshold, from all weak to all strong.

    Args:
        is_cascade: the weak model is paid on every query, since it is asked before the choice; else only the chosen
            model is paid.

    Queries with the same score go in the order of the sequence.
    """
    n = len(weak)
    top = max((score for score in scores if not isnan(score)), default=0.0)
    order = sorted(range(n), key=lambda i: -(top if isnan(scores[i]) else scores[i]))
    gains = accumulate((strong[i] - weak[i] for i in order), initial=sum(weak))
    extra = (strong_costs[i] - (0.0 if is_cascade else weak_costs[i]) for i in order)
    costs = accumulate(extra, initial=sum(weak_costs))
    return tuple(CostPoint(cost / n, quality / n) for cost, quality in zip(costs, gains, strict=True))


def cost_hull(points: Sequence[CostPoint]) -> tuple[CostPoint, ...]:
    """The upper convex hull of cost and quality that never falls: what mixing two thresholds at random can reach."""
    hull: list[tuple[float, float]] = []
    for point in sorted({(point.cost, point.quality) for point in points}):
        while len(hull) > 1 and _is_below(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    best = accumulate((quality for _, quality in hull), max)
    return tuple(CostPoint(cost, quality) for (cost, _), quality in zip(hull, best, strict=True))


def aiq(points: Sequence[CostPoint], *, low: float | None = None, high: float | None = None) -> float:
    """Mean quality of the hull over the costs in [low, high], by default its own range; nothing is affordable below.

    Source: average improvement in quality, Hu et al. 2024, "RouterBench", arXiv:2403.12031, section 3.
    """
    hull = cost_hull(points)
    costs, qualities = [point.cost for point in hull], [point.quality for point in hull]
    low, high = (costs[0] if low is None else low), (costs[-1] if high is None else high)
    if high <= low:
        return nan
    step = (high - low) / _AIQ_STEPS
    grid = [*(low + step * i for i in range(_AIQ_STEPS)), high]
    heights = [_interpolated(costs, qualities, cost) if cost >= costs[0] else 0.0 for cost in grid]
    return (sum(heights) - (heights[0] + heights[-1]) / 2) / _AIQ_STEPS


def cost_at_quality(points: Sequence[CostPoint], quality: float) -> float:
    """The least mean cost at which the hull reaches a mean quality; nan where it does not."""
    hull = cost_hull(points)
    if hull[0].quality >= quality:
        return hull[0].cost
    for a, b in pairwise(hull):
        if b.quality >= quality:
            return a.cost + (b.cost - a.cost) * (quality - a.quality) / (b.quality - a.quality)
    return nan


class _Ranked:
    """Queries ranked once by score, so that each resample is one pass."""

    __slots__ = ("_groups", "_n")

    def __init__(self, scores: Sequence[float], weak: Sequence[float], strong: Sequence[float]) -> None:
        if not weak or not len(scores) == len(weak) == len(strong):
            raise ValueError(
                f"need as many scores, weak and strong qualities, not {len(scores)}, {len(weak)} and {len(strong)}"
            )
        if not all(map(isfinite, weak)) or not all(map(isfinite, strong)):
            raise ValueError("qualities must be finite")
        known = [score for score in scores if not isnan(score)]
        top = max(known) if known else 0.0
        keys = [-(top if isnan(score) else score) for score in scores]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        self._n = len(keys)
        self._groups = [
            [(i, weak[i], strong[i] - weak[i]) for i in group] for _, group in groupby(order, key=keys.__getitem__)
        ]

    def curve(self, counts: Sequence[int] | None = None) -> tuple[CurvePoint, ...]:
        """The curve, where query i counts `counts[i]` times."""
        n = self._n
        count = counts if counts is not None else [1] * n
        weak_total = sum(count[i] * own for group in self._groups for i, own, _ in group)
        points = [CurvePoint(0.0, weak_total / n)]
        sent, gained = 0, 0.0
        for group in self._groups:
            num = 0
            for i, _, gain in group:
                times = count[i]
                num += times
                gained += times * gain
            if num:
                sent += num
                points.append(CurvePoint(sent / n, (weak_total + gained) / n))
        return tuple(points)


def _metrics(curve: Sequence[CurvePoint]) -> RoutingMetrics:
    low, high = curve[0].quality, curve[-1].quality
    gap = high - low
    area = sum((b.deferred - a.deferred) * (a.quality + b.quality) / 2 for a, b in pairwise(curve))
    best = max(point.quality for point in curve)
    if gap == 0:
        return RoutingMetrics(nan, nan, nan, nan, nan, area, best)
    gaps = [(point.quality - low) / gap for point in curve]
    shares = [point.deferred for point in curve]
    return RoutingMetrics(
        apgr=(area - low) / gap,
        cpt50=100 * _first_share(shares, gaps, 0.5),
        cpt80=100 * _first_share(shares, gaps, 0.8),
        pgr20=_interpolated(shares, gaps, 0.2),
        pgr50=_interpolated(shares, gaps, 0.5),
        audc=area,
        best_quality=best,
    )


def _first_share(shares: Sequence[float], gaps: Sequence[float], wanted: float) -> float:
    """The smallest share whose PGR reaches `wanted`, linear between points; the tolerance takes up rounding."""
    for i, gap in enumerate(gaps):
        if gap >= wanted - 1e-12:
            if i == 0:
                return 0.0
            rise = gap - gaps[i - 1]
            step = (wanted - gaps[i - 1]) / rise if rise > 0 else 1.0
            return shares[i - 1] + step * (shares[i] - shares[i - 1])
    return nan


def _interpolated(xs: Sequence[float], ys: Sequence[float], x: float) -> float:
    right = bisect_right(xs, x)
    if right == 0:
        return ys[0]
    if right == len(xs):
        return ys[-1]
    share = (x - xs[right - 1]) / (xs[right] - xs[right - 1])
    return ys[right - 1] + share * (ys[right] - ys[right - 1])


def _is_below(first: tuple[float, float], middle: tuple[float, float], last: tuple[float, float]) -> bool:
    return (middle[1] - first[1]) * (last[0] - first[0]) <= (last[1] - first[1]) * (middle[0] - first[0])


def _resampled(n: int, resamples: int, seed: int) -> Iterator[list[int]]:
    """How often each of n queries is drawn, for every resample."""
    draw = random.Random(seed)  # noqa: S311 - resampling, not secrets
    for _ in range(resamples):
        counts = [0] * n
        for i in draw.choices(range(n), k=n):
            counts[i] += 1
        yield counts


def _percentiles(values: Sequence[float], confidence: float) -> Interval:
    known = sorted(value for value in values if isfinite(value))
    if not known:
        return Interval(nan, nan)
    tail, last = (1 - confidence) / 2, len(known) - 1
    return Interval(known[round(tail * last)], known[round((1 - tail) * last)])
