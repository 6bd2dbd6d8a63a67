"""The bandit: exact propensities, learning, a budget, and refusals."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis.strategies import floats, integers, lists, tuples

from nearfar.errors import ConfigError, DataError
from nearfar.router.bandit import LinearReward, ThompsonBandit, probabilities_of_being_best

beliefs = tuples(floats(-2, 2), floats(0.01, 2))


@given(lists(beliefs, min_size=2, max_size=5), integers(0, 100))
@settings(max_examples=25)
def test_the_probability_of_being_best_is_what_drawing_gives(given_beliefs, seed):
    """The integral agrees with a simulation, and adds up to one."""
    found = probabilities_of_being_best(given_beliefs)
    draw = random.Random(seed)
    wins = [0] * len(given_beliefs)
    runs = 3000
    for _ in range(runs):
        drawn = [draw.gauss(mean, spread) for mean, spread in given_beliefs]
        wins[drawn.index(max(drawn))] += 1

    assert sum(found) == pytest.approx(1)
    for share, won in zip(found, wins, strict=True):
        assert share == pytest.approx(won / runs, abs=5 * math.sqrt(0.25 / runs))


def test_linear_beliefs_are_the_ridge_regression():
    """One update after the other ends where the normal equations do."""
    draw = random.Random(0)
    belief = LinearReward.prior(2)
    gram, moments = [[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0]
    for _ in range(50):
        row = [1.0, draw.gauss(0, 1)]
        reward = 0.3 + 0.5 * row[1] + draw.gauss(0, 0.1)
        belief.update(row, reward)
        for i in range(2):
            moments[i] += row[i] * reward
            for j in range(2):
                gram[i][j] += row[i] * row[j]

    determinant = gram[0][0] * gram[1][1] - gram[0][1] * gram[1][0]
    assert belief.weights[0] == pytest.approx((gram[1][1] * moments[0] - gram[0][1] * moments[1]) / determinant)
    assert belief.weights[1] == pytest.approx((gram[0][0] * moments[1] - gram[1][0] * moments[0]) / determinant)
    assert belief.variance([1.0, 0.0]) == pytest.approx(gram[1][1] / determinant)


def learned(budget, *, n=1500, seed=0):
    """A bandit over a near model that is right on easy queries and a far one that always is."""
    draw = random.Random(seed)
    bandit = ThompsonBandit.over(["near", "far"], ["ease"], budget=budget)
    costs = {"near": 0.0, "far": 1.0}
    sent = 0
    for _ in range(n):
        signals = {"ease": draw.random()}
        choice = bandit.choose(signals, costs, draw=draw)
        right = draw.random() < (signals["ease"] if choice.model == "near" else 0.95)
        bandit.learn(signals, choice.model, float(right), costs[choice.model])
        sent += choice.model == "far"
    return bandit, costs, sent / n


def test_it_learns_whom_to_ask():
    """Without a budget, hard queries go far."""
    bandit, costs, _ = learned(None)

    assert bandit.propensities({"ease": 0.1}, costs)["far"] > 0.9
    assert bandit.propensities({"ease": 0.1}, costs)["far"] > bandit.propensities({"ease": 0.99}, costs)["far"]


def test_it_keeps_to_a_budget_and_spends_it_where_it_helps():
    """With four far calls in ten, they go to the hard queries."""
    bandit, costs, sent = learned(0.4)

    assert sent == pytest.approx(0.4, abs=0.12)
    assert bandit.price > 0
    assert bandit.propensities({"ease": 0.05}, costs)["far"] > bandit.propensities({"ease": 0.95}, costs)["far"] + 0.3


def test_every_model_keeps_its_floor_and_the_propensity_is_the_drawn_ones():
    """No propensity is zero, so that the log can be evaluated."""
    bandit, costs, _ = learned(None, n=400)

    choice = bandit.choose({"ease": 0.0}, costs, draw=random.Random(1))

    assert min(choice.propensities.values()) >= bandit.floor
    assert sum(choice.propensities.values()) == pytest.approx(1)
    assert choice.propensity == choice.propensities[choice.model]


def test_written_and_read_it_chooses_alike():
    """A restart forgets nothing."""
    bandit, costs, _ = learned(0.4, n=100)

    again = ThompsonBandit.from_json(bandit.to_json())

    assert again == bandit
    assert again.propensities({"ease": 0.3}, costs) == bandit.propensities({"ease": 0.3}, costs)


def test_what_it_cannot_use_is_refused():
    """One model, a floor that leaves no choice or no exploration, a missing feature, an unknown model, broken JSON."""
    with pytest.raises(ConfigError, match="two distinct"):
        ThompsonBandit.over(["near"], ["ease"])
    with pytest.raises(ConfigError, match="floor"):
        ThompsonBandit.over(["near", "far"], ["ease"], floor=0.0)
    with pytest.raises(ConfigError, match="budget"):
        ThompsonBandit.over(["near", "far"], ["ease"], budget=0.0)
    bandit = ThompsonBandit.over(["near", "far"], ["ease"])
    with pytest.raises(DataError, match="'ease' is None"):
        bandit.propensities({"length": 3.0})
    with pytest.raises(DataError, match="'other'"):
        bandit.learn({"ease": 0.1}, "other", 1.0)
    with pytest.raises(DataError, match="nan"):
        bandit.learn({"ease": 0.1}, "near", math.nan)
    with pytest.raises(DataError, match="Not a bandit"):
        ThompsonBandit.from_json(b"{}")
