"""A time limit that is entered once per await and costs one timer."""

from __future__ import annotations

import asyncio
from types import TracebackType


class TimeLimit:
    """Cancels what waits inside it once the time is up, and tells that as a `TimeoutError`; it may be entered again.

    `asyncio.timeout` around each event of a stream costs more than the event, and around one call three times this.

    Args:
        seconds: from now; None: no limit.

    Attributes:
        has_passed: whether the time is up.
    """

    __slots__ = ("_before", "_loop", "_task", "_timer", "has_passed")

    def __init__(self, seconds: float | None) -> None:
        self.has_passed = False
        self._task: asyncio.Task[object] | None = None
        self._loop = loop = asyncio.get_running_loop()
        self._timer = None if seconds is None else loop.call_later(seconds, self._pass)

    def __enter__(self) -> None:
        """
        Raises:
            TimeoutError: the time was up before.
        """
        if self.has_passed:
            raise TimeoutError
        task = self._task = asyncio.current_task(self._loop)  # which asks for the process's id where it is not told
        self._before = task.cancelling() if task is not None else 0

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if not self.has_passed or kind is not asyncio.CancelledError or task is None:
            return
        if task.uncancel() <= self._before:  # else somebody else has cancelled it too
            raise TimeoutError from None

    def close(self) -> None:
        """Lifts the limit."""
        if self._timer is not None:
            self._timer.cancel()

    def _pass(self) -> None:
        self.has_passed = True
        if self._task is not None:
            self._task.cancel()
