"""Fits of scorers to labelled answers, and what makes labels unfit for it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import sqrt
from typing import Any, Literal

from nearfar.errors import ConfigError, DataError
from nearfar.types import Signals

from .evaluation import auroc
from .scorers import IsotonicScorer, LogisticScorer

#: The fewest labelled answers to fit on: the Wilson interval of a share of 50 is up to 27 points wide, and fewer
#: leave less than ten to judge each fold by.
MIN_LABELS = 50

#: The fewest right and the fewest wrong answers per signal: 5 is where bias and coverage stop being poor in
#: Vittinghoff and McCulloch 2007, "Relaxing the rule of ten events per variable in logistic and Cox regression".
MIN_PER_SIGNAL = 5

#: Signals that a logistic scorer reads unless told: the mean, the weakest tokens, and the answer's length.
DEFAULT_SIGNALS = ("mean_logprob", "logprob_q10", "min_margin", "num_tokens")

#: The signal that an isotonic scorer reads unless told.
DEFAULT_SIGNAL = "mean_logprob"

#: Beyond this a square overflows, and no signal of ours comes near.
_LARGEST_SIGNAL = 1e100


def fit_logistic(
    rows: Sequence[Signals],
    outcomes: Sequence[float],
    *,
    signals: Sequence[str] = DEFAULT_SIGNALS,
    regularisation: float = 1.0,
) -> LogisticScorer:
    """A logistic scorer over standardised signals, fitted with an L2 penalty.

    Args:
        rows: signals of the answers.
        outcomes: as many, in [0, 1]; one between counts as that much of a right answer and the rest of a wrong one.
        signals: the ones to read.
        regularisation: weight of the penalty ‖coefficients‖² / 2; 1 is a standard normal prior, as is scikit-learn's
            default. The intercept is not penalised.

    Raises:
        ConfigError: scikit-learn is not installed.
        DataError: too few labels, right answers or wrong ones; a signal missing, constant or not finite.

    Source: Platt 1999; the prior, Gelman et al. 2008, "A weakly informative default prior distribution for logistic
        and other regression models".
    """
    if regularisation <= 0:
        raise ConfigError(f"regularisation must be more than 0, not {regularisation!r}.")
    names = tuple(signals)
    check(rows, outcomes, names)
    return logistic(rows, outcomes, names, regularisation)


def fit_isotonic(rows: Sequence[Signals], outcomes: Sequence[float], *, signal: str = DEFAULT_SIGNAL) -> IsotonicScorer:
    """The monotone curve over one signal that is nearest to the outcomes, rising or falling as the data do.

    Scores stay off 0 and 1 by what n labels can tell: they lie in [1 / (n + 2), (n + 1) / (n + 2)].

    Raises:
        ConfigError: scikit-learn is not installed.
        DataError: too few labels, right answers or wrong ones; the signal missing, constant or not finite.

    Source: Zadrozny and Elkan 2002; the bounds, Platt 1999, section 2.2.
    """
    check(rows, outcomes, (signal,))
    return isotonic(rows, outcomes, signal)


def logistic(
    rows: Sequence[Signals], outcomes: Sequence[float], names: tuple[str, ...], regularisation: float = 1.0
) -> LogisticScorer:
    """The logistic scorer, of labels that have been checked."""
    columns = [[row[name] for row in rows] for name in names]
    means = tuple(_mean(column) for column in columns)
    scales = tuple(_deviation(column, mean) for column, mean in zip(columns, means, strict=True))
    table = [
        [(value - mean) / scale for value, mean, scale in zip(row, means, scales, strict=True)]
        for row in zip(*columns, strict=True)
    ]
    right = [(row, 1, outcome) for row, outcome in zip(table, outcomes, strict=True) if outcome > 0]
    wrong = [(row, 0, 1 - outcome) for row, outcome in zip(table, outcomes, strict=True) if outcome < 1]
    inputs, classes, weights = zip(*right, *wrong, strict=True)
    model = _sklearn("linear_model").LogisticRegression(C=1 / regularisation, max_iter=1000)
    model.fit(inputs, classes, sample_weight=weights)
    return LogisticScorer(names, tuple(model.coef_[0].tolist()), float(model.intercept_[0]), means, scales)


def isotonic(rows: Sequence[Signals], outcomes: Sequence[float], name: str) -> IsotonicScorer:
    """The isotonic scorer, of labels that have been checked."""
    column = [row[name] for row in rows]
    n = len(column)
    rises = auroc(column, outcomes) >= 0.5
    model = _sklearn("isotonic").IsotonicRegression(y_min=1 / (n + 2), y_max=(n + 1) / (n + 2), increasing=rises)
    model.fit(column, outcomes)
    xs, ys = model.X_thresholds_.tolist(), model.y_thresholds_.tolist()
    rounded_ys = accumulate(ys, max if rises else min)  # means of equal runs may differ in the last bit
    return IsotonicScorer(name, tuple(xs), tuple(rounded_ys))


def check(rows: Sequence[Signals], outcomes: Sequence[float], names: Sequence[str]) -> None:
    """Says why the answers cannot be fitted on, if they cannot.

    Raises:
        DataError: with the reason and what is needed.
    """
    if len(rows) != len(outcomes):
        raise DataError(f"{len(rows)} rows of signals and {len(outcomes)} outcomes: give as many of each.")
    for i, outcome in enumerate(outcomes, start=1):
        if not 0 <= outcome <= 1:
            raise DataError(f"The outcome of labelled answer {i} is {outcome!r}; outcomes are in [0, 1].")
    if len(outcomes) < MIN_LABELS:
        raise DataError(f"{len(outcomes)} labelled answers are too few: label at least {MIN_LABELS}.")
    right = sum(outcomes)
    wrong = len(outcomes) - right
    needed = MIN_PER_SIGNAL * len(names)
    if right == 0 or wrong == 0:
        raise DataError(
            f"All {len(outcomes)} labelled answers are {'right' if right else 'wrong'}: there is nothing to tell "
            f"apart. Label more, until at least {needed} are {'wrong' if right else 'right'}."
        )
    if min(right, wrong) < needed:
        raise DataError(
            f"{right:g} right and {wrong:g} wrong answers are too few for {len(names)} signals: label more, until "
            f"there are {needed} of each, or name fewer signals."
        )
    for name in names:
        _check_column(rows, name)


def _check_column(rows: Sequence[Signals], name: str) -> None:
    for i, row in enumerate(rows, start=1):
        value = row.get(name)
        if value is None:
            has = ", ".join(map(repr, sorted(row))) or "none"
            raise DataError(f"Labelled answer {i} has no signal {name!r}; it has {has}. Name other signals.")
        if not abs(value) < _LARGEST_SIGNAL:
            raise DataError(
                f"The signal {name!r} of labelled answer {i} is {value!r}, not a usable number. "
                "Leave the answer or the signal out."
            )
    low, high = min(row[name] for row in rows), max(row[name] for row in rows)
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        raise DataError(f"The signal {name!r} is {low!r} in every labelled answer. Leave it out.")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _deviation(column: Sequence[float], mean: float) -> float:
    """Standard deviation; 1 where all are equal, as they may be in a fold."""
    if min(column) == max(column):
        return 1.0
    return sqrt(_mean([(value - mean) ** 2 for value in column]))


def _sklearn(module: Literal["linear_model", "isotonic"]) -> Any:
    """A module of scikit-learn, which is heavy and comes with an extra."""
    try:
        if module == "isotonic":
            import sklearn.isotonic as found
        else:
            import sklearn.linear_model as found
    except ImportError as exc:
        raise ConfigError("Fitting needs scikit-learn. Install it: pip install 'nearfar[fit]'") from exc
    return found
