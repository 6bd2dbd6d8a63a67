"""Off-policy estimates: right on average, honest about their error, and refused where the log cannot tell."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis.strategies import floats, integers

from nearfar.errors import DataError
from nearfar.router.off_policy import LoggedChoice, evaluate, predict_rewards


def log_of(n, *, seed, share=0.5, with_predictions=True):
    """Queries of some ease; near is right with that probability, far nearly always; near is logged with `share`."""
    draw = random.Random(seed)
    rows, actions, rewards = [], [], []
    for _ in range(n):
        ease = draw.random()
        action = "near" if draw.random() < share else "far"
        rows.append([ease])
        actions.append(action)
        rewards.append(float(draw.random() < (ease if action == "near" else 0.9)))
    predicted = predict_rewards(rows, actions, rewards, names=["near", "far"])
    shares = {"near": share, "far": 1 - share}
    return [
        LoggedChoice(
            action,
            shares[action],
            reward,
            {"near": float(row[0] >= 0.5), "far": float(row[0] < 0.5)},
            shares,
            expected if with_predictions else None,
        )
        for row, action, reward, expected in zip(rows, actions, rewards, predicted, strict=True)
    ]


#: near above an ease of one half is right three times out of four
TRUTH = 0.5 * 0.75 + 0.5 * 0.9


@pytest.mark.parametrize("method", ["ips", "snips", "doubly_robust"])
def test_intervals_cover_the_truth_about_as_often_as_they_say(method):
    """Of many logs, about 95 % have the policy's true value in the interval."""
    runs = 200
    covered = 0
    for seed in range(runs):
        found = evaluate(log_of(400, seed=seed, share=0.3), method=method)
        covered += found.interval.low <= TRUTH <= found.interval.high

    assert covered / runs == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / runs))


def test_a_good_model_makes_the_interval_narrower():
    """Doubly robust is narrower than the self-normalised estimate, and that one than plain weighting."""
    widths = {}
    for method in ("ips", "snips", "doubly_robust"):
        found = evaluate(log_of(4000, seed=1, share=0.3), method=method)
        widths[method] = found.interval.high - found.interval.low

    assert widths["doubly_robust"] < widths["snips"] < widths["ips"]


def test_the_logs_own_policy_is_its_mean_reward():
    """With weights of one, every estimate is the mean, and every choice counts."""
    choices = [
        LoggedChoice(c.action, c.propensity, c.reward, {"near": 0.5, "far": 0.5}, None, c.predicted)
        for c in log_of(300, seed=0)
    ]
    mean = sum(c.reward for c in choices) / len(choices)

    for method in ("ips", "snips"):
        found = evaluate(choices, method=method)
        assert found.value == pytest.approx(mean)
        assert found.effective_n == pytest.approx(300)


@given(floats(0.2, 0.8), integers(0, 50))
@settings(max_examples=20)
def test_constant_predictions_shift_nothing(constant, seed):
    """A model that says the same of everything leaves the estimate unbiased: it is plain weighting plus what the
    weights' mean lacks of one."""
    choices = [
        LoggedChoice(c.action, c.propensity, c.reward, c.target, None, {"near": constant, "far": constant})
        for c in log_of(300, seed=seed)
    ]
    mean_weight = sum(c.weight for c in choices) / len(choices)

    robust, plain = evaluate(choices), evaluate(choices, method="ips")

    assert robust.value == pytest.approx(plain.value + constant * (1 - mean_weight))


def test_predictions_only_look_back():
    """Changing a reward changes no prediction up to its own."""
    rows, actions, rewards = [[0.1], [0.9], [0.5], [0.2]], ["a", "b", "a", "b"], [1.0, 0.0, 1.0, 0.0]

    before = predict_rewards(rows, actions, rewards, names=["a", "b"])
    after = predict_rewards(rows, actions, [1.0, 0.0, 0.0, 0.0], names=["a", "b"])

    assert before[:3] == after[:3]
    assert before[3] != after[3]


def always(action, n=200, **changes):
    """A log in which one action was always done, asked about the other."""
    other = {"near": "far", "far": "near"}[action]
    return [LoggedChoice(action, changes.get("propensity", 1.0), 1.0, {other: 1.0}) for _ in range(n)]


@pytest.mark.parametrize(
    ("choices", "reason"),
    [
        (always("near"), "'far', which the log never does"),
        (always("near", propensity=0.0), r"propensity 0\.0"),
        (always("near", propensity=math.nan), "propensity nan"),
        (always("near", propensity=1.5), r"propensity 1\.5"),
        ([], "0 choices"),
        ([LoggedChoice("near", 0.5, math.nan, {"near": 1.0})] * 50, "reward of choice 1 is nan"),
        ([LoggedChoice("near", 0.5, 1.0, {"near": 0.4})] * 50, "add up to 1"),
        (
            [LoggedChoice("near", 1.0, 1.0, {"far": 1.0}, {"near": 1.0, "far": 0.0})] * 50,
            "'far', whose propensity in the log is 0",
        ),
    ],
)
def test_a_log_that_cannot_tell_is_refused(choices, reason):
    """Propensities of zero and choices that were never tried are named."""
    with pytest.raises(DataError, match=reason):
        evaluate(choices, method="snips")


def test_half_of_the_support_is_not_enough():
    """A log that explores on some queries only is refused for a policy that needs all."""
    choices = [LoggedChoice("near" if i % 2 else "far", 1.0, 1.0, {"near": 1.0, "far": 0.0}) for i in range(400)]

    with pytest.raises(DataError, match="covers only 50%"):
        evaluate(choices, method="snips")


def test_few_effective_choices_are_refused():
    """A rare action tells of a policy that always does it no more than its few tries."""
    draw = random.Random(0)
    choices = []
    for _ in range(500):
        action = "far" if draw.random() < 0.02 else "near"
        choices.append(LoggedChoice(action, 0.02 if action == "far" else 0.98, 1.0, {"far": 1.0}))

    with pytest.raises(DataError, match="at least 30"):
        evaluate(choices, method="ips")


def test_doubly_robust_needs_predictions():
    """Without a model's predictions it is refused, and the way out is named."""
    with pytest.raises(DataError, match="snips"):
        evaluate(log_of(100, seed=0, with_predictions=False))
