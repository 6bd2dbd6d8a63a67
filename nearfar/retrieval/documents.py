"""Documents as the readers give them: a text, and the blocks that it is built of, each with its place."""

from __future__ import annotations

import codecs
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Kind: TypeAlias = Literal["text", "markdown", "html", "pdf", "python", "code", "records"]


class Unreadable(Exception):
    """The document cannot be read; the message says why, in words that follow its name."""


@dataclass(frozen=True, slots=True)
class Block:
    """A stretch of a document that belongs together: a paragraph, a list, a function, a page's part, a record."""

    start: int  # characters of the document's text
    end: int
    metadata: Mapping[str, Any] = field(default_factory=dict)  # heading, page, object …: what its chunks will say
    text: str | None = None  # where it is not the document's own text from start to end
    stands_alone: bool = False  # never in one chunk with its neighbours


@dataclass(frozen=True, slots=True)
class Document:
    """What a reader made of some bytes."""

    text: str
    kind: Kind
    blocks: tuple[Block, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)  # title, encoding …: on every chunk
    problems: tuple[str, ...] = ()  # parts that could not be read, in words that follow the document's name


class Lines:
    """Where the lines of a text begin."""

    def __init__(self, text: str) -> None:
        self._starts = [0]
        place = text.find("\n")
        while place >= 0:
            self._starts.append(place + 1)
            place = text.find("\n", place + 1)

    def number(self, offset: int) -> int:
        """The line, from 1, that the character stands in."""
        return bisect_right(self._starts, offset)

    def start(self, number: int) -> int:
        """The first character of a line, counted from 1; the last line's for what is beyond it."""
        return self._starts[min(number, len(self._starts)) - 1]


#: Longest marks first: UTF-32's begins as UTF-16's does.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def decode(data: bytes) -> tuple[str, str]:
    """The text of the bytes, and its encoding: what its mark says, UTF-8, or Windows-1252 where lines are not UTF-8.

    Files of mixed encodings are read line by line, each as what it can be; "mixed" is then the encoding.

    Raises:
        Unreadable: the bytes are not text.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            try:
                return data.decode(encoding), encoding.removesuffix("-sig")
            except UnicodeDecodeError as exc:
                raise Unreadable(f"is marked as {encoding} and is not: {exc.reason}") from exc
    if b"\0" in data:
        raise Unreadable("is binary")
    try:
        return data.decode(), "utf-8"
    except UnicodeDecodeError:
        pass
    lines, num_utf8 = [], 0
    for line in data.split(b"\n"):
        try:
            lines.append(line.decode())
            num_utf8 += not line.isascii()
        except UnicodeDecodeError:
            lines.append(line.decode("cp1252", errors="replace"))
    text = "\n".join(lines)
    if sum(character < " " and character not in "\t\n\r\f\x1b" for character in text) > len(text) / 50:
        raise Unreadable("is binary")
    return text, "mixed" if num_utf8 else "windows-1252"
