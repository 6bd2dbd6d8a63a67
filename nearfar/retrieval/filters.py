"""What a filter means: which chunks it lets through."""

from __future__ import annotations

from typing import Any

from nearfar.types import Chunk, Filter


def matches(chunk: Chunk, wanted: Filter | None) -> bool:
    """Whether the chunk's source and metadata say all that the filter wants; everything matches None."""
    if not wanted:
        return True
    return all(_says(chunk, name, value) for name, value in wanted.items())


def _says(chunk: Chunk, name: str, wanted: Any) -> bool:
    has = chunk.source if name == "source" else chunk.metadata.get(name)
    values = wanted if isinstance(wanted, list | tuple | set | frozenset) else (wanted,)
    return any(_is(name, has, value) for value in values)


def _is(name: str, has: Any, wanted: Any) -> bool:
    if name == "source" and isinstance(wanted, str) and wanted.endswith("*"):
        return isinstance(has, str) and has.startswith(wanted[:-1])
    return bool(has == wanted)
