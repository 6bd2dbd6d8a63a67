"""Fits the calibration of labels to queries whose worker is known."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log
from typing import Any

from nearfar.errors import ConfigError, DataError

from .distribution import LabelCalibration, LabelLogprobs, distribution

#: The fewest labelled queries to fit on, as of any scorer; see `nearfar.router.fits`.
MIN_QUERIES = 50

#: Weight of the pull towards the calibration to begin with, in queries: a label that was seen as often has moved half
#: of the way. Weak, so that a few hundred queries decide, and enough that a label without any stays where it was.
_PULL = 1.0


def fit_calibration(
    rows: Sequence[LabelLogprobs], labels: Sequence[str], wanted: Sequence[str], *, start: LabelCalibration
) -> LabelCalibration:
    """The scale and the biases under which the wanted labels are likeliest, pulled towards `start`.

    Args:
        rows: what the model said of each query's labels.
        labels: all of them.
        wanted: the label of the worker that should have been chosen, by query.
        start: the calibration to begin with, contextual or none.

    Raises:
        ConfigError: scikit-learn, which brings the optimiser, is not installed.
        DataError: too few queries, all of one label, or a label that is not in `labels`.

    Source: vector scaling, Guo et al. 2017, arXiv:1706.04599, section 4.2, with one scale for all labels and a normal
        prior around `start`.
    """
    if len(rows) != len(wanted) or len(rows) < MIN_QUERIES:
        raise DataError(f"{len(wanted)} labelled queries; calibrating labels needs {MIN_QUERIES} or more.")
    strangers = sorted(set(wanted) - set(labels))
    if strangers:
        raise DataError(f"The label {strangers[0]!r} is no worker's; there are {', '.join(map(repr, labels))}.")
    if len(set(wanted)) < 2:
        raise DataError(f"All labelled queries are of the label {wanted[0]!r}; label some of other workers.")
    np, minimize = _libraries()
    logs = np.array([[row.known.get(label, row.ceiling) for label in labels] for row in rows])
    at = np.array([labels.index(label) for label in wanted])
    centre = np.array([log(start.scale), *(start.bias.get(label, 0.0) for label in labels)])

    def loss(values: Any) -> tuple[float, Any]:
        scale, shift = exp(values[0]), values - centre
        scores = scale * logs + values[1:]
        scores -= scores.max(axis=1, keepdims=True)
        weights = np.exp(scores)
        shares = weights / weights.sum(axis=1, keepdims=True)
        picked = np.arange(len(at))
        error = shares.copy()
        error[picked, at] -= 1
        gradient = np.concatenate([[scale * (error * logs).sum()], error.sum(axis=0)]) + _PULL * shift
        return float(-np.log(np.maximum(shares[picked, at], 1e-300)).sum() + _PULL * (shift**2).sum() / 2), gradient

    found = minimize(loss, centre, jac=True, method="L-BFGS-B", options={"maxiter": 500})
    scale, *bias = found.x.tolist()
    return LabelCalibration(exp(scale), dict(zip(labels, bias, strict=True)))


def accuracy(rows: Sequence[LabelLogprobs], wanted: Sequence[str], calibration: LabelCalibration | None) -> float:
    """Share of the queries whose likeliest label is the wanted one."""
    return sum(distribution(row, calibration).best == label for row, label in zip(rows, wanted, strict=True)) / len(
        rows
    )


def _libraries() -> tuple[Any, Any]:
    try:
        import numpy as np
        from scipy.optimize import minimize
    except ImportError as exc:
        raise ConfigError("Calibrating labels needs scikit-learn. Install it: pip install 'nearfar[fit]'") from exc
    return np, minimize
