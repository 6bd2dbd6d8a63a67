"""A server at a real socket that does to its clients whatever a bad network or a bad server can do."""

import asyncio
import json
import socket
import struct
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from typing import Self

#: What it can do; each under its own base URL. "healthy" does nothing wrong.
FAULTS = (
    "healthy",
    "refuse",
    "close_before_headers",
    "hang_before_headers",
    "hang_midway",
    "reset_midway",
    "close_midway",
    "rate_limited",
    "rate_limited_with_retry_after",
    "server_error",
    "error_in_200",
    "error_midway",
    "wrong_content_type",
    "broken_json",
    "deep_json",
    "truncated",
    "split_at_every_byte",
    "huge_line",
    "invalid_utf8",
    "byte_a_second",
    "redirect",
    "no_http",
)

WORDS = ("one", " two", " three", " four")
HUGE = 10 * 1024 * 1024


class HostileUpstream:
    """Speaks OpenAI's chat completions, streamed and not, and breaks as the URL says.

    It runs in a thread of its own, so that the tasks of the test's event loop are the client's alone.

    Attributes:
        num_busy: requests under way; a client that has given up has none.
        num_requests: requests that ever came.
    """

    def __init__(self) -> None:
        self.num_busy = 0
        self.num_requests = 0
        self._handlers: set[asyncio.Task[None]] = set()

    def url(self, fault: str) -> str:
        """The base URL under which the server has this fault."""
        port = self._closed_port if fault == "refuse" else self._port
        return f"http://127.0.0.1:{port}/{fault}/v1"

    def __enter__(self) -> Self:
        self._unheard = socket.socket()
        self._unheard.bind(("127.0.0.1", 0))  # bound and not listening: the port is ours, and refuses
        self._closed_port = self._unheard.getsockname()[1]
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=asyncio.run, args=(self._run(ready),), name="hostile-upstream")
        self._thread.start()
        ready.result()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()
        self._unheard.close()

    async def _run(self, ready: "Future[None]") -> None:
        self._loop = asyncio.get_running_loop()
        self._stopped = asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        ready.set_result(None)
        await self._stopped.wait()
        server.close()
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._handlers.add(task)
        task.add_done_callback(self._handlers.discard)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                path, length = _parse(head)
                body = json.loads(await reader.readexactly(length) or b"{}")
                self.num_requests += 1
                self.num_busy += 1
                try:
                    await _misbehave(path.split("/")[1], bool(body.get("stream")), reader, writer)
                finally:
                    self.num_busy -= 1
        except (asyncio.IncompleteReadError, ConnectionError):
            return  # the client has gone
        finally:
            writer.close()


