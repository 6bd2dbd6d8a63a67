"""Opens the place where runs survive: LangGraph's checkpoints and the journal, in one SQLite file or one Postgres.

A run is worked on by one process at a time, which the operating system, or Postgres, sees to: a lock that dies with
its holder. LangGraph's SQLite saver is meant for one process; here its transactions are short and wait for others', so
that several processes may share the file, one run each.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer

from nearfar.errors import ConfigError, DataError, RunConflict

from .journal import Journal, make_tables

if TYPE_CHECKING:
    import aiosqlite
    import psycopg
    from langgraph.checkpoint.base import BaseCheckpointSaver

#: How long a statement waits for another process to finish its own.
_BUSY_S = 30.0

#: Longer than whoever only looks whether a run is held can hold it.
_LOOK_S = 0.2


_FORGET = """DELETE FROM WRITES WHERE thread_id = ? AND EXISTS (
    SELECT 1 FROM WRITES AS cut WHERE cut.thread_id = WRITES.thread_id AND cut.checkpoint_id = WRITES.checkpoint_id
    AND cut.task_id = WRITES.task_id AND cut.channel = '__error__')"""


class _Locks(Protocol):
    async def take(self, run_id: str) -> bool: ...

    async def release(self, run_id: str) -> None: ...


@dataclass(frozen=True, slots=True)
class RunStore:
    """Checkpoints, journal and locks of one database; close it when done."""

    saver: BaseCheckpointSaver[Any]
    journal: Journal
    _locks: _Locks
    _writes: str  # the table of what nodes gave since the newest checkpoint
    _undo: Callable[[], Awaitable[None]]
    _stack: AsyncExitStack

    @asynccontextmanager
    async def claim(self, run_id: str) -> AsyncIterator[None]:
        """Holds the run, so that nobody else works on it.

        Raises:
            RunConflict: somebody does.
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + _LOOK_S
        while not await self._locks.take(run_id):
            if loop.time() > give_up_at:
                message = f"The run {run_id!r} is being worked on by another process; wait for it."
                raise RunConflict(message, param="run")
            await asyncio.sleep(0.01)
        try:
            yield
        finally:
            await self._locks.release(run_id)

    async def forget_cut_nodes(self, run_id: str) -> None:
        """Drops what nodes that failed or were cancelled have left, so that they are done again from their beginning.

        LangGraph keeps what a node wrote before it was cancelled, and takes it for all that the node had to say: the
        edge that leads on is then missing, and the run would end there.
        """
        await self.journal.database.rows(_FORGET.replace("WRITES", self._writes), (run_id,))

    async def settle(self) -> None:
        """Undoes what a cancelled node had begun to write; its locks would keep every other connection waiting."""
        await self._undo()

    async def is_claimed(self, run_id: str) -> bool:
        """Whether somebody works on the run just now."""
        if not await self._locks.take(run_id):
            return True
        await self._locks.release(run_id)
        return False

    async def aclose(self) -> None:
        """Closes the database. Twice is fine."""
        await self._stack.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


async def _nothing() -> None:
    """Statements of Postgres are undone with what cancelled them."""


def _serde() -> JsonPlusSerializer:
    """Plain values only: a checkpoint that names a class is refused, not built."""
    return JsonPlusSerializer(allowed_msgpack_modules=None)


# --- SQLite ----------------------------------------------------------------------------------------------------------


async def open_sqlite(path: Path) -> RunStore:
    """The store in the file, which is made if need be and is readable by its owner alone.

    Raises:
        DataError: the file cannot be used.
    """
    import aiosqlite
    from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver

    stack = AsyncExitStack()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        connections = []
        # The saver writes what a node gave in several rows, which count together or not at all: its connection keeps
        # Python's transactions. The journal's statements are each committed by themselves.
        for isolation in ("IMMEDIATE", None):
            connection = await stack.enter_async_context(
                aiosqlite.connect(path, timeout=_BUSY_S, isolation_level=isolation)
            )
            await _use_write_ahead_log(connection)
            # A call with side effects is on the disk before it is made, even if the power fails.
            await connection.execute("PRAGMA synchronous=FULL")
            connections.append(connection)
        database = _Sqlite(connections[1], path)
        await make_tables(database)
        saver = AsyncSqliteSaver(connections[0], serde=_serde())
        await saver.setup()

        async def undo() -> None:
            async with saver.lock:
                await connections[0].rollback()

        stack.push_async_callback(undo)
    except (OSError, sqlite3.Error) as exc:
        await stack.aclose()
        raise _unusable(str(path), exc) from exc
    except BaseException:
        await stack.aclose()
        raise
    return RunStore(saver, Journal(database), _FileLocks(path.with_name(f"{path.name}.runs")), "writes", undo, stack)


