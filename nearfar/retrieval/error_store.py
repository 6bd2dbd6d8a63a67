"""Past mistakes of models, kept in the store and found by the likeness of their questions."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence

from nearfar.errors import ConfigError
from nearfar.store import Schema, Store
from nearfar.types import Embedder, ErrorCase

from .shelf import Shelf

ERROR_CASES = Schema(
    "error_cases",
    (
        """
        CREATE TABLE error_cases (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            collection TEXT NOT NULL,
            question TEXT NOT NULL,
            wrong TEXT NOT NULL,
            right TEXT NOT NULL,
            reason TEXT NOT NULL,
            model TEXT NOT NULL,
            embedder TEXT NOT NULL,
            vector BLOB NOT NULL,
            created_at REAL NOT NULL,
            UNIQUE (collection, question, wrong, model)
        )
        """,
    ),
)


class SqliteErrorCases:
    """`ErrorCases` in the store, for any number of processes.

    Args:
        store: has the schema `ERROR_CASES`.
        embedder: of questions; cases of another one are not found.
        collection: whose mistakes: a cascade's name, say. Nothing crosses collections.
        clock: Unix time, in seconds.
    """

    def __init__(
        self, store: Store, embedder: Embedder, collection: str = "default", *, clock: Callable[[], float] = time.time
    ) -> None:
        if not collection.isprintable() or not collection:
            raise ConfigError(f"{collection!r} is no name for a collection of error cases; use printable characters.")
        self._store = store
        self._embedder = embedder
        self._collection = collection
        self._clock = clock
        self._shelf = Shelf(embedder.dim)  # guarded by the store's lock on reads

    async def add(self, cases: Sequence[ErrorCase]) -> None:
        """Keeps the cases; one that is known (same question, same mistake, same model) is replaced.

        Raises:
            DataError: the store cannot be written.
        """
        if not cases:
            return
        vectors = await asyncio.to_thread(self._embedder.embed_queries, [case.question for case in cases])
        now = self._clock()
        rows = [
            (
                self._collection,
                *map(_storable, (case.question, case.wrong, case.right, case.reason, case.model)),
                self._embedder.name,
                vector.tobytes(),
                now,
            )
            for case, vector in zip(cases, vectors, strict=True)
        ]
        await self._store.write(
            lambda connection: connection.executemany(
                "INSERT OR REPLACE INTO error_cases (collection, question, wrong, right, reason, model, embedder,"
                " vector, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
        )

    async def similar(self, question: str, k: int) -> Sequence[tuple[ErrorCase, float]]:
        """At most `k` cases with the cosine of their questions to this one, likest first.

        Raises:
            DataError: the store cannot be read.
        """
        vector = (await asyncio.to_thread(self._embedder.embed_queries, [question]))[0]

        def look(connection: sqlite3.Connection) -> list[tuple[ErrorCase, float]]:
            if self._shelf.is_worn:
                self._shelf = Shelf(self._embedder.dim)
            self._shelf.add(
                connection.execute(
                    "SELECT id, vector FROM error_cases WHERE collection = ? AND embedder = ? AND id > ? ORDER BY id",
                    (self._collection, self._embedder.name, self._shelf.last_id),
                )
            )
            found: list[tuple[ErrorCase, float]] = []
            gone: list[int] = []
            for case_id, cosine in self._shelf.nearest(vector):
                if len(found) >= k:
                    break
                row = connection.execute(
                    "SELECT question, wrong, right, reason, model FROM error_cases WHERE id = ?", (case_id,)
                ).fetchone()
                if row is None:  # replaced, or deleted by another process
                    gone.append(case_id)
                else:
                    found.append((ErrorCase(*row), cosine))
            for case_id in gone:
                self._shelf.drop(case_id)
            return found

        return await self._store.read(look)

    async def clear(self) -> int:
        """Deletes the collection's cases and says how many there were.

        Raises:
            DataError: the store cannot be written.
        """
        return await self._store.write(
            lambda connection: (
                connection.execute("DELETE FROM error_cases WHERE collection = ?", (self._collection,)).rowcount
            )
        )


def _storable(text: str) -> str:
    return text.encode(errors="replace").decode()
