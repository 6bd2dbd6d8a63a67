"""Scorers: scores in [0, 1], missing signals, and the JSON form."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis.strategies import (
    booleans,
    composite,
    dictionaries,
    floats,
    integers,
    lists,
    one_of,
    sampled_from,
    text,
)

from nearfar.errors import DataError
from nearfar.router.scorers import IsotonicScorer, LogisticScorer, MeanProbability, from_json, to_json

number = floats(-1e6, 1e6)
unit = floats(0, 1)
any_float = floats(allow_nan=True, allow_infinity=True)


@composite
def logistic_scorers(draw):
    """A valid logistic scorer."""
    names = draw(lists(sampled_from(["a", "b", "c", "d"]), min_size=1, unique=True))
    many = len(names)

    def numbers(strategy):
        return tuple(draw(lists(strategy, min_size=many, max_size=many)))

    return LogisticScorer(tuple(names), numbers(number), draw(number), numbers(number), numbers(floats(1e-6, 1e6)))


@composite
def isotonic_scorers(draw):
    """A valid isotonic scorer, rising or falling."""
    xs = sorted(draw(lists(number, min_size=1, max_size=8, unique=True)))
    ys = sorted(draw(lists(unit, min_size=len(xs), max_size=len(xs))), reverse=draw(booleans()))
    return IsotonicScorer("a", tuple(xs), tuple(ys))


scorers = one_of(logistic_scorers(), isotonic_scorers(), sampled_from([MeanProbability()]))
signal_rows = dictionaries(sampled_from(["a", "b", "c", "d", "mean_logprob"]), any_float)


def test_mean_probability_is_the_geometric_mean_of_the_tokens():
    """Two tokens of probability 0.5 and 0.125 give 0.25."""
    mean_logprob = (math.log(0.5) + math.log(0.125)) / 2

    score = MeanProbability().score({"mean_logprob": mean_logprob})

    assert score == pytest.approx(0.25)


def test_only_fitted_scorers_claim_to_be_calibrated():
    """The default says that nothing was fitted."""
    assert not MeanProbability().is_calibrated
    assert LogisticScorer(("a",), (1.0,), 0.0, (0.0,), (1.0,)).is_calibrated
    assert IsotonicScorer("a", (0.0,), (0.5,)).is_calibrated


def test_logistic_scorer_standardises_its_signals():
    """One scale above the mean adds one coefficient to the log-odds."""
    scorer = LogisticScorer(("a", "b"), (2.0, -1.0), 0.5, (10.0, 3.0), (4.0, 2.0))

    score = scorer.score({"a": 14.0, "b": 3.0, "unused": 1e9})

    assert score == pytest.approx(1 / (1 + math.exp(-2.5)))


def test_isotonic_scorer_is_linear_between_its_points_and_flat_beyond():
    """Halfway between two points the score is halfway too."""
    scorer = IsotonicScorer("a", (0.0, 2.0, 3.0), (0.1, 0.5, 0.9))

    scores = [scorer.score({"a": x}) for x in (-5, 0, 1, 2, 2.5, 3, 99)]

    assert scores == pytest.approx([0.1, 0.1, 0.3, 0.5, 0.7, 0.9, 0.9])


@given(scorers, signal_rows)
def test_a_score_is_in_the_unit_interval_or_absent(scorer, signals):
    """Whatever the signals, nan and infinities included."""
    score = scorer.score(signals)

    assert score is None or 0 <= score <= 1


@given(scorers)
def test_a_missing_signal_gives_no_score(scorer):
    """Absence is not zero."""
    complete = dict.fromkeys(scorer.signals, -1.0)

    assert scorer.score(complete) is not None
    for name in scorer.signals:
        assert scorer.score({key: value for key, value in complete.items() if key != name}) is None
        assert scorer.score(complete | {name: math.nan}) is None


@given(isotonic_scorers(), number, number)
def test_isotonic_scores_are_monotone(scorer, a, b):
    """A higher signal never turns the curve around."""
    low, high = sorted((a, b))
    direction = scorer.ys[-1] - scorer.ys[0]

    rise = scorer.score({"a": high}) - scorer.score({"a": low})

    assert rise * direction >= 0


@given(logistic_scorers(), number, number)
def test_logistic_scores_follow_the_sign_of_the_coefficient(scorer, a, b):
    """More of a signal with a positive coefficient never lowers the score."""
    low, high = sorted((a, b))
    name, coefficient = scorer.features[0], scorer.coefficients[0]
    rest = dict(zip(scorer.features, scorer.means, strict=True))

    rise = scorer.score(rest | {name: high}) - scorer.score(rest | {name: low})

    assert rise * coefficient >= 0


@given(scorers)
def test_json_gives_the_scorer_back(scorer):
    """Saved and loaded, it is the same to the last bit."""
    assert from_json(to_json(scorer)) == scorer


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kind": "forest"}, "forest"),
        ({"colour": "red"}, "colour"),
        ({"coefficients": [1.0, 2.0]}, "coefficients must be 1 numbers"),
        ({"coefficients": [None]}, "coefficients"),
        ({"scales": [0.0]}, "scales must be above zero"),
        ({"features": []}, "features must be distinct"),
        ({"features": ["a", "a"]}, "features must be distinct"),
        ({"intercept": "much"}, "intercept"),
    ],
)
def test_a_logistic_scorer_that_no_fit_gives_is_refused(change, reason):
    """A hand-edited file fails when it is read, not when it scores."""
    good = msgspec.json.decode(to_json(LogisticScorer(("a",), (1.0,), 0.0, (0.0,), (1.0,))))

    with pytest.raises(DataError, match=reason):
        from_json(msgspec.json.encode(good | change))


@pytest.mark.parametrize(
    ("xs", "ys", "reason"),
    [
        ((), (), "at least one"),
        ((0.0, 1.0), (0.5,), "as many"),
        ((1.0, 0.0), (0.1, 0.2), "increase strictly"),
        ((0.0, 0.0), (0.1, 0.2), "increase strictly"),
        ((0.0, 1.0), (0.1, 1.2), r"in \[0, 1\]"),
        ((0.0, 1.0, 2.0), (0.1, 0.9, 0.2), "never decrease"),
        ((0.0, math.inf), (0.1, 0.2), "finite"),
    ],
)
def test_an_isotonic_curve_that_no_fit_gives_is_refused(xs, ys, reason):
    """Length, order, range and monotony are checked."""
    with pytest.raises(ValueError, match=reason):
        IsotonicScorer("a", xs, ys)


@given(text(max_size=20), integers())
def test_what_is_not_a_scorer_is_a_data_error(noise, number_):
    """Whatever stands in the file."""
    for data in (noise, str(number_)):
        with pytest.raises(DataError, match="Not a scorer"):
            from_json(data)
