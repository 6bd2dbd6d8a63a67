"""Evaluation: AUROC, calibration error, curves and intervals against references and laws."""

import math
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis.strategies import floats, lists, sampled_from, tuples

from nearfar.router.evaluation import (
    CurvePoint,
    area_under,
    auroc,
    bootstrap_interval,
    brier,
    cascade_curve,
    expected_calibration_error,
    quality_at,
    reliability_table,
    wilson_interval,
)

metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is the reference")

unit = floats(0, 1)
coarse = sampled_from([0.0, 0.1, 0.25, 0.5, 0.5, 0.75, 1.0])  # with ties
bit = sampled_from([0.0, 1.0])
judged = lists(tuples(coarse, bit), min_size=1, max_size=60)
soft = lists(tuples(unit, unit), min_size=1, max_size=60)
pairs_of_tiers = lists(tuples(coarse, unit, unit), min_size=1, max_size=60)


def columns(rows):
    """Rows as columns."""
    return tuple(map(list, zip(*rows, strict=True)))


@given(judged)
def test_auroc_is_the_references(rows):
    """Ties and all, to the last digits of scikit-learn's."""
    scores, outcomes = columns(rows)
    assume(0 < sum(outcomes) < len(outcomes))

    assert auroc(scores, outcomes) == pytest.approx(metrics.roc_auc_score(outcomes, scores), abs=1e-9)


@given(soft)
def test_auroc_of_partial_outcomes_weighs_both_classes(rows):
    """An outcome of 0.3 is 0.3 of a right answer and 0.7 of a wrong one."""
    scores, outcomes = columns(rows)
    assume(0.01 < sum(outcomes) < len(outcomes) - 0.01)
    weights = [*outcomes, *(1 - outcome for outcome in outcomes)]
    classes = [1] * len(scores) + [0] * len(scores)

    reference = metrics.roc_auc_score(classes, scores + scores, sample_weight=weights)

    assert auroc(scores, outcomes) == pytest.approx(reference, abs=1e-6)


@given(judged)
def test_turning_the_scores_round_mirrors_auroc(rows):
    """What ranks well ranks badly upside down."""
    scores, outcomes = columns(rows)
    assume(0 < sum(outcomes) < len(outcomes))

    assert auroc([-score for score in scores], outcomes) == pytest.approx(1 - auroc(scores, outcomes))


def test_auroc_of_one_class_is_unknown():
    """Nothing but right answers: nothing to rank."""
    assert math.isnan(auroc([0.1, 0.9], [1, 1]))


@given(judged)
def test_brier_is_the_references(rows):
    """The same as scikit-learn's."""
    scores, outcomes = columns(rows)
    assume(0 < sum(outcomes) < len(outcomes))

    assert brier(scores, outcomes) == pytest.approx(metrics.brier_score_loss(outcomes, scores))


@given(soft)
def test_calibration_error_is_a_share(rows):
    """Between 0 and 1, and never less than the gap of the means."""
    scores, outcomes = columns(rows)

    error = expected_calibration_error(scores, outcomes)

    assert 0 <= error <= 1
    assert error >= abs(sum(scores) - sum(outcomes)) / len(scores) - 1e-9


def test_calibration_error_by_hand():
    """Two bins: claimed 0.2 and seen 0.5 (of two), claimed 0.9 and seen 1 (of one)."""
    error = expected_calibration_error([0.2, 0.2, 0.9], [0, 1, 1], bins=2)

    assert error == pytest.approx((2 * 0.3 + 1 * 0.1) / 3)


@given(soft)
def test_every_answer_is_in_one_bin(rows):
    """The table counts each answer once and keeps the mean outcome."""
    scores, outcomes = columns(rows)

    table = reliability_table(scores, outcomes)

    assert sum(row.n for row in table) == len(rows)
    assert sum(row.n * row.accuracy for row in table) == pytest.approx(sum(outcomes))
    assert all(row.low - 1e-9 <= row.mean_score <= row.high + 1e-9 for row in table)
    assert all(row.interval.low <= row.accuracy <= row.interval.high for row in table)


