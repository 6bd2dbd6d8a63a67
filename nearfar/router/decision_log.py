"""The decision log: one record per query in SQLite, with redaction, retention and look-up."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import chain
from typing import Any, Literal

import msgspec

from nearfar.errors import DataError, RequestError
from nearfar.store import Operation, Schema, Store
from nearfar.types import Decision, Status

DECISIONS = Schema(
    "decisions",
    (
        """
        CREATE TABLE decisions (
            seq INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            created_at REAL NOT NULL,
            status TEXT NOT NULL,
            door TEXT NOT NULL,
            session TEXT,
            target TEXT NOT NULL,
            tier TEXT,
            model TEXT,
            record BLOB NOT NULL
        );
        CREATE INDEX decisions_created_at ON decisions (created_at);
        """,
        """
        CREATE TABLE outcomes (
            decision_id TEXT NOT NULL REFERENCES decisions (id) ON DELETE CASCADE,
            source TEXT NOT NULL,
            value REAL NOT NULL,
            created_at REAL NOT NULL,
            PRIMARY KEY (decision_id, source)
        ) WITHOUT ROWID;
        """,
    ),
)

#: How often old records are looked for while records are being written.
_PURGE_EVERY_S = 3600.0

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Decision).decode

TextPolicy = Literal["keep", "hash", "drop"]


_COLUMNS = ("id", "created_at", "status", "door", "session", "target", "tier", "model", "record")
_ROWS_PER_INSERT = 64


@cache
def _insert(num_rows: int) -> str:
    row = f"({', '.join('?' * len(_COLUMNS))})"
    return f"INSERT INTO decisions ({', '.join(_COLUMNS)}) VALUES {', '.join([row] * num_rows)}"  # noqa: S608  # constants


def _row(record: Decision) -> tuple[object, ...]:
    return (
        record.id,
        record.created_at,
        record.status,
        record.door,
        record.request.get("session"),
        record.target,
        record.tier,
        record.model,
        _encode(record),
    )


def _raising(failure: Exception) -> Operation[None]:
    def fail(_: sqlite3.Connection) -> None:
        raise failure

    return fail


class SqliteDecisionLog:
    """Decisions in a store.

    Args:
        store: opened with `DECISIONS` among its schemas.
        text: what becomes of prompts and answers: kept, replaced by their SHA-256, or dropped.
        retention_days: records older than this are deleted; None: never.
    """

    def __init__(self, store: Store, *, text: TextPolicy = "keep", retention_days: float | None = None) -> None:
        self._store = store
        self._text = text
        self._retention_s = None if retention_days is None else retention_days * 86400
        self._next_purge = 0.0
        self._pending: deque[Decision] = deque()
        self._is_insert_queued = False

    def submit(self, decision: Decision) -> None:
        """Queues the record; never blocks."""
        if self._retention_s is not None and decision.created_at >= self._next_purge:
            self._next_purge = decision.created_at + _PURGE_EVERY_S
            self._store.submit(self._delete_old)

        self._pending.append(decision)
        if not self._is_insert_queued:
            self._is_insert_queued = True
            self._store.submit(self._insert_pending, is_brief=True)

    async def flush(self) -> None:
        """Waits until everything submitted so far is written.

        Raises:
            DataError: the store cannot be written.
        """
        await self._store.flush()

    async def get(self, id_or_prefix: str) -> Decision | None:
        """The decision with this id, or the only one whose id begins so; None: there is none.

        Raises:
            RequestError: several ids begin so.
        """

        def look_up(connection: sqlite3.Connection) -> list[tuple[str, bytes]]:
            return connection.execute(
                "SELECT id, record FROM decisions WHERE id >= ? AND id < ? ORDER BY id LIMIT 2",
                (id_or_prefix, id_or_prefix + "\U0010ffff"),
            ).fetchall()

        rows = await self._store.read(look_up)
        if not rows or not id_or_prefix:
            return None
        if len(rows) > 1 and rows[0][0] != id_or_prefix:
            raise RequestError(f"Several decisions begin with {id_or_prefix!r}; give more of the id.", param="id")
        return self._parse(rows[0][1])

    async def select(
        self,
        *,
        limit: int = 20,
        status: Status | None = None,
        tier: str | None = None,
        model: str | None = None,
        since: float | None = None,
        before: float | None = None,
        session: str | None = None,
        door: str | None = None,
    ) -> list[Decision]:
        """The newest decisions that match, newest first; times are Unix seconds."""
        clauses, values = _where(
            ("status = ?", status),
            ("tier = ?", tier),
            ("model = ?", model),
            ("created_at >= ?", since),
            ("created_at < ?", before),
            ("session = ?", session),
            ("door = ?", door),
        )

        def look_up(connection: sqlite3.Connection) -> list[tuple[bytes]]:
            sql = f"SELECT record FROM decisions {clauses} ORDER BY seq DESC LIMIT ?"  # noqa: S608 — our own clauses
            return connection.execute(sql, (*values, limit)).fetchall()

        return [self._parse(record) for (record,) in await self._store.read(look_up)]

    async def iterate(self, *, after: int = 0, batch: int = 500) -> AsyncIterator[tuple[int, Decision]]:
        """All decisions with a sequence number above `after`, oldest first, each with its number."""
        while True:

            def look_up(connection: sqlite3.Connection, after: int = after) -> list[tuple[int, bytes]]:
                return connection.execute(
                    "SELECT seq, record FROM decisions WHERE seq > ? ORDER BY seq LIMIT ?", (after, batch)
                ).fetchall()

            rows = await self._store.read(look_up)
            for seq, record in rows:
                yield seq, self._parse(record)
            if len(rows) < batch:
                return
            after = rows[-1][0]

    async def last_sequence(self) -> int:
        """The newest record's sequence number; 0 where there is none."""

        def look_up(connection: sqlite3.Connection) -> int:
            (value,) = connection.execute("SELECT coalesce(max(seq), 0) FROM decisions").fetchone()
            return int(value)

        return await self._store.read(look_up)

    async def purge(self) -> int:
        """Deletes what is older than the retention and returns how many records went."""
        return await self._store.write(self._delete_old)

    def _insert_pending(self, connection: sqlite3.Connection) -> None:
        """Writes what has been submitted, many rows to a statement.

        The writer thread gives up the interpreter's lock around each statement and has to win it back from a busy
        event loop; statement by statement that cost more than the writing.
        """
        self._is_insert_queued = False  # first, so that whatever is submitted from here on queues another
        failure: Exception | None = None
        rows: list[tuple[object, ...]] = []
        while self._pending:
            decision = self._pending.popleft()
            try:
                rows.append(_row(decision if self._text == "keep" else redact(decision, self._text)))
            except Exception as exc:  # one that cannot be encoded does not take the others with it
                failure = exc
        for start in range(0, len(rows), _ROWS_PER_INSERT):
            part = rows[start : start + _ROWS_PER_INSERT]
            connection.execute(_insert(len(part)), list(chain.from_iterable(part)))
        if failure is not None:
            self._store.submit(_raising(failure))

    def _delete_old(self, connection: sqlite3.Connection) -> int:
        if self._retention_s is None:
            return 0
        return connection.execute(
            "DELETE FROM decisions WHERE created_at < ?", (time.time() - self._retention_s,)
        ).rowcount

    def _parse(self, record: bytes) -> Decision:
        try:
            return _decode(record)
        except msgspec.DecodeError as exc:
            path = str(self._store.path)
            raise DataError(f"A decision in {path!r} cannot be read: {exc}.", path=path) from exc


