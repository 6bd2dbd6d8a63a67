"""HTML as the text that a browser shows, each block with its place in the markup."""

from __future__ import annotations

from collections.abc import Mapping
from html.parser import HTMLParser
from typing import Any

from .documents import Block, Document, Lines, Unreadable

_HIDDEN_NAMES = "script style template noscript svg math iframe object select button"
_HIDDEN = frozenset(_HIDDEN_NAMES.split())
_HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
_BREAK_NAMES = """
    address article aside blockquote body caption dd details dialog div dl dt fieldset figcaption figure footer form
    header hr html legend li main nav ol p pre section summary table tbody tfoot thead title tr ul
"""
_BREAKS = _HEADINGS.union(_BREAK_NAMES.split())


def read_html(text: str, metadata: Mapping[str, Any]) -> Document:
    """The blocks of the page, under their headings, with the page's title.

    Raises:
        Unreadable: the parser gives up.
    """
    reader = _Reader(text)
    try:
        reader.feed(text)
        reader.close()
    except (AssertionError, ValueError, RecursionError) as exc:
        raise Unreadable(f"is no HTML: {exc}") from exc
    reader.flush()
    title = {"title": reader.title} if reader.title else {}
    return Document(text, "html", tuple(reader.blocks), {**metadata, **title})


class _Reader(HTMLParser):
    """Collects text between block-level tags."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[Block] = []
        self.title = ""
        self._length = len(text)
        self._lines = Lines(text)
        self._pieces: list[str] = []
        self._start = 0
        self._num_hidden = 0
        self._num_pre = 0
        self._tag = ""
        self._headings: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Hides, breaks or separates."""
        if tag in _HIDDEN:
            self._num_hidden += 1
        elif tag == "br":
            self._pieces.append("\n")
        elif tag in {"td", "th"}:
            self._pieces.append(" ")
        elif tag in _BREAKS:
            self.flush()
            self._tag = tag
            self._num_pre += tag == "pre"

    def handle_endtag(self, tag: str) -> None:
        """Shows again, or ends a block."""
        if tag in _HIDDEN:
            self._num_hidden = max(0, self._num_hidden - 1)
        elif tag in _BREAKS:
            self.flush()
            self._tag = ""
            if tag == "pre":
                self._num_pre = max(0, self._num_pre - 1)

    def handle_data(self, data: str) -> None:
        """Takes what is shown."""
        if self._num_hidden:
            return
        if not self._pieces:
            if not data.strip():
                return
            self._start = self._offset()
        self._pieces.append(data)

    def flush(self) -> None:
        """Ends the block, if one was begun."""
        text = "".join(self._pieces)
        self._pieces = []
        text = text.strip("\n") if self._num_pre else "\n".join(" ".join(line.split()) for line in text.split("\n"))
        text = text if self._num_pre else " ".join(text.split("\n")).strip()
        if not text.strip():
            return
        if self._tag == "title":
            self.title = self.title or text
            return
        if self._tag in _HEADINGS:
            self._headings = [*((tag, name) for tag, name in self._headings if tag < self._tag), (self._tag, text)]
        path = {"heading": " › ".join(name for _, name in self._headings)} if self._headings else {}
        self.blocks.append(Block(self._start, max(self._start, self._offset()), path, text))

    def _offset(self) -> int:
        line, column = self.getpos()
        return min(self._length, self._lines.start(line) + column)
