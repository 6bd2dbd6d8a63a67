"""BM25 over texts by position: bm25s computes the postings, and a larger collection's frequencies may weigh them."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from math import log
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from nearfar.errors import ConfigError

from .words import words

if TYPE_CHECKING:
    from numpy import bool_, float32, int64
    from numpy.typing import NDArray

Tokenize = Callable[[str], list[str]]


class _Places(Protocol):
    """Where a word's postings are; a dictionary is one."""

    def get(self, word: str, /) -> int | None: ...


class BM25:
    """Postings of texts 0 … n - 1, scored as Lucene does.

    Source: Kamphuis et al. 2020, "Which BM25 do you mean?", the Lucene variant (accurate lengths); Lù 2024,
    arXiv:2407.03618 for storing each posting's score.
    """

    def __init__(self, places: _Places, arrays: Mapping[str, Any], num_texts: int, tokenize: Tokenize) -> None:
        self._places = places
        self._arrays = arrays
        self._points, self._texts, self._starts, self._rarities = (arrays[name] for name in _ARRAYS)
        self._num_texts = num_texts
        self._tokenize = tokenize

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
        import numpy as np

        places: dict[str, int] = {}
        ids = [[places.setdefault(word, len(places)) for word in tokenize(text)] for text in texts]
        num_texts = len(ids)
        if not places:  # bm25s has no index of no words: give it one that no query has
            ids = [[places.setdefault("", 0)]]
        index = _bm25s().BM25(k1=k1, b=b, method="lucene")
        index.index((ids, places), create_empty_token=False, show_progress=False)
        starts = index.scores["indptr"].astype(np.int64)
        frequencies = np.diff(starts)
        rarities = np.log(1 + (len(ids) - frequencies + 0.5) / (frequencies + 0.5)).astype(np.float32)
        arrays = (index.scores["data"], index.scores["indices"], starts, rarities)
        return cls(places, dict(zip(_ARRAYS, arrays, strict=True)), num_texts, tokenize)

    def __len__(self) -> int:
        return self._num_texts

    def frequencies(self, query: str) -> dict[str, int]:
        """In how many texts each word of the query occurs; words of no text are left out."""
        found = {}
        for word in dict.fromkeys(self._tokenize(query)):
            place = self._places.get(word)
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
            place = self._places.get(word)
            if place is None:
                continue
            start, end = int(self._starts[place]), int(self._starts[place + 1])
            points = self._points[start:end]
            if frequencies is not None:
                frequency = frequencies.get(word, end - start)
                rarity = log(1 + (num_texts - frequency + 0.5) / (frequency + 0.5))
                points = points * np.float32(rarity / self._rarities[place])
            scores[self._texts[start:end]] += points  # a text occurs once in a word's postings
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

    def without(self, positions: NDArray[int64]) -> Self:
        """The index with nothing left of these texts, not even their words; the others keep position and score."""
        import numpy as np

        gone = np.zeros(self._num_texts, bool)
        gone[positions] = True
        stays = ~gone[self._texts]
        starts = np.concatenate([[0], np.cumsum(stays)])[self._starts]
        has_texts = np.diff(starts) > 0
        places = {
            word: place
            for place, word in enumerate(
                word for word, old in sorted(self._words(), key=lambda entry: entry[1]) if has_texts[old]
            )
        }
        arrays = (
            self._points[stays],
            self._texts[stays],
            np.concatenate([starts[:-1][has_texts], starts[-1:]]),
            self._rarities[has_texts],
        )
        return type(self)(places, dict(zip(_ARRAYS, arrays, strict=True)), self._num_texts, self._tokenize)

    def save(self, folder: Path) -> None:
        """Writes the index into the folder; `load` maps it into memory."""
        import numpy as np

        folder.mkdir(parents=True, exist_ok=True)
        for name, array in self._arrays.items():
            np.save(folder / f"{name}.npy", array)
        entries = sorted((word.encode(), place) for word, place in self._words())
        lengths = [len(word) for word, _ in entries]
        (folder / "words.bin").write_bytes(b"".join(word for word, _ in entries))
        np.save(folder / "word_ends.npy", np.cumsum([0, *lengths]))
        np.save(folder / "word_places.npy", np.array([place for _, place in entries], np.int64))
        np.save(folder / "num_texts.npy", np.array(self._num_texts))

    @classmethod
    def load(cls, folder: Path, *, tokenize: Tokenize = words) -> Self:
        """The index that `save` wrote, its words and postings left on disk until they are needed."""
        import numpy as np

        arrays = {name: _mapped(folder / f"{name}.npy") for name in _ARRAYS}
        return cls(_SortedWords(folder), arrays, int(np.load(folder / "num_texts.npy")), tokenize)

    def _words(self) -> Iterable[tuple[str, int]]:
        places: Any = self._places
        entries: Iterable[tuple[str, int]] = places.items()
        return entries


#: The postings' scores and texts, where each word's begin, and the rarity that its scores were computed with.
_ARRAYS = ("points", "texts", "starts", "rarities")


class _SortedWords:
    """The vocabulary of a saved index, searched on disk: nothing is read when the index is opened."""

    def __init__(self, folder: Path) -> None:
        import numpy as np

        self._ends = _mapped(folder / "word_ends.npy")
        self._places = _mapped(folder / "word_places.npy")
        self._bytes: Any = np.memmap(folder / "words.bin", np.uint8, "r") if self._ends[-1] else np.empty(0, np.uint8)

    def get(self, word: str, /) -> int | None:
        wanted = word.encode(errors="surrogatepass")
        found = bisect_left(range(len(self._places)), wanted, key=self._word)
        return int(self._places[found]) if found < len(self._places) and self._word(found) == wanted else None

    def items(self) -> Iterable[tuple[str, int]]:
        return ((self._word(number).decode(), int(place)) for number, place in enumerate(self._places))

    def _word(self, number: int) -> bytes:
        word: bytes = self._bytes[self._ends[number] : self._ends[number + 1]].tobytes()
        return word


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


def _mapped(path: Path) -> Any:
    """The array on disk, as a plain view of it: slicing numpy's own memory maps costs ten times as much."""
    import numpy as np

    try:
        return np.load(path, mmap_mode="r").view(np.ndarray)
    except ValueError:  # an empty array has nothing to map
        return np.load(path)


def _bm25s() -> Any:
    try:
        import bm25s
    except ImportError as exc:
        raise ConfigError("BM25 needs bm25s. Install it: pip install 'nearfar[retrieval]'") from exc
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it asks for DEBUG when it is imported
    return bm25s
