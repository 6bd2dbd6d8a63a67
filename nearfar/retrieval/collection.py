"""A collection: documents in one folder on disk, searched by words, by vectors or by both."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

from nearfar.errors import DataError
from nearfar.types import Chunk, Embedder, Filter, Hit

from .bm25 import BM25
from .chunking import searched_text
from .database import Database, PartRecord
from .dense import Dense, sample_size
from .embedders import close_embedder
from .fusion import reciprocal_rank
from .parts import Part, PartKind, is_whole, read_part

if TYPE_CHECKING:
    from numpy import bool_, float32, int64
    from numpy.typing import NDArray

Mode: TypeAlias = Literal["hybrid", "words", "vectors"]
#: One ranking out of two: by words and by vectors.
Fusion: TypeAlias = Callable[[Sequence[Sequence[Hit]]], list[Hit]]

DATABASE = "collection.db"
PARTS = "parts"

#: Hits that each ranking gives to the fusion.
_DEPTH = 100
#: Filters whose chunks are remembered until the collection changes.
_NUM_FILTERS = 16
#: Vectors that are read from the database at once.
_VECTOR_BATCH = 20_000


@dataclass(frozen=True, slots=True)
class Statistics:
    """What a collection holds."""

    name: str
    embedder: str | None  # None: it is searched by words alone
    dim: int | None
    num_documents: int
    num_chunks: int
    num_bytes: int  # on disk
    failures: tuple[tuple[str, str], ...]  # documents that could not be read, and why


@dataclass(frozen=True, slots=True)
class _Searched:
    """A part and the positions in it that may be found; None: all."""

    part: Part
    alive: NDArray[bool_] | None


@dataclass(frozen=True, slots=True)
class _View:
    """All that is searched, as it was at one moment."""

    version: int
    last_chunk: int
    num_chunks: int
    parts: Mapping[PartKind, tuple[_Searched, ...]]
    refresh_s: float  # how long it took to make


class Collection:
    """Searches one collection; several threads and processes may, also while another one indexes.

    Args:
        folder: made by `CollectionWriter`.
        embedder: of the queries; the one that the collection was made with. It is closed with the collection. None:
            search by words alone.
        fusion: makes one ranking of those by words and by vectors.
        is_far: whether the embedder sends queries away from this machine; who searches must see that they may leave.

    Raises:
        DataError: there is no such collection, or it was made with another embedder.
        ConfigError: nearfar[retrieval] is not installed.
    """

    def __init__(
        self,
        folder: Path,
        embedder: Embedder | None = None,
        *,
        fusion: Fusion = reciprocal_rank,
        is_far: bool = False,
    ) -> None:
        self.folder = folder
        self.is_far = is_far
        self._embedder = embedder
        self._fusion = fusion
        self._database = Database(folder / DATABASE, creates=False)
        try:
            check_embedder(folder, self._database.facts(), embedder)
            self._lock = threading.Lock()
            self._allowed: dict[str, NDArray[int64]] = {}
            self._view = self._look()
        except BaseException:
            self._database.close()
            close_embedder(embedder)
            raise

    @property
    def name(self) -> str:
        """The folder's."""
        return self.folder.name

    def search(
        self,
        query: str,
        *,
        k: int = 10,
        filter: Filter | None = None,  # noqa: A002
        mode: Mode | None = None,
    ) -> list[Hit]:
        """The chunks that bear on the query, best first.

        Args:
            query: in words.
            k: at most so many.
            filter: what their source and metadata must say.
            mode: None: hybrid where the collection has vectors, otherwise words.

        Raises:
            DataError: the collection cannot be read, or it has no vectors and `mode` wants them.
        """
        if self._embedder is None and mode in ("hybrid", "vectors"):
            raise DataError(f"The collection {self.name!r} has no vectors here; search it by words.")
        if k < 1:
            return []
        mode = mode or ("words" if self._embedder is None else "hybrid")
        vector = None
        if self._embedder is not None and mode != "words":
            vector = self._embedder.embed_queries([query])[0]
        has_vector = vector is not None and bool(vector.any())  # a text of unknown words only is like nothing
        with self._lock, self._database.checked():
            view = self._refreshed()
            allowed = self._allowed_ids(filter)
            depth = max(k, _DEPTH) if mode == "hybrid" else k
            rankings = []
            if mode != "vectors":
                rankings.append(self._hits("bm25", lambda depth: _by_words(view, query, depth, allowed), depth))
            if vector is not None and has_vector:
                rankings.append(self._hits("cosine", lambda depth: _by_vectors(view, vector, depth, allowed), depth))
        return self._fusion(rankings)[:k] if mode == "hybrid" else [hit for ranking in rankings for hit in ranking]

    def chunks(self, source: str) -> list[Chunk]:
        """A document's chunks in its order; none where there is no such document."""
        with self._lock, self._database.checked():
            return self._database.document_chunks(source)

    def sources(self) -> list[str]:
        """The documents' names, in order."""
        with self._lock, self._database.checked():
            return self._database.sources()

    def versions(self, sources: Iterable[str]) -> dict[str, str]:
        """The SHA-256 of those of the documents that there are: what was learned of another version is out of date."""
        with self._lock, self._database.checked():
            return self._database.versions(sources)

    def statistics(self) -> Statistics:
        """What the collection holds."""
        with self._lock, self._database.checked():
            facts = self._database.facts()
            return Statistics(
                self.name,
                facts.get("embedder"),
                int(facts["dim"]) if "dim" in facts else None,
                self._database.count("documents"),
                self._database.count("chunks"),
                sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file()),
                tuple(self._database.failures()),
            )

    def close(self) -> None:
        """Closes the files and the embedder. Twice is fine."""
        with self._lock:
            self._database.close()
        close_embedder(self._embedder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- what is searched ---

    def _refreshed(self) -> _View:
        """The view, made anew where the collection has changed, but for at most a tenth of the time."""
        if self._database.version() != self._view.version and self._is_rested():
            self._view = self._look()
            self._allowed.clear()
        return self._view

    def _is_rested(self) -> bool:
        return time.monotonic() - self._looked_at >= 9 * self._view.refresh_s

    def _look(self) -> _View:
        started = time.monotonic()
        for attempt in range(10):
            try:
                with self._database.snapshot():
                    view = self._try_to_look(started, trusts_disk=attempt < 5)
            except FileNotFoundError:  # a writer has just replaced a part: see what with
                continue
            self._looked_at = time.monotonic()
            return view
        raise DataError(
            f"The indexes of the collection {self.name!r} change too fast to be read. Try again.", path=str(self.folder)
        )

    def _try_to_look(self, started: float, *, trusts_disk: bool) -> _View:
        """A view of this moment; what is in a damaged part is indexed in memory, until the next writer repairs it."""
        database = self._database
        version = database.version()
        registered = database.parts()
        records = [record for record in registered if is_whole(self.folder / PARTS / record.name)]
        if trusts_disk and len(records) < len(registered):
            raise FileNotFoundError
        graves = database.graves()
        last = database.last_chunk()
        parts: dict[PartKind, tuple[_Searched, ...]] = {}
        num_chunks = 0
        kinds: tuple[PartKind, ...] = ("bm25",) if self._embedder is None else ("bm25", "dense")
        for kind in kinds:
            ours, found = [], []
            for record in records:
                if record.kind == kind:
                    try:
                        found.append(read_part(self.folder / PARTS / record.name))
                    except DataError:
                        continue
                    ours.append(record)
            for first, end in gaps(ours, last):
                part = make_part(database, kind, database.ids_between(first, end, kind=kind))
                if part is not None:
                    found.append(part)
            parts[kind] = tuple(_Searched(part, _alive(part, graves)) for part in found)
            if kind == "bm25":  # to count the rows would read all of the database
                num_chunks = sum(_num_found(searched) for searched in parts[kind])
        return _View(version, last, num_chunks, parts, time.monotonic() - started)

    def _allowed_ids(self, wanted: Filter | None) -> NDArray[int64] | None:
        if not wanted:
            return None
        key = repr(sorted(wanted.items()))
        if key not in self._allowed:
            if len(self._allowed) >= _NUM_FILTERS:
                del self._allowed[next(iter(self._allowed))]
            self._allowed[key] = self._database.matching(wanted)
        return self._allowed[key]

    def _hits(self, signal: str, rank: Callable[[int], list[tuple[int, float]]], depth: int) -> list[Hit]:
        """The best chunks of a ranking; in the place of what was deleted a moment ago come the next ones."""
        asked = depth
        while True:
            ranking = rank(asked)
            chunks = self._database.chunks([number for number, _ in ranking])
            present = [(chunks[number], score) for number, score in ranking if number in chunks]
            if len(present) >= depth or len(ranking) < asked:
                break
            asked *= 2
        return [
            Hit(chunk, score, {signal: score, f"{signal}_rank": float(place)})
            for place, (chunk, score) in enumerate(present[:depth], 1)
        ]


def read_facts(folder: Path) -> dict[str, str]:
    """What the collection was made with: `embedder`, `dim`, `embedder_key`; none of them where it has no vectors.

    Raises:
        DataError: there is no such collection.
    """
    database = Database(folder / DATABASE, creates=False)
    try:
        with database.checked():
            return database.facts()
    finally:
        database.close()


def check_embedder(folder: Path, facts: Mapping[str, str], embedder: Embedder | None) -> None:
    """Refuses an embedder that the collection was not made with.

    Raises:
        DataError: the vectors of the two have nothing to do with each other.
    """
    made_with = facts.get("embedder")
    if embedder is None or (made_with == embedder.name and facts.get("dim") == str(embedder.dim)):
        return
    told = f"the embedder {made_with!r} ({facts.get('dim')} numbers)" if made_with else "no embedder"
    raise DataError(
        f"The collection {folder.name!r} was made with {told}, not with {embedder.name!r} ({embedder.dim} numbers). "
        f"Use the former, or embed it anew: nearfar index {folder.name} --reembed",
        path=str(folder),
    )


def gaps(parts: Sequence[PartRecord], last_chunk: int) -> list[tuple[int, int]]:
    """The ranges of chunks, up to the last, that none of the parts covers."""
    found = []
    start = 1
    for part in sorted(parts, key=lambda part: part.first_chunk):
        if part.first_chunk > start:
            found.append((start, part.first_chunk - 1))
        start = max(start, part.last_chunk + 1)
    if start <= last_chunk:
        found.append((start, last_chunk))
    return found


def make_part(database: Database, kind: PartKind, ids: Sequence[int]) -> Part | None:
    """An index over the chunks, which are in ascending order; None where there are none."""
    import numpy as np

    if not ids:
        return None
    numbers = np.array(ids, np.int64)
    if kind == "dense":
        return Part(numbers, _dense(database, ids))
    chunks = database.chunks_between(ids[0], ids[-1])
    return Part(numbers, BM25.build(searched_text(chunk) for _, chunk in chunks))


def _dense(database: Database, ids: Sequence[int]) -> Dense:
    """An index over the chunks' vectors, of which no more than a batch and a sample are in memory beside it."""
    import numpy as np

    chosen = np.random.default_rng(0).choice(len(ids), sample_size(len(ids)), replace=False)
    sample = database.vectors([ids[position] for position in np.sort(chosen)])
    index = Dense.begin(sample.shape[1], len(ids), sample)
    del sample
    for start in range(0, len(ids), _VECTOR_BATCH):
        index.add(database.vectors(ids[start : start + _VECTOR_BATCH]))
    return index


def _num_found(searched: _Searched) -> int:
    return len(searched.part.ids) if searched.alive is None else int(searched.alive.sum())


def _alive(part: Part, graves: NDArray[int64]) -> NDArray[bool_] | None:
    import numpy as np

    between = graves[(graves >= part.ids[0]) & (graves <= part.ids[-1])]
    if not len(between):
        return None
    return ~np.isin(part.ids, between, assume_unique=True)


def _mask(searched: _Searched, allowed: NDArray[int64] | None) -> NDArray[bool_] | None:
    import numpy as np

    if allowed is None:
        return searched.alive
    mask = np.isin(searched.part.ids, allowed, assume_unique=True)
    return mask if searched.alive is None else mask & searched.alive


def _by_words(view: _View, query: str, depth: int, allowed: NDArray[int64] | None) -> list[tuple[int, float]]:
    from .bm25 import best

    parts = view.parts["bm25"]
    frequencies: dict[str, int] = {}
    for searched in parts:
        assert isinstance(searched.part.index, BM25)
        for word, frequency in searched.part.index.frequencies(query).items():
            frequencies[word] = frequencies.get(word, 0) + frequency
    found = []
    for searched in parts:
        index = searched.part.index
        assert isinstance(index, BM25)
        scores = index.scores(query, frequencies=frequencies, num_texts=view.num_chunks)
        found.append((searched.part, *best(scores, depth, allowed=_mask(searched, allowed))))
    return _merged(found, depth)


def _by_vectors(
    view: _View, vector: NDArray[float32], depth: int, allowed: NDArray[int64] | None
) -> list[tuple[int, float]]:
    found = []
    for searched in view.parts["dense"]:
        index = searched.part.index
        assert isinstance(index, Dense)
        found.append((searched.part, *index.top(vector, depth, allowed=_mask(searched, allowed))))
    return _merged(found, depth)


def _merged(found: Sequence[tuple[Part, NDArray[int64], NDArray[float32]]], depth: int) -> list[tuple[int, float]]:
    """One ranking of chunks out of the parts', ties by number."""
    entries = [
        (number, score)
        for part, positions, scores in found
        for number, score in zip(part.ids[positions].tolist(), scores.tolist(), strict=True)
    ]
    return sorted(entries, key=lambda entry: (-entry[1], entry[0]))[:depth]
