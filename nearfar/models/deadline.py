"""A limit on the time that one whole call may take."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from nearfar.errors import ConfigError, UpstreamTimeout
from nearfar.types import Answer, ChatModel, Query, StreamEvent

from .wrapper import Wrapper


class Deadline(Wrapper):
    """Ends every call that takes longer than `seconds`, from the first byte sent to the last one read.

    A stream's time includes what its reader spends between the pieces, but the reader is never interrupted: the
    error comes from the next read.
    """

    def __init__(self, inner: ChatModel, seconds: float) -> None:
        super().__init__(inner)
        if not seconds > 0:
            raise ConfigError(
                f"The time limit of {inner.card.name!r} must be above 0 s, not {seconds!r}. Set timeout_s."
            )
        self._seconds = seconds

    async def complete(self, query: Query) -> Answer:
        """The whole answer.

        Raises:
            UpstreamTimeout: not in time; the provider may charge for what it had done.
        """
        try:
            async with asyncio.timeout(self._seconds) as limit:
                return await self.inner.complete(query)
        except TimeoutError as exc:
            if not limit.expired():
                raise
            raise self._late() from exc

    async def stream(self, query: Query) -> AsyncGenerator[StreamEvent, None]:
        """The answer piece by piece.

        Raises:
            UpstreamTimeout: the last piece did not come in time.
        """
        end = asyncio.get_running_loop().time() + self._seconds
        async with aclosing(self.inner.stream(query)) as events:
            while True:
                try:
                    async with asyncio.timeout_at(end) as limit:
                        event = await anext(events, None)
                except TimeoutError as exc:
                    if not limit.expired():
                        raise
                    raise self._late() from exc
                if event is None:
                    return
                yield event

    def _late(self) -> UpstreamTimeout:
        name = self.card.name
        return UpstreamTimeout(
            f"{name!r} did not finish within {self._seconds:g} s. Raise its timeout_s, or ask for fewer tokens.",
            model=name,
            may_have_cost=True,
        )