async def _misbehave(fault: str, is_stream: bool, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers one request; raises ConnectionError where the connection is done for."""
    media_type = "text/event-stream" if is_stream else "application/json"
    whole = _stream(WORDS) if is_stream else _body(WORDS)
    half = whole[: whole.index(b"three")]
    match fault:
        case "close_before_headers":
            raise ConnectionAbortedError
        case "hang_before_headers":
            await _hang(reader)
        case "hang_midway":
            await _send(writer, _headers(media_type), _chunk(half))
            await _hang(reader)
        case "reset_midway":
            await _send(writer, _headers(media_type), _chunk(half))
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            writer.transport.abort()
            raise ConnectionAbortedError
        case "close_midway":
            await _send(writer, _headers(media_type), _chunk(half))
            raise ConnectionAbortedError
        case "rate_limited":
            await _send(writer, _error("429 Too Many Requests", "rate_limit_exceeded"))
        case "rate_limited_with_retry_after":
            await _send(writer, _error("429 Too Many Requests", "rate_limit_exceeded", "Retry-After: 7\r\n"))
        case "server_error":
            await _send(writer, _error("500 Internal Server Error", "server_error"))
        case "error_in_200":
            await _send(writer, _error("200 OK", "server_error"))
        case "error_midway":
            error = b'{"error": {"message": "boom", "type": "server_error"}}'
            tail = b"data: " + error + b"\n\n" if is_stream else error
            await _send(
                writer, _headers(media_type), _chunk((half[: half.rindex(b"data:")] if is_stream else b"") + tail)
            )
            await _send(writer, _END)
        case "wrong_content_type":
            page = b"<html><body>Please log in</body></html>"
            await _send(writer, _headers("text/html"), _chunk(page), _END)
        case "broken_json":
            broken = whole.replace(b'"choices":', b'"choices"')
            await _send(writer, _headers(media_type), _chunk(broken), _END)
        case "deep_json":
            deep = b'"x": ' + b"[" * 100_000 + b"]" * 100_000 + b', "choices":'
            await _send(writer, _headers(media_type), _chunk(whole.replace(b'"choices":', deep)), _END)
        case "truncated":
            await _send(writer, _headers(media_type), _chunk(half), _END)
        case "split_at_every_byte":
            await _send(writer, _headers(media_type))
            for i in range(len(whole)):
                await _send(writer, _chunk(whole[i : i + 1]))
            await _send(writer, _END)
        case "huge_line":
            huge = whole.replace(b"three", b"x" * HUGE)
            await _send(writer, _headers(media_type), _chunk(huge), _END)
        case "invalid_utf8":
            await _send(writer, _headers(media_type), _chunk(whole.replace(b"three", b"\xff\xfe")), _END)
        case "byte_a_second":
            await _send(writer, _headers(media_type))
            async for byte in _slowly(whole, reader):
                await _send(writer, _chunk(byte))
            await _send(writer, _END)
        case "redirect":
            moved = b"HTTP/1.1 307 Temporary Redirect\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n"
            await _send(writer, moved)
        case "no_http":
            await _send(writer, b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
            raise ConnectionAbortedError
        case "healthy":
            await _send(writer, _headers(media_type), _chunk(whole), _END)
        case _:
            raise AssertionError(f"no fault is called {fault!r}")


async def _hang(reader: asyncio.StreamReader) -> None:
    """Says nothing until the client goes away."""
    await reader.read(1)
    raise ConnectionAbortedError


async def _slowly(data: bytes, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """A byte a second until the client goes away."""
    for i in range(len(data)):
        yield data[i : i + 1]
        try:
            async with asyncio.timeout(1):
                await _hang(reader)
        except TimeoutError:
            continue


async def _send(writer: asyncio.StreamWriter, *parts: bytes) -> None:
    writer.write(b"".join(parts))
    await writer.drain()


def _parse(head: bytes) -> tuple[str, int]:
    """The path and the body's length that a request's head names."""
    request, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines if line)
    return request.split(" ")[1], int(headers.get("content-length", "0"))


_END = b"0\r\n\r\n"


def _headers(media_type: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _error(status: str, kind: str, headers: str = "") -> bytes:
    body = json.dumps({"error": {"message": "boom", "type": kind}}).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


_USAGE = {"prompt_tokens": 5, "completion_tokens": len(WORDS)}


def _logprobs(words: tuple[str, ...]) -> dict[str, object]:
    return {"content": [{"token": word, "logprob": -0.01, "top_logprobs": []} for word in words]}


def _body(words: tuple[str, ...]) -> bytes:
    message = {"role": "assistant", "content": "".join(words)}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": _logprobs(words)}
    return json.dumps({"choices": [choice], "usage": _USAGE}).encode()


def _stream(words: tuple[str, ...]) -> bytes:
    choices = [{"index": 0, "delta": {"content": word}, "logprobs": _logprobs((word,))} for word in words]
    choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
    chunks: list[dict[str, object]] = [{"choices": [choice]} for choice in choices]
    chunks.append({"choices": [], "usage": _USAGE})
    return b"".join(b"data: %s\n\n" % json.dumps(chunk).encode() for chunk in chunks) + b"data: [DONE]\n\n"
