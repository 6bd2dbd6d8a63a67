"""The finished records of a batch, on disk before they are counted."""

from __future__ import annotations

import csv
import errno
import fcntl
import io
import os
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

import msgspec

from nearfar.errors import DataError

from .records import is_csv
from .results import COLUMNS, OUTCOMES, Outcome, Progress, Result


class Entry(msgspec.Struct):
    """A line of the journal: a result, or money set aside before a record is asked."""

    index: int
    status: Outcome | None = None
    cost_usd: float | None = None
    reserved_usd: float | None = None


class Header(msgspec.Struct, forbid_unknown_fields=True):
    """The journal's first line: what it belongs to."""

    nearfar_batch: int
    sha256: str  # of the input file
    records: int
    options: dict[str, Any]


class Journal:
    """The finished records of a batch, one JSON line each, in the order in which they finished.

    Held under a lock, so that no other process works on the same output.
    """

    def __init__(self, output: Path, header: Header, *, force: bool) -> None:
        self.output = output
        self.path = output.with_name(output.name + ".partial")
        self.progress = Progress(header.records)
        self._header = header
        self._offsets = array("q", bytes(8 * header.records))  # of a record's line in the journal; 0: there is none
        self._statuses = bytearray(header.records)  # index into OUTCOMES
        self._force = force
        self._end = 0  # of the journal, in bytes

    def __enter__(self) -> Self:
        self._file = _locked(self.path)
        try:
            if self._force:
                self._file.truncate(0)
            self._load()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()  # gives the lock back

    def has(self, index: int) -> bool:
        """Whether the record is done."""
        return self._offsets[index] != 0

    def forget(self, statuses: frozenset[str]) -> None:
        """Takes the records with these outcomes for not done; what they cost stays spent."""
        for index, offset in enumerate(self._offsets):
            status = OUTCOMES[self._statuses[index]]
            if offset and status in statuses:
                self._offsets[index] = 0
                self.progress.counts[status] -= 1

    def append(self, result: Result) -> None:
        """Writes the result; once this returns, a killed process does not lose it."""
        offset = self._write(result.encode())
        self._count(result.index, result.status, offset)
        self.progress.cost_usd += result.cost_usd or 0.0
        self.progress.has_unknown_cost |= result.cost_usd is None and result.status == "answered"

    def reserve(self, index: int, usd: float) -> None:
        """Notes what the record may cost, so that a kill while it is asked does not make it free."""
        self._write(msgspec.json.encode(Entry(index, reserved_usd=usd)))

    def finish(self, kept: Sequence[str]) -> None:
        """Writes the output whole, in the input's order; the journal stays only where records failed."""
        os.fsync(self._file.fileno())
        temporary = self.output.with_name(f".{self.output.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as file:
                if is_csv(self.output):
                    self._write_csv(file, kept)
                else:
                    file.writelines(self._lines())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.output)
        except OSError as exc:
            raise _unwritable(self.output, exc) from exc
        finally:
            temporary.unlink(missing_ok=True)
        if not self.progress.num_bad:
            self.path.unlink()

    def _lines(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            for offset in self._offsets:
                file.seek(offset)
                yield file.readline()

    def _write_csv(self, file: BinaryIO, kept: Sequence[str]) -> None:
        text = io.TextIOWrapper(file, "utf-8", newline="", write_through=True)
        writer = csv.writer(text)
        writer.writerow([*COLUMNS, *kept])
        for line in self._lines():
            fields = msgspec.json.decode(line)
            writer.writerow([_cell(fields.get(name)) for name in (*COLUMNS, *kept)])
        text.detach()

    def _write(self, entry: bytes) -> int:
        """Appends a line and returns where it begins."""
        offset = self._end
        line = memoryview(entry + b"\n")
        try:
            while line:
                written = self._file.write(line)
                line = line[written:]
                self._end += written
        except OSError as exc:
            self._file.truncate(offset)
            self._end = offset
            raise _unwritable(self.path, exc) from exc
        return offset

    def _count(self, index: int, status: Outcome, offset: int) -> None:
        if self._offsets[index]:
            self.progress.counts[OUTCOMES[self._statuses[index]]] -= 1
        self._offsets[index] = offset
        self._statuses[index] = OUTCOMES.index(status)
        self.progress.counts[status] += 1

    def _load(self) -> None:
        """Reads what an earlier run has left, and cuts off a line that a kill tore."""
        self._end = 0
        reserved: dict[int, float] = {}
        decode = msgspec.json.Decoder(Entry).decode
        with self.path.open("rb") as file:
            first = file.readline()
            if first.endswith(b"\n"):
                self._check_header(first)
                self._end = len(first)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    try:
                        entry = decode(line)
                        self._take(entry, reserved)
                    except (msgspec.DecodeError, IndexError) as exc:
                        raise DataError(
                            f"The journal {str(self.path)!r} is damaged at byte {self._end}: {exc}. "
                            "Begin anew: --force.",
                            path=str(self.path),
                        ) from exc
                    self._end += len(line)
        self._file.truncate(self._end)
        self.progress.cost_usd += sum(reserved.values())
        if self._end == 0:
            if self.output.exists() and not self._force:
                self._file.close()
                self.path.unlink()
                raise DataError(
                    f"{str(self.output)!r} is there already. Name another output, or replace it: --force.",
                    path=str(self.output),
                )
            self._write(msgspec.json.encode(self._header))

    def _take(self, entry: Entry, reserved: dict[int, float]) -> None:
        if entry.status is None:
            reserved[entry.index] = entry.reserved_usd or 0.0
            return
        reserved.pop(entry.index, None)
        self._count(entry.index, entry.status, self._end)
        self.progress.cost_usd += entry.cost_usd or 0.0
        self.progress.has_unknown_cost |= entry.cost_usd is None and entry.status == "answered"

    def _check_header(self, line: bytes) -> None:
        path = str(self.path)
        try:
            found = msgspec.json.decode(line, type=Header)
        except msgspec.DecodeError as exc:
            raise DataError(
                f"{path!r} is not a batch journal of this nearfar: {exc}. Remove it, or begin anew: --force.", path=path
            ) from exc
        if found.sha256 != self._header.sha256:
            raise DataError(
                f"The input has changed since {path!r} was begun. Restore it, or begin anew: --force.", path=path
            )
        ours = self._header.options
        changed = [name for name in ours if found.options.get(name) != ours[name]]
        if changed:
            raise DataError(
                f"{path!r} was begun with other options ({', '.join(changed)}). Repeat them, or begin anew: --force.",
                path=path,
            )


def _cell(value: Any) -> Any:
    return msgspec.json.encode(value).decode() if isinstance(value, dict | list) else value


def _locked(path: Path) -> io.FileIO:
    """The journal, open for appending and locked against other processes."""
    while True:
        try:
            file = path.open("ab", buffering=0)
        except OSError as exc:
            raise _unwritable(path, exc) from exc
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                return file
        except OSError as exc:
            file.close()
            if exc.errno not in {errno.EAGAIN, errno.EACCES}:
                raise _unwritable(path, exc) from exc
            raise DataError(
                f"Another process is working on {str(path)!r}. Wait for it, or name another output.", path=str(path)
            ) from exc
        file.close()  # finished and removed by the other process just now: make a new one


def _unwritable(path: Path, exc: OSError) -> DataError:
    return DataError(f"Cannot write {str(path)!r}: {exc.strerror}. Check the folder and the disk.", path=str(path))
