"""Tells whether the process that began something still runs: a file that is locked for as long as it does.

The lock is the kernel's, which frees it however the process ends. It needs no process ids, which mean nothing in
another container, and which are given to others later.
"""

from __future__ import annotations

import os
import uuid
import weakref
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # there are no owners then


class Owner:
    """This process, or a part of it, under a name that is held until it is closed or the process ends.

    Args:
        folder: of the owners that share something; made if need be.

    Attributes:
        name: what to write beside what is owned.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.name = uuid.uuid4().hex
        path = folder / self.name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for each in folder.iterdir():  # what killed processes have left
            is_gone(folder, each.name)
        file = _locked(path)
        self._release = weakref.finalize(self, _release, path, file)

    def close(self) -> None:
        """Gives the name up. Twice is fine."""
        self._release()


def can_own() -> bool:
    """Whether this system has the locks that owners need."""
    return fcntl is not None


def is_gone(folder: Path, name: str) -> bool:
    """Whether the owner of this name has been closed, or its process has ended; if so, its file is taken away.

    One that was never there is gone.
    """
    path = folder / name
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        if not _lock(file):
            return False
        path.unlink(missing_ok=True)  # while the lock is held: whoever is just making it sees that it has to once more
        return True
    finally:
        os.close(file)


def _locked(path: Path) -> int:
    """The file, made and locked; another process that cleans up may take one away between the two."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        with suppress(FileNotFoundError):
            if _lock(file) and os.path.samestat(os.fstat(file), path.stat()):
                return file
        os.close(file)


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _release(path: Path, file: int) -> None:
    with suppress(OSError):
        path.unlink()
    os.close(file)
