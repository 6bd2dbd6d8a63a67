"""Fits scorers and thresholds to labelled answers and makes a policy of them.

Everything that is reported is out of fold: each answer is judged by a scorer that was fitted without it. A threshold
fitter only sees scores and outcomes, so one that carries a guarantee takes the place of the default rules as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import accumulate
from math import sqrt
from typing import Any, Literal, TypeAlias

import msgspec

from nearfar import __version__
from nearfar.errors import ConfigError, DataError
from nearfar.types import Signals, Threshold, ThresholdFitter

from .evaluation import Bin, Interval, auroc, bootstrap_interval, brier, expected_calibration_error, reliability_table
from .labels import LabelledAnswer, fingerprint, load_examples
from .policies import DataFingerprint, Policy, TierPolicy
from .scorers import AnyScorer, IsotonicScorer, LogisticScorer
from .thresholds import BestQualityThreshold, FixedThreshold, PlugInThreshold

__all__ = [
    "BestQualityThreshold",
    "CalibrationReport",
    "FixedThreshold",
    "LabelledAnswer",
    "Method",
    "PlugInThreshold",
    "calibrate",
    "fit_isotonic",
    "fit_logistic",
    "load_examples",
]

Method: TypeAlias = Literal["logistic", "isotonic"]

#: Folds of the out-of-fold figures. Kohavi 1995, "A study of cross-validation and bootstrap for accuracy estimation".
NUM_FOLDS = 5

#: The fewest labelled answers to fit on: the Wilson interval of a share of 50 is up to 27 points wide, and fewer
#: leave less than ten to judge each fold by.
MIN_LABELS = 50

#: The fewest right and the fewest wrong answers per signal: 5 is where bias and coverage stop being poor in
#: Vittinghoff and McCulloch 2007, "Relaxing the rule of ten events per variable in logistic and Cox regression".
MIN_PER_SIGNAL = 5

#: Below this, isotonic regression overfits and logistic does better: Niculescu-Mizil and Caruana 2005, "Predicting
#: good probabilities with supervised learning", section 5.
ISOTONIC_LABELS = 1000

#: Signals that a logistic scorer reads unless told: the mean, the weakest tokens, and the answer's length.
DEFAULT_SIGNALS = ("mean_logprob", "logprob_q10", "min_margin", "num_tokens")

#: The signal that an isotonic scorer reads unless told.
DEFAULT_SIGNAL = "mean_logprob"

_RESAMPLES = 200

#: Beyond this a square overflows, and no signal of ours comes near.
_LARGEST_SIGNAL = 1e100


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """How good the fit is, on answers that it had not seen."""

    method: Method
    signals: tuple[str, ...]
    n: int
    accuracy: float  # of the tier by itself
    auroc: float  # of the out-of-fold scores
    auroc_interval: Interval  # 95 %
    ece: float
    brier: float
    reliability: tuple[Bin, ...]
    threshold: Threshold
    rule: str  # how the threshold was chosen, in words
    warnings: tuple[str, ...] = ()
    out_of_fold_scores: tuple[float, ...] = field(default=(), repr=False)  # in the order of the examples


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
    _check(rows, outcomes, names)
    return _fit_logistic(rows, outcomes, names, regularisation)


def fit_isotonic(rows: Sequence[Signals], outcomes: Sequence[float], *, signal: str = DEFAULT_SIGNAL) -> IsotonicScorer:
    """The monotone curve over one signal that is nearest to the outcomes, rising or falling as the data do.

    Scores stay off 0 and 1 by what n labels can tell: they lie in [1 / (n + 2), (n + 1) / (n + 2)].

    Raises:
        ConfigError: scikit-learn is not installed.
        DataError: too few labels, right answers or wrong ones; the signal missing, constant or not finite.

    Source: Zadrozny and Elkan 2002; the bounds, Platt 1999, section 2.2.
    """
    _check(rows, outcomes, (signal,))
    return _fit_isotonic(rows, outcomes, signal)


def calibrate(
    examples: Sequence[LabelledAnswer],
    *,
    tier: str,
    model: str,
    method: Method = "logistic",
    signals: Sequence[str] | None = None,
    min_accuracy: float | None = None,
    fitter: ThresholdFitter | None = None,
    name: str = "calibrated",
    version: int = 1,
) -> tuple[Policy, CalibrationReport]:
    """A policy for one tier, and how good it is on answers that it had not seen.

    The threshold is fitted to out-of-fold scores, by the first of these that applies: `fitter`; the accuracy asked
    for; the best quality where `far_correct` is known for every answer; one half.

    Args:
        examples: labelled answers of the tier's model.
        tier: name of the tier in the cascade.
        model: name of its model.
        signals: the ones to read; None: the default ones that every answer has and that say different things, or
            the first of them where there are too few right or wrong answers for all.
        min_accuracy: what the accepted answers must reach on the data, in [0, 1].

    Raises:
        ConfigError: scikit-learn is not installed, an option is out of range, or both rules were given.
        DataError: the answers cannot be fitted on; the message says why and what is needed.
    """
    if fitter is not None and min_accuracy is not None:
        raise ConfigError("Give either min_accuracy or fitter, not both.")
    rows = [example.signals for example in examples]
    outcomes = [example.correct for example in examples]
    names = _chosen(rows, outcomes, method, signals)
    _check(rows, outcomes, names)
    fitter, rule = _threshold_rule(examples, fitter, min_accuracy)

    def fit(chosen: Sequence[int]) -> AnyScorer:
        some_rows, some_outcomes = [rows[i] for i in chosen], [outcomes[i] for i in chosen]
        if method == "isotonic":
            return _fit_isotonic(some_rows, some_outcomes, names[0])
        return _fit_logistic(some_rows, some_outcomes, names)

    scorer = fit(range(len(rows)))
    scores = _out_of_fold(fit, rows, outcomes)
    threshold = fitter.fit(scores, outcomes)
    report = CalibrationReport(
        method=method,
        signals=names,
        n=len(rows),
        accuracy=_mean(outcomes),
        auroc=auroc(scores, outcomes),
        auroc_interval=bootstrap_interval(auroc, scores, outcomes, resamples=_RESAMPLES),
        ece=expected_calibration_error(scores, outcomes),
        brier=brier(scores, outcomes),
        reliability=reliability_table(scores, outcomes),
        threshold=threshold,
        rule=rule,
        warnings=tuple(_warnings(method, threshold, scores, outcomes)),
        out_of_fold_scores=tuple(scores),
    )
    measured = {"auroc": report.auroc, "ece": report.ece, "brier": report.brier, "coverage": threshold.coverage}
    if threshold.accepted_accuracy is not None:
        measured["accepted_accuracy"] = threshold.accepted_accuracy
    fitted = TierPolicy(
        model=model,
        scorer=scorer,
        threshold=threshold.value,
        data=DataFingerprint(fingerprint(examples), report.n, report.accuracy),
        guarantee=threshold.guarantee,
        measured=measured,
    )
    policy = Policy(
        name=name,
        version=version,
        created_at=datetime.now(UTC),
        nearfar_version=__version__,
        tiers={tier: fitted},
    )
    return policy, report


def _fit_logistic(
    rows: Sequence[Signals], outcomes: Sequence[float], names: tuple[str, ...], regularisation: float = 1.0
) -> LogisticScorer:
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


def _fit_isotonic(rows: Sequence[Signals], outcomes: Sequence[float], name: str) -> IsotonicScorer:
    column = [row[name] for row in rows]
    n = len(column)
    rises = auroc(column, outcomes) >= 0.5
    model = _sklearn("isotonic").IsotonicRegression(y_min=1 / (n + 2), y_max=(n + 1) / (n + 2), increasing=rises)
    model.fit(column, outcomes)
    xs, ys = model.X_thresholds_.tolist(), model.y_thresholds_.tolist()
    rounded_ys = accumulate(ys, max if rises else min)  # means of equal runs may differ in the last bit
    return IsotonicScorer(name, tuple(xs), tuple(rounded_ys))


def _chosen(
    rows: Sequence[Signals], outcomes: Sequence[float], method: Method, signals: Sequence[str] | None
) -> tuple[str, ...]:
    """The signals to read: those asked for, or as many default ones as the outcomes carry."""
    if signals is not None:
        names = tuple(signals)
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"signals must be distinct names, at least one, not {names!r}.")
        if method == "isotonic" and len(names) != 1:
            raise ConfigError(f"An isotonic scorer reads one signal, not {len(names)}. Name one, or fit logistic.")
        return names
    if method == "isotonic":
        return (DEFAULT_SIGNAL,)
    told: dict[tuple[float | None, ...], str] = {}
    for name in DEFAULT_SIGNALS:
        column = tuple(row.get(name) for row in rows)
        if None not in column and len(set(column)) > 1:
            told.setdefault(column, name)  # in answers of one token, say, the mean is also the quantile
    carried = min(sum(outcomes), len(outcomes) - sum(outcomes)) // MIN_PER_SIGNAL
    return (tuple(told.values()) or DEFAULT_SIGNALS)[: max(1, int(carried))]


def _threshold_rule(
    examples: Sequence[LabelledAnswer], fitter: ThresholdFitter | None, min_accuracy: float | None
) -> tuple[ThresholdFitter, str]:
    if fitter is not None:
        return fitter, f"fitted by {type(fitter).__name__}"
    if min_accuracy is not None:
        return PlugInThreshold(min_accuracy), f"accepted answers at least {min_accuracy:.0%} right on the data"
    far = [example.far_correct for example in examples if example.far_correct is not None]
    if len(far) == len(examples):
        return BestQualityThreshold(far), "best quality of the cascade on the data"
    return FixedThreshold(), "more likely right than wrong"


def _warnings(
    method: Method, threshold: Threshold, scores: Sequence[float], outcomes: Sequence[float]
) -> Iterator[str]:
    if threshold.value is None:
        yield "no threshold is good enough: the tier accepts nothing"
    elif threshold.guarantee is None:
        yield "no guarantee: the threshold was right for this data and may not be for new queries"
    if auroc(scores, outcomes) <= 0.5:
        yield "the score does not tell right answers from wrong ones (AUROC at most 0.5 out of fold)"
    if method == "isotonic" and len(scores) < ISOTONIC_LABELS:
        yield f"isotonic fits want about {ISOTONIC_LABELS:,} labels and there are {len(scores):,}; try logistic"


def _out_of_fold(
    fit: Callable[[Sequence[int]], AnyScorer], rows: Sequence[Signals], outcomes: Sequence[float]
) -> list[float]:
    """Every answer's score by a scorer fitted on the other folds.

    Folds deal out the answers in order of their outcome, so that each has its share of right ones; among equal
    outcomes a hash of the signals decides, so that the order of the file does not.
    """
    order = sorted(range(len(rows)), key=lambda i: (outcomes[i], _digest(rows[i])))
    scores = [0.0] * len(rows)
    for start in range(NUM_FOLDS):
        held_out = order[start::NUM_FOLDS]
        scorer = fit(sorted(set(order).difference(held_out)))
        for i in held_out:
            score = scorer.score(rows[i])
            assert score is not None  # the rows have been checked
            scores[i] = score
    return scores


def _digest(row: Signals) -> bytes:
    return hashlib.sha256(msgspec.json.encode(sorted(row.items()))).digest()


def _check(rows: Sequence[Signals], outcomes: Sequence[float], names: Sequence[str]) -> None:
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
