"""BM25 over texts by position: bm25s builds and stores the postings, and the words' weights may come from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from nearfar.errors import ConfigError

from .words import words

if TYPE_CHECKING:
    from numpy import bool_, float32, int64
    from numpy.typing import NDArray

Tokenize = Callable[[str], list[str]]


class BM25:
    """Postings of texts 0 … n - 1, scored as Lucene does.

    Source: Kamphuis et al. 2020, "Which BM25 do you mean?", the Lucene variant (accurate lengths); Lù 2024,
    arXiv:2407.03618 for storing each posting's score.
    """

    def __init__(self, index: Any, tokenize: Tokenize = words) -> None:
        self._tokenize = tokenize
        self._vocabulary: Mapping[str, int] = index.vocab_dict
        self._data = index.scores["data"]
        self._indices = index.scores["indices"]
        self._starts = index.scores["indptr"]
        self._num_texts = int(index.scores["num_docs"])
        self._index = index

    @classmethod
    def build(cls, texts: Iterable[str], *, k1: float = 1.2, b: float = 0.75, tokenize: Tokenize = words) -> Self:
        """An index of the texts.

        Args:
            texts: read once.
            k1: how fast repetitions of a word stop to count; Lucene's default.
            b: how much long texts are marked down, in [0, 1]; Lucene's default.
            tokenize: what is a word, the same when searching.

        Raises:
            ConfigError: bm25s is not installed.
        """
        vocabulary: dict[str, int] = {}
        ids = [[vocabulary.setdefault(word, len(vocabulary)) for word in tokenize(text)] for text in texts]
        num_texts = len(ids)
        if not any(ids):  # bm25s has no index of no words: give it one that no query has
            ids = [[vocabulary.setdefault("", 0)]]
        index = _bm25s().BM25(k1=k1, b=b, method="lucene")
        index.index((ids, vocabulary), create_empty_token=False, show_progress=False)
        index.scores["num_docs"] = num_texts
        return cls(index, tokenize)

    def __len__(self) -> int:
        return self._num_texts

    def frequencies(self, query: str) -> dict[str, int]:
        """In how many texts each word of the query occurs; words of no text are left out."""
        found = {}
        for word in dict.fromkeys(self._tokenize(query)):
            place = self._vocabulary.get(word)
            if place is not None:
                found[word] = int(self._starts[place + 1] - self._starts[place])
        return found

    def scores(
        self, query: str, *, frequencies: Mapping[str, int] | None = None, num_texts: int = 0
    ) -> NDArray[float32]:
        """Every text's score, 0 where it has no word of the query.

        Args:
            query: its words count as often as they occur.
            frequencies: in how many texts of a larger collection each word occurs, where this index is one of its
                parts; with `num_texts`, the size of that collection, it makes the parts' scores comparable.
            num_texts: only with `frequencies`.
        """
        import numpy as np

        scores = np.zeros(self._num_texts, np.float32)
        for word in self._tokenize(query):
            place = self._vocabulary.get(word)
            if place is None:
                continue
            start, end = int(self._starts[place]), int(self._starts[place + 1])
            if start == end:
                continue
            points = self._data[start:end]
            if frequencies is not None:
                rarity = _idf(frequencies.get(word, end - start), num_texts) / _idf(end - start, self._num_texts)
                points = points * np.float32(rarity)
            scores[self._indices[start:end]] += points  # a text occurs once in a word's postings
        return scores

    def top(
        self, query: str, k: int, *, allowed: NDArray[bool_] | None = None
    ) -> tuple[NDArray[int64], NDArray[float32]]:
        """Positions and scores of the k best texts that have a word of the query, best first.

        Args:
            query: in words.
            k: at most so many.
            allowed: which texts may be found; None: all.
        """
        return best(self.scores(query), k, allowed=allowed)

    def save(self, folder: Path) -> None:
        """Writes the index into the folder, which it makes; `load` maps it into memory."""
        self._index.save(folder, show_progress=False)
        (folder / "texts.json").write_text(json.dumps({"texts": self._num_texts}))

    @classmethod
    def load(cls, folder: Path, *, tokenize: Tokenize = words) -> Self:
        """The index that `save` wrote, its postings left on disk until they are needed."""
        index = _bm25s().BM25.load(folder, mmap=True, load_vocab=True)
        index.scores["num_docs"] = json.loads((folder / "texts.json").read_text())["texts"]
        return cls(index, tokenize)


def best(
    scores: NDArray[float32], k: int, *, allowed: NDArray[bool_] | None = None
) -> tuple[NDArray[int64], NDArray[float32]]:
    """Positions and values of the k largest positive scores, largest first, ties by position."""
    import numpy as np

    found = np.flatnonzero(scores > 0 if allowed is None else (scores > 0) & allowed)
    if len(found) > k:
        least = np.partition(scores[found], len(found) - k)[len(found) - k] if k > 0 else np.inf
        found = found[scores[found] >= least]
    order = np.argsort(-scores[found], kind="stable")[:k]
    positions: NDArray[int64] = found[order].astype(np.int64)
    return positions, scores[positions]


def _idf(frequency: int, num_texts: int) -> float:
    from math import log

    return log(1 + (num_texts - frequency + 0.5) / (frequency + 0.5))


def _bm25s() -> Any:
    try:
        import bm25s
    except ImportError as exc:
        raise ConfigError("BM25 needs bm25s. Install it: pip install 'nearfar[retrieval]'") from exc
    return bm25s
