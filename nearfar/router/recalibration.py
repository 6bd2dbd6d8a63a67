"""Fits that correct a stated probability: temperature, Platt's curve, beta, and shifts by group with shrinkage."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, isfinite, log

from nearfar.errors import DataError
from nearfar.types import Signals

from .fits import check, fit_logistic, logistic
from .scorers import (
    BetaScorer,
    GroupedScorer,
    IsotonicScorer,
    LogisticScorer,
    Scale,
    TemperatureScorer,
    group_key,
    log_odds,
    stated,
)

#: Temperatures that are tried, as logarithms.
_COLDEST, _HOTTEST = log(0.05), log(50.0)

#: Standard deviations of the groups' shifts that are tried; the likeliest is taken.
_SPREADS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)

#: As good as no penalty; it only keeps separable labels from an infinite slope.
_WEAK = 1e-2


def fit_platt(rows: Sequence[Signals], outcomes: Sequence[float], *, signal: str) -> LogisticScorer:
    """A logistic curve through one signal, whatever its scale.

    Raises:
        ConfigError: scikit-learn is not installed.
        DataError: see `fit_logistic`.

    Source: Platt 1999, "Probabilistic outputs for support vector machines".
    """
    return fit_logistic(rows, outcomes, signals=[signal], regularisation=_WEAK)


def fit_temperature(
    rows: Sequence[Signals], outcomes: Sequence[float], *, signal: str, scale: Scale
) -> TemperatureScorer:
    """The temperature under which the outcomes are likeliest.

    Raises:
        DataError: a signal is missing, or states no probability.

    Source: Guo et al. 2017, arXiv:1706.04599, section 4.2.
    """
    odds = [a - b for a, b in _stated(rows, outcomes, signal, scale)]

    def surprise(log_temperature: float) -> float:
        return sum(_surprise(x / exp(log_temperature), y) for x, y in zip(odds, outcomes, strict=True))

    low, high = _COLDEST, _HOTTEST  # the loss is convex in 1 / T, so it has one dip in log T as well
    for _ in range(60):
        a, b = low + (high - low) * 0.382, low + (high - low) * 0.618
        low, high = (low, b) if surprise(a) <= surprise(b) else (a, high)
    return TemperatureScorer(signal, scale, exp((low + high) / 2))


def fit_beta(rows: Sequence[Signals], outcomes: Sequence[float], *, signal: str, scale: Scale) -> BetaScorer:
    """The beta curve that fits best; a slope that would be negative is left out, so that the curve never falls.

    Raises:
        ConfigError: scikit-learn is not installed.
        DataError: a signal is missing or states no probability, or see `fit_logistic`.

    Source: Kull, Silva Filho and Flach 2017, "Beta calibration", AISTATS, section 4.
    """
    _stated(rows, outcomes, signal, scale)
    check(rows, outcomes, (signal,))
    return beta(rows, outcomes, signal, scale)


def beta(rows: Sequence[Signals], outcomes: Sequence[float], signal: str, scale: Scale) -> BetaScorer:
    """The beta scorer, of labels that have been checked."""
    logs = _stated(rows, outcomes, signal, scale)
    table = [{"a": first, "b": -second} for first, second in logs]
    names = ["a", "b"]
    while True:
        fitted = logistic(table, outcomes, tuple(names), _WEAK)
        slopes = {n: c / s for n, c, s in zip(names, fitted.coefficients, fitted.scales, strict=True)}
        falling = min(slopes, key=lambda name: slopes[name])
        if slopes[falling] >= 0 or len(names) == 1:
            break
        names.remove(falling)
    if min(slopes.values()) < 0:
        raise DataError(f"Answers are right where {signal!r} says that they are not. Turn its sign, or take another.")
    shift = sum(c * m / s for c, m, s in zip(fitted.coefficients, fitted.means, fitted.scales, strict=True))
    return BetaScorer(signal, scale, slopes.get("a", 0.0), slopes.get("b", 0.0), fitted.intercept - shift)


def scale_of(rows: Sequence[Signals], signal: str) -> Scale:
    """How a signal states a probability, told from its values.

    Raises:
        DataError: they are neither all in [0, 1] nor all at most 0.
    """
    low, high = min(row[signal] for row in rows), max(row[signal] for row in rows)
    if low >= 0 and high <= 1:
        return "probability"
    if high <= 0:
        return "log_probability"
    raise DataError(
        f"The signal {signal!r} goes from {low:g} to {high:g}: it states neither a probability nor its logarithm. Fit "
        "logistic or isotonic."
    )


def fit_grouped(
    base: LogisticScorer | IsotonicScorer | TemperatureScorer | BetaScorer,
    rows: Sequence[Signals],
    outcomes: Sequence[float],
    *,
    group: str,
) -> GroupedScorer:
    """The scorer with a shift for each group, the smaller the group the nearer to none.

    The shifts have a normal prior around 0, whose spread is the one that makes the outcomes likeliest.

    Args:
        base: a scorer fitted to all groups.
        group: the signal that numbers the groups, such as a cluster of the query. A subject or a data set's name is not
            known when a query comes, and is no group.

    Raises:
        DataError: a row has no score or no group, or all are in one group.
    """
    members: dict[str, list[tuple[float, float]]] = {}
    for number, (row, outcome) in enumerate(zip(rows, outcomes, strict=True), start=1):
        score, name = base.score(row), row.get(group)
        if score is None or name is None or not isfinite(name):
            raise DataError(f"Labelled answer {number} has no score, or no group {group!r}. Leave it out.")
        members.setdefault(group_key(name), []).append((log_odds(score), outcome))
    if len(members) < 2:
        raise DataError(f"All labelled answers are in one group of {group!r}: there is nothing to tell apart.")
    spread = max(_SPREADS, key=lambda spread: sum(_mode(own, spread)[1] for own in members.values()))
    return GroupedScorer(base, group, {name: _mode(own, spread)[0] for name, own in sorted(members.items())})


def _mode(own: Sequence[tuple[float, float]], spread: float) -> tuple[float, float]:
    """The likeliest shift of one group, and the evidence for the spread (Laplace's approximation)."""
    shift = 0.0
    curvature = 1.0
    for _ in range(30):
        slope, curvature = -shift / spread**2, 1 / spread**2
        for x, y in own:
            p = 1 / (1 + exp(-max(-30.0, min(30.0, x + shift))))
            slope += y - p
            curvature += p * (1 - p)
        step = slope / curvature
        shift += max(-1.0, min(1.0, step))
        if abs(step) < 1e-9:
            break
    fit = -sum(_surprise(x + shift, y) for x, y in own) - shift**2 / (2 * spread**2)
    return shift, fit - log(spread) - log(curvature) / 2


def _surprise(x: float, y: float) -> float:
    """Negative log-likelihood of an outcome at these log-odds."""
    x = max(-500.0, min(500.0, x))
    return (log(1 + exp(-x)) if x > -30 else -x) + (1 - y) * x


def _stated(rows: Sequence[Signals], outcomes: Sequence[float], signal: str, scale: Scale) -> list[tuple[float, float]]:
    if len(rows) != len(outcomes) or not rows:
        raise DataError(f"{len(rows)} rows of signals and {len(outcomes)} outcomes: give as many of each, and some.")
    found = []
    for number, row in enumerate(rows, start=1):
        logs = stated(row.get(signal), scale)
        if logs is None:
            kind = scale.replace("_", "-")
            raise DataError(f"The signal {signal!r} of labelled answer {number} is {row.get(signal)!r}, not a {kind}.")
        found.append(logs)
    return found
