"""The event-stream reader against the standard, however the bytes are cut."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearfar.models.sse import EventReader, EventTooLarge

STREAMS = {
    "one event": (b"data: hi\n\n", [b"hi"]),
    "several in one piece": (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
    "carriage returns": (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
    "windows line ends": (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
    "mixed line ends": (b"data: a\r\n\ndata: b\n\r\ndata: c\r\r\n", [b"a", b"b", b"c"]),
    "no blank after the colon": (b"data:a\n\n", [b"a"]),
    "only one blank is dropped": (b"data:  a\n\n", [b" a"]),
    "several data lines": (b"data: a\ndata:\ndata: b\n\n", [b"a\n\nb"]),
    "data without a colon": (b"data\n\n", [b""]),
    "a comment": (b": ping\n\ndata: a\n\n", [b"a"]),
    "a comment within": (b": ping\ndata: a\n: pong\n\n", [b"a"]),
    "names and ids": (b"event: delta\nid: 7\nretry: 9\ndata: a\n\n", [b"a"]),
    "other fields": (b"database: x\n\ndata: a\n\n", [b"a"]),
    "an event without data": (b"event: ping\n\ndata: a\n\n", [b"a"]),
    "many blank lines": (b"\n\n\n\ndata: a\n\n\n\n\ndata: b\n\n\n", [b"a", b"b"]),
    "byte order mark": (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
    "byte order mark, later": (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [b"a"]),
    "bytes that are not UTF-8": (b"data: \xff\xfe\n\n", [b"\xff\xfe"]),
    "a last line without its blank line": (b"data: a\n\ndata: [DONE]\n", [b"a", b"[DONE]"]),
    "a last line without its end": (b'data: a\n\ndata: {"cut', [b"a"]),
    "nothing": (b"", []),
}


def read(*chunks: bytes) -> list[bytes]:
    """All that a reader finds in the chunks."""
    reader = EventReader()
    return [data for chunk in chunks for data in reader.feed(chunk)] + reader.close()


@pytest.mark.parametrize("name", STREAMS)
def test_events_are_found_however_the_bytes_are_cut(name: str) -> None:
    """In one piece, byte by byte, and cut in two anywhere, a stream holds the same events."""
    stream, events = STREAMS[name]

    assert read(stream) == events
    assert read(*(stream[i : i + 1] for i in range(len(stream)))) == events
    for cut in range(len(stream)):
        assert read(stream[:cut], stream[cut:]) == events


def read_as_the_standard_says(stream: bytes) -> list[bytes]:
    """The standard's algorithm, line by line; whole lines at the end count as an event."""
    text = stream.decode("latin-1")  # one character per byte
    text = text.removeprefix("\u00ef\u00bb\u00bf").replace("\r\n", "\n").replace("\r", "\n")
    found, buffer = [], None
    for line in text.split("\n")[:-1]:
        if line == "":
            if buffer is not None:
                found.append(buffer)
            buffer = None
        elif not line.startswith(":"):
            field, _, value = line.partition(":")
            if field == "data":
                value = value.removeprefix(" ")
                buffer = value if buffer is None else f"{buffer}\n{value}"
    if buffer is not None and text.endswith("\n"):
        found.append(buffer)
    return [data.encode("latin-1") for data in found]


PIECES = b"data|data:|data: |event: x|:| |a|\n|\r|\r\n|\n\n|\xef\xbb\xbf|\xff".split(b"|")


@given(st.lists(st.sampled_from(PIECES), max_size=30), st.lists(st.integers(0, 90), max_size=6))
def test_any_bytes_are_read_as_the_standard_says(parts: list[bytes], cuts: list[int]) -> None:
    """The fast paths change nothing, for any stream and any cuts."""
    stream = b"".join(parts)
    edges = [0, *sorted(cuts), 10_000]

    assert read(*(stream[a:b] for a, b in pairwise(edges))) == read_as_the_standard_says(stream)


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_memory_is_bounded(step: int) -> None:
    """An event of the limit's size is taken; a larger one is refused, whether its end comes or not."""
    lines = {size: b"data: " + b"x" * (size - 6) for size in (100, 101)}

    assert feed(EventReader(max_event_bytes=100), lines[100] + b"\n\n", step) == [lines[100][6:]]
    with pytest.raises(EventTooLarge):
        feed(EventReader(max_event_bytes=100), lines[101] + b"\n\n", step)
    with pytest.raises(EventTooLarge):
        feed(EventReader(max_event_bytes=100), b"x" * 102, step)


def feed(reader: EventReader, stream: bytes, step: int) -> list[bytes]:
    """What the reader finds in `stream`, given `step` bytes at a time."""
    return [data for i in range(0, len(stream), step) for data in reader.feed(stream[i : i + step])]
