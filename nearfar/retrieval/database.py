"""A collection's SQLite file: documents, chunks, vectors, which parts of the indexes hold which, what failed."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearfar.errors import DataError
from nearfar.store import Schema, open_database
from nearfar.types import Chunk, Filter

if TYPE_CHECKING:
    from numpy import float32, int64
    from numpy.typing import NDArray

    from .parts import PartKind

COLLECTION = Schema(
    "collection",
    (
        """
        CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
        CREATE TABLE documents (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            source TEXT NOT NULL UNIQUE,
            root TEXT NOT NULL,
            sha256 TEXT NOT NULL,
            num_bytes INTEGER NOT NULL,
            modified_ns INTEGER NOT NULL,
            reading TEXT NOT NULL,
            indexed_at REAL NOT NULL
        );
        CREATE TABLE chunks (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            document INTEGER NOT NULL REFERENCES documents (id) ON DELETE CASCADE,
            start_at INTEGER NOT NULL,
            end_at INTEGER NOT NULL,
            metadata TEXT NOT NULL,
            given_id TEXT,
            text TEXT NOT NULL
        );
        CREATE INDEX chunks_by_document ON chunks (document);
        CREATE TABLE vectors (
            chunk INTEGER PRIMARY KEY REFERENCES chunks (id) ON DELETE CASCADE,
            vector BLOB NOT NULL
        );
        CREATE TABLE parts (
            name TEXT PRIMARY KEY,
            kind TEXT NOT NULL,
            first_chunk INTEGER NOT NULL,
            last_chunk INTEGER NOT NULL,
            num_chunks INTEGER NOT NULL
        );
        CREATE TABLE graves (chunk INTEGER PRIMARY KEY);
        CREATE TABLE failures (source TEXT PRIMARY KEY, root TEXT NOT NULL, reason TEXT NOT NULL, at REAL NOT NULL)
        """,
    ),
)


@dataclass(frozen=True, slots=True)
class DocumentRecord:
    """What is known of a document besides its chunks."""

    source: str
    sha256: str  # of its bytes
    root: str = ""  # the folder or file that it was found under; "": it was put by hand
    num_bytes: int = 0
    modified_ns: int = 0
    reading: str = ""  # which reader and which chunking: another one reads it anew
    indexed_at: float = 0.0  # Unix time in seconds


@dataclass(frozen=True, slots=True)
class PartRecord:
    """A part of an index and the chunks that it was made of, all between the first and the last that still were."""

    name: str
    kind: PartKind
    first_chunk: int
    last_chunk: int
    num_chunks: int


class Database:
    """Every statement that is made about a collection.

    Args:
        path: the file.
        creates: make it where there is none.

    Raises:
        DataError: it is not there, not a collection, or of a newer version.
    """

    def __init__(self, path: Path, *, creates: bool) -> None:
        self.path = path
        if not creates and not path.is_file():
            raise DataError(
                f"There is no collection {path.parent.name!r}. Make it: nearfar index {path.parent.name} PATH",
                path=str(path),
            )
        try:
            self._connection = open_database(path, [COLLECTION])
        except DataError as exc:
            if _is_damage(exc.__cause__):
                raise self._damaged(exc.__cause__) from exc
            raise
        self._connection.execute("PRAGMA secure_delete=ON")  # what is deleted is overwritten, not only unlinked

    def close(self) -> None:
        """Closes the file. Twice is fine."""
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing.

        Raises:
            DataError: the file cannot be written.
        """
        with self.checked():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # a full disk has ended it already
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """All that is read sees the same moment."""
        self._connection.execute("BEGIN")
        try:
            yield
        finally:
            self._connection.execute("COMMIT")

    @contextmanager
    def checked(self) -> Iterator[None]:
        """Turns what SQLite says into one line.

        Raises:
            DataError: the file cannot be used.
        """
        try:
            yield
        except sqlite3.Error as exc:
            if _is_damage(exc):
                raise self._damaged(exc) from exc
            raise DataError(
                f"Cannot use the collection {str(self.path)!r}: {exc}. Check that the disk has room and that the file "
                "is a collection that you may write; what was committed before is kept.",
                path=str(self.path),
            ) from exc

    def _damaged(self, exc: BaseException | None) -> DataError:
        folder = self.path.parent
        return DataError(
            f"The collection {folder.name!r} is damaged: {exc}. Remove its folder {str(folder)!r} and index its files "
            "anew.",
            path=str(self.path),
        )

    def version(self) -> int:
        """Another number whenever another connection has changed the file."""
        (number,) = self._connection.execute("PRAGMA data_version").fetchone()
        return int(number)

    def forget_log(self) -> None:
        """Empties the write-ahead log, which may still hold what was deleted; not while somebody reads."""
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    # --- facts ---

    def facts(self) -> dict[str, str]:
        """What the collection was made with."""
        return dict(self._connection.execute("SELECT name, value FROM facts"))

    def set_facts(self, facts: Mapping[str, str]) -> None:
        """Adds or replaces facts."""
        self._connection.executemany(
            "INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", facts.items()
        )

    def forget_facts(self, names: Iterable[str]) -> None:
        """Removes facts, those that there are."""
        self._connection.executemany("DELETE FROM facts WHERE name = ?", [(name,) for name in names])

    def count(self, table: str) -> int:
        """How many rows there are."""
        (number,) = self._connection.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608 - ours
        return int(number)

    # --- documents ---

    def document(self, source: str) -> DocumentRecord | None:
        """The document of this name."""
        row = self._connection.execute(
            "SELECT source, sha256, root, num_bytes, modified_ns, reading, indexed_at FROM documents WHERE source = ?",
            (source,),
        ).fetchone()
        return DocumentRecord(*row) if row else None

    def sources(self) -> list[str]:
        """The documents' names in order."""
        return [source for (source,) in self._connection.execute("SELECT source FROM documents ORDER BY source")]

    def sources_under(self, folder: str) -> list[str]:
        """The file of this path, or the files under this folder, in order; nothing that was put by hand."""
        rows = self._connection.execute(
            "SELECT source FROM documents WHERE root <> '' AND (source = ?1 OR substr(source, 1, length(?2)) = ?2)"
            " ORDER BY source",
            (folder, f"{folder.rstrip('/')}/"),
        )
        return [source for (source,) in rows]

    def versions(self, sources: Iterable[str]) -> dict[str, str]:
        """The SHA-256 of those of the documents that there are."""
        rows = self._connection.execute(
            "SELECT source, sha256 FROM documents WHERE source IN (SELECT value FROM json_each(?))",
            (json.dumps(list(sources)),),
        )
        return dict(rows)

    def touch(self, record: DocumentRecord) -> None:
        """Notes the document's time and root, its content being what it was."""
        self._connection.execute(
            "UPDATE documents SET root = ?, num_bytes = ?, modified_ns = ?, indexed_at = ? WHERE source = ?",
            (record.root, record.num_bytes, record.modified_ns, time.time(), record.source),
        )

    def put(self, record: DocumentRecord, chunks: Sequence[Chunk], vectors: NDArray[float32] | None) -> None:
        """Adds the document in the place of the one of this name, if there was one."""
        self.delete(record.source)
        facts = (record.source, record.root, record.sha256, record.num_bytes, record.modified_ns, record.reading)
        document = self._connection.execute(
            "INSERT INTO documents (source, root, sha256, num_bytes, modified_ns, reading, indexed_at)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*facts, time.time()),
        ).lastrowid
        for position, chunk in enumerate(chunks):
            given = None if chunk.id == Chunk(chunk.text, chunk.source, chunk.start).id else chunk.id
            metadata = json.dumps(dict(chunk.metadata), ensure_ascii=True)
            text = chunk.text.encode(errors="replace").decode()  # SQLite takes no lone surrogates
            row = (document, chunk.start, chunk.end, metadata, given, text)
            number = self._connection.execute(
                "INSERT INTO chunks (document, start_at, end_at, metadata, given_id, text) VALUES (?, ?, ?, ?, ?, ?)",
                row,
            ).lastrowid
            if vectors is not None:
                self._put_vector(int(number or 0), vectors[position])

    def delete(self, source: str) -> int:
        """How many chunks are gone with the document of this name; those that a part holds get a grave."""
        row = self._connection.execute("SELECT id FROM documents WHERE source = ?", (source,)).fetchone()
        if row is None:
            return 0
        self._connection.execute(
            "INSERT OR IGNORE INTO graves SELECT id FROM chunks WHERE document = ?1 AND EXISTS"
            " (SELECT 1 FROM parts WHERE chunks.id BETWEEN first_chunk AND last_chunk)",
            row,
        )
        (num_chunks,) = self._connection.execute("SELECT count(*) FROM chunks WHERE document = ?", row).fetchone()
        self._connection.execute("DELETE FROM documents WHERE id = ?", row)
        return int(num_chunks)

    # --- chunks ---

    def chunks(self, ids: Sequence[int]) -> dict[int, Chunk]:
        """Those of the chunks that are still there."""
        rows = self._connection.execute(
            "SELECT chunks.id, chunks.text, source, start_at, end_at, metadata, given_id"
            " FROM chunks JOIN documents ON documents.id = document"
            " WHERE chunks.id IN (SELECT value FROM json_each(?))",
            (json.dumps(list(ids)),),
        )
        return {number: _chunk(*row) for number, *row in rows}

    def document_chunks(self, source: str) -> list[Chunk]:
        """A document's chunks in its order."""
        rows = self._connection.execute(
            "SELECT chunks.text, source, start_at, end_at, metadata, given_id"
            " FROM chunks JOIN documents ON documents.id = document WHERE source = ? ORDER BY chunks.id",
            (source,),
        )
        return [_chunk(*row) for row in rows]

    def chunks_between(self, first: int, last: int) -> Iterator[tuple[int, Chunk]]:
        """The chunks from the first to the last, in order."""
        rows = self._connection.execute(
            "SELECT chunks.id, chunks.text, source, start_at, end_at, metadata, given_id"
            " FROM chunks JOIN documents ON documents.id = document"
            " WHERE chunks.id BETWEEN ? AND ? ORDER BY chunks.id",
            (first, last),
        )
        return ((number, _chunk(*row)) for number, *row in rows)

    def ids_between(self, first: int, last: int, *, kind: PartKind, limit: int = -1) -> list[int]:
        """The chunks of the range, or those that have a vector, in order."""
        column, table = ("chunk", "vectors") if kind == "dense" else ("id", "chunks")
        rows = self._connection.execute(
            f"SELECT {column} FROM {table} WHERE {column} BETWEEN ? AND ? ORDER BY {column} LIMIT ?",  # noqa: S608
            (first, last, limit),
        )
        return [number for (number,) in rows]

    def last_chunk(self) -> int:
        """The highest number that a chunk has; 0 where there is none."""
        (number,) = self._connection.execute("SELECT coalesce(max(id), 0) FROM chunks").fetchone()
        return int(number)

    def matching(self, wanted: Filter) -> NDArray[int64]:
        """The chunks that a filter lets through, in order; `filters.matches` says the same of one chunk."""
        import numpy as np

        conditions, given = [], []
        for name, value in wanted.items():
            values = list(value) if isinstance(value, list | tuple | set | frozenset) else [value]
            if name == "source":
                patterns = [one[:-1] for one in values if isinstance(one, str) and one.endswith("*")]
                conditions.append(
                    "(source IN (SELECT value FROM json_each(?)) OR EXISTS"
                    " (SELECT 1 FROM json_each(?) WHERE substr(source, 1, length(value)) = value))"
                )
                given += [json.dumps([one for one in values if isinstance(one, str)]), json.dumps(patterns)]
            else:
                conditions.append(
                    "EXISTS (SELECT 1 FROM json_each(metadata) AS has"
                    " WHERE has.key = ? AND has.atom IN (SELECT atom FROM json_each(?)))"
                )
                given += [name, json.dumps(values)]
        rows = self._connection.execute(
            "SELECT chunks.id FROM chunks JOIN documents ON documents.id = document WHERE "  # noqa: S608 - ours
            + " AND ".join(conditions)
            + " ORDER BY chunks.id",
            given,
        )
        return np.fromiter((number for (number,) in rows), np.int64)

    # --- vectors ---

    def _put_vector(self, chunk: int, vector: NDArray[float32]) -> None:
        import numpy as np

        self._connection.execute("INSERT INTO vectors VALUES (?, ?)", (chunk, vector.astype(np.float16).tobytes()))

    def put_vectors(self, chunks: Sequence[int], vectors: NDArray[float32]) -> None:
        """Adds the vectors of chunks that had none."""
        for chunk, vector in zip(chunks, vectors, strict=True):
            self._put_vector(chunk, vector)

    def vectors(self, chunks: Sequence[int]) -> NDArray[float32]:
        """The vectors of the chunks, which must be in ascending order and have one, as they were but for rounding."""
        import numpy as np

        rows = self._connection.execute(
            "SELECT vector FROM vectors WHERE chunk IN (SELECT value FROM json_each(?)) ORDER BY chunk",
            (json.dumps(list(chunks)),),
        )
        joined = b"".join(vector for (vector,) in rows)
        return np.frombuffer(joined, np.float16).reshape(len(chunks), -1).astype(np.float32)

    def unembedded(self, limit: int) -> list[int]:
        """Some of the chunks that have no vector."""
        rows = self._connection.execute(
            "SELECT id FROM chunks LEFT JOIN vectors ON chunk = id WHERE chunk IS NULL ORDER BY id LIMIT ?", (limit,)
        )
        return [number for (number,) in rows]

    def forget_vectors(self) -> None:
        """Removes every vector and the parts that were made of them."""
        self._connection.execute("DELETE FROM vectors")
        self._connection.execute("DELETE FROM parts WHERE kind = 'dense'")

    # --- parts ---

    def parts(self) -> list[PartRecord]:
        """The parts of the indexes, in the order of their chunks."""
        rows = self._connection.execute(
            "SELECT name, kind, first_chunk, last_chunk, num_chunks FROM parts ORDER BY kind, first_chunk"
        )
        return [PartRecord(*row) for row in rows]

    def replace_parts(self, old: Iterable[str], new: Iterable[PartRecord]) -> None:
        """Takes parts out of use and others into it; graves that no part holds any more are levelled."""
        self._connection.executemany("DELETE FROM parts WHERE name = ?", [(name,) for name in old])
        self._connection.executemany(
            "INSERT INTO parts VALUES (?, ?, ?, ?, ?)",
            [(part.name, part.kind, part.first_chunk, part.last_chunk, part.num_chunks) for part in new],
        )

    def graves(self) -> NDArray[int64]:
        """The chunks that parts still hold and that are gone, in order."""
        import numpy as np

        rows = self._connection.execute("SELECT chunk FROM graves ORDER BY chunk")
        return np.fromiter((number for (number,) in rows), np.int64)

    def level_graves(self) -> None:
        """Forgets the graves: no part holds them any more."""
        self._connection.execute("DELETE FROM graves")

    # --- failures ---

    def set_failure(self, source: str, root: str, reason: str) -> None:
        """Notes why a document could not be read."""
        self._connection.execute(
            "INSERT INTO failures VALUES (?, ?, ?, ?) ON CONFLICT (source) DO UPDATE"
            " SET root = excluded.root, reason = excluded.reason, at = excluded.at",
            (source, root, reason, time.time()),
        )

    def clear_failures(self, root: str) -> None:
        """Forgets what failed under a root."""
        self._connection.execute("DELETE FROM failures WHERE root = ?", (root,))

    def failures(self) -> list[tuple[str, str]]:
        """What could not be read when it was last tried, and why."""
        return list(self._connection.execute("SELECT source, reason FROM failures ORDER BY source"))


def _is_damage(exc: BaseException | None) -> bool:
    """Whether SQLite found no database, or one with broken pages."""
    codes = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    return isinstance(exc, sqlite3.DatabaseError) and getattr(exc, "sqlite_errorcode", 0) & 0xFF in codes


def _chunk(text: str, source: str, start: int, end: int, metadata: str, given_id: str | None) -> Chunk:
    facts: dict[str, Any] = json.loads(metadata)
    return Chunk(text, source, start, end, facts, given_id or "")
