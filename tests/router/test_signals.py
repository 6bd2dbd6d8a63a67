"""Signals from token log-probabilities."""

from __future__ import annotations

from math import exp, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.router.signals import answer_signals, logprob_signals
from nearfar.types import Answer, TokenLogprob, Usage

logprobs = st.floats(-30, 0)


@st.composite
def tokens(draw: st.DrawFn) -> TokenLogprob:
    weights = draw(st.lists(st.floats(0.01, 1), min_size=2, max_size=5))
    total = sum(weights) + draw(st.floats(0, 2))
    top = tuple((str(i), log(weight / total)) for i, weight in enumerate(sorted(weights, reverse=True)))
    return TokenLogprob("0", top[0][1], top)


def test_an_answer_without_logprobs_has_only_its_length():
    """What cannot be known is absent, never zero."""
    assert answer_signals(Answer("hi", usage=Usage(3, 7))) == {"num_tokens": 7.0}
    assert answer_signals(Answer("hi")) == {}


def test_known_values():
    """Two tokens worked out by hand."""
    top = (("a", log(0.6)), ("b", log(0.3)))
    signals = logprob_signals([TokenLogprob("a", log(0.6), top), TokenLogprob("x", log(0.1), ())])

    assert signals["mean_logprob"] == pytest.approx((log(0.6) + log(0.1)) / 2)
    assert signals["min_logprob"] == pytest.approx(log(0.1))
    assert signals["first_logprob"] == pytest.approx(log(0.6))
    assert signals["logprob_q50"] == pytest.approx((log(0.6) + log(0.1)) / 2)
    assert signals["mean_margin"] == pytest.approx(0.3)
    assert signals["mean_entropy"] == pytest.approx(-(0.6 * log(0.6) + 0.3 * log(0.3) + 0.1 * log(0.1)))


@given(st.lists(tokens(), min_size=1, max_size=30))
def test_signals_stay_in_their_ranges(run: list[TokenLogprob]):
    """Order among the signals holds whatever the tokens are."""
    signals = logprob_signals(run)

    quantiles = [signals[f"logprob_q{q}"] for q in (10, 25, 50, 75, 90)]
    assert quantiles == sorted(quantiles)
    assert signals["min_logprob"] <= signals["mean_logprob"] + 1e-9
    assert 0 <= signals["min_margin"] <= signals["mean_margin"] + 1e-9 <= 1 + 1e-9
    assert 0 <= signals["mean_entropy"] <= signals["max_entropy"] + 1e-9 <= log(6) + 1e-6


@given(st.lists(logprobs, min_size=1, max_size=30))
def test_the_mean_does_not_depend_on_the_order(values: list[float]):
    """Signals other than the first token's ignore the order of the tokens."""
    forward = logprob_signals([TokenLogprob("t", value) for value in values])
    backward = logprob_signals([TokenLogprob("t", value) for value in reversed(values)])

    del forward["first_logprob"], backward["first_logprob"]
    assert forward == pytest.approx(backward)


def test_certain_tokens_have_no_entropy():
    """A token of probability one has zero entropy and full margin, up to rounding in the server's numbers."""
    signals = logprob_signals([TokenLogprob("a", 0.0, (("a", 0.0), ("b", -80.0)))])

    assert signals["mean_entropy"] == pytest.approx(0, abs=1e-9)
    assert signals["mean_margin"] == pytest.approx(1 - exp(-80.0))
