"""The gateway on a socket: uvicorn with time limits on arrival, and a stop that lets requests finish."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast

try:
    import fcntl
    import resource
    import termios
except ImportError:  # Windows
    fcntl = resource = termios = None  # type: ignore[assignment]

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from nearfar.errors import ConfigError
from nearfar.router.router import Router

from .agent_runs import AgentsDoor
from .app import Door, create_app
from .problems import Problem, invalid
from .replies import WHOLE
from .settings import GatewaySettings
from .streams import GONE

#: Longer than clients keep an idle connection, so that it is they who close it: a request sent into a closing
#: connection is lost. Five seconds in httpx, four in Node.
_KEEP_ALIVE_S = 65
_BACKLOG = 2048

_MOST_CONNECTIONS = 50_000
_TICKS_PER_S = 10  # uvicorn's

#: Objects made and not yet freed that start a collection; Python's own 700 are a handful of requests.
_COLLECT_AFTER = 20_000


def serve(
    router: Router,
    *,
    settings: GatewaySettings,
    doors: Mapping[str, Door] | None = None,
    agents: AgentsDoor | None = None,
    announce: Callable[[str], None] = print,
) -> None:
    """Serves until SIGINT or SIGTERM, then finishes the requests in flight and closes the router.

    Args:
        router: who answers.
        settings: where to listen, who may ask and how much.
        doors: further paths to POST to.
        agents: who answers what is asked of agents; None: there are none.
        announce: told the address once requests are taken.

    Raises:
        ConfigError: the address cannot be bound.
    """
    _spare_the_collector()
    _allow_many_files()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(router, settings, doors, agents, announce))


async def _serve(
    router: Router,
    settings: GatewaySettings,
    doors: Mapping[str, Door] | None,
    agents: AgentsDoor | None,
    announce: Callable[[str], None],
) -> None:
    loop = asyncio.get_running_loop()
    try:
        async with serving(router, settings=settings, doors=doors, agents=agents) as server:
            stopping = [signal.SIGINT, signal.SIGTERM]
            with contextlib.suppress(NotImplementedError):  # Windows: Ctrl+C raises KeyboardInterrupt
                for number in stopping:
                    loop.add_signal_handler(number, server.stop)
            announce(f"nearfar answers at {server.url}/v1")
            await server.until_stopped()
    finally:
        await router.aclose()


def _spare_the_collector() -> None:
    """Keeps the garbage collector off what lives as long as the process, and lets it look less often at the rest.

    Requests leave little for it, and unasked it walks every module again and again: a quarter of the time of a small
    request, by benchmarks/gateway.py.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, 20, 50)


