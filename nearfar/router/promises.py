"""From a table of paired outcomes to a promise, and from the promise to a policy that keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import assert_never

from nearfar import __version__
from nearfar.errors import ConfigError, DataError
from nearfar.types import Threshold, ThresholdFitter

from .fits import fit_logistic
from .guarantees import AcceptedError, MeanCost, QualityLoss, Target
from .paired import PairedOutcomes
from .policies import DataFingerprint, Policy, Reference, TierPolicy
from .scorers import LogisticScorer


def fit_promise(table: PairedOutcomes, target: Target, *, alpha: float, delta: float) -> Threshold:
    """The threshold, in the signal's own units, that keeps the promise; its value is None where none can.

    Args:
        table: what both models made of the labelled queries.
        target: what is promised. For "cost", `alpha` is the mean cost per query in the table's unit where it has costs
            for every answer of both models, and else the share of queries sent far.
        alpha: the limit.
        delta: the probability with which the promise may fail.

    Raises:
        ConfigError: a level is out of range.
        DataError: the labels say nothing (too few, one class, a constant signal), or far's outcomes are needed and not
            all there.
    """
    return _fitter(table, target, alpha, delta).fit(table.signals, table.near_outcomes)


def _fitter(table: PairedOutcomes, target: Target, alpha: float, delta: float) -> ThresholdFitter:
    match target:
        case "accepted-error":
            return AcceptedError(alpha, delta)
        case "quality-loss":
            if table.far_outcomes is None:
                raise DataError(
                    f"Some queries of {table.near!r} have no row of {table.far!r}, so the quality lost against it is "
                    "not known. Leave them out, or promise the accepted error."
                )
            return QualityLoss(alpha, delta, table.far_outcomes)
        case "cost":
            if table.near_costs is None or table.far_costs is None:
                if alpha >= 1:
                    raise ConfigError(
                        f"The table has no costs for all answers, so the limit is the share of queries sent far, and "
                        f"{alpha!r} is not below 1."
                    )
                return MeanCost(alpha, delta, far_outcomes=table.far_outcomes)
            return MeanCost(alpha, delta, table.near_costs, table.far_costs, far_outcomes=table.far_outcomes)
        case _:
            assert_never(target)


def promise_policy(
    table: PairedOutcomes, threshold: Threshold, *, tier: str | None = None, name: str = "promised", version: int = 1
) -> Policy:
    """A policy whose tier accepts exactly the answers that the threshold on the raw signal accepts.

    Its scorer is a logistic curve through the signal. A rising curve keeps the order of the signals, so the promise
    carries over to its scores whatever labels it was fitted to.

    Args:
        table: what the threshold was fitted to.
        threshold: of `fit_promise`.
        tier: name of the near tier; the near model's unless told.

    Raises:
        ConfigError: scikit-learn is not installed.
        DataError: the signal does not rise with correctness, or scores of 1 in floating point hide differences.
    """
    known = [(s, o) for s, o in zip(table.signals, table.near_outcomes, strict=True) if s > float("-inf")]
    scorer, (value,) = rising_curve(
        table.signal, [signal for signal, _ in known], [outcome for _, outcome in known], [threshold.value]
    )
    measured = {"coverage": threshold.coverage}
    if threshold.accepted_accuracy is not None:
        measured["accepted_accuracy"] = threshold.accepted_accuracy
    fitted = TierPolicy(
        model=table.near,
        scorer=scorer,
        threshold=value,
        data=DataFingerprint(table.sha256, table.n, sum(table.near_outcomes) / table.n),
        guarantee=threshold.guarantee,
        measured=measured,
        reference=Reference.of(table.signal, table.signals),
    )
    return Policy(
        name=name,
        version=version,
        created_at=datetime.now(UTC),
        nearfar_version=__version__,
        tiers={tier or table.near: fitted},
    )


def rising_curve(
    signal: str, values: Sequence[float], outcomes: Sequence[float], bounds: Sequence[float | None]
) -> tuple[LogisticScorer, list[float | None]]:
    """A logistic curve through the signal, and what bounds on the signal are on it.

    Args:
        signal: its name.
        values: of the labelled answers, finite.
        outcomes: theirs, in [0, 1].
        bounds: on the signal; None stays None.

    Raises:
        ConfigError: scikit-learn is not installed.
        DataError: the curve does not rise, or its scores do not part the answers as the bounds do.
    """
    rows = [{signal: value} for value in values]
    scorer = fit_logistic(rows, outcomes, signals=[signal])
    if scorer.coefficients[0] <= 0 and any(bound is not None for bound in bounds):
        raise DataError(f"{signal!r} falls where answers are right, so a score cannot rise with both. Turn its sign.")
    found = [None if bound is None else scorer.score({signal: bound}) for bound in bounds]
    for row in rows:
        score = scorer.score(row)
        for bound, on_curve in zip(bounds, found, strict=True):
            if bound is None:
                continue
            if score is None or on_curve is None or (score >= on_curve) != (row[signal] >= bound):
                raise DataError(
                    f"Scores over {signal!r} do not part the answers as its values do: they are too close to 0 or 1. "
                    "Give the signal on another scale, such as its logarithm."
                )
    return scorer, found
