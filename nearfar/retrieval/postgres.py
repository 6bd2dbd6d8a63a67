"""Memory and chunks in a Postgres with pgvector, for gateways that share them: connections, tables, errors.

Vectors travel as text, so that psycopg is all that is needed on this side.
"""

from __future__ import annotations

import asyncio
import json
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from math import isfinite
from typing import TYPE_CHECKING, Any

from nearfar.errors import ConfigError, DataError
from nearfar.types import Chunk, Embedder, Filter, Hit, Memo, Recollection, Scope

from .embedders import close_embedder
from .matching import NOTHING_FUZZY, MatchPolicy, likeness, question_key
from .memory import COMPARED, LONGEST_COMPARED, LONGEST_QUESTION, PURGE_EVERY, MemoryStats

if TYPE_CHECKING:
    from psycopg import Connection, Cursor

_TABLES = """
CREATE EXTENSION IF NOT EXISTS vector;
CREATE TABLE IF NOT EXISTS nearfar_memos (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    owner TEXT NOT NULL,
    policy TEXT NOT NULL,
    privacy TEXT NOT NULL,
    key TEXT NOT NULL,
    question TEXT NOT NULL,
    answer TEXT NOT NULL,
    model TEXT NOT NULL,
    decision_id TEXT,
    embedder TEXT NOT NULL,
    vector VECTOR NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    UNIQUE (owner, policy, privacy, key)
);
CREATE INDEX IF NOT EXISTS nearfar_memos_by_age ON nearfar_memos (created_at);
CREATE TABLE IF NOT EXISTS nearfar_memo_sources (
    memo BIGINT NOT NULL REFERENCES nearfar_memos (id) ON DELETE CASCADE,
    source TEXT NOT NULL,
    version TEXT NOT NULL,
    PRIMARY KEY (memo, source)
);
CREATE INDEX IF NOT EXISTS nearfar_memos_by_source ON nearfar_memo_sources (source);
CREATE TABLE IF NOT EXISTS nearfar_source_versions (source TEXT PRIMARY KEY, version TEXT);
CREATE TABLE IF NOT EXISTS nearfar_collections (
    name TEXT PRIMARY KEY,
    embedder TEXT NOT NULL,
    dim INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS nearfar_chunks (
    collection TEXT NOT NULL REFERENCES nearfar_collections (name) ON DELETE CASCADE,
    id TEXT NOT NULL,
    source TEXT NOT NULL,
    first_char INTEGER NOT NULL,
    last_char INTEGER NOT NULL,
    text TEXT NOT NULL,
    metadata JSONB NOT NULL,
    vector VECTOR NOT NULL,
    PRIMARY KEY (collection, id)
);
CREATE INDEX IF NOT EXISTS nearfar_chunks_by_source ON nearfar_chunks (collection, source)
"""

#: Locks that hold for a transaction: one for making the tables, one between those who read and who change a source's
#: version, so that no answer from an outdated source slips in.
_MAKING, _SOURCES = 0x6E6561720001, 0x6E6561720002

#: Connections that are kept open; more are made when needed, and closed.
_KEPT = 8


class Database:
    """Connections to one Postgres with nearfar's tables, for any number of threads.

    Args:
        url: as libpq takes it: postgresql://user:password@host/database.
        connect_timeout_s: how long a connection may take to be made.

    Raises:
        ConfigError: psycopg is not installed.
        DataError: the server is not there, refuses, or has no pgvector.
    """

    def __init__(self, url: str, *, connect_timeout_s: int = 10) -> None:
        try:
            import psycopg
        except ImportError as exc:
            raise ConfigError("Postgres needs psycopg. Install it: pip install 'nearfar[postgres]'") from exc
        self._psycopg = psycopg
        self._url = url
        self._connect_timeout_s = connect_timeout_s
        self._idle: queue.LifoQueue[Connection[Any]] = queue.LifoQueue(_KEPT)
        with self.transaction() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_MAKING,))
            for statement in _TABLES.split(";"):
                cursor.execute(statement.encode())

    @contextmanager
    def transaction(self) -> Iterator[Cursor[Any]]:
        """A cursor in a transaction, committed at the end of the block and undone where it raises.

        Raises:
            DataError: the server is not there, or cannot do what is asked.
        """
        try:
            connection = self._connection()
        except self._psycopg.Error as exc:
            raise _unusable(exc) from exc
        try:
            with connection.transaction(), connection.cursor() as cursor:
                yield cursor
        except self._psycopg.Error as exc:
            connection.close()
            raise _unusable(exc) from exc
        except BaseException:
            connection.close()
            raise
        try:
            self._idle.put_nowait(connection)
        except queue.Full:
            connection.close()

    def close(self) -> None:
        """Closes what is idle. Twice is fine."""
        with suppress(queue.Empty):
            while True:
                self._idle.get_nowait().close()

    def _connection(self) -> Connection[Any]:
        while True:
            try:
                connection = self._idle.get_nowait()
            except queue.Empty:
                return self._psycopg.connect(self._url, connect_timeout=self._connect_timeout_s, autocommit=True)
            if self._is_alive(connection):
                return connection
            connection.close()

    def _is_alive(self, connection: Connection[Any]) -> bool:
        """Whether the server still holds the connection: one that it closed has its farewell waiting to be read."""
        try:
            connection.execute("SELECT 1")
        except self._psycopg.Error:
            return False
        return True


