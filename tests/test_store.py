"""What was confirmed is on disk, and one failure spoils nothing else."""

import asyncio
import os
import secrets
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nearfar.errors import DataError
from nearfar.store import Schema, Store

NOTES = Schema("notes", ("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT UNIQUE)",))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "nearfar.db"


@pytest.fixture
def store(path):
    store = Store(path, [NOTES])
    yield store
    store.close()


def note(text):
    """An operation that adds a row and gives its id."""
    return lambda db: db.execute("INSERT INTO notes (text) VALUES (?)", (text,)).lastrowid


def texts(db):
    """An operation that gives all rows."""
    return [row[0] for row in db.execute("SELECT text FROM notes ORDER BY id")]


# --- writing and reading ---------------------------------------------------------------------------------------------


async def test_a_write_gives_the_operations_result_and_is_there_to_read(store):
    """From any connection, as soon as it has returned."""
    first, second = await store.write(note("a")), await store.write(note("b"))

    assert (first, second) == (1, 2)
    assert await store.read(texts) == ["a", "b"]
    with closing(sqlite3.connect(store.path)) as other:
        assert texts(other) == ["a", "b"]


async def test_what_is_submitted_is_written_in_order_by_the_next_flush(store):
    """Nobody has to wait for each."""
    for i in range(1000):
        store.submit(note(str(i)))

    await store.flush()

    assert await store.read(texts) == [str(i) for i in range(1000)]


async def test_many_writes_at_once_share_commits(store):
    """The changes of a group become visible together, and there are far fewer groups than writes."""
    is_held, is_free = threading.Event(), threading.Event()

    def hold(_):
        is_held.set()
        is_free.wait(timeout=60)

    held = asyncio.create_task(store.write(hold))
    await asyncio.to_thread(is_held.wait, 60)
    writes = [asyncio.create_task(store.write(note(str(i)))) for i in range(500)]
    await asyncio.sleep(0)
    commits = []
    store.submit(lambda db: db.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None))
    is_free.set()
    await asyncio.gather(held, *writes)
    await store.flush()

    assert len(await store.read(texts)) == 500
    assert len(commits) <= 2  # the group of 500, and the flush


async def test_an_operation_that_raises_undoes_only_itself(store):
    """Its caller gets the error; the others of its group are written."""

    def half(db):
        note("half")(db)
        raise ValueError("changed my mind")

    done = await asyncio.gather(
        store.write(note("a")),
        store.write(half),
        store.write(note("a")),  # not unique
        store.write(lambda db: db.execute("SELECT * FROM absent")),
        store.write(note("b")),
        return_exceptions=True,
    )

    assert [type(each) for each in done] == [int, ValueError, sqlite3.IntegrityError, DataError, int]
    assert "no such table: absent" in str(done[3])
    assert await store.read(texts) == ["a", "b"]


async def test_an_operation_that_wants_to_end_the_process_does_not_end_the_writer(store):
    """Everything that an operation raises goes to its caller."""

    def leave(_):
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        await store.write(leave)

    await store.write(note("still here"))
    assert await store.read(texts) == ["still here"]


async def test_a_submitted_operation_that_fails_is_told_by_the_next_flush_once(store):
    """The others are written."""
    for text in ("a", "a", "b"):
        store.submit(note(text))

    with pytest.raises(DataError, match="UNIQUE constraint failed"):
        await store.flush()
    await store.flush()

    assert await store.read(texts) == ["a", "b"]


async def test_a_cancelled_write_is_written_and_holds_nothing_up(store):
    """It was queued; only its waiter is gone."""
    writes = [asyncio.create_task(store.write(note(str(i)))) for i in range(3)]
    await asyncio.sleep(0)

    writes[1].cancel()
    done = await asyncio.gather(*writes, return_exceptions=True)

    assert isinstance(done[1], asyncio.CancelledError)
    await store.flush()
    assert await store.read(texts) == ["0", "1", "2"]


def test_event_loops_come_and_go(store):
    """A store outlives the loops that use it, also those that end with a write under way."""

    async def leave_early():
        task = asyncio.create_task(store.write(note("early")))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(store.write(note("first")))
    asyncio.run(leave_early())
    asyncio.run(store.write(note("last")))

    assert asyncio.run(store.read(texts)) == ["first", "early", "last"]


def test_threads_share_a_store(store):
    """Each with an event loop of its own."""
    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(asyncio.run, store.write(note(str(i)))) for i in range(64)]:
            done.result(timeout=60)

    assert sorted(asyncio.run(store.read(texts)), key=int) == [str(i) for i in range(64)]


async def test_a_read_that_fails_says_which_file(store):
    """And nothing else breaks."""
    with pytest.raises(DataError, match=r"nearfar\.db.*no such table: absent"):
        await store.read(lambda db: db.execute("SELECT * FROM absent"))

    assert await store.read(texts) == []


