"""A real local HTTP server that records what it is asked; the wires' scripted servers stand on it."""

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any, Self

from aiohttp import web

from nearfar.types import Answer, Query

#: An answer, what makes one of a query, or a response as it is.
Line = Answer | Callable[[Query], Answer] | web.Response


class WireServer(ABC):
    """Answers requests with the lines of a script, in order; the last one repeats for ever.

    It runs in a thread of its own, so that the tasks of the test's event loop are the client's alone.

    Args:
        script: the answers.
        delay_s: before each piece of a stream, and before an answer that is not streamed.

    Attributes:
        url: where it listens.
        bodies: the JSON bodies of the requests, in order.
        headers: their headers.
        num_open: requests that are being answered.
        num_connections: connections that were ever opened.
    """

    path: str

    def __init__(self, script: Iterable[Line], *, delay_s: float = 0.0) -> None:
        self.script = list(script)
        self.delay_s = delay_s
        self.url = ""
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.num_open = 0
        self.num_connections = 0
        self._peers: set[Any] = set()

    def __enter__(self) -> Self:
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=asyncio.run, args=(self._run(ready),), name="wire-server")
        self._thread.start()
        ready.result()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()

    async def _run(self, ready: "Future[None]") -> None:
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        app = web.Application(client_max_size=64 * 1024 * 1024)
        self.add_routes(app)
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        ready.set_result(None)
        await self._stopped.wait()
        await runner.cleanup()

    def add_routes(self, app: web.Application) -> None:
        """Adds what the server answers to."""
        app.router.add_post(self.path, self._serve)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        line = self.script[min(len(self.bodies), len(self.script) - 1)]
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        if (peer := request.transport and request.transport.get_extra_info("peername")) not in self._peers:
            self._peers.add(peer)
            self.num_connections += 1
        self.num_open += 1
        try:
            if isinstance(line, web.Response):
                return line
            answer = line if isinstance(line, Answer) else line(self.query_of(body))
            if not body.get("stream"):
                await asyncio.sleep(self.delay_s)
                return web.json_response(self.whole(answer, body))
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            for event in self.events(answer, body):
                await asyncio.sleep(self.delay_s)
                await response.write(event)
            return response
        finally:
            self.num_open -= 1

    @abstractmethod
    def query_of(self, body: dict[str, Any]) -> Query:
        """The query that the request's body asks."""

    @abstractmethod
    def whole(self, answer: Answer, body: dict[str, Any]) -> dict[str, Any]:
        """The answer in the wire's form."""

    @abstractmethod
    def events(self, answer: Answer, body: dict[str, Any]) -> Sequence[bytes]:
        """The answer in the wire's streamed form."""


def words(text: str) -> list[str]:
    """Words with the blank before them; joined they are the text."""
    first, *rest = text.split(" ")
    return [piece for piece in (first, *(f" {word}" for word in rest)) if piece]
