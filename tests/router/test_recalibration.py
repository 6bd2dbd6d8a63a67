"""Corrections of stated probabilities: they find the truth, survive their files, and refuse what states none."""

import math
import random

import pytest
from hypothesis import given
from hypothesis.strategies import floats, sampled_from

from nearfar.errors import DataError
from nearfar.router.boosting import fit_boosted
from nearfar.router.evaluation import brier
from nearfar.router.fits import fit_logistic
from nearfar.router.recalibration import fit_beta, fit_grouped, fit_platt, fit_temperature
from nearfar.router.scorers import (
    BetaScorer,
    BoostedScorer,
    GroupedScorer,
    TemperatureScorer,
    Tree,
    from_json,
    log_odds,
    to_json,
)

pytest.importorskip("sklearn.linear_model", reason="fitting needs scikit-learn")

unit = floats(0, 1)


def stated_answers(n=4000, *, seed=0, truth=lambda p: p):
    """Stated probabilities, and outcomes that are right with a probability of `truth(p)`."""
    draw = random.Random(seed)
    stated = [draw.betavariate(3, 1.2) for _ in range(n)]
    return [{"p": p, "log": math.log(p)} for p in stated], [float(draw.random() < truth(p)) for p in stated]


def cooled(p, temperature=2.5):
    return 1 / (1 + math.exp(-log_odds(p) / temperature))


def test_temperature_finds_how_overconfident_the_model_is():
    """Log-odds that are two and a half times too large are divided by as much, on either scale."""
    rows, outcomes = stated_answers(20_000, truth=cooled)

    plain = fit_temperature(rows, outcomes, signal="p", scale="probability")
    logs = fit_temperature(rows, outcomes, signal="log", scale="log_probability")

    assert plain.temperature == pytest.approx(2.5, rel=0.1)
    assert logs.temperature == pytest.approx(plain.temperature, rel=1e-3)
    assert plain.score({"p": 0.9}) == pytest.approx(cooled(0.9), abs=0.02)


def test_beta_finds_a_curve_that_a_temperature_cannot():
    """With slopes of their own and a shift, the curve is near the true one, and beats the temperature's."""

    def truth(p):
        return 1 / (1 + math.exp(-(0.4 * math.log(p) - 1.5 * math.log(1 - p) - 0.8)))

    rows, outcomes = stated_answers(20_000, truth=truth)
    beta = fit_beta(rows, outcomes, signal="p", scale="probability")
    temperature = fit_temperature(rows, outcomes, signal="p", scale="probability")

    assert [beta.score({"p": p}) for p in (0.2, 0.5, 0.9)] == pytest.approx(
        [truth(p) for p in (0.2, 0.5, 0.9)], abs=0.04
    )
    assert brier([beta.score(row) for row in rows], outcomes) < brier([temperature.score(r) for r in rows], outcomes)


def test_platt_is_a_line_in_log_odds():
    """A signal on any scale gets its slope and its shift."""
    rows, outcomes = stated_answers(20_000, truth=lambda p: 1 / (1 + math.exp(1 - 3 * p)))

    fitted = fit_platt(rows, outcomes, signal="p")

    assert fitted.coefficients[0] / fitted.scales[0] == pytest.approx(3, abs=0.3)


def test_small_groups_are_shrunk_and_large_ones_are_not():
    """A group of many answers gets about its own shift, a group of few stays near none."""
    rows, outcomes = stated_answers(3000)
    draw = random.Random(5)
    for i, row in enumerate(rows):
        row["group"] = 0.0 if i < 1500 else 1.0 if i < 2990 else 2.0
        if row["group"] == 1.0:
            outcomes[i] = float(draw.random() < 1 / (1 + math.exp(-(log_odds(row["p"]) - 1.5))))
        if row["group"] == 2.0:
            outcomes[i] = 0.0
    base = TemperatureScorer("p", "probability", 1.0)

    fitted = fit_grouped(base, rows, outcomes, group="group")

    assert fitted.shifts["0"] == pytest.approx(0, abs=0.2)
    assert fitted.shifts["1"] == pytest.approx(-1.5, abs=0.2)
    assert -4 < fitted.shifts["2"] < -0.3
    assert fitted.score({"p": 0.7, "group": 9.0}) == pytest.approx(base.score({"p": 0.7}))
    assert fitted.score({"p": 0.7}) is None


