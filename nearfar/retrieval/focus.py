"""Focus mode: the sentences of what was found that bear on the query, in place of whole passages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from nearfar.types import Embedder, Hit

from .sentences import sentences

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray


def focus(query: str, hits: Sequence[Hit], embedder: Embedder, *, k: int, around: int = 0) -> list[Hit]:
    """The k sentences nearest to the query, with their neighbours, as hits whose chunks have the sentences' places.

    Args:
        query: what is asked.
        hits: passages.
        embedder: of the query and the sentences.
        k: at most so many; windows that touch become one.
        around: neighbours on each side that come along.

    Source: Li et al. 2025, "Enhancing Retrieval-Augmented Generation: A Study of Best Practices", arXiv:2501.07391.
    """
    parts = [
        (number, row, part) for number, hit in enumerate(hits) for row, part in enumerate(sentences(hit.chunk.text))
    ]
    if not parts or k < 1:
        return []
    vectors: NDArray[float32] = embedder.embed([part.text for *_, part in parts])
    cosines = (vectors @ embedder.embed_queries([query])[0]).tolist()
    best = sorted(range(len(parts)), key=lambda place: -cosines[place])[:k]
    chosen: dict[int, set[int]] = {}
    for place in best:
        number, row, _ = parts[place]
        last = max(other for which, other, _ in parts if which == number)
        chosen.setdefault(number, set()).update(range(max(0, row - around), min(last, row + around) + 1))
    score = {(parts[place][0], parts[place][1]): cosines[place] for place in range(len(parts))}
    found = []
    for number, rows in chosen.items():
        chunk, places = hits[number].chunk, [part for which, _, part in parts if which == number]
        for run in _runs(sorted(rows)):
            start, end = places[run[0]].start, places[run[-1]].end
            window = replace(chunk, text=chunk.text[start:end], start=chunk.start + start, end=chunk.start + end, id="")
            value = max(score[number, row] for row in run)
            found.append(Hit(window, value, {**hits[number].signals, "focus": value}))
    return sorted(found, key=lambda hit: -hit.score)


def _runs(rows: Sequence[int]) -> list[list[int]]:
    found: list[list[int]] = []
    for row in rows:
        if found and row == found[-1][-1] + 1:
            found[-1].append(row)
        else:
            found.append([row])
    return found
