"""SQLite for everything that nearfar keeps: open, migrate, group commit.

What is queued is written in one transaction, so that a hundred requests at once cost one commit. Brief operations are
committed by the event loop's own thread while nobody else holds the file: passing them to another thread costs more
than writing them; where those who wait come one by one, each commits his own without a further turn of the loop.
Everything else, and whatever has to wait, is the writer thread's. WAL with `synchronous=NORMAL`: what `write` or
`flush` has confirmed survives the process (`kill -9`); a power loss may cost the last groups, never the file's
integrity.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from nearfar.errors import DataError

T = TypeVar("T")
Operation = Callable[[sqlite3.Connection], T]

#: How long a writer waits for another process's transaction.
BUSY_TIMEOUT_S = 30.0

#: Groups committed on event loops between two checkpoints of the write-ahead log, which sync files and are the writer
#: thread's: a log of some ten megabytes.
_GROUPS_PER_CHECKPOINT = 500

#: Where those who wait come further apart than this, each commits his own at once: nobody is about to join him.
_LONG_GAP_S = 0.001


@dataclass(frozen=True, slots=True)
class Schema:
    """The tables of one component; `migrations[i]` takes version i to i + 1 and is never edited once released."""

    component: str
    migrations: tuple[str, ...]


@dataclass(slots=True)
class _Job:
    operation: Operation[Any]
    loop: asyncio.AbstractEventLoop | None  # None: nobody waits
    future: asyncio.Future[Any] | None
    result: Any = None
    error: BaseException | None = None


class Store:
    """One SQLite file, shared by any number of threads, event loops and processes.

    Args:
        path: the file; its folder is made if need be. The file is readable by its owner alone.
        schemas: the components whose tables it must have.

    Raises:
        DataError: not a SQLite file, of a newer version, or not writable.
    """

    def __init__(self, path: str | Path, schemas: Sequence[Schema]) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            self._writer = self._connect()
            _migrate(self._writer, schemas, self.path)
            self._reader = self._connect()
            self._brief_writer = self._connect(timeout_s=0.0)
            self._brief_writer.execute("PRAGMA wal_autocheckpoint=0")
        except (OSError, sqlite3.Error) as exc:
            raise _unusable(self.path, exc) from exc
        self._reader_lock = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._put_lock = threading.RLock()  # so that nothing is queued behind the end; operations may submit
        self._num_queued = 0  # with the writer thread, until they are committed
        self._brief: list[_Job] = []  # to be committed by `_brief_loop` in its next turn
        self._brief_loop: asyncio.AbstractEventLoop | None = None
        self._num_brief_groups = 0  # since the last checkpoint
        self._latest = 0.0  # when somebody last began to wait
        self._gap_s = 0.0  # from one who waits to the next, in the mean of about eight
        self._failure: BaseException | None = None
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name=f"nearfar-store-{self.path.name}", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    async def write(self, operation: Operation[T]) -> T:
        """Runs `operation` in the next group and returns its result once the group is committed.

        The operation must not commit. If it raises, its own changes alone are undone, and the error comes out here.
        Once queued it is run, even if its waiter is cancelled.

        Raises:
            DataError: the file cannot be written, or the store is closed.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._put(_Job(operation, loop, future))
        return await future

    def submit(self, operation: Operation[object], *, is_brief: bool = False) -> None:
        """Queues `operation` and returns at once; a failure is raised by the next `flush`.

        Args:
            operation: as for `write`.
            is_brief: it writes a few rows and looks for none, so that an event loop may wait for it.
        """
        job = _Job(operation, None, None)
        if not (is_brief and self._put_brief(job)):
            self._put(job)

    async def flush(self) -> None:
        """Waits until everything queued so far is committed.

        Raises:
            DataError: something queued by `submit` since the last flush could not be written.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        job = _Job(_nothing, loop, future)
        now = time.perf_counter()
        with self._put_lock:
            self._gap_s += (min(now - self._latest, 1.0) - self._gap_s) / 8
            self._latest = now
            if not self._brief or self._brief_loop is not loop or self._is_closed:
                self._put(job)
            else:
                self._brief.append(job)
                if self._gap_s > _LONG_GAP_S:
                    self._commit_brief()
        await future  # one that is done is not waited for
        failure, self._failure = self._failure, None
        if failure is not None:
            raise _unusable(self.path, failure) from failure

    async def read(self, operation: Operation[T]) -> T:
        """Runs a read-only `operation` in a thread and returns its result."""
        return await asyncio.to_thread(self.read_now, operation)

    def read_now(self, operation: Operation[T]) -> T:
        """Blocking twin of `read`, for use before an event loop runs."""
        with self._reader_lock:
            self._check_open()
            try:
                return operation(self._reader)
            except sqlite3.Error as exc:
                raise _unusable(self.path, exc) from exc

    def close(self) -> None:
        """Writes what is queued and closes the file. Twice is fine."""
        with self._put_lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._hand_over()
            self._jobs.put(None)
        atexit.unregister(self.close)
        self._thread.join()
        with self._reader_lock:
            self._reader.close()
        self._writer.close()
        self._brief_writer.close()

    def _put(self, job: _Job) -> None:
        with self._put_lock:
            self._check_open()
            self._hand_over()
            self._queue([job])

    def _queue(self, jobs: list[_Job]) -> None:
        self._num_queued += len(jobs)
        for job in jobs:
            self._jobs.put(job)

    def _put_brief(self, job: _Job) -> bool:
        """Leaves the job to the running event loop's next turn; False where the writer thread has to take it."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        with self._put_lock:
            self._check_open()
            if self._brief and loop is not self._brief_loop:
                self._hand_over()
            if not self._brief:
                if self._num_queued:
                    return False  # it comes behind what the writer thread has
                self._brief_loop = loop
                loop.call_soon(self._commit_brief)
            self._brief.append(job)
        return True

    def _commit_brief(self) -> None:
        """Commits the brief operations at once, or hands them to the writer thread where that has to wait."""
        with self._put_lock:
            if not self._brief:
                return
            can_write = not self._num_queued and self._is_free()
            if not can_write:
                self._hand_over()
                return
            jobs, self._brief = self._brief, []
            self._commit(self._brief_writer, jobs)
        _resolve(jobs)
        self._num_brief_groups += 1
        if self._num_brief_groups == _GROUPS_PER_CHECKPOINT:
            self._num_brief_groups = 0
            self._jobs.put(_Job(_checkpoint, None, None))

    def _is_free(self) -> bool:
        """Begins the brief writer's transaction; False where another connection is writing."""
        try:
            self._brief_writer.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as exc:
            return exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY  # else the commit meets it again, and reports it
        return True

    def _hand_over(self) -> None:
        """Queues the brief operations for the writer thread, so that all are written in the order of their coming."""
        jobs, self._brief = self._brief, []
        self._queue(jobs)

    def _check_open(self) -> None:
        if self._is_closed:
            raise DataError(f"The store {str(self.path)!r} is closed.", path=str(self.path))

    def _connect(self, *, timeout_s: float = BUSY_TIMEOUT_S) -> sqlite3.Connection:
        return _connect(self.path, timeout_s)

    def _run(self) -> None:
        is_open = True
        while is_open:
            group = [self._jobs.get()]
            while not self._jobs.empty():
                group.append(self._jobs.get())
            is_open = None not in group
            jobs = [job for job in group if job is not None and job.operation is not _checkpoint]
            if jobs:
                self._commit(self._writer, jobs)
                with self._put_lock:
                    self._num_queued -= len(jobs)
                _wake(jobs)
            if any(job is not None and job.operation is _checkpoint for job in group):
                self._shorten_log()

    def _shorten_log(self) -> None:
        """Moves the write-ahead log into the file: most of it beside the event loops' commits, and the rest while they
        wait, so that it begins anew."""
        try:
            _checkpoint(self._writer)
            with self._put_lock:
                self._num_queued += 1
            try:
                _checkpoint(self._writer)
            finally:
                with self._put_lock:
                    self._num_queued -= 1
        except sqlite3.Error as exc:
            self._failure = exc

    def _commit(self, connection: sqlite3.Connection, jobs: list[_Job]) -> None:
        writing = [job for job in jobs if job.operation is not _nothing]
        is_shared = len(writing) > 1  # a lone operation needs no savepoint: all there is to undo is its own
        try:
            if writing and not connection.in_transaction:
                connection.execute("BEGIN IMMEDIATE")
            for job in writing:
                if is_shared:
                    connection.execute("SAVEPOINT job")
                try:
                    job.result = job.operation(connection)
                except BaseException as exc:  # whatever it is, it is the caller's, and the writer goes on
                    if not connection.in_transaction:
                        raise  # SQLite has undone the whole group: full disk, I/O error
                    connection.execute("ROLLBACK TO job" if is_shared else "ROLLBACK")
                    job.error = _unusable(self.path, exc) if isinstance(exc, sqlite3.OperationalError) else exc
                if is_shared:
                    connection.execute("RELEASE job")
            if connection.in_transaction:
                connection.execute("COMMIT")
        except BaseException as exc:
            with suppress(sqlite3.Error):  # there may be nothing left to undo
                connection.execute("ROLLBACK")
            for job in jobs:
                job.error = _unusable(self.path, exc)
        for job in jobs:
            if job.error is not None and job.future is None:
                self._failure = job.error