def redact(decision: Decision, text: Literal["hash", "drop"]) -> Decision:
    """The decision with prompts and answers hashed or dropped; numbers, names and reasons stay."""

    def hide(value: str) -> str:
        if not value or text == "drop":
            return ""
        return f"sha256:{hashlib.sha256(value.encode()).hexdigest()}"

    def hide_all(value: Any) -> Any:
        if isinstance(value, str):
            return hide(value)
        if isinstance(value, dict):
            return {key: hide_all(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [hide_all(inner) for inner in value]
        return value

    def hide_in(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
        return {key: hide_all(value) if key in names else value for key, value in values.items()}

    request = hide_in(decision.request, "tools", "response_format", "metadata")
    request["prompt"] = [
        hide_in({key: value for key, value in message.items() if key != "extra"}, "content", "tool_calls")
        for message in request.get("prompt", ())
    ]
    request["sampling"] = hide_in(request.get("sampling", {}), "extra", "stop")
    steps = tuple(replace(step, text=hide(step.text)) for step in decision.steps)
    routing = decision.routing
    if routing is not None and routing.rewritten is not None:
        routing = replace(routing, rewritten=hide(routing.rewritten))
    return replace(decision, request=request, steps=steps, routing=routing)


def _where(*conditions: tuple[str, object]) -> tuple[str, Sequence[Any]]:
    given = [(clause, value) for clause, value in conditions if value is not None]
    if not given:
        return "", ()
    return "WHERE " + " AND ".join(clause for clause, _ in given), tuple(value for _, value in given)