class PostgresMemory:
    """A `Memory` in Postgres; see `SqliteMemory`, which it is like in all but the place.

    Args:
        url: see `Database`.
        embedder: of questions. Memos of another one are recalled by the very same question alone.
        policy: from which likeness on two questions ask the same; None: only the very same does.
        ttl_s: seconds for which a memo is recalled; None: until it is pushed out.
        max_memos: of all scopes; beyond it the oldest go.
        clock: Unix time, in seconds; the gateways' clocks should agree to the second.

    Raises:
        ConfigError: psycopg is not installed, or a limit makes no sense.
        DataError: the database cannot be used.
    """

    def __init__(
        self,
        url: str,
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
        self._embedder = embedder
        self._ttl_s = ttl_s
        self._max_memos = max_memos
        self._clock = clock
        self._until_purge = 0
        self._database = Database(url)

    async def recall(self, question: str, scope: Scope) -> Recollection | None:
        """The answer to the question, or to the likest one that asks the same.

        Raises:
            DataError: the database cannot be read.
        """
        if not question.strip() or len(question) > LONGEST_QUESTION:
            return None
        return await asyncio.to_thread(self._recall, question, scope)

    async def remember(self, memo: Memo, scope: Scope) -> None:
        """Keeps the memo, in place of any to the same question; not where it rests on an outdated source.

        Raises:
            DataError: the database cannot be written.
        """
        if not memo.question.strip() or not memo.answer.strip() or len(memo.question) > LONGEST_QUESTION:
            return
        await asyncio.to_thread(self._remember, memo, scope)

    async def similar(self, question: str, scope: Scope, k: int) -> list[tuple[Memo, float]]:
        """At most `k` memos of the scope with their cosines, nearest first, whether or not they ask the same.

        Raises:
            DataError: the database cannot be read.
        """

        def look() -> list[tuple[Memo, float]]:
            vector = self._vector(question)
            with self._database.transaction() as cursor:
                return [(memo, cosine) for memo, _, cosine in self._near(cursor, vector, scope, k) if cosine > 0]

        return await asyncio.to_thread(look)

    async def source_changed(self, source: str, version: str | None) -> int:
        """Forgets what rests on any other version of the source, and says how much that was.

        Args:
            source: as the memos name it.
            version: the one that holds from now on; None: the source is gone.

        Raises:
            DataError: the database cannot be written.
        """

        def change() -> int:
            with self._database.transaction() as cursor:
                cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_SOURCES,))
                cursor.execute(
                    "INSERT INTO nearfar_source_versions VALUES (%s, %s)"
                    " ON CONFLICT (source) DO UPDATE SET version = excluded.version",
                    (_storable(source), version),
                )
                cursor.execute(
                    "DELETE FROM nearfar_memos WHERE id IN (SELECT memo FROM nearfar_memo_sources"
                    " WHERE source = %s AND version IS DISTINCT FROM %s)",
                    (_storable(source), version),
                )
                return cursor.rowcount

        return await asyncio.to_thread(change)

    async def forget(self, *, user: str | None = None, question: str | None = None) -> int:
        """Deletes the memos of a user, or to a question, or of both, in every policy and privacy; says how many.

        Args:
            user: "" stands for nobody in particular; None: every user's.
            question: to the letter, spaces around it aside; None: every question.

        Raises:
            DataError: the database cannot be written.
        """
        owner = None if user is None else _name(user)
        key = None if question is None else question_key(question)

        def delete() -> int:
            with self._database.transaction() as cursor:
                cursor.execute(
                    "DELETE FROM nearfar_memos WHERE (%(owner)s::text IS NULL OR owner = %(owner)s)"
                    " AND (%(key)s::text IS NULL OR key = %(key)s)",
                    {"owner": owner, "key": key},
                )
                return cursor.rowcount

        return await asyncio.to_thread(delete)

    async def stats(self) -> MemoryStats:
        """How much there is, expired memos left out.

        Raises:
            DataError: the database cannot be read.
        """

        def count() -> MemoryStats:
            with self._database.transaction() as cursor:
                row = cursor.execute(
                    "SELECT count(DISTINCT id), count(DISTINCT (owner, policy, privacy)), count(DISTINCT source)"
                    " FROM nearfar_memos LEFT JOIN nearfar_memo_sources ON memo = id WHERE created_at > %s",
                    (self._oldest(),),
                ).fetchone()
            assert row is not None
            return MemoryStats(*row)

        return await asyncio.to_thread(count)

    def close(self) -> None:
        """Closes the connections and the embedder. Twice is fine."""
        self._database.close()
        close_embedder(self._embedder)

    def _recall(self, question: str, scope: Scope) -> Recollection | None:
        threshold = self._policy.threshold
        with self._database.transaction() as cursor:
            row = cursor.execute(
                "SELECT id, question, answer, model, decision_id, created_at FROM nearfar_memos"
                " WHERE (owner, policy, privacy, key) = (%s, %s, %s, %s) AND created_at > %s",
                (*_scope_key(scope), question_key(question), self._oldest()),
            ).fetchone()
            if row is not None:
                needed = 1.0 if threshold is None else threshold
                memo = _memo(cursor, row)
                return Recollection(memo, 1.0, needed, threshold is not None, self._age_s(row[5]))
            if threshold is None or len(question) > LONGEST_COMPARED:
                return None
            best: Recollection | None = None
            for memo, created_at, _ in self._near(cursor, self._vector(question), scope, COMPARED):
                score = likeness(question, memo.question)
                if score >= threshold and (best is None or score > best.score):
                    best = Recollection(memo, score, threshold, True, self._age_s(created_at))
            return best

    def _near(self, cursor: Cursor[Any], vector: str, scope: Scope, k: int) -> list[tuple[Memo, float, float]]:
        rows = cursor.execute(
            "SELECT id, question, answer, model, decision_id, created_at, -(vector <#> %s::vector) FROM nearfar_memos"
            " WHERE (owner, policy, privacy) = (%s, %s, %s) AND embedder = %s AND created_at > %s"
            " ORDER BY vector <#> %s::vector, id LIMIT %s",
            (vector, *_scope_key(scope), self._embedder.name, self._oldest(), vector, max(0, k)),
        ).fetchall()
        return [(_memo(cursor, row), row[5], row[6]) for row in rows]

    def _remember(self, memo: Memo, scope: Scope) -> None:
        vector = self._vector(memo.question)
        self._until_purge -= 1
        with self._database.transaction() as cursor:
            if memo.sources:
                cursor.execute("SELECT pg_advisory_xact_lock(%s)", (_SOURCES,))
                known = cursor.execute(
                    "SELECT source, version FROM nearfar_source_versions WHERE source = ANY(%s)",
                    ([_storable(source) for source in memo.sources],),
                ).fetchall()
                wanted = {_storable(source): version for source, version in memo.sources.items()}
                if any(wanted[source] != version for source, version in known):
                    return
            row = cursor.execute(
                "INSERT INTO nearfar_memos (owner, policy, privacy, key, question, answer, model, decision_id,"
                " embedder, vector, created_at) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s::vector, %s)"
                " ON CONFLICT (owner, policy, privacy, key) DO UPDATE SET question = excluded.question,"
                " answer = excluded.answer, model = excluded.model, decision_id = excluded.decision_id,"
                " embedder = excluded.embedder, vector = excluded.vector, created_at = excluded.created_at"
                " RETURNING id",
                (
                    *_scope_key(scope),
                    question_key(memo.question),
                    _storable(memo.question),
                    _storable(memo.answer),
                    memo.model,
                    memo.decision_id,
                    self._embedder.name,
                    vector,
                    self._clock(),
                ),
            ).fetchone()
            assert row is not None
            cursor.execute("DELETE FROM nearfar_memo_sources WHERE memo = %s", row)
            cursor.executemany(
                "INSERT INTO nearfar_memo_sources VALUES (%s, %s, %s)",
                [(row[0], _storable(source), version) for source, version in memo.sources.items()],
            )
            if self._until_purge < 0:
                self._until_purge = PURGE_EVERY
                self._purge(cursor)

    def _purge(self, cursor: Cursor[Any]) -> None:
        cursor.execute("DELETE FROM nearfar_memos WHERE created_at <= %s", (self._oldest(),))
        cursor.execute(
            "DELETE FROM nearfar_memos WHERE id IN"
            " (SELECT id FROM nearfar_memos ORDER BY created_at DESC, id DESC OFFSET %s)",
            (self._max_memos,),
        )

    def _vector(self, question: str) -> str:
        return _as_text(self._embedder.embed_queries([question])[0])

    def _oldest(self) -> float:
        return float("-inf") if self._ttl_s is None else self._clock() - self._ttl_s

    def _age_s(self, created_at: float) -> float:
        return max(0.0, self._clock() - created_at)


