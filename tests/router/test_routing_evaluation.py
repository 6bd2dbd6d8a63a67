"""Figures of routing: the same as an independent numpy implementation gives, and laws that hold for any score."""

import math
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis.strategies import floats, lists, sampled_from, tuples

from nearfar.router.routing_evaluation import (
    CostPoint,
    aiq,
    apgr_difference,
    bootstrap_metrics,
    cost_at_quality,
    cost_curve,
    cost_hull,
    oracle_scores,
    routing_curve,
    routing_metrics,
)

NAN = math.nan
SCORES = [0.9, 0.4, 0.4, 0.7, 0.1, NAN, 0.4, 0.2]
WEAK = [0, 1, 0, 0.5, 1, 0, 1, 0]
STRONG = [1, 1, 0.5, 1, 0, 1, 0.5, 0]
WEAK_COSTS = [1, 1, 2, 1, 1, 1, 1, 2]
STRONG_COSTS = [10, 12, 9, 8, 11, 10, 15, 9]

REFERENCE = {
    "APGR": 1.3541666666666667,
    "CPT50": 9.375,
    "CPT80": 15.000000000000002,
    "PGR20": 1.0666666666666667,
    "PGR50": 1.6666666666666667,
    "AUDC": 0.69140625,
    "best_quality": 0.75,
}
AIQ = {True: (0.7362350932291667, 0.6914427239583333), False: (0.7352195677083333, 0.697171875)}  # own range, [0, 15]

quality = sampled_from([0.0, 0.25, 0.5, 1.0])
score = sampled_from([0.0, 0.1, 0.1, 0.5, 0.9])
queries = lists(tuples(score, quality, quality), min_size=1, max_size=40)


def columns(rows):
    """Rows as columns."""
    return tuple(map(list, zip(*rows, strict=True)))


def test_figures_are_the_references():
    """Ties, a missing score, partial quality: numbers from a numpy implementation of RouteLLM's definitions."""
    found = routing_metrics(SCORES, WEAK, STRONG)

    assert found.apgr == pytest.approx(REFERENCE["APGR"], abs=1e-9)
    assert found.cpt50 == pytest.approx(REFERENCE["CPT50"], abs=1e-9)
    assert found.cpt80 == pytest.approx(REFERENCE["CPT80"], abs=1e-9)
    assert found.pgr20 == pytest.approx(REFERENCE["PGR20"], abs=1e-9)
    assert found.pgr50 == pytest.approx(REFERENCE["PGR50"], abs=1e-9)
    assert found.audc == pytest.approx(REFERENCE["AUDC"], abs=1e-9)
    assert found.best_quality == pytest.approx(REFERENCE["best_quality"], abs=1e-9)


@pytest.mark.parametrize("is_cascade", [True, False])
def test_aiq_is_the_references(is_cascade):
    """RouterBench's figure over its own range of costs, and over a wider one where the cheapest is out of reach."""
    points = cost_curve(SCORES, WEAK, STRONG, WEAK_COSTS, STRONG_COSTS, is_cascade=is_cascade)

    assert aiq(points) == pytest.approx(AIQ[is_cascade][0], abs=1e-9)
    assert aiq(points, low=0, high=15) == pytest.approx(AIQ[is_cascade][1], abs=1e-9)


def test_a_cascade_pays_the_weak_model_always():
    """Everything to the strong model costs the strong model, and in a cascade the weak one besides."""
    costs = WEAK, STRONG, WEAK_COSTS, STRONG_COSTS

    router = cost_curve(SCORES, *costs, is_cascade=False)
    cascade = cost_curve(SCORES, *costs, is_cascade=True)

    assert router[0] == cascade[0] == CostPoint(sum(WEAK_COSTS) / 8, sum(WEAK) / 8)
    assert router[-1].cost == pytest.approx(sum(STRONG_COSTS) / 8)
    assert cascade[-1].cost == pytest.approx((sum(STRONG_COSTS) + sum(WEAK_COSTS)) / 8)


def test_models_of_equal_quality_have_no_gap_to_recover():
    """PGR divides by the gap; where there is none the figures are nan and the area is not."""
    found = routing_metrics([1, 2], [1, 0], [0, 1])

    assert math.isnan(found.apgr)
    assert math.isnan(found.cpt50)
    assert found.audc == pytest.approx(0.75)