@given(pairs_of_tiers)
def test_the_curve_runs_from_near_alone_to_far_alone(rows):
    """Nothing deferred is the near tier, everything deferred the far one."""
    scores, near, far = columns(rows)

    curve = cascade_curve(scores, near, far)

    assert (curve[0].deferred, curve[-1].deferred) == (0, 1)
    assert curve[0].quality == pytest.approx(sum(near) / len(near))
    assert curve[-1].quality == pytest.approx(sum(far) / len(far))
    assert all(a.deferred < b.deferred for a, b in pairwise(curve))


@given(pairs_of_tiers, coarse)
def test_the_curve_at_a_threshold_is_what_the_cascade_answers(rows, threshold):
    """Deferring below a threshold gives a point of the curve."""
    scores, near, far = columns(rows)
    deferred = [score < threshold for score in scores]
    answered = [f if defers else n for defers, n, f in zip(deferred, near, far, strict=True)]

    quality = quality_at(cascade_curve(scores, near, far), sum(deferred) / len(deferred))

    assert quality == pytest.approx(sum(answered) / len(answered), abs=1e-9)


@given(pairs_of_tiers)
def test_a_constant_score_is_a_random_choice(rows):
    """Its curve is the straight line."""
    _, near, far = columns(rows)

    curve = cascade_curve([0.5] * len(near), near, far)

    assert len(curve) == 2
    assert area_under(curve) == pytest.approx((sum(near) + sum(far)) / 2 / len(near))


def test_the_oracle_defers_where_it_gains_first():
    """Ordered by gain, the curve rises, stays and falls."""
    near, far = [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]

    curve = cascade_curve([n - f for n, f in zip(near, far, strict=True)], near, far)

    assert [point.quality for point in curve] == pytest.approx([2 / 3, 1, 1, 2 / 3])


def test_a_query_without_a_score_is_deferred_first():
    """No score is less sure than the lowest score."""
    curve = cascade_curve([0.0, None], [1.0, 0.0], [1.0, 1.0])

    assert curve == (CurvePoint(0.0, 0.5), CurvePoint(0.5, 1.0), CurvePoint(1.0, 1.0))


def test_wilson_interval_is_the_published_one():
    """5 of 10 at 95 %: 0.2366 to 0.7634; 0 of 10: 0 to 0.2775 (Newcombe 1998)."""
    half, none = wilson_interval(5, 10), wilson_interval(0, 10)

    assert (half.low, half.high) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert (none.low, none.high) == pytest.approx((0.0, 0.2775), abs=1e-4)


def test_the_bootstrap_of_a_mean_has_the_textbook_width():
    """400 coin tosses: the share is known to about ±0.049."""
    tosses = [0.0, 1.0] * 200

    interval = bootstrap_interval(lambda values: sum(values) / len(values), tosses)

    assert (interval.low, interval.high) == pytest.approx((0.451, 0.549), abs=0.01)
    assert interval == bootstrap_interval(lambda values: sum(values) / len(values), tosses)


def test_the_bootstrap_of_an_unknown_figure_is_unknown():
    """AUROC of one class has no interval."""
    interval = bootstrap_interval(auroc, [0.1, 0.2], [1.0, 1.0], resamples=20)

    assert math.isnan(interval.low)
    assert math.isnan(interval.high)


@pytest.mark.parametrize("figure", [auroc, brier, expected_calibration_error, reliability_table])
@pytest.mark.parametrize(("scores", "outcomes"), [([], []), ([0.5], []), ([0.5], [2.0]), ([math.nan], [1.0])])
def test_figures_of_impossible_data_are_refused(figure, scores, outcomes):
    """Empty, of unequal length, out of range or not a number."""
    with pytest.raises(ValueError, match=r"must be|need as many"):
        figure(scores, outcomes)
