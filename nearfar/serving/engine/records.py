"""What is kept on disk of running servers, so that another process, or a later one, finds them again."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TypeAlias
from urllib.parse import quote, unquote

from .process import started_at

State: TypeAlias = Literal["stopped", "starting", "ready", "draining", "asleep", "waiting", "failed"]


@dataclass(frozen=True, slots=True)
class Record:
    """One server, as its owner last saw it."""

    name: str
    fingerprint: str  # of its spec
    state: State
    pid: int  # of the server, and its group's
    started: str  # when the server began, in the kernel's words
    port: int
    key: str  # that the server asks for
    owner: int  # the process that watches it
    memory_bytes: int  # of the budget
    model: str
    version: str  # of vLLM
    created_at: float  # Unix time in seconds
    log_begins_at: int = 0  # where in the log this life of the server begins
    restarts: int = 0
    failure: str | None = None  # why it is not there, or was not before

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def is_running(self) -> bool:
        """Whether the server's process is alive."""
        return bool(self.pid) and started_at(self.pid) == self.started


class Records:
    """The folder with a record, a lock, a log and perhaps a request to stop for every server."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def log_path(self, name: str) -> Path:
        """Where the server's output goes."""
        return self._path(name, "log")

    def read(self, name: str) -> Record | None:
        """The server's record; None where there is none that can be read."""
        try:
            return Record(**json.loads(self._path(name, "json").read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def all(self) -> Iterator[Record]:
        """Every record, by name."""
        for path in sorted(self._folder.glob("*.json")):
            if (record := self.read(unquote(path.stem))) is not None:
                yield record

    def write(self, record: Record) -> None:
        """Keeps the record, whole or not at all, readable by the owner alone: it holds the key."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._path(record.name, "json")
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(asdict(record), file, indent=1)
        temporary.replace(path)

    def forget(self, name: str) -> None:
        """Drops the record."""
        self._path(name, "json").unlink(missing_ok=True)

    def request_stop(self, name: str) -> None:
        """Asks the server's owner to stop it."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path(name, "stop").touch()

    def take_stop(self, name: str) -> bool:
        """Whether somebody has asked to stop the server since this was last looked at; `was_stopped` from then on."""
        try:
            self._path(name, "stop").replace(self._path(name, "stopped"))
        except FileNotFoundError:
            return False
        return True

    def was_stopped(self, name: str) -> bool:
        """Whether the server's last life ended because somebody asked for it."""
        return self._path(name, "stopped").exists()

    def begin_life(self, name: str) -> None:
        """Drops what was asked for in an earlier life of the server."""
        for suffix in ("stop", "stopped"):
            self._path(name, suffix).unlink(missing_ok=True)

    def claim(self, name: str) -> Claim | None:
        """The right to watch the server; None where another process has it. The kernel takes it back at our end."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return Claim.take(self._path(name, "lock"))

    def _path(self, name: str, suffix: str) -> Path:
        return self._folder / f"{quote(name, safe='')}.{suffix}"


class Claim:
    """A lock on a file that lasts until it is released or the process ends."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @classmethod
    def take(cls, path: Path) -> Claim | None:
        """The lock, where it is free."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        return cls(descriptor)

    def release(self) -> None:
        """Gives it up. Twice is fine."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
