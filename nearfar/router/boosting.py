"""Gradient boosting over several signals, held to rise or fall with each as it should."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nearfar.errors import ConfigError, DataError
from nearfar.types import Signals

from .evaluation import auroc
from .fits import check
from .scorers import BoostedScorer, Tree

#: Whether an answer with more of a signal is surer (1) or less sure (-1), where that is known; 0: it may be either.
DIRECTIONS = {
    "mean_logprob": 1,
    "min_logprob": 1,
    "first_logprob": 1,
    "logprob_q10": 1,
    "logprob_q25": 1,
    "logprob_q50": 1,
    "logprob_q75": 1,
    "logprob_q90": 1,
    "mean_entropy": -1,
    "max_entropy": -1,
    "mean_margin": 1,
    "min_margin": 1,
    "num_tokens": 0,
}

#: Small trees and slow steps, fixed beforehand and not tuned; benchmarks/calibration.py measures them.
_SETTINGS = {
    "learning_rate": 0.05,
    "max_iter": 150,
    "max_leaf_nodes": 8,
    "min_samples_leaf": 40,
    "l2_regularization": 1.0,
    "random_state": 0,
    "early_stopping": False,
}


def fit_boosted(
    rows: Sequence[Signals],
    outcomes: Sequence[float],
    *,
    signals: Sequence[str],
    directions: Mapping[str, int] | None = None,
) -> BoostedScorer:
    """Boosted trees whose score is monotone in each signal.

    Args:
        rows: signals of the answers.
        outcomes: as many, 0 or 1; one between counts as right from one half on.
        signals: the ones to read.
        directions: 1, -1 or 0 by signal; None, or a signal that is not in it: `DIRECTIONS`, and else the direction in
            which the labels go.

    Raises:
        ConfigError: scikit-learn is not installed.
        DataError: too few labels, right answers or wrong ones; a signal missing, constant or not finite.

    Source: Friedman 2001; the implementation is scikit-learn's, after LightGBM.
    """
    names = tuple(signals)
    check(rows, outcomes, names)
    return boosted(rows, outcomes, names, directions)


def boosted(
    rows: Sequence[Signals],
    outcomes: Sequence[float],
    names: tuple[str, ...],
    directions: Mapping[str, int] | None = None,
) -> BoostedScorer:
    """The boosted scorer, of labels that have been checked."""
    known = {**DIRECTIONS, **(directions or {})}
    signs = [known[name] if name in known else _direction([row[name] for row in rows], outcomes) for name in names]
    table = [[row[name] for name in names] for row in rows]
    classes = [int(outcome >= 0.5) for outcome in outcomes]
    model = _ensemble().HistGradientBoostingClassifier(monotonic_cst=signs, **_SETTINGS)
    model.fit(table, classes)
    scorer = _exported(model, names)
    for row, probability in zip(rows[:100], model.predict_proba(table[:100])[:, 1].tolist(), strict=True):
        score = scorer.score(row)
        if score is None or abs(score - probability) > 1e-9:
            raise DataError(
                "The trees of this version of scikit-learn cannot be read. Fit logistic, or install another."
            )
    return scorer


def _direction(column: Sequence[float], outcomes: Sequence[float]) -> int:
    return 1 if auroc(column, outcomes) >= 0.5 else -1


def _exported(model: Any, names: tuple[str, ...]) -> BoostedScorer:
    """The trees in our own form, so that scoring needs no third-party package."""
    trees = []
    for (predictor,) in model._predictors:
        nodes = predictor.nodes
        trees.append(
            Tree(
                tuple(-1 if node["is_leaf"] else int(node["feature_idx"]) for node in nodes),
                tuple(0.0 if node["is_leaf"] else float(node["num_threshold"]) for node in nodes),
                tuple(int(node["left"]) for node in nodes),
                tuple(int(node["right"]) for node in nodes),
                tuple(float(node["value"]) for node in nodes),
            )
        )
    return BoostedScorer(names, float(model._baseline_prediction.ravel()[0]), tuple(trees))


def _ensemble() -> Any:
    try:
        import sklearn.ensemble as found
    except ImportError as exc:
        raise ConfigError("Fitting needs scikit-learn. Install it: pip install 'nearfar[fit]'") from exc
    return found
