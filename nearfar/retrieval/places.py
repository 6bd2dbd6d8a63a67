"""Where a passage stands, in words, and a hit as plain JSON values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nearfar.types import Hit


def place(hit: Hit) -> str:
    """Where the passage stands, as editors and people read it: file:line, or file, page n."""
    chunk = hit.chunk
    if "page" in chunk.metadata:
        return f"{chunk.source}, page {chunk.metadata['page']}"
    return f"{chunk.source}:{chunk.metadata['line']}" if "line" in chunk.metadata else chunk.source


def hit_json(hit: Hit) -> dict[str, Any]:
    """The hit as plain JSON values."""
    chunk = hit.chunk
    return {
        "text": chunk.text,
        "source": chunk.source,
        "place": place(hit),
        "start": chunk.start,
        "end": chunk.end,
        "metadata": dict(chunk.metadata),
        "score": hit.score,
        "signals": dict(hit.signals),
        "id": chunk.id,
    }
