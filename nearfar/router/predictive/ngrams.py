"""Ridge regression of the gain on the words and word pairs of a query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, Self

from .fitting import gains, require_sklearn
from .queries import RoutingExample, RoutingQuery


class NgramRidge:
    """Expected gain as a sum of weights, one a word or word pair.

    Words count once however often they occur, weighted by their rarity (idf), and the query's vector has length 1.
    Predicting is a look-up per word, in plain Python.

    Args:
        penalty: of the squared weights; 8 is the best of 4, 8 and 12 on `routellm_mmlu` (benchmarks/routing.py).
        min_queries: a word pair must occur in as many training queries.
    """

    kind = "tfidf-ridge"
    reads_signals = False
    is_embedding_based = False

    def __init__(self, *, penalty: float = 8.0, min_queries: int = 2) -> None:
        self.penalty = penalty
        self.min_queries = min_queries
        self._intercept = 0.0
        self._idf: dict[str, float] = {}
        self._weights: dict[str, float] = {}  # idf times coefficient

    def fit(self, examples: Sequence[RoutingExample]) -> Self:
        """Learns from labelled queries; see `PredictiveRouter.fit`."""
        require_sklearn()
        import numpy as np
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import Ridge

        targets = gains(examples)
        vectorizer = TfidfVectorizer(
            analyzer=lambda query: query.grams, min_df=self.min_queries, binary=True, dtype=np.float64
        )
        try:
            matrix = vectorizer.fit_transform(examples)
        except ValueError:  # no word occurs often enough
            self._intercept, self._idf, self._weights = float(np.mean(targets)), {}, {}
            return self
        ridge = Ridge(alpha=self.penalty, solver="sparse_cg", tol=1e-3).fit(matrix, targets)
        names = vectorizer.get_feature_names_out().tolist()
        self._intercept = float(ridge.intercept_)
        self._idf = dict(zip(names, vectorizer.idf_.tolist(), strict=True))
        self._weights = dict(zip(names, (vectorizer.idf_ * ridge.coef_).tolist(), strict=True))
        return self

    def predict(self, queries: Sequence[RoutingQuery]) -> list[float]:
        """Expected gain of each query."""
        return [self._one(query) for query in queries]

    def _one(self, query: RoutingQuery) -> float:
        total = length = 0.0
        idf, weights = self._idf, self._weights
        for gram in query.grams:
            rarity = idf.get(gram)
            if rarity is not None:
                length += rarity * rarity
                total += weights[gram]
        return self._intercept + (total / length**0.5 if length else 0.0)

    def state(self) -> dict[str, Any]:
        """Plain values that `from_state` takes."""
        import numpy as np

        return {
            "penalty": self.penalty,
            "min_queries": self.min_queries,
            "intercept": self._intercept,
            "grams": "\n".join(self._idf),
            "idf": np.array([*self._idf.values()], np.float32),
            "weights": np.array([*self._weights.values()], np.float32),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The router that `state` describes."""
        router = cls(penalty=state["penalty"], min_queries=state["min_queries"])
        names = state["grams"].split("\n") if state["grams"] else []
        router._intercept = state["intercept"]
        router._idf = dict(zip(names, state["idf"].tolist(), strict=True))
        router._weights = dict(zip(names, state["weights"].tolist(), strict=True))
        return router


class WordTopics:
    """Queries as points in a space of topics: a truncated SVD of their words' tf-idf vectors (LSA).

    Source: Deerwester et al. 1990, "Indexing by latent semantic analysis".
    """

    def __init__(self, num_topics: int) -> None:
        self.num_topics = num_topics
        self._words: dict[str, int] = {}
        self._components: Any = None  # (words, topics), float32, each row times the word's idf
        self._idf: Any = None

    def fit(self, queries: Sequence[RoutingQuery]) -> Self:
        """Learns the topics."""
        import numpy as np
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.utils.extmath import randomized_svd

        counts: dict[str, int] = {}
        for word in chain.from_iterable(query.words for query in queries):
            counts[word] = counts.get(word, 0) + 1
        kept = sorted(word for word, count in counts.items() if count >= 3)
        num_topics = min(self.num_topics, len(kept) - 1, len(queries) - 1)
        if num_topics < 1:
            self._words, self._components = {}, np.zeros((0, 0), np.float32)
            self._idf = np.zeros(0, np.float32)
            return self
        vectorizer = TfidfVectorizer(analyzer=lambda query: query.words, vocabulary=kept, binary=True)
        matrix = vectorizer.fit_transform(queries)
        _, _, components = randomized_svd(matrix, num_topics, n_iter=5, random_state=0)
        self._words = {word: i for i, word in enumerate(kept)}
        self._idf = vectorizer.idf_.astype(np.float32)
        self._components = (components * vectorizer.idf_).T.astype(np.float32)
        return self

    def transform(self, query: RoutingQuery) -> list[float]:
        """The query's coordinates; zeros where it has no known word."""
        known = [index for index in map(self._words.get, query.words) if index is not None]
        if not known:
            return [0.0] * int(self._components.shape[1])
        idf = self._idf[known]
        topics: list[float] = (self._components[known].sum(axis=0) / float(idf @ idf) ** 0.5).tolist()
        return topics

    def state(self) -> dict[str, Any]:
        """Plain values that `from_state` takes."""
        return {
            "num_topics": self.num_topics,
            "words": "\n".join(self._words),
            "idf": self._idf,
            "components": self._components,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The topics that `state` describes."""
        topics = cls(state["num_topics"])
        words = state["words"].split("\n") if state["words"] else []
        topics._words = {word: i for i, word in enumerate(words)}
        topics._idf = state["idf"]
        topics._components = state["components"]
        return topics
