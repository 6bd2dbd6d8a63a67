"""Sentences of a text and where they stand, by punctuation alone: no model, any language that ends them with a mark."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Marks that end a sentence, what may close behind them, then white space and something that can begin one; or a
#: blank line; or a line of a list. A short capital word before a full stop ("Dr.", "U.S.", "J.") ends nothing.
_END = re.compile(
    r"(?<![A-Z]\.)(?<!\b[A-Z])(?<!\b[A-Z][a-z]\.)(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bvs\.)"
    r"(?<=[.!?…])[\"'’”)\]]*\s+(?=[\"'‘“(\[]*[A-Z0-9])"
    r"|(?<=[。！？])|\n\s*\n|\n(?=\s*(?:[-*•]|\d+[.)])\s)"
)


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence; `text` is the document's text from `start` to `end`."""

    text: str
    start: int
    end: int


def sentences(text: str) -> list[Sentence]:
    """The text's sentences in order, without the white space around them; every other character is in exactly one."""
    found = []
    start = 0
    for match in [*_END.finditer(text), None]:
        end = len(text) if match is None else match.end()
        piece = text[start:end]
        bare = piece.strip()
        if bare:
            first = start + len(piece) - len(piece.lstrip())
            found.append(Sentence(bare, first, first + len(bare)))
        start = end
    return found
