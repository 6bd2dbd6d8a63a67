"""Indexing files: what is new or changed is read, what has vanished is deleted, what cannot be read is listed."""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nearfar.types import Chunk

from . import readers
from .chunking import Chunking
from .database import DocumentRecord
from .documents import Kind, Unreadable
from .folders import walk
from .readers import kind_of
from .reading import SECONDS, ReadingProcess
from .writing import CollectionWriter

#: Files beyond this are listed as failed; a text of this size has about 100,000 chunks.
MAX_BYTES = 100_000_000

#: How long after its last change a file's time is not trusted to change with the next: filesystems' clocks are coarse.
_COARSE_S = 2.0

#: Problems of one file that are told one by one.
_NUM_TOLD = 3


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is."""

    done: int  # files looked at
    total: int
    name: str  # the file just looked at


@dataclass(slots=True)
class Report:
    """What a run did."""

    added: int = 0
    changed: int = 0
    unchanged: int = 0
    deleted: int = 0
    num_chunks: int = 0  # of what was added and changed
    num_bytes: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)  # files in a folder that hold no text, and why
    failures: list[tuple[str, str]] = field(default_factory=list)  # what could not be read, and why
    elapsed_s: float = 0.0


def index_paths(
    writer: CollectionWriter,
    paths: Sequence[Path],
    *,
    chunking: Chunking = Chunking(),  # noqa: B008 - frozen
    exclude: Sequence[str] = (),
    max_bytes: int = MAX_BYTES,
    max_seconds: float = SECONDS,
    on_progress: Callable[[Progress], None] | None = None,
) -> Report:
    """What was done to make the collection hold the files as they are now.

    Args:
        writer: of the collection; its `finish` is called.
        paths: files and folders. What was indexed from under them and is no longer there, or ignored now, is deleted.
        chunking: how long chunks are; another length than before reads everything anew.
        exclude: patterns in .gitignore's syntax, relative to each folder.
        max_bytes: larger files are listed as failures, and PDFs with more characters of text.
        max_seconds: that a file may take to be read, besides two for each of its megabytes.
        on_progress: called after every file.

    Raises:
        DataError: a path does not exist, or the collection cannot be written; what was committed before stays.
    """
    started = time.monotonic()
    report = Report()
    roots = list(dict.fromkeys(path.absolute() for path in paths))
    unread: dict[Path, str] = {}
    found = [(root, list(walk(root, exclude=exclude, unread=unread))) for root in roots]
    total = sum(len(files) for _, files in found)
    done = 0
    with ReadingProcess(seconds=max_seconds) as reading:
        for root, files in found:
            run = _Run(writer, reading, root, chunking, max_bytes, report)
            for path in files:
                run.index(path)
                done += 1
                if on_progress:
                    on_progress(Progress(done, total, str(path)))
            run.end({str(path) for path in files}, unread)
    writer.finish()
    report.elapsed_s = time.monotonic() - started
    return report


class _Run:
    """One root's files."""

    def __init__(
        self,
        writer: CollectionWriter,
        reading: ReadingProcess,
        root: Path,
        chunking: Chunking,
        max_bytes: int,
        report: Report,
    ) -> None:
        self._writer = writer
        self._reading = reading
        self._root = root
        self._chunking = chunking
        self._max_bytes = max_bytes
        self._report = report
        self._failures: list[tuple[str, str]] = []
        self._had_failed = frozenset(writer.failures())

    def index(self, path: Path) -> None:
        """Reads the file if it is new or has changed."""
        source = str(path)
        try:
            source.encode()
        except UnicodeEncodeError:
            self._failures.append((source.encode(errors="replace").decode(), "has a name that is not UTF-8; rename it"))
            return
        try:
            self._index(path, source)
        except Unreadable as exc:
            is_in_folder = path != self._root
            if str(exc) == "is binary" and is_in_folder:
                self._report.skipped.append((source, str(exc)))
            else:
                self._failures.append((source, str(exc)))
        except OSError as exc:
            self._failures.append((source, f"cannot be read: {exc.strerror or exc}"))

    def end(self, seen: set[str], unread: Mapping[Path, str]) -> None:
        """Deletes what has vanished and notes what failed."""
        blind = tuple(f"{folder}/" for folder in unread)
        self._failures += [(str(folder), why) for folder, why in unread.items()]
        gone = [
            source
            for source in self._writer.sources_under(str(self._root))
            if source not in seen and not source.startswith(blind)
        ]
        self._report.deleted += self._writer.delete(gone)
        self._writer.note_failures(str(self._root), self._failures)
        self._report.failures += self._failures

    def _index(self, path: Path, source: str) -> None:
        report = self._report
        status = path.stat()
        if status.st_size > self._max_bytes:
            raise _too_large(status.st_size, self._max_bytes)
        kind = kind_of(path.name)
        reading = f"{kind}-{readers.VERSION} {self._chunking.label}"
        known = self._writer.document(source)
        is_same_reading = known is not None and known.reading == reading
        is_same_file = known is not None and (
            (known.num_bytes, known.modified_ns) == (status.st_size, status.st_mtime_ns)
            and known.indexed_at > status.st_mtime + _COARSE_S
        )
        if is_same_reading and is_same_file and source not in self._had_failed:
            report.unchanged += 1
            return
        data = _bytes_of(path, self._max_bytes)
        sha256 = hashlib.sha256(data).hexdigest()
        record = DocumentRecord(source, sha256, str(self._root), len(data), status.st_mtime_ns, reading)
        if known is not None and is_same_reading and known.sha256 == sha256:
            self._writer.touch(record)
            report.unchanged += 1
            if source in self._had_failed:
                self._made(data, kind, source)
            return
        made = self._made(data, kind, source)
        self._writer.put(record, made)
        report.num_chunks += len(made)
        report.num_bytes += len(data)
        if known is None:
            report.added += 1
        else:
            report.changed += 1

    def _made(self, data: bytes, kind: Kind, source: str) -> list[Chunk]:
        """The document's chunks; what of it could not be read is listed as one failure."""
        made, problems = self._reading.chunks(data, kind, source, self._chunking, max_characters=self._max_bytes)
        if problems:
            more = len(problems) - _NUM_TOLD
            told = "; ".join(problems[:_NUM_TOLD])
            self._failures.append((source, told + (f"; and {more:,} more" if more > 0 else "")))
        return made


def _bytes_of(path: Path, most: int) -> bytes:
    """What the file holds, which may have become another one, or may be growing, since it was looked at.

    Raises:
        Unreadable: it is larger, or no regular file.
        OSError: it cannot be read.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:  # a pipe would wait
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise Unreadable("is no regular file any more")
        data = file.read(most + 1)
    if len(data) > most:
        raise _too_large(len(data), most)
    return data


def _too_large(size: int, most: int) -> Unreadable:
    return Unreadable(f"has {size:,} bytes, more than the limit of {most:,}: --max-bytes")
