"""Reads documents for `reading`, one after another, within what each may take: `python -m` this module."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from typing import IO, Any

from nearfar.errors import ConfigError
from nearfar.types import Chunk

from .chunking import Chunking, chunks
from .documents import Unreadable
from .readers import read
from .reading import LENGTH, read_frame

try:
    import resource
except ImportError:  # Windows: time is kept from outside alone
    resource = None  # type: ignore[assignment]

#: How much longer than its time the process may compute, should nobody be there to end it.
_GRACE_S = 5


def answer(asked: dict[str, Any], data: bytes) -> dict[str, Any]:
    """The reply to one request."""
    try:
        document = read(data, asked["kind"])
        if len(document.text) > asked["max_characters"]:
            raise Unreadable(
                f"has {len(document.text):,} characters of text, more than the limit of {asked['max_characters']:,}: "
                "--max-bytes"
            )
        made = chunks(document, asked["source"], Chunking(asked["max_chars"]))
        return {"chunks": [_plain(chunk) for chunk in made], "problems": document.problems}
    except Unreadable as exc:
        return {"unreadable": str(exc)}
    except ConfigError as exc:
        return {"config": str(exc)}
    except MemoryError:
        return {"unreadable": f"takes more than {asked['memory_bytes'] / 1e9:.1f} GB of memory to read"}


def confine(seconds: float, memory_bytes: int) -> None:
    """Bounds the memory of this process, and what it computes from now on."""
    if resource is not None:
        until = math.ceil(time.process_time() + seconds) + _GRACE_S
        for limit, value in ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_CPU, until)):
            hard = resource.getrlimit(limit)[1]
            resource.setrlimit(limit, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def main() -> None:
    """Answers requests until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who asks
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no reply
    _send(replies, b"")
    while (header := read_frame(requests)) is not None and (data := read_frame(requests)) is not None:
        asked = json.loads(header)
        confine(asked["seconds"], asked["memory_bytes"])
        reply = answer(asked, data)
        del data
        try:
            frame = json.dumps(reply).encode()
        except MemoryError:
            frame = json.dumps({"unreadable": f"takes more than {asked['memory_bytes'] / 1e9:.1f} GB to read"}).encode()
        _send(replies, frame)


def _send(replies: IO[bytes], frame: bytes) -> None:
    replies.write(LENGTH.pack(len(frame)))
    replies.write(frame)
    replies.flush()


def _plain(chunk: Chunk) -> dict[str, Any]:
    return {
        "text": chunk.text,
        "source": chunk.source,
        "start": chunk.start,
        "end": chunk.end,
        "metadata": dict(chunk.metadata),
        "id": chunk.id,
    }


if __name__ == "__main__":
    main()
