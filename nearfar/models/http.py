"""HTTP to model servers: pooled connections, bounded reading, and every failure as an `UpstreamError`."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Mapping
from types import TracebackType
from typing import Final, Self

import aiohttp
from aiohttp.connector import Connection
from aiohttp.tracing import Trace
from yarl import URL

from nearfar.errors import ConfigError

from .http_errors import ErrorTranslator
from .sse import EventReader, EventTooLarge

#: The largest body that is read of an answer that is not streamed, and of an error.
MAX_BODY_BYTES: Final = 32 * 1024 * 1024
MAX_ERROR_BYTES: Final = 64 * 1024

#: The most that is read of one stream. A hundred thousand tokens with twenty alternatives each are 200 MB. A server
#: that never ends is ended by this alone, or by a deadline that may be ten minutes away.
MAX_STREAM_BYTES: Final = 256 * 1024 * 1024

#: How long an idle connection is kept; below the 15 s to 75 s after which common servers close it.
_KEEP_ALIVE_S: Final = 10.0

#: How long to wait for the end of a body whose last event has come, so that the connection can be used again.
_DRAIN_S: Final = 0.1

#: Bodies from here on go out piece by piece; aiohttp warns of those that do not.
_LARGE_BODY_BYTES: Final = 1024 * 1024

#: The slowest that such a body may go out; aiohttp counts no silence before the whole request is sent.
_SLOWEST_BYTES_PER_S: Final = 256 * 1024

#: Everything that aiohttp raises for what a server or a network did.
_FAILURES: Final = (aiohttp.ClientError, OSError)


class HttpClient:
    """Sends requests to one server; a session per event loop, made at its first request.

    Redirects are refused, cookies dropped, proxies and `.netrc` of the environment ignored: a key goes to the
    configured URL and nowhere else. Close it in the event loop that used it.

    Args:
        model: the model's name in the config, for errors.
        url: the server's base URL; a query (Azure's `api-version`) is kept.
        headers: sent with every request; their values are kept out of messages.
        plain_headers: sent besides; no secrets.
        connect_timeout_s: for the name, the connection and TLS together.
        read_timeout_s: the longest silence while an answer is awaited or read.
        max_stream_bytes: the longest stream.

    Raises:
        ConfigError: the URL or a header cannot be used.
    """

    def __init__(
        self,
        *,
        model: str,
        url: str,
        headers: Mapping[str, str],
        plain_headers: Mapping[str, str] | None = None,
        connect_timeout_s: float = 5.0,
        read_timeout_s: float = 120.0,
        max_stream_bytes: int = MAX_STREAM_BYTES,
    ) -> None:
        self._url = _checked_url(url, model)
        _check_headers(headers, model)
        secrets = [part for value in headers.values() for part in (value, value.removeprefix("Bearer "))]
        self.errors = ErrorTranslator(
            model=model,
            url=str(self._url.with_query(None)),
            secrets=tuple(secret for secret in secrets if len(secret) >= 6),
        )
        self._headers = {
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",  # answers are small, and compression holds a stream's events back
            "User-Agent": "nearfar",
            **(plain_headers or {}),
            **headers,
        }
        self._timeout = aiohttp.ClientTimeout(total=None, connect=connect_timeout_s, sock_read=read_timeout_s)
        self._patience_s = connect_timeout_s + read_timeout_s
        self.max_stream_bytes = max_stream_bytes
        self._sessions: dict[asyncio.AbstractEventLoop, aiohttp.ClientSession] = {}

    def endpoint(self, path: str) -> URL:
        """The URL of `path` under the base URL."""
        return (self._url / path).with_query(self._url.query)

    def exchange(self, method: str, endpoint: URL, body: bytes | None = None) -> Exchange:
        """A request that is sent when the exchange is entered."""
        return Exchange(self, method, endpoint, body)

    def open_session(self) -> aiohttp.ClientSession | None:
        """The running event loop's session where there is one."""
        session = self._sessions.get(asyncio.get_running_loop())
        return None if session is None or session.closed else session

    async def session(self) -> aiohttp.ClientSession:
        """The running event loop's session, made if need be."""
        session = self.open_session()
        if session is None:
            loop = asyncio.get_running_loop()
            for old in [loop for loop in self._sessions if loop.is_closed()]:
                await self._sessions.pop(old).close()
            session = self._sessions[loop] = aiohttp.ClientSession(
                connector=_Connector(limit=0, keepalive_timeout=_KEEP_ALIVE_S, resolver=aiohttp.ThreadedResolver()),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=self._headers,
                timeout=self._timeout,
                trust_env=False,
                response_class=_Response,
            )
        return session

    def upload_timeout_s(self, num_bytes: int) -> float | None:
        """How long a request with so large a body may take until its answer begins; None: aiohttp sees to it."""
        return None if num_bytes <= _LARGE_BODY_BYTES else self._patience_s + num_bytes / _SLOWEST_BYTES_PER_S

    async def aclose(self) -> None:
        """Closes every connection. Twice is fine; a later request opens new ones."""
        running = asyncio.get_running_loop()
        while self._sessions:
            loop, session = self._sessions.popitem()
            if loop is running or loop.is_closed():
                await session.close()
            elif loop.is_running():
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(session.close(), loop))


