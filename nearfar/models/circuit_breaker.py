"""Leaves a failing model alone for a while."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from nearfar.errors import CircuitOpen, ConfigError, UpstreamError, UpstreamRateLimited, UpstreamRejected
from nearfar.types import Answer, ChatModel, Query, StreamEvent

from .wrapper import Wrapper


class CircuitBroken(Wrapper):
    """Sends nothing for `cool_down_s` after `failures` failed calls in a row, and then one call to see.

    That probe's success closes the circuit, its failure opens it for as long again. A rejected request (4xx) shows
    that the server is alive, and counts as a success; a refused query, a call that our own rate limit held back, a
    cancelled one and a stream closed by its reader count as neither, and free the probe.

    Args:
        inner: the model.
        failures: failed calls in a row that open the circuit.
        cool_down_s: seconds for which it stays open.
        clock: a monotonic clock, in seconds.

    Source: Nygard 2018, "Release It!", second edition, section 5.2.
    """

    def __init__(
        self,
        inner: ChatModel,
        failures: int = 5,
        cool_down_s: float = 30.0,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(inner)
        if failures < 1 or not cool_down_s > 0:
            raise ConfigError(
                f"The circuit breaker of {inner.card.name!r} needs at least 1 failure and a cool-down above 0 s, not "
                f"{failures!r} and {cool_down_s!r}."
            )
        self._limit = failures
        self._cool_down_s = cool_down_s
        self._clock = clock
        self._failures = 0  # in a row
        self._opened_at: float | None = None
        self._is_probing = False

    async def complete(self, query: Query) -> Answer:
        """The whole answer.

        Raises:
            CircuitOpen: nothing was sent.
        """
        is_probe = self._begin()
        try:
            answer = await self.inner.complete(query)
        except BaseException as exc:
            self._end(exc, is_probe=is_probe)
            raise
        self._end(None, is_probe=is_probe)
        return answer

    async def stream(self, query: Query) -> AsyncGenerator[StreamEvent, None]:
        """The answer piece by piece.

        Raises:
            CircuitOpen: nothing was sent.
        """
        is_probe = self._begin()
        try:
            async with aclosing(self.inner.stream(query)) as events:
                async for event in events:
                    yield event
        except BaseException as exc:
            self._end(exc, is_probe=is_probe)
            raise
        self._end(None, is_probe=is_probe)

    def unavailable(self) -> str | None:
        """Why the circuit is open, and for how long; else what the inner model says."""
        return self._open_reason() or self.inner.unavailable()

    def _open_reason(self) -> str | None:
        if self._opened_at is None:
            return None
        left_s = self._opened_at + self._cool_down_s - self._clock()
        if left_s > 0:
            return f"circuit open after {self._failures} failures in a row, {left_s:.0f} s left"
        if self._is_probing:
            return "circuit half open, one call is finding out whether the model is back"
        return None

    def _begin(self) -> bool:
        """Lets one call begin, and says whether it is the probe."""
        if self._opened_at is None:
            return False
        if reason := self._open_reason():
            name = self.card.name
            raise CircuitOpen(f"{name!r} gets no queries: {reason}. Check its server.", model=name, was_sent=False)
        self._is_probing = True
        return True

    def _end(self, exc: BaseException | None, *, is_probe: bool) -> None:
        """Counts what became of one call."""
        if exc is None or isinstance(exc, UpstreamRejected):
            self._succeeded(is_probe=is_probe)
        elif isinstance(exc, UpstreamError) and not (isinstance(exc, UpstreamRateLimited) and exc.status is None):
            self._failed(is_probe=is_probe)  # a rate limit without a status is our own, not the server's
        if is_probe:
            self._is_probing = False

    def _succeeded(self, *, is_probe: bool) -> None:
        if is_probe or self._opened_at is None:  # a call from before the circuit opened says nothing about now
            self._failures = 0
            self._opened_at = None

    def _failed(self, *, is_probe: bool) -> None:
        if not is_probe and self._opened_at is not None:
            return
        self._failures += 1
        if is_probe or self._failures >= self._limit:
            self._opened_at = self._clock()
