"""The figures of rankings: what they are on rankings that can be counted by hand, and where they must lie."""

import pytest
from hypothesis import given
from hypothesis.strategies import dictionaries, floats, lists, permutations, sampled_from

pytest.importorskip("numpy", reason="numpy is not installed")

from nearfar.retrieval.metrics import FIGURES, figures, mean, ndcg, recall, reciprocal_rank

IDS = list("abcdefgh")


def test_figures_of_a_ranking_counted_by_hand():
    """Two of three relevant documents, at the first and the third place."""
    relevant = {"a": 1.0, "c": 1.0, "x": 1.0}

    assert recall(["a", "b", "c"], relevant, 1) == pytest.approx(1 / 3)
    assert recall(["a", "b", "c"], relevant, 3) == pytest.approx(2 / 3)
    assert ndcg(["a", "b", "c"], relevant) == pytest.approx((1 + 0.5) / (1 + 0.6309297535714575 + 0.5))
    assert reciprocal_rank(["b", "c", "a"], relevant) == 0.5
    assert reciprocal_rank(["b"], relevant) == 0


@given(permutations(IDS), dictionaries(sampled_from(IDS), floats(0.5, 3), min_size=1))
def test_the_ideal_ranking_is_the_best(ranked, relevant):
    """No order beats the one by gain, whose discounted gain is 1."""
    ideal = sorted(ranked, key=lambda name: -relevant.get(name, 0))

    assert ndcg(ideal, relevant) == pytest.approx(1)
    assert all(0 <= value <= 1 + 1e-9 for value in figures(ranked, relevant).values())
    assert tuple(figures(ranked, relevant)) == FIGURES
    assert all(ndcg(ranked, relevant, k) <= ndcg(ideal, relevant, k) + 1e-9 for k in (1, 3, 10))


@given(lists(floats(0, 1), min_size=1, max_size=30))
def test_a_mean_lies_in_its_interval(values):
    """And the interval within the values."""
    found = mean(values, resamples=50)

    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    assert min(values) - 1e-9 <= found.value <= max(values) + 1e-9


def test_no_values_have_no_mean():
    """In one line."""
    with pytest.raises(ValueError, match="no values"):
        mean([])
