"""A corpus in memory and its retriever: candidates by words and vectors, with the signals that a reranker weighs."""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import TYPE_CHECKING, Literal

from nearfar.types import Chunk, Embedder, Filter, Hit

from .bm25 import BM25
from .chunking import searched_text
from .filters import matches
from .words import words

if TYPE_CHECKING:
    from numpy import bool_, float32, int64
    from numpy.typing import NDArray

#: What the titles' cosine counts beside the texts' two standardised scores: SciFact's training queries say that
#: anything from 0.2 to 0.5 does as well.
_TITLE_WEIGHT = 0.3


class Corpus:
    """Finds chunks by their words and their meaning together; a `Retriever`.

    A hit's score is the sum of its standardised BM25 score and cosine. Its signals:

    - bm25 of its text;
    - cosine of its text's vector, title_cosine of its title's;
    - coverage: the share of the query's words, each by its rarity, that the text has.

    It compares a query with every chunk: for tens of thousands, where a collection on disk is for millions.

    Args:
        chunks: searched in.
        embedder: of the chunks and the queries.
        k1: see `BM25.build`.
        b: see `BM25.build`.
    """

    def __init__(self, chunks: Sequence[Chunk], embedder: Embedder, *, k1: float = 1.2, b: float = 0.75) -> None:
        self.chunks = tuple(chunks)
        self.embedder = embedder
        texts = [searched_text(chunk) for chunk in self.chunks]
        titles = [str(chunk.metadata.get("title") or "") for chunk in self.chunks]
        self._words = [frozenset(words(text)) for text in texts]
        self.bm25 = BM25.build(texts, k1=k1, b=b)
        self.vectors = embedder.embed(texts)
        self.title_vectors = embedder.embed(titles)
        self.places = {chunk.id: place for place, chunk in enumerate(self.chunks)}

    def search(self, query: str, *, k: int = 10, filter: Filter | None = None) -> list[Hit]:  # noqa: A002
        """The best chunks by the sum of their standardised scores."""
        return self.candidates(query, depth=k, filter=filter)

    def candidates(
        self,
        query: str,
        *,
        depth: int = 100,
        extra: Sequence[str] = (),
        filter: Filter | None = None,  # noqa: A002
    ) -> list[Hit]:
        """The best `depth` chunks, and those with the ids in `extra`, with all signals, best first."""
        import numpy as np

        if not self.chunks:
            return []
        vector = self.embedder.embed_queries([query])[0]
        by_words = self.bm25.scores(query)
        cosines, title_cosines = self.vectors @ vector, self.title_vectors @ vector
        scores = standardised(by_words) + standardised(cosines) + _TITLE_WEIGHT * standardised(title_cosines)
        allowed = np.fromiter((matches(chunk, filter) for chunk in self.chunks), bool) if filter else None
        order = _best(scores, depth, allowed)
        more = [place for name in extra if (place := self.places.get(name)) is not None]
        if allowed is not None:
            more = [place for place in more if allowed[place]]
        chosen = list(dict.fromkeys([*order.tolist(), *more]))
        signals = {"bm25": by_words[chosen], "cosine": cosines[chosen], "title_cosine": title_cosines[chosen]}
        rarity = self.rarity(query)
        hits = []
        for row, place in enumerate(chosen):
            of_hit = {name: float(values[row]) for name, values in signals.items()}
            of_hit["coverage"] = _share(rarity, self._words[place])
            hits.append(Hit(self.chunks[place], float(scores[place]), of_hit))
        return sorted(hits, key=lambda hit: -hit.score)

    def search_by(self, query: str, signal: Literal["bm25", "cosine"], *, k: int = 10) -> list[Hit]:
        """The best chunks by one signal alone: the baselines."""
        by_words = signal == "bm25"
        scores = self.bm25.scores(query) if by_words else self.vectors @ self.embedder.embed_queries([query])[0]
        order = _best(scores, k, None).tolist()
        return [Hit(self.chunks[place], float(scores[place]), {signal: float(scores[place])}) for place in order]

    def rarity(self, text: str) -> dict[str, float]:
        """The inverse document frequency of each of the text's words that the corpus has (Lucene's)."""
        n = len(self.chunks)
        return {word: log(1 + (n - count + 0.5) / (count + 0.5)) for word, count in self.bm25.frequencies(text).items()}

    def words_of(self, place: int) -> frozenset[str]:
        """The words of the chunk at this place, each once."""
        return self._words[place]


def standardised(scores: NDArray[float32]) -> NDArray[float32]:
    """The scores with mean 0 and standard deviation 1; all 0 where they are all the same."""
    spread = scores.std()
    centred: NDArray[float32] = scores - scores.mean()
    return centred / spread if spread > 0 else centred


def _best(scores: NDArray[float32], k: int, allowed: NDArray[bool_] | None) -> NDArray[int64]:
    import numpy as np

    if allowed is not None:
        scores = np.where(allowed, scores, -np.inf)
    order = np.argsort(-scores, kind="stable")[: max(k, 0)]
    found: NDArray[int64] = order[np.isfinite(scores[order])]
    return found


def _share(rarity: dict[str, float], found: frozenset[str]) -> float:
    total = sum(rarity.values())
    return sum(rarity[word] for word in rarity.keys() & found) / total if total > 0 else 0.0
