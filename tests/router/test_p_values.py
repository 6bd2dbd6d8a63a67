"""Tests of a mean loss: agreement with references, and validity at the boundary."""

import math
import random

import pytest
from hypothesis import given
from hypothesis.strategies import floats, integers

from nearfar.router.p_values import (
    Bets,
    binomial_cdf,
    binomial_p_value,
    difference_p_value,
    hoeffding_bentkus_p_value,
    least_labels,
    most_errors,
)

shares = floats(0.01, 0.99)


def summed(k, n, p):
    """The binomial distribution function from its definition."""
    return math.fsum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1))


@given(integers(1, 200), integers(0, 200), shares)
def test_binomial_tail_is_the_sum_of_its_terms(n, k, p):
    """The short way gives what the long way does."""
    k = min(k, n)

    assert binomial_cdf(k, n, p) == pytest.approx(summed(k, n, p), rel=1e-9, abs=1e-14)


def test_binomial_tail_has_its_ends():
    """Nothing is below no errors, and everything is at n."""
    assert binomial_cdf(-1, 10, 0.3) == 0
    assert binomial_cdf(10, 10, 0.3) == 1
    assert binomial_cdf(3, 10, 0.0) == 1
    assert binomial_cdf(3, 10, 1.0) == 0
    assert binomial_p_value(0, 0, 0.1) == 1


@given(integers(1, 300), floats(0.01, 0.5), floats(0.01, 0.3))
def test_most_errors_is_where_the_p_value_crosses_delta(n, limit, delta):
    """One error more would not pass, and as many do."""
    allowed = most_errors(n, limit, delta)

    assert len(allowed) == n + 1
    assert allowed[n] == -1 or binomial_cdf(allowed[n], n, limit) <= delta + 1e-9
    assert allowed[n] == n or binomial_cdf(allowed[n] + 1, n, limit) > delta - 1e-9


def test_forty_five_right_answers_show_five_percent():
    """0.95 to the 45th is the first power below one tenth."""
    assert least_labels(0.05, 0.1) == 45
    assert most_errors(45, 0.05, 0.1)[44:] == (-1, 0)


@given(integers(1, 300), floats(0, 1), shares)
def test_hoeffding_bentkus_is_never_below_the_exact_tail(n, share, limit):
    """A bound for all losses in [0, 1] cannot beat the exact test of those that are 0 or 1."""
    errors = int(share * n)

    assert hoeffding_bentkus_p_value(errors / n, n, limit) >= binomial_p_value(errors, n, limit) - 1e-12


def test_the_difference_of_two_models_is_tested_at_its_level():
    """With a true difference just at the limit, at most a delta of all samples reject."""
    draw = random.Random(0)
    n, limit, disagreement, delta = 300, 0.05, 0.15, 0.1
    rejected = 0
    runs = 1500
    for _ in range(runs):
        kinds = draw.choices(
            ("worse", "better", "same"),
            ((disagreement + limit) / 2, (disagreement - limit) / 2, 1 - disagreement),
            k=n,
        )
        rejected += difference_p_value(kinds.count("worse"), kinds.count("better"), n, limit, delta=delta) <= delta

    assert 0.02 < rejected / runs <= delta + 2 * math.sqrt(delta * (1 - delta) / runs)


@given(integers(1, 60), floats(0.05, 0.3), integers(0, 30), integers(0, 30))
def test_the_difference_with_no_better_answers_is_at_least_the_exact_tail(n, limit, worse, better):
    """The least favourable disagreement is no better than the case without any better answers."""
    worse, better = min(worse, n // 2), min(better, n // 2)
    with_better = difference_p_value(worse, better, n, limit, delta=0.1)

    assert 0 < with_better <= 1
    assert difference_p_value(worse, 0, n, limit, delta=0.1) >= with_better - 0.25


def test_bets_hold_their_level_and_win_where_the_loss_is_small():
    """At the limit few samples reject; well below it most do."""
    draw = random.Random(1)

    def rejects(mean):
        bets = Bets(0.1, highest=1.0, n=400, delta=0.1)
        for _ in range(400):
            bets.add(0.5 * (draw.random() < 2 * mean))
        return bets.p_value() <= 0.1

    assert sum(rejects(0.1) for _ in range(400)) / 400 <= 0.1
    assert sum(rejects(0.05) for _ in range(200)) / 200 > 0.8


def test_bets_can_exchange_a_loss():
    """Exchanging gives the same wealth as having added the other in the first place."""
    exchanged, added = (Bets(0.2, highest=1.0, n=3, delta=0.1) for _ in range(2))
    for loss in (0.0, 0.0, 0.1):
        exchanged.add(loss)
    exchanged.exchange(0.0, 1.0)
    for loss in (1.0, 0.0, 0.1):
        added.add(loss)

    assert exchanged.p_value() == pytest.approx(added.p_value())
