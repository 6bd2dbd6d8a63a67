"""A limit on the time that one whole call may take."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from nearfar.errors import ConfigError, UpstreamTimeout
from nearfar.time_limit import TimeLimit
from nearfar.types import Answer, ChatModel, Query, StreamEnd, StreamEvent

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
        limit = TimeLimit(self._seconds)
        try:
            with limit:
                return await self.inner.complete(query)
        except TimeoutError as exc:
            if not limit.has_passed:
                raise
            raise self._late() from exc
        finally:
            limit.close()

    async def stream(self, query: Query) -> AsyncGenerator[StreamEvent, None]:
        """The answer piece by piece.

        Raises:
            UpstreamTimeout: the last piece did not come in time.
        """
        is_late = False
        reader: asyncio.Task[object] | None = None

        def ring() -> None:
            nonlocal is_late
            is_late = True
            if reader is not None:
                reader.cancel()

        # One timer for the whole stream: `asyncio.timeout` around each of 200 events costs ten times the events.
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._seconds, ring)
        try:
            async with aclosing(self.inner.stream(query)) as events:
                while not is_late:
                    task = reader = asyncio.current_task(loop)
                    cancellations = task.cancelling() if task else 0
                    try:
                        event = await anext(events, None)
                    except asyncio.CancelledError as exc:
                        if is_late and task and task.uncancel() <= cancellations:
                            raise self._late() from exc
                        raise
                    finally:
                        reader = None
                    if event is None:
                        return
                    if isinstance(event, StreamEnd):
                        timer.cancel()  # it is all there, however long the reader takes to look for more
                    yield event
            raise self._late()
        finally:
            timer.cancel()

    def _late(self) -> UpstreamTimeout:
        name = self.card.name
        return UpstreamTimeout(
            f"{name!r} did not finish within {self._seconds:g} s. Raise its timeout_s, or ask for fewer tokens.",
            model=name,
            may_have_cost=True,
        )
