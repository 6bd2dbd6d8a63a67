"""Routers that look at the labelled queries nearest to the query: kNN on the gain, and RouteLLM's weighted ranking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log
from typing import Any, Self

from nearfar.types import Embedder

from .fitting import gains
from .queries import RoutingExample, RoutingQuery

#: Queries compared at once, so that the matrix of similarities stays small.
_BLOCK = 256


class NearestNeighbours:
    """Mean gain of the nearest labelled queries, the nearer the heavier.

    Args:
        embedder: what makes texts comparable.
        num_neighbours: how many are asked; fewer where there are few labels, one in ten at most.
        temperature: cosine distance from the nearest at which a neighbour's weight has fallen to 1/e.
    """

    kind = "knn"
    reads_signals = False
    is_embedding_based = True

    def __init__(self, embedder: Embedder, *, num_neighbours: int = 100, temperature: float = 0.08) -> None:
        self.embedder = embedder
        self.num_neighbours = num_neighbours
        self.temperature = temperature
        self._vectors: Any = None
        self._gains: Any = None

    def fit(self, examples: Sequence[RoutingExample]) -> Self:
        """Remembers labelled queries; see `PredictiveRouter.fit`."""
        import numpy as np

        self._gains = np.array(gains(examples), np.float32)
        self._vectors = self.embedder.embed([example.text for example in examples])
        return self

    def predict(self, queries: Sequence[RoutingQuery]) -> list[float]:
        """Expected gain of each query."""
        import numpy as np

        found: list[float] = []
        k = max(1, min(self.num_neighbours, len(self._gains) // 10))
        vectors = self.embedder.embed([query.text for query in queries])
        for start in range(0, len(queries), _BLOCK):
            similarity = vectors[start : start + _BLOCK] @ self._vectors.T
            nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
            close = np.take_along_axis(similarity, nearest, 1)
            weights = np.exp((close - close.max(axis=1, keepdims=True)) / self.temperature)
            found += ((weights * self._gains[nearest]).sum(axis=1) / weights.sum(axis=1)).tolist()
        return found

    def state(self) -> dict[str, Any]:
        """Plain values that `from_state` takes."""
        return {
            "num_neighbours": self.num_neighbours,
            "temperature": self.temperature,
            "vectors": self._vectors,
            "gains": self._gains,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any], embedder: Embedder) -> Self:
        """The router that `state` describes."""
        router = cls(embedder, num_neighbours=state["num_neighbours"], temperature=state["temperature"])
        router._vectors, router._gains = state["vectors"], state["gains"]
        return router


class SimilarityWeighted:
    """RouteLLM's similarity-weighted ranking: Bradley-Terry strengths refitted for each query.

    Each labelled query is a match between the two models, won by the better answer and shared where they are equal. It
    weighs 10 to the power of 1 + its similarity to the query, relative to the largest. For two models the strengths
    that fit such weights best have a closed form: the log-odds of the strong model's share of the weights.

    Source: Ong et al. 2024, arXiv:2406.18665, section 4.2.
    """

    kind = "sw-ranking"
    reads_signals = False
    is_embedding_based = True

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self._vectors: Any = None
        self._wins: Any = None  # of the strong model: 1, 0, or one half

    def fit(self, examples: Sequence[RoutingExample]) -> Self:
        """Remembers labelled queries; see `PredictiveRouter.fit`."""
        import numpy as np

        self._wins = ((np.sign(gains(examples)) + 1) / 2).astype(np.float32)
        self._vectors = self.embedder.embed([example.text for example in examples])
        return self

    def predict(self, queries: Sequence[RoutingQuery]) -> list[float]:
        """The strong model's log-odds of winning, per query."""
        import numpy as np

        found: list[float] = []
        vectors = self.embedder.embed([query.text for query in queries])
        for start in range(0, len(queries), _BLOCK):
            similarity = vectors[start : start + _BLOCK] @ self._vectors.T
            largest = np.maximum(similarity.max(axis=1, keepdims=True), 1e-6)
            weights = 10.0 ** (1 + similarity / largest)
            share = (weights * self._wins).sum(axis=1) / weights.sum(axis=1)
            found += [log(max(p, 1e-9) / max(1 - p, 1e-9)) for p in share.tolist()]
        return found

    def state(self) -> dict[str, Any]:
        """Plain values that `from_state` takes."""
        return {"vectors": self._vectors, "wins": self._wins}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], embedder: Embedder) -> Self:
        """The router that `state` describes."""
        router = cls(embedder)
        router._vectors, router._wins = state["vectors"], state["wins"]
        return router