class PostgresRetriever:
    """A collection of chunks in Postgres, found by the cosine of their vectors; a `Retriever`.

    Without `make_index` every chunk of the collection is compared: exact, and fast enough for some ten thousand.

    Args:
        url: see `Database`.
        collection: its name; made where there is none.
        embedder: of the chunks and of the queries.

    Raises:
        ConfigError: psycopg is not installed.
        DataError: the database cannot be used, or the collection was made with another embedder.
    """

    def __init__(self, url: str, collection: str, embedder: Embedder) -> None:
        self._database = Database(url)
        self._collection = _name(collection)
        self._embedder = embedder
        with self._database.transaction() as cursor:
            cursor.execute(
                "INSERT INTO nearfar_collections VALUES (%s, %s, %s) ON CONFLICT (name) DO NOTHING",
                (self._collection, embedder.name, embedder.dim),
            )
            row = cursor.execute(
                "SELECT embedder, dim FROM nearfar_collections WHERE name = %s", (self._collection,)
            ).fetchone()
        if row != (embedder.name, embedder.dim):
            self._database.close()
            raise DataError(
                f"The collection {collection!r} was made with the embedder {row and row[0]!r}, not {embedder.name!r}. "
                "Take that one, or another collection."
            )

    def add(self, chunks: Sequence[Chunk]) -> None:
        """Adds the chunks, all or none; one whose id is there already takes its place.

        Raises:
            DataError: the database cannot be written.
        """
        chunks = list({chunk.id: chunk for chunk in chunks}.values())
        vectors = self._embedder.embed([chunk.text for chunk in chunks])
        with self._database.transaction() as cursor:
            cursor.executemany(
                "INSERT INTO nearfar_chunks VALUES (%s, %s, %s, %s, %s, %s, %s::jsonb, %s::vector)"
                " ON CONFLICT (collection, id) DO UPDATE SET source = excluded.source, text = excluded.text,"
                " first_char = excluded.first_char, last_char = excluded.last_char, metadata = excluded.metadata,"
                " vector = excluded.vector",
                [
                    (
                        self._collection,
                        chunk.id,
                        _storable(chunk.source),
                        chunk.start,
                        chunk.end,
                        _storable(chunk.text),
                        json.dumps(dict(chunk.metadata)).replace("\\u0000", "\\ufffd"),
                        _as_text(vector),
                    )
                    for chunk, vector in zip(chunks, vectors, strict=True)
                ],
            )

    def delete(self, source: str) -> int:
        """Deletes the source's chunks and says how many there were.

        Raises:
            DataError: the database cannot be written.
        """
        with self._database.transaction() as cursor:
            cursor.execute(
                "DELETE FROM nearfar_chunks WHERE collection = %s AND source = %s",
                (self._collection, _storable(source)),
            )
            return cursor.rowcount

    def make_index(self) -> None:
        """Makes an HNSW index of the collection; searches without a filter go by it from then on.

        Raises:
            DataError: the database cannot be written.
        """
        from psycopg import sql

        name = question_key(self._collection)[:16]
        with self._database.transaction() as cursor:
            cursor.execute(
                sql.SQL(
                    "CREATE INDEX IF NOT EXISTS {index} ON nearfar_chunks"
                    " USING hnsw ((vector::vector({dim})) vector_ip_ops) WHERE collection = {collection}"
                ).format(
                    index=sql.Identifier(f"nearfar_chunks_{name}"),
                    dim=sql.Literal(self._embedder.dim),
                    collection=sql.Literal(self._collection),
                )
            )

    def search(self, query: str, *, k: int = 10, filter: Filter | None = None) -> list[Hit]:  # noqa: A002
        """The nearest chunks, nearest first; the hit's score is the cosine, also under the signal "cosine".

        Raises:
            DataError: the database cannot be read.
        """
        from psycopg import sql

        if k < 1:
            return []
        vector = _as_text(self._embedder.embed_queries([query])[0])
        conditions, values = _conditions(filter or {})
        statement = sql.SQL(
            "SELECT id, source, first_char, last_char, text, metadata,"
            " -((vector::vector({dim})) <#> %s::vector({dim})) AS cosine"
            " FROM nearfar_chunks WHERE collection = {collection}{conditions}"
            " ORDER BY (vector::vector({dim})) <#> %s::vector({dim}) LIMIT %s"
        ).format(
            dim=sql.Literal(self._embedder.dim),
            collection=sql.Literal(self._collection),
            conditions=sql.SQL("".join(f" AND {condition}" for condition in conditions)),
        )
        with self._database.transaction() as cursor:
            if filter:  # an index looks at some thousand neighbours and filters those: it may find too few
                cursor.execute("SET LOCAL enable_indexscan = off")
            else:
                cursor.execute("SELECT set_config('hnsw.ef_search', %s, true)", (str(min(1000, max(40, 2 * k))),))
            rows = cursor.execute(statement, (vector, *values, vector, k)).fetchall()
        hits = [
            Hit(Chunk(text, source, first, last, metadata, chunk_id), cosine, {"cosine": cosine})
            for chunk_id, source, first, last, text, metadata, cosine in rows
        ]
        return sorted(hits, key=lambda hit: (-hit.score, hit.chunk.id))

    def close(self) -> None:
        """Closes the connections and the embedder. Twice is fine."""
        self._database.close()
        close_embedder(self._embedder)


