"""Sending a stream: events are gathered while they come at once, and sent as soon as the next has to be waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from .replies import Headers, Receive, Scope, Send

T = TypeVar("T")

#: Bytes after which gathered events are sent although more would come at once.
_FLUSH_BYTES = 64 * 1024

_EVENT_STREAM: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class EventStream:
    """A reply of server-sent events.

    Nothing is sent before `start`, unless the stream is silent for `heartbeat_s`: then its head goes without what is
    not known yet, and a comment after it, so that no proxy takes the connection for dead.

    Attributes:
        is_started: whether the status is out, so that an error can only be an event.
    """

    def __init__(self, send: Send, *, heartbeat_s: float) -> None:
        self._send = send
        self._parts: list[bytes] = []
        self._size = 0
        self._heartbeat_s = heartbeat_s
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(heartbeat_s, self._beat)
        self._is_silent = True
        self._beating: asyncio.Task[None] | None = None
        self.is_started = False

    async def start(self, headers: Headers) -> None:
        """Sends the head, unless it is out."""
        if self._beating is not None:
            await self._beating
        if not self.is_started:
            self.is_started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": _EVENT_STREAM + headers})

    def put(self, data: bytes) -> None:
        """Gathers whole events."""
        self._parts.append(data)
        self._size += len(data)

    @property
    def holds_events(self) -> bool:
        """Whether anything is gathered."""
        return bool(self._parts)

    @property
    def is_full(self) -> bool:
        """Whether so much is gathered that it should be sent."""
        return self._size >= _FLUSH_BYTES

    async def flush(self) -> None:
        """Sends what is gathered; waits while the client does not take it."""
        if self._parts:
            await self._send_body(more=True)

    async def finish(self) -> None:
        """Sends what is gathered and ends the reply."""
        self._timer.cancel()
        await self._send_body(more=False)

    def close(self) -> None:
        """Stops the heartbeat."""
        self._timer.cancel()

    async def _send_body(self, *, more: bool) -> None:
        if self._beating is not None:
            await self._beating
        self._is_silent = False
        data = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    def _beat(self) -> None:
        if self._is_silent and (self._beating is None or self._beating.done()):
            self._beating = self._loop.create_task(self._comment())
        self._is_silent = True
        self._timer = self._loop.call_later(self._heartbeat_s, self._beat)

    async def _comment(self) -> None:
        if not self.is_started:
            self.is_started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": _EVENT_STREAM})
        await self._send({"type": "http.response.body", "body": b": waiting\n\n", "more_body": True})


class FlushedBeforeWaiting(Generic[T]):
    """`events`, with `stream` flushed whenever the next event is not there yet.

    Many tokens may lie in one read from the upstream. A task that sends each by itself pays a system call for each;
    one that sends them by the clock delays the last. So the generator is stepped by hand: what it gives at once is
    gathered by the caller, and when it would wait, what is gathered goes out first.
    """

    __slots__ = ("_events", "_stream")

    def __init__(self, events: AsyncGenerator[T, None], stream: EventStream) -> None:
        self._events = events
        self._stream = stream

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Self:
        return self

    def __await__(self) -> Generator[Any, Any, T]:
        step = self._events.__anext__().__await__()
        try:
            waiting = step.send(None)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]  # a StopIteration's value is untyped
        is_flushed = False
        while True:
            try:
                if not is_flushed and self._stream.holds_events:
                    is_flushed = True
                    yield from self._stream.flush().__await__()
                yield waiting
            except BaseException as exc:
                thrown: BaseException | None = exc  # what is thrown at us while the generator waits is meant for it
            else:
                thrown = None
            try:
                waiting = step.send(None) if thrown is None else step.throw(thrown)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]  # a StopIteration's value is untyped


#: The ASGI extension under which our server has what to call when the client goes away: a set of callables.
GONE = "nearfar.gone"


class CancelWhenGone:
    """Cancels the task in its `with` block when the client goes away, and ends the block quietly then.

    Our server tells by itself; of any other, a second task asks.

    Attributes:
        is_gone: whether it went.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        self._listeners: set[Callable[[], None]] | None = scope.get("extensions", _NO_EXTENSIONS).get(GONE)
        self._watch: asyncio.Task[None] | None = None
        self.is_gone = False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("requests are handled in tasks")
        self._task = task
        if self._listeners is None:
            self._watch = asyncio.get_running_loop().create_task(self._wait())
        else:
            self._listeners.add(self._cancel)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if self._listeners is not None:
            self._listeners.discard(self._cancel)
        if self._watch is not None:
            self._watch.cancel()
        if not self.is_gone:
            return False
        self._task.uncancel()
        return exc is None or isinstance(exc, asyncio.CancelledError)

    async def _wait(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            continue
        self._cancel()

    def _cancel(self) -> None:
        self.is_gone = True
        self._task.cancel()


_NO_EXTENSIONS: Mapping[str, Any] = {}
