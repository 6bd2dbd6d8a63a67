"""Routers made of routers: a weighted sum of several, and any router fitted fold by fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from .fitting import fold_numbers, gains
from .protocol import PredictiveRouter
from .queries import RoutingExample, RoutingQuery

#: Folds inside the training data in which a blend's members are weighed.
_NUM_INNER_FOLDS = 4

#: What the pull towards equal weights counts beside a member's own sum of squares; from 0 to 0.3 all are as good.
_PULL = 0.1


def out_of_fold(
    router: PredictiveRouter, examples: Sequence[RoutingExample], num_folds: int, *, seed: int = 0
) -> list[float]:
    """Each query's prediction by `router` fitted without its fold; a question is in one fold only.

    The router is fitted several times and left fitted without the last fold.

    Raises:
        DataError: see `PredictiveRouter.fit`; each fold's rest must allow a fit.
    """
    folds = fold_numbers(examples, num_folds, seed=seed)
    found = [0.0] * len(examples)
    for fold in sorted(set(folds)):
        inside = [i for i, each in enumerate(folds) if each == fold]
        router.fit([example for example, each in zip(examples, folds, strict=True) if each != fold])
        for i, value in zip(inside, router.predict([examples[i] for i in inside]), strict=True):
            found[i] = value
    return found


class Blend:
    """A weighted sum of several routers' expected gains, the weights fitted to what each says of queries unseen by it.

    Non-negative least squares of the gain on the members' out-of-fold predictions, drawn a little to equal weights;
    below `least_weighted` labelled queries the weights are equal. Which member is best differs from table to table, and
    a poor one in an equal mean costs more than the weights do (benchmarks/routing.py).

    Args:
        members: routers that give the expected gain.
        kind: its name in files and on the command line.
        least_weighted: labelled queries from which the weights are fitted.

    Source: Breiman 1996, "Stacked regressions".
    """

    def __init__(self, members: Sequence[PredictiveRouter], *, kind: str = "blend", least_weighted: int = 200) -> None:
        self.kind = kind
        self.members = tuple(members)
        self.least_weighted = least_weighted
        self.weights: tuple[float, ...] = (1 / len(self.members),) * len(self.members)
        self.intercept = 0.0

    @property
    def reads_signals(self) -> bool:
        """Whether a member does."""
        return any(member.reads_signals for member in self.members)

    @property
    def is_embedding_based(self) -> bool:
        """Whether a member is."""
        return any(member.is_embedding_based for member in self.members)

    def fit(self, examples: Sequence[RoutingExample]) -> Self:
        """Learns from labelled queries; see `PredictiveRouter.fit`."""
        self.weights, self.intercept = (1 / len(self.members),) * len(self.members), 0.0
        if len(self.members) > 1 and len(examples) >= self.least_weighted:
            predicted = [out_of_fold(member, examples, _NUM_INNER_FOLDS, seed=2) for member in self.members]
            self.weights, self.intercept = _stacked(predicted, gains(examples))
        for member in self.members:
            member.fit(examples)
        return self

    def predict(self, queries: Sequence[RoutingQuery]) -> list[float]:
        """Expected gain of each query."""
        columns = [member.predict(queries) for member in self.members]
        return [
            self.intercept + sum(weight * value for weight, value in zip(self.weights, row, strict=True))
            for row in zip(*columns, strict=True)
        ]

    def state(self) -> dict[str, Any]:
        """Plain values that `from_state` takes."""
        return {
            "kind": self.kind,
            "members": [{"kind": each.kind, "state": each.state()} for each in self.members],
            "weights": list(self.weights),
            "intercept": self.intercept,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], members: Sequence[PredictiveRouter]) -> Self:
        """The router that `state` describes, of members made from its `members`."""
        router = cls(members, kind=state["kind"])
        router.weights, router.intercept = tuple(state["weights"]), state["intercept"]
        return router


def _stacked(predicted: Sequence[Sequence[float]], targets: Sequence[float]) -> tuple[tuple[float, ...], float]:
    """Weights of the members, none below 0, and the intercept."""
    import numpy as np
    from scipy.optimize import nnls

    matrix, wanted = np.array(predicted).T, np.array(targets)
    centred, num_members = matrix - matrix.mean(axis=0), matrix.shape[1]
    pull = (_PULL * float((centred**2).sum()) / num_members) ** 0.5
    rows = np.vstack([centred, pull * np.eye(num_members)])
    weights, _ = nnls(rows, np.append(wanted - wanted.mean(), np.full(num_members, pull / num_members)))
    intercept = float(wanted.mean() - matrix.mean(axis=0) @ weights)
    return tuple(weights.tolist()), intercept