def open_database(path: Path, schemas: Sequence[Schema]) -> sqlite3.Connection:
    """A connection to the file, with every table, for whoever commits himself and in order: no thread, no group.

    Raises:
        DataError: not a SQLite file, of a newer version, or not writable.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        connection = _connect(path, BUSY_TIMEOUT_S)
        _migrate(connection, schemas, path)
    except (OSError, sqlite3.Error) as exc:
        raise _unusable(path, exc) from exc
    return connection


def _connect(path: Path, timeout_s: float) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=timeout_s, isolation_level=None, check_same_thread=False)
    try:
        _use_write_ahead_log(connection)
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _wake(jobs: list[_Job]) -> None:
    """Resolves the futures, with one wake-up per event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Job]] = {}
    for job in jobs:
        if job.loop is not None:
            by_loop.setdefault(job.loop, []).append(job)
    for loop, waiting in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, waiting)
        except RuntimeError:
            continue  # the loop is closed: nobody waits any more


def _resolve(jobs: list[_Job]) -> None:
    for job in jobs:
        if job.future is None or job.future.done():
            continue
        if job.error is not None:
            job.future.set_exception(job.error)
        else:
            job.future.set_result(job.result)


def _nothing(_: sqlite3.Connection) -> None:
    return None


def _checkpoint(connection: sqlite3.Connection) -> None:
    """Moves what the write-ahead log holds into the file; outside any transaction."""
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)")


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Waits itself for other connections, which SQLite's busy timeout does not do for a change of the journal mode."""
    give_up_at = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as exc:
            if exc.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_at:
                raise
        else:
            return
        time.sleep(0.01)


def _migrate(connection: sqlite3.Connection, schemas: Sequence[Schema], path: Path) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_versions (component TEXT PRIMARY KEY, version INTEGER NOT NULL)"
        )
        versions = dict(connection.execute("SELECT component, version FROM schema_versions"))
        for schema in schemas:
            version = versions.get(schema.component, 0)
            if version > len(schema.migrations):
                raise DataError(
                    f"{str(path)!r} was written by a newer nearfar ({schema.component} version {version}; this one "
                    f"knows {len(schema.migrations)}). Upgrade nearfar, or name another file.",
                    path=str(path),
                )
            for script in schema.migrations[version:]:
                for statement in script.split(";"):
                    if statement.strip():
                        connection.execute(statement)
            connection.execute(
                "INSERT INTO schema_versions VALUES (?, ?)"
                " ON CONFLICT (component) DO UPDATE SET version = excluded.version",
                (schema.component, len(schema.migrations)),
            )
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        connection.close()
        raise


def _unusable(path: Path, exc: BaseException) -> DataError:
    if isinstance(exc, DataError):
        return exc
    return DataError(
        f"Cannot use the store {str(path)!r}: {exc}. Check that the disk has room and that the file is a nearfar "
        "store that you may write.",
        path=str(path),
    )
