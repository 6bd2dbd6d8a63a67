"""Server-sent events, read incrementally from bytes; knows nothing about what the events mean."""

from __future__ import annotations

#: The largest event that a reader takes unless told: room for an image in base64, not for a stream without an end.
MAX_EVENT_BYTES = 4 * 1024 * 1024

_BOM = b"\xef\xbb\xbf"


class EventTooLarge(ValueError):
    """An event is larger than the reader's limit; the stream cannot be read on."""


class EventReader:
    """Turns the bytes of an event stream, cut anywhere, into the data of its events.

    Event names, ids and retry times are dropped: both wires repeat in the data what they say in the name. Lines may
    end in LF, CRLF or CR, and a byte order mark may come first.

    Args:
        max_event_bytes: the largest event that is taken, its field names included.

    Source: WHATWG HTML Living Standard, section 9.2.6, "Interpreting an event stream".
    """

    __slots__ = ("_ended_in_cr", "_is_first", "_max_event_bytes", "_pending")

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._pending = bytearray()  # the start of an event whose blank line has not come
        self._ended_in_cr = False
        self._is_first = True

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of every event that `chunk` completes.

        Raises:
            EventTooLarge: an event exceeds the limit.
        """
        if self._ended_in_cr or b"\r" in chunk:
            chunk = self._with_line_feeds(chunk)
        pending = self._pending
        if not pending and chunk.endswith(b"\n\n"):
            blocks = chunk[:-2].split(b"\n\n")  # the usual case: whole events, nothing kept
        else:
            searched = max(0, len(pending) - 1)
            pending += chunk
            end = pending.rfind(b"\n\n", searched)
            if end < 0:
                self._check(len(pending) - 1)  # it may hold the first of two line ends
                return []
            blocks = bytes(pending[:end]).split(b"\n\n")
            del pending[: end + 2]
            self._check(len(pending) - 1)
        return self._data_of(blocks)

    def close(self) -> list[bytes]:
        """The data of a last event whose lines are whole but whose blank line never came.

        The standard drops such an event; servers that end in a lone `data: [DONE]` line are common enough to read it.
        """
        rest = bytes(self._pending)
        self._pending.clear()
        return self._data_of([rest]) if rest.endswith(b"\n") else []

    def _data_of(self, blocks: list[bytes]) -> list[bytes]:
        if self._is_first:
            self._is_first = False
            blocks[0] = blocks[0].removeprefix(_BOM)
        found: list[bytes] = []
        limit = self._max_event_bytes
        for block in blocks:
            if len(block) > limit:
                self._check(len(block))
            if block.startswith(b"data: ") and b"\n" not in block:
                found.append(block[6:])
            elif lines := [_value(line) for line in block.split(b"\n") if line == b"data" or line.startswith(b"data:")]:
                found.append(b"\n".join(lines))
        return found

    def _with_line_feeds(self, chunk: bytes) -> bytes:
        if self._ended_in_cr and chunk:
            chunk = chunk.removeprefix(b"\n")  # the CR of this CRLF came with the last chunk
            self._ended_in_cr = False
        if chunk.endswith(b"\r"):
            self._ended_in_cr = True
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _check(self, size: int) -> None:
        if size > self._max_event_bytes:
            raise EventTooLarge(f"an event of more than {self._max_event_bytes} bytes")


def _value(line: bytes) -> bytes:
    return line[5:].removeprefix(b" ")
