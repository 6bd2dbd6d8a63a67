"""Answers given before, recalled by questions that ask the same: who may recall what, for how long, and how sure.

Nothing here knows who answers or routes; the threshold comes from a `ThresholdFitter` that the wiring gives.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

from nearfar.errors import ConfigError
from nearfar.store import Schema, Store
from nearfar.types import Embedder, Memo, Recollection, Scope

from .embedders import close_embedder
from .matching import NOTHING_FUZZY, MatchPolicy, likeness, question_key
from .shelf import Shelf

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

MEMORY = Schema(
    "memory",
    (
        """
        CREATE TABLE memos (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            user TEXT NOT NULL,
            policy TEXT NOT NULL,
            privacy TEXT NOT NULL,
            key TEXT NOT NULL,
            question TEXT NOT NULL,
            answer TEXT NOT NULL,
            model TEXT NOT NULL,
            decision_id TEXT,
            embedder TEXT NOT NULL,
            vector BLOB NOT NULL,
            created_at REAL NOT NULL,
            UNIQUE (user, policy, privacy, key)
        );
        CREATE INDEX memos_by_age ON memos (created_at);
        CREATE TABLE memo_sources (
            memo INTEGER NOT NULL REFERENCES memos (id) ON DELETE CASCADE,
            source TEXT NOT NULL,
            version TEXT NOT NULL,
            PRIMARY KEY (memo, source)
        ) WITHOUT ROWID;
        CREATE INDEX memos_by_source ON memo_sources (source);
        CREATE TABLE source_versions (source TEXT PRIMARY KEY, version TEXT) WITHOUT ROWID
        """,
    ),
)

#: Nearest memos that are compared word by word. Of 1,091 paraphrases of public questions that were recalled, the right
#: memo was the nearest in 1,089 and the second in two; see benchmarks/memory.py.
COMPARED = 4

#: Scopes whose vectors are held in memory.
_MOST_SHELVES = 256

#: Purges come once in so many memos kept, so that counting rows costs nothing.
PURGE_EVERY = 100

#: Longer questions are documents, and no two of them ask the same by accident.
LONGEST_QUESTION = 8_192

#: Longer ones hold texts that drown the question, so that only the very same is recalled. No question of
#: benchmarks/memory.py is much longer.
LONGEST_COMPARED = 1_000

_ScopeKey = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class MemoryStats:
    """What a memory holds."""

    memos: int
    scopes: int
    sources: int


class SqliteMemory:
    """A `Memory` in the store, for any number of processes.

    The very same question, spaces aside, is always recalled; another wording only where the policy's threshold was
    fitted and its likeness reaches it.

    Args:
        store: has the schema `MEMORY`.
        embedder: of questions. Memos of another one are recalled by the very same question alone.
        policy: from which likeness on two questions ask the same; None: only the very same does.
        ttl_s: seconds for which a memo is recalled; None: until it is pushed out.
        max_memos: of all scopes; beyond it the oldest go.
        clock: Unix time, in seconds.

    Raises:
        ConfigError: a limit makes no sense.
    """

    def __init__(
        self,
        store: Store,
        embedder: Embedder,
        *,
        policy: MatchPolicy | None = None,
        ttl_s: float | None = None,
        max_memos: int = 100_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if (ttl_s is not None and not (ttl_s > 0 and isfinite(ttl_s))) or max_memos < 1:
            raise ConfigError(
                f"A memory needs a ttl above 0 s and room for 1 memo, not {ttl_s!r} and {max_memos!r}. Set "
                "memory.ttl_s and memory.max_memos."
            )
        self._policy = policy or NOTHING_FUZZY
        self._store = store
        self._embedder = embedder
        self._ttl_s = ttl_s
        self._max_memos = max_memos
        self._clock = clock
        self._shelves: OrderedDict[_ScopeKey, Shelf] = OrderedDict()  # guarded by the store's lock on reads
        self._until_purge = 0

    async def recall(self, question: str, scope: Scope) -> Recollection | None:
        """The answer to the question, or to the likest one that asks the same.

        Raises:
            DataError: the store cannot be read.
        """
        key = question_key(question)
        if not key or len(question) > LONGEST_QUESTION:
            return None
        exact = await self._store.read(lambda connection: self._same(connection, key, scope))
        threshold = self._policy.threshold
        if exact is not None or threshold is None or len(question) > LONGEST_COMPARED:
            return exact
        vector = await asyncio.to_thread(self._vector, question)
        return await self._store.read(lambda connection: self._likest(connection, question, vector, scope, threshold))

    async def remember(self, memo: Memo, scope: Scope) -> None:
        """Keeps the memo, in place of any to the same question; not where it rests on an outdated source.

        Raises:
            DataError: the store cannot be written.
        """
        key = question_key(memo.question)
        if not key or not memo.answer.strip() or len(memo.question) > LONGEST_QUESTION:
            return
        vector = await asyncio.to_thread(self._vector, memo.question)
        row = (
            *_scope_key(scope),
            key,
            _storable(memo.question),
            _storable(memo.answer),
            memo.model,
            memo.decision_id,
            self._embedder.name,
            vector.tobytes(),
            self._clock(),
        )
        self._until_purge -= 1
        is_purge = self._until_purge < 0
        if is_purge:
            self._until_purge = PURGE_EVERY

        def put(connection: sqlite3.Connection) -> None:
            if any(_is_outdated(connection, source, version) for source, version in memo.sources.items()):
                return
            connection.execute("DELETE FROM memos WHERE (user, policy, privacy, key) = (?, ?, ?, ?)", row[:4])
            cursor = connection.execute(
                "INSERT INTO memos (user, policy, privacy, key, question, answer, model, decision_id, embedder, vector,"
                " created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            connection.executemany(
                "INSERT INTO memo_sources VALUES (?, ?, ?)",
                [(cursor.lastrowid, source, version) for source, version in memo.sources.items()],
            )
            if is_purge:
                self._purge(connection)

        await self._store.write(put)

    async def similar(self, question: str, scope: Scope, k: int) -> list[tuple[Memo, float]]:
        """At most `k` memos of the scope with their cosines, nearest first, whether or not they ask the same.

        As context for a model, where nothing is near enough to be the answer: Chen et al. 2022, arXiv:2204.04581.

        Raises:
            DataError: the store cannot be read.
        """
        vector = await asyncio.to_thread(self._vector, question)

        def look(connection: sqlite3.Connection) -> list[tuple[Memo, float]]:
            return [(memo, cosine) for _, memo, _, cosine in self._near(connection, vector, scope, k)]

        return await self._store.read(look)

    async def source_changed(self, source: str, version: str | None) -> int:
        """Forgets what rests on any other version of the source, and says how much that was.

        Args:
            source: as the memos name it.
            version: the one that holds from now on; None: the source is gone.

        Raises:
            DataError: the store cannot be written.
        """

        def change(connection: sqlite3.Connection) -> int:
            connection.execute(
                "INSERT INTO source_versions VALUES (?, ?) ON CONFLICT (source) DO UPDATE SET version ="
                " excluded.version",
                (source, version),
            )
            return connection.execute(
                "DELETE FROM memos WHERE id IN (SELECT memo FROM memo_sources WHERE source = ? AND version IS NOT ?)",
                (source, version),
            ).rowcount

        return await self._store.write(change)

    async def forget(self, *, user: str | None = None, question: str | None = None) -> int:
        """Deletes the memos of a user, or to a question, or of both, in every policy and privacy; says how many.

        Args:
            user: "" stands for nobody in particular; None: every user's.
            question: to the letter, spaces aside; None: every question.

        Raises:
            DataError: the store cannot be written.
        """
        wanted: list[tuple[str, str]] = []
        if user is not None:
            wanted.append(("user", _name(user)))
        if question is not None:
            wanted.append(("key", question_key(question)))
        where = " AND ".join(f"{column} = ?" for column, _ in wanted) or "1"
        values = [value for _, value in wanted]
        return await self._store.write(
            lambda connection: connection.execute(f"DELETE FROM memos WHERE {where}", values).rowcount  # noqa: S608
        )

    async def stats(self) -> MemoryStats:
        """How much there is, expired memos left out.

        Raises:
            DataError: the store cannot be read.
        """

        def count(connection: sqlite3.Connection) -> MemoryStats:
            oldest = (self._oldest(),)
            memos = connection.execute("SELECT count(*) FROM memos WHERE created_at > ?", oldest).fetchone()[0]
            scopes = connection.execute(
                "SELECT count(*) FROM (SELECT DISTINCT user, policy, privacy FROM memos WHERE created_at > ?)", oldest
            ).fetchone()[0]
            sources = connection.execute(
                "SELECT count(DISTINCT source) FROM memo_sources JOIN memos ON memo = id WHERE created_at > ?",
                oldest,
            ).fetchone()[0]
            return MemoryStats(memos, scopes, sources)

        return await self._store.read(count)

    def close(self) -> None:
        """Closes the embedder; the store is its owner's. Twice is fine."""
        close_embedder(self._embedder)

    # --- reading -----------------------------------------------------------------------------------------------------

    def _same(self, connection: sqlite3.Connection, key: str, scope: Scope) -> Recollection | None:
        row = connection.execute(
            "SELECT id FROM memos WHERE (user, policy, privacy, key) = (?, ?, ?, ?)", (*_scope_key(scope), key)
        ).fetchone()
        found = self._memo(connection, row[0]) if row else None
        if found is None:
            return None
        memo, created_at = found
        threshold = self._policy.threshold
        return Recollection(
            memo, 1.0, 1.0 if threshold is None else threshold, threshold is not None, self._age_s(created_at)
        )

    def _likest(
        self, connection: sqlite3.Connection, question: str, vector: NDArray[float32], scope: Scope, threshold: float
    ) -> Recollection | None:
        best: Recollection | None = None
        for _, memo, created_at, _ in self._near(connection, vector, scope, COMPARED):
            score = likeness(question, memo.question)
            if score >= threshold and (best is None or score > best.score):
                best = Recollection(memo, score, threshold, True, self._age_s(created_at))
        return best

    def _near(
        self, connection: sqlite3.Connection, vector: NDArray[float32], scope: Scope, k: int
    ) -> list[tuple[int, Memo, float, float]]:
        """The k nearest memos that hold: id, memo, time of making, cosine."""
        shelf = self._shelf(connection, scope)
        found: list[tuple[int, Memo, float, float]] = []
        gone: list[int] = []
        for memo_id, cosine in shelf.nearest(vector):
            if len(found) >= k:
                break
            kept = self._memo(connection, memo_id)
            if kept is None:
                gone.append(memo_id)
            else:
                found.append((memo_id, *kept, cosine))
        for memo_id in gone:
            shelf.drop(memo_id)
        return found

    def _memo(self, connection: sqlite3.Connection, memo_id: int) -> tuple[Memo, float] | None:
        """The memo and when it was made; None where it was deleted, by whichever process, or has expired."""
        row = connection.execute(
            "SELECT question, answer, model, decision_id, created_at FROM memos WHERE id = ? AND created_at > ?",
            (memo_id, self._oldest()),
        ).fetchone()
        if row is None:
            return None
        sources = dict(connection.execute("SELECT source, version FROM memo_sources WHERE memo = ?", (memo_id,)))
        question, answer, model, decision_id, created_at = row
        return Memo(question, answer, model, sources, decision_id), created_at

    def _shelf(self, connection: sqlite3.Connection, scope: Scope) -> Shelf:
        """The scope's vectors, with what any process has added since."""
        key = _scope_key(scope)
        shelf = self._shelves.get(key)
        if shelf is None or shelf.is_worn:
            shelf = self._shelves[key] = Shelf(self._embedder.dim)
        self._shelves.move_to_end(key)
        while len(self._shelves) > _MOST_SHELVES:
            self._shelves.popitem(last=False)
        shelf.add(
            connection.execute(
                "SELECT id, vector FROM memos WHERE (user, policy, privacy) = (?, ?, ?) AND embedder = ? AND id > ?"
                " ORDER BY id",
                (*key, self._embedder.name, shelf.last_id),
            )
        )
        return shelf

    def _vector(self, question: str) -> NDArray[float32]:
        vector: NDArray[float32] = self._embedder.embed_queries([question])[0]
        return vector

    # --- time --------------------------------------------------------------------------------------------------------

    def _oldest(self) -> float:
        return float("-inf") if self._ttl_s is None else self._clock() - self._ttl_s

    def _age_s(self, created_at: float) -> float:
        return max(0.0, self._clock() - created_at)

    def _purge(self, connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM memos WHERE created_at <= ?", (self._oldest(),))
        connection.execute(
            "DELETE FROM memos WHERE id IN (SELECT id FROM memos ORDER BY created_at DESC, id DESC LIMIT -1 OFFSET ?)",
            (self._max_memos,),
        )


def _scope_key(scope: Scope) -> _ScopeKey:
    return _name(scope.user), _name(scope.policy), scope.privacy


def _name(text: str) -> str:
    """The text as SQLite takes it, and another for every other: no two users may ever look the same."""
    return text.replace("\\", "\\\\").encode(errors="backslashreplace").decode()


def _storable(text: str) -> str:
    """The text with "?" for lone surrogates, which SQLite does not take."""
    return text.encode(errors="replace").decode()


def _is_outdated(connection: sqlite3.Connection, source: str, version: str) -> bool:
    row = connection.execute("SELECT version FROM source_versions WHERE source = ?", (source,)).fetchone()
    return row is not None and row[0] != version
