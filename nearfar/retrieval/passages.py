"""Retrievers over chunks that fit into memory: by words, by vectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from nearfar.types import Chunk, Embedder, Filter, Hit

from .bm25 import BM25, Tokenize
from .dense import Dense
from .filters import matches
from .words import words

if TYPE_CHECKING:
    from numpy import bool_
    from numpy.typing import NDArray


class LexicalRetriever:
    """Finds chunks by BM25. The hit's score is its BM25 score, also under the signal "bm25".

    Args:
        chunks: searched in; ties keep their order.
        k1: see `BM25.build`.
        b: see `BM25.build`.
        tokenize: see `BM25.build`.
    """

    def __init__(
        self, chunks: Sequence[Chunk], *, k1: float = 1.2, b: float = 0.75, tokenize: Tokenize = words
    ) -> None:
        self._chunks = tuple(chunks)
        self._index = BM25.build((chunk.text for chunk in self._chunks), k1=k1, b=b, tokenize=tokenize)

    def search(self, query: str, *, k: int = 10, filter: Filter | None = None) -> list[Hit]:  # noqa: A002
        """The chunks that have a word of the query, best first."""
        positions, scores = self._index.top(query, k, allowed=_allowed(self._chunks, filter))
        return [
            Hit(self._chunks[position], score, {"bm25": score})
            for position, score in zip(positions.tolist(), scores.tolist(), strict=True)
        ]


class DenseRetriever:
    """Finds chunks by the cosine of their vectors. The hit's score is the cosine, also under the signal "cosine".

    Args:
        chunks: searched in.
        embedder: of the chunks and of the queries.
    """

    def __init__(self, chunks: Sequence[Chunk], embedder: Embedder) -> None:
        self._chunks = tuple(chunks)
        self._embedder = embedder
        self._index = Dense.build(embedder.embed([chunk.text for chunk in self._chunks]))

    def search(self, query: str, *, k: int = 10, filter: Filter | None = None) -> list[Hit]:  # noqa: A002
        """The nearest chunks, nearest first."""
        vector = self._embedder.embed_queries([query])[0]
        positions, scores = self._index.top(vector, k, allowed=_allowed(self._chunks, filter))
        return [
            Hit(self._chunks[position], score, {"cosine": score})
            for position, score in zip(positions.tolist(), scores.tolist(), strict=True)
        ]


def _allowed(chunks: Iterable[Chunk], wanted: Filter | None) -> NDArray[bool_] | None:
    import numpy as np

    if not wanted:
        return None
    return np.fromiter((matches(chunk, wanted) for chunk in chunks), bool)