class Exchange:
    """One request and the 200 that answers it; whatever is left of it at the end of the context is closed at once.

    Entering, and every reading method, raises an `UpstreamError` where the server or the network fails.
    """

    __slots__ = ("_body", "_client", "_is_ended", "_method", "_num_bytes", "_reader", "_response", "_url")

    def __init__(self, client: HttpClient, method: str, url: URL, body: bytes | None) -> None:
        self._client = client
        self._method = method
        self._url = url
        self._body = body
        self._reader: EventReader | None = None  # of a stream
        self._is_ended = False
        self._num_bytes = 0  # of a stream, read so far

    async def __aenter__(self) -> Self:
        client = self._client
        session = client.open_session() or await client.session()
        body = self._body or b""
        data = io.BytesIO(body) if len(body) > _LARGE_BODY_BYTES else body or None
        try:
            request = session.request(self._method, self._url, data=data, allow_redirects=False)
            limit_s = client.upload_timeout_s(len(body))
            if limit_s is None:
                self._response = await request
            else:
                async with asyncio.timeout(limit_s):
                    self._response = await request
        except _FAILURES as exc:
            raise client.errors.broken(exc, was_answering=False) from _cause(exc)
        if self._response.status != 200:
            try:
                raise client.errors.refused(self._response.status, self._response.headers, await self._read_error())
            finally:
                self._response.close()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._response.close()  # a connection whose body was read to its end is back in the pool already

    @property
    def content_type(self) -> str:
        """The answer's media type in lower case, without parameters; "" where there is none."""
        return self._response.headers.get("Content-Type", "").partition(";")[0].strip().lower()

    async def read(self) -> bytes:
        """The whole body."""
        content = self._response.content
        parts: list[bytes] = []
        num_bytes = 0
        while not content.at_eof() and (part := await self._next()):
            num_bytes += len(part)
            if num_bytes > MAX_BODY_BYTES:
                raise self._client.errors.malformed(f"answered with more than {MAX_BODY_BYTES} bytes")
            parts.append(part)
        return b"".join(parts)

    async def events(self) -> list[bytes] | None:
        """The data of the events that have come by now, maybe none; None at the end of the stream."""
        if self._is_ended:
            return None
        chunk = await self._next()
        self._num_bytes += len(chunk)
        if self._num_bytes > self._client.max_stream_bytes:
            raise self._client.errors.malformed(f"sent a stream of more than {self._client.max_stream_bytes} bytes")
        try:
            reader = self._reader = self._reader or EventReader()
            if chunk:
                return reader.feed(chunk)
            self._is_ended = True
            return reader.close()
        except EventTooLarge as exc:
            raise self._client.errors.malformed(f"sent {exc}") from exc

    async def drain(self) -> None:
        """Reads what follows the last event, for a moment at most, so that the connection goes back to the pool."""
        content = self._response.content
        if content.at_eof():
            return
        try:
            async with asyncio.timeout(_DRAIN_S):
                while await content.readany():
                    pass
        except _FAILURES:
            return  # the answer is whole; leaving the context closes the connection

    async def _next(self) -> bytes:
        try:
            return await self._response.content.readany()
        except _FAILURES as exc:
            raise self._client.errors.broken(exc, was_answering=True) from _cause(exc)

    async def _read_error(self) -> bytes:
        """As much of an error's body as comes; the status alone says enough."""
        body = b""
        try:
            while len(body) < MAX_ERROR_BYTES and (part := await self._response.content.readany()):
                body += part
        except _FAILURES:
            return body
        return body


class _Connector(aiohttp.TCPConnector):
    """Never takes a connection up again on which something has come since: it would pass for the next answer."""

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> Connection:
        while True:
            connection = await super().connect(req, traces, timeout)
            if connection.protocol is None or not connection.protocol.should_close:
                return connection
            connection.close()


class _Response(aiohttp.ClientResponse):
    """Closes its connection at once, and not when the server has read the rest of the request."""

    def close(self) -> None:
        connection = self.connection
        if connection is not None and connection.transport is not None:
            connection.transport.abort()
        super().close()


def _cause(exc: Exception) -> Exception | None:
    """The exception to chain; none where it holds the request's headers, which hold the key."""
    return None if isinstance(exc, aiohttp.ClientResponseError) else exc


def _checked_url(url: str, model: str) -> URL:
    try:
        parsed = URL(url)
    except ValueError:
        parsed = URL()
    if parsed.user is not None or parsed.password is not None:
        raise ConfigError(f"[models.{model}] url must not hold credentials. Name the key's variable in api_key_env.")
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"[models.{model}] url must be like 'https://host/v1', not {url!r}.")
    return parsed.with_fragment(None)


def _check_headers(headers: Mapping[str, str], model: str) -> None:
    for name, value in headers.items():
        if not (value.isascii() and value.isprintable()) or value != " ".join(value.split()):
            raise ConfigError(
                f"[models.{model}] the value of header {name!r} has stray blanks or characters that a header "
                "cannot hold. Check the key for a line end."
            )
