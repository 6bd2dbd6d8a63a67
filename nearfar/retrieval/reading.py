"""Reads documents in a process of their own: one that is made to harm costs its time and memory, and nothing more.

PDFium, and Python's own parsers of HTML and Python, can be kept busy for hours or made to fill the memory by files of a
megabyte, and cannot be interrupted.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from typing import IO, Any, Self

import msgspec

from nearfar.errors import ConfigError
from nearfar.types import Chunk

from .chunking import Chunking
from .documents import Kind, Unreadable

#: What a document may take: so many seconds, and more for every megabyte that it has. A page of a PDF takes some
#: milliseconds, and a megabyte has some hundred.
SECONDS, SECONDS_PER_MB = 60.0, 2.0
#: And so much address space, and more for every byte: a text is in it as bytes, as characters, as blocks and as chunks.
MEMORY_BYTES, MEMORY_PER_BYTE = 2**30, 16

LENGTH = struct.Struct(">Q")

#: What of the environment a reader needs; it has no business with keys.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "LANG", "LC_ALL")


class ReadingProcess:
    """Makes chunks of documents in another process, which begins with the first, and anew where one was its last.

    Args:
        seconds: what a document may take, besides what its size allows.
    """

    def __init__(self, *, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None

    def chunks(
        self, data: bytes, kind: Kind, source: str, chunking: Chunking, *, max_characters: int
    ) -> tuple[list[Chunk], tuple[str, ...]]:
        """The document's chunks, and what of it could not be read, in words that follow its name.

        Args:
            data: the document.
            kind: by its name.
            source: its name, for the chunks.
            chunking: how long they are.
            max_characters: a document with more text is unreadable; a PDF may hold a thousand times its size.

        Raises:
            Unreadable: broken, binary, locked by a password, or more than time and memory allow.
            ConfigError: the reader's package is not installed.
        """
        seconds = self._seconds + SECONDS_PER_MB * len(data) / 1e6
        memory = MEMORY_BYTES + MEMORY_PER_BYTE * len(data)
        asked = {
            "kind": kind,
            "source": source,
            "max_chars": chunking.max_chars,
            "max_characters": max_characters,
            "seconds": seconds,
            "memory_bytes": memory,
        }
        reply = self._ask(json.dumps(asked).encode(), data, seconds)
        if "config" in reply:
            raise ConfigError(reply["config"])
        if "unreadable" in reply:
            raise Unreadable(reply["unreadable"])
        return msgspec.convert(reply["chunks"], list[Chunk]), tuple(reply["problems"])

    def close(self) -> None:
        """Ends the process. Twice is fine."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, header: bytes, data: bytes, seconds: float) -> Any:
        """The process's reply.

        Raises:
            Unreadable: it gave none.
        """
        process = self._process = self._process or _started()
        assert process.stdin is not None
        assert process.stdout is not None
        is_late = threading.Event()

        def stop() -> None:
            is_late.set()
            process.kill()

        timer = threading.Timer(seconds, stop)
        timer.start()
        reply: bytes | None = None
        try:
            with suppress(BrokenPipeError):  # it has ended; what follows says how
                for frame in (header, data):
                    process.stdin.write(LENGTH.pack(len(frame)))
                    process.stdin.write(frame)
                process.stdin.flush()
                reply = read_frame(process.stdout)
        finally:
            timer.cancel()
            if reply is None:
                self.close()
        if reply is not None:
            return json.loads(reply)
        if is_late.is_set():
            raise Unreadable(f"takes more than {seconds:.0f} s to read, which is given up")
        raise Unreadable(f"ends its reader ({_end_of(process.returncode)}): it is broken, or made to harm")


def read_frame(file: IO[bytes]) -> bytes | None:
    """The next frame; None: there is no whole one any more."""
    head = file.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (size,) = LENGTH.unpack(head)
    body = file.read(size)
    return body if len(body) == size else None


def _started() -> subprocess.Popen[bytes]:
    """A process that is ready.

    Raises:
        ConfigError: it does not start.
    """
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    process = subprocess.Popen(
        [sys.executable, "-m", "nearfar.retrieval.reading_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert process.stdout is not None
    if read_frame(process.stdout) is None:  # empty: it is ready
        process.communicate()
        raise ConfigError(
            f"The process that reads documents does not start ({_end_of(process.returncode)}). Try it: "
            f"{sys.executable} -m nearfar.retrieval.reading_process"
        )
    return process


def _end_of(code: int) -> str:
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"exit code {code}"
