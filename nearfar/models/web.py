"""HTTP to services that are no models: one pinned origin, addresses that may be reached, bounded answers."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

#: How often an answer may send us on, within the origin.
_MAX_REDIRECTS: Final = 3

_REDIRECTS: Final = (301, 302, 303, 307, 308)

Failure: TypeAlias = Literal["timeout", "unreachable", "refused"]


class WebError(Exception):
    """No answer came: `kind` is refused where nothing was sent, for it may not be reached."""

    def __init__(self, message: str, *, kind: Failure) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered, whatever its status."""

    status: int
    content_type: str  # in lower case, without parameters
    charset: str
    body: bytes
    is_cut: bool  # there was more than was read


class WebClient:
    """Sends requests to one origin.

    Redirects are followed within the origin only, and only where the method stays the same; cookies, proxies and
    `.netrc` of the environment are ignored. Addresses that are not public (loopback, private networks, link-local,
    the clouds' metadata) are reached with leave alone, whatever a name resolves to. Use it in one event loop.

    Args:
        origin: scheme, host and port that every request must have.
        allows_private: the leave.
        timeout_s: for one request, redirects included.
        max_bytes: what is more of an answer is not read.
    """

    def __init__(
        self, origin: str, *, allows_private: bool = False, timeout_s: float = 30.0, max_bytes: int = 2 * 2**20
    ) -> None:
        self._origin = URL(origin).origin()
        self._allows_private = allows_private
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._session: aiohttp.ClientSession | None = None

    async def send(
        self,
        method: str,
        url: str,
        *,
        query: Sequence[tuple[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Reply:
        """The server's answer.

        Args:
            method: in capitals.
            url: with its path percent-encoded.
            query: what is added to the URL's query, in order.
            headers: sent with the request.
            body: sent as it is.

        Raises:
            WebError: none came.
        """
        target = URL(url, encoded=True)
        if query:
            target = target.extend_query(list(query))
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._follow(method, target, headers or {}, body)
        except TimeoutError as exc:
            raise WebError(f"{self._origin} gave no answer within {self._timeout_s:g} s", kind="timeout") from exc
        except _Forbidden as exc:
            raise WebError(str(exc), kind="refused") from exc
        except (aiohttp.ClientError, OSError, ValueError) as exc:
            cause = exc.__cause__ if isinstance(exc.__cause__, _Forbidden) else None
            if cause is not None:
                raise WebError(str(cause), kind="refused") from None
            raise WebError(f"{self._origin} cannot be reached: {type(exc).__name__}", kind="unreachable") from None

    async def aclose(self) -> None:
        """Closes the connections. Twice is fine."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    async def _follow(self, method: str, url: URL, headers: Mapping[str, str], body: bytes | None) -> Reply:
        for _ in range(_MAX_REDIRECTS + 1):
            self._check(url)
            async with self._opened().request(
                method, url, headers=headers, data=body, allow_redirects=False
            ) as response:
                location = response.headers.get("Location")
                if response.status not in _REDIRECTS or location is None:
                    return await self._read(response)
                target = url.join(URL(location))
                if target.origin() != self._origin:
                    raise _Forbidden(f"{self._origin} sends us on to {target.origin()}, where nothing was sent")
                if response.status not in (307, 308) and method not in ("GET", "HEAD"):
                    raise _Forbidden(
                        f"{self._origin} sends a {method} on as a GET ({response.status}); it was not sent"
                    )
                url = target
        raise _Forbidden(f"{self._origin} sends us on more than {_MAX_REDIRECTS} times")

    async def _read(self, response: aiohttp.ClientResponse) -> Reply:
        body = b""
        async for part in response.content.iter_any():
            body += part
            if len(body) > self._max_bytes:
                break
        try:
            charset = response.get_encoding() if response.charset else "utf-8"
        except (LookupError, RuntimeError):
            charset = "utf-8"
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        return Reply(response.status, kind, charset, body[: self._max_bytes], len(body) > self._max_bytes)

    def _check(self, url: URL) -> None:
        if url.origin() != self._origin:
            raise _Forbidden(f"{url.origin()} is not {self._origin}; nothing was sent")
        try:
            address = ipaddress.ip_address(url.host or "")
        except ValueError:
            return  # a name; the resolver looks at what it stands for
        self._check_address(str(address), url.host or "")

    def _check_address(self, address: str, host: str) -> None:
        if not (self._allows_private or is_public(address)):
            raise _Forbidden(f"{host!r} is at {address}, which is no public address; nothing was sent")

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=8, resolver=_Resolver(self)),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "nearfar", "Accept-Encoding": "identity"},
                timeout=aiohttp.ClientTimeout(total=None),
                trust_env=False,
            )
        return self._session


class _Forbidden(Exception):
    """A request that may not be sent."""


class _Resolver(AbstractResolver):
    """Gives only addresses that may be reached: what was checked is what is connected to."""

    def __init__(self, client: WebClient) -> None:
        self._client = client
        self._inner = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """See `AbstractResolver.resolve`."""
        found = await self._inner.resolve(host, port, family)
        for each in found:
            self._client._check_address(each["host"], host)
        return found

    async def close(self) -> None:
        """Nothing is held."""


def is_public(address: str) -> bool:
    """Whether everybody on the internet means the same by the address; IPv4 inside IPv6 counts as what it is."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if inner is not None:
            ip = inner
        elif ip in _NAT64:
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.is_global and not ip.is_multicast


_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