@given(unit, unit, floats(0.1, 10), floats(0, 3), floats(0, 3), floats(-3, 3))
def test_corrections_keep_the_order(low, high, temperature, a, b, c):
    """A surer answer never gets a lower score."""
    low, high = sorted((low, high))

    for scorer in (TemperatureScorer("p", "probability", temperature), BetaScorer("p", "probability", a, b, c)):
        assert scorer.score({"p": low}) <= scorer.score({"p": high}) + 1e-12
        assert 0 <= scorer.score({"p": low}) <= 1


@pytest.mark.parametrize(
    "scorer",
    [
        TemperatureScorer("p", "probability", 2.0),
        BetaScorer("p", "log_probability", 1.0, 0.5, 0.1),
        GroupedScorer(BetaScorer("p", "probability", 1.0, 0.5, 0.1), "g", {"1": -0.3}),
    ],
)
def test_what_is_written_is_read(scorer):
    """A policy file gives back the same scorer."""
    assert from_json(to_json(scorer)) == scorer
    assert scorer.is_calibrated
    assert scorer.signals[0] == "p"


@given(sampled_from([None, math.nan, math.inf, -0.1, 1.1]))
def test_what_states_no_probability_has_no_score(value):
    """A missing signal and one out of range are no probability."""
    signals = {} if value is None else {"p": value}

    assert TemperatureScorer("p", "probability", 1.0).score(signals) is None
    assert BetaScorer("p", "probability", 1.0, 1.0, 0.0).score(signals) is None


def test_what_cannot_be_fitted_is_refused():
    """Signals that state nothing, one group only, a signal that falls, and parameters that no fit gives."""
    rows, outcomes = stated_answers(200)
    falling = [{"p": 1 - row["p"]} for row in rows]
    sure = [float(row["p"] > 0.7) for row in rows]

    with pytest.raises(DataError, match="not a probability"):
        fit_temperature([{"p": 2.0}, *rows[1:]], outcomes, signal="p", scale="probability")
    with pytest.raises(DataError, match="not a log-probability"):
        fit_beta(rows, outcomes, signal="p", scale="log_probability")
    with pytest.raises(DataError, match="one group"):
        fit_grouped(TemperatureScorer("p", "probability", 1.0), [r | {"g": 1.0} for r in rows], outcomes, group="g")
    with pytest.raises(DataError, match="no group"):
        fit_grouped(TemperatureScorer("p", "probability", 1.0), rows, outcomes, group="g")
    with pytest.raises(DataError, match="Turn its sign"):
        fit_beta(falling, sure, signal="p", scale="probability")
    with pytest.raises(ValueError, match="above zero"):
        TemperatureScorer("p", "probability", 0.0)
    with pytest.raises(ValueError, match="at least zero"):
        BetaScorer("p", "probability", -1.0, 0.0, 0.0)


# --- boosting


def test_boosting_is_monotone_and_beats_a_line_where_the_truth_is_none():
    """A step is found, more of the signal is never less sure, and noise changes nothing much."""
    draw = random.Random(0)
    rows = [{"p": draw.random(), "mean_entropy": draw.random(), "noise": draw.random()} for _ in range(4000)]
    outcomes = [float(draw.random() < (0.9 if row["p"] > 0.6 and row["mean_entropy"] < 0.5 else 0.2)) for row in rows]
    names = ["p", "mean_entropy", "noise"]

    trees = fit_boosted(rows, outcomes, signals=names)
    line = fit_logistic(rows, outcomes, signals=names)

    assert brier([trees.score(r) for r in rows], outcomes) < brier([line.score(r) for r in rows], outcomes) - 0.02
    for other in (0.1, 0.9):
        rising = [trees.score({"p": i / 50, "mean_entropy": other, "noise": 0.5}) for i in range(51)]
        falling = [trees.score({"p": other, "mean_entropy": i / 50, "noise": 0.5}) for i in range(51)]
        assert rising == sorted(rising)
        assert falling == sorted(falling, reverse=True)
    assert from_json(to_json(trees)) == trees
    assert trees.score({"p": 0.5}) is None


def test_trees_that_no_fit_gives_are_refused():
    """A child before its parent would never end."""
    with pytest.raises(ValueError, match="after their parent"):
        Tree((0, -1), (0.5, 0.0), (0, 0), (1, 0), (0.0, 1.0))
    with pytest.raises(ValueError, match="not there"):
        BoostedScorer(("a",), 0.0, (Tree((1, -1, -1), (0.5, 0.0, 0.0), (1, 0, 0), (2, 0, 0), (0.0, 1.0, 2.0)),))
    with pytest.raises(ValueError, match="as long as"):
        Tree((), (), (), (), ())
