"""A memory that looks at the sources of what it recalls, and forgets what rests on an older version of one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from nearfar.types import Memo, Memory, Recollection, Scope

#: Gives the present versions of those of the sources that there are.
Versions = Callable[[Iterable[str]], Mapping[str, str]]


class ForgettingMemory(Memory, Protocol):
    """A memory that can be told of changes."""

    async def source_changed(self, source: str, version: str | None) -> int:
        """Forgets what rests on any other version of the source, and says how much that was."""
        ...


class VerifiedMemory:
    """Recalls from `inner` what rests on the present versions of its sources alone.

    So an answer from a document is gone once the document was indexed anew, or deleted, by whichever process.

    Args:
        inner: the memory.
        versions: asked in a thread.
    """

    def __init__(self, inner: ForgettingMemory, versions: Versions) -> None:
        self._inner = inner
        self._versions = versions

    async def recall(self, question: str, scope: Scope) -> Recollection | None:
        """What answers the question, if anything that still holds is near enough."""
        while True:
            found = await self._inner.recall(question, scope)
            if found is None:
                return None
            changed = await self._changed(found.memo)
            if not changed:
                return found
            for source, version in changed.items():
                await self._inner.source_changed(source, version)

    async def remember(self, memo: Memo, scope: Scope) -> None:
        """Keeps the memo, unless one of its sources has changed meanwhile."""
        if not await self._changed(memo):
            await self._inner.remember(memo, scope)

    async def _changed(self, memo: Memo) -> dict[str, str | None]:
        if not memo.sources:
            return {}
        now = await asyncio.to_thread(self._versions, list(memo.sources))
        return {source: now.get(source) for source, version in memo.sources.items() if now.get(source) != version}
