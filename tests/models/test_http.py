"""HTTP to servers that say more than they were asked for, at real sockets."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from nearfar.errors import MalformedAnswer
from nearfar.models.http import HttpClient

Reply = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def client(reply: Reply, *, max_stream_bytes: int = 10_000) -> AsyncIterator[HttpClient]:
    """A client of a server that answers every request's body in this way."""
    peers: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.add(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
                await reply(await reader.readexactly(length), writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    http = HttpClient(model="far", url=f"http://127.0.0.1:{port}", headers={}, max_stream_bytes=max_stream_bytes)
    try:
        yield http
    finally:
        await http.aclose()
        server.close()
        for peer in peers:
            peer.close()


async def post(http: HttpClient, body: bytes) -> bytes:
    """The whole answer."""
    async with http.exchange("POST", http.endpoint("x"), body) as exchange:
        return await exchange.read()


def ok(body: bytes) -> bytes:
    """A whole response."""
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


async def test_an_answer_that_nobody_asked_for_is_given_to_nobody() -> None:
    """What comes on an idle connection would pass for the next answer, which may be another asker's."""

    async def twice(body: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(ok(b"for " + body))
        await writer.drain()
        await asyncio.sleep(0.05)  # until the first is read, and its connection idle
        writer.write(ok(b"once more for " + body))
        await writer.drain()

    async with client(twice) as http:
        answers = [await post(http, b"ann")]
        await asyncio.sleep(0.2)  # until more has been said
        answers.append(await post(http, b"bob"))

    assert answers == [b"for ann", b"for bob"]


async def test_a_stream_without_an_end_is_left() -> None:
    """However small its events are, and although it is never silent."""

    async def endless(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        while True:
            writer.write(b": still here\n\ndata: 1\n\n" * 1000)
            await writer.drain()

    read: list[bytes] = []

    async def follow(http: HttpClient) -> None:
        async with http.exchange("POST", http.endpoint("x"), b"{}") as exchange:
            while (events := await exchange.events()) is not None:
                read.extend(events)

    async with client(endless, max_stream_bytes=1_000_000) as http:
        with pytest.raises(MalformedAnswer, match="stream of more than 1000000 bytes"):
            await follow(http)

    assert 0 < len(read) <= 1_000_000 / 24
