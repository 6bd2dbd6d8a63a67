"""Fits scorers and thresholds to labelled answers and makes a policy of them.

Everything that is reported is out of fold: each answer is judged by a scorer that was fitted without it. A threshold
fitter only sees scores and outcomes, so one that carries a guarantee takes the place of the default rules as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias, assert_never

import msgspec

from nearfar import __version__
from nearfar.errors import ConfigError
from nearfar.types import Signals, Threshold, ThresholdFitter

from .boosting import boosted
from .evaluation import Bin, Interval, auroc, bootstrap_interval, brier, expected_calibration_error, reliability_table
from .fits import DEFAULT_SIGNAL, DEFAULT_SIGNALS, MIN_PER_SIGNAL, check, fit_isotonic, fit_logistic, isotonic, logistic
from .labels import LabelledAnswer, fingerprint, load_examples
from .policies import DataFingerprint, Policy, Reference, TierPolicy
from .recalibration import beta, fit_temperature, scale_of
from .scorers import AnyScorer
from .thresholds import BestQualityThreshold, FixedThreshold, PlugInThreshold

__all__ = [
    "DEFAULT_SIGNALS",
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

#: "logistic" and "boosting" read several signals, the others one; "temperature" and "beta" one that is a probability.
Method: TypeAlias = Literal["logistic", "boosting", "isotonic", "temperature", "beta"]

_OF_SEVERAL = frozenset({"logistic", "boosting"})

#: Folds of the out-of-fold figures. Kohavi 1995, "A study of cross-validation and bootstrap for accuracy estimation".
NUM_FOLDS = 5

#: Below this, isotonic regression overfits and logistic does better: Niculescu-Mizil and Caruana 2005, "Predicting
#: good probabilities with supervised learning", section 5.
ISOTONIC_LABELS = 1000

_RESAMPLES = 200


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
    check(rows, outcomes, names)
    fitter, rule = _threshold_rule(examples, fitter, min_accuracy)

    def fit(chosen: Sequence[int]) -> AnyScorer:
        some_rows, some_outcomes = [rows[i] for i in chosen], [outcomes[i] for i in chosen]
        match method:
            case "logistic":
                return logistic(some_rows, some_outcomes, names)
            case "boosting":
                return boosted(some_rows, some_outcomes, names)
            case "isotonic":
                return isotonic(some_rows, some_outcomes, names[0])
            case "temperature":
                return fit_temperature(some_rows, some_outcomes, signal=names[0], scale=scale_of(rows, names[0]))
            case "beta":
                return beta(some_rows, some_outcomes, names[0], scale_of(rows, names[0]))
            case _:
                assert_never(method)

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
        guarantee=_of_folds(threshold.guarantee),
        measured=measured,
        reference=Reference.of(names[0], [row[names[0]] for row in rows]),
    )
    policy = Policy(
        name=name,
        version=version,
        created_at=datetime.now(UTC),
        nearfar_version=__version__,
        tiers={tier: fitted},
    )
    return policy, report


def _chosen(
    rows: Sequence[Signals], outcomes: Sequence[float], method: Method, signals: Sequence[str] | None
) -> tuple[str, ...]:
    """The signals to read: those asked for, or as many default ones as the outcomes carry."""
    if signals is not None:
        names = tuple(signals)
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"signals must be distinct names, at least one, not {names!r}.")
        if method not in _OF_SEVERAL and len(names) != 1:
            raise ConfigError(f"The method {method!r} reads one signal, not {len(names)}. Name one, or fit logistic.")
        return names
    if method not in _OF_SEVERAL:
        return (DEFAULT_SIGNAL,)
    told: dict[tuple[float | None, ...], str] = {}
    for name in DEFAULT_SIGNALS:
        column = tuple(row.get(name) for row in rows)
        if None not in column and len(set(column)) > 1:
            told.setdefault(column, name)  # in answers of one token, say, the mean is also the quantile
    carried = min(sum(outcomes), len(outcomes) - sum(outcomes)) // MIN_PER_SIGNAL
    return (tuple(told.values()) or DEFAULT_SIGNALS)[: max(1, int(carried))]


def _of_folds(guarantee: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The guarantee, with the assumption that out-of-fold scores bring, where it states assumptions."""
    if guarantee is None or "assumptions" not in guarantee:
        return guarantee
    others = "the scorer fitted to all labels scores later answers as those fitted without each answer scored it"
    return {**guarantee, "scores": "out of fold", "assumptions": [*guarantee["assumptions"], others]}


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


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