# --- opening and closing ---------------------------------------------------------------------------------------------


async def test_closing_writes_what_is_queued(path):
    """Twice is fine, and afterwards every use is an error that says so."""
    store = Store(path, [NOTES])
    store.submit(note("a"))

    store.close()
    store.close()

    with pytest.raises(DataError, match="is closed"):
        await store.write(note("b"))
    with pytest.raises(DataError, match="is closed"):
        store.submit(note("b"))
    with pytest.raises(DataError, match="is closed"):
        await store.read(texts)
    with pytest.raises(DataError, match="is closed"):
        await store.flush()
    with closing(sqlite3.connect(path)) as db:
        assert texts(db) == ["a"]


async def test_a_write_that_meets_the_close_is_written_or_refused(path):
    """It never waits for ever."""
    for i in range(20):
        store = Store(path, [NOTES])
        writes = [asyncio.create_task(store.write(note(f"{i}.{j}"))) for j in range(20)]
        closer = asyncio.to_thread(store.close)
        done = (await asyncio.gather(closer, *writes, return_exceptions=True))[1:]

        with closing(sqlite3.connect(path)) as db:
            written = [text for text in texts(db) if text.startswith(f"{i}.")]
        assert len(written) == sum(isinstance(each, int) for each in done)
        assert all(isinstance(each, int | DataError) for each in done)


async def test_a_store_keeps_its_rows_between_openings(path):
    """As a file does."""
    for text in ("a", "b"):
        store = Store(path, [NOTES])
        await store.write(note(text))
        store.close()

    with closing(sqlite3.connect(path)) as db:
        assert texts(db) == ["a", "b"]


