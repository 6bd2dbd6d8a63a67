"""Which queries a server was answering when it died: one of them may have killed it, and would kill the next."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from typing import Final

import msgspec

from nearfar.types import Query

#: Servers that may die while they answer the same query, one after the other and the second time with no other suspect
#: beside it; then it is sent no more.
MOST_DEATHS: Final = 2

#: How long that is remembered, and of how many queries.
_FORGET_AFTER_S: Final = 3600.0
_MOST_KNOWN: Final = 1024


class Suspects:
    """Queries that were being answered when a server died, until one of them is answered well.

    Attributes:
        alone: held by a suspect that is tried again, so that the innocent are told from the guilty.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.alone = asyncio.Lock()
        self._clock = clock
        self._known: dict[bytes, tuple[float, set[int]]] = {}  # when it failed last, and in which lives of the server

    def __bool__(self) -> bool:
        return bool(self._known)

    def __contains__(self, key: bytes) -> bool:
        return key in self._known

    def deaths(self, key: bytes, life: int) -> int:
        """How many servers before this life died of it, or beside it."""
        at, lives = self._known.get(key, (0.0, frozenset()))
        if lives and self._clock() - at > _FORGET_AFTER_S:
            self.clear(key)
            return 0
        return sum(each < life for each in lives)

    def note(self, key: bytes, life: int) -> None:
        """It failed in this life of the server, which may have ended by it."""
        _, lives = self._known.pop(key, (0.0, set()))
        self._known[key] = (self._clock(), {*lives, life})
        if len(self._known) > _MOST_KNOWN:
            del self._known[next(iter(self._known))]

    def clear(self, key: bytes) -> None:
        """It was answered, or has to do with no death."""
        self._known.pop(key, None)


def key_of(query: Query, model: str) -> bytes:
    """What tells the query from others, as far as a server sees it."""
    asked = (model, query.prompt, query.tools, query.tool_choice, query.response_format, query.sampling)
    return hashlib.sha256(msgspec.json.encode(asked)).digest()
