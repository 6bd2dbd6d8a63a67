"""Guarantees: what is promised holds, what cannot be promised is said to be so, and bad labels are refused."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis.strategies import floats, integers, lists, sampled_from, tuples

from nearfar.errors import ConfigError, DataError
from nearfar.router.guarantees import (
    AcceptedError,
    ExpectedLoss,
    MeanCost,
    QualityLoss,
    accepted_needed,
    between,
    first_rank,
)
from nearfar.router.p_values import least_labels

judged = lists(tuples(sampled_from([i / 7 for i in range(8)]), sampled_from([0.0, 1.0])), min_size=10, max_size=120)


def drawn(n, *, seed, best=0.999, worst=0.3):
    """Scores that are uniform, and answers right with a probability that rises with them from worst to best."""
    draw = random.Random(seed)
    scores = [draw.random() for _ in range(n)]
    return scores, [float(draw.random() < best - (best - worst) * (1 - score) ** 3) for score in scores]


def true_error(threshold, best=0.999, worst=0.3):
    """The error of `drawn` answers among those at or above a threshold."""
    return 1 - best + (best - worst) * (1 - threshold) ** 3 / 4


def is_mixed(pairs):
    """Whether there are two scores and two outcomes."""
    return len({s for s, _ in pairs}) > 1 and len({o for _, o in pairs}) > 1


# --- accepted error


@pytest.mark.parametrize(("n", "alpha", "delta"), [(200, 0.1, 0.1), (500, 0.05, 0.1), (500, 0.1, 0.05)])
def test_the_promise_fails_no_more_often_than_it_says(n, alpha, delta):
    """Over many draws of the labels, the true error of what is accepted is above alpha in a share of at most delta."""
    runs, broken, found = 400, 0, 0
    for seed in range(runs):
        threshold = AcceptedError(alpha, delta).fit(*drawn(n, seed=seed)).value
        if threshold is not None:
            found += 1
            broken += true_error(threshold) > alpha

    assert found > runs / 2
    assert broken / runs <= delta + 2 * math.sqrt(delta * (1 - delta) / runs)


def test_ties_do_not_break_the_promise():
    """With two values of the signal, the probability of a broken promise is at most delta, summed exactly."""
    n, alpha, delta = 40, 0.1, 0.1
    fitter = AcceptedError(alpha, delta)
    accepts = {}  # how many values are accepted, by (answers at the upper value, their errors, the others' errors)
    for upper in range(1, n):
        for upper_errors in range(upper + 1):
            for lower_errors in range(n - upper + 1):
                if not 0 < upper_errors + lower_errors < n:
                    continue
                scores = [1.0] * upper + [0.0] * (n - upper)
                if upper_errors > 12 or lower_errors > 12:
                    continue  # nothing passes with so many
                outcomes = [float(i >= upper_errors) for i in range(upper)]
                outcomes += [float(i >= lower_errors) for i in range(n - upper)]
                value = fitter.fit(scores, outcomes).value
                accepts[upper, upper_errors, lower_errors] = 0 if value is None else 2 if value <= 0 else 1

    def pmf(k, m, p):
        return math.comb(m, k) * p**k * (1 - p) ** (m - k)

    for share in (0.3, 0.5, 0.55, 0.6, 0.8):
        for high, low in ((0.12, 0.08), (0.101, 0.101), (0.2, 0.05), (0.05, 0.2), (0.3, 0.02), (0.11, 0.0), (0.0, 0.3)):
            overall = share * high + (1 - share) * low
            bad = {1: high > alpha, 2: overall > alpha, 0: False}
            broken = sum(
                pmf(upper, n, share) * pmf(a, upper, high) * pmf(b, n - upper, low)
                for (upper, a, b), values in accepts.items()
                if bad[values]
            )
            assert broken <= delta


@given(judged.filter(is_mixed), floats(0.05, 0.5), floats(0.05, 0.3))
def test_what_is_accepted_passes_the_exact_test(pairs, alpha, delta):
    """The accepted labels by themselves have an exact p-value of at most delta, ties whole."""
    scores, outcomes = zip(*pairs, strict=True)

    found = AcceptedError(alpha, delta).fit(scores, outcomes)

    if found.value is None:
        assert found.coverage == 0
        assert found.guarantee["is_feasible"] is False
        return
    accepted = [o for s, o in pairs if s >= found.value]
    errors, n = round(len(accepted) - sum(accepted)), len(accepted)
    tail = math.fsum(math.comb(n, i) * alpha**i * (1 - alpha) ** (n - i) for i in range(errors + 1))
    assert tail <= delta + 1e-9
    assert found.coverage == n / len(pairs)
    assert found.guarantee["accepted_n"] == n


@given(judged.filter(is_mixed), integers(0, 1000))
@settings(max_examples=50)
def test_the_order_of_the_labels_does_not_matter(pairs, seed):
    """A shuffled table gives the same threshold and the same promise."""
    shuffled = list(pairs)
    random.Random(seed).shuffle(shuffled)

    assert AcceptedError(0.3, 0.2).fit(*zip(*pairs, strict=True)) == AcceptedError(0.3, 0.2).fit(
        *zip(*shuffled, strict=True)
    )


def test_a_monotone_change_of_the_signal_accepts_the_same_answers():
    """Only the order of the scores counts, so any unit will do."""
    scores, outcomes = drawn(800, seed=3)
    logs = [math.log(score) * 40 - 3 for score in scores]

    plain, changed = (AcceptedError(0.1, 0.1).fit(s, outcomes) for s in (scores, logs))

    assert plain.value is not None
    assert [s >= plain.value for s in scores] == [s >= changed.value for s in logs]


def test_what_cannot_be_promised_names_how_many_labels_would_do():
    """A hundred labels cannot show two percent; about as many as are named usually do."""
    few = AcceptedError(0.02, 0.1).fit(*drawn(100, seed=1, best=1.0))
    needed = few.guarantee["needed_n"]

    assert few.value is None
    assert needed > 100
    enough = sum(AcceptedError(0.02, 0.1).fit(*drawn(needed, seed=s, best=1.0)).value is not None for s in range(20))
    assert enough >= 10


def test_no_number_of_labels_helps_a_model_that_is_always_unsure():
    """Where even the surest answers are wrong, that is said instead of a number."""
    scores = [i / 400 for i in range(400)]
    outcomes = [float(i % 3 == 0) for i in range(400)]

    found = AcceptedError(0.02, 0.1).fit(scores, outcomes)

    assert found.value is None
    assert "good" in found.guarantee["reason"] or "no number" in found.guarantee["reason"]


def test_graded_outcomes_take_the_bound_for_numbers():
    """Halves are tested by Hoeffding and Bentkus, and the binomial test is refused for them."""
    scores, outcomes = drawn(2000, seed=5, best=1.0)
    halves = [max(o, 0.5) for o in outcomes]

    found = AcceptedError(0.1, 0.1).fit(scores, halves)

    assert "hoeffding-bentkus" in found.guarantee["method"]
    assert found.value is not None
    with pytest.raises(ConfigError, match="binomial"):
        AcceptedError(0.1, 0.1, test="binomial").fit(scores, halves)


def test_the_walk_begins_where_the_labels_can_show_something():
    """The first rank follows from n, alpha and delta; too few labels have none."""
    assert first_rank(100, 0.05, 0.1) == least_labels(0.05, 0.1) == 45
    assert first_rank(44, 0.05, 0.1) == 45
    assert first_rank(3000, 0.05, 0.1) > 100


def test_a_signal_that_is_missing_is_never_accepted():
    """Minus infinity stands for no signal: it counts among the labels and stays deferred."""
    scores, outcomes = drawn(500, seed=2, best=1.0, worst=0.97)
    scores[:100] = [-math.inf] * 100

    found = AcceptedError(0.1, 0.1).fit(scores, outcomes)

    assert found.value is not None
    assert found.value > -math.inf
    assert found.coverage == 0.8


# --- quality lost against always far


def test_quality_loss_holds_and_counts_what_near_does_better():
    """Near answers that beat far's pay for those that far's would have beaten."""
    alpha, delta, runs, broken = 0.05, 0.1, 100, 0
    coverages = []
    for seed in range(runs):
        scores, near = drawn(400, seed=seed)
        draw = random.Random(1000 + seed)
        far = [float(draw.random() < 0.8) for _ in scores]
        found = QualityLoss(alpha, delta, far).fit(scores, near)
        coverages.append(found.coverage)
        if found.value is not None:
            accepted = 1 - max(0.0, found.value)
            broken += accepted * (0.8 - (1 - true_error(max(0.0, found.value)))) > alpha

    assert broken / runs <= delta + 2 * math.sqrt(delta * (1 - delta) / runs)
    assert sum(coverages) / runs > 0.3


def test_graded_quality_is_tested_by_betting():
    """Outcomes between 0 and 1 have no exact test, and the method says so."""
    scores, near = drawn(1000, seed=1)
    far = [min(1.0, max(o, 0.9)) for o in near]

    found = QualityLoss(0.2, 0.1, far).fit(scores, near)

    assert found.guarantee["method"].endswith("betting")
    assert found.value is not None
    assert found.guarantee["measured_loss"] <= 0.2


def test_a_far_model_that_is_no_better_is_never_needed():
    """Where near is at least as good everywhere, everything is accepted."""
    scores, near = drawn(300, seed=4)

    found = QualityLoss(0.05, 0.1, near).fit(scores, near)

    assert found.coverage == 1


def test_quality_loss_with_too_few_labels_says_how_many():
    """Ten labels cannot show one percent, and the number that is named is about what theory asks for."""
    scores, near = drawn(20, seed=4)

    found = QualityLoss(0.01, 0.1, [1.0] * 20).fit(scores, near)

    assert found.value is None
    assert found.guarantee["needed_n"] is None or found.guarantee["needed_n"] > 20


# --- cost


def test_the_share_sent_far_keeps_to_its_limit():
    """At most so many queries go far, and nearly as many as that do."""
    limit, delta, runs, broken = 0.3, 0.1, 300, 0
    for seed in range(runs):
        found = MeanCost(limit, delta).fit(*drawn(500, seed=seed))
        broken += found.value > limit  # scores are uniform: the share below the threshold is the threshold
        assert 0.6 < found.coverage < 0.85

    assert broken / runs <= delta + 2 * math.sqrt(delta * (1 - delta) / runs)


def test_money_keeps_to_its_limit():
    """With prices that differ from query to query, mean cost stays below the limit."""
    draw = random.Random(0)
    scores, outcomes = drawn(2000, seed=1)
    far = [draw.expovariate(100) for _ in scores]

    found = MeanCost(0.005, 0.1, near_costs=[0.0001] * 2000, far_costs=far, highest=0.2).fit(scores, outcomes)

    paid = [0.0001 + (cost if score < found.value else 0) for score, cost in zip(scores, far, strict=True)]
    assert 0.003 < sum(paid) / len(paid) < 0.005
    assert "no query costs over 0.2" in found.guarantee["assumptions"]


def test_a_near_model_over_the_limit_cannot_be_helped():
    """What is paid always is already too much."""
    found = MeanCost(0.01, 0.1, near_costs=[0.02] * 100, far_costs=[0.1] * 100).fit(*drawn(100, seed=0))

    assert found.value is None
    assert found.guarantee["needed_n"] is None
    assert "near model alone" in found.guarantee["reason"]


def test_within_the_cost_the_best_quality_is_chosen():
    """Where far is worse on the unsure queries, fewer are deferred than could be paid for."""
    scores, near = drawn(1000, seed=7, worst=0.9)

    most = MeanCost(0.9, 0.1).fit(scores, near)
    best = MeanCost(0.9, 0.1, far_outcomes=[0.0] * 1000).fit(scores, near)

    assert most.coverage < 0.2
    assert best.coverage > 0.99


# --- expectation


@given(judged.filter(is_mixed), floats(0.05, 0.9))
def test_conformal_risk_control_keeps_its_inequality(pairs, alpha):
    """The accepted losses and one more, over n + 1, are at most alpha."""
    scores, outcomes = zip(*pairs, strict=True)

    found = ExpectedLoss(alpha).fit(scores, outcomes)

    if found.value is not None:
        lost = sum(1 - o for s, o in pairs if s >= found.value)
        assert (lost + 1) / (len(pairs) + 1) <= alpha
    assert found.guarantee["delta"] is None


# --- thresholds in the signal's own units


@given(floats(-1e6, 1e6), floats(-1e6, 1e6))
def test_a_threshold_parts_two_scores(a, b):
    """It is above the one and at most the other."""
    low, high = sorted((a, b))
    if low < high:
        assert low < between(low, high) <= high


def test_a_threshold_is_short_to_write():
    """Among the numbers that do, the shortest is taken."""
    assert between(0.8312341, 0.8519234) == 0.84
    assert between(-math.inf, 0.3) == 0.3
    with pytest.raises(ValueError, match="below"):
        between(1.0, 1.0)


# --- refusals

mixed = [0.0, 1.0] * 20
ramp = [i / 40 for i in range(40)]


@pytest.mark.parametrize(
    "fitter", [AcceptedError(0.1), QualityLoss(0.1, 0.1, [1.0] * 40), MeanCost(0.5), ExpectedLoss(0.1)]
)
@pytest.mark.parametrize(
    ("scores", "outcomes", "reason"),
    [
        (ramp[:9], mixed[:9], "too few"),
        (ramp, [1.0] * 40, "All 40 labelled answers are right"),
        (ramp, [0.0] * 40, "All 40 labelled answers are wrong"),
        ([0.5] * 40, mixed, r"0\.5 in every"),
        ([*ramp[:39], math.nan], mixed, "40 is nan"),
        ([*ramp[:39], math.inf], mixed, "40 is inf"),
        (ramp, [*mixed[:39], 1.5], "1.5; outcomes"),
        (ramp, mixed[:39], "40 scores and 39 outcomes"),
    ],
)
def test_labels_that_say_nothing_are_refused(fitter, scores, outcomes, reason):
    """Too few, of one kind, constant or not numbers: the reason is given, and no threshold."""
    with pytest.raises(DataError, match=reason):
        fitter.fit(scores, outcomes)


@pytest.mark.parametrize(("alpha", "delta"), [(0.0, 0.1), (1.0, 0.1), (0.1, 0.0), (0.1, 1.0), (math.nan, 0.1)])
def test_levels_outside_of_zero_and_one_are_refused(alpha, delta):
    """A promise needs levels between 0 and 1."""
    with pytest.raises(ConfigError):
        AcceptedError(alpha, delta)


def test_costs_that_are_none_are_refused():
    """Negative costs, costs above the stated bound and too few of them are named."""
    with pytest.raises(DataError, match="at least 0"):
        MeanCost(0.1, far_costs=[-1.0] * 40).fit(ramp, mixed)
    with pytest.raises(DataError, match="over the bound"):
        MeanCost(0.1, far_costs=[1.0] * 40, highest=0.5).fit(ramp, mixed)
    with pytest.raises(DataError, match="39 far_costs"):
        MeanCost(0.1, far_costs=[1.0] * 39).fit(ramp, mixed)
    with pytest.raises(ConfigError, match="above 0"):
        MeanCost(0.0)


@given(floats(0, 0.09))
def test_more_labels_are_needed_the_nearer_the_error_is_to_the_limit(rate):
    """An estimate for planning grows with the error rate."""
    assert accepted_needed(rate, 0.1, 0.1) <= accepted_needed(rate + 0.005, 0.1, 0.1)