def test_only_its_owner_may_read_the_file_and_its_folder(path):
    """Prompts are private; so is what SQLite puts beside the file."""
    umask = os.umask(0)
    try:
        store = Store(path, [NOTES])
        asyncio.run(store.write(note("secret")))
        modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
        store.close()
    finally:
        os.umask(umask)

    assert modes == {"nearfar.db": 0o600, "nearfar.db-wal": 0o600, "nearfar.db-shm": 0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


# --- versions --------------------------------------------------------------------------------------------------------

V1 = Schema("notes", ("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT UNIQUE)",))
V3 = Schema(
    "notes",
    (
        *V1.migrations,
        "ALTER TABLE notes ADD COLUMN stars INTEGER NOT NULL DEFAULT 0; CREATE INDEX by_stars ON notes (stars)",
        "UPDATE notes SET stars = 5 WHERE text = 'a'",
    ),
)


async def test_an_older_file_is_migrated_and_keeps_its_rows(path):
    """Every step once."""
    old = Store(path, [V1])
    await old.write(note("a"))
    old.close()

    for _ in range(2):
        new = Store(path, [V3])
        rows = await new.read(lambda db: db.execute("SELECT text, stars FROM notes").fetchall())
        versions = await new.read(lambda db: dict(db.execute("SELECT component, version FROM schema_versions")))
        new.close()
        assert rows == [("a", 5)]
        assert versions == {"notes": 3}


def test_a_newer_file_is_refused_and_left_as_it_is(path):
    """The message says which component, and what to do."""
    Store(path, [V3]).close()

    with pytest.raises(DataError, match=r"newer nearfar \(notes version 3; this one knows 1\)\. Upgrade") as caught:
        Store(path, [V1])

    assert caught.value.path == str(path)
    Store(path, [V3]).close()


def test_a_migration_that_fails_changes_nothing(path):
    """Not even its first half."""
    Store(path, [V1]).close()
    broken = Schema("notes", (*V1.migrations, "CREATE TABLE more (id); CREATE TABLE notes (id)"))

    with pytest.raises(DataError, match="already exists"):
        Store(path, [broken])

    with closing(sqlite3.connect(path)) as db:
        tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert "more" not in tables
        assert dict(db.execute("SELECT component, version FROM schema_versions")) == {"notes": 1}


def test_components_share_a_file_without_knowing_each_other(path):
    """One may come later, or not at all."""
    other = Schema("others", ("CREATE TABLE others (id)",))

    Store(path, [V1]).close()
    Store(path, [other]).close()
    Store(path, [V1, other]).close()

    with closing(sqlite3.connect(path)) as db:
        assert dict(db.execute("SELECT component, version FROM schema_versions")) == {"notes": 1, "others": 1}


# --- what cannot be used ---------------------------------------------------------------------------------------------


def test_a_file_that_is_no_database_is_refused_and_left_alone(path):
    """Whatever it is, it is somebody's."""
    path.parent.mkdir()
    path.write_text("dear diary\n" * 100)

    with pytest.raises(DataError, match="file is not a database"):
        Store(path, [NOTES])

    assert path.read_text() == "dear diary\n" * 100


@pytest.mark.parametrize("place", ["file/nearfar.db", "."])
def test_a_place_where_no_file_can_be_is_refused(tmp_path, place):
    """Below a file, or where a folder is."""
    (tmp_path / "file").touch()

    with pytest.raises(DataError, match="Cannot use the store"):
        Store(tmp_path / place, [NOTES])


UNPRIVILEGED = textwrap.dedent(
    """
    import os, sys
    from nearfar.errors import DataError
    from nearfar.store import Store
    if os.geteuid() == 0:
        os.setuid(65534)  # root may write anywhere
    try:
        Store(sys.argv[1], [])
    except DataError as exc:
        print(exc)
    """
)


@pytest.mark.parametrize("existing", [True, False], ids=["read-only file", "read-only folder"])
def test_a_read_only_place_is_refused(existing, tmp_path_factory):
    """At once, in one line that names the file."""
    folder = tmp_path_factory.mktemp("readonly")
    for each in (folder, *folder.parents[:2]):
        each.chmod(0o755)
    path = folder / "nearfar.db"
    if existing:
        Store(path, [NOTES]).close()
        path.chmod(0o444)
    folder.chmod(0o555)

    done = subprocess.run([sys.executable, "-c", UNPRIVILEGED, path], capture_output=True, text=True, check=True)

    folder.chmod(0o755)
    assert done.stdout.startswith(f"Cannot use the store '{path}'")
    assert "ermission denied" in done.stdout


@contextmanager
def full_disk(store):
    """The store's file may not grow; SQLite then says SQLITE_FULL, as it does on a full disk."""

    def limit(db):
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        return db.execute(f"PRAGMA max_page_count = {pages}").fetchone()[0]

    asyncio.run(store.write(limit))
    yield
    asyncio.run(store.write(lambda db: db.execute("PRAGMA max_page_count = 1000000").fetchone()))


def test_a_full_disk_is_an_error_and_not_the_end(store):
    """What was confirmed stays, what was not is refused, and with room again all goes on."""
    big = "x" * 100_000
    asyncio.run(store.write(note("before")))

    async def write_both():
        return await asyncio.gather(store.write(note(big)), store.write(note(big + "y")), return_exceptions=True)

    with full_disk(store):
        done = asyncio.run(write_both())
        store.submit(note(big))
        with pytest.raises(DataError, match=r"disk is full.*Check that the disk has room"):
            asyncio.run(store.flush())
    asyncio.run(store.write(note("after")))

    assert [type(each) for each in done] == [DataError, DataError]
    assert asyncio.run(store.read(texts)) == ["before", "after"]


# --- several processes -----------------------------------------------------------------------------------------------

WRITER = textwrap.dedent(
    """
    import asyncio, sys
    from nearfar.store import Schema, Store

    NOTES = Schema("notes", ("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT UNIQUE)",))

    async def main(path, name, count):
        store = Store(path, [NOTES])
        for i in range(count):
            text = f"{name}.{i}"
            await store.write(lambda db: db.execute("INSERT INTO notes (text) VALUES (?)", (text,)))
            print(text, flush=True)

    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
    """
)


@contextmanager
def writers(path, names, count):
    """Processes that each write `count` rows and print what is confirmed; killed in the end if need be."""
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, path, name, str(count)], stdout=subprocess.PIPE, text=True)
        for name in names
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.stdout.close()
            process.wait()


OPENER = textwrap.dedent(
    """
    import sys
    from nearfar.errors import DataError
    from nearfar.store import Schema, Store

    print("ready", flush=True)
    for line in sys.stdin:
        try:
            Store(line.strip(), [Schema("notes", ("CREATE TABLE notes (id)",))]).close()
            print("fine", flush=True)
        except DataError as exc:
            print(exc, flush=True)
    """
)


def test_a_new_file_can_be_opened_by_several_processes_at_once(tmp_path):
    """One makes the tables, and none finds the file locked, as some did before we waited for the journal mode."""
    with ExitStack() as stack:
        command = [sys.executable, "-c", OPENER]
        openers = [
            stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            for _ in range(4)
        ]
        said = {each.stdout.readline() for each in openers}
        for i in range(100):
            for each in openers:
                each.stdin.write(f"{tmp_path / str(i)}.db\n")
            for each in openers:
                each.stdin.flush()
            said |= {each.stdout.readline() for each in openers}

    assert said == {"ready\n", "fine\n"}


