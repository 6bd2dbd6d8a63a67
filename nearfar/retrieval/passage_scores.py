"""Scores of given passages for a query, without an index: by vectors, by words, or by both."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, sqrt

from nearfar.types import Embedder

from .bm25 import BM25


class CosineScores:
    """A `Reranker` by the cosines of the query and the passages, not below 0."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """One score per text, in [0, 1]."""
        if not texts:
            return []
        cosines = self._embedder.embed(texts) @ self._embedder.embed_queries([query])[0]
        return [max(0.0, min(1.0, cosine)) for cosine in cosines.tolist()]


class HybridScores:
    """A `Reranker` by the sum of the standard scores of BM25 and of the cosines.

    The scores compare passages of one call alone: words are as rare as they are among these passages. On SciFact the
    sum beats both of its parts; see benchmarks/results.
    """

    def __init__(self, embedder: Embedder) -> None:
        self._cosines = CosineScores(embedder)

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """One score per text, in (0, 1): the logistic function of the sum."""
        if not texts:
            return []
        by_words = _standard([float(score) for score in BM25.build(texts).scores(query)])
        by_vectors = _standard(self._cosines.scores(query, texts))
        return [1 / (1 + exp(-(a + b))) for a, b in zip(by_words, by_vectors, strict=True)]


def _standard(values: Sequence[float]) -> list[float]:
    """The values less their mean, in standard deviations; zeros where all are equal."""
    mean = sum(values) / len(values)
    deviation = sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    return [(value - mean) / deviation if deviation > 1e-9 else 0.0 for value in values]
