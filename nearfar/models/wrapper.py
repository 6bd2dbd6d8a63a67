"""The delegation that every wrapper around a chat model shares; a wrapper overrides what it changes."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from nearfar.types import Answer, ChatModel, ModelCard, Query, StreamEvent


class Wrapper:
    """A chat model that passes everything on to `inner`, and owns it: closing the wrapper closes `inner`."""

    def __init__(self, inner: ChatModel) -> None:
        self.inner = inner
        self.card: ModelCard = inner.card  # what a model can do is declared once

    async def complete(self, query: Query) -> Answer:
        """The inner model's answer."""
        return await self.inner.complete(query)

    def stream(self, query: Query) -> AsyncGenerator[StreamEvent, None]:
        """The inner model's answer, piece by piece."""
        return self.inner.stream(query)

    def unavailable(self) -> str | None:
        """Why the inner model can take no query just now; None: it can."""
        return self.inner.unavailable()

    async def aclose(self) -> None:
        """Closes the inner model."""
        await self.inner.aclose()