def _allow_many_files() -> None:
    """Takes as many open files as the process may have: 1,024, a usual start, are as many idle connections."""
    if resource is not None:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(OSError, ValueError):  # macOS says that there is no limit, and has one
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _max_connections() -> int:
    """Three quarters of the files that may be open: models and the log need some, too."""
    if resource is None:
        return _MOST_CONNECTIONS
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_CONNECTIONS if files == resource.RLIM_INFINITY else min(_MOST_CONNECTIONS, max(1, files * 3 // 4))


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop  # not on Windows
    except ImportError:
        return None
    return uvloop.new_event_loop


class Server:
    """A gateway that is taking requests.

    Attributes:
        url: its address, without a path.
    """

    def __init__(self, server: uvicorn.Server, url: str) -> None:
        self._server = server
        self._stopping = asyncio.Event()
        self.url = url

    def stop(self) -> None:
        """Asks it to stop; asked twice, it stops without waiting for the requests in flight."""
        if self._stopping.is_set():
            self._server.force_exit = True
        self._stopping.set()

    async def until_stopped(self) -> None:
        """Waits until `stop` is called."""
        await self._stopping.wait()


@asynccontextmanager
async def serving(
    router: Router,
    *,
    settings: GatewaySettings,
    doors: Mapping[str, Door] | None = None,
    agents: AgentsDoor | None = None,
) -> AsyncIterator[Server]:
    """The gateway, taking requests in the running event loop; leaving the block stops it, and not the router.

    Raises:
        ConfigError: the address cannot be bound.
    """
    app = create_app(router, settings=settings, doors=doors, agents=agents)
    listener = _bind(settings)
    host, port = listener.getsockname()[:2]
    server = _Server(
        uvicorn.Config(
            app,
            http=_protocol(settings),
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=max(1, round(settings.shutdown_grace_s)),
        ),
        receive_timeout_s=settings.receive_timeout_s,
    )
    running = asyncio.create_task(server.serve(sockets=[listener]))
    handle = Server(server, f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
    try:
        running.add_done_callback(lambda _: server.ready.set())
        await server.ready.wait()
        yield handle
    finally:
        server.should_exit = True
        await running


def _bind(settings: GatewaySettings) -> socket.socket:
    host, port = settings.host, settings.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # Not `socket.create_server`: it names no protocol, and asyncio then leaves Nagle's algorithm on, which holds
        # the body of every reply back for 40 ms.
        listener = socket.socket(family, kind, protocol)
        try:
            if os.name == "posix":  # elsewhere it lets another process take the port over
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as exc:
        raise ConfigError(
            f"Cannot listen on {host!r}, port {port}: {exc.strerror or exc}. Choose another: --port or gateway.port."
        ) from exc
    listener.setblocking(False)
    return listener


class _Server(uvicorn.Server):
    """uvicorn's, without its signal handlers, and closing connections whose request does not arrive in time."""

    def __init__(self, config: uvicorn.Config, *, receive_timeout_s: float) -> None:
        super().__init__(config)
        self._receive_timeout_s = receive_timeout_s
        self.ready = asyncio.Event()  # set once requests are taken, or never will be

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to take requests."""
        await super().startup(sockets)
        self.ready.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leaves signals to `serve`: uvicorn's raise them again and kill the process before the log is written."""
        yield

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        latest = asyncio.get_running_loop().time() - self._receive_timeout_s
        is_second = counter % _TICKS_PER_S == 0
        for connection in list(self.server_state.connections):
            if isinstance(connection, _Protocol) and connection.receiving_since < latest:
                connection.refuse(_TOO_SLOW)
            elif is_second and isinstance(connection, _Protocol) and connection.stalled_since() < latest:
                connection.transport.abort()  # closing it would wait for what is not sent
        return await super().on_tick(counter)


_TOO_SLOW = invalid("The request did not arrive in time.", code="request_timeout", status=408)
_HEAD_TOO_LARGE = invalid("The request's headers are too large.", code="headers_too_large", status=431)
_NEVER = float("inf")
_CONTINUE = b"HTTP/1.1 100 "


class _Protocol(HttpToolsProtocol):
    """uvicorn's, watching how long a request takes to arrive and how large its head is.

    Attributes:
        receiving_since: when the request that is arriving began, in the event loop's time; `inf`: none is.
    """

    max_header_bytes: int
    max_connections: int
    waiting: dict[_Protocol, None]  # the server's connections without a request, in the order in which they wait

    receiving_since = _NEVER
    _stalled_since = _NEVER
    _unsent_bytes = 0
    _head_bytes = 0
    _has_head = False  # of the request that came last

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self.receiving_since = self.loop.time()
        self._gone: set[Callable[[], None]] = set()
        self.waiting[self] = None
        if len(self.connections) > self.max_connections:
            longest = next(iter(self.waiting))  # whoever wants nothing makes room
            del self.waiting[longest]
            longest.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.waiting.pop(self, None)
        super().connection_lost(exc)
        for call in tuple(self._gone):
            call()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._has_head:
            self._head_bytes += len(data)
            if self._head_bytes > self.max_header_bytes:
                self.refuse(_HEAD_TOO_LARGE)

    def on_message_begin(self) -> None:
        self._has_head = False
        self._head_bytes = 0
        self.receiving_since = self.loop.time()
        super().on_message_begin()
        self.scope["extensions"] = {GONE: self._gone}  # type: ignore[dict-item]  # ours is a set

    def on_headers_complete(self) -> None:
        self._has_head = True
        self.waiting.pop(self, None)
        super().on_headers_complete()
        if self.scope["method"] != "HEAD":  # whose replies have no body
            self.scope["extensions"][WHOLE] = partial(_reply, self.cycle, self.transport)  # type: ignore[assignment]
            self.cycle.transport = _WithHead(self.transport)  # type: ignore[assignment]  # all that a reply uses

    def on_response_complete(self) -> None:
        self.cycle.scope["extensions"].pop(WHOLE, None)  # it holds the cycle: else each request waits for the collector
        super().on_response_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            self.waiting[self] = None

    def on_message_complete(self) -> None:
        self.receiving_since = _NEVER
        super().on_message_complete()

    def stalled_since(self) -> float:
        """Since when the client takes nothing of what is to be sent, as seen by whoever asks; `inf`: it takes it."""
        unsent = self.transport.get_write_buffer_size()
        if unsent:
            unsent += _in_the_kernel(self.transport)
        if unsent == 0 or unsent < self._unsent_bytes:
            self._stalled_since = _NEVER
        elif self._stalled_since == _NEVER:
            self._stalled_since = self.loop.time()
        self._unsent_bytes = unsent
        return self._stalled_since

    def refuse(self, problem: Problem) -> None:
        """Closes the connection, with an error where no reply is on its way."""
        self.receiving_since = _NEVER
        if self.transport.is_closing():
            return
        cycle = cast("RequestResponseCycle | None", self.cycle)
        is_idle = cycle is None or cycle.response_complete
        if is_idle or (self._has_head and not self.pipeline and not self.cycle.response_started):
            body = problem.body()
            self.transport.write(
                STATUS_LINE[problem.status]
                + b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
                + body
            )
        self.transport.close()


def _reply(cycle: RequestResponseCycle, transport: asyncio.Transport, status: int, head: bytes, body: bytes) -> bool:
    """Sends a whole reply at once; False where it has to wait or cannot be sent, which is for ASGI's `send` to see to.

    What uvicorn's `send` does in two calls and a look at every header, for three times the instructions.
    """
    if cycle.flow.write_paused or cycle.disconnected or cycle.response_started:
        return False
    cycle.response_started = cycle.response_complete = True
    cycle.waiting_for_100_continue = False
    lines = [STATUS_LINE[status], head, b"content-length: %d\r\n" % len(body)]
    for name, value in cycle.default_headers:  # the date
        lines += (name, b": ", value, b"\r\n")
    if not cycle.keep_alive:
        lines.append(b"connection: close\r\n")
    lines += (b"\r\n", body)
    transport.write(b"".join(lines))
    cycle.message_event.set()
    if not cycle.keep_alive:
        transport.close()
    cycle.on_response()
    return True


def _in_the_kernel(transport: asyncio.Transport) -> int:
    """Bytes that the kernel has taken and the client's has not; 0 where nobody knows."""
    try:
        found = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except (OSError, AttributeError):
        return 0
    return int.from_bytes(found, sys.byteorder)


class _WithHead:
    """A reply's transport that sends the head with the first of the body: one system call and one segment, not two."""

    __slots__ = ("_head", "_is_out", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self._is_out = False

    def write(self, data: bytes) -> None:
        """Sends `data`, or keeps it where it is the head."""
        if self._is_out:
            self._transport.write(data)
        elif self._head:
            self._send_head(data)
        elif data.startswith(_CONTINUE):
            self._transport.write(data)
        else:
            self._head = data

    def close(self) -> None:
        """Sends what is kept, and closes."""
        if self._head and not self._is_out:
            self._send_head(b"")
        self._transport.close()

    def _send_head(self, body: bytes) -> None:
        self._is_out = True
        self._transport.write(self._head + body)

    def is_closing(self) -> bool:
        """Whether the connection is being closed."""
        return self._transport.is_closing()


def _protocol(settings: GatewaySettings) -> type[_Protocol]:
    limits: dict[str, Any] = {
        "max_header_bytes": settings.max_header_bytes,
        "max_connections": _max_connections(),
        "waiting": {},
    }
    return type("_LimitedProtocol", (_Protocol,), limits)
