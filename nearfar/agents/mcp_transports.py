"""How messages reach an MCP server: a child process's pipes or HTTP, bounded, so that no server can fill the memory."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

import anyio
import httpx2
import mcp_types
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.client._transport import Transport, TransportStreams
from mcp.client.stdio import get_default_environment
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage

from .processes import end, has_exited, signal_group

_Incoming: TypeAlias = MemoryObjectSendStream[SessionMessage | Exception]
_Outgoing: TypeAlias = MemoryObjectReceiveStream[SessionMessage]

#: The largest message that is read; what is larger ends the connection.
MAX_MESSAGE_BYTES: Final = 8 * 2**20

#: How much of what a server writes to its standard error is kept, to say why it died.
_LAST_WORDS_BYTES: Final = 2_000

#: How long a server has to end after its input was closed, and again after SIGTERM
#: (https://modelcontextprotocol.io/specification/2025-11-25/basic/lifecycle#shutdown).
_PATIENCE_S: Final = 2.0

#: How long a process that closed its output may take to leave an exit code.
_EXIT_CODE_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class StdioServer:
    """An MCP server that is a program here; it sees PATH, HOME and the like, and `env`, and no other variable."""

    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict, repr=False)  # secrets go here; no model sees them
    cwd: str | Path | None = None

    def __str__(self) -> str:
        return " ".join(self.command)


@dataclass(frozen=True, slots=True)
class HttpServer:
    """An MCP server behind a URL, spoken to over streamable HTTP."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # secrets go here; no model sees them

    def __str__(self) -> str:
        return self.url


class Wire:
    """A transport for `mcp.Client`, and what became of it.

    Args:
        server: which server.
        max_message_bytes: what is larger ends the connection.
        read_timeout_s: of HTTP alone: the longest silence of the server.
    """

    def __init__(
        self, server: StdioServer | HttpServer, *, max_message_bytes: int = MAX_MESSAGE_BYTES, read_timeout_s: float
    ) -> None:
        self._server = server
        self._max_bytes = max_message_bytes
        self._read_timeout_s = read_timeout_s
        self._process: asyncio.subprocess.Process | None = None
        self._last_words = b""
        self._fault = ""
        self.has_ended = False  # no message will come any more

    def connect(self) -> Transport:
        """The streams, open for as long as the context is."""
        return self._run_program(self._server) if isinstance(self._server, StdioServer) else self._reach(self._server)

    def epitaph(self) -> str:
        """How the server ended, in words; "" where nothing is known."""
        if self._fault:
            return self._fault
        if self._process is None or not self.has_ended:
            return ""
        code = self._process.returncode
        how = (
            "closed its output" if code is None else f"was killed by signal {-code}" if code < 0 else f"exited ({code})"
        )
        words = self._last_words.decode(errors="replace").strip().rsplit("\n", 1)[-1].strip()
        return f"{how}; its last words: {words!r}" if words else how

    # --- a program ---------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _run_program(self, server: StdioServer) -> AsyncGenerator[TransportStreams, None]:
        process = self._process = await asyncio.create_subprocess_exec(
            *server.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**get_default_environment(), **server.env},
            cwd=server.cwd,
            start_new_session=True,  # its children are ended with it
            limit=self._max_bytes,
        )
        incoming, reads = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        writes, outgoing = anyio.create_memory_object_stream[SessionMessage](0)
        tasks = [
            asyncio.create_task(self._read(process, incoming)),
            asyncio.create_task(self._write(process, outgoing, incoming)),
            asyncio.create_task(self._listen(process)),
        ]
        try:
            yield reads, writes
        finally:
            with anyio.CancelScope(shield=True):
                await self._end(process)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                for stream in (incoming, reads, writes, outgoing):
                    await stream.aclose()

    async def _read(self, process: asyncio.subprocess.Process, incoming: _Incoming) -> None:
        assert process.stdout is not None
        async with incoming:
            while line := await self._line(process.stdout):
                try:
                    message = mcp_types.jsonrpc_message_adapter.validate_json(line, by_name=False)
                except ValueError:
                    continue  # a program that prints between its messages is common; no answer is awaited from that
                try:
                    await incoming.send(SessionMessage(message))
                except (anyio.ClosedResourceError, anyio.BrokenResourceError):
                    break
            await self._note_end(process)

    async def _line(self, stdout: asyncio.StreamReader) -> bytes:
        try:
            return await stdout.readuntil(b"\n")
        except asyncio.IncompleteReadError:
            return b""
        except asyncio.LimitOverrunError:
            self._fault = f"sent a message of more than {self._max_bytes} bytes"
            return b""

    async def _write(self, process: asyncio.subprocess.Process, outgoing: _Outgoing, incoming: _Incoming) -> None:
        assert process.stdin is not None
        try:
            async with outgoing:
                async for each in outgoing:
                    text = each.message.model_dump_json(by_alias=True, exclude_unset=True)
                    process.stdin.write(f"{text}\n".encode())
                    await process.stdin.drain()
        except OSError:
            await self._note_end(process)
            await incoming.aclose()

    async def _note_end(self, process: asyncio.subprocess.Process) -> None:
        """The exit code comes a moment after the pipes have closed, and is part of what is told."""
        if not self._fault:
            await has_exited(process, _EXIT_CODE_S)
        self.has_ended = True

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        while part := await process.stderr.read(_LAST_WORDS_BYTES):
            self._last_words = (self._last_words + part)[-_LAST_WORDS_BYTES:]

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        """Asks the server to end, then makes it; its whole process group is gone afterwards."""
        assert process.stdin is not None
        process.stdin.close()
        if not (self._fault or await has_exited(process, _PATIENCE_S)):
            signal_group(process.pid, signal.SIGTERM)
            await has_exited(process, _PATIENCE_S)
        signal_group(process.pid, signal.SIGKILL)
        await end(process, _PATIENCE_S)

    # --- HTTP --------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _reach(self, server: HttpServer) -> AsyncGenerator[TransportStreams, None]:
        # Redirects to elsewhere are refused by the SDK; proxies and `.netrc` of the environment by trust_env.
        async with (
            httpx2.AsyncClient(
                headers=dict(server.headers),
                timeout=httpx2.Timeout(10.0, read=self._read_timeout_s),
                transport=_BoundedTransport(self._max_bytes),
                trust_env=False,
            ) as http,
            streamable_http_client(server.url, http_client=http, max_sse_event_size=self._max_bytes) as streams,
        ):
            yield streams


class _BoundedTransport(httpx2.AsyncHTTPTransport):
    """HTTP whose answers are cut off with an error at `max_bytes`; streams of events are bounded by event instead."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(trust_env=False)
        self._max_bytes = max_bytes

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """See `httpx2.AsyncBaseTransport`."""
        response = await super().handle_async_request(request)
        if not response.headers.get("content-type", "").startswith("text/event-stream"):
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            response.stream = _BoundedStream(response.stream, self._max_bytes)
        return response


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, inner: httpx2.AsyncByteStream, max_bytes: int) -> None:
        self._inner = inner
        self._max_bytes = max_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        num_bytes = 0
        async for part in self._inner:
            num_bytes += len(part)
            if num_bytes > self._max_bytes:
                raise httpx2.StreamError(f"more than {self._max_bytes} bytes")
            yield part

    async def aclose(self) -> None:
        await self._inner.aclose()
