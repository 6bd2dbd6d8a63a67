"""Routers made of routers: the mean of several, and any router fitted fold by fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from .fitting import fold_numbers
from .protocol import PredictiveRouter
from .queries import RoutingExample, RoutingQuery


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
    """The mean of several routers' expected gains.

    An equal mean has no weights to overfit, and members that err differently correct each other.

    Args:
        members: routers that give the expected gain.
        kind: its name in files and on the command line.
    """

    def __init__(self, members: Sequence[PredictiveRouter], *, kind: str = "blend") -> None:
        self.kind = kind
        self.members = tuple(members)

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
        for member in self.members:
            member.fit(examples)
        return self

    def predict(self, queries: Sequence[RoutingQuery]) -> list[float]:
        """Expected gain of each query."""
        columns = [member.predict(queries) for member in self.members]
        return [sum(row) / len(row) for row in zip(*columns, strict=True)]

    def state(self) -> dict[str, Any]:
        """Plain values that `from_state` takes."""
        return {"kind": self.kind, "members": [{"kind": each.kind, "state": each.state()} for each in self.members]}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], members: Sequence[PredictiveRouter]) -> Self:
        """The router that `state` describes, of members made from its `members`."""
        return cls(members, kind=state["kind"])
