"""How many calls a model gets, at once and per minute."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, nullcontext

from nearfar.errors import ConfigError, UpstreamRateLimited
from nearfar.types import Answer, ChatModel, Query, StreamEvent

from .wrapper import Wrapper

_MINUTE_S = 60.0


class Limited(Wrapper):
    """Lets calls wait, first come first served, until the model may have them.

    A call that is first in line and would still wait longer than its query's deadline is refused. A call that is
    cancelled while it waits takes no place.

    Args:
        inner: the model.
        concurrency: calls at once; None: any number.
        requests_per_minute: calls begun in any 60 seconds; None: any number.
        clock: a monotonic clock, in seconds.
        sleep: waits; for tests.
    """

    def __init__(
        self,
        inner: ChatModel,
        concurrency: int | None = None,
        requests_per_minute: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        super().__init__(inner)
        for option, value in (("concurrency", concurrency), ("requests_per_minute", requests_per_minute)):
            if value is not None and value < 1:
                raise ConfigError(f"{option} of {inner.card.name!r} must be at least 1, not {value!r}.")
        self._slots = asyncio.Semaphore(concurrency) if concurrency else nullcontext()
        # The beginnings of the last calls, oldest first: an exact sliding window, where a token bucket of the same
        # rate lets twice as many into its first minute.
        self._begun: deque[float] | None = deque(maxlen=requests_per_minute) if requests_per_minute else None
        self._turn = asyncio.Lock()
        self._clock = clock
        self._sleep = sleep

    async def complete(self, query: Query) -> Answer:
        """The whole answer.

        Raises:
            UpstreamRateLimited: the query's deadline would pass before the model may have it; nothing was sent.
        """
        async with self._slots:
            await self._begin(query)
            return await self.inner.complete(query)

    async def stream(self, query: Query) -> AsyncGenerator[StreamEvent, None]:
        """The answer piece by piece.

        Raises:
            UpstreamRateLimited: the query's deadline would pass before the model may have it; nothing was sent.
        """
        async with self._slots:
            await self._begin(query)
            async with aclosing(self.inner.stream(query)) as events:
                async for event in events:
                    yield event

    async def _begin(self, query: Query) -> None:
        """Waits until one more call may begin, and notes that it has."""
        begun = self._begun
        if begun is None:
            return
        async with self._turn:
            while len(begun) == begun.maxlen and (wait_s := begun[0] + _MINUTE_S - self._clock()) > 0:
                if query.deadline_s is not None and wait_s >= query.deadline_s:
                    raise self._too_many(begun, wait_s)
                await self._sleep(wait_s)
            begun.append(self._clock())

    def _too_many(self, begun: deque[float], wait_s: float) -> UpstreamRateLimited:
        name = self.card.name
        return UpstreamRateLimited(
            f"{name!r} may begin {begun.maxlen} calls a minute and the next in {wait_s:.0f} s. Raise its "
            "requests_per_minute, or the query's deadline.",
            model=name,
            retry_after_s=wait_s,
        )
