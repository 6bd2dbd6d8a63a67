"""Real gateways on real sockets, in this event loop or in a thread of their own."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from nearfar.router.cascade import Cascade, Tier
from nearfar.router.router import Router
from nearfar.serving.gateway.agent_runs import AgentsDoor
from nearfar.serving.gateway.app import Door
from nearfar.serving.gateway.server import Server, serving
from nearfar.serving.gateway.settings import GatewaySettings
from nearfar.types import ChatModel, Decision


class MemoryLog:
    """Keeps decisions in a list."""

    def __init__(self) -> None:
        self.decisions: list[Decision] = []

    def submit(self, decision: Decision) -> None:
        """Keeps it."""
        self.decisions.append(decision)

    async def flush(self) -> None:
        """Nothing waits."""


def router_of(*models: ChatModel, log: MemoryLog | None = None, **options: Any) -> Router:
    """A router whose cascade "auto" tries the models in order."""
    cascade = Cascade([Tier(model, **options) for model in models], name="auto")
    return Router({"auto": cascade}, {model.card.name: model for model in models}, log=log)


def settings_of(**settings: Any) -> GatewaySettings:
    """Settings on any free port."""
    return GatewaySettings(**{"port": 0, **settings})


@asynccontextmanager
async def gateway(
    router: Router,
    *,
    doors: Mapping[str, Door] | None = None,
    agents: AgentsDoor | None = None,
    **settings: Any,
) -> AsyncIterator[Server]:
    """A gateway in this event loop; closes the router too."""
    try:
        async with serving(router, settings=settings_of(**settings), doors=doors, agents=agents) as server:
            yield server
    finally:
        await router.aclose()


@contextmanager
def gateway_thread(router: Router, **settings: Any) -> Iterator[str]:
    """A gateway in a thread, for clients that block; gives its URL."""
    urls: list[str] = []
    is_up = threading.Event()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def run() -> None:
        async with gateway(router, **settings) as server:
            urls.append(server.url)
            is_up.set()
            await stop.wait()

    def main() -> None:
        try:
            loop.run_until_complete(run())
        finally:
            is_up.set()
            loop.close()

    thread = threading.Thread(target=main, name="gateway")
    thread.start()
    is_up.wait()
    try:
        yield urls[0]
    finally:
        if loop.is_running():
            loop.call_soon_threadsafe(stop.set)
        thread.join()


async def talk(url: str, *pieces: bytes, pause_s: float = 0.0) -> bytes:
    """Writes raw bytes to a gateway and reads until it closes the connection."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def request_bytes(path: str, body: bytes, *, method: str = "POST", headers: Sequence[str] = ()) -> bytes:
    """An HTTP request that asks for the connection to be closed."""
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
