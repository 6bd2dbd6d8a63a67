"""Writing a collection: one writer at a time, whole documents at a time, and indexes that follow the documents.

SQLite has the truth: a document is in the collection once its transaction is committed, and gone once its deletion is.
The indexes are made of it in parts, each written whole and then registered; what no part covers is indexed in memory by
whoever searches. So a kill at any moment costs work, never a document.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from nearfar.errors import DataError
from nearfar.types import Chunk, Embedder

from .bm25 import BM25
from .chunking import searched_text
from .collection import DATABASE, PARTS, check_embedder, gaps, make_part
from .database import Database, DocumentRecord, PartRecord
from .embedders import close_embedder
from .parts import Part, PartKind, is_readable, read_part, remove_parts, write_part

if TYPE_CHECKING:
    from numpy import int64
    from numpy.typing import NDArray

#: Chunks that are embedded and committed at once: enough for a batch of a model, few enough to lose to a kill.
_BATCH = 256
#: Chunks without a part after which the writer makes one, so that whoever searches meanwhile indexes no more in memory.
_UNSEALED = 20_000
#: Facts of a collection that has vectors.
_OF_VECTORS = ("embedder", "dim", "embedder_key")
#: Chunks in one part of BM25 at most: bm25s needs about 1 GB to build an index of a million.
_MAX_WORDS_PART = 250_000


class CollectionWriter:
    """The only writer of a collection; close it to let another one in.

    Args:
        folder: made if need be.
        embedder: of the chunks, closed with the writer; None: a collection that is searched by words alone.
        creates: make the collection where there is none.
        reembeds: put this embedder in the place of the one that the collection was made with; None drops its vectors.
        embedder_key: the embedder's name in the config, kept for whoever opens the collection.

    Raises:
        DataError: another process is writing, there is no such collection, it was made with another embedder, or the
            disk is full.
    """

    def __init__(
        self,
        folder: Path,
        embedder: Embedder | None,
        *,
        creates: bool = True,
        reembeds: bool = False,
        embedder_key: str = "",
    ) -> None:
        self.folder = folder
        self._embedder = embedder
        self._embedder_key = embedder_key
        self._queue: list[tuple[DocumentRecord, Sequence[Chunk]]] = []
        self._num_queued = 0
        if not creates and not (folder / DATABASE).is_file():
            raise DataError(
                f"There is no collection {folder.name!r}. Make it: nearfar index {folder.name} PATH", path=str(folder)
            )
        self._lock = _locked(folder)
        try:
            self._database = Database(folder / DATABASE, creates=True)
        except BaseException:
            os.close(self._lock)
            raise
        try:
            self._begin(reembeds=reembeds)
        except BaseException:
            self.close()
            raise

    def put(self, record: DocumentRecord, chunks: Sequence[Chunk]) -> None:
        """Adds a document, in the place of the one of its name if there was one; committed in batches.

        Raises:
            DataError: the disk is full; what was committed before stays.
        """
        self._queue.append((record, chunks))
        self._num_queued += len(chunks)
        if self._num_queued >= _BATCH:
            self.flush()

    def touch(self, record: DocumentRecord) -> None:
        """Notes a document's new time; its content is what it was."""
        with self._database.transaction():
            self._database.touch(record)

    def delete(self, sources: Iterable[str]) -> int:
        """How many of the documents there were; none of them is found any more, by nobody.

        Their texts and vectors are overwritten in the database at once, and in the indexes by the next `finish`.
        """
        self.flush()
        num_deleted = 0
        with self._database.transaction():
            for source in sources:
                if self._database.document(source) is not None:
                    self._database.delete(source)
                    num_deleted += 1
        return num_deleted

    def flush(self) -> None:
        """Embeds and commits what was put."""
        if not self._queue:
            return
        batch, self._queue, self._num_queued = self._queue, [], 0
        vectors = None
        if self._embedder is not None:
            vectors = self._embedder.embed([searched_text(chunk) for _, chunks in batch for chunk in chunks])
        start = 0
        with self._database.transaction():
            for record, chunks in batch:
                end = start + len(chunks)
                self._database.put(record, chunks, None if vectors is None else vectors[start:end])
                start = end
        self._num_unsealed += start
        if self._num_unsealed >= _UNSEALED:
            self._seal()

    def finish(self) -> None:
        """Brings the indexes up to date, and overwrites in them what was deleted."""
        self.flush()
        self._embed_missing()
        self._seal()
        self._merge()
        with self._database.checked():
            self._database.forget_log()

    def document(self, source: str) -> DocumentRecord | None:
        """The document of this name as it was last committed."""
        with self._database.checked():
            return self._database.document(source)

    def sources(self) -> list[str]:
        """The documents' names in order."""
        with self._database.checked():
            return self._database.sources()

    def sources_under(self, folder: str) -> list[str]:
        """The documents that come from files under a folder, in order."""
        with self._database.checked():
            return self._database.sources_under(folder)

    def failures(self) -> dict[str, str]:
        """What could not be read when it was last tried, and why."""
        with self._database.checked():
            return dict(self._database.failures())

    def note_failures(self, root: str, failures: Iterable[tuple[str, str]]) -> None:
        """Puts what could not be read under a root in the place of what could not be read before."""
        with self._database.transaction():
            self._database.clear_failures(root)
            for source, reason in failures:
                self._database.set_failure(source, root, reason)

    def close(self) -> None:
        """Lets another writer in; what was put and not committed is dropped. Twice is fine."""
        self._database.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        close_embedder(self._embedder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- the indexes ---

    @property
    def _kinds(self) -> tuple[PartKind, ...]:
        return ("bm25",) if self._embedder is None else ("bm25", "dense")

    def _begin(self, *, reembeds: bool) -> None:
        """Checks what is there, and clears up after a writer that was killed."""
        database, embedder = self._database, self._embedder
        with database.checked():
            facts = database.facts()
        made = {}
        if embedder is not None:
            made = {"embedder": embedder.name, "dim": str(embedder.dim), "embedder_key": self._embedder_key}
        if "made" not in facts:
            with database.transaction():
                database.set_facts({"made": "1", **made})
        elif reembeds:
            with database.transaction():
                database.forget_vectors()
                database.forget_facts(_OF_VECTORS)
                database.set_facts(made)
        elif embedder is None and "embedder" in facts:
            raise DataError(
                f"The collection {self.folder.name!r} has vectors of {facts['embedder']!r}; index it with that one, or "
                f"drop them: nearfar index {self.folder.name} --reembed --embedder none",
                path=str(self.folder),
            )
        else:
            check_embedder(self.folder, facts, embedder)
        with database.checked():
            records = database.parts()
        broken = [record.name for record in records if not is_readable(self.folder / PARTS / record.name)]
        if broken:
            with database.transaction():
                database.replace_parts(broken, [])
        self._remove_unused()
        self._num_unsealed = 0

    def _embed_missing(self) -> None:
        """Embeds what has no vector: a change of the embedder was begun."""
        if self._embedder is None:
            return
        while True:
            with self._database.checked():
                ids = self._database.unembedded(_BATCH)
                chunks = self._database.chunks(ids)
            if not ids:
                return
            vectors = self._embedder.embed([searched_text(chunks[number]) for number in ids])
            with self._database.transaction():
                self._database.put_vectors(ids, vectors)

    def _seal(self) -> None:
        """Makes parts of what no part covers."""
        self._num_unsealed = 0
        for kind in self._kinds:
            with self._database.checked():
                ours = [record for record in self._database.parts() if record.kind == kind]
                uncovered = gaps(ours, self._database.last_chunk())
            for first, last in uncovered:
                self._seal_range(kind, first, last)

    def _seal_range(self, kind: PartKind, first: int, last: int) -> None:
        while True:
            with self._database.checked():
                ids = self._database.ids_between(first, last, kind=kind, limit=_UNSEALED)
                part = make_part(self._database, kind, ids)
            if part is None:
                return
            self._replace([], [self._written(kind, part)])
            first = ids[-1] + 1

    def _merge(self) -> None:
        """Makes few parts of many, and parts without graves of those that have some."""
        with self._database.checked():
            records = self._database.parts()
            graves = self._database.graves()
        old: list[str] = []
        new: list[PartRecord] = []
        for kind in self._kinds:
            for group in groups([record for record in records if record.kind == kind]):
                first, last = group[0].first_chunk, group[-1].last_chunk
                dead = graves[(graves >= first) & (graves <= last)]
                if len(group) == 1 and not len(dead):
                    continue
                old += [record.name for record in group]
                part = self._merged(kind, group, dead)
                if part is not None:
                    new.append(self._written(kind, part))
        if old or len(graves):
            self._replace(old, new, levels_graves=True)

    def _merged(self, kind: PartKind, group: Sequence[PartRecord], dead: NDArray[int64]) -> Part | None:
        """One part of the group's living chunks."""
        import numpy as np

        if len(group) == 1 and len(dead) < group[0].num_chunks / 2:
            part = read_part(self.folder / PARTS / group[0].name, mapped=False)
            positions = np.flatnonzero(np.isin(part.ids, dead, assume_unique=True))
            if isinstance(part.index, BM25):
                return Part(part.ids, part.index.without(positions))
            if part.index.remove(positions):
                return part
        with self._database.checked():
            ids = self._database.ids_between(group[0].first_chunk, group[-1].last_chunk, kind=kind)
            return make_part(self._database, kind, ids)

    def _written(self, kind: PartKind, part: Part) -> PartRecord:
        name = write_part(self.folder / PARTS, part)
        return PartRecord(name, kind, int(part.ids[0]), int(part.ids[-1]), len(part.ids))

    def _replace(self, old: Sequence[str], new: Sequence[PartRecord], *, levels_graves: bool = False) -> None:
        with self._database.transaction():
            self._database.replace_parts(old, new)
            if levels_graves:
                self._database.level_graves()
        if old:
            self._remove_unused()

    def _remove_unused(self) -> None:
        with self._database.checked():
            names = frozenset(record.name for record in self._database.parts())
        remove_parts(self.folder / PARTS, keep=names)


def groups(records: Sequence[PartRecord]) -> list[list[PartRecord]]:
    """Neighbours that are to become one part: the last ones, as long as the one before is not more than twice as large.

    So the sizes of the parts at least double from the newest to the oldest, and a chunk is indexed at most once for
    every doubling: the logarithmic method of Bentley and Saxe, 1980.
    """
    found: list[list[PartRecord]] = []
    for record in records:
        found.append([record])
        while len(found) > 1 and _size(found[-2]) <= 2 * _size(found[-1]):
            if record.kind == "bm25" and _size(found[-2]) + _size(found[-1]) > _MAX_WORDS_PART:
                break
            found[-2:] = [found[-2] + found[-1]]
    return found


def _size(group: Sequence[PartRecord]) -> int:
    return sum(record.num_chunks for record in group)


def _locked(folder: Path) -> int:
    """The descriptor of the lock that a writer holds as long as it lives."""
    path = folder / "writer.lock"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as exc:
        raise DataError(
            f"Cannot write the collection {str(folder)!r}: {exc.strerror or exc}. Check the folder and the disk.",
            path=str(folder),
        ) from exc
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(descriptor)
        raise DataError(
            f"Another process is writing the collection {folder.name!r}. Wait for it, then run the same command again.",
            path=str(folder),
        ) from exc
    return descriptor