@given(queries)
def test_a_constant_score_is_a_random_choice(rows):
    """The straight line from weak to strong: APGR one half, whatever the qualities."""
    _, weak, strong = columns(rows)
    assume(sum(weak) != sum(strong))

    found = routing_metrics([0.3] * len(weak), weak, strong)

    assert found.apgr == pytest.approx(0.5)
    assert found.cpt80 == pytest.approx(80)


@given(queries)
def test_no_score_beats_the_oracle(rows):
    """Sending the largest gains first is the best curve at every share."""
    scores, weak, strong = columns(rows)
    assume(sum(strong) > sum(weak))

    best = routing_metrics(oracle_scores(weak, strong), weak, strong)

    assert routing_metrics(scores, weak, strong).apgr <= best.apgr + 1e-9


@given(queries, floats(0.1, 10), floats(-5, 5))
def test_only_the_order_of_scores_counts(rows, scale, shift):
    """A rising map of the scores changes nothing."""
    scores, weak, strong = columns(rows)

    assert routing_curve([scale * s + shift for s in scores], weak, strong) == routing_curve(scores, weak, strong)


@given(lists(tuples(floats(0, 10), floats(0, 1)), min_size=1, max_size=30))
def test_the_hull_covers_every_point_and_bends_down(pairs):
    """No point is above it, its quality never falls, and its slope never grows."""
    points = [CostPoint(cost, quality) for cost, quality in pairs]

    hull = cost_hull(points)

    steps = [(b.cost - a.cost, b.quality - a.quality) for a, b in pairwise(hull)]
    assert all(rise >= 0 for _, rise in steps)
    assert all(r2 * c1 <= r1 * c2 + 1e-9 for (c1, r1), (c2, r2) in pairwise(steps))
    for point in points:
        reached = cost_at_quality(points, point.quality)
        assert reached <= point.cost + 1e-9


def test_cost_at_quality_mixes_two_thresholds():
    """Half way between two points of the hull costs half way; above the hull nothing does."""
    points = [CostPoint(1, 0.5), CostPoint(3, 0.9), CostPoint(2, 0.6)]

    assert cost_at_quality(points, 0.7) == pytest.approx(2)
    assert cost_at_quality(points, 0.4) == 1
    assert math.isnan(cost_at_quality(points, 0.95))


def test_intervals_hold_the_figure_and_repeat():
    """The same seed gives the same interval, and it lies around the figure."""
    scores = [i % 7 for i in range(200)]
    weak = [float(i % 7 < 4) for i in range(200)]
    strong = [float(i % 11 > 0) for i in range(200)]

    intervals = bootstrap_metrics(scores, weak, strong, resamples=200)

    assert intervals == bootstrap_metrics(scores, weak, strong, resamples=200)
    assert intervals["apgr"].low < routing_metrics(scores, weak, strong).apgr < intervals["apgr"].high


def test_a_paired_difference_is_tighter_than_two_intervals():
    """Two scores that nearly agree differ by little, for sure."""
    scores = [i % 7 for i in range(300)]
    weak = [float(i % 7 < 4) for i in range(300)]
    strong = [float(i % 11 > 0) for i in range(300)]
    near_copy = [s + (i % 50 == 0) for i, s in enumerate(scores)]

    difference, interval = apgr_difference(scores, near_copy, weak, strong, resamples=200)
    alone = bootstrap_metrics(scores, weak, strong, resamples=200)["apgr"]

    assert interval.low <= difference <= interval.high
    assert interval.high - interval.low < (alone.high - alone.low) / 2
    assert apgr_difference(scores, scores, weak, strong, resamples=20)[0] == 0


@pytest.mark.parametrize(
    ("scores", "weak", "strong"), [([], [], []), ([1.0], [1.0, 0.0], [1.0]), ([1.0], [NAN], [1.0])]
)
def test_what_is_no_table_is_refused(scores, weak, strong):
    """Nothing, unequal lengths, an unknown quality."""
    with pytest.raises(ValueError, match=r"need as many|finite"):
        routing_metrics(scores, weak, strong)
