"""What every predictive router can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, Self

from .queries import RoutingExample, RoutingQuery


class PredictiveRouter(Protocol):
    """Says, before or after a near answer, how much a query would gain from the strong model.

    `files.save` and `files.load` keep a fitted one on disk.
    """

    @property
    def kind(self) -> str:
        """Its name in files and on the command line."""
        ...

    @property
    def reads_signals(self) -> bool:
        """Whether it judges a near answer, and so needs one; else the text alone decides."""
        ...

    @property
    def is_embedding_based(self) -> bool:
        """Whether it embeds the text."""
        ...

    def fit(self, examples: Sequence[RoutingExample]) -> Self:
        """Learns from labelled queries, forgetting what it knew. The same examples give the same router.

        Raises:
            ConfigError: scikit-learn is needed and missing.
            DataError: too few labelled queries, a quality or signal that is no number, or no difference to learn.
        """
        ...

    def predict(self, queries: Sequence[RoutingQuery]) -> list[float]:
        """A score per query; higher means that the strong model adds more. Most routers give the expected gain."""
        ...

    def state(self) -> dict[str, Any]:
        """What was learned, as numbers, texts, arrays and mappings of them."""
        ...