async def test_processes_that_open_and_write_at_once_lose_nothing(path):
    """The file is new to all of them."""
    with writers(path, "abcd", 200) as processes:
        for process in processes:
            await asyncio.to_thread(process.communicate, timeout=60)
        assert [process.returncode for process in processes] == [0] * 4

    with closing(sqlite3.connect(path)) as db:
        assert sorted(texts(db)) == sorted(f"{name}.{i}" for name in "abcd" for i in range(200))


async def test_what_was_confirmed_survives_a_kill(path):
    """SIGKILL in the middle of writing: every row that was confirmed is there, and the file is whole."""
    with writers(path, "a", 1_000_000) as (process,):
        confirmed = [process.stdout.readline().strip() for _ in range(300)]
        process.kill()
        confirmed += process.communicate()[0].split()

    store = Store(path, [NOTES])
    kept = await store.read(texts)
    check = await store.read(lambda db: db.execute("PRAGMA integrity_check").fetchone()[0])
    store.close()
    assert check == "ok"
    assert kept[: len(confirmed)] == confirmed
    assert len(kept) - len(confirmed) <= 1  # written, and killed before it could say so


def test_a_process_that_ends_without_closing_writes_what_it_submitted(path):
    """Leaving in the ordinary way loses nothing."""
    script = WRITER.replace("await store.write(", "store.submit(").replace("print(text, flush=True)", "pass")
    script = script.replace("lambda db:", "lambda db, text=text:")

    subprocess.run([sys.executable, "-c", script, path, "a", "500"], check=True, timeout=60)

    with closing(sqlite3.connect(path)) as db:
        assert len(texts(db)) == 500


# --- brief operations ------------------------------------------------------------------------------------------------


@given(st.lists(st.booleans(), min_size=1, max_size=30))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_brief_and_other_operations_are_written_in_the_order_of_their_coming(tmp_path, are_brief):
    """Whatever the mixture, and whoever of the two writes them."""
    folder = tmp_path / secrets.token_hex(4)

    async def write_all():
        for i, is_brief in enumerate(are_brief):
            store.submit(note(str(i)), is_brief=is_brief)
            if i % 7 == 3:
                await asyncio.sleep(0)
        await store.flush()
        return await store.read(texts)

    with closing(Store(folder / "nearfar.db", [NOTES])) as store:
        assert asyncio.run(write_all()) == [str(i) for i in range(len(are_brief))]


async def test_a_brief_operation_does_not_hold_the_event_loop_up_while_another_process_writes(store):
    """It waits in the writer thread, and is written once the file is free."""
    turns = 0
    with closing(sqlite3.connect(store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        store.submit(note("waits"), is_brief=True)
        flush = asyncio.create_task(store.flush())
        for _ in range(50):
            await asyncio.sleep(0.001)
            turns += 1
        assert not flush.done()
        other.execute("COMMIT")
        await flush

    assert turns == 50
    assert await store.read(texts) == ["waits"]


async def test_a_brief_operation_that_fails_undoes_only_itself(store):
    """Its neighbours in the group are written, and the next flush tells."""
    for text in ("a", "a", "b"):
        store.submit(note(text), is_brief=True)
    with pytest.raises(DataError, match="UNIQUE"):
        await store.flush()

    assert await store.read(texts) == ["a", "b"]


def test_brief_operations_of_a_loop_that_ended_are_written_by_the_next_or_by_the_close(path):
    """Nothing that was submitted is lost with its loop."""

    async def submit(text):
        store.submit(note(text), is_brief=True)

    async def flush():
        await store.flush()

    store = Store(path, [NOTES])
    asyncio.run(submit("first"))
    asyncio.run(submit("second"))
    asyncio.run(flush())
    asyncio.run(submit("third"))
    store.close()

    with closing(sqlite3.connect(path)) as db:
        assert texts(db) == ["first", "second", "third"]


async def test_the_write_ahead_log_stays_small_however_many_brief_operations_there_are(store):
    """It is moved into the file from time to time, and used again."""
    log = store.path.with_name(store.path.name + "-wal")
    sizes = []
    for i in range(2000):
        store.submit(note(f"{i} {'x' * 2000}"), is_brief=True)
        await store.flush()
        sizes.append(log.stat().st_size)

    assert max(sizes[1000:]) < 1.5 * max(sizes[:1000])
    assert max(sizes) < 48 * 1024 * 1024


async def test_who_waits_alone_waits_for_no_other_turn_of_the_loop(store):
    """Where writers come one by one each commits at once; where many come they share commits, and none is lost."""
    store.submit(note("alone"), is_brief=True)
    waiting = store.flush()
    with pytest.raises(StopIteration):
        waiting.send(None)  # it ends without having waited

    async def write(number):
        store.submit(note(f"note {number}"), is_brief=True)
        await store.flush()

    await asyncio.gather(*map(write, range(200)))
    assert len(await store.read(texts)) == 201