async def _use_write_ahead_log(connection: aiosqlite.Connection) -> None:
    """Waits itself for other connections, which SQLite's busy timeout does not do for a change of the journal mode."""
    give_up_at = asyncio.get_running_loop().time() + _BUSY_S
    while True:
        try:
            await connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or asyncio.get_running_loop().time() > give_up_at:
                raise
        else:
            return
        await asyncio.sleep(0.01)


@dataclass(frozen=True, slots=True)
class _Sqlite:
    connection: aiosqlite.Connection
    path: Path
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def rows(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            async with self.lock, self.connection.execute(statement, parameters) as cursor:
                return [tuple(row) for row in await cursor.fetchall()]
        except (sqlite3.Error, ValueError) as exc:  # ValueError: it is closed
            raise _unusable(str(self.path), exc) from exc


@dataclass(frozen=True, slots=True)
class _FileLocks:
    """A file per run that is held, in a folder beside the database."""

    folder: Path
    held: dict[str, int] = field(default_factory=dict)

    async def take(self, run_id: str) -> bool:
        if run_id in self.held:
            return False
        self.folder.mkdir(exist_ok=True, mode=0o700)
        path = self._path(run_id)
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_still_there = path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())
            except BlockingIOError:
                os.close(descriptor)
                return False
            except FileNotFoundError:
                is_still_there = False
            if is_still_there:
                self.held[run_id] = descriptor
                return True
            os.close(descriptor)  # its last holder has just removed it

    async def release(self, run_id: str) -> None:
        descriptor = self.held.pop(run_id)
        self._path(run_id).unlink(missing_ok=True)
        os.close(descriptor)

    def _path(self, run_id: str) -> Path:
        return self.folder / hashlib.sha256(run_id.encode()).hexdigest()[:32]


# --- Postgres --------------------------------------------------------------------------------------------------------

#: The advisory lock under which tables are made.
_SETUP = 0x6E656172


async def open_postgres(url: str) -> RunStore:
    """The store in the database at `url`.

    Raises:
        ConfigError: `nearfar[agents,postgres]` is not installed.
        DataError: the database cannot be reached or used.
    """
    try:
        import psycopg
        from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
        from psycopg.rows import dict_row
    except ImportError as exc:
        raise ConfigError(
            "Runs in Postgres need psycopg and LangGraph's saver. Install them: pip install 'nearfar[agents,postgres]'"
        ) from exc

    stack = AsyncExitStack()
    try:
        own = await stack.enter_async_context(await psycopg.AsyncConnection.connect(url, autocommit=True))
        savers: Any = await psycopg.AsyncConnection.connect(
            url, autocommit=True, prepare_threshold=0, row_factory=dict_row
        )
        await stack.enter_async_context(savers)
        database = _Postgres(own)
        saver = AsyncPostgresSaver(savers, serde=_serde())
        await database.rows("SELECT pg_advisory_lock(?)", (_SETUP,))
        try:
            await make_tables(database)
            await saver.setup()
        finally:
            await database.rows("SELECT pg_advisory_unlock(?)", (_SETUP,))
    except psycopg.Error as exc:
        await stack.aclose()
        raise _unusable("Postgres", exc) from exc
    except BaseException:
        await stack.aclose()
        raise
    return RunStore(saver, Journal(database), _AdvisoryLocks(database), "checkpoint_writes", _nothing, stack)


@dataclass(frozen=True, slots=True)
class _Postgres:
    connection: psycopg.AsyncConnection[Any]
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def rows(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        import psycopg

        query: Any = statement.replace("%", "%%").replace("?", "%s")
        try:
            async with self.lock, self.connection.cursor() as cursor:
                await cursor.execute(query, tuple(parameters))
                return [tuple(row) for row in await cursor.fetchall()] if cursor.description else []
        except psycopg.Error as exc:
            raise _unusable("Postgres", exc) from exc


@dataclass(frozen=True, slots=True)
class _AdvisoryLocks:
    """Session-level advisory locks, which Postgres frees when the connection ends."""

    database: _Postgres
    held: set[str] = field(default_factory=set)

    async def take(self, run_id: str) -> bool:
        if run_id in self.held:  # the same session may take a lock twice
            return False
        rows = await self.database.rows("SELECT pg_try_advisory_lock(?)", (_number(run_id),))
        if rows[0][0]:
            self.held.add(run_id)
        return bool(rows[0][0])

    async def release(self, run_id: str) -> None:
        self.held.discard(run_id)
        await self.database.rows("SELECT pg_advisory_unlock(?)", (_number(run_id),))


def _number(run_id: str) -> int:
    """63 bits of the run's id."""
    return int.from_bytes(hashlib.sha256(run_id.encode()).digest()[:8]) >> 1


def _unusable(where: str, exc: BaseException) -> DataError:
    said = " ".join(str(exc).split())
    return DataError(f"Cannot keep runs in {where!r}: {said}. Check that it can be reached and written.", path=where)
