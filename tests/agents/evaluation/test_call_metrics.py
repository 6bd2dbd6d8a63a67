"""α-UMi's metrics and the metrics of questions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.agents.evaluation.call_metrics import (
    AnyValue,
    answer_f1,
    argument_f1,
    call_figures,
    exact_match,
    rouge_l,
    same_value,
)
from nearfar.agents.evaluation.call_text import Call

ARGUMENTS = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 3), max_size=4)


@pytest.mark.parametrize(
    ("call", "gold", "expected"),
    [
        (Call("f", {"a": 1, "b": 2}), Call("f", {"a": 1, "b": 2}), 1.0),
        (Call("f", {"a": 1, "b": 3}), Call("f", {"a": 1, "b": 2}), 0.75),
        (Call("f", {"a": 1}), Call("f", {"a": 1, "b": 2}), 2 / 3),
        (Call("g", {"a": 1}), Call("f", {"a": 1}), 0.0),
        (Call("f", {}), Call("f", {}), 1.0),
        (Call("f", {"x": 1}), Call("f", {"a": 1}), 0.0),
        (Call("f", {"a": "1"}), Call("f", {"a": 1}), 1.0),
    ],
)
def test_a_right_key_counts_half(call, gold, expected):
    """A right value the other half; another tool nothing."""
    assert argument_f1(call, gold) == pytest.approx(expected)


@given(ARGUMENTS, ARGUMENTS)
def test_argument_f1_is_symmetric_and_bounded(a, b):
    """Precision and recall trade places; only the same arguments reach 1."""
    found = argument_f1(Call("f", a), Call("f", b))

    assert found == pytest.approx(argument_f1(Call("f", b), Call("f", a)))
    assert 0 <= found <= 1
    assert (found == 1) == (a == b)


def test_steps_are_compared_in_order():
    """One call too many costs the decision to stop, a wrong tool its action and arguments."""
    gold = [Call("f", {"a": 1}), Call("g", {"b": 2})]

    figures = call_figures([Call("f", {"a": 1}), Call("h", {}), Call("g", {"b": 2})], gold, known=["f", "g"])

    assert figures.plan_accuracy == pytest.approx(2 / 3)
    assert figures.action_em == 0.5
    assert figures.argument_f1 == 0.5
    assert figures.hallucination == pytest.approx(1 / 3)
    assert figures.all_right == 0.0


def test_no_call_is_right_where_gold_has_none():
    """An empty plan is a plan."""
    figures = call_figures([], [], known=["f"])

    assert (figures.plan_accuracy, figures.action_em, figures.argument_f1, figures.all_right) == (1.0, 1.0, 1.0, 1.0)
    assert figures.hallucination is None


def test_a_value_that_comes_from_a_call_is_any():
    """Inside of lists and objects too."""
    assert same_value({"a": ["x", 3]}, {"a": [AnyValue(), 3]})
    assert not same_value({"a": ["x", 4]}, {"a": [AnyValue(), 3]})


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [("the cat sat", "the cat sat", 1.0), ("cat the", "the cat", 0.5), ("a b c d", "a c", 2 / 3), ("", "a", 0.0)],
)
def test_rouge_l_is_of_the_longest_common_subsequence(answer, gold, expected):
    """Order matters, gaps do not."""
    assert rouge_l(answer, gold) == pytest.approx(expected)


def test_answers_are_compared_without_articles_and_signs():
    """SQuAD's normalisation; the best of the aliases counts; yes and no only match themselves."""
    assert exact_match("The Beatles!", ["Fab Four", "beatles"]) == 1.0
    assert answer_f1("James Madison Jr.", ["james madison"]) == pytest.approx(0.8)
    assert answer_f1("yes it is", ["yes"]) == 0.0
    assert answer_f1("", ["x"]) == 0.0