def _conditions(wanted: Filter) -> tuple[list[str], list[Any]]:
    """The filter as SQL conditions, and the values that they take."""
    conditions: list[str] = []
    values: list[Any] = []
    for field, value in wanted.items():
        options = list(value) if isinstance(value, (list, tuple, set, frozenset)) else [value]
        if field == "source":
            exact = [_storable(str(option)) for option in options if not str(option).endswith("*")]
            begun = [_storable(str(option)[:-1]) for option in options if str(option).endswith("*")]
            conditions.append(
                "(source = ANY(%s) OR EXISTS (SELECT FROM unnest(%s::text[]) p WHERE starts_with(source, p)))"
            )
            values += [exact, begun]
        else:
            conditions.append("metadata -> %s = ANY(%s::jsonb[])")
            values += [field, [json.dumps(option) for option in options]]
    return conditions, values


def _memo(cursor: Cursor[Any], row: Sequence[Any]) -> Memo:
    memo_id, question, answer, model, decision_id = row[:5]
    sources = cursor.execute("SELECT source, version FROM nearfar_memo_sources WHERE memo = %s", (memo_id,)).fetchall()
    return Memo(question, answer, model, dict(sources), decision_id)


def _scope_key(scope: Scope) -> tuple[str, str, str]:
    return _name(scope.user), _name(scope.policy), scope.privacy


def _name(text: str) -> str:
    """The text as Postgres takes it, and another for every other: no two users may ever look the same."""
    return text.replace("\\", "\\\\").replace("\0", "\\0").encode(errors="backslashreplace").decode()


def _storable(text: str) -> str:
    """The text with "?" for lone surrogates and the replacement character for NUL, which Postgres does not take."""
    return text.replace("\0", "\ufffd").encode(errors="replace").decode()


def _as_text(vector: Any) -> str:
    return f"[{','.join(map(repr, vector.tolist()))}]"


def _unusable(exc: Exception) -> DataError:
    lines = str(exc).strip().splitlines() or [repr(exc)]
    what = lines[0]
    if "extension" in what and "vector" in what:
        return DataError(f"The Postgres has no pgvector: {what}. Install it on the server, as its administrator.")
    return DataError(f"Cannot use the Postgres: {what}. Check memory.postgres_url_env, and that the server is up.")
