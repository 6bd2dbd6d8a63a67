"""Chunks of documents: whole blocks as long as they fit, long ones cut at the best place there is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nearfar.types import Chunk

from .documents import Block, Document, Lines

#: Raised when the same document would be cut otherwise, so that what was cut before is cut anew.
VERSION = 1


#: Characters of a title, a heading or a record's field, which every chunk of the document repeats.
_MOST_FACT = 1000


@dataclass(frozen=True, slots=True)
class Chunking:
    """How long chunks are.

    1,000 characters are about 220 tokens: what MiniLM reads of a text (256), and small enough that five of them fit
    into the context of the smallest near model beside the question.
    """

    max_chars: int = 1000

    def __post_init__(self) -> None:
        if self.max_chars < 100:
            raise ValueError(f"max_chars is {self.max_chars!r}; chunks of fewer than 100 characters say nothing.")

    @property
    def label(self) -> str:
        """What tells these chunks from others of the same document."""
        return f"chunks-{VERSION}-{self.max_chars}"


def chunks(document: Document, source: str, chunking: Chunking = Chunking()) -> list[Chunk]:
    """The document's chunks in its order, with their places, lines and pages.

    Every character of a block that is not white space is in exactly one chunk.
    """
    lines = Lines(document.text)
    found = []
    for group in _groups(document, chunking.max_chars):
        start, end = group[0].start, group[-1].end
        own = group[0].text
        text = document.text[start:end] if own is None else "\n".join(block.text or "" for block in group)
        metadata = {name: _cut_short(fact) for name, fact in {**document.metadata, **group[0].metadata}.items()}
        if document.kind != "pdf":
            metadata.setdefault("line", lines.number(start))
        found.append(Chunk(text, source, start, end, metadata))
    return found


def _cut_short(fact: Any) -> Any:
    return f"{fact[:_MOST_FACT]} …" if isinstance(fact, str) and len(fact) > _MOST_FACT else fact


def searched_text(chunk: Chunk) -> str:
    """What of a chunk is searched: its text under the names of what it is part of."""
    names = [str(chunk.metadata[name]) for name in ("title", "heading", "object") if chunk.metadata.get(name)]
    return "\n".join([*names, chunk.text])


def _groups(document: Document, max_chars: int) -> Iterator[list[Block]]:
    """Neighbouring blocks of the same section that fit into one chunk together."""
    group: list[Block] = []
    for block in document.blocks:
        for piece in _pieces(document, block, max_chars):
            if group and not _fits(group, piece, max_chars):
                yield group
                group = []
            group.append(piece)
    if group:
        yield group


def _fits(group: list[Block], piece: Block, max_chars: int) -> bool:
    first = group[0]
    if first.stands_alone or piece.stands_alone or first.metadata != piece.metadata:
        return False
    if first.text is None:
        return piece.end - first.start <= max_chars
    return sum(len(block.text or "") + 1 for block in group) + len(piece.text or "") <= max_chars


def _pieces(document: Document, block: Block, max_chars: int) -> Iterator[Block]:
    """The block, cut where it is too long for one chunk."""
    text = document.text[block.start : block.end] if block.text is None else block.text
    if len(text) <= max_chars:
        if text.strip():
            yield block
        return
    start = 0
    while start < len(text):
        end = len(text) if len(text) - start <= max_chars else _cut(text, start, start + max_chars)
        piece = text[start:end]
        if piece.strip():
            if block.text is None:
                left = start + len(piece) - len(piece.lstrip())
                right = start + len(piece.rstrip())
                yield Block(block.start + left, block.start + right, block.metadata, None, block.stands_alone)
            else:
                yield Block(block.start, block.end, block.metadata, piece.strip(), block.stands_alone)
        start = end


#: Where to cut, best first: after a blank line, a sentence that ends a line, a sentence, a line, a word.
_CUTS = (
    re.compile(r"\n\s*\n"),
    re.compile(r"(?<=[.!?:;])[\"')\]]*\n"),
    re.compile(r"(?<=[.!?])[\"')\]]*\s+|(?<=[。！？])"),
    re.compile(r"\n"),
    re.compile(r"\s+"),
)


def _cut(text: str, start: int, end: int) -> int:
    """The best place to cut in the second half of text[start:end]; its end where there is none."""
    middle = (start + end) // 2
    for cut in _CUTS:
        last = None
        for match in cut.finditer(text, middle, end):
            last = match.end()
        if last is not None and last > start:
            return last
    return end
